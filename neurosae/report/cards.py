"""What the features are: a card for every examined feature, from the tables in the study's folder alone.

Tokens are shaded by activation, whatever a text holds is shown as text, and signs that would change how a line is read
(controls, direction marks) are written out.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.examine.summary import driven_by
from neurosae.examine.summary import readable as shown
from neurosae.report.figures_cards import PANELS, ROWS, SOURCES, feature_card, label_deciles, tuning_levels
from neurosae.report.parts import Drawing
from neurosae.report.stored import Study, section
from neurosae.report.wording import digits, listed, slug

FOLDER = "examine"
SHADES = 9
CARDS = 20  # of a report whose analysis says nothing else
KINDS = (
    ("top", "Strongest", True),
    ("level", "Strongest of every level", True),
    ("quantile", "At quantiles of the active values", False),
    ("random", "Random active tokens", False),
)
"""Kinds of examples: key, heading, whether they are open at first."""
DRAWN = ("distributions", "pooled", "levels", "labels")
DECILES = (
    "Mean score of the judge, who does not see activations, on examples that the label was not made from, by tenth of "
    "the active range; beside it silent tokens, and the label of another feature on the same examples. Small numbers: "
    "how many examples. A label that does not rise, or does not beat the other one, says nothing of this feature."
)
CAVEATS = (
    "What is shown here describes; nothing in this section is tested, and a feature is not what its strongest examples "
    "share. A rule is the best of many that were tried, scored on texts that it was not made from; its p holds over "
    "all of them, in this text. Promoted tokens are those of the direct path to the logits alone.",
)


def examined(study: Study) -> Mapping[str, pd.DataFrame]:
    """The tables that `neurosae examine` left; none where it was never run."""
    folder = Path(study.folder) / FOLDER
    names = _record(folder).get("tables", [])
    paths = {str(name): folder / f"{name}.parquet" for name in names}
    return {name: pd.read_parquet(path) for name, path in paths.items() if path.is_file()}


def _record(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


ON_CARDS = ("card", "tuning", "deciles")
"""Figures that stand on a card, and nowhere else on the page."""


def draw_cards(study: Study) -> Iterator[Drawing]:
    """What each examined feature with a card does: distribution and cells, levels of factors, scores of its label."""
    tables = examined(study)
    if "features" not in tables:
        return
    for _, row in carded(study, tables["features"]).iterrows():
        site, feature = str(row["site"]), int(row["feature"])
        mine = {name: _of(tables, name, site=site, feature=feature) for name in DRAWN}
        name = f"{slug(site)}-{feature}"
        caption = (
            "Left: activations of the active tokens, each source scaled to itself. Right: a point per text of the "
            "study, its largest activation; the bar is the mean over all texts of the cell, the number the share of "
            "texts where the feature is active at all."
        )
        figure = feature_card(mine["distributions"], mine["pooled"])
        yield Drawing(f"{name}-card", "card", "", f"How {site}/{feature} fires", caption, figure, wide=True)
        if len(mine["levels"]):
            title = f"Tuning of {site}/{feature}"
            yield Drawing(f"{name}-tuning", "tuning", "", title, _tuning_words(mine["levels"]),
                          tuning_levels(mine["levels"]), wide=True)  # fmt: skip
        for _, label in mine["labels"].iterrows():
            if "deciles_n" in label and np.isfinite(np.asarray(label["deciles"], dtype=float)).any():
                title = f"Does the label of {site}/{feature} fit?"
                yield Drawing(f"{name}-deciles", "deciles", "", title, DECILES, label_deciles(label))


def _tuning_words(levels: pd.DataFrame) -> str:
    """The caption of the figure of levels: what a point is, and what is left out."""
    sizes = levels.groupby("factor", sort=False).size()
    left = []
    if len(sizes) > PANELS:
        left.append(f"{len(sizes) - PANELS} further factors")
    left += [f"{n - ROWS} levels of {factor}" for factor, n in sizes.iloc[:PANELS].items() if n > ROWS]
    words = (
        "Largest activation of a text, averaged inside items and then over items, at every level of every factor, with "
        "95 % intervals from draws of whole items; below, the share of texts where the feature is active, and the "
        "number of items. The intervals are of each level alone and describe; they are no test of a difference."
    )
    return words + (f" Not drawn: {listed(left)}; they are in examine/levels.csv." if left else "")


def carded(study: Study, features: pd.DataFrame) -> pd.DataFrame:
    """The features that have a card: the first of every site in turn, in the order of the table."""
    most = section(study.analysis, "report").get("cards", CARDS)
    turn = features.groupby("site", sort=False).cumcount()
    return features.loc[turn.sort_values(kind="stable").index[: int(most)].sort_values()]


def feature_cards(study: Study, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything of the section as plain values; empty where nothing was examined."""
    tables = examined(study)
    if "features" not in tables:
        return {}
    drawn = {figure["name"]: figure for figure in figures if figure["kind"] in ON_CARDS}
    features = tables["features"]
    cards = [_card(tables, row, drawn) for _, row in carded(study, features).iterrows()]
    record = _record(Path(study.folder) / FOLDER)
    chosen = str(record.get("chosen_by") or "")
    notes = list(CAVEATS)
    if len(cards) < len(features):
        notes.append(
            f"{len(features) - len(cards):,} of {len(features):,} examined features have no card here (report.cards: "
            f"{len(cards)}, the first of every site in turn); the tables in examine/ and the viewer hold them all."
        )
    if chosen and chosen != "named":
        notes.append(
            f"The features were chosen by {chosen}: that they differ between conditions in the same texts restates the "
            "choice and is no further evidence."
        )
    return {
        "cards": cards,
        "chosen": chosen,
        "notes": notes,
        "sources": [f"{digits(int(n))} of {SOURCES.get(name, name)}" for name, n in section(record, "sources").items()],
        "warning": str(section(study.analysis, "report").get("content_warning") or ""),
    }


