"""Other decompositions: oracles are scikit-learn and a textbook loop, worlds have planted atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import orthogonal_mp
from torch.nn import functional
from torch.testing import assert_close

from neurosae.dictionary.decompositions import DECOMPOSITIONS, decompose, from_directions, ksvd
from neurosae.dictionary.record import read_folder, write_folder
from neurosae.errors import ModelError


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_world(m=64, d=32, k=3, *, n=4000, seed=0):
    """Rows that are sums of k of m random atoms, coefficients uniform on 1 to 2."""
    g = torch.Generator().manual_seed(seed)
    atoms = functional.normalize(torch.randn(m, d, generator=g), dim=1)
    active = torch.rand(n, m, generator=g).topk(k, dim=1).indices
    return atoms, torch.zeros(n, m).scatter(1, active, 1 + torch.rand(n, k, generator=g)) @ atoms


def recovered(made, atoms):
    """Share of the true atoms that a decoder row comes near to."""
    return float(((functional.normalize(made.W_dec, dim=1) @ atoms.T).amax(0) > 0.9).float().mean())


X = draws(3000, 12) @ draws(12, 12, seed=1) + 5 * draws(12, seed=2)


@pytest.mark.parametrize("kind", ["pca", "ica", "random"])
def test_linear_decompositions_are_exact_at_full_width(kind):
    """With as many components as dimensions nothing is lost, in spite of a large offset."""
    made = decompose(X, {"kind": kind, "seed": 3})
    error = (made.reconstruct(X) - X).norm(dim=1) / X.norm(dim=1)
    assert made.n_features == 24
    assert float(error.max()) < 2e-5
    assert made.encode(X).min() >= 0


def test_pca_agrees_with_scikit_learn():
    """Signed values are the scores, up to the sign of a component."""
    made = decompose(X, {"kind": "pca", "n": 5})
    codes = made.encode(X).toarray()
    theirs = PCA(5).fit_transform(X.double().numpy())
    np.testing.assert_allclose(np.abs(codes[:, :5] - codes[:, 5:]), np.abs(theirs), atol=2e-3)


def test_ica_recovers_independent_sources():
    """Each source is one component: correlation above .99 after mixing."""
    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(4000, 6))
    mixed = torch.from_numpy(sources @ rng.standard_normal((6, 6))).float()
    codes = decompose(mixed, {"kind": "ica", "n": 6}).encode(mixed).toarray()
    r = np.abs(np.corrcoef(sources.T, (codes[:, :6] - codes[:, 6:]).T)[:6, 6:])
    assert (r.max(axis=1) > 0.99).all()


def test_random_is_the_projection_on_its_span():
    """Fewer directions than dimensions: what is left over is orthogonal to all of them, and values are projections."""
    made = decompose(X, {"kind": "random", "n": 4, "seed": 1})
    left = X - made.reconstruct(X)
    assert float((left @ made.W_enc[:4].T).abs().max()) < 1e-3
    assert_close(made.W_enc[:4].norm(dim=1), torch.ones(4))
    assert not torch.equal(made.W_enc, decompose(X, {"kind": "random", "n": 4, "seed": 2}).W_enc)


def test_ksvd_recovers_planted_atoms():
    """ALT-3: 64 atoms in 32 dimensions, 3 per row, 4,000 rows; 96 atoms recover .95 or more, 64 fewer."""
    atoms, x = sparse_world()
    assert recovered(decompose(x, {"kind": "ksvd", "n": 96, "k": 3}), atoms) >= 0.95
    assert 0.75 < recovered(decompose(x, {"kind": "ksvd", "n": 64, "k": 3}), atoms) < 0.95


def test_online_dl_recovers_planted_atoms():
    """ALT-3: online dictionary learning finds about .94 of the same atoms or more; PCA none, random none."""
    atoms, x = sparse_world()
    made = decompose(x[:2000], {"kind": "online_dl", "n": 96, "k": 3, "alpha": 1.0})
    assert recovered(made, atoms) >= 0.9
    assert (np.diff(made.encode(x).indptr) <= 3).all()
    assert recovered(decompose(x, {"kind": "pca"}), atoms) < 0.05
    assert recovered(decompose(x, {"kind": "random"}), atoms) < 0.05


def textbook(x, n, k, *, seed, n_updates):
    """Approximate K-SVD in plain loops, float64, codes by scikit-learn."""
    rng = np.random.default_rng(seed)
    D = x[rng.choice(len(x), n, replace=False)]
    D = D / np.linalg.norm(D, axis=1, keepdims=True)
    for _ in range(n_updates):
        order, A = rng.permutation(n), orthogonal_mp(D.T, x.T, n_nonzero_coefs=k).T
        worst = iter(np.argsort(-((x - A @ D) ** 2).sum(1), kind="stable"))
        for j in order:
            w = np.flatnonzero(A[:, j])
            if not len(w):
                row = x[next(worst)]
                D[j] = row / np.linalg.norm(row)
                continue
            E = x[w] - A[w] @ D + np.outer(A[w, j], D[j])
            d = E.T @ A[w, j]
            D[j] = d / np.linalg.norm(d)
            A[w, j] = E @ D[j]
    return D


@pytest.mark.filterwarnings("ignore:Orthogonal matching pursuit ended prematurely:RuntimeWarning")
def test_ksvd_agrees_with_a_textbook_loop():
    """The same atoms, and the same objective, on a small case."""
    x = sparse_world(m=20, d=10, k=2, n=300, seed=4)[1].double()
    theirs = textbook(x.numpy().copy(), 24, 2, seed=5, n_updates=6)
    ours = ksvd(x, 24, 2, seed=5, n_updates=6).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_nmf_recovers_non_negative_parts():
    """Codes are not negative, reconstruct the parts' sum, and survive the disk."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.gamma(0.3, size=(1500, 5)) @ rng.standard_normal((5, 10))).float()
    made = decompose(x, {"kind": "nmf", "n": 10})
    fvu = float((made.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    assert made.encode(x).min() >= 0
    assert made.partner is None
    assert fvu < 0.05


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_every_decomposition_survives_the_disk(kind, lens, tmp_path):
    """Bit for bit here, and readable by plain sae-lens; a seed gives the same numbers twice."""
    made, again = (decompose(X, {"kind": kind, "n": 6, "seed": 1, "k": 2}, hook="h") for _ in range(2))
    write_folder(tmp_path / "d", made)
    back = read_folder(tmp_path / "d")
    assert all(torch.equal(getattr(back, n), getattr(again, n)) for n in ("W_enc", "W_dec", "b_dec"))
    assert all(torch.equal(back.parts[n], again.parts[n]) for n in again.parts)
    np.testing.assert_allclose(back.encode(X).toarray(), again.encode(X).toarray(), atol=1e-4)
    with torch.no_grad():
        theirs = lens.SAE.load_from_disk(str(tmp_path / "d"))
        if kind in ("pca", "ica", "random"):
            assert_close(theirs(X), made.reconstruct(X), atol=1e-3, rtol=1e-3)
    assert (back.hook, back.metadata["fitted"]) == ("h", kind)
    assert back.card["decomposition"]


def test_directions_invariant_to_dependence():
    """Directions that sum to 0, as those of three levels, are still projected on, not blown up."""
    rows = draws(2, 12)
    made = from_directions(torch.cat([rows, -rows.sum(0, keepdim=True)]), center=X.mean(0))
    assert made.W_dec.isfinite().all()
    assert float((made.reconstruct(X) - X.mean(0)).norm()) <= float((X - X.mean(0)).norm())


def test_decompose_refuses_what_cannot_be():
    """Too many components, too few rows, no variance, unknown kinds: one sentence each."""
    with pytest.raises(ModelError, match="pca has at most as many directions as dimensions, 12; n is 13"):
        decompose(X, {"kind": "pca", "n": 13})
    with pytest.raises(ModelError, match="40 components need at least as many rows, but there are 30"):
        decompose(X[:30], {"kind": "ksvd", "n": 40})
    with pytest.raises(ModelError, match="nothing to decompose"):
        decompose(torch.ones(50, 4), {"kind": "pca"})
    with pytest.raises(ModelError, match=r"unknown decomposition 'pcaa'\. Did you mean 'pca'"):
        decompose(X, {"kind": "pcaa"})


def test_card_says_what_did_not_converge():
    """A fit that stopped early is not silent."""
    made = decompose(draws(200, 12), {"kind": "ica", "n": 12})
    assert any("did not converge" in w for w in made.card.get("warnings", []))
    assert replace(made, card={}).card == {}
