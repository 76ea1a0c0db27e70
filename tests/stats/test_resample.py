"""Bootstrap and permutation of conditions: equal to rsatoolbox and to plain loops on the same draws."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError, NeurosaeError
from neurosae.stats.rdm_compare import compare_rdms, condensed_to_square
from neurosae.stats.relabel_conditions import label_null, orders, permute_conditions
from neurosae.stats.resample import bootstrap_rdms

C, K, M, N = 12, 4, 3, 8


@pytest.fixture
def rdms():
    """Data RDMs that resemble model 2, and models."""
    rng = np.random.default_rng(0)
    pairs = C * (C - 1) // 2
    base = rng.random(pairs)
    models = base * np.linspace(0, 1, M)[:, None] + 0.5 * rng.random((M, pairs))
    return np.abs(base + rng.normal(0, 0.3, (K, pairs))), models


@pytest.mark.parametrize("compare", ["cosine", "corr", "cosine_cov", "corr_cov", "rho-a", "spearman"])
def test_agrees_with_rsatoolbox_on_the_same_draws(rdms, compare, monkeypatch):
    """Evaluations and both noise ceilings, draw by draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox.inference.evaluate as peer
        from rsatoolbox.model import ModelFixed
        from rsatoolbox.rdm import RDMs
    monkeypatch.setattr(peer.tqdm, "trange", lambda n, *a, **k: range(n))
    data, models = rdms
    np.random.seed(3)  # noqa: NPY002  (the peer draws from the global generator: RDMs first, then conditions)
    W, R = np.zeros((N, C)), np.zeros((N, K))
    for i in range(N):
        R[i] = np.bincount(np.random.randint(0, K, size=K), minlength=K)  # noqa: NPY002
        W[i] = np.bincount(np.random.randint(0, C, size=C), minlength=C)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer.eval_bootstrap(
            [ModelFixed(str(j), v) for j, v in enumerate(models)], RDMs(data), method=compare, N=N
        )
    ours = bootstrap_rdms(data, models, conditions=W, rdms=R, compare=compare)
    np.testing.assert_allclose(ours.fits, theirs.evaluations, atol=1e-12)
    several = (R > 0).sum(axis=1) > 1
    np.testing.assert_allclose(ours.lower[several], theirs.noise_ceiling[0][several], atol=1e-12)
    np.testing.assert_allclose(ours.upper[several], theirs.noise_ceiling[1][several], atol=1e-12)


def test_agrees_with_plain_similarity_when_everything_is_drawn_once(rdms):
    """Multiplicities of one are the data themselves."""
    data, models = rdms
    once = bootstrap_rdms(data, models, conditions=np.ones((1, C)), rdms=np.ones((1, K)), compare="corr")
    expected = [np.mean([np.corrcoef(m, d)[0, 1] for d in data]) for m in models]
    np.testing.assert_allclose(once.fits[0], expected, atol=1e-12)


def test_invariant_float32_keeps_five_digits(rdms):
    """The fast version is the same statistic."""
    data, models = rdms
    rng = np.random.default_rng(1)
    W = np.stack([np.bincount(rng.integers(0, C, C), minlength=C) for _ in range(50)])
    ask = {"conditions": W, "rdms": np.ones((50, K))}
    slow, fast = bootstrap_rdms(data, models, **ask), bootstrap_rdms(data, models, **ask, dtype=np.float32)
    np.testing.assert_allclose(fast.fits, slow.fits, atol=1e-5)


