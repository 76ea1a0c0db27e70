"""RDMs from one Gram matrix: against rsatoolbox, live and frozen, and against what noise alone must give."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.extraction.responses import ItemCells
from neurosae.stats.rdm import (
    DISTANCES,
    Patterns,
    distances,
    half_rdms,
    item_halves,
    measured,
    noise_ceiling,
    patterns,
    reliability,
)
from neurosae.stats.rdm_compare import COMPARATORS, compare_rdms, partial_agreement, partial_fit, partition
from neurosae.stats.rdm_noise import gram, poisson_products, shrunk_gram


@pytest.fixture(scope="module")
def rsatoolbox():
    """Its import and its averaging warn (casts of NaN); that is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox

        yield rsatoolbox


def found(U: np.ndarray, item: np.ndarray | None = None, condition: np.ndarray | None = None) -> Patterns:
    """Patterns from an array (items, conditions, features), or from rows with their item and condition."""
    if U.ndim == 3:
        item, condition = np.divmod(np.arange(U.shape[0] * U.shape[1]), U.shape[1])
        U = U.reshape(-1, U.shape[2])
    items = tuple(f"i{i}" for i in range(item.max() + 1))
    conditions = tuple((f"c{c}",) for c in range(condition.max() + 1))
    return Patterns(items, conditions, sp.csr_matrix(U), item, condition, pd.DataFrame(index=range(len(U))), 0, 0, 0)


