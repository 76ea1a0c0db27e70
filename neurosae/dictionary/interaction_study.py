"""What an interaction term is worth: dictionaries trained separately, by one recipe, with it and with its rivals.

| arm | dictionary |
|---|---|
| `base` | top-k, k active features |
| `wider` | as base, with as many more features as give the parameters of the term |
| `more_1`, `more_2` … | as base, with k + 1, k + 2 … active features |
| `duplicate` | as base, with a second linear decoder on the same features: no new class of model |
| `interaction` | as base, with the interaction term |
| `sequential` | the term fitted to what a finished, frozen dictionary leaves over |
| `permuted` | the term reads the codes of another row |
| `term_dropped` | `interaction` with its term left out afterwards: not its worth, shown as a warning |

The gain of the term is quoted against the best of base, wider, more_1 and duplicate; further codes say how many of
them would do the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.evaluate import reconstruction
from neurosae.dictionary.interaction import InteractionLearner, PermutedLearner
from neurosae.dictionary.kinds import Dictionary
from neurosae.dictionary.learn import Learner, TopKLearner
from neurosae.dictionary.pathology import pathology
from neurosae.dictionary.products import interaction_term
from neurosae.dictionary.settings import Settings, settings_of
from neurosae.errors import DataError, ModelError

RIVALS = ("base", "wider", "more_1", "duplicate")
N_MORE = 2  # further codes per row that are tried
SCORED = 2_000  # held-out tokens on which the model's scores of an arm are taken


def interaction_study(
    x: Tensor,
    held_out: Tensor,
    *,
    settings: Mapping[str, Any],
    seeds: Sequence[int] = (0, 1),
    model: Any = None,
    hook: str = "",
    texts: Sequence[str] = (),
) -> pd.DataFrame:
    """Train a top-k dictionary, the same with an interaction term, and its rivals, and measure all on held-out rows.

    Parameters
    ----------
    x, held_out : activations to learn from and to measure on, float32 (n, d), of different documents
    settings : `rank` and whatever `train:` takes (`d_sae`, `k`, `n_tokens`, `head`, `dropout`, `linear_top`, …)
    seeds : of the initial weights and of the order of the rows; every arm is trained once with each, two at least
    model, hook, texts : where given, cross-entropy, KL and pathology ratio of every arm on held-out documents

    Returns
    -------
    DataFrame, one row per arm and seed: `arm seed d_sae k rank n_parameters l0 fvu dead`, and with a model `ce_base
    ce_sae kl_sae kl_random pathology`. The control `permuted` has no scores of the model, since the codes of another
    row are no reconstruction.

    Raises
    ------
    DataError, ModelError
        If there is one seed, no rank, or fewer rows than a batch.

    Notes
    -----
    FVU is quoted for comparison at equal activity (base), at equal parameters (wider) and against spending the term on
    further codes (more); `interaction_gain` puts them together. A term read off by leaving it out of a jointly trained
    dictionary (`term_dropped`) is not its worth: the rest has adapted to it, also in a world without products.

    Examples
    --------
    >>> rows = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    >>> ask = {"d_sae": 12, "k": 2, "rank": 2, "n_tokens": 1000, "batch": 50}
    >>> table = interaction_study(rows[:500], rows[500:], settings=ask)
    >>> table["arm"].unique().tolist()[:4], len(table)
    (['base', 'wider', 'more_1', 'more_2'], 18)
    """
    base = _checked(x, settings, seeds)
    arms = _arms(base, x.shape[1])
    rows = []
    with tqdm(total=len(arms) * len(seeds), desc="interaction study", unit="arm", disable=None, mininterval=1) as bar:
        for seed in seeds:
            for arm, (learner, asked) in arms.items():
                made = train_rows(learner(replace(asked, seed=seed), x.shape[1]), x, hook=hook)
                rows.append(_row(arm, made, held_out, asked=asked, seed=seed))
                if model is not None and arm != "permuted":
                    rows[-1] |= _scores(made, model, texts, seed=seed)
                if arm == "interaction":
                    plain = replace(made, kind="topk", parts={})
                    rows.append(_row("term_dropped", plain, held_out, asked=asked, seed=seed))
                bar.update(1)
    return pd.DataFrame(rows)


def _checked(x: Tensor, settings: Mapping[str, Any], seeds: Sequence[int]) -> Settings:
    asked = settings_of({**settings, "architecture": "interaction"}, x.shape[1])
    if len(set(seeds)) < 2:
        raise DataError(f"one seed ({list(seeds)}) says nothing about what differs by chance; give two or more.")
    if not asked.rank:
        raise ModelError("the study needs `rank`, the rank of the interaction term.")
    if len(x) < asked.batch:
        raise DataError(f"{len(x):,} rows are fewer than a batch of {asked.batch:,}; give more rows.")
    if asked.k + N_MORE >= asked.d_sae:
        raise ModelError(f"arms with k up to {asked.k + N_MORE} need more features than that, not {asked.d_sae}.")
    return asked


def _arms(asked: Settings, d: int) -> dict[str, tuple[type[Learner], Settings]]:
    """Learner and settings of every arm, all by one recipe."""
    plain = replace(asked, architecture="topk", rank=0, linear_top=0, head="linear", dropout=0.0, interaction="joint")
    further = asked.rank * (asked.d_sae + d)
    further += asked.rank * (asked.rank + 1) if asked.head == "mlp" else 0
    further += asked.d_sae * d if asked.linear_top else 0
    wider = replace(plain, d_sae=asked.d_sae + round(further / (2 * d + 1)))
    arms: dict[str, tuple[type[Learner], Settings]] = {"base": (TopKLearner, plain), "wider": (TopKLearner, wider)}
    for i in range(1, N_MORE + 1):
        arms[f"more_{i}"] = TopKLearner, replace(plain, k=asked.k + i, k0=max(asked.k0, asked.k + i))
    duplicate = replace(asked, rank=0, linear_top=asked.k, head="linear", dropout=0.0, interaction="joint")
    return arms | {
        "duplicate": (InteractionLearner, duplicate),
        "interaction": (InteractionLearner, replace(asked, interaction="joint")),
        "sequential": (InteractionLearner, replace(asked, interaction="sequential")),
        "permuted": (PermutedLearner, replace(asked, interaction="joint")),
    }


def train_rows(learner: Learner, x: Tensor, *, hook: str = "") -> Dictionary:
    """Train a learner on rows in memory, shuffled anew in every epoch; centred and scaled as its settings say."""
    s = learner.settings
    mean = x.double().mean(0).float() if s.center else torch.zeros(x.shape[1])
    scale = float((x - mean).double().square().mean().sqrt()) if s.scale else 1.0
    per_epoch = len(x) // s.batch
    order = torch.empty(0, dtype=torch.int64)
    for step in range(learner.n_steps):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            order = torch.from_numpy(np.random.default_rng([s.seed, 3, epoch]).permutation(len(x)))
        learner.step((x[order[i * s.batch : (i + 1) * s.batch]] - mean) / scale, step)
    return learner.learned(hook, mean, scale)


def _row(arm: str, made: Dictionary, held_out: Tensor, *, asked: Settings, seed: int) -> dict[str, Any]:
    scores, counts = reconstruction(made, held_out)
    if arm == "permuted":
        scores["fvu"] = _permuted_fvu(made, held_out, seed)
    tensors = [made.W_enc, made.b_enc, made.W_dec, made.b_dec, *made.parts.values()]
    return {
        "arm": arm, "seed": seed, "d_sae": made.n_features, "k": asked.k, "rank": asked.rank,
        "n_parameters": sum(t.numel() for t in tensors), "l0": scores["l0"], "fvu": scores["fvu"],
        "dead": float((counts == 0).mean()),
    }  # fmt: skip


def _permuted_fvu(made: Dictionary, x: Tensor, seed: int) -> float:
    """As it was trained: the term of every row from the codes of another."""
    codes = made.encode(x)
    order = np.random.default_rng(seed).permutation(len(x))
    plain = replace(made, kind="topk", parts={}).decode(codes)
    term = interaction_term(codes[order], made.parts, n_top=int(made.metadata.get("linear_top") or 0))
    return float((x - plain - term).double().square().sum() / (x - x.mean(0)).double().square().sum())


def _scores(made: Dictionary, model: Any, texts: Sequence[str], *, seed: int) -> dict[str, float]:
    row = pathology(made, model, texts, n_tokens=SCORED, n_draws=1, seed=seed).iloc[0]
    return {name: float(row[name]) for name in ("ce_base", "ce_sae", "kl_sae", "kl_random", "pathology")}


def interaction_gain(table: pd.DataFrame) -> pd.DataFrame:
    """Gain of the interaction arms over the best rival, and the number of further codes that would do the same.

    Parameters
    ----------
    table : from `interaction_study`

    Returns
    -------
    DataFrame, one row per arm with a term (`interaction`, `sequential`, `permuted`): `arm fvu best_rival fvu_rival`,
    `gain` (1 - fvu / fvu_rival, from means over seeds), `gain_low gain_high` (smallest and largest over pairs of
    seeds), `k_equal` (the k of a plain dictionary with the same FVU, by linear interpolation between the arms; nan,
    with a `note`, where it lies outside)

    Examples
    --------
    >>> fvu = {"base": 0.20, "more_1": 0.18, "more_2": 0.17, "interaction": 0.19}
    >>> k = {"base": 5, "more_1": 6, "more_2": 7, "interaction": 5}
    >>> rows = [{"arm": a, "seed": s, "k": k[a], "fvu": fvu[a]} for s in (0, 1) for a in fvu]
    >>> made = interaction_gain(pd.DataFrame(rows)).iloc[0]
    >>> made.best_rival, round(float(made.gain), 3), round(float(made.k_equal), 2)
    ('more_1', -0.056, 5.5)
    """
    means = table.groupby("arm", sort=False)[["fvu", "k"]].mean()
    rivals = means[means.index.isin(RIVALS)]
    best = str(rivals["fvu"].idxmin())
    ladder = means[[name == "base" or name.startswith("more_") for name in means.index]].sort_values("k")
    out = []
    for arm in ("interaction", "sequential", "permuted"):
        if arm not in means.index:
            continue
        fvu, ours = float(means["fvu"][arm]), table.loc[table["arm"] == arm, "fvu"].to_numpy()
        theirs = table.loc[table["arm"] == best, "fvu"].to_numpy()
        ratios = 1 - ours[:, None] / theirs[None, :]
        k, note = _k_equal(fvu, ladder)
        out.append(
            {"arm": arm, "fvu": fvu, "best_rival": best, "fvu_rival": float(rivals["fvu"].min()),
             "gain": 1 - fvu / float(rivals["fvu"].min()), "gain_low": ratios.min(), "gain_high": ratios.max(),
             "k_equal": k, "note": note}
        )  # fmt: skip
    return pd.DataFrame(out)


def _k_equal(fvu: float, ladder: pd.DataFrame) -> tuple[float, str]:
    """The k at which a plain dictionary has this FVU; nan and a reason where the arms do not tell."""
    there, k = ladder["fvu"].to_numpy(), ladder["k"].to_numpy()
    if (np.diff(there) >= 0).any():
        return np.nan, "the FVU of plain dictionaries does not fall with k here"
    if fvu > there[0]:
        return np.nan, f"its FVU is above that of k = {k[0]:g}"
    if fvu < there[-1]:
        return np.nan, f"its FVU is below that of k = {k[-1]:g}, the largest tried"
    return float(np.interp(fvu, there[::-1], k[::-1])), ""
