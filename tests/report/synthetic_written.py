"""Rows and long tables of steered texts and of a removed difference, made up from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurosae.spec.results import as_results

UP, DOWN = "towards plus, 2 x dose", "towards minus, 2 x dose"
ATTACK = "<script>alert('steered')</script> & \"so\""
METHODS = ("ablate", "mean", "direction")


def _base(test: str, kind: str, n: int) -> dict[str, object]:
    return {
        "test": test, "kind": kind, "effect": "subject", "site": "late", "region": "pre_verb", "position": 0,
        "split": "test", "stat": "t", "se": 0.1, "effsize": 1.0, "eftype": "d_z", "ci_level": 0.95, "unit": "item",
        "n_units": 24, "n_perm": 10_000, "alternative": "two-sided", "h0": "nothing changes", "status": "ok",
        "p_method": "flips and matched controls", "n_family": n,
    }  # fmt: skip


def steered_rows() -> pd.DataFrame:
    """One condition that is found and one that is not."""
    change = np.array([3.0, -0.4])
    return as_results(
        {
            **_base("steer", "generation", 2), "set": [f"find top 10, {UP}", f"find top 10, {DOWN}"], "n_features": 10,
            "value": change * 3, "estimate": change, "ci_low": change - 0.5, "ci_high": change + 0.5,
            "p_unc": [0.01, 0.4], "p_corr": [0.02, 0.4], "p_adjust": "holm", "family": "all 2 conditions of test steer",
            "note": "99 matched control sets of 10", "x_p_items": [0.0002, 0.1], "x_p_controls": [0.01, 0.4],
            "x_n_controls": 99, "x_score": "balance", "x_plain": 1.0, "x_steered": 1.0 + change, "x_kl": [0.2, 0.3],
            "x_perplexity_ratio": [1.2, 1.3], "x_text_perplexity_plain": 12.0, "x_text_perplexity": [30.0, 28.0],
        }
    )  # fmt: skip


def removal_rows() -> pd.DataFrame:
    """A bias, three methods of which two are found, and their comparison."""
    base = _base("remove", "removal", 3)
    bias = as_results(
        {**base, "set": "no edit", "value": 9.0, "estimate": 0.9, "ci_low": 0.7, "ci_high": 1.1, "p_unc": 0.0001,
         "p_corr": 0.0001, "p_adjust": "none", "family": "the bias", "n_family": 1, "x_p_items": 0.0001}, n_rows=1
    )  # fmt: skip
    change = np.array([-0.3, -0.5, -0.8])
    full = as_results(
        {**base, "set": [f"{m}, strength 1" for m in METHODS], "value": change * 9, "estimate": change,
         "ci_low": change - 0.1, "ci_high": change + 0.1, "p_unc": [0.2, 0.01, 0.01], "p_corr": [0.2, 0.03, 0.03],
         "p_adjust": "holm", "family": "all methods", "x_method": METHODS, "x_strength": 1.0, "x_p_items": 0.001,
         "x_p_controls": [0.2, 0.01, 0.01], "x_n_controls": 99, "x_share_removed": -change / 0.9}
    )  # fmt: skip
    left = as_results(
        {**base, "set": [f"left after {m}, at equal KL" for m in METHODS], "value": 2.0, "estimate": [0.7, 0.6, 0.3],
         "ci_low": 0.1, "ci_high": 0.9, "x_method": METHODS, "x_strength": [0.9, 1.0, 0.4], "x_kl": 0.05,
         "x_perplexity_ratio": 1.1, "x_share_removed": 0.3, "x_p_items": 0.01}
    )  # fmt: skip
    pairs = as_results(
        {**base, "set": [f"{p}, at equal KL" for p in ("ablate - mean", "ablate - direction", "mean - direction")],
         "value": [1.0, 5.0, 4.0], "estimate": [0.1, 0.4, 0.3], "ci_low": 0.0, "ci_high": 0.5, "p_unc": 0.1,
         "p_corr": [0.4, 0.003, 0.02], "p_adjust": "maxT", "family": "all pairs", "x_kl": 0.05, "x_p_items": 0.01}
    )  # fmt: skip
    return pd.concat([part.dropna(axis=1, how="all") for part in (bias, full, left, pairs)], ignore_index=True)


def written_tables(folder: Path) -> list[pd.DataFrame]:
    """Results rows of two tests; their long tables are written beside them."""
    rng = np.random.default_rng(11)
    names = [f"i{k}" for k in range(24)]
    items, controls, texts = [], [], []
    for condition, change in ((UP, 3.0), (DOWN, -0.4)):
        plain = rng.normal(1, 1, 24)
        steered = plain + change + rng.normal(0, 1, 24)
        items.append(pd.DataFrame({"item": names, "condition": condition, "plain": plain, "steered": steered}))
        made = np.r_[change, rng.normal(0, 0.5, 99)]
        controls.append(pd.DataFrame({"condition": condition, "control": np.arange(-1, 99), "change": made}))
        texts.append(
            pd.DataFrame(
                {"condition": condition, "item": names, "frame": "pp", "sample": 0,
                 "prompt": [f"The {n} was" for n in names], "plain": " quite old.",
                 "steered": f" lovely {ATTACK}", "score_plain": 0.0, "score_steered": 25.0,
                 "ended_plain": False, "ended_steered": False}
            )
        )  # fmt: skip
    for name, parts in (("items", items), ("controls", controls), ("texts", texts)):
        pd.concat(parts, ignore_index=True).to_parquet(folder / "tests" / f"steer.{name}.parquet")
    strengths = [
        {"method": m, "strength": s, "kl": s**2 * cost, "perplexity_ratio": 1.1, "bias": 0.9 * (1 - s * share),
         "half": 0.1, "clean": 0.9, "matched": s == 0.7}
        for m, cost, share in (("ablate", 0.1, 0.3), ("mean", 0.08, 0.5), ("direction", 0.2, 0.9))
        for s in (0.5, 1.0, 0.7)
    ]  # fmt: skip
    pd.DataFrame(strengths).to_parquet(folder / "tests" / "remove.strengths.parquet")
    cells = [
        {"cell": cell, "method": m, "strength": float(m != "no edit"), "logit_diff": k - j * 0.2}
        for k, cell in enumerate(("sg", "pl")) for j, m in enumerate(("no edit", *METHODS))
    ]  # fmt: skip
    pd.DataFrame(cells).to_parquet(folder / "tests" / "remove.cells.parquet")
    return [steered_rows(), removal_rows()]
