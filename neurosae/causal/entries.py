"""Single attention weights: entries [query, key] of the pattern of one head, read and put in place.

A pattern has no vector per token, so its hook points are no sites. A place is a region of queries and a region of keys;
both are aligned at their last tokens. Weights that are put in place need not add up to 1 with those that stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from neurosae.causal.progress import with_bar
from neurosae.errors import DataError, ModelError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.sites import split_head

PATTERN = re.compile(r"blocks\.(\d+|\*)\.attn\.hook_pattern(\.h(\d+|\*))?")
NOTE = "weights that are put in place need not add up to 1 with the others"
BATCH = 4096  # ids in a pass

Tokens = Sequence[np.ndarray]


def is_pattern(hook: str) -> bool:
    """Whether a hook point gives attention weights.

    Examples
    --------
    >>> is_pattern("blocks.2.attn.hook_pattern.h3"), is_pattern("blocks.2.attn.hook_z.h3")
    (True, False)
    """
    return PATTERN.fullmatch(hook) is not None


def check_pattern(hook: str, model: LanguageModel) -> str:
    """The hook point of a pattern, refused where the model does not have it; one head must be named."""
    point, head = split_head(hook)
    if point not in model.hooks:
        raise ModelError(f"{model.name} has no hook point '{point}'; it has layers 0 to {model.n_layers - 1}.")
    if head is None:
        raise ModelError(f"'{hook}' names no head; write {point}.h0.")
    return point


def check_shape(hook: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no square of weights per head, and heads that are not there."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ModelError(f"hook point '{hook}' gives shape {shape}, not weights per head, query and key.")
    head = split_head(hook)[1]
    if head is not None and head >= shape[1]:
        raise ModelError(f"hook point '{hook}': there are {shape[1]} heads, h0 to h{shape[1] - 1}.")


def pairs_of(queries: Tokens, keys: Tokens, names: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray], Any]:
    """Every query with every key at or before it: queries and keys per stimulus, and masks (n_queries, n_keys).

    Raises
    ------
    DataError
        All keys of a stimulus come after its queries, where attention has no weight.

    Examples
    --------
    >>> rows, cols, kept = pairs_of([np.array([2, 3])], [np.array([1, 3])], ["one"])
    >>> rows[0].tolist(), cols[0].tolist(), kept[0].tolist()
    ([2, 3, 3], [1, 1, 3], [[True, False], [True, True]])
    """
    masks = [k[None] <= q[:, None] for q, k in zip(queries, keys, strict=True)]
    if lost := [name for name, mask, q in zip(names, masks, queries, strict=True) if len(q) and not mask.any()]:
        raise DataError(f"stimulus '{lost[0]}': the keys come after the queries, which cannot attend to them.")
    rows = [np.repeat(q, len(k))[mask.ravel()] for q, k, mask in zip(queries, keys, masks, strict=True)]
    cols = [np.tile(k, len(q))[mask.ravel()] for q, k, mask in zip(queries, keys, masks, strict=True)]
    return rows, cols, masks


def read_entries(
    model: LanguageModel, ids: Sequence[np.ndarray], hooks: Sequence[str], *, pairs: Mapping[Any, tuple[Tokens, Tokens]]
) -> dict[tuple[str, Any], list[np.ndarray]]:
    """Attention weights of texts: {(hook, name): per text an array (n_queries, n_keys)}.

    Parameters
    ----------
    pairs : {name: (queries, keys)}, tokens of every text

    Raises
    ------
    ModelError
        A hook point never fires.
    """
    got: dict[tuple[str, Any], dict[int, np.ndarray]] = {(hook, name): {} for hook in hooks for name in pairs}
    by_point: dict[str, list[tuple[str, int]]] = {}
    for hook in hooks:
        point, head = split_head(hook)
        by_point.setdefault(model.hooks[point], []).append((hook, int(head or 0)))
    fired: set[str] = set()
    for rows in with_bar(length_buckets([len(one) for one in ids], BATCH), "read attention"):

        def keep(point: str, rows: np.ndarray = rows) -> Any:
            def hook_function(tensor: torch.Tensor, hook: Any = None) -> None:
                fired.add(point)
                values = tensor.float().cpu().numpy()
                for (own, head), (name, (queries, keys)), (k, i) in _each(by_point[point], pairs, rows):
                    got[own, name][i] = values[k, head][np.ix_(queries[i], keys[i])]

            return hook_function

        padded, mask = (torch.as_tensor(a, device=model.device) for a in pad([ids[i] for i in rows]))
        with torch.inference_mode(), precision(model):
            hooked = [(point, keep(point)) for point in by_point]
            model.bridge.run_with_hooks(padded, fwd_hooks=hooked, return_type=None, attention_mask=mask)
    if silent := sorted(set(by_point) - fired):
        raise ModelError(f"{model.name} gives no attention pattern at {', '.join(silent)}.")
    return {key: [found[i] for i in range(len(ids))] for key, found in got.items()}


def _each(own: Any, pairs: Mapping[Any, Any], rows: np.ndarray) -> Iterator[tuple[Any, Any, tuple[int, int]]]:
    for one in own:
        for pair in pairs.items():
            yield from ((one, pair, (k, int(i))) for k, i in enumerate(rows))


def mean_of_others(values: Sequence[np.ndarray], items: np.ndarray, *, item: str, shape: tuple[int, int]) -> np.ndarray:
    """The mean weight of the same query and key, counted from the ends, over the texts of other items.

    Examples
    --------
    >>> made = [np.array([[0.1, 0.2]]), np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])]
    >>> mean_of_others(made, np.array(["a", "b", "c"]), item="a", shape=(1, 2)).tolist()
    [[0.75, 0.25]]
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for one, own in zip(values, items, strict=True):
        if own != item:
            n, m = min(shape[0], one.shape[0]), min(shape[1], one.shape[1])
            total[shape[0] - n :, shape[1] - m :] += one[one.shape[0] - n :, one.shape[1] - m :]
            count[shape[0] - n :, shape[1] - m :] += 1
    if not count.all():
        raise DataError(f"item '{item}': no other item has as many queries and keys there; use replace: zero.")
    return (total / count).astype(np.float32)
