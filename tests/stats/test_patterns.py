"""Effects on whole patterns: worlds with known truth, foreign software, permuted labels, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.spec.factorial import FactorialBlock
from neurosae.stats import coded, cvmanova, decoding, distances, manova, permanova
from neurosae.stats.factorial import factorial
from neurosae.stats.lengths import effect_length, relabellings
from neurosae.stats.matched import matched_sets
from neurosae.stats.relabel import signs
from neurosae.stats.simulate import example_design, responses_of, simulate
from neurosae.stats.spots import Spot
from neurosae.stats.units import item_data
from neurosae.stats.worlds import world

A, B = ({name: {"yes": 1, "no": -1}} for name in "ab")
FEW = {"n_permutations": 200}


def rows_of(fake, effects, statistic, **settings):
    return factorial(
        fake, effects, region="probe", statistic=statistic, inference=FEW, settings=settings, seed=1
    ).set_index("effect")


def levels_design(n_items, varies="within", strata=None):
    """Three levels of load, within items or between them."""
    factor = {"levels": ["none", "low", "high"], "varies": varies, "values": {"none": 0, "low": 1, "high": 2}}
    made = {"schema": "neurosae/design/1", "name": "load", "factors": {"load": factor}}
    if varies == "within":
        made["frames"] = {"f": "It {verb:load} here"}
        made["items"] = {f"i{k}": {"verb": {v: f"{v}{k}" for v in factor["levels"]}} for k in range(n_items)}
    else:
        made["regions"] = {"verb": {"words": [1, 1]}}
        made["lists"] = {v: [{"text": f"It {v}{k} here"} for k in range(n_items // 3)] for v in factor["levels"]}
    return Design.model_validate(made)


# ------------------------------------------------------------------ D_c of every kind of effect


@pytest.mark.parametrize("varies", ["within", "between"])
def test_lengths_recover_all_levels_and_contrasts_without_mirror_image(varies):
    """One feature in ten answers to load: found by all levels at once, by the linear and by an oblique contrast."""
    design = levels_design(24, varies)
    fake = simulate(design, n_features=100, effects={"load": 12}, density=0.5, shift=4.0, seed=1)
    effects = {"all": {"load": "all"}, "up": {"load": "linear"}, "odd": {"load": {"high": 2, "low": -1, "none": -1}}}
    found = factorial(fake, effects, region="verb", inference=FEW, seed=1).set_index("effect")
    assert (found["p_corr"] <= 0.05).all()
    still = simulate(design, n_features=100, density=0.5, seed=2)
    assert factorial(still, effects, region="verb", inference=FEW, seed=1)["p_unc"].min() > 0.01


def test_lengths_of_levels_are_the_double_loop():
    """The closed form through one Gram matrix equals the sum over pairs of items, features weighted alike."""
    fake = simulate(levels_design(8), n_features=12, density=0.6, seed=3)
    data = item_data(fake, levels_design(8), {"load": "all"}, region="verb", flips_only=False)
    ((how, place),) = relabellings([data], 50, seed=1, split="test")
    kept = np.flatnonzero(data.informative >= 2)
    X = data.levels[:, kept].toarray().reshape(8, 3, -1)
    X = X - X.mean(axis=1, keepdims=True)
    variance = (X**2).sum(axis=(0, 1)) / 8
    X = X / np.sqrt(variance + np.median(variance))
    loop = sum((X[i] * X[k]).sum() for i in range(8) for k in range(8) if i != k) / 56
    assert_allclose(effect_length(data, how, place, min_informative=2).value, loop, rtol=1e-12)


@pytest.mark.parametrize("kind", ["slope", "all"])
def test_lengths_are_unbiased(kind):
    """Noise alone: the mean over data sets is 0 within four standard errors, although every square is positive."""
    values = []
    for seed in range(40):
        fake = simulate(levels_design(12), n_features=30, density=0.7, seed=seed)
        data = item_data(fake, levels_design(12), {"load": "all"}, region="verb", flips_only=False)
        ((how, place),) = relabellings([data], 20, seed=1, split="test")
        if kind == "all":
            values.append(effect_length(data, how, place).value)
            continue
        X = data.levels.toarray().reshape(12, -1)
        values.append(slope_value(X, np.arange(12.0)))
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def slope_value(X, x):
    """The formula of slopes, written out: squared length of b less its variance."""
    x = x - x.mean()
    b = x @ X / (x @ x)
    left = X - X.mean(axis=0) - np.outer(x, b)
    return b @ b - (left**2).sum() / (len(x) - 2) / (x @ x)


def sloped(n, n_planted, seed):
    """Items with a covariate that the first features follow."""
    rng = np.random.default_rng(seed)
    sides = {"l": "left", "r": "right"}
    items = {f"i{k}": {"noun": f"n{k}", "s": sides, "frequency": float(k % 7)} for k in range(n)}
    made = {"schema": "neurosae/design/1", "name": "f", "factors": {"side": ["l", "r"]}, "covariates": ["frequency"]}
    made |= {"frames": {"f": "{noun} is {s:side}"}, "items": items}
    design = Design.model_validate(made)
    fake = simulate(design, n_features=30, density=0.5, regions=("noun",), seed=seed)
    x = fake.obs["frequency"].to_numpy(dtype=float)
    Y = 5 + rng.standard_normal(fake.shape)
    Y[:, :n_planted] += 0.8 * (x - x.mean())[:, None]
    return responses_of(
        sp.csr_matrix(Y.astype(np.float32)), fake.obs.reset_index(drop=True), fake.var, design=design, provenance={}
    ), design


def test_slopes_agree_with_the_formula_and_are_found():
    """Slope on a covariate: D_c as written out item by item, and found where it was planted alone."""
    fake, design = sloped(24, 5, seed=1)
    effect = {"slope": "frequency"}
    data = item_data(fake, design, effect, region="noun", flips_only=False)
    ((how, place),) = relabellings([data], 20, seed=1, split="test")
    X = data.D.toarray()
    variance = X.var(axis=0)
    X = X / np.sqrt(variance + np.median(variance))
    value = effect_length(data, how, place).value
    assert_allclose(value, slope_value(X, data.exchange.regressor.values), rtol=1e-9)
    ask = {"region": "noun", "inference": FEW, "seed": 1}
    assert factorial(fake, {"f": effect}, **ask)["p_corr"].iloc[0] <= 0.01
    assert factorial(sloped(24, 0, seed=2)[0], {"f": effect}, **ask)["p_corr"].iloc[0] > 0.05


# ------------------------------------------------------------------ the table of additive and random geometries


def test_generalization_recovers_geometries():
    """Additive: decoding, CCGP and parallelism near 1; random geometry: decoding near 1, CCGP at chance."""
    means = {}
    for name in ("additive", "random_geometry"):
        rows = [rows_of(world(name, n_items=24, seed=s), {"a": A}, "ccgp").loc["a"] for s in range(6)]
        means[name] = [np.mean([row[c] for row in rows]) for c in ("x_decoding", "value", "x_parallelism")]
        geometry = np.mean([row["x_p_geometry"] <= 0.05 for row in rows])
        interaction = np.mean([row["x_p_interaction"] <= 0.05 for row in rows])
        assert (geometry, interaction) == (pytest.approx(1), pytest.approx(0, abs=0.2))[
            :: 1 if name == "additive" else -1
        ]
    assert_allclose(means["additive"], [0.99, 0.98, 1.0], atol=0.04)
    assert means["random_geometry"][0] > 0.9
    assert_allclose(means["random_geometry"][1:], [0.5, 0.0], atol=0.12)


def test_decoding_between_items_recovers_and_controls():
    """Labels of items: planted features are decoded on held-out items; without them p is uniform enough."""
    design = example_design(40, between=True)
    number = {"number": {"pl": 1, "sg": -1}}
    ask = {"region": "noun", "statistic": "decoding", "inference": FEW, "seed": 1}
    planted = simulate(design, n_features=60, effects={"number": 12}, density=0.4, shift=3.0, seed=1)
    row = factorial(planted, {"n": number}, **ask).iloc[0]
    assert row["value"] > 0.75
    assert row["p_corr"] <= 0.01
    p = [
        factorial(simulate(design, n_features=60, density=0.4, seed=s), {"n": number}, **ask)["p_unc"].iloc[0]
        for s in range(20, 50)
    ]
    assert np.mean(np.array(p) <= 0.05) <= stats.binom.ppf(0.999, 30, 0.05) / 30
    assert 0.3 < np.mean(p) < 0.7


def test_no_fold_splits_an_item():
    """Rows of one item are never in training when one of them is scored; a copy of the item would decode it."""
    fake = world("C0", n_items=12, seed=0)
    data = item_data(fake, design_of(fake), A, region="probe")
    rows = coded.coded_rows(data, np.arange(60), across=1)
    folds = np.arange(12) % 4
    for split in [*decoding.decoding_splits(rows, folds), *decoding.generalization_splits(rows, folds)]:
        assert not set(rows.unit[split.train]) & set(rows.unit[split.scored])


def design_of(fake):
    from neurosae.extraction.responses import design_of as of

    return of(fake)


def test_items_alone_are_not_decoded():
    """Items that differ wildly and a label that means nothing: AUC stays at one half, which leaking folds would not."""
    values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        item = rng.standard_normal((16, 40)) * 5
        X = (item[:, None] + 0.1 * rng.standard_normal((16, 2, 40))).reshape(32, 40)
        label = np.tile([1.0, -1.0], 16)
        rows = coded.Coded(X - X.mean(axis=0), np.repeat(np.arange(16), 2), label, np.zeros(32, int), 16, np.ones(1))
        splits = list(decoding.decoding_splits(rows, np.arange(16) % 4))
        values.append(decoding.auc(rows.gram, rows, label[None], splits=splits)[0])
    assert abs(np.mean(values) - 0.5) < 0.08


def test_auc_agrees_with_sklearn():
    """One fold, one context: the share of ordered pairs is sklearn's AUC of the same scores, ties half."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (20, 6)).astype(float)
    label = np.where(np.arange(20) % 2, 1.0, -1.0)
    rows = coded.Coded(X, np.arange(20), label, np.zeros(20, int), 20, np.ones(1))
    split = decoding.Split(np.ones(1), np.arange(20) < 12, np.arange(20) >= 12, 1.0)
    w = X[:12][label[:12] > 0].mean(axis=0) - X[:12][label[:12] < 0].mean(axis=0)
    ours = decoding.auc(rows.gram, rows, label[None], splits=[split])[0]
    assert_allclose(ours, roc_auc_score(label[12:], np.round(X[12:] @ w, 9)), rtol=1e-12)


