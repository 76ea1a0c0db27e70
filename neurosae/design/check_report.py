"""What `check` found, as tables, and the same as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Any, cast

import pandas as pd

WIDTH = 120
MARK = "!! "
SHOWN_CELLS, SHOWN_NAMES = 4, 3


@dataclass(frozen=True)
class CheckReport:
    """Findings about a design and its stimuli, and about an analysis of them.

    Attributes
    ----------
    name, alpha : name of the design, error rate of the analysis
    cells : one row per cell: factors, `localizer` and `test` (items), `frames`, `stimuli`
    exchange : one row per test and effect: `test effect split kind unit n_units n_relabellings p_min exact h0 vector
        words note`
    words_at : one row per region and effect: `differ seen n`, see `confounds.lexical_table`; `within` whether the
        effect is seen on the same items
    confounds : one row per effect and number, see `confounds.confound_table`
    forms : forms that carry a factor in several items, see `units.shared_forms`
    tokens : token counts by level, see `token_checks.token_table`; None without a tokenizer
    warnings, notes : sentences; warnings belong into every report of results
    interventions : of every test that edits, what is exchanged, how small p can get, what a run costs
    """

    name: str
    alpha: float
    cells: pd.DataFrame
    exchange: pd.DataFrame
    words_at: pd.DataFrame
    confounds: pd.DataFrame
    forms: pd.DataFrame
    tokens: pd.DataFrame | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    interventions: Mapping[str, str] = field(default_factory=dict)

    @property
    def exchangeability(self) -> dict[str, str]:
        """What is exchanged, in words, by `test/effect` (or by effect, when no analysis was given)."""
        rows: list[Any] = list(self.exchange.itertuples())
        return {f"{row.test}/{row.effect}" if row.test else row.effect: exchange_words(row) for row in rows}

    def text(self) -> str:
        """Everything as text, as `neurosae check` prints it."""
        parts = [
            _cell_lines(self),
            _exchange_lines(self.exchange[~self.exchange["test"].isin(list(self.interventions))], self.alpha),
            [wrap(text) for text in self.interventions.values()],
            _word_lines(self.words_at),
            _confound_lines(self.confounds),
            [] if self.tokens is None else _token_lines(self.tokens),
            *([wrap(text, MARK)] for text in self.warnings),
            [wrap(text, "note: ") for text in self.notes],
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)


def wrap(text: str, mark: str = "") -> str:
    """A sentence over several lines, indented after its mark."""
    return textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)


def grid(rows: list[list[str]], n_left: int = 1) -> list[str]:
    """Rows as aligned columns; the first `n_left` to the left, the others to the right.

    Examples
    --------
    >>> grid([["region", "subject"], ["head", "8/8"]])
    ['region  subject', 'head        8/8']
    """
    widths = [max(len(row[k]) for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    lines = ("  ".join(f"{v:{'<' if k < n_left else '>'}{widths[k]}}" for k, v in enumerate(row)) for row in rows)
    return [line.rstrip() for line in lines]


# ------------------------------------------------------------------ cells


def _cell_lines(report: CheckReport) -> list[str]:
    table = report.cells
    rows = [list(table.columns), *([str(value) for value in row] for row in table.itertuples(index=False))]
    n_factors = len(table.columns) - 4
    same = all(table[name].nunique() == 1 for name in ("localizer", "test", "frames"))
    balance = (
        "balanced: every cell has the same items and frames." if same else "NOT balanced: cell means count equally."
    )
    head = f"{report.name}: {int(table['stimuli'].sum())} stimuli in {len(table)} cells, {balance}"
    return [head, *grid(rows, n_factors)]


# ------------------------------------------------------------------ exchangeability


def exchange_words(row: Any) -> str:  # a named tuple of `exchange`
    """What is exchanged, how often, and how small p can get, in one sentence without its full stop."""
    note = f" ({row.note})" if row.note else ""
    reach = f"{_count(row)} relabellings, smallest two-sided p {row.p_min:.2g}"
    return f"{row.words}: {row.n_units} {_units(row)}, {reach}{note}"


def _units(row: Any) -> str:
    return "groups of items" if row.unit == "shared forms" else "items"


def _count(row: Any) -> str:
    n = int(row.n_relabellings)
    power = f"2^{row.n_units}" if row.kind == "flip" else ""
    if n >= 10**12:
        return power or f"about 10^{len(str(n)) - 1}"
    return f"{power} = {n:,}" if power else f"{n:,}"


def reach_words(alpha: float, p_min: float) -> str:
    """What the smallest p can reach: a joint maximum needs p_min <= alpha, a correction by feature p_min <= alpha / m.

    The maximum over features has one null distribution, so its smallest p is p_min whatever the number m of features;
    Holm, or Benjamini and Hochberg's method with a single discovery, multiply the p of each feature by m.

    Examples
    --------
    >>> reach_words(0.05, 2**-23)
    'so max-T can reach .05 over any number of features, Holm or a first fdr_bh discovery over 419,430'
    """
    level = f"{alpha:g}".lstrip("0")
    n = floor(alpha / p_min * (1 + 1e-12))
    if n < 1:
        return f"NOT enough for alpha {level}"
    if p_min <= alpha * 1e-9:
        return f"so every correction can reach {level} over any number of features"
    return f"so max-T can reach {level} over any number of features, Holm or a first fdr_bh discovery over {n:,}"


def _exchange_lines(table: pd.DataFrame, alpha: float) -> list[str]:
    lines: list[str] = []
    for words, same in table.groupby("words", sort=False):
        lines.append(wrap(f"{words}."))
        for _, rows in same.groupby(["split", "n_relabellings", "note"], sort=False):
            row = cast("Any", next(rows.itertuples()))
            counted = f"{row.n_units} {row.split} {_units(row)}: {_count(row)} relabellings"
            lines.append(f"  {counted}; smallest two-sided p {row.p_min:.2g},")
            lines.append(f"  {reach_words(alpha, row.p_min)}.")
            if row.note:
                lines.append(wrap(f"{', '.join(dict.fromkeys(rows['effect']))}: {row.note}.", "  "))
    for row in cast("Any", table.drop_duplicates("effect").itertuples()):
        vector = f"   [{row.vector}]" if row.vector.count(",") < SHOWN_CELLS else ""
        lines.append(wrap(f"{row.effect}: {row.h0}{vector}", "  H0 "))
    return lines


# ------------------------------------------------------------------ words, lengths, tokens


def _word_lines(table: pd.DataFrame) -> list[str]:
    if not len(table) or (not table["within"].any() and (table["differ"] == table["n"]).all()):
        return ["every item has words of its own: differences between words are replicated over items, not matched."]
    effects = list(dict.fromkeys(table["effect"]))
    cells = {(row.region, row.effect): row for row in table.itertuples()}
    rows = [["region", *effects]]
    for region in dict.fromkeys(table["region"]):
        found = [cells[region, effect] for effect in effects]
        rows.append([region, *(f"{row.differ}/{row.n}" for row in found)])
    lines = grid(rows)
    comments = [_region_comment(table[table["region"] == row[0]]) for row in rows[1:]]
    width = max(map(len, lines))
    lines = [lines[0], *(f"{a:{width}}  {b}".rstrip() for a, b in zip(lines[1:], comments, strict=True))]
    inside = bool(table["within"].all())
    what = "differ between the + and - cells of an effect" if inside else "are found on one side of an effect only"
    return [f"items x frames whose words at a region {what}:", *lines]


def _region_comment(rows: pd.DataFrame) -> str:
    """Which effects are free of the region's own words there, and which a causal model cannot show."""
    rows = rows[rows["within"]]
    each: list[Any] = list(rows.itertuples())
    kinds = {
        "free of its words": [row.effect for row in each if row.differ == 0 and row.seen > 0],
        "also the word itself": [row.effect for row in each if row.differ > 0],
        "no text differs so far": [row.effect for row in each if row.seen == 0],
    }
    most = max(kinds, key=lambda kind: len(kinds[kind]))
    parts = []
    for kind, names in sorted(kinds.items(), key=lambda pair: pair[0] == most and len(pair[1]) > SHOWN_NAMES):
        alone = len(names) == len(rows)
        short = ("all effects" if alone else "all others") if kind == most and len(names) > SHOWN_NAMES else None
        parts += [f"{kind}: {short or ', '.join(names)}"] if names else []
    return f"<- {'; '.join(parts)}" if parts else ""


