r"""Attention from a region to another, per head, as responses whose features are heads.

For a query region Q and a key region K,

    a_h = mean over t in Q of sum over s in K of A_h[t, s],

the share of its attention that head h sends from Q to K. Rows of A sum to 1 over all tokens up to t. A head's attention
is not its effect: what it writes depends on its values too (Jain & Wallace 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurosae.causal.progress import with_bar
from neurosae.causal.scored import Scored, as_responses, score_stimuli
from neurosae.causal.tested import block_effects, run_sites
from neurosae.errors import ModelError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.spec.results import Tested
from neurosae.stats.units import AnnData


def attention(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    dictionaries: Mapping[str, Any] | None = None,
    *,
    queries: Sequence[str],
    keys: Sequence[str],
) -> dict[str, Any]:
    """Share of attention from query regions to key regions, for every head.

    Parameters
    ----------
    stimuli : from `expand`
    model : LanguageModel
    dictionaries : {site: dictionary}, which decide about BOS; none needed
    queries, keys : regions of the stimuli; also `first` (BOS, where there is one), `all`, and `target`, the token that
        predicts the target

    Returns
    -------
    {"attn->key": AnnData}
        One site per key region; its rows are stimuli at the query regions (`obs["region"]`), its features heads
        (`var`: layer, head), so that `contrast` and the others read it.

    Notes
    -----
    Summed over the tokens of the key region, averaged over those of the query region: a longer key region gets more
    attention for its length alone. Keys after a query have attention 0 in a causal model.

    References
    ----------
    Jain & Wallace (2019), Attention is not Explanation. Clark et al. (2019), What Does BERT Look At?

    Examples
    --------
    BOS and the text share all of it:

    >>> from neurosae.causal.scored import example_stimuli
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model = load_model(toy, device="cpu")
    >>> found = attention(example_stimuli(), model, queries=["target"], keys=["first", "all"])
    >>> (found["attn->first"].X + found["attn->all"].X).toarray().round(5).tolist()[0]
    [1.0, 1.0]
    """
    wanted = tuple(dict.fromkeys([*queries, *keys]))
    needs_target = "target" in wanted
    scored = score_stimuli(stimuli, model, dictionaries=dictionaries, regions=wanted, targets=needs_target)
    shares = attention_shares(scored, [(q, k) for k in keys for q in queries])
    heads = head_table(scored.model)
    return {
        f"attn->{key}": as_responses(
            stimuli, scored, {query: shares[query, key] for query in queries},
            var=heads.set_axis([f"attn->{key}/{name}" for name in heads.index]),
        )
        for key in keys
    }  # fmt: skip


def head_table(model: LanguageModel) -> pd.DataFrame:
    """Layer and head of every column, index L0H0 …"""
    n_heads = int(model.bridge.cfg.n_heads)
    layer, head = np.repeat(np.arange(model.n_layers), n_heads), np.tile(np.arange(n_heads), model.n_layers)
    names = [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)]
    return pd.DataFrame({"layer": layer.astype("int32"), "head": head.astype("int32")}, index=names)


def attention_shares(
    scored: Scored, pairs: Sequence[tuple[str, str]], *, batch_tokens: int = 4096
) -> dict[tuple[str, str], np.ndarray]:
    """{(query, key): float64 (n_stimuli, n_layers * n_heads)}; 0 where a stimulus lacks one of the regions."""
    n, model = len(scored.ids), scored.model
    n_heads = int(model.bridge.cfg.n_heads)
    out = {pair: np.zeros((n, model.n_layers * n_heads)) for pair in pairs}
    for rows in with_bar(length_buckets([len(ids) for ids in scored.ids], batch_tokens), "attention"):
        ids, mask = pad([scored.ids[i] for i in rows])
        weights = {pair: _weights(scored, rows, ids.shape[1], pair=pair) for pair in pairs}

        def reduce(layer: int, pattern: torch.Tensor, *, rows: np.ndarray = rows, weights: Any = weights) -> None:
            for pair, (of_query, of_key) in weights.items():
                to = torch.as_tensor(of_key, dtype=pattern.dtype, device=pattern.device)
                since = torch.as_tensor(of_query, dtype=pattern.dtype, device=pattern.device)
                made = torch.einsum("bhqk,bq,bk->bh", pattern, since, to)
                out[pair][rows, layer * n_heads : (layer + 1) * n_heads] = made.double().cpu().numpy()

        each_pattern(model, ids, mask, take=reduce)
    return out


def _weights(scored: Scored, rows: np.ndarray, width: int, *, pair: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of tokens as queries (their mean) and as keys (their sum), (n, width) each."""
    query, key = (np.zeros((len(rows), width)) for _ in range(2))
    for k, i in enumerate(rows):
        q, s = scored.cells[pair[0]][i], scored.cells[pair[1]][i]
        if len(q):
            query[k, q] = 1 / len(q)
        key[k, s] = 1
    return query, key