def test_parallelism_is_undefined_without_an_effect():
    """A denominator that is not positive gives a status and a reason, never a number."""
    seen = set()
    for seed in range(8):
        fake = simulate(example2(12), n_features=40, density=0.5, regions=("y",), seed=seed)
        row = factorial(fake, {"a": A}, region="y", statistic="parallelism", inference=FEW, seed=1).iloc[0]
        seen.add(row["status"])
        if row["status"] == "degenerate":
            assert np.isnan(row["value"])
            assert "undefined" in row["note"]
    assert "degenerate" in seen


def example2(n_items):
    """Factors a and b within items."""
    made = {"schema": "neurosae/design/1", "name": "two", "factors": {"a": ["no", "yes"], "b": ["no", "yes"]}}
    made["frames"] = {"f": "{x:a} {y:b}"}
    forms = {f"i{k}": {n: {v: f"{n}{v}{k}" for v in ("no", "yes")} for n in "xy"} for k in range(n_items)}
    return Design.model_validate(made | {"items": forms})


# ------------------------------------------------------------------ foreign software


def test_cvmanova_agrees_with_octave(oracles):
    """D of four contrasts, all sign permutations, shrinkage and a subset of channels, as the authors' code."""
    expected = json.loads(oracles("cvmanova.json").read_text())
    Ys = [np.loadtxt(oracles(f"inputs/cvm_Y{k}.csv"), delimiter=",") for k in range(4)]
    cell = np.repeat(np.arange(4), 5)
    folds = [cvmanova.fold_of(Y, cell, n_cells=4) for Y in Ys]
    signs = 1.0 - 2.0 * ((np.arange(8)[:, None] >> np.arange(4)) & 1)
    for name, written in expected["contrasts"].items():
        C = np.array(written, dtype=float).T
        assert_allclose(cvmanova.cv_manova(folds, C, signs=signs), expected[name]["D_all_sign_permutations"], atol=1e-9)
        assert_allclose(cvmanova.cv_manova(folds, C, shrinkage=0.3)[0], expected[name]["D_lambda_0.3"], atol=1e-9)
        few = [cvmanova.fold_of(Y[:, [0, 2]], cell, n_cells=4) for Y in Ys]
        assert_allclose(cvmanova.cv_manova(few, C)[0], expected[name]["D_channels_1_3"], atol=1e-9)


