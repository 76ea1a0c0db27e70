"""F over levels and contrasts without mirror image: against scipy, statsmodels, pingouin, afex, and enumeration."""

from __future__ import annotations

from itertools import permutations, product

import numba
import numpy as np
import pandas as pd
import pingouin
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM, anova_lm

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.results import counted_p
from neurosae.stats.contrast import contrast, null_rate
from neurosae.stats.family import Cell, Place, infer
from neurosae.stats.flips import maxima, step_counts
from neurosae.stats.level_kernels import SHARE, WELCH, LabelTile
from neurosae.stats.levels import F_BETWEEN, aligned_ranks, f_to_z, label_columns, to_f, welch_f
from neurosae.stats.moderation import fit_prior
from neurosae.stats.multiplicity import step_down
from neurosae.stats.relabel import levels, within
from neurosae.stats.relabel import permutations as label_permutations
from neurosae.stats.simulate import simulate
from neurosae.stats.statistics import STATISTICS
from neurosae.stats.units import item_data

DOSES = ["low", "mid", "high"]
EVERY, PEAK = {"dose": "all"}, {"dose": {"mid": 2, "low": -1, "high": -1}}
PLACE = Place("t", "dose", "s", "word", 0, "test", None)
ORDERS = list(permutations(range(3)))


def design_of(n, *, between=False, extra=False):
    """Dose in three levels, within items or between them; `extra`: a second between factor, unbalanced."""
    names = [f"w{i}" for i in range(n)]
    values = dict(zip(DOSES, (0, 1, 2), strict=True))
    factors = {"dose": {"levels": DOSES, "values": values, "varies": "between" if between else "within"}}
    items = {x: {"w": {d: f"{x}{d}" for d in DOSES}} for x in names}
    if between:
        items = {x: {"dose": DOSES[i % 3], "w": x} for i, x in enumerate(names)}
    if extra:
        factors["kind"] = {"levels": ["x", "y"], "varies": "between"}
        items = {x: form | {"kind": "x" if i % 5 < 3 else "y"} for i, (x, form) in enumerate(items.items())}
    slot = "{w}" if between else "{w:dose}"
    parts = {"factors": factors, "frames": {"f": f"It {slot} was"}, "items": items}
    return Design.model_validate({"schema": "neurosae/design/1", "name": "dose", **parts})


def data_of(n, effect, *, n_features=60, density=0.6, planted=0, **how):
    design = design_of(n, **how)
    fake = simulate(design, n_features=n_features, density=density, effects={"dose": planted}, seed=2)
    region = str(fake.obs["region"].iloc[0])
    data = item_data(fake, design, effect, region=region, flips_only=False)
    return fake, data, np.flatnonzero(data.informative >= min(6, n - 1)), region


def values_at(data, kept):
    """Item x level x feature, from the responses themselves."""
    out = np.zeros((data.n, 3, len(kept)))
    Y = data.Y[:, kept].toarray()
    for unit, cell, y in zip(data.row_unit, data.row_cell, Y, strict=True):
        out[unit, DOSES.index(data.cells[cell][0])] = y
    return out


def F_of(Y):
    n, K = Y.shape[:2]
    mean = Y.mean(axis=0)
    between = n * ((mean - mean.mean(axis=0)) ** 2).sum(axis=0)
    rest = ((Y - Y.mean(axis=1, keepdims=True)) ** 2).sum(axis=(0, 1)) - between
    return between / (K - 1) / (rest / ((n - 1) * (K - 1)))


def moved(Y, orders):
    """Values of item i of level k at level orders[i][k]."""
    out = np.empty_like(Y)
    for i, order in enumerate(orders):
        out[i, list(order)] = Y[i]
    return out


def test_f_within_items_agrees_with_statsmodels_and_pingouin():
    """Repeated-measures F and its p on item x level means, and z with the same p."""
    _, data, kept, _ = data_of(12, EVERY)
    ready, Y = STATISTICS["t"](data, kept), values_at(data, kept)
    assert_allclose(ready.columns.value, F_of(Y), rtol=1e-9)
    assert_allclose(2 * stats.norm.sf(ready.columns.z), stats.f.sf(F_of(Y), 2, 22), rtol=1e-9)
    for j in (0, 1):
        table = pd.DataFrame({"y": Y[:, :, j].ravel(), "item": np.repeat(range(12), 3), "dose": np.tile(DOSES, 12)})
        theirs = AnovaRM(table, "y", "item", ["dose"]).fit().anova_table.iloc[0]
        other = pingouin.rm_anova(table, dv="y", within="dose", subject="item", detailed=True).iloc[0]
        assert_allclose(ready.columns.value[j], [theirs["F Value"], other["F"]], rtol=1e-9)


