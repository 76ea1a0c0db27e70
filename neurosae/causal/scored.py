"""What attribution reads of every stimulus: its tokens, where target and foil are scored, and the tokens of regions.

Everything is cut after the token that predicts the target, because later tokens cannot change its logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.expand import expand
from neurosae.errors import DataError, ModelError
from neurosae.extraction.cells import Wanted, plan_cells
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.responses import build_responses
from neurosae.extraction.store import CELL_NUMBERS, NUMBERS, join_stimuli
from neurosae.extraction.tokens import agreed_bos
from neurosae.spec.design import Design

TARGET, FIRST, WHOLE = "target", "first", "all"
"""Places that every stimulus has: the token that predicts the target, the first token (BOS), all tokens up to it."""


class Scored(NamedTuple):
    """Stimuli as a model reads them.

    Attributes
    ----------
    model : with the rule about BOS that its dictionaries want
    design : the design behind the stimuli, None where unknown
    ids : token ids of every stimulus, specials included, cut after `at` where there is one
    at : int (n,), token whose logits are scored; -1 where nothing is
    answers : int (n, 2), ids of target and foil
    cells : {region: token indices of every stimulus}, empty where a stimulus lacks the region
    pieces : text of the last token of every region of every stimulus
    """

    model: LanguageModel
    design: Design | None
    ids: list[np.ndarray]
    at: np.ndarray
    answers: np.ndarray
    cells: dict[str, list[np.ndarray]]
    pieces: dict[str, list[str]]


def design_of_stimuli(stimuli: pd.DataFrame) -> Design | None:
    """The design that `expand` left in the table."""
    return Design.from_json(stimuli.attrs["design"]) if "design" in stimuli.attrs else None


def example_stimuli() -> pd.DataFrame:
    """Four short texts with a target and a foil of one byte each, for examples.

    Examples
    --------
    >>> example_stimuli()[["text", "target", "foil"]].values.tolist()[:2]
    [['A key s', ' s', ' r'], ['A keys r', ' r', ' s']]
    """
    items = {word: {"noun": {"sg": word, "pl": f"{word}s"}, "verb": {"sg": "s", "pl": "r"}} for word in ("key", "cup")}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "example", "factors": {"number": ["sg", "pl"]},
        "frames": {"f": "A {noun:number} {verb:number}"}, "target": {"slot": "verb", "foil": "other_level"},
        "items": items,
    })  # fmt: skip
    return expand(design)


def score_stimuli(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    *,
    dictionaries: Mapping[str, Any] | None = None,
    regions: Sequence[str] = (),
    targets: bool = True,
) -> Scored:
    """Tokens, places and answers of every stimulus.

    Parameters
    ----------
    stimuli : from `expand`, or a table like it
    dictionaries : they decide about BOS
    regions : regions of the stimuli, or `target`, `first`, `all`
    targets : whether target and foil are needed

    Raises
    ------
    DataError
        If a stimulus cannot be scored, or a region comes after the token that predicts the target.
    ModelError
        If the model predicts nothing.
    """
    model = replace(model, tokens=agreed_bos(model.tokens, dictionaries or {}))
    design = design_of_stimuli(stimuli)
    if targets and not (model.is_causal and model.has_head):
        raise ModelError(f"{model.name} predicts no next token, so target and foil have no logits; use a causal model.")
    slot = design.target.slot if targets and design is not None and design.target is not None else None
    named = tuple(dict.fromkeys(region for region in regions if region not in (TARGET, FIRST, WHOLE)))
    # middle_out asks for every token of the text but the specials
    asked = Wanted(named, "middle_out", None, False, False, targets)
    cells = plan_cells(stimuli, model.tokens, asked, n_ctx=model.n_ctx, model=model.name, target_slot=slot)
    at = cells.target["at"].to_numpy(dtype=np.int64)
    if targets and (at < 0).any():
        line = int(np.flatnonzero(at < 0)[0])
        raise DataError(
            f"stimulus '{stimuli.index[line]}' cannot be scored: {cells.target['reason'].iloc[line]}; give the design "
            "a target slot whose forms are single tokens."
        )
    ids = [row[: stop + 1] if targets else row for row, stop in zip(cells.ids, at, strict=True)]
    places, pieces = _places(cells, at, (*named, *(r for r in regions if r not in named)), cut=targets)
    answers = cells.target[["target", "foil"]].to_numpy(dtype=np.int64)
    return Scored(model, design, ids, at, answers, places, pieces)


def _places(
    cells: Any, at: np.ndarray, regions: Sequence[str], *, cut: bool
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[str]]]:
    """Token indices, and the text of the last token, of every region and stimulus."""
    n, places, pieces = len(cells.ids), {}, {}
    by = {key: part for key, part in cells.rows.groupby(["row", "region"], sort=False, observed=True)}
    text = {
        (row, token): piece for row, token, piece in cells.rows[["row", "token_index", "token"]].itertuples(index=False)
    }
    for region in regions:
        rows: list[np.ndarray] = []
        for i in range(n):
            if region == FIRST:
                rows.append(np.zeros(1, dtype=np.int64))
            elif region == TARGET:
                rows.append(at[i : i + 1])
            else:
                part = by.get((i, region))
                found = np.zeros(0, np.int64) if part is None else np.sort(part["token_index"].to_numpy(dtype=np.int64))
                rows.append(found[found <= at[i]] if region == WHOLE and cut else found)
        late = [i for i in range(n) if cut and len(rows[i]) and rows[i].max() > at[i]]
        if late:
            raise DataError(
                f"region '{region}' comes after the token that predicts the target, in {len(late)} of {n} stimuli: it "
                "cannot change the logits of target and foil; name a region before the target."
            )
        places[region] = rows
        pieces[region] = [text.get((i, int(r[-1])), "") if len(r) else "" for i, r in enumerate(rows)]
    return places, pieces


def as_responses(
    stimuli: pd.DataFrame,
    scored: Scored,
    values: Mapping[str, Any],
    *,
    var: pd.DataFrame,
    logit_diff: np.ndarray | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Any:
    """One row per stimulus and region that it has, as responses of a site, so that every test can read them.

    Parameters
    ----------
    values : {region: array or CSR (n_stimuli, n_features)}
    var : index `site/feature`, with whatever describes the features
    logit_diff : (n_stimuli,)
    """
    parts = [_cells(scored, region, logit_diff) for region in values]
    cells = pd.concat(parts, ignore_index=True)
    cells["region"] = pd.Categorical(cells["region"], categories=list(values))
    for name in (*CELL_NUMBERS[1:], *NUMBERS):
        if name not in cells:
            cells[name] = np.full(len(cells), np.nan, dtype=np.float32)
    table = var.copy()
    table["feature"] = np.arange(len(table), dtype=np.int32) if "feature" not in table else table["feature"]
    for name in ("decoder_norm", "threshold", "density", "origin"):
        if name not in table:
            table[name] = np.full(len(table), np.nan, dtype=np.float32)
    rows = [
        sp.csr_matrix(value, dtype=np.float32)[part["row"]] for part, value in zip(parts, values.values(), strict=True)
    ]
    obs = join_stimuli(cells, stimuli)
    obs["position"] = np.int32(0)
    record = {"model": dict(scored.model.provenance), **(provenance or {})}
    X = sp.csr_matrix(sp.vstack(rows, format="csr"))
    return build_responses(X, obs, table, design=scored.design, provenance=record)


def _cells(scored: Scored, region: str, logit_diff: np.ndarray | None) -> pd.DataFrame:
    """Stimuli that have a region, with its last token."""
    places = scored.cells[region]
    has = np.flatnonzero([len(row) > 0 for row in places])
    cells = pd.DataFrame({"row": has, "region": region})
    cells["token_index"] = np.array([places[i][-1] for i in has], dtype=np.int32)
    cells["token"] = np.array([scored.pieces[region][i] for i in has], dtype=object)
    cells["n_tokens"] = np.array([len(places[i]) for i in has], dtype=np.int32)
    cells["stimulus_tokens"] = np.array([len(scored.ids[i]) for i in has], dtype=np.int32)
    if logit_diff is not None:
        cells["logit_diff"] = np.asarray(logit_diff, dtype=np.float32)[has]
    return cells
