"""The corrected two-factor bootstrap: rsatoolbox's variances and p on the same draws, coverage, and refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.stats.model_comparison import as_result, compare_models, dual_bootstrap, model_rows

C, K, M, N = 12, 6, 3, 25


@pytest.fixture(scope="module")
def peer():
    """rsatoolbox's evaluation; its import and its progress bar are noisy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox.inference.evaluate as module
        from rsatoolbox.model import ModelFixed
        from rsatoolbox.rdm import RDMs

        yield module, ModelFixed, RDMs


@pytest.fixture
def rdms():
    rng = np.random.default_rng(0)
    pairs = C * (C - 1) // 2
    base = rng.random(pairs)
    models = base * np.linspace(0, 1, M)[:, None] + 0.5 * rng.random((M, pairs))
    return np.abs(base + rng.normal(0, 0.3, (K, pairs))), models


@pytest.mark.parametrize("compare", ["cosine_cov", "corr_cov", "rho-a"])
def test_agrees_with_rsatoolbox_on_the_same_draws(rdms, peer, *, compare, monkeypatch):
    """Three covariances, corrected variances, p of models, pairs and ceilings."""
    module, ModelFixed, RDMs = peer
    monkeypatch.setattr(module.tqdm, "trange", lambda n, *a, **k: range(n))
    data, models = rdms
    np.random.seed(4)  # noqa: NPY002  (the peer draws from the global generator)
    W, R = np.zeros((N, C)), np.zeros((N, K))
    state = []
    original = module.bootstrap_sample

    def spied(*args, **kwargs):
        sample, rdm_idx, pattern_idx = original(*args, **kwargs)
        state.append((np.bincount(rdm_idx, minlength=K), np.bincount(pattern_idx, minlength=C)))
        return sample, rdm_idx, pattern_idx

    monkeypatch.setattr(module, "bootstrap_sample", spied)
    fixed = [ModelFixed(str(j), v) for j, v in enumerate(models)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = module.eval_dual_bootstrap(fixed, RDMs(data), method=compare, k_pattern=1, k_rdm=1, N=N)
    R, W = (np.array(part) for part in zip(*state, strict=True))
    ours = dual_bootstrap(data, dict(zip("abc", models, strict=True)), compare=compare, drawn=(W, R))
    assert_allclose(ours.raw, theirs.variances, atol=1e-12)
    eye = np.eye(M + 2)
    assert_allclose([ours.variance(eye[k]) for k in range(M)], theirs.model_var, rtol=1e-9)
    assert_allclose([ours.variance(eye[k] - eye[M]) for k in range(M)], theirs.noise_ceil_var[:, 0], rtol=1e-9)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert_allclose([ours.variance(eye[i] - eye[j]) for i, j in pairs], theirs.diff_var, rtol=1e-9)
    table = model_rows(ours).set_index("effect")
    t = table.value / table.se
    expected = [2 * stats.t.sf(abs(t[f"{x} - {y}"]), min(C, K) - 1) for x, y in ("ab", "ac", "bc")]
    assert_allclose(table.p_unc[["a - b", "a - c", "b - c"]], expected)
    back = as_result(ours, fixed)
    assert_allclose(back.get_sem(), theirs.get_sem())
    assert_allclose(back.get_means(), theirs.get_means(), atol=1e-12)
    assert "dual_bootstrap" in back.summary()


def test_compare_models_recovers_the_better_model(rdms):
    """The best model is found, its advantage too; a copy of it is equivalent within the margin."""
    data, models = rdms
    rng = np.random.default_rng(1)
    named = {"best": models[2], "twin": models[2] + 1e-3 * rng.random(models[2].shape), "none": rng.random(66)}
    found = compare_models(data, named, n_draws=300, margin=0.1, seed=1).set_index("effect")
    assert found.p_corr["best"] < 0.01 < 0.05 < found.p_corr["none"]
    assert found.p_corr["best - none"] < 0.05
    assert found.x_p_equivalent["best - twin"] < 0.01 < found.x_p_equivalent["best - none"]
    assert (found.ci_low < found.value).all()
    assert found.x_to_ceiling["none"] < 0


def test_cosines_have_no_p_against_zero(rdms):
    """Unrelated distances have a positive cosine, so models are compared and not tested; nothing is squared."""
    found = compare_models(*(rdms[0], {"a": rdms[1][0], "b": rdms[1][1]}), n_draws=100, compare="cosine_cov", seed=1)
    assert found.p_unc.isna().tolist() == [True, True, False]
    assert found.note[0].startswith("no p")


def test_controls_its_error_rate():
    """An unrelated model, 120 data sets of 8 conditions and 6 RDMs with a geometry of their own: within the band."""
    rejected = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        truth, model = rng.random((2, 45))
        data = truth + 0.5 * rng.standard_normal((6, 45))
        rejected += compare_models(data, {"m": model}, n_draws=100, compare="corr", seed=seed).p_unc[0] <= 0.05
    assert rejected <= stats.binom.ppf(0.999, 120, 0.05)


def test_unreliable_rdms_rank_no_models():
    """RDMs that share nothing: pairs are untestable, with the reason."""
    rng = np.random.default_rng(2)
    data = rng.standard_normal((4, 45))
    data -= data.mean(axis=0)
    pair = compare_models(data, {"a": rng.random(45), "b": rng.random(45)}, n_draws=60, seed=0).iloc[-1]
    assert pair.status == "untestable"
    assert "not ranked" in pair.note


def test_refuses_few_conditions_and_few_rdms(rdms):
    """Each refusal names what can be done instead."""
    data, models = rdms
    with pytest.raises(DataError, match=r"over 4 conditions .*p_from: item_flips"):
        compare_models(data[:, :6], {"a": models[0, :6]})
    with pytest.raises(DataError, match=r"at least 3 data RDMs .*p_from: condition_labels"):
        compare_models(data[:2], {"a": models[0]})