def _of(tables: Mapping[str, pd.DataFrame], name: str, *, site: str, feature: int) -> pd.DataFrame:
    table = tables.get(name)
    if table is None:
        return pd.DataFrame(columns=["site", "feature", "source", "factor"])
    return table[table["site"].eq(site) & table["feature"].eq(feature)]


def _card(tables: Mapping[str, pd.DataFrame], row: pd.Series, drawn: Mapping[str, Any]) -> dict[str, Any]:
    site, feature = str(row["site"]), int(row["feature"])

    @cache
    def mine(name: str) -> pd.DataFrame:
        return _of(tables, name, site=site, feature=feature)

    tokens = mine("tokens")
    sides = {side: _tokens(tokens, side) for side in ("promoted", "suppressed")} if "side" in tokens else {}
    return {
        "id": f"feature-{slug(site)}-{feature}",
        "name": f"{site}/{feature}",
        "label": _text(row.get("label")),
        "label_source": _text(row.get("label_source")),
        "link": _link(row.get("link")),
        "facts": _facts(row, mine("distributions"), mine("labels")),
        "tokens": sides,
        "shape": _shape(tokens),
        "no_tokens": _text(tokens["note"].iloc[0]) if "note" in tokens and len(tokens) else "",
        "neighbours": [
            {"name": f"{site}/{int(r['neighbour'])}", "cosine": digits(r["cosine"])}
            for _, r in mine("neighbours").iterrows()
        ],
        "rules": _rules(mine("rules")),
        "counterparts": _counterparts(mine("counterparts")),
        "inversions": [
            {"text": shown(str(r["text"])), "words": shown(driven_by(r)), "rule": _text(r["rule"])}
            for _, r in mine("inversions").iterrows()
        ],
        "examples": list(_examples(mine("examples"), mine("distributions"))),
        "figures": [drawn[name] for kind in ON_CARDS if (name := f"{slug(site)}-{feature}-{kind}") in drawn],
    }


def _text(value: Any) -> str:
    return "" if value is None or (np.isscalar(value) and pd.isna(value)) else shown(str(value))


def _link(value: Any) -> str:
    """A link only where it leads to a page over https."""
    text = "" if value is None or pd.isna(value) else str(value)
    return text if re.fullmatch(r"https://[\w.\-]+/[\w.\-~%/]*", text) else ""


def _facts(row: pd.Series, spread: pd.DataFrame, labels: pd.DataFrame) -> list[tuple[str, str]]:
    lines = []
    if _text(row.get("direction")):
        lines.append(("direction", _text(row.get("direction"))))
    if _text(row.get("half")):
        lines.append(("half", f"the {_text(row.get('half'))} part of a signed value"))
    for _, r in spread[spread["factor"].isna()].iterrows():
        where = SOURCES.get(str(r["source"]), str(r["source"]))
        words = f"{digits(100 * r['density'])} % of {digits(int(r['n_tokens']))} tokens"
        if r["n_active"]:
            words += f"; median {digits(r['p50'])}, 99 % below {digits(r['p99'])}, largest {digits(r['largest'])}"
        lines.append((f"active in {where}", words))
    for _, r in labels.iterrows():
        lines += _label_facts(r)
    return lines


