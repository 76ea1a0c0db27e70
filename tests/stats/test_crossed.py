"""Items x frames: agreement with lme4 and R, boundaries, error rates of min-F', refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.optimize import minimize

from neurosae.errors import DataError
from neurosae.stats import crossed
from neurosae.stats.crossed import combine_f, crossed_reml, min_f
from neurosae.stats.mixed import reml


def worlds(n_items=16, n_frames=8, n_features=40, *, sd=(0.7, 0.7), seed=0):
    """Differences of items in frames, items and frames with a spread of their own."""
    rng = np.random.default_rng(seed)
    items, frames = np.repeat(np.arange(n_items), n_frames), np.tile(np.arange(n_frames), n_items)
    Y = rng.standard_normal((len(items), n_features)) + sd[0] * rng.standard_normal((n_items, n_features))[items]
    return Y + sd[1] * rng.standard_normal((n_frames, n_features))[frames], items, frames


def deviance(y, items, frames, *, ratios):
    """-2 log REML likelihood by the definition, dense, intercept only."""
    n = len(y)
    V = np.eye(n) + ratios[0] * (items[:, None] == items) + ratios[1] * (frames[:, None] == frames)
    root = np.linalg.cholesky(V)
    x, z = np.linalg.solve(root, np.ones(n)), np.linalg.solve(root, y)
    left = z - x * (x @ z) / (x @ x)
    s2 = left @ left / (n - 1)
    return (n - 1) * (np.log(2 * np.pi * s2) + 1) + 2 * np.log(np.diag(root)).sum() + np.log(x @ x)


def test_crossed_reml_agrees_with_lme4(oracles):
    """Estimates, errors, three variances, likelihood and Satterthwaite df of 144 rows, 12 items x 6 templates."""
    known = json.loads(oracles("lmm.json").read_text())["crossed"]
    Y, index = (np.loadtxt(oracles(f"inputs/crossed_{name}.csv"), delimiter=",") for name in ("Y", "idx"))
    X = np.column_stack([np.ones(len(Y)), index[:, 2] - 0.5])
    fit = crossed_reml(Y, X, index[:, 0], frames=index[:, 1], contrasts=np.eye(2))
    assert np.abs((fit.estimate - known["estimate"]) / np.array(known["se"])).max() < 1e-6
    assert_allclose(fit.se, known["se"], rtol=1e-6)
    assert_allclose(fit.var_item, known["var_item"], rtol=1e-5)
    assert_allclose(fit.var_frame, known["var_template"], rtol=1e-5)
    assert_allclose(fit.var_resid, known["var_resid"], rtol=1e-5)
    assert_allclose(fit.deviance, known["minus2_reml"], atol=1e-7)
    assert_allclose(fit.dof, known["df"], rtol=1e-3)


@pytest.mark.parametrize("complete", [True, False])
def test_crossed_reml_agrees_with_the_criterion_minimized_directly(complete):
    """No other pair of ratios has a smaller -2 log REML, inside and on both boundaries."""
    Y, items, frames = worlds(10, 6, 16, sd=(0.25, 0.25), seed=2)
    keep = np.random.default_rng(1).random(len(items)) < (1.1 if complete else 0.8)
    Y, items, frames = Y[keep], items[keep], frames[keep]
    fit = crossed_reml(Y, np.ones((len(Y), 1)), items, frames=frames, contrasts=np.ones((1, 1)))
    for j in range(16):
        ratios = (fit.var_item[j] / fit.var_resid[j], fit.var_frame[j] / fit.var_resid[j])
        at = deviance(Y[:, j], items, frames, ratios=ratios)
        starts = [(a, b) for a in (0.0, 0.3) for b in (0.0, 0.3)]
        found = [
            minimize(
                lambda u, y=Y[:, j]: deviance(y, items, frames, ratios=np.expm1(abs(u))), s, method="Nelder-Mead"
            ).fun
            for s in starts
        ]
        assert fit.deviance[j] == pytest.approx(at, abs=1e-8)
        assert at <= min(found) + 1e-7
    assert 0 < (fit.var_item == 0).sum() < 16
    assert 0 < (fit.var_frame == 0).sum() < 16


def test_mean_squares_agree_with_newton_steps():
    """Complete tables need no iteration: inside, on either boundary and on both, and where nothing is left."""
    for seed, sd in enumerate([(1.0, 1.0), (0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.2, 0.2)]):
        Y, items, frames = worlds(9, 7, 60, sd=sd, seed=seed)
        Y[:, 0] = 2.0
        one, C = np.ones((len(Y), 1)), np.ones((1, 1))
        fit = crossed_reml(Y, one, items, frames=frames, contrasts=C)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crossed, "log_ratios", lambda *_, **__: pytest.fail("not complete"))
            patch.setattr(np, "ptp", lambda _: 1)
            known = crossed_reml(Y, one, items, frames=frames, contrasts=C)
        # Newton steps end at 0 where a ratio is below the step of their differences
        same = ((fit.var_item == 0) == (known.var_item == 0)) & ((fit.var_frame == 0) == (known.var_frame == 0))
        assert same.sum() >= 58
        for name in ("estimate", "se", "dof", "var_item", "var_frame", "var_resid", "deviance"):
            ours, theirs = getattr(fit, name)[same], getattr(known, name)[same]
            assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=f"{name} {sd}")
        assert (fit.deviance[1:] <= known.deviance[1:] + 1e-9).all()
        assert not (known.var_item[fit.var_item == 0] > 0).any()
        assert not (known.var_frame[fit.var_frame == 0] > 0).any()
        assert np.isnan(fit.se[0])


def test_crossed_reml_without_frame_variance_agrees_with_one_random_effect():
    """Where the frames' variance is 0, everything is that of y ~ 1 + (1 | item)."""
    Y, items, frames = worlds(sd=(1.0, 0.0), n_features=60, seed=3)
    ones = np.ones((len(Y), 1))
    both = crossed_reml(Y, ones, items, frames=frames, contrasts=np.ones((1, 1)))
    one = reml(Y, ones, items, contrasts=np.ones((1, 1)))
    zero = (both.var_frame == 0) & (both.var_item > 0)
    assert zero.sum() > 10
    assert_allclose(both.se[zero], one.se[zero], rtol=1e-6)
    assert_allclose(both.dof[zero], one.dof[zero], rtol=1e-4)
    assert_allclose(both.deviance[zero], one.deviance[zero], atol=1e-8)