def _confound_lines(table: pd.DataFrame) -> list[str]:
    effects: dict[str, list[str]] = {}
    for effect, rows in table.groupby("effect", sort=False):
        effects.setdefault(_differences(rows), []).append(str(effect))
    lines = [wrap(text, f"  {', '.join(names)}: ") for text, names in effects.items()]
    head = "length, and position of regions in words, + cells minus - cells (differs in how many items x frames):"
    return [head, *lines] if lines else []


def _differences(rows: pd.DataFrame) -> str:
    found = []
    each: list[Any] = list(rows.itertuples())
    for row in each:
        count = f", {row.differ}/{row.n}" if row.within else ""
        found += [f"{row.measure} {row.difference:+.2f} (Spearman {row.rho:.2f}{count})"] if row.differ else []
    same = [row.measure for row in each if not row.differ]
    if not found:
        return "nothing differs"
    if len(same) > SHOWN_NAMES:
        return f"{'; '.join(found)}; nothing else differs"
    return "; ".join([*found, *([f"never differs: {', '.join(same)}"] if same else [])])


def _token_lines(table: pd.DataFrame) -> list[str]:
    each: list[Any] = list(table.itertuples())
    lines = [
        f"  {row.measure} by {row.factor}: {row.means} (Spearman {row.rho:.2f})" for row in each if row.spread > 1e-9
    ]
    same = [m for m, rows in table.groupby("measure", sort=False) if (rows["spread"] <= 1e-9).all()]
    if same:
        lines.append(wrap(f"the same at all levels: {', '.join(map(str, same))}", "  "))
    return ["tokens, mean by level:", *lines]