def test_f_between_items_agrees_with_scipy_and_type_iii():
    """One-way F of scipy; beside a second factor the type III F of cell means, unbalanced."""
    _, data, kept, _ = data_of(21, EVERY, between=True)
    ready, y = STATISTICS["F"](data, kept), data.D[:, kept].toarray()
    assert_allclose(ready.columns.value, stats.f_oneway(*(y[data.codes == g] for g in range(3))).statistic, rtol=1e-9)
    _, data, kept, _ = data_of(26, EVERY, between=True, extra=True)
    ready, y = STATISTICS["F"](data, kept), data.D[:, kept].toarray()
    cells = [data.exchange.group_cells[g] for g in data.codes]
    table = pd.DataFrame(cells, columns=["dose", "kind"])
    for j in (0, 1):
        table["y"] = y[:, j]
        fit = anova_lm(ols("y ~ C(dose, Sum) * C(kind, Sum)", table).fit(), typ=3)
        assert_allclose(ready.columns.value[j], fit.loc["C(dose, Sum)", "F"], rtol=1e-9)
    F, df = welch_f(sp.csc_matrix(y), data.codes, data.contrasts)
    welch = STATISTICS["t"](data, kept)
    assert_allclose(welch.columns.value[F < 1e6], F[F < 1e6], rtol=1e-8)
    assert_allclose(welch.dof, df)


def unequal(seed=0, *, sizes=(6, 9, 14), spread=(3, 1, 1), m=40, sparse=True):
    """Groups of unequal size and variance; rare features, a column that is constant in one group, one dead in two."""
    rng, codes = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    Y = rng.standard_normal((len(codes), m)) * np.array(spread)[codes][:, None]
    if sparse:
        Y = np.abs(Y) * (rng.random(Y.shape) < 0.6)
        Y[codes == 0, 0], Y[codes > 0, 1] = 2.0, 0.0
    return Y, codes


@pytest.mark.parametrize("d0", [0.0, 4.0, np.inf])
def test_welch_f_agrees_with_pingouin_scipy_and_its_own_kernel(d0):
    """Welch's F and its degrees of freedom; two groups give Welch's t; the relabelled statistic is the same number."""
    (Y, codes), every = unequal(), np.array([[-1.0, 1, 0], [-1, 0, 1]])
    s02 = np.linspace(0.5, 2, 40)
    F, df = welch_f(sp.csc_matrix(Y), codes, every, d0=d0, s02=s02)
    if d0 == 0:
        for j in range(2, 12):
            known = pingouin.welch_anova(pd.DataFrame({"y": Y[:, j], "g": codes}), dv="y", between="g").iloc[0]
            assert_allclose([F[j], df[j]], [known["F"], known["ddof2"]], rtol=1e-9)
        two = codes < 2
        F2, df2 = welch_f(sp.csc_matrix(Y[two][:, 2:]), codes[two], np.array([[-1.0, 1]]))
        t = stats.ttest_ind(Y[codes == 0][:, 2:], Y[codes == 1][:, 2:], equal_var=False)
        assert_allclose(F2, t.statistic**2, rtol=1e-9)
        assert_allclose(df2, t.df, rtol=1e-9)
    own = np.append(np.bincount(codes) - 1 + d0, 26 + d0)
    prior = s02 if np.isinf(d0) else d0 * s02
    tile = LabelTile(codes.astype(np.uint8)[:, None], own, every, 1 / np.bincount(codes), 29, 1, WELCH)
    columns = label_columns(sp.csc_matrix(Y), tile, size=prior, df=(2.0, 26 + d0), how=F_BETWEEN)
    usual = F < 1e6
    assert usual.sum() >= 38
    assert_allclose(columns.value[usual], F[usual], rtol=1e-8)
    S = (Y - np.array([Y[codes == g].mean(axis=0) for g in codes])) ** 2
    own = np.array([S[codes == g].sum(axis=0) for g in range(3)])
    counts = np.bincount(codes)[:, None]
    own = np.tile(s02, (3, 1)) if np.isinf(d0) else (own + d0 * s02) / (counts - 1 + d0)
    mean = np.array([Y[codes == g].mean(axis=0) for g in range(3)])
    for j in range(2, 40):  # the general formula, written out
        V = every @ np.diag(own[:, j] / counts[:, 0]) @ every.T
        inverse = np.linalg.inv(V)
        rest = np.diag(np.diag(own[:, j] / counts[:, 0]) @ every.T @ inverse @ every)
        A = (rest**2 / (counts[:, 0] - 1 + d0)).sum()
        x = every @ mean[:, j]
        assert_allclose(F[j], x @ inverse @ x / (2 + 2 * A - 6 * A / 4), rtol=1e-9)


