r"""What setting a feature to its baseline would do to the logit difference, approximately, for all features at once.

1. one forward and one backward pass give the stream x and the gradient g of LD at every wanted token;
2. the dictionary encodes x into features f;
3. act x grad: `effect_j = sum over tokens (f0_j - f_j) <g, W_dec[j]>`, the first-order Taylor term of the edit
   `x + (f0 - f) W_dec`, in which the dictionary's error stays (attribution patching; Nanda 2023);
4. integrated gradients: g averaged along `x + (a - 1)(f - f0) W_dec`, a = 1/2m, 3/2m ..., and a completeness error.

Both have the sign of the exact intervention: negative where removing the feature costs the target logits. They are a
screen; whether the model uses a feature is for `screened.py` and `test: intervention` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.causal.gradients import BACKWARD_TOKENS, ld_gradients
from neurosae.causal.scored import Scored, as_responses, score_stimuli
from neurosae.errors import DataError, ModelError, choose
from neurosae.extraction.run import features_table

METHODS = {"act_x_grad": 1, "integrated_gradients": 2}
BASELINES = {"zero": 1, "mean": 2, "partner": 3}
CHUNK = 1 << 22  # products of decoder rows and gradients held at once


class Attributed(NamedTuple):
    """Effects of one site and region.

    Attributes
    ----------
    effects : CSR float64 (n_stimuli, n_features), change of LD
    activations : CSR (n_stimuli, n_features), mean over the region's tokens
    baseline : CSR (n_stimuli, n_features), what each feature would be set to
    logit_diff : (n_stimuli,), LD of the plain model
    completeness : (n_stimuli,), sum of effects minus the change of LD when all features are set to their baseline at
        once; nan for act x grad
    """

    effects: sp.csr_matrix
    activations: sp.csr_matrix
    baseline: sp.csr_matrix
    logit_diff: np.ndarray
    completeness: np.ndarray


def attribute(
    stimuli: pd.DataFrame,
    model: Any,
    dictionaries: Mapping[str, Any],
    *,
    region: str = "target",
    method: str = "act_x_grad",
    baseline: str = "zero",
    steps: int = 8,
) -> dict[str, Any]:
    r"""Approximate effect on LD of setting each feature to its baseline, for all features of all sites.

    With x the stream, f the features, g the gradient of LD = logit[target] - logit[foil] and f0 the baseline,

        act_x_grad:           sum_t (f0_j - f_tj) <g_t, W_dec[j]>
        integrated_gradients: the same with g averaged over `steps` midpoints of the line from f0 to f.

    Parameters
    ----------
    stimuli : from `expand`; the design needs a target
    model : LanguageModel, causal and with a head
    dictionaries : {site: dictionary}
    region : where the features would be set; or `target`, the token that predicts the target
    method : `act_x_grad`, one backward pass for all sites; `integrated_gradients`, `steps` passes per site
    baseline : `zero`; `mean` over the stimuli of all other items; `partner`, the mean over the cells of the same item
        and frame whose target is this one's foil. Mean and partner are one number per stimulus and feature, the mean
        over the tokens of the region
    steps : points of the line

    Returns
    -------
    {site: AnnData}
        Responses in which a value is a change of LD (logits), one row per stimulus, so that `contrast` and the others
        read them; `obs["logit_diff"]` is LD itself, `obs["completeness"]` the completeness error.

    Notes
    -----
    First-order: exact where LD is linear in the feature. Bends of attention, MLPs and normalisation are missed, so a
    value near 0 does not show that the feature is not used. Not for claims: use the exact ablation beside it.

    References
    ----------
    Sundararajan et al. (2017), Axiomatic Attribution for Deep Networks. Nanda (2023), Attribution Patching. Kramar et
    al. (2024), AtP*.

    Examples
    --------
    Neurons as features; the approximate effects of removing them all, one by one:

    >>> from neurosae.causal.scored import example_stimuli
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> raw = neuron_dictionary("blocks.0.hook_resid_pre", 8)
    >>> found = attribute(example_stimuli(), load_model(toy, device="cpu"), {"raw": raw})["raw"]
    >>> found.shape, bool((abs(found.X.toarray()).sum(axis=1) > 0).all())
    ((4, 16), True)
    """
    choose("method of attribution", method, METHODS)
    choose("baseline", baseline, BASELINES)
    scored = score_stimuli(stimuli, model, dictionaries=dictionaries, regions=(region,))
    found = attributed(stimuli, scored, dictionaries, region=region, method=method, baseline=baseline, steps=steps)
    out = {}
    for site, made in found.items():
        adata = as_responses(
            stimuli, scored, {region: made.effects}, var=features_table(site, dictionaries[site]),
            logit_diff=made.logit_diff, provenance={"attribution": {"method": method, "baseline": baseline}},
        )  # fmt: skip
        has = [len(row) > 0 for row in scored.cells[region]]
        adata.obs["completeness"] = made.completeness[has]
        out[site] = adata
    return out


def attributed(
    stimuli: pd.DataFrame,
    scored: Scored,
    dictionaries: Mapping[str, Any],
    *,
    region: str,
    method: str = "act_x_grad",
    baseline: str = "zero",
    steps: int = 8,
) -> dict[str, Attributed]:
    """The same as `attribute`, as plain matrices."""
    if not dictionaries:
        raise DataError("attribution needs a dictionary; give {site: dictionary}.")
    rows = np.repeat(np.arange(len(scored.ids)), [len(c) for c in scored.cells[region]])
    hooks = list(dict.fromkeys(d.hook for d in dictionaries.values()))
    x, gradient, logit_diff = _at_cells(scored, hooks, region=region)
    out = {}
    for site, d in dictionaries.items():
        codes = sp.csr_matrix(d.encode(x[d.hook]), dtype=np.float64)
        means = sp.csr_matrix(_mean_rows(rows, len(scored.ids)) @ codes)
        has = np.array([len(c) > 0 for c in scored.cells[region]])
        zero = _baseline(means, stimuli, has, kind=baseline)
        line = _Line(codes, zero, rows)
        g, gap = gradient[d.hook], np.full(len(scored.ids), np.nan)
        if method == "integrated_gradients":
            g, end = _along(scored, d, line, region=region, steps=steps)
            gap = -(end - logit_diff)
        effects = line.effects(g, d.W_dec)
        if method == "integrated_gradients":
            gap = gap + np.asarray(effects.sum(axis=1)).ravel()
        out[site] = Attributed(effects, means, zero, logit_diff, gap)
    return out


# ------------------------------------------------------------------ cells


def _at_cells(
    scored: Scored, hooks: Sequence[str], *, region: str, moved: Any = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], np.ndarray]:
    """Stream and gradient of every token of a region, in the order of the stimuli, and LD of every stimulus."""
    cells = scored.cells[region]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cells])]).astype(int)
    x: dict[str, torch.Tensor] = {}
    gradient: dict[str, torch.Tensor] = {}
    logit_diff = np.empty(len(scored.ids))
    for batch in ld_gradients(scored, hooks, moved=moved, batch_tokens=BACKWARD_TOKENS):
        line = np.repeat(np.arange(len(batch.stimuli)), [len(cells[i]) for i in batch.stimuli])
        token = np.concatenate([cells[i] for i in batch.stimuli])
        place = np.concatenate([np.arange(int(starts[i]), int(starts[i + 1])) for i in batch.stimuli])
        logit_diff[batch.stimuli] = batch.logit_diff.cpu().double().numpy()
        for hook in hooks:
            for kept, given in ((x, batch.x[hook]), (gradient, batch.gradient[hook])):
                if hook not in kept:
                    kept[hook] = torch.zeros(starts[-1], given.shape[-1])
                kept[hook][place] = given[line, token].cpu()
    if moved is None and (silent := [hook for hook in hooks if not bool((gradient[hook] != 0).any())]):
        raise ModelError(
            f"the logit difference does not depend on {', '.join(silent)} at '{region}': no later layer reads those "
            "tokens; name `target`, or a site at an earlier layer."
        )
    return x, gradient, logit_diff


def _mean_rows(rows: np.ndarray, n: int) -> sp.csr_matrix:
    """The matrix (n, n_cells) that averages the cells of every stimulus."""
    counts = np.bincount(rows, minlength=n)
    return sp.csr_matrix((1 / counts[rows], (rows, np.arange(len(rows)))), shape=(n, len(rows)))


def _baseline(means: sp.csr_matrix, stimuli: pd.DataFrame, has: np.ndarray, *, kind: str) -> sp.csr_matrix:
    """What every feature would be set to in every stimulus, CSR (n_stimuli, n_features); `has`: it has the region."""
    if kind == "zero":
        return sp.csr_matrix(means.shape, dtype=np.float64)
    if kind == "mean":
        item = pd.factorize(stimuli["item"].astype(str))[0]
        other = (item[:, None] != item[None, :]) & has[None, :]
        if not other.any(axis=1).all():
            raise DataError("the baseline `mean` averages other items, and there is only one; use zero.")
        return sp.csr_matrix(sp.csr_matrix(other / other.sum(axis=1, keepdims=True)) @ means)
    return sp.csr_matrix(sp.csr_matrix(partners(stimuli)) @ means)


def partners(stimuli: pd.DataFrame) -> np.ndarray:
    """Weights (n, n) of the stimuli that stand for each one's partner: same item and frame, target and foil swapped.

    Examples
    --------
    >>> two = {"item": ["key"] * 2, "frame": ["a"] * 2, "target": [" is", " are"], "foil": [" are", " is"]}
    >>> partners(pd.DataFrame(two)).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    keys = [stimuli[name].astype(str).to_numpy() for name in ("item", "frame")]
    same = (keys[0][:, None] == keys[0][None]) & (keys[1][:, None] == keys[1][None])
    target, foil = (stimuli[name].astype(str).str.strip().to_numpy() for name in ("target", "foil"))
    weights = (same & (target[None] == foil[:, None]) & (foil[None] == target[:, None])).astype(float)
    total = weights.sum(axis=1, keepdims=True)
    if (total == 0).any():
        raise DataError(
            f"stimulus '{stimuli.index[int(np.flatnonzero(total == 0)[0])]}' has no partner of the same item and frame "
            "whose target is its foil; use baseline zero or mean."
        )
    return weights / total


