"""One data set of the calibration: simulated, tested by every method, and scored against what was planted.

A cell of the calibration is a `Trial`; `TRIALS[kind]` runs one data set of it and returns one number per score. Scores
are shares (1 = an error was made, an interval covered the truth, …), so their means over data sets are rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

from neurosae.spec.blocks import Inference
from neurosae.stats.crossed import min_f
from neurosae.stats.family import Cell, Outcome, Place, infer
from neurosae.stats.intervals import Piece, make_intervals
from neurosae.stats.level_trials import Maps, any_found, compiled
from neurosae.stats.multiplicity import fdr_bh
from neurosae.stats.plasmode import grouped_data, grouped_template, paired_data, paired_template
from neurosae.stats.simulate import Firing, draw_densities, fire
from neurosae.stats.units import ItemData
from neurosae.stats.worlds import world

ALPHA, N_FRAMES, ITEM_BY_CONDITION = 0.05, 4, 0.2
STATISTICS = ("t", "moderated_t", "signed_rank", "hurdle")
PLACE = Place("calibration", "number", "site", "noun", 0, "test", None)


class Trial(NamedTuple):
    """One cell of the calibration.

    Attributes
    ----------
    kind : key of `TRIALS`
    design : within or between items
    balance : `complete`, `paired`, `plain means` (frames are missing in one cell), `16/16`, `8/24`, or what varies
    density : of every feature; 0 where densities are mixed
    icc : share of the item in the latent drive, or its standard deviation where the world is Gaussian
    n_items, n_features, n_permutations : sizes
    """

    kind: str
    design: str
    balance: str
    density: float
    icc: float
    n_items: int = 32
    n_features: int = 200
    n_permutations: int = 512


class Score(NamedTuple):
    """What a number is about.

    role : `tested` (must hold its level), `parametric` (an alternative, labelled so) or `demonstration` (must fail)
    measure : familywise, discovery, coverage or power
    """

    method: str
    role: str
    measure: str


Scores = dict[Score, float]


# ------------------------------------------------------------------ error rates where nothing differs


def error_rates(trial: Trial, template: ItemData, *, seed: int, number: int) -> Scores:
    """No effect anywhere: does a method reject anything at all?"""
    rng = np.random.default_rng([seed, number])
    data, prompts = (_null_within if trial.design == "within" else _null_between)(trial, template, rng)
    kept = np.flatnonzero(np.diff(data.D.indptr) >= 6)
    role = "demonstration" if trial.balance == "plain means" else "tested"
    scores: Scores = {}
    if len(kept) >= 2:
        cell = [Cell(PLACE, data, kept)]
        for name in STATISTICS:
            outcome = _infer(cell, trial, name, correction="maxT", seed=seed + number)
            scores[Score(f"max-T {name}", role, "familywise")] = _any(outcome.p_corr)
            if name == "t":
                screened = outcome
        if data.codes is not None:  # counted p: as many relabellings as BH needs
            screened = _infer(cell, trial, "t", correction="fdr_bh", seed=seed + number)
        scores[Score("relabelling p + BH", role, "discovery")] = _any(fdr_bh(screened.p_unc))
        p = _parametric_p(data, kept)
        scores[Score("t table + Bonferroni", "parametric", "familywise")] = _any(p * len(kept))
        scores[Score("t table + BH", "parametric", "discovery")] = _any(fdr_bh(p))
    p = _table_p(stats.ttest_ind(*prompts))
    scores[Score("prompts as n + BH", "demonstration", "discovery")] = _any(fdr_bh(p))
    return scores


def _null_within(
    trial: Trial, template: ItemData, rng: np.random.Generator
) -> tuple[ItemData, tuple[np.ndarray, np.ndarray]]:
    """Items in two cells and four frames; unbalanced, the - cell has one frame of four."""
    n, m = trial.n_items, trial.n_features
    item, cell = np.repeat(np.arange(n), 2 * N_FRAMES), np.repeat(np.arange(2 * n), N_FRAMES)
    Y = _fire(trial, rng, {"item": item, "cell": cell}).reshape(n, 2, N_FRAMES, m)
    minus = Y[:, 0] if trial.balance == "complete" else Y[:, 0, :1]
    plus = Y[:, 1, :1] if trial.balance == "paired" else Y[:, 1]
    data = paired_data(template, plus.mean(axis=1, dtype=float), minus.mean(axis=1, dtype=float))
    return data, (plus.reshape(-1, m), minus.reshape(-1, m))


def _null_between(
    trial: Trial, template: ItemData, rng: np.random.Generator
) -> tuple[ItemData, tuple[np.ndarray, np.ndarray]]:
    """Items in four frames, and a label per item."""
    n, m = trial.n_items, trial.n_features
    item, n_plus = np.repeat(np.arange(n), N_FRAMES), int(trial.balance.split("/")[0])
    Y = _fire(trial, rng, {"item": item, "cell": item}).reshape(n, N_FRAMES, m)
    data = grouped_data(template, Y.mean(axis=1, dtype=float), n_plus)
    return data, (Y[:n_plus].reshape(-1, m), Y[n_plus:].reshape(-1, m))


def _fire(trial: Trial, rng: np.random.Generator, codes: dict[str, np.ndarray]) -> np.ndarray:
    firing = Firing(trial.density, item=trial.icc, cell=ITEM_BY_CONDITION)
    densities = np.full(trial.n_features, trial.density)
    drive = np.zeros((len(codes["item"]), trial.n_features))
    return fire(rng, codes, drive, densities=densities, firing=firing)


def template_of(trial: Trial) -> Any:
    """The item data, or the maps of a design, that every data set of a cell fills."""
    if trial.kind == "levels":
        return compiled(trial.balance, trial.n_items)
    return (paired_template if trial.design == "within" else grouped_template)(trial.n_items)


def _infer(cell: list[Cell], trial: Trial, statistic: str, *, correction: str, seed: int) -> Outcome:
    asked = {"statistic": statistic, "correction": correction, "n_permutations": trial.n_permutations}
    return infer(cell, Inference.model_validate(asked), seed=seed, split="test")[0][0]


def _any(p: np.ndarray) -> float:
    return float((p <= ALPHA).any())


def _table_p(result: Any) -> np.ndarray:
    """P of a scipy test; 1 where a feature is constant."""
    return np.nan_to_num(result.pvalue, nan=1.0)


def _parametric_p(data: ItemData, kept: np.ndarray) -> np.ndarray:
    """Student's t of the items, from the table; pooled between items."""
    D = data.D[:, kept].toarray()
    if data.codes is None:
        t = D.mean(axis=0) / np.maximum(D.std(axis=0, ddof=1) / np.sqrt(data.n), 1e-300)
        return 2 * stats.t.sf(np.abs(t), data.n - 1)
    codes, weights = data.grouping
    plus = weights[codes] > 0
    return _table_p(stats.ttest_ind(D[plus], D[~plus]))