def test_crossed_reml_controls_the_error_rate_over_items_and_frames():
    """Both react differently: p <= .05 at most at the 99.9 % bound; taking items alone as random rejects far more."""
    Y, items, frames = worlds(16, 16, 600, sd=(1, 1), seed=5)
    ones = np.ones((len(Y), 1))
    fits = (
        crossed_reml(Y, ones, items, frames=frames, contrasts=np.ones((1, 1))),
        reml(Y, ones, items, contrasts=np.ones((1, 1))),
    )
    both, alone = ((2 * stats.t.sf(np.abs(f.estimate / f.se), f.dof) <= 0.05).sum() for f in fits)
    assert both <= stats.binom.isf(0.0005, 600, 0.05)
    assert alone > 0.12 * 600


def test_min_f_agrees_with_r(oracles):
    """F1, F2, min-F', its degrees of freedom and p."""
    known = json.loads(oracles("minf.json").read_text())
    found = min_f(np.loadtxt(oracles("inputs/minf_d.csv"), delimiter=","))
    names = ("F1", "F2", "minF", "df_denominator", "p_minF")
    for name, value in zip(names, (found.F1, found.F2, found.value, found.dof, found.p), strict=True):
        assert value == pytest.approx(known[name], rel=1e-10)


def test_min_f_agrees_with_scipy():
    """F1 and F2 are squared one-sample t; the degrees of freedom pair each F with the other's."""
    Y, _, _ = worlds(9, 6, 5, seed=8)
    d = Y.reshape(9, 6, 5)
    found = min_f(d)
    assert_allclose(found.F1, stats.ttest_1samp(d.mean(axis=1), 0).statistic ** 2, rtol=1e-10)
    assert_allclose(found.F2, stats.ttest_1samp(d.mean(axis=0), 0).statistic ** 2, rtol=1e-10)
    assert_allclose(found.dof, (found.F1 + found.F2) ** 2 / (found.F1**2 / 5 + found.F2**2 / 8), rtol=1e-12)


@pytest.mark.parametrize(
    ("n_items", "n_frames", "sd"), [(24, 4, (0, 0)), (24, 4, (1, 0)), (24, 8, (1, 0.5)), (16, 16, (1, 1))]
)
def test_min_f_controls_where_prompts_as_replicates_do_not(n_items, n_frames, sd):
    """min-F' stays below the 99.9 % bound of .05; prompts counted as n reject above .12 where items differ."""
    Y, _, _ = worlds(n_items, n_frames, 2000, sd=sd, seed=9)
    d = Y.reshape(n_items, n_frames, -1)
    assert (min_f(d).p <= 0.05).sum() <= stats.binom.isf(0.0005, 2000, 0.05)
    if sd[0]:
        assert (stats.ttest_1samp(Y, 0).pvalue <= 0.05).mean() > 0.12


def test_min_f_of_nothing_is_nothing():
    """Equal means of zero give min-F' 0 and p 1, not nan."""
    found = combine_f(np.array([0.0]), np.array([0.0]), dof=(11.0, 5.0))
    assert (found.value[0], found.p[0]) == (0.0, 1.0)


def test_crossed_reml_refuses_few_frames():
    """The message says how many there are and how many it takes."""
    Y, items, frames = worlds(n_frames=5)
    with pytest.raises(DataError, match="5 frames cannot carry a claim over frames: it needs at least 6"):
        crossed_reml(Y, np.ones((len(Y), 1)), items, frames=frames, contrasts=np.ones((1, 1)))
