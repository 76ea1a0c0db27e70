"""The parts of the page as plain values: text, rows and marked pieces of stimuli; the template only places them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.design.confounds import confound_table, lexical_table, measures
from neurosae.report.stored import Study, compiled_effects, section, tested_stimuli
from neurosae.report.tables import distinct
from neurosae.report.wording import digits

MAX_EXAMPLES = 12
N_COLOURS = 6
QUALITIES = (
    ("l0", "L0", "active features per token"),
    ("fvu", "FVU", "fraction of variance unexplained"),
    ("dead", "dead", "share of features that were never active on the reference text"),
    ("ce_recovered_mean", "CE", "share of the cross-entropy recovered, against mean ablation"),
)


def design_tables(study: Study) -> dict[str, Any]:
    """Factors, the cells with their items per split, and what is exchanged, in words."""
    design, stimuli = study.design, study.stimuli
    factors = [
        {"name": name, "levels": list(f.levels), "varies": f.varies, "values": f.values}
        for name, f in design.factors.items()
    ]
    names = [n for n in design.factors if n in stimuli]
    splits = sorted(distinct(stimuli["split"])) if "split" in stimuli else []
    cells = []
    for levels, rows in stimuli.groupby(names, observed=True, sort=True) if names else []:
        per = [int(rows.loc[rows["split"].astype(str) == s, "item"].nunique()) for s in splits]
        cells.append({"levels": [str(v) for v in levels], "items": per, "stimuli": len(rows)})
    same: dict[str, list[str]] = {}
    for what, words in section(study.provenance, "exchangeability").items():
        same.setdefault(str(words), []).append(str(what))
    exchange = [{"what": ", ".join(names), "words": words} for words, names in same.items()]
    frames = [{"name": n, "text": t if isinstance(t, str) else "; ".join(_nested(t))} for n, t in design.frames.items()]
    return {
        "factors": factors,
        "names": names,
        "splits": splits,
        "cells": cells,
        "exchange": exchange,
        "frames": frames,
        "n_stimuli": len(stimuli),
        "check": str(study.provenance.get("check_text") or ""),
    }


def _nested(value: Mapping[str, Any]) -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from (f"{key} {words}" for words in _nested(inner))
        else:
            yield f"{key}: {inner}"


def confounds(study: Study) -> dict[str, Any]:
    """What else differs between the + and - cells of each effect: words at each region, lengths, positions."""
    effects, regions, stimuli = compiled_effects(study), tuple(shown_regions(study)), tested_stimuli(study)
    if not effects or not len(stimuli):
        return {"effects": [], "words": [], "numbers": []}
    words = lexical_table(study.design, stimuli, effects, regions=regions)
    numbers = confound_table(study.design, stimuli, effects, numbers=measures(stimuli, regions))
    lexical = [
        {"name": region, "cells": [_share(rows[rows["effect"] == e]) for e in effects]}
        for region, rows in words.groupby("region", sort=False)
    ]
    other = [
        {"name": measure, "cells": [_shift(rows[rows["effect"] == e]) for e in effects]}
        for measure, rows in numbers.groupby("measure", sort=False)
    ]
    return {"effects": list(effects), "words": lexical, "numbers": other}


def _share(rows: pd.DataFrame) -> dict[str, Any]:
    if not len(rows):
        return {"text": "–", "differs": False}
    differ, n = int(rows["differ"].iloc[0]), int(rows["n"].iloc[0])
    return {"text": f"{differ:,} of {n:,}", "differs": differ > 0}


def _shift(rows: pd.DataFrame) -> dict[str, Any]:
    if not len(rows):
        return {"text": "–", "differs": False}
    differ, difference = int(rows["differ"].iloc[0]), float(rows["difference"].iloc[0])
    sign = "+" if difference > 0 else ""
    text = f"{sign}{digits(difference)} (ρ = {digits(rows['rho'].iloc[0])})" if differ else "same"
    return {"text": text, "differs": differ > 0}


def shown_regions(study: Study) -> list[str]:
    """The regions that were read, in the order of the text; all regions where the analysis names none."""
    asked = section(study.analysis, "positions").get("regions") or []
    asked = [asked] if isinstance(asked, str) else list(asked)
    used = list(dict.fromkeys([*map(str, asked), *distinct(study.results["region"])]))
    known = [
        c.removesuffix("_start")
        for c in map(str, study.stimuli)
        if c.endswith("_start") and f"{c[:-5]}end" in study.stimuli
    ]
    names = [r for r in known if r in used] or known
    starts = {r: study.stimuli[f"{r}_start"].astype(float).mean() for r in names}
    return sorted(names, key=lambda r: (np.isnan(starts[r]), starts[r]))


def example_stimuli(study: Study) -> dict[str, Any]:
    """Some stimuli, whole items first, with the pieces of their text that belong to regions."""
    regions = shown_regions(study)
    colour = {name: i % N_COLOURS for i, name in enumerate(regions)}
    rows = _examples(study)
    names = [n for n in study.design.factors if n in rows]
    shown = [
        {
            "item": str(row["item"]),
            "frame": str(row.get("frame", "-")),
            "levels": [str(row[n]) for n in names],
            "pieces": marked(row, colour),
            "target": _text(row.get("target")),
            "foil": _text(row.get("foil")),
        }
        for _, row in rows.iterrows()
    ]
    return {
        "rows": shown,
        "names": names,
        "n_all": len(study.stimuli),
        "framed": bool(study.design.frames),
        "targets": any(r["target"] for r in shown),
        "overlap": any(len(p["regions"]) > 1 for r in shown for p in r["pieces"]),
        "regions": [{"name": n, "colour": c} for n, c in colour.items()],
    }


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)


def _examples(study: Study) -> pd.DataFrame:
    stimuli = study.stimuli
    if "split" in stimuli and (stimuli["split"].astype(str) == "test").any():
        stimuli = stimuli[stimuli["split"].astype(str) == "test"]
    if study.design.frames:
        first = stimuli["item"].iloc[0] if len(stimuli) else None
        whole = stimuli[stimuli["item"] == first]
        later = stimuli[stimuli["item"] != first]
        # One stimulus of each further item, each item in the next cell.
        n_cells = max(len(whole), 1)
        number = pd.Series(pd.factorize(later["item"])[0], index=later.index)
        later = later[later.groupby("item").cumcount() == number * 3 % n_cells]
        return pd.concat([whole, later]).head(max(MAX_EXAMPLES, min(len(whole), 16)))
    names = [n for n in study.design.factors if n in stimuli]
    return (
        stimuli.groupby(names, observed=True, sort=True).head(3).head(2 * MAX_EXAMPLES)
        if names
        else stimuli.head(MAX_EXAMPLES)
    )


def marked(row: pd.Series, colour: Mapping[str, int]) -> list[dict[str, Any]]:
    """Cut a text at the borders of its regions; every piece knows its regions, the shortest first.

    Examples
    --------
    >>> row = pd.Series({"text": "The keys are", "head_start": 4, "head_end": 8})
    >>> [(p["text"], p["regions"]) for p in marked(row, {"head": 0})]
    [('The ', []), ('keys', ['head']), (' are', [])]
    """
    text = str(row["text"])
    spans = {}
    for name in colour:
        start, end = row.get(f"{name}_start"), row.get(f"{name}_end")
        if not (pd.isna(start) or pd.isna(end)) and 0 <= int(start) < int(end) <= len(text):
            spans[name] = (int(start), int(end))
    borders = sorted({0, len(text), *(b for span in spans.values() for b in span)})
    pieces = []
    for start, end in itertools.pairwise(borders):
        inside = [n for n, (a, b) in spans.items() if a <= start and end <= b]
        inside.sort(key=lambda n: spans[n][1] - spans[n][0])
        pieces.append({"text": text[start:end], "regions": inside, "colours": [colour[n] for n in inside]})
    return pieces


def flat(record: Mapping[str, Any], *, skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """A nested record as (name, value) lines; long lists are shortened.

    Examples
    --------
    >>> flat({"a": 1, "b": {"c": [1, 2], "d": 0.123456}}, skip=["a"])
    [('b · c', '1, 2'), ('b · d', '0.123')]
    """
    lines: list[tuple[str, str]] = []
    for key, value in record.items():
        if key in skip or value is None or value == {} or value == []:
            continue
        if isinstance(value, Mapping):
            lines += [(f"{key} · {inner}", words) for inner, words in flat(value)]
        elif isinstance(value, list | tuple):
            words = [_value(v) for v in value[:12]]
            lines.append((str(key), ", ".join(words) + (f", … ({len(value)})" if len(value) > 12 else "")))
        else:
            lines.append((str(key), _value(value)))
    return lines


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = digits(value) if isinstance(value, float) else str(value)
    return f"{words[:16]}…" if re.fullmatch(r"[0-9a-f]{32,}", words) else words


def dictionary_cards(study: Study) -> list[dict[str, Any]]:
    """One card per site: what was read here, beside what the dictionary's own card claims."""
    sites = list(dict.fromkeys([*section(study.analysis, "sites"), *section(study.provenance, "dictionaries")]))
    recorded = section(study.provenance, "dictionaries")
    sites = [s for s in sites if s in recorded] or sites
    cards = []
    for site in sites:
        record = section(recorded, site)
        card = section(record, "card")
        asked = section(study.analysis, "sites", site)
        facts = [_quality(record, card, quality) for quality in QUALITIES]
        cards.append(
            {
                "site": site,
                "hook": str(record.get("hook", asked.get("hook", ""))),
                "n": digits(record.get("n_features")),
                "facts": [fact for fact in facts if fact["here"] != "–" or fact["card"] != "–"],
                "lines": flat(record, skip=["hook", "n_features", "l0_here", "fvu_here"]),
            }
        )
    return cards


def _quality(record: Mapping[str, Any], card: Mapping[str, Any], quality: tuple[str, str, str]) -> dict[str, str]:
    key, label, about = quality
    here, there = record.get(f"{key}_here"), card.get(key, card.get(key.upper()))
    shown = {k: digits(v) if isinstance(v, int | float) else "–" for k, v in (("here", here), ("card", there))}
    return {"label": label, "about": about, **shown}


def provenance_lines(study: Study) -> dict[str, Any]:
    """Versions, hashes, settings, times and warnings, as recorded."""
    record = study.provenance
    own = (
        "versions",
        "model",
        "dictionaries",
        "times",
        "warnings",
        "check_text",
        "exchangeability",
        "command",
        "methods",
    )
    return {
        "command": str(record.get("command") or "not recorded"),
        "versions": flat(section(record, "versions")),
        "lines": flat({k: v for k, v in record.items() if k not in own}),
        "times": [(k, f"{digits(v)} s") for k, v in section(record, "times").items()],
        "warnings": [str(w) for w in record.get("warnings") or []],
        "sources": dict(study.sources),
    }
