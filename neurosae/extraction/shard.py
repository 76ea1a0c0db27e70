"""One shard: some hundred stimuli through the model and the dictionaries of all sites, once.

A shard is a pure function of its number: which stimuli, which batches and which blocks it computes depends on nothing
else, so a run that was killed and resumed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.errors import ModelError, StoreError
from neurosae.extraction.budget import CHUNK_BYTES
from neurosae.extraction.cells import Cells
from neurosae.extraction.packing import Packed, Packing, batches, pack
from neurosae.extraction.passes import LanguageModel, hooked_pass, logits_of, precision
from neurosae.extraction.store import read_shard, shard_path, write_shard

SHARD = 256  # stimuli
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """What every shard needs to know.

    Attributes
    ----------
    ids : token ids of every stimulus, cut after the last that is wanted
    scales : {hook point: the hook point that gives the scale of the next normalisation, None where there is none}
    keep_x, scores : whether the raw stream is kept; whether surprisal and logit_diff are computed
    packing, batch_tokens : how stimuli share forward passes, and how many ids one holds
    folder : None where nothing is stored
    digest : ties what is stored to its key
    tick : told of the tokens of every finished batch, and of the rows and columns of the pass that read them
    """

    model: LanguageModel
    dictionaries: Mapping[str, Any]
    cells: Cells
    ids: list[np.ndarray]
    scales: Mapping[str, str | None]
    keep_x: bool
    scores: bool
    packing: Packing
    batch_tokens: int
    folder: Path | None
    digest: str
    tick: Callable[[int, int, int], Any] | None = None


@dataclass(frozen=True)
class Shard:
    """What a shard gave: arrays per site unless they were stored, tokens computed, how often a batch was halved."""

    number: int
    sites: dict[str, Arrays] | None
    tokens: int
    halved: int


@dataclass
class _Batch:
    """What one batch gave: per node (a token that several stimuli may share), per cell the node, per stimulus."""

    x: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    surprisal: np.ndarray
    cells: np.ndarray
    node: np.ndarray
    stimuli: np.ndarray
    logit_diff: np.ndarray


def run_shard(work: Work, number: int) -> Shard:
    """Compute one shard, or find it stored; with a folder, its arrays are written and not handed back."""
    stimuli = np.arange(number * SHARD, min((number + 1) * SHARD, len(work.cells.ids)))
    if work.folder is not None and all(_read(work, site, number) is not None for site in work.dictionaries):
        _tick(work, stimuli, (0, 0))
        return Shard(number, None, 0, 0)
    rows = work.cells.rows[np.isin(work.cells.rows["row"], stimuli)]
    unique = rows.drop_duplicates(["row", "token_index"]).reset_index(drop=True)
    done, halved = _forward(work, stimuli, unique)
    node = _node_of_rows(rows, unique, done)
    common = _row_columns(work, rows, done=done, node=node)
    sites = {}
    for site, dictionary in work.dictionaries.items():
        x, scale = (np.concatenate([part[dictionary.hook] for part in parts]) for parts in _by_hook(done))
        sites[site] = common | {"ln_scale": scale[node]} | _encoded(dictionary, x, node, keep_x=work.keep_x)
    tokens = sum(len(work.ids[i]) for i in stimuli)
    if work.folder is None:
        return Shard(number, sites, tokens, halved)
    for site, arrays in sites.items():
        write_shard(shard_path(work.folder, site, number), arrays, digest=work.digest)
    return Shard(number, None, tokens, halved)


def part_of(work: Work, shard: Shard, site: str) -> Arrays:
    """The arrays of a shard, from memory or from disk."""
    arrays = shard.sites[site] if shard.sites is not None else _read(work, site, shard.number)
    if arrays is None:
        path = shard_path(work.folder or Path(), site, shard.number)
        raise StoreError(f"{path} was changed while the extraction ran; run it again.")
    return arrays


def _read(work: Work, site: str, number: int) -> Arrays | None:
    return read_shard(shard_path(work.folder or Path(), site, number), digest=work.digest)


def _tick(work: Work, stimuli: np.ndarray, shape: tuple[int, int]) -> None:
    if work.tick is not None:
        work.tick(sum(len(work.ids[i]) for i in stimuli), *shape)


def _by_hook(done: list[_Batch]) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    return [batch.x for batch in done], [batch.scale for batch in done]


def _node_of_rows(rows: pd.DataFrame, unique: pd.DataFrame, done: list[_Batch]) -> np.ndarray:
    """For each row its node among those of all batches; a token of two regions is one cell, and cells share nodes."""
    starts = np.cumsum([0, *(len(batch.surprisal) for batch in done)])
    node = np.empty(len(unique), dtype=np.int64)
    for start, batch in zip(starts, done, strict=False):
        node[batch.cells] = batch.node + start
    at = {pair: i for i, pair in enumerate(zip(unique["row"], unique["token_index"], strict=True))}
    cells = [at[pair] for pair in zip(rows["row"], rows["token_index"], strict=True)]
    return node[np.array(cells, dtype=np.int64)]


def _row_columns(work: Work, rows: pd.DataFrame, *, done: list[_Batch], node: np.ndarray) -> Arrays:
    """Columns that all sites share."""
    stimuli = np.concatenate([batch.stimuli for batch in done])
    difference = dict(zip(stimuli, np.concatenate([batch.logit_diff for batch in done]), strict=True))
    codes = {label: i for i, label in enumerate(work.cells.regions)}
    out = {name: rows[name].to_numpy(dtype=np.int32) for name in ("row", "token_index", "n_tokens", "stimulus_tokens")}
    out["token"] = rows["token"].to_numpy(dtype=str)
    out["region"] = rows["region"].map(codes).to_numpy(dtype=np.int16)
    out["surprisal"] = np.concatenate([batch.surprisal for batch in done])[node]
    out["logit_diff"] = np.array([difference[row] for row in rows["row"]], dtype=np.float32)
    return out


# --- through the model ----------------------------------------------------------------------------------------------


def _forward(work: Work, stimuli: np.ndarray, unique: pd.DataFrame) -> tuple[list[_Batch], int]:
    """All batches of a shard; where memory runs out a batch is halved, which moves numbers by rounding only."""
    by_stimulus = cast(dict[int, np.ndarray], unique.groupby("row").indices)
    sequences, most = [work.ids[i] for i in stimuli], work.model.max_nodes
    todo = [stimuli[batch] for batch in batches(sequences, work.packing, work.batch_tokens, max_nodes=most)][::-1]
    done: list[_Batch] = []
    halved = 0
    with precision(work.model):  # around all batches: the weights are rounded once
        while todo:
            batch = todo.pop()
            try:
                packed = pack([work.ids[i] for i in batch], work.packing, max_nodes=most)
                done.append(_batch(work, batch, unique, by_stimulus=by_stimulus, packed=packed))
                _tick(work, batch, (packed.ids.shape[0], packed.ids.shape[1]))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ModelError(
                        f"one text of {len(work.ids[batch[0]])} tokens does not fit into the memory of "
                        f"{work.model.device}; use another device, a smaller model, or dtype: bfloat16."
                    ) from error
            # the error is gone by now, and with it the tensors that its frames held
            if torch.device(work.model.device).type == "cuda":
                torch.cuda.empty_cache()
            halved += 1
            half = len(batch) // 2
            todo += [batch[half:], batch[:half]]
    return done, halved


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a CPU (a plain RuntimeError) or an accelerator."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _batch(
    work: Work,
    batch: np.ndarray,
    unique: pd.DataFrame,
    *,
    by_stimulus: Mapping[int, np.ndarray],
    packed: Packed,
) -> _Batch:
    model, hooks = work.model, list(dict.fromkeys(d.hook for d in work.dictionaries.values()))
    cells = np.concatenate([np.asarray(by_stimulus.get(i, []), dtype=np.int64) for i in batch.tolist()])
    line = np.repeat(np.arange(len(batch)), [len(by_stimulus.get(i, [])) for i in batch.tolist()])
    places, node = _nodes(packed, line, unique["token_index"].to_numpy()[cells])
    target = work.cells.target.iloc[batch]
    scoring = work.scores and model.has_head
    before = np.flatnonzero(places.previous >= 0) if scoring else np.zeros(0, dtype=np.int64)
    scored = np.flatnonzero(target["at"].to_numpy() >= 0) if scoring else np.zeros(0, dtype=np.int64)
    at = [int(packed.paths[i][target["at"].iloc[i]]) for i in scored]
    found = hooked_pass(
        model,
        packed.ids,
        packed.mask,
        hooks=list(dict.fromkeys([*hooks, *filter(None, work.scales.values()), *[model.last_hook] * scoring])),
        rows=np.concatenate([places.row, places.row[before], packed.row[scored]]),
        cols=np.concatenate([places.col, places.previous[before], np.array(at, dtype=np.int64)]),
        positions=packed.positions,
    )
    n = len(places.row)
    surprisal = np.full(n, np.nan, dtype=np.float32)
    difference = np.full(len(batch), np.nan, dtype=np.float32)
    if scoring:
        heads = found[model.last_hook][n:]
        ids = packed.ids[places.row[before], places.col[before]]
        surprisal[before] = _surprisal(model, heads[: len(before)], ids)
        difference[scored] = _logit_diff(model, heads[len(before) :], target[["target", "foil"]].to_numpy()[scored])
    x = {hook: as_numpy(found[hook][:n]) for hook in hooks}
    scale = {hook: _scale(found, work.scales[hook], n) for hook in hooks}
    return _Batch(x, scale, surprisal, cells, node, batch, difference)


class _Places(NamedTuple):
    """Where the wanted nodes of a batch are, and the column of the token before each (-1: none)."""

    row: np.ndarray
    col: np.ndarray
    previous: np.ndarray


def _nodes(packed: Packed, line: np.ndarray, token: np.ndarray) -> tuple[_Places, np.ndarray]:
    """The distinct nodes of some cells (sequence, token index), and the node of each cell."""
    row = packed.row[line]
    pairs = list(zip(line.tolist(), token.tolist(), strict=True))
    col = np.array([packed.paths[i][t] for i, t in pairs], dtype=np.int64)
    previous = np.array([packed.paths[i][t - 1] if t else -1 for i, t in pairs], dtype=np.int64)
    key = row * packed.ids.shape[1] + col
    _, first, node = np.unique(key, return_index=True, return_inverse=True)
    return _Places(row[first], col[first], previous[first]), node.reshape(-1)


def _scale(found: Mapping[str, torch.Tensor], hook: str | None, n: int) -> np.ndarray:
    """Scale of the next normalisation at n nodes; not a number where nothing normalises after."""
    if hook is None:
        return np.full(n, np.nan, dtype=np.float32)
    return as_numpy(found[hook][:n, 0])


def _chunks(n: int, width: int) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * width))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _surprisal(model: LanguageModel, x: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """-log2 p(token), bits, from the stream one token earlier."""
    out = np.empty(len(x), dtype=np.float32)
    for part in _chunks(len(x), model.n_vocab):
        logp = torch.log_softmax(logits_of(model, x[part]), dim=-1)
        token = torch.as_tensor(ids[part], device=logp.device)[:, None]
        out[part] = -as_numpy(logp.gather(1, token)[:, 0]) / np.log(2)
    return out


def _logit_diff(model: LanguageModel, x: torch.Tensor, pairs: np.ndarray) -> np.ndarray:
    """logit[target] - logit[foil] at the token that predicts the target."""
    out = np.empty(len(x), dtype=np.float32)
    for part in _chunks(len(x), model.n_vocab):
        logits = logits_of(model, x[part])
        both = logits.gather(1, torch.as_tensor(pairs[part], dtype=torch.long, device=logits.device))
        out[part] = as_numpy(both[:, 0] - both[:, 1])
    return out


# --- through a dictionary -------------------------------------------------------------------------------------------


def as_numpy(values: Any) -> np.ndarray:
    """Float32 numpy array of a tensor or array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)