def sparse_normal(shape: tuple[int, ...], seed: int, density: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * (rng.random(shape) < density)


def cells_of(U: np.ndarray) -> ItemCells:
    p = found(U)
    nothing = pd.DataFrame({"item": [], "frame": [], "reason": []})
    return ItemCells(p.items, p.conditions, p.X, p.item, p.condition, p.numbers, nothing, 1)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_distances_agree_with_rsatoolbox(distance, rsatoolbox):
    """Every distance is rsatoolbox's, computed live with items as folds."""
    U = sparse_normal((6, 5, 40), seed=1)
    p = found(U)
    if distance == "poisson":
        p = found(np.abs(U))
    data = rsatoolbox.data.Dataset(p.X.toarray(), obs_descriptors={"c": p.condition, "i": p.item})
    folds = {"cv_descriptor": "i"} if distance == "crossnobis" else {}
    theirs = rsatoolbox.rdm.calc_rdm(data, method=distance, descriptor="c", **folds).dissimilarities[0]
    assert_allclose(distances(gram(p.X), p, distance), theirs, atol=1e-12)


@pytest.mark.parametrize("noise", ["shrinkage_diag", "shrinkage_eye"])
@pytest.mark.parametrize("distance", ["crossnobis", "mahalanobis"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_noise_agrees_with_rsatoolbox(distance, noise, rsatoolbox):
    """Whitening through rows x rows is rsatoolbox's through features x features; residuals without condition means."""
    U = sparse_normal((30, 40), seed=11)
    condition, item = np.arange(30) % 5, np.arange(30) // 5
    p = found(U, item, condition)
    nested = found(U, np.arange(30), condition)  # its residuals are around condition means only
    _, G = measured(nested, distance, noise)
    residuals = U - np.stack([U[condition == c].mean(axis=0) for c in range(5)])[condition]
    precision = rsatoolbox.data.noise.prec_from_residuals(residuals, dof=25, method=noise)
    data = rsatoolbox.data.Dataset(U, obs_descriptors={"c": condition, "i": item})
    folds = {"cv_descriptor": "i"} if distance == "crossnobis" else {}
    theirs = rsatoolbox.rdm.calc_rdm(data, method=distance, descriptor="c", noise=precision, **folds)
    assert_allclose(distances(G, p, distance), theirs.dissimilarities[0], rtol=1e-10)
    ours = shrunk_gram(sp.csr_matrix(U), sp.csr_matrix(residuals), dof=25, method=noise)
    assert_allclose(G, ours, rtol=1e-10, atol=1e-12)


def test_noise_of_crossed_items_leaves_item_means_out():
    """Adding a constant to all rows of an item changes neither the noise metric nor the distances."""
    U = sparse_normal((8, 4, 30), seed=12, density=1)
    moved = U + 5 * sparse_normal((8, 1, 30), seed=13, density=1)
    results = []
    for V in (U, moved):
        p, G = measured(found(V), "crossnobis", "shrinkage_diag")
        results.append(distances(G, p))
    assert_allclose(results[1], results[0], rtol=1e-9)


def test_noise_drops_features_without_residuals_and_refuses_what_has_none():
    """A feature that is constant inside conditions has no noise; one pattern per condition leaves no residuals."""
    U = sparse_normal((8, 4, 30), seed=14, density=1)
    U[:, :, 0] = np.arange(4.0)
    p, _ = measured(found(U), "crossnobis", "shrinkage_diag")
    assert p.n_features == 29
    single = found(U[0], np.zeros(4, dtype=int), np.arange(4))
    with pytest.raises(DataError, match="leave no residuals"):
        measured(single, "mahalanobis", "shrinkage_diag")
    with pytest.raises(DataError, match="mahalanobis without noise is euclidean"):
        measured(found(U), "mahalanobis")


def test_poisson_refuses_negative_rates():
    """Signed responses are no rates."""
    with pytest.raises(DataError, match="negative"):
        poisson_products(sp.csr_matrix([[1.0, -1.0], [2.0, 0.0]]))


@pytest.mark.parametrize("compare", COMPARATORS)
def test_comparators_and_ceilings_agree_with_rsatoolbox(compare, rsatoolbox):
    """Every comparator and both noise ceilings are rsatoolbox's, computed live."""
    rdms = sparse_normal((4, 21), seed=2, density=1)
    theirs = rsatoolbox.rdm.compare(rdms[:1], rdms[1:], method=compare)[0]
    assert_allclose([compare_rdms(rdms[0], m, compare) for m in rdms[1:]], theirs, atol=1e-10)
    objects = rsatoolbox.rdm.RDMs(rdms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "averaged ranks"
        bounds = rsatoolbox.inference.boot_noise_ceiling(objects, method=compare)
    assert_allclose(noise_ceiling(rdms, compare), bounds, atol=1e-10)


def test_oracle_agrees(oracles):
    """Distances, comparators and ceilings of the frozen oracle."""
    known = json.loads(oracles("rsatoolbox.json").read_text())
    U = np.loadtxt(oracles("inputs/rsa_U.csv"), delimiter=",")
    models = np.loadtxt(oracles("inputs/rsa_models.csv"), delimiter=",")
    p = found(U, np.tile(np.arange(6), 5), np.repeat(np.arange(5), 6))
    crossnobis = distances(gram(p.X), p)
    assert_allclose(crossnobis, known["crossnobis_leave_one_item_out"], atol=1e-10)
    assert_allclose(distances(gram(p.X), p, "euclidean"), known["euclidean_squared_mean"], atol=1e-10)
    assert_allclose(distances(gram(p.X), p, "correlation"), known["correlation"], atol=1e-10)
    nested = found(U, np.arange(30), np.repeat(np.arange(5), 6))
    _, white = measured(nested, "crossnobis", "shrinkage_diag")
    for name in ("crossnobis", "mahalanobis"):
        assert_allclose(distances(white, p, name), known[f"{name}_shrinkage_diag"], atol=1e-8)
    for name in COMPARATORS:
        fit = [compare_rdms(crossnobis, m, name) for m in models]
        assert_allclose(fit, known["compare_crossnobis_with_models"][name], atol=1e-8)
    for name, bounds in known["noise_ceiling_lower_upper"].items():
        assert_allclose(noise_ceiling(np.array(known["three_rdms"]), name), bounds, atol=1e-8)


@pytest.mark.parametrize("nested", [False, True])
def test_crossnobis_of_noise_is_zero_on_average(nested):
    """Noise alone: 0 within 4 s.e., where the plug-in distance gives 2 sigma^2 / n; items crossed or nested."""
    rng, mean = np.random.default_rng(3), []
    plain = []
    for _ in range(200):
        p = found(rng.standard_normal((10, 3, 50)))
        if nested:
            p = found(rng.standard_normal((30, 50)), np.arange(30), np.arange(30) % 3)
        mean.append(distances(gram(p.X), p).mean())
        plain.append(distances(gram(p.X), p, "euclidean").mean())
    error = np.std(mean) / np.sqrt(len(mean))
    assert abs(np.mean(mean)) < 4 * error < 0.02
    assert abs(np.mean(plain) - 2 / 10) < 0.02


def test_crossnobis_of_nested_items_recovers_distances():
    """Items nested in conditions: unbiased for the true squared distances between conditions."""
    rng = np.random.default_rng(4)
    means = rng.standard_normal((4, 30))
    true = ((means[:, None] - means[None]) ** 2).mean(axis=2)[np.triu_indices(4, 1)]
    runs = []
    for _ in range(150):
        condition = np.repeat(np.arange(4), [4, 6, 8, 10])
        p = found(means[condition] + rng.standard_normal((28, 30)), np.arange(28), condition)
        runs.append(distances(gram(p.X), p))
    error = np.std(runs, axis=0) / np.sqrt(len(runs))
    assert (np.abs(np.mean(runs, axis=0) - true) < 4 * error).all()


def test_distances_invariant_to_feature_order_and_scale():
    """The order of features changes rounding only; a common scale multiplies squared distances by its square."""
    U = np.abs(sparse_normal((8, 4, 60), seed=5))
    order = np.random.default_rng(0).permutation(60)
    for name in DISTANCES:
        first = distances(gram(found(U).X), found(U), name)
        moved = distances(gram(found(3 * U[:, :, order]).X), found(3 * U[:, :, order]), name)
        if name != "poisson":  # its prior is a rate, in the units of the responses
            assert_allclose(moved, first if name == "correlation" else 9 * first, rtol=1e-10, atol=1e-12)


def test_patterns_keep_informative_features_and_complete_items():
    """Constant, rare and dead features are counted; an item without a condition is left out and counted."""
    U = np.abs(sparse_normal((8, 3, 6), seed=6, density=1)) + 0.1
    U[:, :, 0], U[:, :, 1], U[2:, :, 2] = 0, 5.0, 0
    p = patterns(cells_of(U), crossed=True)
    assert (p.X.shape[1], p.n_dead, p.n_untestable, p.n_dropped) == (3, 1, 2, 0)
    cells = cells_of(U)
    rows = np.arange(1, 24)
    short = ItemCells(cells.items, cells.cells, cells.X[rows], cells.row_item[rows], cells.row_cell[rows],
                      cells.numbers.iloc[rows], cells.dropped, 1)  # fmt: skip
    assert patterns(short, crossed=True).n_dropped == 1


def test_patterns_ignore_differences_that_are_rounding():
    """One value, computed in two float32 batches, is no information."""
    U = np.ones((8, 3, 2)) + 1e-8 * sparse_normal((8, 3, 2), seed=7, density=1)
    assert patterns(cells_of(U), crossed=True).n_untestable == 2


def test_patterns_refuse_too_little():
    """Two conditions make one distance; one item cannot be cross-validated: both name the remedy."""
    with pytest.raises(DataError, match=r"at least 3 conditions, not 2 .* use `test: contrast`"):
        patterns(cells_of(np.ones((6, 2, 3))), crossed=True)
    with pytest.raises(DataError, match=r"1 complete items; .* at least 2 per condition \(6 for"):
        patterns(cells_of(np.ones((1, 3, 3))), crossed=True)


def test_compare_is_undefined_without_variation():
    """A model RDM of zeros, or a constant one under a correlation, gives NaN and never a number."""
    rdm = np.array([1.0, 2, 3, 4, 5, 6])
    assert np.isnan([compare_rdms(rdm, np.zeros(6), name) for name in COMPARATORS]).all()
    with pytest.raises(DataError, match="tau-a has no joint or partial fit"):
        partial_fit(rdm, rdm[None], "tau-a")
    assert np.isnan(compare_rdms(rdm, np.ones(6), "corr"))


def test_partial_fit_recovers_weights_and_flags_aliased_models():
    """Weights of a mixture are exact; the same model twice has no weights of its own and nothing unique."""
    models = np.array([[0.0, 1, 1, 1, 1, 0], [1.0, 0, 1, 1, 0, 1], [2.0, 0, 2, 2, 0, 2]])
    weights, unique, share = partial_fit(3 * models[0] + models[1], models[:2], "cosine_cov")
    assert_allclose(weights, [3, 1], atol=1e-9)
    assert_allclose(share, 1)
    assert_allclose(unique, [0.9, 0.1], atol=1e-9)
    weights, unique, _ = partial_fit(models[0] + models[1], models, "cosine_cov")
    assert np.isnan(weights).all()
    assert_allclose(unique[1:], 0, atol=1e-9)


def test_reliability_recovers_signal_and_noise():
    """Strong geometry: near 1; noise alone: far from it, and the ceiling never exceeds 1."""
    signal = sparse_normal((1, 6, 200), seed=8, density=1) + sparse_normal((24, 6, 200), seed=9, density=1)
    noise = sparse_normal((24, 6, 200), seed=10, density=1)
    values = []
    for U in (signal, noise):
        p = found(U)
        halves = item_halves(p, 20, np.random.default_rng(0))
        values.append(reliability(half_rdms(gram(p.X), p, halves, distance="crossnobis"), "corr_cov"))
    assert values[0][0] > 0.8
    assert 0.9 < values[0][1] <= 1
    assert values[1][0] < 0.3


def test_item_halves_are_halves_within_each_condition():
    """Nested items are halved inside their condition, so each half holds every condition."""
    p = found(np.ones((12, 2)), np.arange(12), np.arange(12) % 3)
    halves = item_halves(p, 5, np.random.default_rng(1))
    for half in halves:
        assert [half[p.condition == c].sum() for c in range(3)] == [2, 2, 2]
    assert half_rdms(gram(p.X), p, halves, distance="crossnobis").shape == (5, 2, 3)
    few = found(np.ones((6, 2)), np.arange(6), np.arange(6) % 3)
    assert half_rdms(gram(few.X), few, halves[:, :6], distance="crossnobis") is None


@pytest.mark.parametrize("compare", ["corr", "spearman"])
def test_partial_agreement_agrees_with_the_partial_correlation(compare):
    """Of two RDMs given two others: the textbook's, from the inverse correlation matrix; of ranks for spearman."""
    rdms = sparse_normal((4, 45), seed=15, density=1)
    rdms[:2] += rdms[2] + rdms[3]
    ranked = np.argsort(np.argsort(rdms, axis=1), axis=1) if compare == "spearman" else rdms
    P = np.linalg.inv(np.corrcoef(ranked))
    ours = partial_agreement(rdms[0], rdms[1], rdms[2:], compare=compare)
    assert_allclose(ours, -P[0, 1] / np.sqrt(P[0, 0] * P[1, 1]), atol=1e-12)
    assert np.isnan(partial_agreement(rdms[0], 2 * rdms[2] + rdms[3], rdms[2:], compare="corr"))


def test_partition_recovers_unique_and_shared_parts():
    """Parts add up to what all models explain; a model twice is all shared; unique parts are those of the joint fit."""
    rng = np.random.default_rng(16)
    a, b = rng.random((2, 45))
    table = partition(a + b + rng.random(45), np.array([a, a, b]), "corr", names=["a", "twin", "b"]).set_index("models")
    assert_allclose(table.part.sum(), table.share["a & twin & b"], atol=1e-12)
    assert_allclose(table.part[["a", "twin"]], 0, atol=1e-9)
    assert table.part["a & twin"] > 0.2
    _, unique, share = partial_fit(a + b, np.array([a, b]), "corr")
    parts = partition(a + b, np.array([a, b]), "corr", names=["a", "b"])
    assert_allclose(parts.part[:2], unique, atol=1e-12)
    assert_allclose(parts.share.iloc[-1], share)
    with pytest.raises(DataError, match="at most 5"):
        partition(a, np.array([a] * 6), "corr", names=list("abcdef"))


def test_gram_agrees_with_dense_products():
    """Sparse columns, dense columns, and entries that stand twice in the matrix."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((40, 300)) * (rng.random((40, 300)) < np.where(np.arange(300) < 30, 0.9, 0.05))
    assert_allclose(gram(sp.csr_matrix(X)), X @ X.T, atol=1e-12)
    twice = sp.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    assert_allclose(gram(twice), [[9.0, 0.0], [0.0, 16.0]])
    assert twice.nnz == 3  # what was given is left as it was
