"""Activation patching: what one text has at a place, put into another text.

Two texts of an item differ in one factor. The clean one predicts its target, the other does not. Noising puts what the
other has at a place into the clean text: if the outcome falls, the place is necessary. Denoising puts what the clean
text has there into the other: if the outcome rises, the place is sufficient. Both are scored with the target of the
clean text, and every place is one condition of the same passes.

With y the outcome, the share of the difference that a place carries is, over items i,

    noising   sum_i (y_clean - y_patched) / sum_i (y_clean - y_other),
    denoising sum_i (y_patched - y_other) / sum_i (y_clean - y_other).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.passes import edited_outcomes
from neurosae.causal.replacements import PAIRED, REPLACEMENTS, Held, Thing, hold, replacement
from neurosae.errors import DataError, choose, unknown
from neurosae.extraction.passes import LanguageModel
from neurosae.spec.design import Design

NOISING, DENOISING = "noising", "denoising"
KEYS = ("item", "frame", "split", "text", "target", "foil")


class Patching(NamedTuple):
    """How a grid is patched.

    Attributes
    ----------
    replace : `paired`, the text of the same item, frame and other levels; `random`, a text of another item at the other
        level; `mean` over the texts of other items; `zero`; `noise`, added, in standard deviations of each dimension
    outcome : see `OUTCOMES`
    n_draws, sigma : draws of `random` and `noise`, which are averaged; size of `noise`
    freeze : see `edited_outcomes`
    """

    replace: str = "paired"
    outcome: str = "logit_diff"
    n_draws: int = 10
    sigma: float = 1.0
    freeze: Literal["none", "final", "downstream", "attention"] = "none"


class Grid(NamedTuple):
    """Outcomes of every pair of texts at every place.

    Attributes
    ----------
    pairs : one row per clean text: `clean`, `other` (names; the first draw of `random`), `item`, `frame`, factors
    cells : one row per column of `patched`: `direction`, `thing`, `region`, `note`
    patched : float64 (n_pairs, n_cells), mean over draws
    clean, other : float64 (n_pairs,), outcomes without patches; `other` is nan where there is no other text
    idle : bool (n_cells,), places that change no logit: nothing leads from there to what is scored
    things : what is patched, in the order of the names
    """

    pairs: pd.DataFrame
    cells: pd.DataFrame
    patched: np.ndarray
    clean: np.ndarray
    other: np.ndarray
    idle: np.ndarray
    things: dict[str, Thing]


def patch(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    things: Iterable[Thing | str],
    *,
    between: Mapping[str, tuple[str, str]],
    regions: Sequence[str],
    settings: Patching = Patching(),  # noqa: B008  (a named tuple)
    seed: int = 0,
) -> pd.DataFrame:
    """Patch every thing at every region, between the texts of two levels of a factor.

    Parameters
    ----------
    stimuli : from `expand`; or any table with `item`, `frame`, factors, `text`, regions, `target` and `foil`
    model : LanguageModel
    things : hook points, or `Thing`s of features
    between : {factor: (clean level, other level)}
    regions : places to patch; `target` is the token that predicts the target, `all` the whole text
    settings, seed : how

    Returns
    -------
    DataFrame
        One row per pair of texts and place: `direction thing region item frame clean other y_clean y_other y_patched
        effect note`; `effect` is positive where the patch moves the outcome toward the other text (noising) or toward
        the clean one (denoising). `mean`, `zero` and `noise` have no other text and are noising alone.

    Notes
    -----
    A region of several tokens is patched token by token, aligned at its last token; where the numbers of tokens differ
    the tokens at its beginning that have no partner stay, and the row says so. Tests of the grid: `test: patching`.

    References
    ----------
    Meng K, Bau D, Andonian A, Belinkov Y (2022), Locating and editing factual associations in GPT. Heimersheim S, Nanda
    N (2024), How to use and interpret activation patching, arXiv 2404.15255.

    Examples
    --------
    The whole last residual stream at the predicting token decides what is predicted:

    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> rows = [("a", "sg", "A dog"), ("a", "pl", "A cat"), ("b", "sg", "One egg"), ("b", "pl", "One ape")]
    >>> stimuli = pd.DataFrame(rows, columns=["item", "number", "text"]).assign(frame="f", target="s", foil="!")
    >>> table = patch(stimuli, load_model(toy), ["blocks.0.hook_resid_post"], between={"number": ("sg", "pl")},
    ...               regions=["target"])
    >>> [bool(abs(r.effect - (r.y_clean - r.y_other)) < 1e-5) for r in table.itertuples()]
    [True, True, True, True]
    """
    grid = patch_grid(stimuli, model, things, between=between, regions=regions, settings=settings, seed=seed)
    return long_table(grid)


def long_table(grid: Grid) -> pd.DataFrame:
    """One row per pair of texts and place, as `patch` gives it."""
    parts = []
    for k, cell in enumerate(grid.cells.itertuples()):
        place = {"direction": cell.direction, "thing": cell.thing, "region": cell.region}
        values = {"y_clean": grid.clean, "y_other": grid.other, "y_patched": grid.patched[:, k]}
        part = grid.pairs[["item", "frame", "clean", "other"]].assign(
            **values, effect=moved(grid)[:, k], note=cell.note
        )
        parts.append(pd.concat([pd.DataFrame(place, index=part.index), part], axis=1))
    return pd.concat(parts, ignore_index=True)


def moved(grid: Grid) -> np.ndarray:
    """How far every patch moves the outcome: away from the clean text (noising), toward it (denoising)."""
    noising = (grid.cells["direction"] == NOISING).to_numpy()
    return np.where(noising, grid.clean[:, None] - grid.patched, grid.patched - grid.other[:, None])


def patch_grid(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    things: Iterable[Thing | str],
    *,
    between: Mapping[str, tuple[str, str]],
    regions: Sequence[str],
    settings: Patching = Patching(),  # noqa: B008
    seed: int = 0,
) -> Grid:
    """The outcomes behind `patch`, as arrays."""
    choose("replacement", settings.replace, REPLACEMENTS)
    made = [Thing(one) if isinstance(one, str) else one for one in things]
    if not made or not regions:
        raise DataError("patching needs at least one thing and one region.")
    n_draws = settings.n_draws if settings.replace in ("random", "noise") else 1
    rng = np.random.default_rng(seed)
    with_other = settings.replace in PAIRED
    n_draws = settings.n_draws if settings.replace in ("random", "noise") else 1
    pairs, held, found = pd.DataFrame(), None, []
    for draw in range(n_draws):
        if held is None or settings.replace == "random":
            now = _pairs(stimuli, between, settings.replace, rng=rng)
            pairs = now if draw == 0 else pairs
            hosts = _hosts(stimuli, now, with_other=with_other)
            held = hold(hosts, hosts if with_other else stimuli, model, things=made, regions=regions)
        found.append(_one_draw(held, made, regions, settings=settings, rng=rng))
    patched, clean, other, idle = (np.mean([getattr(one, name) for one in found], axis=0) for name in _Draw._fields[1:])
    cells, named = found[0].cells, {thing.name: thing for thing in made}
    return Grid(pairs, cells, patched, clean, other, idle == 1, named)


class _Draw(NamedTuple):
    """One draw of a grid; fields as in `Grid`."""

    cells: pd.DataFrame
    patched: np.ndarray
    clean: np.ndarray
    other: np.ndarray
    idle: np.ndarray


def _one_draw(
    held: Held, things: Sequence[Thing], regions: Sequence[str], *, settings: Patching, rng: np.random.Generator
) -> _Draw:
    """Outcomes of all hosts under all places, as one call."""
    places = [(thing, region) for thing in things for region in regions]
    made = [replacement(held, *place, replace=settings.replace, sigma=settings.sigma, rng=rng) for place in places]
    found = edited_outcomes(
        held.hosts, held.model, [(one.edit,) for one in made], outcomes=(settings.outcome,), freeze=settings.freeze,
        idle="note",
    )  # fmt: skip
    values, base, n = found.values[settings.outcome], found.clean[settings.outcome], held.n_pairs
    idle = np.array([c in found.record["idle"] for c in range(len(places))])
    directions = [NOISING, DENOISING] if len(base) > n else [NOISING]
    cells = pd.DataFrame(
        {"direction": direction, "thing": thing.name, "region": region, "note": one.note}
        for direction in directions
        for (thing, region), one in zip(places, made, strict=True)
    )
    patched = np.hstack([values[k * n : (k + 1) * n] for k in range(len(directions))])
    other = base[n:] if len(directions) > 1 else np.full(n, np.nan)
    return _Draw(cells, patched, base[:n], other, np.tile(idle, len(directions)))


# --- which text goes with which -------------------------------------------------------------------------------------


def _pairs(
    stimuli: pd.DataFrame, between: Mapping[str, tuple[str, str]], replace: str, *, rng: np.random.Generator
) -> pd.DataFrame:
    """Clean texts, and the other text of each: of the same item, or of another one."""
    (factor, (clean, other)), *more = between.items()
    if more or factor not in stimuli:
        columns = [c for c in stimuli.columns if not c.endswith(("_start", "_end"))]
        raise DataError("between: names one factor; " + unknown("factor", factor, columns))
    level = stimuli[factor].astype(str)
    for name in (clean, other):
        if not (level == name).any():
            raise DataError(f"between: {factor}: " + unknown("level", name, list(dict.fromkeys(level))))
    names = stimuli.index.astype(str)
    pairs = stimuli[["item", "frame", *_factors(stimuli, factor)]].astype(str).assign(clean=names)
    keys = ["frame", *_factors(stimuli, factor)]
    first, second = pairs[(level == clean).to_numpy()], pairs[(level == other).to_numpy()]
    second = second.rename(columns={"clean": "other"})
    if replace not in PAIRED:
        return first.assign(other="").reset_index(drop=True)
    if replace == "paired":
        joined = first.merge(second, on=["item", *keys], how="left", validate="one_to_one")
        if lost := joined.loc[joined["other"].isna(), "clean"].tolist():
            raise DataError(
                f"{len(lost)} texts have no partner at {factor} = {other}, such as '{lost[0]}'; use replace: random, "
                "or leave them out."
            )
        return joined
    drawn = []
    for row in first.itertuples():
        same = second[(second[keys] == pd.Series({key: getattr(row, key) for key in keys})).all(axis=1)]
        same = same[same["item"] != row.item]
        if not len(same):
            raise DataError(f"'{row.clean}' has no text of another item at {factor} = {other}; use replace: paired.")
        drawn.append(same["other"].iloc[int(rng.integers(len(same)))])
    return first.assign(other=drawn).reset_index(drop=True)


def _factors(stimuli: pd.DataFrame, factor: str) -> list[str]:
    """The other factors of the design; without one, columns of categories other than frame and split."""
    if "design" in stimuli.attrs:
        return [name for name in Design.from_json(stimuli.attrs["design"]).factors if name != factor]
    return [str(c) for c in stimuli if isinstance(stimuli[c].dtype, pd.CategoricalDtype) and c not in (factor, *KEYS)]


def _hosts(stimuli: pd.DataFrame, pairs: pd.DataFrame, *, with_other: bool) -> pd.DataFrame:
    """The clean texts, then the other texts with the targets of the clean ones."""
    table = stimuli.set_axis(stimuli.index.astype(str), axis=0)
    clean = table.loc[pairs["clean"]]
    if not with_other:
        return clean
    answers = {name: clean[name].to_numpy() for name in ("target", "foil") if name in clean}
    other = table.loc[pairs["other"]].assign(**answers)
    hosts = pd.concat([clean, other])
    hosts.attrs.update(stimuli.attrs)
    return hosts
