"""Stimuli -> responses: all sites in one pass, wanted cells only, in shards that survive a kill.

ids -> shards of stimuli -> length buckets -> one forward pass per bucket -> the wanted cells of every hook point ->
each site's dictionary -> CSR shard on disk -> one AnnData per site. A shard is a pure function of its number, so any
`mapper` may distribute shards, and what was stored before a kill is not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from neurosae.errors import ModelError, SpecError
from neurosae.extraction.cells import Cells, Wanted, plan_cells
from neurosae.extraction.model import LanguageModel, batch_invariance, hooked_pass, in_batch_and_alone
from neurosae.extraction.responses import build_responses
from neurosae.extraction.shard import CHUNK_BYTES, SHARD, Arrays, Work, as_numpy, part_of, run_shard
from neurosae.extraction.sites import check_hook, hook_depth
from neurosae.extraction.store import (
    EXTRACTION_VERSION,
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
from neurosae.extraction.tokens import Tokenizer, with_bos
from neurosae.spec.analysis import Positions
from neurosae.spec.design import Design
from neurosae.spec.files import content_hash, lock, require_space
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
        `split`, `text` and character spans of regions
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
    _check_sites(model, dictionaries)
    cells = plan_cells(stimuli, tokens, asked, n_ctx=model.n_ctx, model=model.name, target_slot=slot)
    folder = None if store is None else key_folder(store, key)
    _check_budget(cells, model, dictionaries, folder=folder, keep_x=asked.keep_x, batch_tokens=batch_tokens)
    record = _record(cells, model, dictionaries, asked=asked, key=key, batch_tokens=batch_tokens)
    work = Work(model, dictionaries, cells, asked.keep_x, batch_tokens, folder, content_hash(key))
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
    return Wanted(tuple(regions), asked.align, asked.reach, asked.keep_x, asked.allow_straddle)


def _with_bos(model: LanguageModel, dictionaries: Mapping[str, Any]) -> tuple[LanguageModel, Tokenizer]:
    """Dictionaries know whether their training texts began with BOS; they decide unless `bos` was set."""
    tokens = model.tokens
    if tokens is None:
        raise ModelError(f"{model.name} has no tokenizer; give the toy d_vocab >= 257, or a `tokenizer`.")
    wishes = {site: d.metadata.get("prepend_bos") for site, d in dictionaries.items()}
    wishes = {site: bool(wish) for site, wish in wishes.items() if wish is not None}
    if tokens.rule != "auto" or not wishes:
        return model, tokens
    if len(set(wishes.values())) > 1:
        words = ", ".join(f"{site} {'with' if wish else 'without'}" for site, wish in wishes.items())
        raise ModelError(f"the dictionaries disagree about BOS ({words}); set `model: {{bos: true}}` or false.")
    tokens = with_bos(tokens, next(iter(wishes.values())))
    return replace(model, tokens=tokens), tokens


def _check_sites(model: LanguageModel, dictionaries: Mapping[str, Any]) -> None:
    if not dictionaries:
        raise SpecError("extract needs at least one site; name a hook point and a dictionary under `sites:`.")
    for site, dictionary in dictionaries.items():
        check_hook(dictionary.hook, model.hooks, where=f"sites.{site}")
    hooks = sorted({d.hook for d in dictionaries.values()}, key=hook_depth)
    one = np.zeros((1, 1), dtype=np.int64)
    widths = {h: x.shape[1] for h, x in hooked_pass(model, one, one + 1, hooks=hooks, rows=[0], cols=[0]).items()}
    for site, dictionary in dictionaries.items():
        if dictionary.W_dec.shape[1] != widths[dictionary.hook]:
            raise ModelError(
                f"sites.{site}: the dictionary reads vectors of length {dictionary.W_dec.shape[1]}, but "
                f"{dictionary.hook} of {model.name} has {widths[dictionary.hook]}; use one trained on this model."
            )


def _check_budget(
    cells: Cells, model: LanguageModel, dictionaries: Mapping[str, Any], *, folder: Path | None, keep_x: bool,
    batch_tokens: int,
) -> None:  # fmt: skip
    """Refuse before the first batch what memory or disk cannot hold."""
    n = len(cells.rows)
    stored = sum(n * (_active(d) * 8 + 80 + 4 * keep_x * d.W_dec.shape[1]) for d in dictionaries.values())
    if folder is not None:
        require_space(folder, 2 * stored)  # shards and the final copy
    largest = max(map(len, cells.ids))
    batch = 4 * max(batch_tokens, largest) * (16 * model.d_model + largest) + 2 * CHUNK_BYTES
    free = free_memory()
    if free is not None and 2 * stored + batch > free:
        raise ModelError(
            f"this extraction needs about {(2 * stored + batch) / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
            "free; use fewer regions or sites, keep_x: false, or a smaller batch_tokens."
        )


def _active(dictionary: Any) -> int:
    """Active features per token, from the dictionary's own card where it says so."""
    facts = [dictionary.metadata.get(name) for name in ("l0", "k")]
    known = [float(f) for f in facts if isinstance(f, int | float)]
    return int(min(dictionary.n_features, known[0] if known else 128))