def test_f_between_unequal_groups_is_welchs():
    """In rows with its own degrees of freedom; equal groups are pooled; the effect size is that of the pooled F."""
    equal, other = (STATISTICS["t"](*data_of(n, EVERY, between=True)[1:3]) for n in (21, 20))
    assert (equal.name, other.name) == ("F", "welch_F")
    assert equal.dof is None
    pooled = STATISTICS["F"](*data_of(20, EVERY, between=True)[1:3])
    assert all("unequal size" in note for note in pooled.notes)
    fake, data, kept, region = data_of(20, EVERY, between=True)
    found = contrast(fake, EVERY, region=region, inference={"statistic": "t", "n_permutations": 99}, seed=1)
    found = found[found["status"] == "ok"].set_index("feature")
    y = data.D[:, kept].toarray()
    for j, feature in enumerate(data.features[kept[:8]]):
        table = pd.DataFrame({"y": y[:, j], "g": data.codes})
        known = pingouin.welch_anova(table, dv="y", between="g").iloc[0]
        if np.isfinite(known["F"]):
            assert_allclose(found.loc[feature, ["value", "dof"]].astype(float), known[["F", "ddof2"]].astype(float))
            pooled = pingouin.anova(table, dv="y", between="g").iloc[0]
            assert_allclose(found.loc[feature, "effsize"], pooled["np2"], rtol=1e-9)


def test_welch_f_controls_error_between_groups_of_unequal_variance():
    """Groups of 8, 8 and 24 with standard deviations 2, 2, 1 or 1, 1, 2: pooling rejects far too often or never."""
    every, rates = np.array([[-1.0, 1, 0], [-1, 0, 1]]), {}
    for spread in ((2, 2, 1), (1, 1, 2)):
        Y, codes = unequal(3, sizes=(8, 8, 24), spread=spread, m=1500, sparse=False)
        counts = np.bincount(codes)
        how = label_permutations(np.arange(40), codes, 400, seed=5)
        means = every / counts
        shared = np.linalg.solve(np.linalg.cholesky(means @ every.T), means)
        for mode, weights, projections, size in (
            (WELCH, np.append(counts - 1.0, 37.0), every, np.zeros(1500)),
            (SHARE, np.zeros(3), shared, (Y**2).sum(axis=0)),
        ):
            tile = LabelTile(codes.astype(np.uint8)[:, None], weights, projections, 1 / counts, 40, 1, mode)
            columns = label_columns(sp.csc_matrix(Y), tile, size=size, df=(2.0, 37.0), how=F_BETWEEN)
            rates[mode, spread] = float((maxima(columns, how)[1] / how.n <= 0.05).mean())
    assert rates[SHARE, (2, 2, 1)] > 0.12
    assert rates[SHARE, (1, 1, 2)] < 0.02
    assert 0.03 < rates[WELCH, (2, 2, 1)] < 0.075
    assert 0.03 < rates[WELCH, (1, 1, 2)] < 0.075


def test_f_of_two_levels_is_the_square_of_t():
    """And its relabellings are the sign flips, so that p is the flip p."""
    effect = {"dose": {"high": 1, "low": -1}}
    _, data, kept, _ = data_of(10, effect)
    t = STATISTICS["t"](data, kept).columns.value
    D = data.D[:, kept].toarray()
    assert_allclose(t, stats.ttest_1samp(D, 0).statistic, rtol=1e-9)
    u = t / np.sqrt(9 + t**2)
    assert_allclose(to_f(np.abs(u), (1.0, 9.0)), t**2, rtol=1e-9)
    assert_allclose(2 * stats.norm.sf(f_to_z(np.abs(u), (1.0, 9.0))), stats.ttest_1samp(D, 0).pvalue, rtol=1e-9)


