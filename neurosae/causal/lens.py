r"""The logit lens: what the model would predict if its stream were read out after each layer.

The residual stream of every layer goes through the final normalisation and the unembedding. Reading is not causal:
what can be read at a layer need not be what later layers use (nostalgebraist 2020; Belrose et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurosae.causal.progress import with_bar
from neurosae.causal.scored import TARGET, Scored, as_responses, score_stimuli
from neurosae.causal.tested import block_effects, run_sites
from neurosae.errors import choose
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, hooked_pass, logits_of
from neurosae.spec.results import Tested
from neurosae.stats.units import AnnData

MEASURES = {"logit_diff": "logits", "log_prob": "nats", "rank": "places", "prob": "probability"}
SITE = "logit_lens"
HELD = 1 << 22  # logits held at once


def lens_hooks(model: LanguageModel) -> list[str]:
    """The residual stream before the first block, and after each."""
    return ["blocks.0.hook_resid_pre", *(f"blocks.{k}.hook_resid_post" for k in range(model.n_layers))]


def logit_lens(
    stimuli: pd.DataFrame, model: LanguageModel, dictionaries: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    r"""Target and foil read out of the stream after every layer, at the token that predicts the target.

    With x_l the residual stream after layer l (0: the embedding),

        logits_l = unembed(ln_final(x_l)),   LD_l = logits_l[target] - logits_l[foil].

    Parameters
    ----------
    stimuli : from `expand`; the design needs a target
    model : LanguageModel, causal and with a head
    dictionaries : {site: dictionary}, which decide about BOS; none needed

    Returns
    -------
    DataFrame, one row per stimulus and layer
        `stimulus item frame split`, factors, `layer hook logit_diff log_prob prob rank`; log_prob in nats, rank 1 is
        the most probable token of the vocabulary. The last layer is the model's own output.

    Notes
    -----
    Early streams are not in the coordinates that the unembedding reads, so a low LD there is no evidence that the
    target is not yet decided, and the first layer where LD differs from 0 is not where the model decides.

    References
    ----------
    nostalgebraist (2020), interpreting GPT: the logit lens. Belrose et al. (2023), Eliciting Latent Predictions from
    Transformers with the Tuned Lens.

    Examples
    --------
    >>> from neurosae.causal.scored import example_stimuli
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> table = logit_lens(example_stimuli(), load_model(toy, device="cpu"))
    >>> table.shape[0], table["hook"].unique().tolist()
    (8, ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post'])
    """
    scored = score_stimuli(stimuli, model, dictionaries=dictionaries, regions=(TARGET,))
    read = read_layers(scored)
    hooks, n = lens_hooks(scored.model), len(scored.ids)
    names = ["item", "frame", "split", *(scored.design.factors if scored.design is not None else ())]
    own = stimuli[[name for name in names if name in stimuli]].reset_index(names="stimulus")
    table = own.iloc[np.repeat(np.arange(n), len(hooks))].reset_index(drop=True)
    table["layer"], table["hook"] = np.tile(np.arange(len(hooks)), n), np.tile(hooks, n)
    return table.assign(**{name: values.ravel() for name, values in read.items()})


def read_layers(scored: Scored, *, batch_tokens: int = 4096) -> dict[str, np.ndarray]:
    """Every measure of every stimulus and layer, {measure: float64 (n_stimuli, n_layers + 1)}."""
    model, hooks, n = scored.model, lens_hooks(scored.model), len(scored.ids)
    out = {name: np.empty((n, len(hooks))) for name in MEASURES}
    for rows in with_bar(length_buckets([len(ids) for ids in scored.ids], batch_tokens), "logit lens"):
        ids, mask = pad([scored.ids[i] for i in rows])
        streams = hooked_pass(model, ids, mask, hooks=hooks, rows=np.arange(len(rows)), cols=scored.at[rows])
        step = max(1, HELD // model.n_vocab)
        for layer, hook in enumerate(hooks):
            for a in range(0, len(rows), step):
                part = rows[a : a + step]
                found = _measured(model, streams[hook][a : a + step], scored.answers[part])
                for name, values in found.items():
                    out[name][part, layer] = values
    return out


def _measured(model: LanguageModel, x: torch.Tensor, answers: np.ndarray) -> dict[str, np.ndarray]:
    logits = logits_of(model, x)
    both = logits.gather(1, torch.as_tensor(answers, device=logits.device))
    log_p = both[:, 0] - logits.logsumexp(dim=1)
    rank = 1 + (logits > both[:, :1]).sum(dim=1)
    found = {"logit_diff": both[:, 0] - both[:, 1], "log_prob": log_p, "prob": log_p.exp(), "rank": rank}
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def run(responses: Mapping[str, AnnData], ask: Any, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """One block of `tests:` with `test: logit_lens`: one family over layers and effects."""
    del responses, earlier, rng
    model, dictionaries = study.live()
    stimuli = study.stimuli
    choose("measure of the logit lens", ask.measure, MEASURES)
    scored = score_stimuli(stimuli, model, dictionaries=dictionaries, regions=(TARGET,))
    read = read_layers(scored)
    hooks = lens_hooks(scored.model)
    var = pd.DataFrame({"hook": hooks}, index=[f"{SITE}/{k}" for k in range(len(hooks))])
    values = {TARGET: read[ask.measure]}
    adata = as_responses(stimuli, scored, values, var=var, logit_diff=read["logit_diff"][:, -1])
    effects = block_effects(ask, study, what=f"the {ask.measure} read at a layer")
    tested = run_sites({SITE: adata}, ask, study, effects=effects, noun="layers")
    table = tested.table.assign(x_measure=ask.measure, x_layer=tested.table["feature"])
    used = stimuli["split"].astype(str) == ask.split
    long = cell_means(stimuli[used], {name: values[used.to_numpy()] for name, values in read.items()}, study.design)
    return tested._replace(table=table, extras={**tested.extras, "lens": long})


def cell_means(stimuli: pd.DataFrame, read: Mapping[str, np.ndarray], design: Any) -> pd.DataFrame:
    """Means over items and frames by cell and layer, for the heat map; the median of ranks.

    Returns
    -------
    DataFrame of `cell layer n` and every measure
    """
    cell = stimuli[list(design.factors)].astype(str).agg("/".join, axis=1).to_numpy()
    rows = []
    for name in dict.fromkeys(cell):
        at = cell == name
        for layer in range(next(iter(read.values())).shape[1]):
            row = {m: float(np.median(v[at, layer]) if m == "rank" else v[at, layer].mean()) for m, v in read.items()}
            rows.append({"cell": name, "layer": layer, "n": int(at.sum()), **row})
    return pd.DataFrame(rows)
