"""One shard: some hundred stimuli through the model and the dictionaries of all sites, once.

A shard is a pure function of its number: which stimuli, which batches and which blocks it computes depends on nothing
else, so a run that was killed and resumed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.errors import ModelError, StoreError
from neurosae.extraction.cells import Cells
from neurosae.extraction.model import LanguageModel, hooked_pass, logits_of
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.store import read_shard, shard_path, write_shard

SHARD = 256  # stimuli
CHUNK_BYTES = 256 * 2**20  # of a dense block of activations or logits
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """What every shard needs to know; `folder` is None where nothing is stored, `tick` moves a progress bar."""

    model: LanguageModel
    dictionaries: Mapping[str, Any]
    cells: Cells
    keep_x: bool
    batch_tokens: int
    folder: Path | None
    digest: str
    tick: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Shard:
    """What a shard gave: arrays per site unless they were stored, tokens computed, how often a batch was halved."""

    number: int
    sites: dict[str, Arrays] | None
    tokens: int
    halved: int


@dataclass
class _Cellwise:
    """Vectors and scores of one batch, in the order of its cells."""

    cells: np.ndarray
    x: dict[str, np.ndarray]
    surprisal: np.ndarray
    stimuli: np.ndarray
    logit_diff: np.ndarray


def run_shard(work: Work, number: int) -> Shard:
    """Compute one shard, or find it stored; with a folder, its arrays are written and not handed back."""
    stimuli = np.arange(number * SHARD, min((number + 1) * SHARD, len(work.cells.ids)))
    if work.folder is not None and all(_read(work, site, number) is not None for site in work.dictionaries):
        _tick(work, sum(len(work.cells.ids[i]) for i in stimuli))
        return Shard(number, None, 0, 0)
    rows = work.cells.rows[np.isin(work.cells.rows["row"], stimuli)]
    unique = rows.drop_duplicates(["row", "token_index"]).reset_index(drop=True)
    batches, halved = _forward(work, stimuli, unique)
    order = np.concatenate([b.cells for b in batches])
    back = _inverse(rows, unique)
    common = _row_columns(work, rows, batches=batches, back=back)
    sites = {}
    for site, dictionary in work.dictionaries.items():
        x = np.concatenate([b.x[dictionary.hook] for b in batches])[np.argsort(order)]
        sites[site] = common | _encoded(dictionary, x, back, keep_x=work.keep_x)
    tokens = sum(len(work.cells.ids[i]) for i in stimuli)
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


def _tick(work: Work, n_tokens: int) -> None:
    if work.tick is not None:
        work.tick(n_tokens)


def _inverse(rows: pd.DataFrame, unique: pd.DataFrame) -> np.ndarray:
    """For each row the number of its cell: a token of two regions is one cell."""
    at = {pair: i for i, pair in enumerate(zip(unique["row"], unique["token_index"], strict=True))}
    return np.array([at[pair] for pair in zip(rows["row"], rows["token_index"], strict=True)], dtype=np.int64)


def _row_columns(work: Work, rows: pd.DataFrame, *, batches: list[_Cellwise], back: np.ndarray) -> Arrays:
    """Columns that all sites share."""
    order = np.argsort(np.concatenate([b.cells for b in batches]))
    surprisal = np.concatenate([b.surprisal for b in batches])[order]
    stimuli = np.concatenate([b.stimuli for b in batches])
    difference = dict(zip(stimuli, np.concatenate([b.logit_diff for b in batches]), strict=True))
    codes = {label: i for i, label in enumerate(work.cells.regions)}
    out = {name: rows[name].to_numpy(dtype=np.int32) for name in ("row", "token_index", "n_tokens", "stimulus_tokens")}
    out["token"] = rows["token"].to_numpy(dtype=str)
    out["region"] = rows["region"].map(codes).to_numpy(dtype=np.int16)
    out["surprisal"] = surprisal[back]
    out["logit_diff"] = np.array([difference[row] for row in rows["row"]], dtype=np.float32)
    return out


# --- through the model ----------------------------------------------------------------------------------------------


def _forward(work: Work, stimuli: np.ndarray, unique: pd.DataFrame) -> tuple[list[_Cellwise], int]:
    """All batches of a shard; where memory runs out a batch is halved, which moves numbers by rounding only."""
    by_stimulus = cast(dict[int, np.ndarray], unique.groupby("row").indices)
    stop = [_length(work, i, unique["token_index"].to_numpy()[by_stimulus.get(i, [])]) for i in stimuli]
    todo = [stimuli[batch] for batch in length_buckets(stop, work.batch_tokens)][::-1]
    cut = dict(zip(stimuli.tolist(), stop, strict=True))
    done: list[_Cellwise] = []
    halved = 0
    while todo:
        batch = todo.pop()
        try:
            done.append(_batch(work, batch, unique, by_stimulus=by_stimulus, cut=cut))
            _tick(work, sum(len(work.cells.ids[i]) for i in batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError(
                    f"one text of {cut[int(batch[0])]} tokens does not fit into the memory of {work.model.device}; "
                    "use another device, a smaller model, or dtype: bfloat16."
                ) from error
            halved += 1
            half = len(batch) // 2
            todo += [batch[half:], batch[:half]]
    return done, halved


def _length(work: Work, stimulus: int, tokens: np.ndarray) -> int:
    """Where a stimulus may be cut: after its last wanted token, if later tokens cannot matter."""
    if not work.model.is_causal:
        return len(work.cells.ids[stimulus])
    return max([1, int(work.cells.target["at"].iloc[stimulus]) + 1, *(tokens + 1).tolist()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a CPU (a plain RuntimeError) or an accelerator."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _batch(
    work: Work, batch: np.ndarray, unique: pd.DataFrame, *, by_stimulus: Mapping[int, np.ndarray], cut: dict[int, int]
) -> _Cellwise:
    model, hooks = work.model, list(dict.fromkeys(d.hook for d in work.dictionaries.values()))
    ids, mask = pad([work.cells.ids[i][: cut[i]] for i in batch.tolist()])
    cells = np.concatenate([np.asarray(by_stimulus.get(i, []), dtype=np.int64) for i in batch.tolist()])
    place = {stimulus: line for line, stimulus in enumerate(batch.tolist())}
    rows = unique["row"].map(place).to_numpy()[cells].astype(np.int64)
    cols = unique["token_index"].to_numpy()[cells].astype(np.int64)
    target = work.cells.target.iloc[batch]
    scored = np.flatnonzero(target["at"].to_numpy() >= 0) if model.has_head else np.zeros(0, dtype=np.int64)
    before = np.flatnonzero(cols > 0) if model.has_head else np.zeros(0, dtype=np.int64)
    all_rows = np.concatenate([rows, rows[before], scored])
    all_cols = np.concatenate([cols, cols[before] - 1, target["at"].to_numpy()[scored]])
    wanted = [*hooks, model.last_hook] if len(before) + len(scored) else hooks
    found = hooked_pass(model, ids, mask, hooks=wanted, rows=all_rows, cols=all_cols)
    surprisal = np.full(len(cells), np.nan, dtype=np.float32)
    difference = np.full(len(batch), np.nan, dtype=np.float32)
    if len(before) + len(scored):
        heads = found[model.last_hook][len(cells) :]
        surprisal[before] = _surprisal(model, heads[: len(before)], ids[rows[before], cols[before]])
        pairs = target[["target", "foil"]].to_numpy()[scored]
        difference[scored] = _logit_diff(model, heads[len(before) :], pairs)
    return _Cellwise(cells, {h: as_numpy(found[h][: len(cells)]) for h in hooks}, surprisal, batch, difference)


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


def _encoded(dictionary: Any, x: np.ndarray, back: np.ndarray, *, keep_x: bool) -> Arrays:
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
    X = sp.csr_matrix(sp.csr_matrix(sp.vstack(blocks, format="csr"))[back])
    X.sort_indices()
    out = {
        "data": X.data,
        "indices": X.indices.astype(np.int32),
        "indptr": X.indptr.astype(np.int64),
        "norm": np.linalg.norm(x, axis=1).astype(np.float32)[back],
        "n_active": np.diff(X.indptr).astype(np.int32),
        "sum_active": np.asarray(X.sum(axis=1), dtype=np.float32).ravel(),
        "recon_error": np.concatenate(errors)[back],
    }
    return out | ({"x": x[back]} if keep_x else {})