@pytest.mark.parametrize("effect", [EVERY, PEAK])
def test_p_agrees_with_every_exchange_of_levels(effect):
    """Five items, (3!)^5 relabellings written out: reached counts and maxima, for F, t and the rank versions."""
    _, data, kept, _ = data_of(5, effect, n_features=25)
    every, Y = effect is EVERY, values_at(data, kept)
    w = np.array([-1.0, 2.0, -1.0])
    how = within(np.arange(5), 3, 10_000, part=(0, every), seed=0)
    assert how.n == (6**4 if every else 6**5)
    fixed = [ORDERS[:1]] if every else [ORDERS]
    all_orders = list(product(*fixed, *[ORDERS] * 4))
    ranks = aligned_ranks(sp.csc_matrix(data.levels[:, kept]), 3).toarray().reshape(5, 3, -1)
    for name, values in (("t", Y), ("signed_rank", ranks)):
        columns = STATISTICS[name](data, kept).columns
        if every:
            null = np.array([F_of(moved(values, g)) for g in all_orders])
        else:
            d = np.array([np.einsum("k,ikj->ij", w, moved(values, g)) for g in all_orders])
            se = d.std(axis=1, ddof=1) / np.sqrt(5)
            null = np.abs(d.mean(axis=1) / np.where(se > 0, se, 1)) if name == "t" else np.abs(d.sum(axis=1))
        mx, reached = maxima(columns, how)
        assert_array_equal(reached, (null >= null[0] - 1e-9 * (1 + null[0])).sum(axis=0))
        if name == "t":
            top = np.abs(columns.how.to_value(mx, columns.df))
            assert_allclose(np.sort(top), np.sort(null.max(axis=1)), rtol=1e-7)


def test_moderated_statistics_agree_with_their_equations():
    """Prior on the sum of squares inside items, which no exchange of levels changes; trend over activity."""
    for effect in (EVERY, PEAK):
        _, data, kept, _ = data_of(14, effect)
        Y = values_at(data, kept)
        inside = ((Y - Y.mean(axis=1, keepdims=True)) ** 2).sum(axis=(0, 1))
        activity = np.log(np.asarray(data.Y.mean(axis=0)).ravel()[kept])
        d0, s02 = fit_prior(inside / 28, 28, activity)
        made = STATISTICS["moderated_t"](data, kept)
        assert made.d0 == pytest.approx(d0, rel=1e-9)
        if effect is EVERY:
            between = 14 * Y.mean(axis=0).var(axis=0) * 3
            expected = between / 2 / ((inside - between + d0 * s02) / (26 + d0))
        else:
            d = np.einsum("k,ikj->ij", [-1, 2, -1], Y)
            v = (d0 * 6 * s02 + 13 * d.var(axis=0, ddof=1)) / (d0 + 13)
            expected = d.mean(axis=0) / np.sqrt(v / 14)
        assert_allclose(made.columns.value, expected, rtol=1e-8)


@pytest.mark.parametrize("case", ["F within", "contrast within", "F between"])
def test_maxima_invariant_to_threads_order_and_dead_columns(case):
    """Bit for bit the same on any number of threads; order of features and an empty column change nothing."""
    effect = PEAK if case.startswith("contrast") else EVERY
    _, data, kept, _ = data_of(18, effect, between=case.endswith("between"))
    if data.codes is None:
        how = within(data.numbers, 3, 1500, seed=4)
    else:
        how = label_permutations(data.numbers, data.codes, 1500, seed=4)
    columns = STATISTICS["t"](data, kept).columns
    before, results = numba.get_num_threads(), []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append((*maxima(columns, how), step_counts([columns], how)[0]))
    numba.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert_array_equal(one, many)
    order = np.random.default_rng(0).permutation(len(kept))
    mx, reached = maxima(STATISTICS["t"](data, kept[order]).columns, how)
    assert_array_equal(mx, results[0][0])
    assert_array_equal(reached, results[0][1][order])
    z = columns.z if columns.how.negate is None else np.abs(columns.z)
    single = counted_p(columns.how.to_z(mx, columns.df), z)
    stepped = step_down(results[0][2], z, how.n)
    assert (stepped <= single + 1e-12).all()
    assert stepped.min() == single.min()


@pytest.mark.parametrize("case", ["F within", "contrast within", "F between"])
@pytest.mark.parametrize("statistic", ["t", "moderated_t", "signed_rank"])
def test_max_t_controls_familywise_error(case, statistic):
    """No effect, 60 families of features: rejections inside the binomial 99.9 % band around .05."""
    effect = PEAK if case.startswith("contrast") else EVERY
    _, data, kept, _ = data_of(18, effect, between=case.endswith("between"), n_features=1200, density=(0.1, 0.6))
    settings = Inference(statistic=statistic, n_permutations=300)
    p = [
        infer([Cell(PLACE, data, family)], settings, seed=k, split="test")[0][0].p_corr.min()
        for k, family in enumerate(np.array_split(kept, 60))
    ]
    assert np.sum(np.array(p) <= 0.05) <= stats.binom.isf(0.0005, 60, 0.05)


