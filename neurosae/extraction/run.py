"""Stimuli -> responses: all sites in one pass, wanted cells only, in shards that survive a kill.

ids -> shards of stimuli -> tries or length buckets -> one forward pass per batch -> the wanted cells of every hook
point -> each site's dictionary -> CSR shard on disk -> one AnnData per site. A shard is a pure function of its number,
so any `mapper` may distribute shards, and what was stored before a kill is not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from neurosae.extraction.budget import check_budget, operations, time_teller, total_load
from neurosae.extraction.cells import Wanted, cut_ids, plan_cells
from neurosae.extraction.firing import check_sites
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.record import site_records
from neurosae.extraction.responses import build_responses
from neurosae.extraction.selftest import choose_packing
from neurosae.extraction.shard import SHARD, Arrays, Work, as_numpy, part_of, run_shard
from neurosae.extraction.store import (
    activations_of,
    cells_of,
    finish,
    join_shards,
    join_stimuli,
    key_folder,
    responses_key,
    stored_responses,
    write_site,
)
from neurosae.extraction.tokens import Tokenizer, agreed_bos
from neurosae.spec.analysis import Positions
from neurosae.spec.design import Design
from neurosae.spec.files import content_hash, lock
from neurosae.spec.load import as_record

DESIGN = "design"  # entry of stimuli.attrs that holds the design as JSON


def extract(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    dictionaries: Mapping[str, Any],
    *,
    positions: Positions | Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    mapper: Callable[..., Any] = map,
    batch_tokens: int = 4096,
) -> dict[str, Any]:
    """Responses of every site to every stimulus, at the wanted tokens.

    Parameters
    ----------
    stimuli : from `expand`, which leaves its design in `stimuli.attrs["design"]`; or any table with `item`, `frame`,
        `split`, `text` and character spans of regions; with `ids`, lists of token ids, in place of `text`, spans
        count tokens
    dictionaries : {site: dictionary}, each with its hook point
    positions : the block of the analysis; left-out regions are all regions of the stimuli
    store : results folder; what is stored there under the same key is read, not computed
    mapper : applies a function to shard numbers; the built-in map, or that of a cluster
    batch_tokens : ids in a batch, padding included; halved where memory runs out

    Returns
    -------
    {site: AnnData}, positions counted back from the end of each region until `align` relabels them

    Raises
    ------
    DataError, ModelError, StoreError
        If a text is too long, a region splits a token, batches differ from single texts, a disk or memory is too small.
    """
    design = Design.from_json(stimuli.attrs[DESIGN]) if DESIGN in stimuli.attrs else None
    asked = _wanted(positions, stimuli)
    slot = design.target.slot if design is not None and design.target is not None else None
    model, tokens = _with_bos(model, dictionaries)
    key = responses_key(stimuli, asked, model=model, dictionaries=dictionaries, target_slot=slot)
    if store is not None and (found := stored_responses(store, key, stimuli=stimuli, design=design)) is not None:
        return found
    scales = check_sites(model, dictionaries)
    cells = plan_cells(stimuli, tokens, asked, n_ctx=model.n_ctx, model=model.name, target_slot=slot)
    folder = None if store is None else key_folder(store, key)
    draft = Work(model, dictionaries, cells, cells.ids, scales, asked.keep_x, asked.scores, "buckets",
                 batch_tokens, folder, content_hash(key))  # fmt: skip
    work, packing = _planned(draft)
    record = site_records(work, asked=asked, key=key, packing=packing)
    if folder is None:
        sites = _gathered(work, mapper, record)
        return {
            site: build_responses(
                activations_of(arrays, dictionaries[site].n_features),
                join_stimuli(cells_of(arrays, cells.regions), stimuli),
                features_table(site, dictionaries[site]),
                design=design,
                provenance=record[site],
                x=arrays.get("x"),
            )
            for site, arrays in sorted(sites.items())  # the order in which a store gives them
        }
    with lock(folder):
        for site, arrays in _gathered(work, mapper, record).items():
            var = features_table(site, dictionaries[site])
            write_site(folder / f"{site}.zarr", arrays, var, regions=cells.regions, provenance=record[site])
        finish(folder, key)
    found = stored_responses(folder.parent.parent, key, stimuli=stimuli, design=design)
    assert found is not None  # it was finished a line ago
    return found


def _wanted(positions: Positions | Mapping[str, Any] | None, stimuli: pd.DataFrame) -> Wanted:
    asked = as_record(positions, Positions, name="positions")
    regions = asked.regions or tuple(c.removesuffix("_start") for c in stimuli.columns if c.endswith("_start"))
    return Wanted(tuple(regions), asked.align, asked.reach, asked.keep_x, asked.allow_straddle, asked.scores)


def _with_bos(model: LanguageModel, dictionaries: Mapping[str, Any]) -> tuple[LanguageModel, Tokenizer | None]:
    """The model with the rule about BOS that its dictionaries want."""
    tokens = agreed_bos(model.tokens, dictionaries)
    return replace(model, tokens=tokens), tokens


def _planned(work: Work) -> tuple[Work, dict[str, Any]]:
    """Cut the stimuli, choose how they share forward passes, and refuse what memory or disk cannot hold."""
    model, cells = work.model, work.cells
    ids = cut_ids(cells, is_causal=model.is_causal, is_scored=work.scores and model.has_head)
    hooks = list(dict.fromkeys(d.hook for d in work.dictionaries.values()))
    needs = check_budget(
        model, work.dictionaries, n_cells=len(cells.rows), longest=max(map(len, ids)), folder=work.folder,
        keep_x=work.keep_x, batch_tokens=work.batch_tokens,
    )  # fmt: skip
    packing, record = choose_packing(model, ids, hooks=hooks, shard=SHARD)
    return replace(work, ids=ids, packing=packing), record | {"needs": needs}


def features_table(site: str, dictionary: Any) -> pd.DataFrame:
    """The var table of a site: one row per feature of its dictionary."""
    m = dictionary.n_features
    out = pd.DataFrame({"feature": np.arange(m, dtype=np.int32)}, index=[f"{site}/{j}" for j in range(m)])
    for name in ("decoder_norm", "threshold", "density", "origin"):
        values = getattr(dictionary, name)
        out[name] = np.float32(np.nan) if values is None else as_numpy(values)
    if getattr(dictionary, "partner", None) is not None:
        out["partner"] = dictionary.partner  # the other half of a signed value
    return out


# --- all shards -----------------------------------------------------------------------------------------------------


def _gathered(work: Work, mapper: Callable[..., Any], record: dict[str, dict[str, Any]]) -> dict[str, Arrays]:
    """All shards of all sites, computed where they are not stored yet, joined per site."""
    n_shards = -(-len(work.ids) // SHARD)
    started = time.perf_counter()
    told: dict[str, float] = {}
    with tqdm(total=sum(map(len, work.ids)), unit="tok", desc="extract", disable=None, unit_scale=True) as bar:
        # only a mapper in this process can move our bar; others get a job that pickles
        job = partial(run_shard, replace(work, tick=_teller(work, bar, told)) if mapper is map else work)
        shards = list(mapper(job, range(n_shards)))
    speed = {"tokens": sum(s.tokens for s in shards), "seconds": round(time.perf_counter() - started, 3), **told}
    halved = max(s.halved for s in shards)
    for entry in record.values():
        entry["extraction"] = speed | {"packing": entry["packing"]}
        if halved:
            entry["warnings"] = [*entry["warnings"], f"memory ran out: batches were halved up to {halved} times"]
    return {site: join_shards([part_of(work, s, site) for s in shards]) for site in work.dictionaries}


def _teller(work: Work, bar: Any, told: dict[str, float]) -> Callable[[int, int, int], None]:
    hooks = [d.hook for d in work.dictionaries.values()]
    hooks += [work.model.last_hook] * (work.scores and work.model.has_head)
    n_cells, most = len(work.cells.rows), min(work.model.max_nodes, work.batch_tokens)
    total = total_load(work.ids, work.packing, n_cells=n_cells, shard=SHARD, max_nodes=most)
    cost = partial(operations, model=work.model, dictionaries=work.dictionaries, hooks=hooks)
    return time_teller(bar, cost=cost, total=total, told=told)
