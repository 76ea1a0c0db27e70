"""What a reader of results must know about a design, in sentences: replication, shared forms, regions, repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from neurosae.design.confounds import one_word_levels
from neurosae.design.units import carriers, shared_forms
from neurosae.spec.design import Design, region_names
from neurosae.spec.frames import between, frame_texts, pieces

SHOWN = 5


class Ask(NamedTuple):
    """One effect of one test: where, on which items, against which alternative; `flips`: it never permutes levels.

    `edits`: the test changes activations at its region, and its outcome lies behind it.
    """

    test: str
    effect: str
    regions: tuple[str | None, ...]
    split: str
    alternative: str = "two-sided"
    flips: bool = False
    edits: bool = False


def stimulus_warnings(design: Design, stimuli: pd.DataFrame, *, tested: set[str]) -> tuple[list[str], list[str]]:
    """Warnings and notes about the stimuli themselves; `tested` are the regions of the tests."""
    warnings = [*replication(design), *recurring(design, tested=tested), *_same_texts(stimuli)]
    return warnings, [*_absent_regions(design, stimuli), *_marks(design, stimuli), *_idle_frames(design)]


def replication(design: Design) -> list[str]:
    """Factors carried by one word per level in all items: a difference between two words, not a factor."""
    found = []
    for row in one_word_levels(design).itertuples():
        if row.alone:
            found.append(
                f"NO REPLICATION of '{row.factor}': in all {len(design.items)} items slot '{row.slot}' has one word "
                f"per level ({row.words}). Whatever differs between these words will pass for '{row.factor}'. Grade: a "
                "test of these words, not of the factor; items with other words would make it one."
            )
        elif row.factor in between(design):
            found.append(
                f"slot '{row.slot}' has one word per level of '{row.factor}' ({row.words}); if it is what carries "
                f"'{row.factor}', there is no replication, whatever the number of items."
            )
    return found


def recurring(design: Design, *, tested: set[str]) -> list[str]:
    """Forms that carry a factor in several items, unless `unit: shared_forms` merges them."""
    slots = list(carriers(design, tuple(design.factors)))
    if design.target is not None and design.target.slot in tested and design.target.slot not in slots:
        slots.append(design.target.slot)
    table = shared_forms(design, slots).sort_values("n_items", ascending=False, kind="stable")
    if design.unit != "item" or not len(table):
        return []
    shown = [f"'{row.form}' carries {row.factors} in {row.n_items} items" for row in table.head(SHOWN).itertuples()]
    more = f", and {len(table) - SHOWN} more forms recur" if len(table) > SHOWN else ""
    return [f"{'; '.join(shown)}{more}: these items are not independent. Merge them by `unit: shared_forms`."]


def region_warnings(
    lexical: pd.DataFrame, asks: Sequence[Ask], *, regions: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Warnings and notes: tests where nothing has differed yet, effects that are never free of their own words.

    Parameters
    ----------
    lexical : the table of `confounds.lexical_table` over all regions, with `within`
    asks : what is tested
    regions : the regions that are analysed
    """
    unseen: dict[tuple[str, str], list[str]] = {}
    table: dict[tuple[Any, Any], Any] = {(row.region, row.effect): row for row in lexical.itertuples()}
    for ask in asks:
        for region in ask.regions if ask.test and not ask.edits else ():
            row = table.get((region, ask.effect))
            if row is not None and row.within and row.n and not row.seen:
                unseen.setdefault((ask.test, str(region)), []).append(ask.effect)
    warnings = [
        f"{test}: the + and - cells of {' and '.join(effects)} have the same text up to the end of '{region}', so a "
        "causal model cannot show it there; test a later region."
        for (test, region), effects in unseen.items()
    ]
    notes = []
    for effect, rows in lexical[lexical["within"]].groupby("effect", sort=False):
        free = list(rows["region"][(rows["differ"] == 0) & (rows["seen"] > 0)])
        if not free:
            warnings.append(
                f"'{effect}' has no region where its words are the same in the + and - cells after something before it "
                "differed: any effect is also the words themselves. Add such a region, e.g. a later word."
            )
        elif not set(free) & set(regions):
            notes.append(f"no analysed region is free of the words of '{effect}'; {', '.join(free)} would be.")
    return warnings, notes


def _same_texts(stimuli: pd.DataFrame) -> list[str]:
    owners = stimuli.groupby("text")["item"].nunique()
    if not (owners > 1).any():
        return []
    text, n = owners.idxmax(), int(owners.max())
    return [
        f"the same text in several items ({int((owners > 1).sum())} texts; '{text}' in {n}): it is counted {n} times."
    ]


def _absent_regions(design: Design, stimuli: pd.DataFrame) -> list[str]:
    found = []
    for region in region_names(design):
        absent = stimuli[stimuli[f"{region}_start"].isna()]
        if len(absent):
            frames = [frame for frame in absent["frame"].cat.categories if (absent["frame"] == frame).any()]
            where = f"frame {', '.join(map(str, frames))}" if design.lists is None else "texts that are too short"
            found.append(f"region '{region}' is absent in {len(absent)} of {len(stimuli)} stimuli ({where}).")
    return found


def _marks(design: Design, stimuli: pd.DataFrame) -> list[str]:
    found = []
    for region in design.regions:
        ends = stimuli[f"{region}_end"].notna()
        last = [
            text[end - 1] for text, end in zip(*(stimuli.loc[ends, c] for c in ("text", f"{region}_end")), strict=True)
        ]
        n = sum(not sign.isalnum() for sign in last)
        if n:
            found.append(
                f"region '{region}' ends in a punctuation mark in {n} of {len(last)} stimuli: with `tokens: last` it "
                "is the mark that is analysed."
            )
    return found


def _idle_frames(design: Design) -> list[str]:
    """Frames whose text does not change with a factor: their contrast is 0 and dilutes the mean over frames."""
    found = []
    for frame, written in design.frames.items():
        by, texts = frame_texts(written)
        named = {by} | {
            f for text in texts.values() for piece in pieces(text) if not isinstance(piece, str) for f in piece.factors
        }
        for name, factor in design.factors.items():
            if factor.varies == "within" and name not in named:
                found.append(
                    f"frame '{frame}' does not change with '{name}': its difference there is 0 by construction."
                )
    return found
