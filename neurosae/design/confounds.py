"""What besides the factor differs between the + and - cells of an effect: words, lengths, positions, recurring forms.

A causal model sees the text up to the end of a region and nothing else, so two questions are asked of each region:
do the region's own words differ (then the effect is also the word itself), and does anything before its end differ at
all (if not, no causal model can show the effect there)?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd

from neurosae.design.regions import words
from neurosae.design.units import all_forms, carriers
from neurosae.design.weights import Effect
from neurosae.spec.design import Design
from neurosae.spec.frames import slots_of


def cell_weights(design: Design, stimuli: pd.DataFrame, effect: Effect) -> np.ndarray:
    """Weight of the cell of every stimulus, array of shape (n_stimuli,)."""
    weight = dict(zip(effect.cells, effect.weights, strict=True))
    rows = zip(*(stimuli[name].astype(str) for name in design.factors), strict=True)
    return np.array([weight[cell] for cell in rows])


def within_items(stimuli: pd.DataFrame, weights: np.ndarray) -> bool:
    """Whether the weights sum to 0 inside every item and frame: + and - cells are then seen on the same material."""
    sums = pd.Series(weights).groupby(_groups(stimuli)).sum()
    return bool((sums.abs() < 1e-9).all())


def _groups(stimuli: pd.DataFrame) -> np.ndarray:
    return stimuli.groupby(["item", "frame"], observed=True, sort=False).ngroup().to_numpy()


def region_texts(stimuli: pd.DataFrame, region: str | None) -> tuple[pd.Series, pd.Series]:
    """Words at a region, and the text up to its end; None where a text lacks it. No region: the whole text."""
    if region is None:
        return stimuli["text"], stimuli["text"]
    spans = zip(stimuli["text"], stimuli[f"{region}_start"], stimuli[f"{region}_end"], strict=True)
    pairs = [(None, None) if pd.isna(start) else (text[start:end], text[:end]) for text, start, end in spans]
    columns = tuple(pd.Series(list(part), index=stimuli.index, dtype=object) for part in zip(*pairs, strict=True))
    return cast("tuple[pd.Series, pd.Series]", columns)


def lexical_table(
    design: Design, stimuli: pd.DataFrame, effects: Mapping[str, Effect], *, regions: tuple[str, ...]
) -> pd.DataFrame:
    """Where the words of the + and - cells of an effect differ.

    Returns
    -------
    DataFrame
        One row per region and effect: `differ`, the number of items x frames whose words at the region differ between
        the + and - cells (each side counted with its weights, so that an interaction is compared as a whole), `seen`,
        the number whose text up to the region's end differs, and `n`, how many have the region. For an effect between
        items, `differ` counts items whose words at the region are found on one side only.
    """
    rows = []
    for region in regions:
        here, so_far = region_texts(stimuli, region)
        there = here.notna().to_numpy()
        for name, effect in effects.items():
            weights = cell_weights(design, stimuli, effect)
            use = there & (weights != 0)
            part, w = stimuli[use], weights[use]
            count = _differ_within if within_items(stimuli, weights) else _differ_between
            n = part.groupby(["item", "frame"], observed=True).ngroups
            rows.append((region, name, count(part, w, here[use], bag=True), count(part, w, so_far[use], bag=False), n))
    return pd.DataFrame(rows, columns=["region", "effect", "differ", "seen", "n"])


def _differ_within(stimuli: pd.DataFrame, weights: np.ndarray, texts: pd.Series, *, bag: bool) -> int:
    if not len(stimuli):
        return 0
    table = pd.DataFrame({"group": _groups(stimuli), "text": texts.to_numpy(), "weight": weights})
    if bag:
        table = table.assign(text=table["text"].str.split()).explode("text")
    net = table.groupby(["group", "text"])["weight"].sum().abs() > 1e-9
    return int(net.groupby(level="group").any().sum())


def _differ_between(stimuli: pd.DataFrame, weights: np.ndarray, texts: pd.Series, *, bag: bool) -> int:
    """Items whose text (as a bag, whose words in any order) is found on one side only."""
    if bag:
        texts = texts.str.split().map(sorted).str.join(" ")
    sides = pd.Series(np.sign(weights)).groupby(texts.to_numpy()).nunique()
    apart = texts.isin(sides.index[sides == 1]).to_numpy()
    return stimuli[apart].groupby(["item", "frame"], observed=True).ngroups


# ------------------------------------------------------------------ length and position


def measures(stimuli: pd.DataFrame, regions: tuple[str, ...]) -> pd.DataFrame:
    """Numbers that may go with an effect: length of the text, and the position of every region's last word, from 1."""
    found = {
        "length in words": [len(words(text)) for text in stimuli["text"]],
        "length in characters": stimuli["text"].str.len().to_numpy(),
    }
    for region in regions:
        so_far = region_texts(stimuli, region)[1]
        found[f"position of {region}"] = [None if pd.isna(text) else len(words(text)) for text in so_far]
    return pd.DataFrame(found, index=stimuli.index, dtype=float)


