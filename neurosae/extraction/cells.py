"""Which tokens of which stimuli leave the model: regions in characters -> cells (stimulus, token).

Only these cells are kept in the forward pass and given to a dictionary. What a later alignment needs beyond the
regions (a window around their borders, all tokens for middle-out) is asked for here, so that alignment relabels rows
and never has to go back to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurosae.errors import DataError, unknown
from neurosae.extraction.tokens import (
    Encoded,
    Tokenizer,
    check_lengths,
    encode,
    encode_ids,
    first_token,
    region_tokens,
    replaced_token,
)

WINDOW = "@window"  # label of rows outside the regions that start- and end-locked alignment needs
WHOLE = "all"  # label of the rows of middle-out alignment


@dataclass(frozen=True)
class Wanted:
    """The regions whose tokens leave the model, and how they will be aligned."""

    regions: tuple[str, ...]
    align: str
    window: tuple[int, int] | None
    keep_x: bool
    allow_straddle: bool
    scores: bool = True


@dataclass(frozen=True)
class Cells:
    """The wanted cells of a set of stimuli.

    Attributes
    ----------
    ids : token ids of every stimulus, specials included
    rows : one row per cell, sorted by stimulus, region, token: `row` (number of the stimulus), `region`, `token`,
        `token_index`, `n_tokens`, `stimulus_tokens`
    target : one row per stimulus: `at` (index of the token that predicts the target, -1 for none), ids of `target`
        and `foil` (-1), and the `reason` why they cannot be scored
    regions : labels of the rows, in order
    """

    ids: list[np.ndarray]
    rows: pd.DataFrame
    target: pd.DataFrame
    regions: tuple[str, ...]


def plan_cells(
    stimuli: pd.DataFrame, tokenizer: Tokenizer | None, asked: Wanted, *, n_ctx: int, model: str,
    target_slot: str | None,
) -> Cells:  # fmt: skip
    """Find the wanted tokens of every stimulus.

    Parameters
    ----------
    stimuli : table with `text` and, for each region, `<region>_start` and `<region>_end` (characters); or with `ids`,
        lists of token ids without specials, where start and end count tokens
    tokenizer : None only where the stimuli are ids
    asked : regions and alignment
    n_ctx, model : context length and name of the model, for the refusal of long stimuli
    target_slot : the region that holds the target word, None if nothing is scored

    Raises
    ------
    DataError
        If a region is unknown or holds no token, a token straddles its border, or a text is too long.
    """
    for region in asked.regions:
        if f"{region}_start" not in stimuli:
            known = [c.removesuffix("_start") for c in stimuli.columns if c.endswith("_start")]
            raise DataError("positions.regions: " + unknown("region", region, known))
    if "ids" in stimuli:
        coded = encode_ids(tokenizer, stimuli["ids"].tolist())
    elif tokenizer is None:
        raise DataError(f"{model} has no tokenizer; give token ids in a column `ids` in place of texts.")
    else:
        coded = encode(tokenizer, stimuli["text"].tolist())
    check_lengths(dict(zip(stimuli.index, (len(e.ids) for e in coded), strict=True)), n_ctx, model=model)
    found = [row for i, e in enumerate(coded) for row in _cells_of(stimuli, asked, i, encoded=e, tokenizer=tokenizer)]
    rows = pd.DataFrame(found, columns=["row", "region", "token_index", "n_tokens", "token", "stimulus_tokens"])
    if not len(rows):
        raise DataError(f"no stimulus has any of the regions {', '.join(asked.regions)}; check positions.regions.")
    labels = [*asked.regions, *([WHOLE] if asked.align == "middle_out" else []), WINDOW]
    return Cells(
        ids=[e.ids for e in coded],
        rows=rows,
        target=scored_targets(stimuli, tokenizer, coded, slot=target_slot),
        regions=tuple(label for label in labels if (rows["region"] == label).any()),
    )


def cut_ids(cells: Cells, *, is_causal: bool, is_scored: bool) -> list[np.ndarray]:
    """The ids of every stimulus up to the last token that is wanted or scored, if later tokens cannot matter.

    Parameters
    ----------
    is_causal : whether later tokens leave earlier vectors alone; if not, nothing is cut
    is_scored : whether the token that predicts the target is needed too
    """
    if not is_causal:
        return cells.ids
    last = cells.rows.groupby("row")["token_index"].max().reindex(range(len(cells.ids)), fill_value=0).to_numpy()
    if is_scored:
        last = np.maximum(last, cells.target["at"].to_numpy())
    return [ids[: stop + 1] for ids, stop in zip(cells.ids, last.tolist(), strict=True)]


def _cells_of(
    stimuli: pd.DataFrame, asked: Wanted, row: int, *, encoded: Encoded, tokenizer: Tokenizer | None
) -> list[tuple[int, str, int, int, str, int]]:
    n_before, n_after = (len(tokenizer.prefix), len(tokenizer.suffix)) if tokenizer else (0, 0)
    first, stop = n_before, len(encoded.ids) - n_after
    wanted: list[tuple[str, np.ndarray]] = []
    window: set[int] = set()
    for region in asked.regions:
        start, end = stimuli[f"{region}_start"].iloc[row], stimuli[f"{region}_end"].iloc[row]
        if pd.isna(start):
            continue
        where = f"stimulus '{stimuli.index[row]}', region '{region}'"
        tokens = region_tokens(encoded, (int(start), int(end)), where=where, allow_straddle=asked.allow_straddle)
        wanted.append((region, tokens))
        if asked.align in {"start", "end"}:
            window |= _window(tokens[[0, -1]], asked.window) - set(tokens.tolist())
        elif asked.align in {"xcorr", "reference", "dtw"}:  # locked to the last token
            window |= _window(tokens[[-1]], asked.window) - set(tokens.tolist())
    if asked.align == "middle_out":
        wanted.append((WHOLE, np.arange(first, stop)))
    if window := {t for t in window if first <= t < stop}:
        wanted.append((WINDOW, np.array(sorted(window))))
    n = stop - first
    return [(row, name, int(t), len(tokens), encoded.pieces[t], n) for name, tokens in wanted for t in tokens]


def _window(borders: np.ndarray, window: Sequence[int] | None) -> set[int]:
    low, high = window or (0, 0)
    return {int(edge) + k for edge in borders for k in range(low, high + 1)}


def scored_targets(
    stimuli: pd.DataFrame, tokenizer: Tokenizer | None, coded: Sequence[Encoded], *, slot: str | None
) -> pd.DataFrame:
    """Where the target of every stimulus is predicted, and which ids are scored: the table `target` of `Cells`."""
    none = {"at": -1, "target": -1, "foil": -1, "reason": "the design has no target"}
    if tokenizer is None or "ids" in stimuli:
        return pd.DataFrame([none | {"reason": "the stimuli are token ids"}] * len(stimuli))
    if slot is None or not {"target", "foil", f"{slot}_start"} <= set(stimuli.columns):
        return pd.DataFrame([none] * len(stimuli))
    out = []
    for i, encoded in enumerate(coded):
        line = stimuli.iloc[i]
        if pd.isna(line["target"]) or pd.isna(line["foil"]) or pd.isna(line[f"{slot}_start"]):
            out.append(none | {"reason": "this stimulus has no target"})
            continue
        span = int(line[f"{slot}_start"]), int(line[f"{slot}_end"])
        out.append(_target_of(line["text"], tokenizer, encoded, span=span, words=(line["target"], line["foil"])))
    return pd.DataFrame(out)


def _target_of(
    text: str, tokenizer: Tokenizer, encoded: Encoded, *, span: tuple[int, int], words: tuple[str, str]
) -> dict[str, int | str]:
    ids, reasons = [], []
    for word in words:
        found, reason = replaced_token(tokenizer, text, span, word=word.strip())
        ids.append(-1 if found is None else found)
        reasons.append(reason)
    at = first_token(encoded, span[0]) - 1
    if at < 0:
        reasons.append("nothing comes before the target, and there is no BOS")
    reason = "; ".join(r for r in reasons if r)
    return {"at": -1 if reason else at, "target": ids[0], "foil": ids[1], "reason": reason}
