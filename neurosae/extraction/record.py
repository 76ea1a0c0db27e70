"""The record of an extraction: self-tests on its own stimuli, how they were packed, what is missing and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from neurosae.extraction.cells import Wanted
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.selftest import batch_invariance, packed_and_alone
from neurosae.extraction.shard import Work
from neurosae.extraction.store import EXTRACTION_VERSION
from neurosae.spec.files import content_hash

LEFT_OUT = "positions.scores is false"


def site_records(
    work: Work, *, asked: Wanted, key: Mapping[str, Any], packing: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The provenance of every site; the self-test of batches runs here.

    Parameters
    ----------
    work : what is about to be extracted
    asked : regions and alignment
    key : of the responses
    packing : from `choose_packing`
    """
    model, dictionaries = work.model, work.dictionaries
    sample = _sample(work)
    hooks = list(dict.fromkeys(d.hook for d in dictionaries.values()))
    switched = {} if model.dtype == "float32" else _switched(work, sample)
    missing = _missing(work)
    common = {
        "model": {**model.provenance, "bos": model.tokens.words if model.tokens else None},
        "batch_invariance": batch_invariance(model, sample[:1] if work.batch_tokens == 1 else sample, hooks),
        "batch_tokens": work.batch_tokens,
        "packing": dict(packing),
        "positions": asdict(asked),
        "first_token": model.tokens.first if model.tokens else 0,
        "extraction_version": EXTRACTION_VERSION,
        "responses_hash": content_hash(dict(key)),
        "n_stimuli": len(work.cells.ids),
        **missing,
    }
    warned = _warnings(model, missing, packing, n_stimuli=len(work.cells.ids)) + _unknown_words(work)
    return {
        site: common
        | {"warnings": warned + [_precision_words(model, site, s) for s in [switched.get(site)] if s]}
        | {"site": site, "hook": d.hook, "hook_canonical": model.hooks.get(d.hook, d.hook)}
        | {"ln_scale": work.scales[d.hook] or "nothing normalises after this hook point"}
        | switched.get(site, {})
        | {"dictionary": {"hash": str(d.hash), "n_features": d.n_features, "metadata": dict(d.metadata)}}
        for site, d in dictionaries.items()
    }


def _sample(work: Work) -> list[np.ndarray]:
    """Up to 8 stimuli of different length, the shortest and the longest among them."""
    first = work.model.tokens.first if work.model.tokens else 0
    by_length = {len(ids): ids for ids in work.cells.ids if len(ids) > first}
    lengths = sorted(by_length)
    chosen = sorted({lengths[round(i)] for i in np.linspace(0, len(lengths) - 1, min(8, len(lengths)))})
    return [by_length[n] for n in chosen]


def _switched(work: Work, sample: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Shares of active (token, feature) cells that reduced precision switches on or off.

    `batch_switched` compares a padded batch with single texts, `precision_switched` single texts with float32.
    """
    hooks = list(dict.fromkeys(d.hook for d in work.dictionaries.values()))
    batch, single = packed_and_alone(work.model, sample, hooks, packing="buckets")
    full = packed_and_alone(replace(work.model, dtype="float32"), sample, hooks, packing="buckets")[1]
    out = {}
    for site, dictionary in work.dictionaries.items():
        place = dictionary.W_dec.device
        codes = [abs(dictionary.encode(v[dictionary.hook].to(place))) > 0 for v in (batch, single, full)]
        shares = [float((a != codes[1]).sum() / max(1, (a + codes[1]).sum())) for a in (codes[0], codes[2])]
        out[site] = {"batch_switched": shares[0], "precision_switched": shares[1]}
    return out


def _precision_words(model: LanguageModel, site: str, shares: Mapping[str, float]) -> str:
    return (
        f"site {site}: {shares['precision_switched']:.2%} of the active (token, feature) cells are switched on or off "
        f"by {model.dtype} against float32, {shares['batch_switched']:.2%} by batching"
    )


def _missing(work: Work) -> dict[str, Any]:
    """Why surprisal and logit_diff are not numbers, and for how many stimuli."""
    n, target = len(work.cells.ids), work.cells.target
    reason = ""
    if not work.scores:
        reason = LEFT_OUT
    elif not work.model.is_causal:
        reason = f"every token of {work.model.name} sees the whole text, so none predicts the next"
    elif not work.model.has_head:
        reason = f"{work.model.name} has no head that reads its last residual stream"
    if reason:
        return {"surprisal_missing": reason, "logit_diff_missing": {reason: n}}
    counts = target.loc[target["at"] < 0, "reason"].value_counts()
    return {"surprisal_missing": "", "logit_diff_missing": {str(k): int(v) for k, v in counts.items()}}


def _warnings(
    model: LanguageModel, missing: Mapping[str, Any], packing: Mapping[str, Any], *, n_stimuli: int
) -> list[str]:
    """Sentences for the reader of the report."""
    out = []
    if missing["surprisal_missing"] not in ("", LEFT_OUT):
        out.append(f"surprisal and logit_diff are missing: {missing['surprisal_missing']}")
    else:
        reasons = pd.Series(missing["logit_diff_missing"], dtype="int64").drop(
            labels=["the design has no target", "the stimuli are token ids", LEFT_OUT], errors="ignore"
        )
        if len(reasons):
            most = ", ".join(f"{reason} ({n})" for reason, n in reasons.head(3).items())
            out.append(f"logit_diff is missing for {reasons.sum()} of {n_stimuli} stimuli: {most}")
    if packing["used"] == "buckets" and packing["asked"] != "buckets" and _is_fallback(packing):
        out.append(f"stimuli do not share the tokens of a common beginning: {packing['reason']}")
    if control := model.provenance.get("control"):
        out.append(f"the weights are a random control ({control['mode']}, seed {control['seed']})")
    return out


def _unknown_words(work: Work) -> list[str]:
    """What the tokenizer does not know becomes one and the same token: such words cannot differ from one another."""
    tokens, rows = work.model.tokens, work.cells.rows
    if tokens is None or tokens.unknown_id is None:
        return []
    ids = np.array([work.cells.ids[row][at] for row, at in zip(rows["row"], rows["token_index"], strict=True)])
    lost = rows.loc[ids == tokens.unknown_id]
    if lost.empty:
        return []
    words = ", ".join(f"'{word.strip()}'" for word in lost["token"].value_counts().index[:3])
    return [
        f"{len(lost)} of {len(rows)} tokens that were read are unknown to the tokenizer ({words}) and enter the model "
        f"as the same {tokens.backend.id_to_token(tokens.unknown_id)}: no response tells them apart"
    ]


def _is_fallback(packing: Mapping[str, Any]) -> bool:
    """Whether a trie was worth while, or asked for, and could not be had."""
    return not packing["reason"].startswith("a trie would save")