def each_pattern(
    model: LanguageModel, ids: np.ndarray, mask: np.ndarray, *, take: Callable[[int, torch.Tensor], None]
) -> None:
    """Call `take(layer, pattern)` with the attention (n, n_heads, length, length) of every layer, float32, in one pass.

    Raises
    ------
    ModelError
        A layer gives no attention pattern.
    """
    fired: set[int] = set()
    names = {f"blocks.{layer}.attn.hook_pattern": layer for layer in range(model.n_layers)}
    missing = [name for name in names if name not in model.hooks]

    def keep(name: str) -> Any:
        def hook_function(tensor: torch.Tensor, hook: Any) -> None:
            del hook
            if tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2] == ids.shape[1]:
                fired.add(names[name])
                take(names[name], tensor.float())

        return hook_function

    if not missing:
        place = torch.device(model.device)
        tokens, seen = (torch.as_tensor(a, dtype=torch.long, device=place) for a in (ids, mask))
        with torch.inference_mode(), precision(model):
            model.bridge.run_with_hooks(
                tokens, fwd_hooks=[(name, keep(name)) for name in names], return_type=None, attention_mask=seen
            )
        missing = [name for name, layer in names.items() if layer not in fired]
    if missing:
        raise ModelError(f"{model.name} gives no attention pattern at {', '.join(missing)}; its attention is computed "
                         "without one.")  # fmt: skip


def run(responses: Mapping[str, AnnData], ask: Any, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """One block of `tests:` with `test: attention`: one family over heads, query and key regions, and effects."""
    del responses, earlier, rng
    model, dictionaries = study.live()
    sites = attention(study.stimuli, model, dictionaries, queries=ask.region, keys=ask.keys)
    effects = block_effects(ask, study, what="attention")
    tested = run_sites(sites, ask, study, effects=effects, noun="heads")
    heads = head_table(model)
    at = tested.table["feature"]
    names = pd.array([pd.NA if pd.isna(j) else heads.index[int(j)] for j in at], dtype="string")
    table = tested.table.assign(x_head=names)
    means = pd.concat([_means(adata, site, study.design, split=ask.split) for site, adata in sites.items()])
    return tested._replace(table=table, extras={**tested.extras, "attention": means.reset_index(drop=True)})


def _means(adata: AnnData, site: str, design: Any, *, split: str) -> pd.DataFrame:
    """Mean share by head, query region and cell: `site key region head layer cell mean n`."""
    obs = adata.obs
    used = (obs["split"].astype(str) == split).to_numpy()
    cell = obs[list(design.factors)].astype(str).agg("/".join, axis=1).to_numpy()
    X, rows = adata.X.toarray(), []
    for region in dict.fromkeys(obs["region"].astype(str)):
        for name in dict.fromkeys(cell):
            at = used & (cell == name) & (obs["region"].astype(str) == region).to_numpy()
            if at.any():
                var = adata.var
                rows.append(pd.DataFrame({
                    "site": site, "key": site.removeprefix("attn->"), "region": region, "cell": name,
                    "feature": var["feature"].to_numpy(), "layer": var["layer"].to_numpy(),
                    "head": var["head"].to_numpy(), "mean": X[at].mean(axis=0), "n": int(at.sum()),
                }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)