def test_invariant_a_constant_model_has_no_fit(rdms):
    """It is nan, not a quotient of rounding errors, and the other models keep theirs."""
    models = np.vstack([np.full(C * (C - 1) // 2, 0.1), rdms[1]])
    ask = {"conditions": np.ones((1, C)), "rdms": np.ones((1, K)), "compare": "corr"}
    fits = bootstrap_rdms(rdms[0], models, **ask).fits[0]
    assert np.isnan(fits[0])
    np.testing.assert_allclose(fits[1:], bootstrap_rdms(*rdms, **ask).fits[0], atol=1e-12)


def test_refuses_draws_from_other_conditions(rdms):
    """Twelve conditions cannot be drawn as nine."""
    with pytest.raises(DataError, match="12 conditions, but 9"):
        bootstrap_rdms(*rdms, conditions=np.ones((1, 9)), rdms=np.ones((1, K)))


@pytest.mark.parametrize("blocks", [None, np.repeat([0, 1], 6)])
@pytest.mark.parametrize("compare", ["corr", "spearman"])
def test_agrees_with_a_loop_over_permutations(rdms, blocks, compare):
    """Every maximum equals the largest of numpy's correlations with the permuted model."""
    data, models = rdms
    r, null = permute_conditions(data, models[2], n_permutations=300, blocks=blocks, compare=compare, seed=5)
    rank = stats.rankdata if compare == "spearman" else (lambda v: v)
    square, at = condensed_to_square(rank(models[2])), np.triu_indices(C, 1)
    how = orders(C, 0, 300, blocks=np.zeros(C, int) if blocks is None else blocks, seed=5)
    loop = [[np.corrcoef(square[np.ix_(p, p)][at], rank(d))[0, 1] for d in data] for p in how]
    np.testing.assert_allclose(null, np.abs(loop).max(axis=1), atol=2e-6)
    np.testing.assert_allclose(r, loop[0], atol=1e-12)


@pytest.mark.parametrize("compare", ["cosine", "cosine_cov", "corr_cov", "rho-a", "spearman"])
def test_label_null_agrees_with_a_loop_over_permutations(rdms, compare):
    """Signed agreement of every map with the permuted model, as compare_rdms has it (rho-a up to its own lengths)."""
    data, models = rdms
    blocks = np.repeat([0, 1], 6)

    def drawn(first, count):
        return orders(C, first, count, blocks=blocks, seed=5)

    null = label_null(data, models[2], drawn, n=300, compare=compare)
    square, at = condensed_to_square(models[2]), np.triu_indices(C, 1)
    exact = "spearman" if compare == "rho-a" else compare
    for b in (0, 1, 299):
        p = drawn(b, 1)[0]
        loop = [compare_rdms(square[np.ix_(p, p)][at], d, exact) for d in data]
        np.testing.assert_allclose(null[b], loop, atol=2e-6)


def test_invariant_permutations_stay_inside_blocks_and_do_not_depend_on_tiles():
    """Blocks interleave; permutation 300 is the same whether asked for alone or not."""
    blocks = np.tile([0, 1, 2], 5)
    how = orders(15, 0, 400, blocks=blocks, seed=2)
    assert (blocks[how] == blocks).all()
    assert (np.sort(how, axis=1) == np.arange(15)).all()
    np.testing.assert_array_equal(how[300:310], orders(15, 300, 10, blocks=blocks, seed=2))
    assert len({tuple(p) for p in how}) > 350


def test_controls_the_maximum_over_maps():
    """With labels that say nothing, 5 % of the data sets reject: 99.9 % binomial band for 200."""
    rng = np.random.default_rng(7)
    rejected = 0
    for seed in range(200):
        r, null = permute_conditions(rng.random((5, 28)), rng.random(28), n_permutations=100, seed=seed)
        rejected += (null >= np.abs(r).max() - 1e-6).mean() <= 0.05
    assert rejected / 200 <= 0.105


def test_refuses_a_model_without_variation(rdms):
    """Equal distances correlate with nothing."""
    with pytest.raises(NeurosaeError, match="no correlation"):
        permute_conditions(rdms[0], np.ones(C * (C - 1) // 2), seed=0)


@pytest.mark.parametrize("w", [(3, 2, 1, 1, 1, 0, 0, 1, 0, 1), (6, 1, 1, 1, 1, 0, 0, 0, 0, 0)])
@pytest.mark.parametrize("compare", ["cosine_cov", "corr_cov", "rho-a"])
def test_ties_and_repeated_conditions_agree_with_a_copied_rdm(compare, w):
    """Distances with many ties, conditions drawn up to three times: as if the drawn RDM were written out in full."""
    rng = np.random.default_rng(3)
    data, models = rng.integers(0, 4, (2, 45)).astype(float) + 1, rng.integers(0, 3, (1, 45)).astype(float) + 1
    w = np.array(w)
    fit = bootstrap_rdms(data, models, conditions=w[None], rdms=np.ones((1, 2)), compare=compare).fits[0, 0]
    copies = np.repeat(np.arange(10), w)
    i, j = np.triu_indices(len(copies), 1)
    apart = copies[i] != copies[j]
    written = [condensed_to_square(v)[copies[i], copies[j]] for v in (*data, *models)]
    if compare == "rho-a":
        expected = np.mean([compare_rdms(v[apart], written[2][apart], compare) for v in written[:2]])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from rsatoolbox.rdm import compare as peer
        missing = [np.where(apart, v, np.nan)[None] for v in written]
        expected = np.mean([peer(v, missing[2], method=compare)[0, 0] for v in missing[:2]])
    np.testing.assert_allclose(fit, expected, atol=1e-12)


def test_blocks_of_draws_and_pairs_agree_with_single_draws():
    """More draws and pairs than one block holds give each draw what it gives alone, and what subsampling gives."""
    rng = np.random.default_rng(8)
    pairs = 120 * 119 // 2
    data, models = rng.random((3, pairs)), rng.random((2, pairs))
    W = rng.multinomial(120, np.full(120, 1 / 120), size=300)
    R = rng.multinomial(3, np.full(3, 1 / 3), size=300)
    whole = bootstrap_rdms(data, models, conditions=W, rdms=R)
    for b in (0, 255, 256, 299):
        alone = bootstrap_rdms(data, models, conditions=W[[b]], rdms=R[[b]])
        assert_allclose(whole.fits[b], alone.fits[0], rtol=1e-12)
        i, j = np.triu_indices(120, 1)
        w = W[b][i] * W[b][j]
        cosine = (data * w) @ models.T / np.sqrt(((data**2) @ w)[:, None] * ((models**2) @ w))
        assert_allclose(whole.fits[b], R[b] @ cosine / R[b].sum(), rtol=1e-12)