# ------------------------------------------------------------------ errors and power where 5 % of features differ


def mixed_effects(trial: Trial, template: ItemData, *, seed: int, number: int) -> Scores:
    """Densities from .3 to 50 %, 5 % of the features shifted: false discoveries among all, and power."""
    rng = np.random.default_rng([seed, number])
    drawn = _shifted(trial, rng, density=(0.003, 0.5) if trial.density == 0 else trial.density)
    shifted, data = drawn.shifted, paired_data(template, drawn.plus, drawn.minus)
    kept = np.flatnonzero(np.diff(data.D.indptr) >= 6)
    scores: Scores = {}
    cell = [Cell(PLACE, data, kept)]
    for name in STATISTICS:
        outcome = _infer(cell, trial, name, correction="maxT", seed=seed + number)
        found = {f"max-T {name}": outcome.p_corr}
        if name == "t":
            found["relabelling p + BH"] = fdr_bh(outcome.p_unc)
        for method, p in found.items():
            hits, false = _counts(kept[p <= ALPHA], shifted)
            if method.endswith("BH"):
                scores[Score(method, "tested", "discovery")] = false / max(hits + false, 1)
            else:
                scores[Score(method, "tested", "familywise")] = float(false > 0)
            scores[Score(method, "tested", "power")] = hits / shifted.sum()
    return scores


def _counts(found: np.ndarray, shifted: np.ndarray) -> tuple[int, int]:
    """True and false discoveries."""
    return int(shifted[found].sum()), int((~shifted[found]).sum())


class Shifted(NamedTuple):
    """Responses in + and - cells (n, m); which features are shifted and their true mean differences (m,)."""

    plus: np.ndarray
    minus: np.ndarray
    shifted: np.ndarray
    truth: np.ndarray


def _shifted(trial: Trial, rng: np.random.Generator, *, density: Any) -> Shifted:
    """Paired responses where 5 % of the features have 1.5 added to their drive in the + cell."""
    n, m, shift = trial.n_items, trial.n_features, 1.5
    firing = Firing(item=trial.icc, cell=0.0)
    densities = draw_densities(rng, density, m)
    shifted = np.arange(m) < max(1, round(0.05 * m))
    rng.shuffle(shifted)
    item, side = np.repeat(np.arange(n), 2), np.tile([0.0, 1.0], n)
    drive = side[:, None] * shift * shifted
    Y = fire(rng, {"item": item}, drive, densities=densities, firing=firing).reshape(n, 2, m).astype(float)
    size = np.exp((firing.item_log_sd**2 + firing.log_sd**2) / 2)
    truth = (ndtr(ndtri(densities) + shift * shifted / firing.sd) - densities) * size
    return Shifted(Y[:, 1], Y[:, 0], shifted, truth)


# ------------------------------------------------------------------ intervals