def confound_table(
    design: Design, stimuli: pd.DataFrame, effects: Mapping[str, Effect], *, numbers: pd.DataFrame
) -> pd.DataFrame:
    """How numbers of the stimuli differ between the + and - cells.

    Parameters
    ----------
    numbers : one row per stimulus, one column per number; NA where it is not defined

    Returns
    -------
    DataFrame
        One row per effect and number: `within`, whether + and - cells are seen on the same items; `difference`, mean
        over the + cells minus mean over the - cells, in units of the number; `differ` of `n` items x frames where the
        two are not equal (for an effect between items all of them, if the sides differ at all); `rho`, Spearman's
        correlation of the number with the side.
    """
    rows = []
    for name, effect in effects.items():
        weights = cell_weights(design, stimuli, effect)
        inside = within_items(stimuli, weights)
        for column in numbers:
            x = numbers[column].to_numpy()
            use = ~np.isnan(x) & (weights != 0)
            if use.any():
                rows.append((name, column, inside, *_difference(stimuli[use], weights[use], x[use], inside=inside)))
    return pd.DataFrame(rows, columns=["effect", "measure", "within", "difference", "differ", "n", "rho"])


def _difference(stimuli: pd.DataFrame, weights: np.ndarray, x: np.ndarray, *, inside: bool):
    plus, minus = np.clip(weights, 0, None), np.clip(-weights, 0, None)
    mean = (plus @ x / plus.sum() if plus.any() else np.nan) - (minus @ x / minus.sum() if minus.any() else np.nan)
    group = _groups(stimuli)
    n = int(group.max()) + 1
    differ = int((np.abs(np.bincount(group, weights * x)) > 1e-9).sum()) if inside else n * bool(abs(mean) > 1e-9)
    return float(mean), int(differ), n, spearman(np.sign(weights), x)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant.

    Examples
    --------
    >>> round(spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 9])), 3)
    0.8
    """
    ranks = [pd.Series(v).rank().to_numpy() for v in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if all(np.ptp(r) > 0 for r in ranks) else 0.0


# ------------------------------------------------------------------ replication


def one_word_levels(design: Design) -> pd.DataFrame:
    """Slots that carry a factor by one word per level in all items: columns `factor`, `slot`, `words`, `alone`.

    `alone` says that no other slot carries the factor with several words, so nothing about it is replicated.
    """
    rows = []
    for name, factor in design.factors.items() if design.lists is None and len(design.items) > 1 else ():
        slots = carriers(design, (name,))
        counts = {slot: _words_by_level(design, slot, name) for slot in slots}
        single = [slot for slot, by in counts.items() if all(len(forms) == 1 for forms in by.values())]
        for slot in single:
            used = ", ".join(counts[slot][level][0] for level in factor.levels)
            rows.append((name, slot, used, len(single) == len(slots)))
    return pd.DataFrame(rows, columns=["factor", "slot", "words", "alone"])


def _words_by_level(design: Design, slot: str, factor: str) -> dict[str, list[str]]:
    by = slots_of(design)[slot]
    found: dict[str, list[str]] = {level: [] for level in design.factors[factor].levels}
    for forms in design.items.values():
        if slot not in forms:
            continue
        for level in found:
            if factor in by:
                found[level] += _at_level(forms[slot], by, factor, level=level)
            elif forms.get(factor) == level:
                found[level] += all_forms(forms[slot])
    return {level: list(dict.fromkeys(forms)) for level, forms in found.items()}


def _at_level(form: object, by: tuple[str, ...], factor: str, *, level: str) -> list[str]:
    if not isinstance(form, Mapping):
        return [str(form)]
    inner = [form[level]] if by[0] == factor else list(form.values())
    return [word for part in inner for word in _at_level(part, by[1:], factor, level=level)]


def repeated_cells(
    design: Design, stimuli: pd.DataFrame, effect: Effect, *, region: str | None = None
) -> list[tuple[str, str, int]]:
    """Cells with a weight that are one and the same text in all items, in every frame: (cell, text, number of items).

    With a region only the text up to its end counts: it is all that a causal model has seen there.
    """
    weights = cell_weights(design, stimuli, effect)
    so_far = region_texts(stimuli, region)[1]
    use = (weights != 0) & so_far.notna().to_numpy()
    levels = stimuli.loc[use, list(design.factors)].astype(str)
    cells = levels.agg("/".join, axis=1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    table = stimuli.loc[use, ["item", "frame"]].assign(cell=cells, text=so_far[use])
    found = []
    for cell, rows in table.groupby("cell", sort=False):
        frames = rows.groupby("frame", observed=True)["text"].nunique()
        items = rows["item"].nunique()
        if items > 1 and (frames == 1).all():
            found.append((str(cell), str(rows["text"].iloc[0]), int(items)))
    return found


def crossed(design: Design, effect: Mapping[str, object]) -> bool:
    """Whether an effect as written is an interaction: more than one factor, each with weights that sum to 0."""
    if "cells" in effect:
        return False
    zero = [w for w in effect.values() if not isinstance(w, Mapping) or abs(sum(w.values())) < 1e-9]
    return len(zero) > 1
