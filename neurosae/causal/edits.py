"""What an intervention does to the activations at one hook point.

Features are edited in delta form. With f = enc(x) the features of a vector and f' what they are set to,

    x  ->  x + (f' - f) W_dec,

so what the dictionary does not reconstruct stays where it was, and an edit that changes nothing changes nothing. The
reconstruction is never put in the place of x: that adds its error to every effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neurosae.causal.entries import is_pattern
from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError, choose

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Mode(NamedTuple):
    """A way to edit: of features, f' - f from activations f and doses c (n_cells, n_features); else of the vector."""

    what: str
    change: Change | None = None


MODES: Mapping[str, Mode] = {
    "ablate": Mode("f' = 0", lambda f, c: -f),
    "clamp": Mode("f' = c", lambda f, c: c - f),
    "conditional": Mode("f' = c where f > 0, else f", lambda f, c: (c - f) * (f > 0)),
    "scale": Mode("f' = c f", lambda f, c: (c - 1) * f),
    "steer": Mode("f' = f + c", lambda f, c: np.broadcast_to(c, f.shape)),
    "add": Mode("x + v"),
    "replace": Mode("v in the place of x"),
}
"""Ways to edit; c is the dose, v the vector."""

SPLICES = ("splice", "reconstruct", "reconstruction", "run_with_saes")


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit of the activations at one hook point; a condition is a tuple of edits that act jointly.

    Attributes
    ----------
    hook : hook point; `blocks.2.attn.hook_z.h3` is one head
    mode : one of `MODES`
    where : the tokens that are edited: name of a region; `target`, the token that predicts the target; `all`, every
        token of the text; or one ascending array of token indices per stimulus, among the ids that the model gets.
        Specials such as BOS are edited only where they are named by index
    dictionary, features : whose features are edited, and which
    dose : activation units, factor of `scale`; one number, one per feature, (n_stimuli, n_features), or a list with one
        array (n_cells, n_features) per stimulus
    vector : of `add`, of which nothing is scaled, and of `replace`: (d,), (n_stimuli, d), or a list with one array
        (n_cells, d) per stimulus

    Notes
    -----
    An edit does not run the competition of a TopK encoder again: no other feature takes the place of an ablated one.
    Where a condition edits two hook points, the features at the later one are those that the earlier edit leaves there.

    Examples
    --------
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> Edit(raw.hook, "clamp", "target", dictionary=raw, features=(3,), dose=2.5).what
    "f' = c"
    """

    hook: str
    mode: str
    where: str | Sequence[np.ndarray]
    dictionary: Dictionary | None = None
    features: tuple[int, ...] = ()
    dose: float | np.ndarray | Sequence[np.ndarray] = 0.0
    vector: np.ndarray | Sequence[np.ndarray] | None = None
    keys: str | Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        if self.mode in SPLICES:
            raise DataError(
                f"mode '{self.mode}' puts a reconstruction in the place of the activations and adds the dictionary's "
                "error to every effect; use ablate, clamp, scale or steer, which leave the error where it was."
            )
        choose("mode", self.mode, MODES)
        if (self.keys is not None) != is_pattern(self.hook):
            raise DataError(
                f"{self.hook}: attention weights (attn.hook_pattern.h0) have queries and keys, and nothing else has; "
                "give `keys` with hook_pattern, and only there."
            )
        if self.keys is not None and self.mode != "replace":
            raise DataError(f"{self.mode} does not edit attention weights; use replace, and give them.")
        (_check_features if self.is_of_features else _check_vector)(self)

    @property
    def is_of_features(self) -> bool:
        """Whether features are edited, or the vector itself."""
        return MODES[self.mode].change is not None

    @property
    def what(self) -> str:
        """The edit as an equation."""
        return MODES[self.mode].what


def _check_features(edit: Edit) -> None:
    if edit.dictionary is None or not len(edit.features):
        raise DataError(f"{edit.mode} edits features; give a dictionary and at least one feature.")
    if edit.vector is not None:
        raise DataError(f"{edit.mode} edits features and takes no vector; use add or replace for a vector.")
    wrong = [j for j in edit.features if not 0 <= j < edit.dictionary.n_features]
    if wrong or len(set(edit.features)) < len(edit.features):
        raise DataError(
            f"features: {wrong or list(edit.features)}; name features 0 to {edit.dictionary.n_features - 1}, each once."
        )


def _check_vector(edit: Edit) -> None:
    if edit.vector is None:
        raise DataError(f"{edit.mode} needs a vector.")
    if edit.dictionary is not None or len(edit.features):
        raise DataError(f"{edit.mode} edits the vector, not features; use ablate, clamp, scale or steer for features.")
    if np.ndim(edit.dose) or edit.dose != 0:
        raise DataError(f"{edit.mode} takes no dose; multiply the vector.")


def doses_of(edit: Edit, cells: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The dose of every feature at every cell: per stimulus a float32 array (n_cells, n_features)."""
    return _per_cell(edit.dose, cells, width=len(edit.features), what="dose")


def vectors_of(edit: Edit, cells: Sequence[np.ndarray], width: int) -> list[np.ndarray]:
    """The vector of every cell: per stimulus a float32 array (n_cells, width)."""
    assert edit.vector is not None
    return _per_cell(edit.vector, cells, width=width, what="vector")


def _per_cell(
    given: float | np.ndarray | Sequence[np.ndarray], cells: Sequence[np.ndarray], *, width: int, what: str
) -> list[np.ndarray]:
    n = len(cells)
    shapes = [(len(c), width) for c in cells]
    if isinstance(given, list | tuple) and (not given or np.ndim(given[0]) == 2):
        parts = [np.asarray(one, dtype=np.float32) for one in given]
        if [part.shape for part in parts] != shapes:
            raise DataError(f"{what}: a list holds one array (n_cells, {width}) per stimulus; there are {n} stimuli.")
    else:
        array = np.asarray(given, dtype=np.float32)
        if array.shape not in ((), (width,), (n, width)):
            raise DataError(f"{what} has shape {array.shape}; give ({width},) or ({n}, {width}), or a list of cells.")
        rows = np.broadcast_to(array, (n, width))
        parts = [np.broadcast_to(row, shape) for row, shape in zip(rows, shapes, strict=True)]
    if not all(np.isfinite(part).all() for part in parts):
        raise DataError(f"{what} holds values that are not finite.")
    return parts