def _label_facts(r: pd.Series) -> list[tuple[str, str]]:
    """How well a proposed label fits examples, beside what shows that it means anything."""
    if pd.isna(r.get("auroc")):
        status = r.get("judge_status") if r.get("status") == "ok" else r.get("status")
        return [("its label", f"not scored: {_text(status) or 'no judge'}")]
    words = (
        f"AUROC {digits(r['auroc'])}: {int(r['n_active'])} active against {int(r['n_silent'])} silent examples; mean "
        f"score {digits(r['mean_active'])} against {digits(r['mean_silent'])} of 3"
    )
    if pd.notna(r.get("mean_other")):
        words += f"; the label of another feature gets {digits(r['mean_other'])} on the active ones"
    if pd.notna(r.get("rho")):
        words += f"; Spearman with activation {digits(r['rho'])}"
    return [("its label, judged", words)]


def _tokens(table: pd.DataFrame, side: str) -> list[dict[str, str]]:
    return [
        {"text": shown(str(r["token"])), "weight": digits(r["weight"])}
        for _, r in table[table["side"].eq(side)].iterrows()
    ]


def _shape(table: pd.DataFrame) -> str:
    if "kurtosis" not in table or not len(table) or pd.isna(table["kurtosis"].iloc[0]):
        return ""
    skew, kurtosis = table["skewness"].iloc[0], table["kurtosis"].iloc[0]
    return f"over the vocabulary: skewness {digits(skew)}, excess kurtosis {digits(kurtosis)}"


def _rules(table: pd.DataFrame) -> list[dict[str, str]]:
    """The best rule of every source, and one that was not enough."""
    made = []
    for source, rows in table.groupby("source", sort=False):
        best, where = rows.iloc[0], SOURCES.get(str(source), str(source))
        if pd.isna(best["auroc"]):
            made.append({"rule": "", "words": f"{where}: {_text(best['note'])}"})
            continue
        hard = "" if pd.isna(best["auroc_hard"]) else f", {digits(best['auroc_hard'])} among tokens it fires on"
        words = (
            f"{where}: AUROC {digits(best['auroc'])} on held-out texts{hard}; p {digits(best['p_corr'])} over "
            f"{len(rows)} rules, {int(best['n_units'])} {'items' if source == 'study' else 'texts'}"
        )
        made.append({"rule": shown(str(best["rule"])), "words": words})
    return made


def _counterparts(table: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each; where there is none, the site and why."""
    return [
        {"name": f"{r['other']}/{int(r['counterpart'])}", "cosine": digits(r["cosine"]),
         "correlation": digits(r["correlation"]), "edge": digits(r["edge"])}
        if pd.notna(r["counterpart"])
        else {"name": f"{r['other']}: {_text(r['note'])}", "cosine": "–", "correlation": "–", "edge": "–"}
        for _, r in table.iterrows()
    ]  # fmt: skip


def _examples(table: pd.DataFrame, spread: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Groups of examples in the order of `KINDS`, the study's before those of other text."""
    largest = spread.loc[spread["factor"].isna(), "largest"].max() if len(spread) else np.nan
    several = table["source"].nunique() > 1 if len(table) else False
    for source, rows in table.groupby("source", sort=False) if len(table) else ():
        for kind, title, opened in KINDS:
            here = rows[rows["kind"].eq(kind)]
            if len(here):
                where = f", {SOURCES.get(str(source), str(source))}" if several else ""
                lines = [_example(row, largest) for _, row in here.iterrows()]
                yield {"title": title + where, "open": opened, "lines": lines}


def _example(row: pd.Series, largest: float) -> dict[str, Any]:
    values, at = np.asarray(row["values"], dtype=float), int(row["at"])
    shade = (
        np.ceil(SHADES * values / largest).clip(0, SHADES).astype(int) if largest > 0 else np.zeros(len(values), int)
    )
    pieces = [
        {"text": shown(str(piece)), "shade": int(s), "value": digits(v) if v else "0", "here": i == at}
        for i, (piece, s, v) in enumerate(zip(row["pieces"], shade, values, strict=True))
    ]
    same = f"{int(row['n_same'])} texts begin alike" if row["n_same"] > 1 else ""
    if row["kind"] == "level":
        note = f"{row['factor']}: {row['level']}"
    else:
        note = f"quantile {digits(row['quantile'], 2)}" if row["kind"] == "quantile" else ""
    words = "; ".join(word for word in (shown(note), same) if word)
    return {"value": digits(row["value"]), "pieces": pieces, "cite": shown(str(row["name"])), "note": words}