def test_cvmanova_is_unbiased_and_takes_items_out_of_the_error():
    """Items of any size leave D as it is, and noise alone has mean 0."""
    rng = np.random.default_rng(4)
    cell, item = np.tile([0, 1], 6), np.repeat(np.arange(6), 2)
    values, same = [], []
    for _ in range(150):
        Y = [rng.standard_normal((12, 3)) for _ in range(6)]
        moved = [y + 40 * rng.standard_normal((6, 3))[item] for y in Y]
        plain, shifted = (
            cvmanova.cv_manova([cvmanova.fold_of(y, cell, n_cells=2, block=item) for y in part], np.array([1.0, -1]))[0]
            for part in (Y, moved)
        )
        values.append(plain)
        same.append(shifted - plain)
    assert_allclose(same, 0, atol=1e-8)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(150)


def test_permanova_agrees_with_vegan(oracles):
    """F, R2 and mean distances to the spatial median, Euclidean and Bray-Curtis; the exact swap p."""
    expected = json.loads(oracles("permanova.json").read_text())
    W = np.loadtxt(oracles("inputs/perma_Y.csv"), delimiter=",")
    item, cond = np.repeat(np.eye(12), 2, axis=0), np.tile([0.0, 1.0], 12)
    for metric, name in (("euclidean", "euclidean"), ("braycurtis", "bray")):
        G = permanova.gower(squareform(pdist(W, metric)))
        found = permanova.permanova(G, [item, cond[:, None]])
        assert_allclose([one.F for one in found], expected[name]["F"], atol=1e-8)
        assert_allclose([one.R2 for one in found], expected[name]["R2"], atol=1e-8)
    spread = permanova.dispersions(W @ W.T, cond.astype(int))
    means = [spread[cond == k].mean() for k in (0, 1)]
    assert_allclose(means, expected["betadisper_mean_distance_to_centroid"], atol=5e-5)  # vegan stops earlier
    D = W[1::2] - W[::2]
    flips = 1.0 - 2.0 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
    SS = np.einsum("bi,bi->b", flips @ (D @ D.T), flips)
    assert (SS >= SS[0] - 1e-9).mean() == expected["p_exact_within_item_swap_of_SS"]