def coverage(trial: Trial, template: ItemData, *, seed: int, number: int) -> Scores:
    """Do 95 % intervals of the mean difference cover it: one feature at a time, and all at once?"""
    rng = np.random.default_rng([seed, number])
    drawn = _shifted(trial, rng, density=trial.density)
    data, truth = paired_data(template, drawn.plus, drawn.minus), drawn.truth
    informative = np.diff(data.D.indptr)
    kept = np.flatnonzero(informative >= 6)
    if len(kept) < 2:
        return {}
    outcome = _infer([Cell(PLACE, data, kept)], trial, "moderated_t", correction="maxT", seed=seed + number)
    piece, D = Piece(data, kept, outcome.relabelling), data.D[:, kept].toarray()
    half = stats.t.ppf(0.975, data.n - 1) * D.std(axis=0, ddof=1) / np.sqrt(data.n)
    bounds = {"marginal t": (D.mean(axis=0) - half, D.mean(axis=0) + half)}
    for name in ("flip_t", "simultaneous"):
        made = make_intervals([piece], name)[0]
        bounds[name] = (made["ci_low"], made["ci_high"])
    enough, scores = informative[kept] >= 10, {}
    for name, (low, high) in bounds.items():
        inside = (low <= truth[kept]) & (truth[kept] <= high)
        joint = name == "simultaneous"
        share = float(inside.all()) if joint else float(inside[enough].mean()) if enough.any() else np.nan
        scores[Score(f"{name} interval", "tested", "joint coverage" if joint else "coverage")] = share
    return scores


# ------------------------------------------------------------------ items and frames both random


def items_and_frames(trial: Trial, template: ItemData, *, seed: int, number: int) -> Scores:
    """Condition differences of items in frames, mean 0: min-F', by items, by frames, and all prompts as n."""
    options = {"n_frames": int(trial.balance), "sd_item": trial.icc, "sd_frame": trial.density}
    d = world("item_frame", n_items=trial.n_items, seed=int(seed + 1_000_003 * number), options=options)
    prompts = _table_p(stats.ttest_1samp(d.ravel(), 0))
    by_item, by_frame = _table_p(stats.ttest_1samp(d.mean(axis=1), 0)), _table_p(stats.ttest_1samp(d.mean(axis=0), 0))
    return {
        Score("min-F'", "tested", "single test"): float(min_f(d).p <= ALPHA),
        Score("by items, frames fixed", "parametric", "single test"): float(by_item <= ALPHA),
        Score("by frames, items fixed", "parametric", "single test"): float(by_frame <= ALPHA),
        Score("prompts as n", "demonstration", "single test"): float(prompts <= ALPHA),
    }


def levels_and_slopes(trial: Trial, template: Maps, *, seed: int, number: int) -> Scores:
    """No effect anywhere: all levels, contrasts without mirror image, and slopes, under their own relabellings."""
    found = any_found(template, trial, item_by_cell=ITEM_BY_CONDITION, seed=seed, number=number)
    return {Score(method, "tested", "familywise"): rejects for method, rejects in found.items()}


TRIALS: dict[str, Callable[..., Scores]] = {
    "no effect": error_rates,
    "effects": mixed_effects,
    "intervals": coverage,
    "items x frames": items_and_frames,
    "levels": levels_and_slopes,
}


def grid(*, full: bool) -> list[Trial]:
    """The cells of the calibration; not `full`, two densities and one intra-item correlation."""
    densities, iccs = ((0.01, 0.05, 0.2, 0.5), (0.0, 0.3, 0.6)) if full else ((0.05, 0.5), (0.3,))
    cells = []
    for design, balance in (
        *(("within", b) for b in ("complete", "paired", "plain means")),
        *(("between", b) for b in ("16/16", "8/24")),
    ):
        few = balance in ("paired", "plain means")
        cells += [Trial("no effect", design, balance, d, i) for d in densities for i in ((0.3,) if few else iccs)]
    if full:
        mixed = Trial("effects", "within", "complete", 0.0, 2.25 / 3.25, n_features=400)
        cells += [mixed._replace(n_items=n) for n in (16, 32, 64)]
        exact = Trial("intervals", "within", "complete", 0.05, 2.25 / 3.25, n_features=100)
        cells += [exact._replace(n_items=n, density=d) for n, d in ((32, 0.05), (32, 0.2), (64, 0.05), (64, 0.5))]
        for n, frames, sd_item, sd_frame in (
            (24, 4, 0.0, 0.0),
            (24, 4, 0.5, 0.0),
            (24, 4, 1.0, 0.0),
            (24, 4, 1.0, 0.5),
            (24, 8, 1.0, 0.5),
            (16, 16, 1.0, 1.0),
        ):
            cells.append(Trial("items x frames", "within", str(frames), sd_frame, sd_item, n_items=n))
        for design, balance in (
            ("within", "3 levels"),
            ("between", "11/11/11"),
            ("between", "6/8/18"),
            ("between", "slope"),
        ):
            few = Trial("levels", design, balance, 0.05, 0.3, n_features=100)
            cells += [few._replace(density=d) for d in (0.05, 0.2, 0.5)]
    return cells
