"""Codes without an encoder: the oracles are scikit-learn and scipy, called live."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp_gram
from torch.nn import functional
from torch.testing import assert_close

from neurosae.dictionary.pursuit import matching_pursuit, nonnegative_codes


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(found, m):
    return torch.zeros(len(found.kept), m, dtype=found.values.dtype).scatter(1, found.kept, found.values)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_pursuit_agrees_with_scikit_learn(k):
    """The same atoms and coefficients as `orthogonal_mp_gram`, row by row."""
    atoms, x = functional.normalize(draws(40, 12), dim=1), draws(60, 12, seed=1)
    gram, products = (atoms @ atoms.T).numpy(), (atoms @ x.T).numpy()
    norms = (x**2).sum(1).numpy()
    theirs = orthogonal_mp_gram(gram, products, n_nonzero_coefs=k, norms_squared=norms)
    assert_close(dense(matching_pursuit(x, atoms, k), 40), torch.from_numpy(theirs.T), rtol=1e-8, atol=1e-8)


def test_pursuit_recovers_sparse_codes():
    """Rows made of 2 atoms of an incoherent dictionary give these atoms, and nothing after them."""
    atoms = torch.cat([torch.eye(16), torch.ones(1, 16) / 4]).double()
    codes = torch.zeros(3, 17, dtype=torch.float64)
    codes[0, [2, 5]], codes[1, [0, 9]], codes[2, 4] = torch.tensor([3.0, -2.0]).double(), 1.5, -1.0
    found = matching_pursuit(codes @ atoms, atoms, 4)
    assert_close(dense(found, 17), codes, atol=1e-12, rtol=0)
    assert found.kept[0].unique().numel() == 4  # no atom is taken twice


def test_pursuit_invariant_to_rows_beside():
    """A row alone has the codes that it has among others; a row of zeros has none, repeated atoms harm nothing."""
    atoms = functional.normalize(draws(20, 8), dim=1)
    atoms[7] = atoms[3]
    x = torch.cat([draws(9, 8, seed=2), torch.zeros(1, 8, dtype=torch.float64)])
    together = dense(matching_pursuit(x, atoms, 5), 20)
    alone = torch.cat([dense(matching_pursuit(row[None], atoms, 5), 20) for row in x])
    assert_close(together, alone)
    assert together.isfinite().all()
    assert not together[-1].any()


def test_pursuit_never_asks_for_more_atoms_than_there_are():
    """More atoms per row than dimensions or atoms: as many as can be told apart, and no index out of range."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = matching_pursuit(x, torch.eye(3), 9)
    assert found.kept.shape == (5, 3)
    assert_close(torch.zeros(5, 3).scatter_(1, found.kept, found.values), x)


def test_nonnegative_codes_agree_with_scipy():
    """The least squares of `scipy.optimize.nnls`, and never below 0."""
    parts, x = draws(10, 14).abs(), draws(30, 14, seed=1).abs()
    ours = nonnegative_codes(x, parts)
    theirs = np.array([nnls(parts.T.numpy(), row.numpy())[0] for row in x])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    assert (ours >= 0).all()