def test_permanova_of_a_spot_is_that_of_its_rows():
    """F of the observed labels, and of relabelled ones, equals the sequential F of the rows with those labels."""
    fake = world("random_geometry", n_items=12, seed=2)
    data = item_data(fake, design_of(fake), A, region="probe")
    ((how, place),) = relabellings([data], 50, seed=1, split="test")
    columns = np.flatnonzero(data.informative >= 6)
    ask = FactorialBlock.model_validate({"test": "factorial", "region": "probe", "effects": ["a"]})
    spot = Spot(("s", "probe", 0), data, columns, how, place, ask, 1, (fake, design_of(fake), A))
    null = distances.distances_explained(spot).null
    rows = coded.cell_rows(data, columns)
    Z = coded.standardized(rows.X)
    cells = np.array(data.cells)[rows.cell]
    a, b = (np.where(cells[:, k] == "yes", 1.0, -1.0) for k in (0, 1))
    unit = (rows.unit[:, None] == np.arange(12)).astype(float)
    for number in (0, 7, 23):
        moved = a * signs(how, number, 1)[0][place][rows.unit]
        terms = [unit, b[:, None], (moved * b)[:, None], moved[:, None]]
        assert_allclose(null[number], permanova.permanova(Z @ Z.T, terms)[-1].F, rtol=1e-9)


def grouped(n_items, n_first, *, two=False, **changes):
    """a (and c) within items, g between them: `n_first` items in g1, the others in g2."""
    factors = {"a": ["a1", "a2"], "c": ["c1", "c2"], "g": {"levels": ["g1", "g2"], "varies": "between"}}
    if not two:
        del factors["c"]
    items = {
        f"i{k}": {n: {f"{f}{v}": f"{f}{v}{k}" for v in "12"} for n, f in (("x", "a"), ("y", "c")) if f in factors}
        | {"g": "g1" if k < n_first else "g2"}
        for k in range(n_items)
    }
    frame = {"f": "{x:a} {y:c}" if two else "{x:a} it"}
    design = Design.model_validate(
        {"schema": "neurosae/design/1", "name": "m", "factors": factors, "frames": frame, "items": items}
    )
    return simulate(design, **{"n_features": 40, "density": 0.5, "regions": ("x",), "seed": 0, **changes})


