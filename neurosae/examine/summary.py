"""What `neurosae examine` prints: a few lines per feature, from the tables that it also writes."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

WORDS = {"study": "the study's texts", "text": "other text"}
"""What sources are called."""
SHOWN = 3  # examples
PROMOTED = 6  # tokens
ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Signs that change how a line is read, or what a terminal does."""


def summarize_examined(tables: Mapping[str, pd.DataFrame]) -> str:
    """A few lines per feature: how often it fires, its best rule, what it promotes and is driven by, strong examples.

    Parameters
    ----------
    tables : of `examine_study`
    """
    blocks = ["\n".join(_lines(tables, row)) for _, row in tables["features"].iterrows()]
    return "\n\n".join(blocks)


def readable(text: str) -> str:
    r"""Text as it may stand in one line: line breaks and tabs as signs, controls and direction marks written out.

    Examples
    --------
    >>> readable("a\n\u202eb\x1b[31m")
    'a⏎‹202e›b‹1b›[31m'
    """
    return ODD.sub(lambda found: f"‹{ord(found[0]):x}›", text.replace("\n", "⏎").replace("\t", "⇥"))


def marked(row: Any) -> str:
    """The text of an example with its token marked.

    Examples
    --------
    >>> marked({"pieces": ["a", " red", " box"], "at": 1})
    'a «red» box'
    """
    pieces, at = list(row["pieces"]), int(row["at"])
    blank = pieces[at][: len(pieces[at]) - len(pieces[at].lstrip())]
    return "".join([*pieces[:at], f"{blank}«{pieces[at][len(blank) :]}»", *pieces[at + 1 :]])


def driven_by(row: Any) -> str:
    """What a found string does, and what it is worth: z, surprisal beside that of examples, verdict.

    Examples
    --------
    >>> driven_by({"z": 9.0, "surprisal": 14.2, "surprisal_examples": 6.0, "n_examples": 5, "typed": True,
    ...            "verdict": "does not count: its rule does not predict it"})
    'z 9; 14.2 bits per token, strong examples 6 (median of 5); does not count: its rule does not predict it'
    """
    parts = [f"z {row['z']:.3g}"]
    if pd.notna(row["surprisal"]):
        parts.append(f"{row['surprisal']:.3g} bits per token")
        if row["n_examples"]:
            parts[-1] += f", strong examples {row['surprisal_examples']:.3g} (median of {int(row['n_examples'])})"
    else:
        parts.append("surprisal unknown")
    if not row["typed"]:
        parts.append("other tokens when it is typed")
    return "; ".join([*parts, str(row["verdict"])])


def known(tables: Mapping[str, pd.DataFrame], site: str, feature: int) -> list[str]:
    """What the tables say of a feature, a line each: firing, rules, tokens, found strings, counterparts.

    Parameters
    ----------
    tables : of `examine_study`; those that are absent say nothing
    site, feature : which feature
    """

    def mine(name: str) -> pd.DataFrame:
        return _of(tables, name, site=site, feature=feature)

    lines = [*_firing(mine("distributions")), *_rules(mine("rules")), *_tokens(mine("tokens"))]
    for _, found in mine("inversions").iterrows():
        lines.append(f"driven by «{found['text']}»: {driven_by(found)}")
    return [readable(line) for line in [*lines, *_counterparts(mine("counterparts"))]]


def _of(tables: Mapping[str, pd.DataFrame], name: str, *, site: str, feature: int) -> pd.DataFrame:
    table = tables.get(name, pd.DataFrame(columns=["site", "feature"]))
    return table[table["site"].eq(site) & table["feature"].eq(feature)]


def _lines(tables: Mapping[str, pd.DataFrame], row: pd.Series) -> Iterator[str]:
    site, feature = str(row["site"]), int(row["feature"])
    label = "no label" if pd.isna(row["label"]) else readable(f"{row['label']} ({row['label_source']})")
    yield f"{site}/{feature}  {label}"
    yield from (f"  {line}" for line in known(tables, site, feature))
    yield from _examples(_of(tables, "examples", site=site, feature=feature))


def _firing(spread: pd.DataFrame) -> Iterator[str]:
    for _, row in spread[spread["factor"].isna()].iterrows() if len(spread) else ():
        size = f", largest {row['largest']:.3g}" if row["n_active"] else ""
        yield f"active on {100 * row['density']:.3g} % of {row['n_tokens']:,} tokens of {_where(row['source'])}{size}"


def _rules(table: pd.DataFrame) -> Iterator[str]:
    for _, rule in table.groupby("source", sort=False).head(1).iterrows() if len(table) else ():
        if pd.isna(rule["auroc"]):
            text = f"no rule: {str(rule['note']).rstrip('.')}"
        else:
            n = int(table["source"].eq(rule["source"]).sum())
            score = f"AUROC {rule['auroc']:.2f} held out, p {rule['p_corr']:.2g} over {n} rules"
            text = f"best rule: {rule['rule']} ({score})"
        yield f"{text}; {_where(rule['source'])}"


def _tokens(table: pd.DataFrame) -> Iterator[str]:
    if "side" not in table or not table["side"].notna().any():
        yield from (f"promotes: {note}" for note in table.get("note", pd.Series(dtype=object)).dropna().head(1))
        return
    for side, verb in (("promoted", "promotes"), ("suppressed", "suppresses")):
        names = table.loc[table["side"].eq(side), "token"].head(PROMOTED)
        yield f"{verb} " + " ".join(f"«{name}»" for name in names)


def _counterparts(table: pd.DataFrame) -> Iterator[str]:
    """One line per site and measure: the features that lead by it, with its value."""
    for other, rows in table.groupby("other", sort=False) if len(table) else ():
        known = rows[rows["counterpart"].notna()] if "counterpart" in rows else rows[:0]
        for by, best in known.groupby("by", sort=False):
            names = ", ".join(f"{other}/{int(r['counterpart'])} ({r[by]:.2f})" for _, r in best.iterrows())
            yield f"counterparts by {by}: {names}"
        if not len(known):
            yield f"at {other}: {rows['note'].iloc[0]}"


def _examples(table: pd.DataFrame) -> Iterator[str]:
    if not len(table):
        return
    several = table["source"].nunique() > 1
    for source, rows in table[table["kind"].eq("top")].groupby("source", sort=False):
        if several:
            yield f"  strongest in {_where(source)}:"
        for _, row in rows.head(SHOWN).iterrows():
            yield f"  {row['value']:7.3g}  {readable(marked(row))}   [{readable(str(row['name']))}]"


def _where(source: Any) -> str:
    return WORDS.get(str(source), str(source))
