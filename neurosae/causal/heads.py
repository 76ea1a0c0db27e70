r"""Heads by what they do on repeated random tokens, and the three things that make one an induction head.

An induction head finds the earlier occurrence of the present token and attends to what came next (Elhage et al. 2021;
Olsson et al. 2022). It is called one here only if all three hold, each over random sequences as units:

1. its induction score exceeds that of the same offset in a sequence without repetition (max-T over heads and scores);
2. the model predicts the second copy better than the first;
3. replacing the head by its mean raises the loss of the second copy, and more than replacing heads of its layer that
   write vectors of similar length (max-T over heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.attention import head_table
from neurosae.causal.edits import Edit
from neurosae.causal.inference import ItemTests, item_tests
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.sequences import (
    SCORES,
    Sequences,
    copy_losses,
    draw_sequences,
    head_outputs,
    read_scores,
    uniform_scores,
)
from neurosae.causal.tested import name_of
from neurosae.errors import DataError
from neurosae.extraction.passes import LanguageModel
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.units import AnnData

SITE = "heads"
AGAINST = {
    "duplicate": "the same offset without repetition",
    "induction": "the same offset without repetition",
    "previous": "uniform attention",
    "sink": "uniform attention",
    "entropy": "uniform attention",
}


class Ablated(NamedTuple):
    """Rise of the second copy's loss when each head is replaced by its mean, nats, (n_sequences, n_heads); controls."""

    rise: np.ndarray
    controls: list[np.ndarray]
    ratio: np.ndarray


def head_scores(
    model: LanguageModel,
    *,
    n_sequences: int = 32,
    lengths: tuple[int, int] = (16, 48),
    n_controls: int = 3,
    n_permutations: int = 10_000,
    alpha: float = 0.05,
    seed: int,
) -> pd.DataFrame:
    r"""Score every head on repeated random tokens, ablate it, and call induction only what passes all three tests.

    On [BOS] s s with s of T random distinct tokens, t over the second copy and A the attention,

        previous = mean A[t, t-1],  duplicate = mean A[t, t-T],  induction = mean A[t, t-T+1],
        sink = mean A[t, 0],  entropy = mean of -sum_s A[t, s] log2 A[t, s]   (bits).

    Parameters
    ----------
    model : LanguageModel, causal and with a head
    n_sequences : the units, each with its control [BOS] s r that repeats nothing
    lengths : smallest and largest T, drawn for every sequence
    n_controls : heads of the same layer, nearest in the length of what they write, that an ablation is compared with
    n_permutations : flips of whole sequences
    alpha : level of the three tests
    seed : of the sequences and flips

    Returns
    -------
    DataFrame
        The results schema; one row per head and score, one per head for `ablation`, one for `copy`. `estimate` is the
        score minus its reference: for duplicate and induction the same offset without repetition; for previous, sink
        and entropy attention spread evenly (a head that looks at the previous token does so with or without
        repetition). Extras: `x_repeated`, `x_control`, `x_uniform` the scores themselves; `x_rise` the rise of the
        second copy's loss, nats per token; `x_p_control` its rank among the controls; `x_norm_ratio` of the worst
        matched control; `x_verdict` and what is missing.

    Notes
    -----
    H0 of duplicate and induction: repeated and control sequences are exchangeable. H0 of an ablation: replacing a head
    and replacing its controls are. Few heads per layer leave the rank among controls coarse, 1 / (n_controls + 1) at
    best, so it is stated beside the test over sequences and decides nothing. Random tokens are far from text: what a
    head does here it need not do there.

    References
    ----------
    Elhage et al. (2021), A Mathematical Framework for Transformer Circuits. Olsson et al. (2022), In-context Learning
    and Induction Heads.

    Examples
    --------
    A toy with random weights has no induction head:

    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=32, d_vocab=40, act_fn="gelu", seed=0)
    >>> model = load_model(toy, device="cpu")
    >>> found = head_scores(model, n_sequences=6, lengths=(4, 6), n_controls=1, n_permutations=100, seed=0)
    >>> bool(found["x_verdict"].dropna().str.startswith("induction head").any())
    False
    """
    if n_sequences < 6:
        raise DataError(f"{n_sequences} sequences allow {2**n_sequences} flips; use at least 6.")
    sequences = draw_sequences(model, n_sequences, lengths=lengths, seed=seed)
    settings: dict[str, Any] = {"n_permutations": n_permutations, "seed": seed}
    heads = head_table(model)
    losses = copy_losses(model, sequences)
    copied = item_tests(losses[:, 1:] - losses[:, :1], np.arange(n_sequences), **settings)
    ablated = ablate_heads(model, sequences, n_controls=n_controls)
    beside = np.stack([ablated.rise[:, controls].mean(1) for controls in ablated.controls], axis=1)
    excess = ablated.rise - beside
    against = item_tests(excess, np.arange(n_sequences), **settings)
    scores = _score_rows(model, sequences, heads, settings=settings)
    copy = _rows("copy", copied, n_sequences, x_first=losses[:, 0].mean(), x_second=losses[:, 1].mean())
    copy = copy.assign(family="the copy test alone", n_family=1, h0="first and second copy are predicted alike")
    cut = _rows("ablation", against, n_sequences, feature=np.arange(len(heads)))
    cut = cut.assign(family=f"ablations of {len(heads)} heads", n_family=len(heads), x_rise=ablated.rise.mean(0))
    cut = cut.assign(
        h0="replacing the head by its mean raises the loss of the second copy as much as replacing its controls",
        x_p_control=[_rank(ablated, j) for j in range(len(heads))], x_norm_ratio=ablated.ratio,
    )  # fmt: skip
    table = pd.concat([scores, cut, copy], ignore_index=True)
    names = [pd.NA if pd.isna(j) else heads.index[int(j)] for j in table["feature"]]
    table = verdicts(table.assign(x_head=pd.array(names, dtype="string")), alpha=alpha)
    columns = {name: table[name] for name in table.columns}
    return check_results(as_results(columns | {"n_features": 1}))