WITHIN, GROUPS = {"a": {"a1": -1, "a2": 1}}, {"g": {"g1": -1, "g2": 1}}


@pytest.mark.parametrize("two", [False, True])
def test_permanova_within_items_of_groups_is_that_of_its_rows(two):
    """F equals the sequential F of the effect after units and all other cell means of either group, under any swap.

    The sequential F is the one that agrees with vegan; swaps inside items are its permutations with strata = item.
    """
    fake = grouped(13, 8, two=two, effects={"g": 10})
    design = design_of(fake)
    data = item_data(fake, design, WITHIN, region="x")
    ((how, place),) = relabellings([data], 50, seed=1, split="test")
    columns = np.flatnonzero(data.informative >= 6)
    ask = FactorialBlock.model_validate(
        {"test": "factorial", "region": "x", "effects": ["a"], "statistic": "permanova"}
    )
    spot = Spot(("s", "x", 0), data, columns, how, place, ask, 1, (fake, design, WITHIN))
    found = distances.distances_explained(spot)
    rows = coded.cell_rows(data, columns)
    Z = coded.standardized(rows.X)
    unit = (rows.unit[:, None] == np.arange(13)).astype(float)
    cells = np.array(data.cells)
    partner = {c: tuple({"a1": "a2", "a2": "a1"}.get(level, level) for level in c) for c in data.cells}
    swap = np.array([data.cells.index(partner[c]) for c in data.cells])
    w = data.weights
    others = np.linalg.svd(w[None])[2][1:].T  # cell means without the contrast
    for number in (0, 3, 17, 42):
        s = signs(how, number, 1)[0][place][rows.unit]
        cell = np.where(s < 0, swap[rows.cell], rows.cell)
        terms = [unit, others[cell], w[cell][:, None]]
        expected = permanova.permanova(Z @ Z.T, terms)[-1]
        assert_allclose(found.null[number], expected.F, rtol=1e-9)
        if number == 0:
            assert_allclose(found.effsize, expected.R2, rtol=1e-9)
            assert found.dof == expected.df_residual == (13 - 2) * (len(cells) // 2 - 1)


@pytest.mark.parametrize(("statistic", "n_sets"), [("permanova", 80), ("decoding", 40)])
def test_effects_within_items_of_groups_recover_and_control(statistic, n_sets):
    """A planted effect within items is found beside groups; without it the error stays in band, however they differ."""
    row = factorial(grouped(16, 10, effects={"a": 10, "g": 10}, shift=3.0), {"a": WITHIN}, region="x",
                    statistic=statistic, inference=FEW, seed=1).iloc[0]  # fmt: skip
    assert row["p_corr"] <= 0.02
    assert row["p_method"] == "flips"
    p = []
    for seed in range(n_sets):
        fake = grouped(12, 8, effects={"g": 12}, shift=4.0, seed=seed)
        found = factorial(fake, {"a": WITHIN, "g": GROUPS}, region="x", statistic=statistic, seed=seed,
                          inference={"n_permutations": 99}, settings={"folds": 3}).set_index("effect")  # fmt: skip
        p.append(found["p_unc"].to_dict())
    assert sum(one["a"] <= 0.05 for one in p) <= stats.binom.ppf(0.999, n_sets, 0.05)
    if statistic == "permanova":  # held-out items of a group of four say little
        assert sum(one["g"] <= 0.05 for one in p) >= 0.6 * n_sets


def test_decoding_refuses_folds_that_some_labels_leave_without_a_level():
    """Six folds of two items: where labels move over items, no fold may have both levels; the row says so."""
    fake = grouped(12, 8, effects={"a": 10}, shift=3.0)
    found = factorial(fake, {"a": WITHIN, "g": GROUPS}, region="x", statistic="decoding", inference=FEW, seed=1)
    row = found.set_index("effect").loc["g"]
    assert row["status"] == "untestable"
    assert "no group of held-out items has both levels" in row["note"]
    assert found.set_index("effect").loc["a", "p_corr"] <= 0.05


def test_permanova_refuses_units_that_stand_in_several_groups():
    """Items of both groups that share a form are one unit, which has no group to stay in."""
    fake = grouped(14, 7)
    made = design_of(fake).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    made["unit"] = "shared_forms"
    made["items"]["i9"]["x"] = dict(made["items"]["i0"]["x"])
    fake = simulate(Design.model_validate(made), n_features=40, density=0.5, regions=("x",), seed=0)
    with pytest.raises(DataError, match="some units have items in several groups"):
        factorial(fake, {"a": WITHIN}, region="x", statistic="permanova", inference=FEW, seed=1)


@pytest.mark.parametrize("between", [False, True])
def test_manova_agrees_with_statsmodels(between):
    """Pillai's trace that is relabelled is the one of statsmodels, within items and between them."""
    rng = np.random.default_rng(5)
    Y = rng.standard_normal((30, 3)) + np.array([0.5, 0, 0])
    if between:
        codes, w = np.arange(30) % 3, np.array([1.0, -1.0, 0.0])
        X, L = (codes[:, None] == np.arange(3)).astype(float), w[None]
        ours = manova.pillai_of_groups(Y, codes[None], w)[0]
    else:
        X, L = np.ones((30, 1)), np.ones((1, 1))
        ours = manova.pillai_of_flips(Y, np.ones((1, 30)))[0]
    assert_allclose(ours, manova.parametric_manova(Y, X, L).pillai, rtol=1e-10)


def test_demixed_shares_add_up():
    """Two factors and their interaction share all of the variance between cells, and the planted ones get theirs."""
    found = rows_of(world("additive", n_items=24, seed=0), {"a": A, "b": B, "ab": A | B}, "demixed")
    assert_allclose(found["value"].sum(), 1.0, rtol=1e-9)
    assert abs(found.loc["ab", "value"]) < 0.06
    assert found["p_corr"].isna().all()


def test_cell_products_leave_out_products_of_a_unit_with_itself():
    """The double loop over rows of different units."""
    rng = np.random.default_rng(1)
    X, unit, cell = rng.standard_normal((9, 4)), np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    M = distances.cell_products(X, unit, cell)
    pairs = [(r, s) for r in range(9) for s in range(9) if unit[r] != unit[s] and cell[r] == 0 and cell[s] == 2]
    assert_allclose(M[0, 2], np.mean([X[r] @ X[s] for r, s in pairs]), rtol=1e-12)


# ------------------------------------------------------------------ error rates, invariance


@pytest.mark.parametrize("statistic", ["contrast_length", "decoding", "permanova", "manova", "cvmanova"])
def test_statistics_control_their_error(statistic):
    """No effect of b in `item_shuffled` (a is there): rejections of b stay inside the binomial 99.9 % band."""
    settings = {"features": {"named": {"simulated": range(12)}}, "n_controls": 19} if statistic == "cvmanova" else {}
    p = [
        factorial(
            world("item_shuffled", n_items=16, seed=seed),
            {"b": B},
            region="probe",
            statistic=statistic,
            inference={"n_permutations": 100},
            settings=settings,
            seed=seed,
        )["p_unc"].iloc[0]
        for seed in range(25)
    ]
    assert np.mean(np.array(p) <= 0.05) <= stats.binom.ppf(0.999, 25, 0.05) / 25


def test_correction_is_the_maximum_over_places_then_holm():
    """Two effects: the smaller p doubles; the same place tested twice is not punished by its copy."""
    fake = world("C0", n_items=16, seed=0)
    both = rows_of(fake, {"a": A, "ab": A | B}, "contrast_length")
    alone = rows_of(fake, {"a": A}, "contrast_length")
    assert_allclose(both.loc["a", "p_corr"], min(1, 2 * alone.loc["a", "p_corr"]))
    twice = factorial({"x": fake, "y": fake}, {"a": A}, region="probe", inference=FEW, seed=1)
    assert_allclose(twice["p_corr"], alone.loc["a", "p_corr"])


@pytest.mark.parametrize("statistic", ["contrast_length", "decoding", "ccgp", "permanova"])
def test_invariant_to_feature_order_and_direction(statistic):
    """Turning the contrast round or shuffling features changes no value and no p."""
    fake = world("additive", n_items=14, seed=1)
    order = np.random.default_rng(0).permutation(fake.n_vars)
    one, two = (
        rows_of(fake, {"a": A}, statistic),
        rows_of(fake[:, order], {"a": {"a": {"yes": -1, "no": 1}}}, statistic),
    )
    assert_allclose(one["value"], two["value"], rtol=1e-9)
    assert_allclose(one["p_unc"], two["p_unc"])


def test_matched_sets_match_and_leave_out_the_chosen():
    """Controls are as dense and as strong as the chosen set, and never hold one of it."""
    Y = world("paired_sparse", n_items=24, seed=0, options={"density": (0.05, 0.6)}).X.astype(float)
    active = np.flatnonzero(np.diff(sp.csc_matrix(Y).indptr) > 2)
    dense = active[np.argsort(-np.diff(sp.csc_matrix(Y).indptr)[active])][:15]
    sets = matched_sets(Y, active, dense, n=50, seed=1)

    def density(s):
        return np.log(np.diff(sp.csc_matrix(Y[:, s]).indptr).mean())

    assert not any(set(s.tolist()) & set(dense.tolist()) for s in sets)
    assert len({tuple(s) for s in sets}) > 40
    usual = density(active)
    assert abs(np.mean([density(s) for s in sets]) - density(dense)) < 0.5 * abs(usual - density(dense))


def test_controls_tell_a_planted_set_from_any_set():
    """Features that carry a: no matched random set reaches their D_c; features that carry nothing: many do."""
    fake = world("C0", n_items=16, seed=0)

    def named(which):
        return {"features": {"named": {"simulated": which}}, "n_controls": 19}

    assert rows_of(fake, {"a": A}, "contrast_length", **named(range(20))).loc["a", "x_p_controls"] == 0.05
    assert rows_of(fake, {"a": A}, "contrast_length", **named(range(100, 120))).loc["a", "x_p_controls"] > 0.05


@pytest.mark.parametrize("statistic", ["contrast_length", "decoding", "manova", "parallelism"])
def test_three_factors_within_and_between_items(statistic):
    """Two factors within items, one of three levels, and one between: planted effects of a and g are found."""
    factors = {"a": ["a1", "a2"], "c": ["c1", "c2", "c3"], "g": {"levels": ["g1", "g2"], "varies": "between"}}
    forms = {n: ["a1", "a2"] if n == "x" else ["c1", "c2", "c3"] for n in "xy"}
    items = {
        f"i{k}": {n: {v: f"{v}{k}" for v in forms[n]} for n in "xy"} | {"g": "g1" if k < 11 else "g2"}
        for k in range(24)
    }
    design = {"schema": "neurosae/design/1", "name": "m", "factors": factors, "frames": {"f": "{x:a} {y:c}"}}
    fake = simulate(
        Design.model_validate(design | {"items": items}), n_features=40, effects={"a": 8, "g": 8}, density=0.5,
        shift=3.0, regions=("y",), seed=0,
    )  # fmt: skip
    effects = {"a": {"a": {"a2": 1, "a1": -1}}, "g": {"g": {"g2": 1, "g1": -1}}}
    settings = {"across": "c"} if statistic == "parallelism" else {}
    found = factorial(fake, effects, region="y", statistic=statistic, inference=FEW, settings=settings, seed=1)
    assert (found["p_corr"] <= 0.05).all()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("asked", "settings", "said"),
    [
        (({"ab": A | B}, "decoding"), {}, "no difference of two levels of one factor"),
        (({"a": A}, "ccgp"), {"across": "a"}, "no other factor"),
        (({"a": A}, "cvmanova"), {"folds": 8}, "degrees of freedom of the error; cvmanova needs more"),
        (({"a": A}, "decoding"), {"folds": 12}, "do not make 12 folds of two"),
    ],
)
def test_factorial_refuses_what_a_statistic_cannot_take(asked, settings, said):
    """The reason stands in the sentence, with what would do."""
    with pytest.raises((DataError, SpecError), match=said):
        rows_of(world("C0", n_items=16, seed=0), *asked, **settings)


def test_factorial_refuses_too_few_items():
    """Four items flip in eight ways."""
    with pytest.raises(DataError, match="Use at least 6 items"):
        rows_of(world("C0", n_items=4, seed=0), {"a": A}, "contrast_length")