def test_levels_and_flips_form_one_family():
    """F, a trend and a peak joined by the maximum on the z scale; rows name their statistic and degrees of freedom."""
    fake, *_, region = data_of(20, EVERY, planted=5, n_features=40)
    effects = {"every": EVERY, "peak": PEAK, "trend": {"dose": "linear"}}
    table = contrast(fake, effects, region=region, inference={"n_permutations": 999, "statistic": "t"}, seed=1)
    tested = table[table["status"] == "ok"]
    assert set(tested["n_family"]) == {len(tested)}
    by = tested.groupby("effect")["stat"].unique().map(list).to_dict()
    assert by == {"every": ["F"], "peak": ["t"], "trend": ["t"]}
    every = tested[tested["effect"] == "every"]
    assert (every["x_df1"] == 2).all()
    assert (every["dof"] == 38).all()
    assert every["h0"].str.startswith("no difference between the levels of dose (low, mid, high)").all()
    assert every["x_weights"].iloc[0] == "-1 low, +1 mid; -1 low, +1 high"
    assert_allclose(every["effsize"], 2 * every["value"] / (2 * every["value"] + 38), rtol=1e-9)
    assert set(every["eftype"]) == {"eta2_p"}
    assert (every.loc[every["feature"] < 5, "p_unc"] <= 0.05).sum() >= 3
    assert set(tested.loc[tested["effect"] == "trend", "p_method"]) <= {"exact", "saddlepoint"}
    assert set(every["p_method"]) == {"permutations"}


def test_relabellings_are_a_function_of_item_and_factor():
    """An item's levels move alike whichever items are beside it; another factor moves by other bits."""
    some = within(np.arange(30), 3, 2000, seed=5)
    few = within(np.array([4, 20]), 3, 2000, seed=5, enumerate_all=False)
    assert_array_equal(levels(some, 512, 200)[[4, 20]], levels(few, 512, 200))
    assert not np.array_equal(
        levels(some, 0, 200), levels(within(np.arange(30), 3, 2000, part=(1, False), seed=5), 0, 200)
    )
    drawn = levels(some, 0, 2000)
    assert_array_equal(drawn[:, :, 0], np.tile(range(3), (30, 1)))
    share = np.array([[(drawn[:, k] == to).mean() for to in range(3)] for k in range(3)])
    assert np.abs(share - 1 / 3).max() < 0.01


@pytest.mark.parametrize("effect", [EVERY, PEAK])
def test_columns_keep_their_items_in_a_larger_relabelling(effect):
    """Items 13 to 32 of 40 give the maxima that they give alone: relabellings belong to items, not to rows."""
    _, data, kept, _ = data_of(20, effect)
    numbers = np.arange(20) + 13
    alone, among = within(numbers, 3, 700, seed=2), within(np.arange(40), 3, 700, seed=2)
    columns = STATISTICS["t"](data, kept).columns
    for one, other in zip(maxima(columns, alone), maxima(columns.how.place(columns, numbers), among), strict=True):
        assert_array_equal(one, other)


def test_null_rate_moves_the_levels():
    """Planted features are not rejected once the levels of every item are shuffled."""
    fake, *_, region = data_of(18, EVERY, planted=10, n_features=40)
    for effect in (EVERY, PEAK):
        row = null_rate(fake, effect, region=region, inference={"n_permutations": 200}, n_sets=20, seed=1)
        assert row["rate"].iloc[0] <= stats.binom.isf(0.001, 20, 0.05) / 20


def test_what_has_no_meaning_is_refused():
    """The message names what would do."""
    fake, *_, region = data_of(12, EVERY)
    for asked, effect, words in [
        ({"statistic": "mean"}, EVERY, "use F"),
        ({"statistic": "F"}, PEAK, "use t"),
        ({"statistic": "hurdle"}, EVERY, "use moderated_t"),
        ({"alternative": "greater"}, EVERY, "use two-sided"),
    ]:
        with pytest.raises(DataError, match=words):
            contrast(fake, effect, region=region, inference=asked, seed=1)