def ablate_heads(model: LanguageModel, sequences: Sequences, *, n_controls: int = 3) -> Ablated:
    """Replace each head by its mean over control sequences, at every token, and measure the second copy's loss."""
    norms, means = head_outputs(model, sequences)
    n_heads = int(model.bridge.cfg.n_heads)
    if n_heads < 2:
        raise DataError(f"{model.name} has one head per layer, so a head has no controls in its layer.")
    rows = [
        {"ids": row[sequences.first :], "second_start": T + 1, "second_end": 2 * T}
        for row, T in zip(sequences.repeated, sequences.lengths.tolist(), strict=True)
    ]
    stimuli = pd.DataFrame(rows, index=[f"sequence {i}" for i in range(len(rows))])
    conditions = []
    for j, mean in enumerate(means):
        layer, head = divmod(j, n_heads)
        conditions.append((Edit(f"blocks.{layer}.attn.hook_z.h{head}", "replace", "all", vector=mean),))
    made = edited_outcomes(stimuli, model, conditions, outcomes=("loss:second",))
    rise = made.values["loss:second"] - made.clean["loss:second"][:, None]
    controls, ratio = [], np.empty(len(norms))
    for j in range(len(norms)):
        same = [k for k in range(len(norms)) if k // n_heads == j // n_heads and k != j]
        distance = np.abs(np.log(norms[same] / norms[j]))
        near = np.array(same)[np.argsort(distance, kind="stable")[:n_controls]]
        controls.append(near)
        ratio[j] = float(np.exp(np.sort(distance)[: len(near)].max()))
    return Ablated(rise, controls, ratio)


def _rank(ablated: Ablated, j: int) -> float:
    """Rank of a head's mean rise among its controls, one-sided: (1 + #{control >= head}) / (K + 1)."""
    rise = ablated.rise.mean(0)
    return float((1 + (rise[ablated.controls[j]] >= rise[j]).sum()) / (1 + len(ablated.controls[j])))


def _score_rows(
    model: LanguageModel, sequences: Sequences, heads: pd.DataFrame, *, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """Rows of all scores, one family over heads and scores."""
    repeated, control = (read_scores(model, sequences, repeated=kind) for kind in (True, False))
    uniform, n, m = uniform_scores(sequences), len(sequences.lengths), len(heads)
    repeats = np.array(["repetition" in AGAINST[name] for name in SCORES])
    D = np.where(repeats[None, :, None], repeated - control, control - uniform[:, :, None])
    found = item_tests(D.reshape(n, -1), np.arange(n), **settings)
    columns = {name: part for name, part in found._asdict().items() if np.shape(part) == (D[0].size,)}
    tables = []
    for k, name in enumerate(SCORES):
        at = slice(k * m, (k + 1) * m)
        own = found._replace(**{column: part[at] for column, part in columns.items()})
        row = _rows(name, own, n, feature=np.arange(m))
        words = "flips of whole sequences need a score that is symmetric about that of even attention; descriptive"
        tables.append(row.assign(
            x_repeated=repeated[:, k].mean(0), x_control=control[:, k].mean(0), x_uniform=uniform[:, k].mean(),
            h0=f"the head scores as {AGAINST[name]}", note=row["note"] if repeats[k] else row["note"].fillna(words),
        ))  # fmt: skip
    family = f"{len(SCORES)} scores of {m} heads"
    return pd.concat(tables, ignore_index=True).assign(family=family, n_family=len(SCORES) * m)


def _rows(effect: str, found: ItemTests, n: int, **extra: Any) -> pd.DataFrame:
    """Rows of the results schema from tests of columns."""
    known = np.isfinite(found.t)
    columns: dict[str, Any] = {
        "kind": "heads", "effect": effect, "site": SITE, "split": "test", "stat": "t", "value": found.t,
        "dof": np.where(known, n - 1.0, np.nan), "estimate": found.estimate, "se": found.se, "effsize": found.d_z,
        "eftype": "d_z", "ci_low": found.low, "ci_high": found.high, "ci_level": 0.95, "p_unc": found.p,
        "p_corr": found.p_corr, "p_adjust": "maxT", "p_method": np.where(found.exact, "exact", "saddlepoint"),
        "unit": "sequence", "n_units": n, "n_informative": found.informative, "n_perm": found.n_permutations,
        "p_min": 2.0 ** (1 - n), "alternative": "two-sided", "status": np.where(known, "ok", "untestable"),
        "note": [pd.NA if ok else "the score is the same in every sequence" for ok in known],
    }  # fmt: skip
    return as_results(columns | extra)


def verdicts(table: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Say of every head whether it is an induction head, in `x_verdict` of its induction row, and what is missing."""
    copy = table[table["effect"] == "copy"].iloc[0]
    copies = bool(copy["estimate"] < 0 and copy["p_corr"] <= alpha)
    cut = table[table["effect"] == "ablation"].set_index("feature")
    words: list[Any] = [pd.NA] * len(table)
    for k, row in enumerate(table.to_dict("records")):
        if row["effect"] != "induction" or pd.isna(row["p_corr"]):
            continue
        own = cut.loc[row["feature"]]
        missing = []
        if not (row["estimate"] > 0 and row["p_corr"] <= alpha):
            missing.append("no more attention than the same offset gets without repetition")
        if not copies:
            missing.append("the second copy is not predicted better than the first")
        if not (own["x_rise"] > 0 and own["estimate"] > 0 and float(own["p_corr"]) <= alpha):
            missing.append("replacing it raises the second copy's loss no more than replacing its controls")
        share = f"{row['x_repeated']:.1%} of its attention, {row['x_control']:.1%} without repetition"
        words[k] = f"induction head: {share}" if not missing else f"not an induction head: {'; '.join(missing)}"
    return table.assign(x_verdict=pd.array(words, dtype="string"))


def run(responses: Mapping[str, AnnData], ask: Any, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """One block of `tests:` with `test: heads`; it reads random tokens, not the stimuli of the design."""
    del responses, earlier, rng
    model, _ = study.live()
    rules = study.spec.inference
    table = head_scores(
        model, n_sequences=ask.n_sequences, lengths=ask.lengths, n_controls=ask.n_controls,
        n_permutations=rules.n_permutations, alpha=rules.alpha, seed=study.spec.seed,
    )  # fmt: skip
    return Tested(table.assign(test=pd.array([name_of(ask, study)] * len(table), dtype="string")), None, {})
