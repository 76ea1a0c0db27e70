"""Rows and tables of a removal: the bias, its change under every edit, what is left of it at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.causal.controls import badly_matched
from neurosae.causal.inference import ItemTests, claim_p, rank_p
from neurosae.causal.items import ItemOutcomes
from neurosae.causal.removing import Matched, Removal
from neurosae.spec.results import as_results
from neurosae.stats.multiplicity import holm


def shared_rows(tests: ItemTests, place: Mapping[str, Any], columns: Mapping[str, Any]) -> pd.DataFrame:
    """Columns that all rows share: statistic, estimate and interval over items."""
    changed = tests.informative > 0
    n = len(tests.t)
    shared = {
        **{k: v for k, v in place.items() if k != "name"}, "position": 0, "stat": "t", "value": tests.t,
        "estimate": tests.estimate, "se": tests.se, "effsize": tests.d_z, "eftype": "d_z", "ci_low": tests.low,
        "ci_high": tests.high, "ci_level": 0.95, "unit": "item", "n_informative": tests.informative,
        "n_perm": tests.n_permutations, "alternative": "two-sided", "x_p_items": tests.p,
        "status": np.where(changed, "ok", "untestable"), "note": np.where(changed, "", "no item's bias changed"),
    }  # fmt: skip
    return as_results({**shared, **columns}, n_rows=n)


def bias_row(tests: ItemTests, place: Mapping[str, Any]) -> pd.DataFrame:
    """The bias itself, before any edit."""
    n = int(tests.informative[0])
    return shared_rows(
        tests, place,
        {"set": "no edit", "p_unc": tests.p, "p_corr": tests.p, "p_adjust": "none", "p_method": _method(tests),
         "family": f"the bias, test {place['test']}", "n_family": 1, "n_units": n, "p_min": 2.0 ** (1 - n),
         "h0": "exchanging the levels of an item exchanges its logit differences: the mean is symmetric around 0",
         "note": "mean over cells of the logit difference towards the form of the text's own level"},
    )  # fmt: skip


def _method(tests: ItemTests) -> list[str]:
    return ["exact flips" if exact else "flips, saddlepoint" for exact in tests.exact]


def change_rows(
    made: Removal, grid: Sequence[tuple[str, float]], tests: ItemTests, *, place: Mapping[str, Any],
    controls: pd.DataFrame, clean: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Change of the bias; a claim is made at full strength alone, where the controls are."""
    bad, n = badly_matched(made.controls.balance), len(made.controls.sets)
    p_controls, claim = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    for k, (method, strength) in enumerate(grid):
        if strength == 1.0:
            own = controls.loc[controls["method"] == method, "change"].to_numpy()
            p_controls[k] = rank_p(float(tests.estimate[k]), own)
            claim[k] = np.nan if bad and method != "direction" else claim_p(tests.p[k], p_controls[k])
    full = np.isfinite(claim)
    p_corr = np.full(len(grid), np.nan)
    p_corr[full] = holm(claim[full])
    notes = [_note(made, bad, m) if s == 1.0 else "described; claims are made at full strength" for m, s in grid]
    return shared_rows(
        tests, place,
        {"set": [_name(m, s, place) for m, s in grid], "n_features": [_n_edited(made, m) for m, _ in grid],
         "p_unc": claim, "p_corr": p_corr, "p_adjust": "holm",
         "p_method": [f"{way} and controls" for way in _method(tests)],
         "family": f"all methods at full strength, test {place['test']}", "n_family": int(full.sum()),
         "n_units": len(clean), "p_min": max(2.0 ** (1 - len(clean)), 1 / (n + 1)), "note": notes,
         "h0": "the edit changes the bias of no item, or no more than control edits do",
         "x_method": [m for m, _ in grid], "x_strength": [s for _, s in grid], "x_p_controls": p_controls,
         "x_n_controls": n, "x_worst_smd": made.controls.worst,
         "x_share_removed": -tests.estimate / float(clean.mean())},
    )  # fmt: skip