# ------------------------------------------------------------------ the line from the baseline


class _Line(NamedTuple):
    """Features f of every cell, their baseline f0 of every stimulus, and the stimulus of each cell."""

    codes: sp.csr_matrix
    baseline: sp.csr_matrix
    rows: np.ndarray

    def effects(self, g: torch.Tensor, W_dec: torch.Tensor) -> sp.csr_matrix:
        """Sum over cells of (f0 - f) <g, W_dec> (n_stimuli, n_features)."""
        n = self.baseline.shape[0]  # pyright: ignore[reportOptionalSubscript]
        gather = sp.csr_matrix(
            (np.ones(len(self.rows)), (self.rows, np.arange(len(self.rows)))), shape=(n, len(self.rows))
        )
        gradients, decoder = g.double().cpu().numpy(), W_dec.detach().double().cpu().numpy()
        lost = gather @ times_products(self.codes, gradients, decoder)
        if not self.baseline.nnz:
            return sp.csr_matrix(-lost)
        return sp.csr_matrix(times_products(self.baseline, gather @ gradients, decoder) - lost)

    def shift(self, W_dec: torch.Tensor) -> np.ndarray:
        """(f - f0) W_dec of every cell (n_cells, d): what is taken away on the way to the baseline."""
        decoder = W_dec.detach().double().cpu().numpy()
        return self.codes @ decoder - (self.baseline @ decoder)[self.rows]


