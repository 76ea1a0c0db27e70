"""What an intervention must know of features before it edits them: activity where it edits, natural doses, direction.

Doses are in activation units, and natural: quantiles of a feature's active values on reference text. Nothing here looks
at an outcome, so what is chosen by it (doses, matched controls) cannot favour a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.causal.doses import FEWEST, active_quantiles
from neurosae.causal.edits import MODES
from neurosae.causal.progress import with_bar
from neurosae.causal.prompts import Prompts, read_prompts, tokens_at
from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, hooked_pass
from neurosae.spec.design import Design

BATCH = 8192  # ids of a pass


class Reference(NamedTuple):
    """Natural activity of all features: share of active tokens, and the sorted active values as CSC."""

    density: np.ndarray
    active: sp.csc_matrix
    n_tokens: int

    def quantile(self, features: Sequence[int], q: float) -> np.ndarray:
        """Quantile of the active values of each feature; nan where it was active on fewer than 5 tokens."""
        return active_quantiles(self.active, features, [q])[:, 0]


class Place(NamedTuple):
    """Where features are edited.

    stimuli, prompts : the texts;  region : whose tokens are edited;  dictionary : whose features
    codes : CSR (n_cells, n_features), activity at the edited tokens without edits;  x : float32 (n_cells, d)
    row : int (n_cells,), stimulus of each cell;  directions : float32 (n_stimuli, d), what raises target over foil
    """

    stimuli: pd.DataFrame
    prompts: Prompts
    region: str
    dictionary: Dictionary
    codes: sp.csr_matrix
    x: np.ndarray
    row: np.ndarray
    directions: np.ndarray


def stimuli_for(
    stimuli: pd.DataFrame,
    design: Design,
    *,
    region: str,
    split: str | None = "test",
    only: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The rows that an intervention runs on: of a split, of some levels, those that have the region.

    Raises
    ------
    DataError
        None are left.
    """
    kept = np.ones(len(stimuli), dtype=bool)
    if split is not None and "split" in stimuli and design.partition is not None:
        kept &= stimuli["split"].astype(str).to_numpy() == split
    for factor, level in (only or {}).items():
        kept &= stimuli[factor].astype(str).to_numpy() == level
    if f"{region}_start" in stimuli:
        kept &= stimuli[f"{region}_start"].notna().to_numpy()
    if not kept.any():
        raise DataError(f"no text of split '{split}' has region '{region}' at the asked levels; nothing can be edited.")
    found = stimuli[kept]
    found.attrs["design"] = stimuli.attrs.get("design", design.to_json())
    return found


def place_of(stimuli: pd.DataFrame, model: LanguageModel, dictionary: Dictionary, *, region: str) -> Place:
    """Read the activity at the tokens that will be edited, in one pass."""
    prompts = read_prompts(stimuli, model, [dictionary])
    if missing := [why for why, at in zip(prompts.reason, prompts.at, strict=True) if at < 0]:
        raise DataError(f"{len(missing)} of {len(prompts.ids)} texts have no scored target: {missing[0]}.")
    cells = tokens_at(prompts, region)
    row = np.repeat(np.arange(len(cells)), [len(c) for c in cells])
    x = np.empty((len(row), dictionary.d_in), dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cells])])
    for rows in with_bar(length_buckets([len(ids) for ids in prompts.ids], BATCH), "read the region"):
        ids, mask = pad([prompts.ids[i] for i in rows])
        at = np.concatenate([np.arange(int(starts[i]), int(starts[i + 1])) for i in rows])
        of = np.repeat(np.arange(len(rows)), [len(cells[i]) for i in rows])
        columns = np.concatenate([cells[i] for i in rows])
        got = hooked_pass(prompts.model, ids, mask, hooks=[dictionary.hook], rows=of, cols=columns)
        x[at] = got[dictionary.hook].cpu().numpy()
    codes = dictionary.encode(torch.as_tensor(x))
    return Place(stimuli, prompts, region, dictionary, codes, x, row, _directions(prompts, dictionary.d_in))


def _directions(prompts: Prompts, width: int) -> np.ndarray:
    """Rows w (W_U[:, target] - W_U[:, foil]), w the weight of the last normalization; 0 off the stream."""
    bridge = prompts.model.bridge
    if width != prompts.model.d_model:
        return np.zeros((len(prompts.ids), width), dtype=np.float32)
    W_U = bridge.W_U.detach().float().cpu().numpy()
    weight = getattr(bridge.ln_final, "w", None)
    scale = 1.0 if weight is None else weight.detach().float().cpu().numpy()
    return np.ascontiguousarray(((W_U[:, prompts.target] - W_U[:, prompts.foil]).T * scale).astype(np.float32))