def free_memory() -> int | None:
    """Bytes of memory that are available now, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _record(
    cells: Cells, model: LanguageModel, dictionaries: Mapping[str, Any], *, asked: Wanted, key: Mapping[str, Any],
    batch_tokens: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The provenance of every site; the self-test of batches runs here."""
    tokens = model.tokens
    assert tokens is not None  # _with_bos refused a model without
    deepest = max((d.hook for d in dictionaries.values()), key=hook_depth)
    by_length = {len(ids): ids for ids in cells.ids if len(ids) > tokens.first}
    lengths = sorted(by_length)
    chosen = sorted({lengths[round(i)] for i in np.linspace(0, len(lengths) - 1, min(8, len(lengths)))})
    sample = [by_length[n] for n in chosen]
    switched = {} if model.dtype == "float32" else _switched(model, dictionaries, sample)
    missing = cells.target.loc[cells.target["at"] < 0, "reason"]
    common = {
        "model": {**model.provenance, "bos": tokens.words},
        "batch_invariance": batch_invariance(model, sample, deepest),
        "batch_tokens": batch_tokens,
        "positions": asdict(asked),
        "first_token": tokens.first,
        "extraction_version": EXTRACTION_VERSION,
        "responses_hash": content_hash(dict(key)),
        "n_stimuli": len(cells.ids),
        "logit_diff_missing": {str(k): int(n) for k, n in missing.value_counts().items()},
        "warnings": _target_warnings(missing, len(cells.ids)),
    }
    return {
        site: common
        | {"site": site, "hook": d.hook, "hook_canonical": model.hooks[d.hook]}
        | ({"batch_switched": switched[site]} if switched else {})
        | {"dictionary": {"hash": str(d.hash), "n_features": d.n_features, "metadata": dict(d.metadata)}}
        for site, d in dictionaries.items()
    }


def _switched(model: LanguageModel, dictionaries: Mapping[str, Any], sample: list[np.ndarray]) -> dict[str, float]:
    """Share of active (token, feature) cells that a padded batch switches on or off, in reduced precision."""
    hooks = list(dict.fromkeys(d.hook for d in dictionaries.values()))
    out = {}
    both = in_batch_and_alone(model, sample, hooks)
    for site, dictionary in dictionaries.items():
        place = dictionary.W_dec.device
        batch, single = (abs(dictionary.encode(vectors[dictionary.hook].to(place))) > 0 for vectors in both)
        out[site] = float((batch != single).sum() / max(1, (batch + single).sum()))
    return out


def _target_warnings(missing: pd.Series, n_stimuli: int) -> list[str]:
    reasons = missing[missing != "the design has no target"]
    if not len(reasons):
        return []
    most = ", ".join(f"{reason} ({n})" for reason, n in reasons.value_counts().head(3).items())
    return [f"logit_diff is missing for {len(reasons)} of {n_stimuli} stimuli: {most}"]


def features_table(site: str, dictionary: Any) -> pd.DataFrame:
    """The var table of a site: one row per feature of its dictionary."""
    m = dictionary.n_features
    out = pd.DataFrame({"feature": np.arange(m, dtype=np.int32)}, index=[f"{site}/{j}" for j in range(m)])
    for name in ("decoder_norm", "threshold", "density", "origin"):
        values = getattr(dictionary, name)
        out[name] = np.float32(np.nan) if values is None else as_numpy(values)
    return out


# --- all shards -----------------------------------------------------------------------------------------------------


def _gathered(work: Work, mapper: Callable[..., Any], record: dict[str, dict[str, Any]]) -> dict[str, Arrays]:
    """All shards of all sites, computed where they are not stored yet, joined per site."""
    n_shards = -(-len(work.cells.ids) // SHARD)
    started = time.perf_counter()
    with tqdm(total=sum(map(len, work.cells.ids)), unit="tok", desc="extract", disable=None, unit_scale=True) as bar:
        # only a mapper in this process can move our bar; others get a job that pickles
        job = partial(run_shard, replace(work, tick=bar.update) if mapper is map else work)
        shards = list(mapper(job, range(n_shards)))
    speed = {"tokens": sum(s.tokens for s in shards), "seconds": round(time.perf_counter() - started, 3)}
    halved = max(s.halved for s in shards)
    for entry in record.values():
        entry["extraction"] = speed
        if halved:
            entry["warnings"] = [*entry["warnings"], f"memory ran out: batches were halved up to {halved} times"]
    return {site: join_shards([part_of(work, s, site) for s in shards]) for site in work.dictionaries}