def _note(made: Removal, bad: str, method: str) -> str:
    if method == "direction":
        return "controls: differences of means with the levels exchanged in half of the items"
    return "; ".join(word for word in (made.controls.note, bad) if word)


def _name(method: str, strength: float, place: Mapping[str, Any]) -> str:
    of = f" of {place['name']}" if method != "direction" else " of the difference of means"
    return f"{method}{of}, strength {strength:g}"


def _n_edited(made: Removal, method: str) -> int:
    return len(made.levels.features) if method != "direction" else 1


def left_rows(
    tests: ItemTests, matched: Matched, methods: Sequence[str], *, place: Mapping[str, Any], clean: np.ndarray
) -> pd.DataFrame:
    """What is left of the bias at equal divergence; described, for the comparisons."""
    return shared_rows(
        tests, place,
        {"set": [f"left after {m}, at equal KL" for m in methods], "n_units": len(clean), "p_method": _method(tests),
         "h0": "nothing is left of the bias", "note": "described; methods are compared in rows of their own",
         "x_method": list(methods), "x_strength": [matched.strength[m] for m in methods],
         "x_kl": [matched.kl[m] for m in methods], "x_perplexity_ratio": [matched.ratio[m] for m in methods],
         "x_share_removed": 1 - tests.estimate / float(clean.mean())},
    )  # fmt: skip


def pair_rows(tests: ItemTests, names: Sequence[str], matched: Matched, *, place: Mapping[str, Any]) -> pd.DataFrame:
    """Differences between methods in what is left of the bias at equal divergence."""
    n = int(tests.informative.max())
    worst = max(abs(kl / matched.target - 1) for kl in matched.kl.values())
    return shared_rows(
        tests, place,
        {"set": list(names), "n_units": n, "p_unc": tests.p, "p_corr": tests.p_corr, "p_adjust": "maxT",
         "p_method": _method(tests), "family": f"all pairs of methods at equal KL, test {place['test']}",
         "n_family": len(names), "p_min": 2.0 ** (1 - n), "h0": "both methods leave the same bias at the same cost",
         "note": f"KL {matched.target:.3g} nats per token, met within {worst:.1%}; negative: the first leaves less",
         "x_kl": matched.target},
    )  # fmt: skip


def strength_table(
    made: Removal, costs: pd.DataFrame, matched: Matched, *, grid: Sequence[tuple[str, float]], clean: np.ndarray,
    edited: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Bias and cost of every method and strength; `matched` marks those of equal divergence."""
    n = len(made.ask.methods)
    known = {(r.method, r.strength): (r.kl, r.perplexity_ratio) for r in costs.itertuples()}
    known |= {(m, matched.strength[m]): (matched.kl[m], matched.ratio[m]) for m in made.ask.methods}
    half = 1.96 * edited.std(axis=0, ddof=1) / np.sqrt(len(edited))
    rows = [
        {"method": m, "strength": s, "kl": known.get((m, s), (np.nan, np.nan))[0],
         "perplexity_ratio": known.get((m, s), (np.nan, np.nan))[1], "bias": edited[:, k].mean(), "half": half[k],
         "clean": clean.mean(), "matched": k >= len(grid) - n}
        for k, (m, s) in enumerate(grid)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def cell_table(cells: ItemOutcomes, grid: Sequence[tuple[str, float]]) -> pd.DataFrame:
    """Mean logit difference of every cell, clean and under every condition."""
    names = [("no edit", 0.0), *grid]
    rows = [
        {"cell": " / ".join(cell), "method": m, "strength": s, "logit_diff": float(np.nanmean(cells.values[:, c, k]))}
        for c, cell in enumerate(cells.cells)
        for k, (m, s) in enumerate(names)
    ]
    return pd.DataFrame(rows)
