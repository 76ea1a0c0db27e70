"""What a design must have before a conjunction can be called integrated; each thing that is missing caps the grade.

Read off the texts themselves: which spans carry the two parts, whether they stand at equal places, whether fillers
differ between items, whether the list holds the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from neurosae.spec.design import Design, region_names

LEAST_ITEMS = 48
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Requirement:
    """One requirement: whether it is met, what was seen, the grade that it leaves where it is not, and the remedy."""

    name: str
    met: bool
    seen: str
    cap: int
    remedy: str


class Parts(NamedTuple):
    """The two parts and the context: (factor, level without, level with), (factor, control, composed) or None."""

    first: tuple[str, str, str]
    second: tuple[str, str, str]
    context: tuple[str, str, str] | None


def parts_of(block: Any, effects: Mapping[str, Any]) -> Parts:
    """Factors and levels of a block's parts, from effects as they are written.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> block = SimpleNamespace(parts=("adj", "noun"), context=None)
    >>> levels = {"present": 1, "absent": -1}
    >>> parts_of(block, {"adj": {"adjective": levels}, "noun": {"noun": levels}}).first
    ('adjective', 'absent', 'present')
    """
    made = []
    for part in block.parts:
        ((factor, levels),) = effects[part].items()
        used = sorted((float(w), str(level)) for level, w in levels.items() if w)
        made.append((str(factor), used[0][1], used[-1][1]))
    c = block.context
    return Parts(made[0], made[1], None if c is None else (c.factor, c.control, c.composed))


def requirements(
    design: Design, stimuli: pd.DataFrame, parts: Parts, *, region: str, chosen: bool, index: pd.Series | None = None
) -> list[Requirement]:
    """Every requirement, met or not.

    Parameters
    ----------
    design : Design
    stimuli : the expanded design
    parts : factors and levels
    region : where the responses are read
    chosen : whether features of the parts were chosen, on localizer items
    index : token index of the region in each stimulus, where it is known; else words are counted
    """
    region = region.partition("@")[0]
    table = _used(design, stimuli, parts, region=region)
    # a mark of punctuation stands for a token of its own, as in most tokenizers
    table["at"] = [len(WORD.findall(t[:end])) for t, end in zip(table["text"], table[f"{region}_end"], strict=True)]
    unit = "word"
    if index is not None:
        table["at"], unit = index.reindex(table.index), "token"
    return [*_material(design, table, parts, chosen=chosen), *_places(table, parts, unit=unit)]


def grade_cap(found: list[Requirement], *, causal: bool = False) -> int:
    """The largest grade that a design allows; 2 without the causal read-out, whatever the design.

    Examples
    --------
    >>> grade_cap([Requirement("list", False, "", 1, "")]), grade_cap([]), grade_cap([], causal=True)
    (1, 2, 3)
    """
    return min([3 if causal else 2, *(one.cap for one in found if not one.met)])


def grade_limits(design: Design, stimuli: pd.DataFrame, analysis: Any) -> Iterator[str]:
    """For every battery of an analysis what limits its grade, in one sentence."""
    if analysis is None:
        return
    for name, block in analysis.tests.items():
        if block.test != "integration":
            continue
        parts = parts_of(block, analysis.effects)
        for region in block.region:
            if f"{region.partition('@')[0]}_start" not in stimuli:
                continue
            found = requirements(design, stimuli, parts, region=region, chosen=bool(block.features))
            missing = [one for one in found if not one.met]
            if missing:
                said = "; ".join(f"{one.name} ({one.seen}): {one.remedy}" for one in missing)
                cap = grade_cap(found)
                yield f"{name}: at {region} the grade is limited to {cap} of 3: {said}."


def _used(design: Design, stimuli: pd.DataFrame, parts: Parts, *, region: str) -> pd.DataFrame:
    """Test stimuli of the cells of the battery, with a column for the level of each part, of frames with the region."""
    table = stimuli[stimuli["split"].astype(str) == "test"]
    table = table[table[f"{region}_end"].notna()]
    for factor, low, high in (p for p in parts if p is not None):
        table = table[table[factor].astype(str).isin([low, high])]
    table = table.copy()
    for key, (factor, _, high) in zip(("a", "b"), parts[:2], strict=True):
        table[key] = (table[factor].astype(str) == high).astype(int)
    table["c"] = (table[parts.context[0]].astype(str) == parts.context[2]).astype(int) if parts.context else 1
    carried = {key: _carriers(design, table, key) for key in ("a", "b")}
    for key, spans in carried.items():
        first = [
            min((row[f"{r}_start"] for r in spans.get(row["frame"], ())), default=-1) for _, row in table.iterrows()
        ]
        last = [max((row[f"{r}_end"] for r in spans.get(row["frame"], ())), default=-1) for _, row in table.iterrows()]
        words = [t[a:b] if a >= 0 else "" for t, a, b in zip(table["text"], first, last, strict=True)]
        table[f"{key}_start"], table[f"{key}_end"], table[f"{key}_words"] = first, last, words
    return table


def _carriers(design: Design, table: pd.DataFrame, key: str) -> dict[str, list[str]]:
    """For each frame the regions whose words change with one part and not with the other."""
    other = "b" if key == "a" else "a"
    out: dict[str, list[str]] = {}
    for frame, rows in table.groupby("frame", observed=True):
        for region in region_names(design):
            if rows[f"{region}_start"].isna().any():
                continue
            spans = zip(rows["text"], rows[f"{region}_start"], rows[f"{region}_end"], strict=True)
            words = rows.assign(words=[t[a:b] for t, a, b in spans])
            if _changes(words, key) and not _changes(words, other):
                out.setdefault(str(frame), []).append(region)
    return out


def _changes(rows: pd.DataFrame, key: str) -> bool:
    """Whether the words differ between the levels of a part, all else equal, in any item."""
    fixed = ["item", "c", "b" if key == "a" else "a"]
    return bool((rows.groupby(fixed, observed=True)["words"].nunique() > 1).any())


def _material(design: Design, table: pd.DataFrame, parts: Parts, *, chosen: bool) -> Iterator[Requirement]:
    n = table["item"].nunique()
    yield Requirement("2 x 2 within items", True, f"{parts.first[0]} x {parts.second[0]}", 1, "")
    enough = n >= LEAST_ITEMS
    yield Requirement(f"{LEAST_ITEMS} test items", enough, f"{n} test items", 1, f"add {max(LEAST_ITEMS - n, 0)} items")
    apart = design.partition is not None if chosen else True
    seen = "features chosen on localizer items" if chosen else "no features chosen"
    yield Requirement("localizer disjoint from the test", apart, seen, 1, "give the design a partition")
    counts = []
    for key in ("a", "b"):
        rows = table[table[key] == 0]
        counts.append(rows.groupby(["frame", "c"], observed=True)[f"{key}_words"].nunique().min())
    same = int(min(counts))
    yield Requirement(
        "fillers that differ between items", same == n, f"{same} different fillers for {n} items", 1,
        "give every item fillers of its own",
    )  # fmt: skip
    has = parts.context is not None and table["c"].nunique() == 2
    seen = f"{parts.context[0]}: {parts.context[1]}" if parts.context else "no context with the words uncomposed"
    yield Requirement("list control", has, seen, 1, "add a context that lists both words without composing them")
    both = has and _same_words(table[(table["a"] == 1) & (table["b"] == 1)])
    yield Requirement(
        "both concepts in both contexts", both, "the same words" if both else "other words, or one context", 1,
        "use the same two words in phrase and list",
    )  # fmt: skip


def _same_words(rows: pd.DataFrame) -> bool:
    return all(
        (rows.groupby(["item", "frame"], observed=True)[f"{key}_words"].nunique() == 1).all()
        and (rows[f"{key}_words"] != "").all()
        for key in ("a", "b")
    )


def _places(table: pd.DataFrame, parts: Parts, *, unit: str) -> Iterator[Requirement]:
    cells = table.groupby(["item", "frame", "c"], observed=True)["at"].nunique()
    equal = int((cells == 1).sum())
    yield Requirement(
        "length-matched fillers", equal == len(cells), f"equal {unit} counts in {equal} of {len(cells)} item x frame"
        f"{' x context' if parts.context else ''}", 1, f"use fillers of as many {unit}s as the words",
    )  # fmt: skip
    across = table.groupby(["item", "frame", "a", "b"], observed=True)["at"].nunique()
    same = int((across == 1).sum())
    rest = table["text"].to_numpy()
    ends = table[["a_end", "b_end"]].max(axis=1).to_numpy()
    suffix = table.assign(rest=[str(t)[max(int(e), 0) :] for t, e in zip(rest, ends, strict=True)])
    alike = bool((suffix.groupby(["item", "frame"], observed=True)["rest"].nunique() == 1).all())
    seen = f"{unit} position equal in {same} of {len(across)} cells, suffix {'equal' if alike else 'different'}"
    yield Requirement(
        "same position and suffix in both contexts", same == len(across) and alike, seen, 1,
        "let the same words follow the pair at the same position",
    )  # fmt: skip
    first = table.groupby("frame", observed=True)[["a_start", "b_start"]].mean()
    orders = set((first["a_start"] < first["b_start"]).tolist())
    n = len(first)
    seen = f"{n} frame{'s' if n > 1 else ''}, {'both orders' if len(orders) == 2 else 'one order'}"
    yield Requirement(
        "two frames with different order", len(orders) == 2, seen, 1, "add a frame that names the parts the other way"
    )
