"""Other decompositions of the same activations: principal and independent components, matrix factorization, K-SVD.

Each takes rows of activations and gives a `Dictionary`, so that every analysis can be repeated with it as a control.
Linear ones hold both signs of every value as two features (`signed_dictionary`); decoder rows have length 1, so
activations are in units of the stream.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import NMF, FastICA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from neurosae.dictionary.kinds import HALVES, Dictionary, signed_dictionary
from neurosae.dictionary.pursuit import matching_pursuit
from neurosae.errors import ModelError, choose

TINY = 1e-8
PURSUED = 4096  # rows whose codes are computed at once
UPDATES = 15  # of all atoms, in K-SVD
SEEN = 40_000  # rows that online learning sees at least, the same ones again where there are fewer


@dataclass(frozen=True)
class FitSettings:
    """How a decomposition is fitted.

    Attributes
    ----------
    kind : one of `DECOMPOSITIONS`
    n : number of components or atoms; a signed one gives two features. 0 for the width
    k : atoms per row, for ksvd and online_dl
    alpha : L1 penalty of online_dl, for rows scaled to unit mean square
    seed : of directions, starting values and the order of atoms
    """

    kind: str
    n: int = 0
    k: int = 8
    alpha: float = 1.0
    seed: int = 0


def decompose(x: Tensor, settings: FitSettings | Mapping[str, Any], *, hook: str = "") -> Dictionary:
    r"""Fit a decomposition to rows of activations.

    With c the mean of the rows and s = A (x - c) the values, x^ = c + s B:

    | kind | A, B |
    |---|---|
    | `pca` | the n leading eigenvectors of the covariance |
    | `ica` | FastICA on the n leading principal components; A unmixes, B mixes |
    | `random` | A: n random directions of length 1; B: its pseudo-inverse, so x^ is the projection on their span |
    | `ksvd` | B: n atoms by approximate K-SVD; s by orthogonal matching pursuit, k atoms per row |
    | `online_dl` | B: n atoms by online dictionary learning, min .5 \|x - s B\|^2 + alpha \|s\|_1; s as for ksvd |
    | `nmf` | n non-negative parts of [x+, x-] of x - c; values by non-negative least squares |

    Parameters
    ----------
    x : float32 (n_rows, d)
    settings : `kind`, `n` and whatever else stands in `FitSettings`
    hook : hook point that the rows were read at

    Returns
    -------
    Dictionary with 2n features (n for nmf); what did not converge is said in `card["warnings"]`

    Raises
    ------
    ModelError
        If the kind is unknown, there are more components than dimensions (pca, ica, random) or than rows, or no
        variance.

    References
    ----------
    Rubinstein, Zibulevsky & Elad (2008), Efficient implementation of the K-SVD algorithm using batch orthogonal
    matching pursuit. Mairal et al. (2009), Online dictionary learning for sparse coding. Hyvärinen & Oja (2000),
    Independent component analysis.

    Examples
    --------
    >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3.0, 1.0, 0.1])
    >>> made = decompose(x, {"kind": "pca", "n": 2})
    >>> made.n_features, (made.W_dec[0].abs() > 0.99).tolist()
    (4, [True, False, False, False])
    """
    asked = settings if isinstance(settings, FitSettings) else FitSettings(**settings)
    fit = choose("decomposition", asked.kind, DECOMPOSITIONS, error=ModelError)
    asked = replace(asked, n=asked.n or x.shape[1])
    _check(x, asked)
    center = x.double().mean(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        made = fit((x.double() - center).float(), asked, center=center.float())
    heard = Counter(str(w.message).split(".")[0] for w in said if issubclass(w.category, ConvergenceWarning))
    notes = [f"{text}{f' ({n} times)' if n > 1 else ''}." for text, n in heard.items()]
    card = {"decomposition": _words(asked)} | ({"warnings": notes} if notes else {})
    return replace(made, hook=hook, metadata={**made.metadata, "hook_name": hook, "fitted": asked.kind}, card=card)


def _check(x: Tensor, asked: FitSettings) -> None:
    if asked.kind in ("pca", "ica", "random") and asked.n > x.shape[1]:
        raise ModelError(f"{asked.kind} has at most as many directions as dimensions, {x.shape[1]}; n is {asked.n}.")
    if asked.n > len(x):
        raise ModelError(f"{asked.n} components need at least as many rows, but there are {len(x)}; give more tokens.")
    if not float((x - x[0]).abs().max()) > 0:
        raise ModelError("all activations are equal; there is nothing to decompose.")


def _words(asked: FitSettings) -> str:
    per_row = f", {asked.k} per token" if asked.kind in ("ksvd", "online_dl") else ""
    signs = "" if asked.kind == "nmf" else ", two signs each"
    return f"{NAMES[asked.kind]}: {asked.n}{per_row}{signs}"


NAMES = {
    "pca": "principal components", "ica": "independent components", "random": "random directions",
    "nmf": "non-negative parts (NMF)", "ksvd": "K-SVD atoms", "online_dl": "atoms of online dictionary learning",
    "diff_means": "differences of means of localizer items",
}  # fmt: skip


def _pca(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    double = x.double()
    vectors = torch.linalg.eigh(double.t() @ double)[1].flip(1)[:, : asked.n].t()
    rows = _one_sign(vectors).float()
    return signed_dictionary("", rows, rows, center=center)


def _ica(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    found: Any = FastICA(asked.n, whiten="unit-variance", random_state=asked.seed, max_iter=500, tol=1e-3)
    found.fit(x.double().numpy())
    unmix, mix = torch.from_numpy(found.components_), torch.from_numpy(found.mixing_.T)
    length = mix.norm(dim=1, keepdim=True).clamp(min=TINY)
    sign = _signs(mix)
    return signed_dictionary("", (unmix * length * sign).float(), (mix / length * sign).float(), center=center)


def _random(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    draws = torch.Generator().manual_seed(asked.seed)
    return from_directions(torch.randn(asked.n, x.shape[1], generator=draws, dtype=torch.float64), center=center)


def from_directions(directions: Tensor, *, center: Tensor) -> Dictionary:
    """Values along given directions, and the projection on their span as reconstruction."""
    unit = functional.normalize(directions.double(), dim=1)
    dual = torch.linalg.pinv(unit, rtol=1e-5).t().contiguous()  # three levels' directions sum to 0 but for rounding
    return signed_dictionary("", unit.float(), dual.float(), center=center)


def _nmf(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    both = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=1)
    start = "nndsvda" if asked.n <= min(both.shape) else "random"
    n: Any = asked.n  # scikit-learn annotates by its defaults
    found = NMF(n, init=start, random_state=asked.seed, max_iter=200, tol=1e-3).fit(both.numpy())
    parts = torch.from_numpy(found.components_).float()
    d = x.shape[1]
    parts = parts / (parts[:, :d] - parts[:, d:]).norm(dim=1, keepdim=True).clamp(min=TINY)
    rows = parts[:, :d] - parts[:, d:]
    zeros = rows.new_zeros(asked.n)
    unknown = torch.full_like(zeros, float("nan"))
    return Dictionary("", "nnls", rows, zeros, rows, center, unknown, parts={"P": parts})


def _ksvd(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    return _pursued(ksvd(x, asked.n, asked.k, seed=asked.seed), asked, center=center)


def _online(x: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    alpha: Any = asked.alpha
    forever: Any = None  # scikit-learn annotates by its defaults
    learner = MiniBatchDictionaryLearning(
        asked.n, alpha=alpha, fit_algorithm="cd", transform_algorithm="omp", random_state=asked.seed,
        batch_size=256, max_iter=max(1, -(-SEEN // len(x))), tol=0, max_no_improvement=forever,
    )  # fmt: skip
    scale = x.double().square().mean().sqrt()
    learner.fit((x.double() / scale).numpy())
    atoms = torch.from_numpy(learner.components_).float()
    return _pursued(functional.normalize(atoms, dim=1), asked, center=center)


def _pursued(atoms: Tensor, asked: FitSettings, *, center: Tensor) -> Dictionary:
    """Atoms, as they are stored for matching pursuit: both signs, no bias."""
    rows = _one_sign(atoms)
    rows = torch.cat([rows, -rows])
    zeros = rows.new_zeros(len(rows))
    facts = {"partner": HALVES}
    unknown = torch.full_like(zeros, float("nan"))
    return Dictionary("", "omp", rows, zeros, rows, center, unknown, min(asked.k, *atoms.shape), metadata=facts)


DECOMPOSITIONS: dict[str, Callable[..., Dictionary]] = {
    "pca": _pca, "ica": _ica, "nmf": _nmf, "ksvd": _ksvd, "online_dl": _online, "random": _random,
}  # fmt: skip


def _signs(rows: Tensor) -> Tensor:
    """The sign of the largest entry of each row, (n, 1)."""
    return rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()


def _one_sign(rows: Tensor) -> Tensor:
    """Rows whose largest entry is positive: the sign of a component is arbitrary, and depends on the BLAS."""
    return rows * torch.where(_signs(rows) == 0, 1, _signs(rows))


# --- K-SVD ----------------------------------------------------------------------------------------------------------


def ksvd(x: Tensor, n: int, k: int, *, seed: int = 0, n_updates: int = UPDATES) -> Tensor:
    """Atoms (n, d) by approximate K-SVD.

    In turn: codes of all rows by orthogonal matching pursuit; then for each atom d_j in random order, with w the rows
    that use it, a their coefficients and E = R_w + a d_j' their residual without it,

        d_j <- E'a / |E'a|,   a <- E d_j,   R_w <- E - a d_j'.

    An atom that no row uses becomes the row that is reconstructed worst.

    Parameters
    ----------
    x : centred rows (n_rows, d)
    n, k : atoms, and atoms per row
    seed : of the starting rows and of the order of the atoms
    n_updates : times that all atoms are updated
    """
    rng = np.random.default_rng(seed)
    length = x.norm(dim=1)
    usable = (length > TINY * length.max()).nonzero()[:, 0].numpy()
    atoms = functional.normalize(x[rng.choice(usable, n, replace=len(usable) < n)], dim=1)
    for _ in tqdm(range(n_updates), desc="K-SVD", unit="update", disable=None, mininterval=1, leave=False):
        atoms = _updated(x, atoms, k, order=rng.permutation(n))
    return atoms


def _updated(x: Tensor, atoms: Tensor, k: int, *, order: np.ndarray) -> Tensor:
    parts = [matching_pursuit(x[a : a + PURSUED], atoms, k) for a in range(0, len(x), PURSUED)]
    kept, values = torch.cat([p.kept for p in parts]), torch.cat([p.values for p in parts])
    atoms = atoms.clone()
    residual = x - functional.embedding_bag(kept, atoms, per_sample_weights=values, mode="sum")
    flat, coefficient = kept.reshape(-1), values.reshape(-1).clone()
    flat = torch.where(coefficient != 0, flat, len(atoms))
    place = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=len(atoms) + 1).cumsum(0).tolist()
    worst = iter(residual.square().sum(1).argsort(descending=True).tolist())
    for j in order.tolist():
        here = place[ends[j - 1] if j else 0 : ends[j]]
        if not len(here):
            atoms[j] = functional.normalize(x[next(worst)], dim=0)
            continue
        rows, a, old = torch.div(here, kept.shape[1], rounding_mode="floor"), coefficient[here], atoms[j].clone()
        left = residual[rows]
        new = functional.normalize(left.t() @ a + old * (a @ a), dim=0)
        coefficient[here] = left @ new + a * (old @ new)
        atoms[j] = new
        residual[rows] = left + a[:, None] * old - coefficient[here][:, None] * new
    return atoms