def reference_of(activations: sp.spmatrix | np.ndarray) -> Reference:
    """Natural activity from activations on running text (n_tokens, n_features).

    Examples
    --------
    >>> made = reference_of(np.array([[0.0, 1.0]] * 5 + [[2.0, 3.0]] * 5))
    >>> made.density.tolist(), made.quantile([0, 1], 0.5).tolist()
    ([0.5, 1.0], [2.0, 2.0])
    """
    A = sp.csc_matrix(activations)
    A.eliminate_zeros()
    n, m = A.shape  # pyright: ignore[reportGeneralTypeIssues]
    entries = A.tocoo()
    return Reference(np.bincount(entries.col[entries.data > 0], minlength=m) / n, A, n)


def as_dose(dose: float | str, reference: Reference, features: Sequence[int]) -> np.ndarray:
    """A dose in activation units for each feature (k,): a number as it is, `p90` as a quantile of natural activity.

    Raises
    ------
    DataError
        A feature was hardly ever active on the reference text.
    """
    if not isinstance(dose, str):
        return np.full(len(features), float(dose))
    found = reference.quantile(features, float(dose[1:]) / 100)
    if np.isnan(found).any():
        j = int(np.asarray(features)[np.isnan(found)][0])
        raise DataError(
            f"feature {j} is active on fewer than {FEWEST} of {reference.n_tokens:,} tokens of reference text, so it "
            "has no natural dose; give more text (n_tokens), or doses as numbers."
        )
    return found


def covariates(
    place: Place, reference: Reference, *, mode: str, dose: float | str, needs_activity: bool = True
) -> pd.DataFrame:
    """What controls are matched on, one row per feature: density, size, cosine; nan where it cannot be a control.

    `size` is the log length of what the edit adds: decoder norm x root mean square activity at the edited tokens for
    modes that remove or scale what is there, decoder norm x dose for those that set or add. Features without activity
    there are no candidates where they must have some (`needs_activity`).
    """
    dictionary, m = place.dictionary, place.dictionary.n_features
    norm = np.asarray(dictionary.decoder_norm, dtype=np.float64)
    counts = reference.density * reference.n_tokens
    found: dict[str, np.ndarray] = {}
    with np.errstate(divide="ignore"):
        found["density"] = np.log(np.maximum(reference.density, 1e-300))
        found["size"] = np.log(norm * _amount(place, reference, mode=mode, dose=dose))
    W = dictionary.W_dec.detach().float().cpu().numpy()
    U = place.directions / np.maximum(np.linalg.norm(place.directions, axis=1, keepdims=True), 1e-12)
    U, count = np.unique(U.round(7), axis=0, return_counts=True)
    found["cosine"] = np.sqrt(((W @ U.T) ** 2 @ count) / count.sum()) / np.maximum(norm, 1e-12)
    table = pd.DataFrame(found, index=np.arange(m))
    active = (counts >= FEWEST) & (np.isfinite(found["size"]) | (not needs_activity))
    table[~active] = np.nan
    return table


def _amount(place: Place, reference: Reference, *, mode: str, dose: float | str) -> np.ndarray:
    """How much of every feature an edit changes, in activation units."""
    m = place.dictionary.n_features
    square = np.asarray(place.codes.power(2).mean(axis=0)).ravel()
    if mode in ("ablate", "scale", "conditional"):
        return np.sqrt(square)
    return reference.quantile(range(m), float(dose[1:]) / 100) if isinstance(dose, str) else np.full(m, float(dose))


def amounts_of(place: Place, features: Sequence[int], *, mode: str, dose: np.ndarray) -> np.ndarray:
    """By how much an edit changes every feature at every edited token, f' - f, (n_cells, k)."""
    f = place.codes[:, np.asarray(features)].toarray()
    change = MODES[mode].change
    assert change is not None
    return np.asarray(change(f, np.broadcast_to(dose, f.shape)), dtype=np.float32)


def change_of(place: Place, features: Sequence[int], amounts: np.ndarray) -> np.ndarray:
    """What an edit adds to the stream at every edited token, (n_cells, d): (f' - f) W_dec."""
    return amounts @ place.dictionary.W_dec.detach().float().cpu().numpy()[np.asarray(features)]


def in_their_place(place: Place, features: Sequence[int], control: Sequence[int], *, amounts: np.ndarray) -> np.ndarray:
    """The edit with other decoder rows in the place of the features', as long at every token, (n_cells, d)."""
    W = place.dictionary.W_dec.detach().float().cpu().numpy()
    norm = np.linalg.norm(W, axis=1)
    own = change_of(place, features, amounts)
    other = (amounts * norm[np.asarray(features)]) @ (W[np.asarray(control)] / norm[np.asarray(control), None])
    length = np.linalg.norm(other, axis=1, keepdims=True)
    return other / np.where(length > 0, length, 1.0) * np.linalg.norm(own, axis=1, keepdims=True)


def by_stimulus(place: Place, vectors: np.ndarray) -> list[np.ndarray]:
    """Vectors (n_cells, d) as one array per stimulus."""
    ends = np.searchsorted(place.row, np.arange(1, len(place.prompts.ids)))
    return [np.asarray(part, dtype=np.float32) for part in np.split(vectors, ends)]
