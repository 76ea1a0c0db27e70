"""Counterparts of a feature at other sites: the same direction, the same firing, and what it hands on.

A decoder cosine compares directions where both sites lie in the same residual stream; a correlation compares what
fires on the same tokens; an edge says how much the feature itself, at one token, moves the later one there, by the
gradient of the model between them. The three need not agree, and none of them dates the first layer of an effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.causal.gradients import Stop, frozen_weights
from neurosae.errors import DataError, ModelError, choose
from neurosae.examine.directions import checked
from neurosae.examine.stream import Tokens, stream_text
from neurosae.extraction.packing import pad
from neurosae.extraction.passes import precision
from neurosae.extraction.tokens import agreed_bos, token_ids

CONTEXTS = 32  # active tokens that an edge is averaged over
CANDIDATES = 3  # of either kind, whose edges are computed


def track_feature(
    model: Any,
    dictionaries: Mapping[str, Any],
    texts: Sequence[str],
    *,
    site: str,
    feature: int,
    sites: Sequence[str] | None = None,
    n_tokens: int | None = 20_000,
) -> pd.DataFrame:
    r"""Find the counterparts of a feature at other sites.

    With f_j the activation of the feature at its site (stream x), and z_k the pre-activation of a feature k at a later
    one, at the same token,

        edge_jk = mean over tokens with f_j > 0 of   f_j <d z_k / d x, W_dec[j]>.

    Parameters
    ----------
    model : LanguageModel with a tokenizer
    dictionaries : {site: Dictionary}
    texts : documents
    site, feature : which feature
    sites : where counterparts are looked for; left out, all other sites
    n_tokens : tokens that correlations are taken over

    Returns
    -------
    DataFrame
        `site feature other counterpart cosine correlation edge n_edge by note`: for every other site the features with
        the largest decoder cosine (`by` cosine) and correlation of activations (`by` correlation). The cosine is
        missing where the two hook points are not of one width; the correlation where one of the two features never
        fires or never changes; the edge where the other site is not later, or the feature never fires. A site without
        any candidate has one row, without counterpart, that says why.

    Notes
    -----
    Correlations are over tokens of one text, not corrected for the many features looked at: they propose. "The first
    layer with an effect" does not follow from them.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=2, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {f"r{i}": neuron_dictionary(f"blocks.{i}.hook_resid_post", 8) for i in range(2)}
    >>> found = track_feature(load_model(toy), raw, ["a red box", "an old boat"], site="r0", feature=3)
    >>> int(found[found["by"] == "cosine"]["counterpart"].iloc[0])
    3
    """
    own = choose("site", site, dictionaries)
    j = int(checked(own, [feature])[0])
    others = [name for name in (dictionaries if sites is None else sites) if name != site]
    for name in others:
        choose("site", name, dictionaries)
    if not others:
        raise DataError(f"no site but '{site}' itself is looked at; counterparts need another one, sites=['other'].")
    wanted = {name: dictionaries[name] for name in (site, *others)}
    correlation, contexts = _correlations(model, wanted, texts, site=site, feature=j, n_tokens=n_tokens)
    tables = []
    for name in others:
        cosine = _cosines(own, dictionaries[name], j)
        rows = _candidates(cosine, correlation[name])
        if not rows:
            note = "no candidate: the hook points are not of one width, and the feature does not vary on these texts."
            tables.append(pd.DataFrame([{"site": site, "feature": j, "other": name, "n_edge": 0, "note": note}]))
            continue
        later = _depth(dictionaries[name].hook) > _depth(own.hook)
        edges, note = np.full(len(rows), np.nan), None
        if not later:
            note = "no edge: the other site is not later."
        elif not contexts:
            note = "no edge: the feature never fires on these texts."
        else:
            edges = _edges(model, (own, dictionaries[name]), contexts, j=j, others=[k for k, _ in rows])
        ids = [k for k, _ in rows]
        tables.append(pd.DataFrame({
            "site": site, "feature": j, "other": name, "counterpart": ids,
            "cosine": np.nan if cosine is None else cosine[ids], "correlation": correlation[name][ids],
            "edge": edges, "n_edge": len(contexts) if later else 0, "by": [by for _, by in rows], "note": note,
        }))  # fmt: skip
    order = ["site", "feature", "other", "counterpart", "cosine", "correlation", "edge", "n_edge", "by", "note"]
    return pd.concat(tables, ignore_index=True).reindex(columns=order).astype({"counterpart": "Int64"})


def _depth(hook: str) -> float:
    """Place of a hook point in the model, for "later"; within a layer in the order of computation."""
    parts = hook.split(".")
    inside = {"hook_resid_pre": 0, "hook_in": 0, "hook_z": 1, "hook_attn_out": 2, "hook_resid_mid": 3, "hook_post": 4,
              "hook_mlp_out": 5, "hook_resid_post": 6, "hook_out": 6}  # fmt: skip
    if parts[0] != "blocks":
        return -1.0 if "embed" in hook else float("inf")
    name = next((p for p in reversed(parts) if p in inside), "")
    return int(parts[1]) + inside.get(name, 3) / 10


def _correlations(
    model: Any, wanted: Mapping[str, Any], texts: Sequence[str], *, site: str, feature: int, n_tokens: int | None
) -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, int, float]]]:
    """Correlation of a feature with every other one over tokens, and contexts where it is active."""
    sums = {name: np.zeros((3, d.n_features)) for name, d in wanted.items()}
    state = {"n": 0, "sum": 0.0, "square": 0.0}
    column: dict[str, sp.csr_matrix] = {}
    active: list[tuple[int, int, int, float]] = []  # text, first token of the context, token, activation

    def take(name: str, codes: sp.csr_matrix, tokens: Tokens) -> None:
        if name == site:  # the first site of every batch
            mine = sp.csr_matrix(codes[:, [feature]])
            column["f"] = mine
            at, values = mine.nonzero()[0], mine.data.astype(np.float64)
            state["n"] += len(tokens.text)
            state["sum"] += values.sum()
            state["square"] += (values**2).sum()
            found = zip(at.tolist(), values.tolist(), strict=True)
            active.extend((int(tokens.text[i]), int(tokens.start[i]), int(tokens.token_index[i]), v) for i, v in found)
        exact = codes.astype(np.float64)
        sums[name] += np.stack([
            np.asarray((column["f"].T.astype(np.float64) @ exact).todense()).ravel(),
            np.asarray(exact.sum(axis=0)).ravel(),
            np.asarray(exact.multiply(exact).sum(axis=0)).ravel(),
        ])  # fmt: skip

    texts = list(texts)
    stream_text(model, wanted, texts, take=take, n_tokens=n_tokens)
    n, var = state["n"], state["square"] - state["sum"] ** 2 / state["n"]
    made = {}
    for name, (both, own, square) in sums.items():
        size = np.sqrt(np.maximum(var, 0) * np.maximum(square - own**2 / n, 0))
        made[name] = np.where(size > 1e-12, (both - state["sum"] * own / n) / np.where(size > 0, size, 1), np.nan)
    return made, _contexts(model, wanted, texts, active=active)


def _contexts(
    model: Any, wanted: Mapping[str, Any], texts: Sequence[str], *, active: list[tuple[int, int, int, float]]
) -> list[tuple[np.ndarray, int, float]]:
    """Ids up to an active token, its place among them, its activation: evenly over the active tokens."""
    if not active:
        return []
    active.sort()
    chosen = [active[i] for i in np.unique(np.linspace(0, len(active) - 1, CONTEXTS).round().astype(int))]
    tokens: Any = agreed_bos(model.tokens, wanted)
    out = []
    for text, start, index, value in chosen:
        own = token_ids(tokens, [str(texts[text])], specials=False)[0][start : index + 1]
        ids = np.array([*tokens.prefix, *own], dtype=np.int64)
        out.append((ids, len(ids) - 1, value))
    return out


def _cosines(own: Any, other: Any, j: int) -> np.ndarray | None:
    if own.d_in != other.d_in:
        return None
    W = other.W_dec.detach().cpu().double()
    v = own.W_dec[j].detach().cpu().double()
    return ((W @ v) / (W.norm(dim=1) * v.norm()).clamp(min=1e-12)).numpy()


def _candidates(cosine: np.ndarray | None, correlation: np.ndarray) -> list[tuple[int, str]]:
    """The features with the largest cosine and correlation; one that leads both lists is listed under the first."""
    rows: dict[int, str] = {}
    for by, values in (("cosine", cosine), ("correlation", correlation)):
        if values is None:
            continue
        best = np.argsort(-values, kind="stable")[:CANDIDATES]  # what is not known comes last
        for k in best[np.isfinite(values[best])].tolist():
            rows.setdefault(k, by)
    return list(rows.items())


def _edges(
    model: Any, pair: tuple[Any, Any], contexts: Sequence[tuple[np.ndarray, int, float]], *, j: int,
    others: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Mean of f_j <dz_k/dx, W_dec[j]> at the same token, for every k; one sequence per active token."""
    own, other = pair
    ids, mask = pad([one[0] for one in contexts])
    place = torch.arange(len(contexts), device=model.device)
    at = torch.as_tensor([one[1] for one in contexts], device=model.device)
    caught: dict[str, torch.Tensor] = {}

    def catch(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        caught["x"] = tensor.detach().clone().requires_grad_(True)
        return caught["x"]

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        caught["y"] = tensor
        raise Stop

    batch, seen = (torch.as_tensor(part, dtype=torch.long, device=model.device) for part in (ids, mask))
    value = torch.as_tensor([one[2] for one in contexts], device=model.device, dtype=torch.float32)
    out = []
    with frozen_weights(model), precision(model), torch.enable_grad():
        with contextlib.suppress(Stop):
            pairs = [(own.hook, catch), (other.hook, keep)]
            model.bridge.run_with_hooks(batch, fwd_hooks=pairs, return_type=None, attention_mask=seen)
        if "y" not in caught:
            raise ModelError(f"{other.hook} never fired after {own.hook}, so nothing is handed on between them.")
        y = caught["y"][place, at].float().flatten(1)
        for k in others:
            z = other.preactivations(y, [k]).sum()
            (gradient,) = torch.autograd.grad(z, caught["x"], retain_graph=True)
            step = (gradient[place, at].float().flatten(1) * own.W_dec[j].to(model.device)).sum(dim=1)
            out.append(float((value * step).mean()))
    return np.array(out)