def times_products(codes: sp.csr_matrix, gradients: np.ndarray, decoder: np.ndarray) -> sp.csr_matrix:
    """codes_ij <gradients_i, decoder_j> where codes are not 0: never dense over all features.

    Examples
    --------
    >>> times_products(sp.csr_matrix([[2.0, 0.0]]), np.array([[1.0, 3.0]]), np.eye(2)).toarray().tolist()
    [[2.0, 0.0]]
    """
    codes = sp.csr_matrix(codes)
    row = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))  # pyright: ignore
    out = np.empty(codes.nnz)
    step = max(1, CHUNK // max(decoder.shape[1], 1))
    for a in range(0, codes.nnz, step):
        part = slice(a, a + step)
        out[part] = np.einsum("nd,nd->n", gradients[row[part]], decoder[codes.indices[part]])
    return sp.csr_matrix((codes.data * out, codes.indices, codes.indptr), shape=codes.shape)


def _along(scored: Scored, dictionary: Any, line: _Line, *, region: str, steps: int) -> tuple[torch.Tensor, np.ndarray]:
    """Mean gradient over the midpoints of the line, and LD where all features are at their baseline."""
    away, cells = line.shift(dictionary.W_dec), scored.cells[region]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cells])]).astype(int)

    def at(share: float) -> Any:
        def moved(rows: np.ndarray, width: int) -> dict[str, torch.Tensor]:
            out = torch.zeros(len(rows), width, away.shape[1])
            for k, i in enumerate(rows):
                out[k, cells[i]] = torch.as_tensor((share - 1) * away[starts[i] : starts[i + 1]], dtype=torch.float32)
            return {dictionary.hook: out}

        return moved

    total = torch.zeros(len(away), away.shape[1], dtype=torch.float64)
    for k in range(steps):
        found = _at_cells(scored, [dictionary.hook], region=region, moved=at((k + 0.5) / steps))
        total += found[1][dictionary.hook].double() / steps
    end = _at_cells(scored, [dictionary.hook], region=region, moved=at(0.0))[2]
    return total, end