def _encoded(dictionary: Any, x: np.ndarray, node: np.ndarray, *, keep_x: bool) -> Arrays:
    """Sparse activations of the rows, and what describes each: norm, active features, reconstruction error."""
    place = dictionary.W_dec.device
    blocks, errors = [sp.csr_matrix((0, dictionary.n_features), dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
    with torch.inference_mode():
        for part in _chunks(len(x), dictionary.n_features):
            tensor = torch.as_tensor(x[part], device=place)
            block = sp.csr_matrix(dictionary.encode(tensor), dtype=np.float32)
            block.eliminate_zeros()
            block.sort_indices()
            blocks.append(block)
            errors.append(as_numpy((tensor - dictionary.decode(block).to(place)).norm(dim=1)))
    X = sp.csr_matrix(sp.csr_matrix(sp.vstack(blocks, format="csr"))[node])
    X.sort_indices()
    out = {
        "data": X.data,
        "indices": X.indices.astype(np.int32),
        "indptr": X.indptr.astype(np.int64),
        "norm": np.linalg.norm(x, axis=1).astype(np.float32)[node],
        "n_active": np.diff(X.indptr).astype(np.int32),
        "sum_active": np.asarray(X.sum(axis=1), dtype=np.float32).ravel(),
        "recon_error": np.concatenate(errors)[node],
    }
    return out | ({"x": x[node]} if keep_x else {})
