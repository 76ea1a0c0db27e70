"""Tables of an intervention and of a joint clamp, made up: what their runs leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurosae.causal.rows import table_of

PLACE = {"site": "late", "region": "head"}
WHERE = PLACE | {"position": 0, "split": "test", "n_units": 24, "unit": "item", "alternative": "two-sided"}
NUMBERS = {"dof": 23.0, "se": 0.1, "eftype": "d_z", "ci_level": 0.95, "n_perm": 2000, "n_informative": 24}
BOTH = {"x_p_items": 0.0004, "x_p_controls": 0.01, "x_n_controls": 99, "x_worst_smd": 0.08, "x_moved": 2.0}


def claim(what: str, change: float, **more: object) -> dict[str, object]:
    """A claim of `necessity` about one contrast."""
    row = WHERE | NUMBERS | BOTH | {
        "test": "necessity", "kind": "intervention", "effect": f"clamp: {what}", "set": "find top 4", "n_features": 4,
        "stat": "t of the slope", "value": 10 * change, "estimate": change, "effsize": 2 * change, "p_unc": 0.01,
        "ci_low": change - 0.2, "ci_high": change + 0.2, "p_corr": 0.02, "p_adjust": "holm", "n_family": 2,
        "family": "all claims of test necessity", "h0": "editing these features changes nothing", "status": "ok",
        "note": "99 matched control sets of 4; not matched: cosine differs by 2.10 sd", "x_role": "claim",
        "x_mode": "clamp", "x_contrast": what, "x_dose": "p50 to p99", "x_freeze": "none", "x_outside": True,
        "x_clean": 2.0, "x_change": change, "x_share": change / 2, "x_p_equivalent": 0.9, "x_smallest": 0.2,
        "x_ci90_low": change - 0.15, "x_ci90_high": change + 0.15, "x_kl": 0.04, "x_perplexity_ratio": 1.02,
    }  # fmt: skip
    return row | more


def joint(mode: str, **more: object) -> dict[str, object]:
    """A claim of `together` in one direction."""
    row = WHERE | NUMBERS | BOTH | {
        "test": "together", "kind": "joint_clamp", "effect": f"{mode}: noun x verb", "set": "noun x verb",
        "n_features": 8, "stat": "t of I", "value": 6.0, "estimate": 0.8, "effsize": 0.45, "p_unc": 0.01,
        "p_corr": 0.02, "ci_low": 0.6, "ci_high": 1.0, "p_adjust": "holm", "n_family": 2, "family": "directions",
        "h0": "they add up",
        "status": "ok", "note": "clamped into what has neither; 99 matched pairs", "x_role": "claim", "x_mode": mode,
        "x_contrast": "noun x verb", "x_dose": "p90", "x_freeze": "downstream", "x_p_items_free": 0.001,
        "x_p_controls_free": 0.01, "x_estimate": 0.8, "x_estimate_free": 0.9, "x_share_free": 0.4,
    }  # fmt: skip
    return row | more


def causal_tables(folder: Path) -> list[pd.DataFrame]:
    """Write the long tables of both tests; returns their rows."""
    rng = np.random.default_rng(3)
    rungs = [
        claim("mean", 0.1 * k, effect=f"clamp p99, {name}: mean", x_role="ladder", x_rung=name, p_corr=None,
              p_adjust=None, family=None, n_family=None)
        for k, name in enumerate(("random direction", "sign reversal", "whole stream"))
    ]  # fmt: skip
    rows = [claim("mean", -0.6), claim("subject", 0.3, p_corr=0.2, p_unc=0.2, x_p_controls=0.2), *rungs]
    doses = []
    for what, size in (("mean", -0.6), ("subject", 0.3)):
        for k, label in enumerate(("0", "p50", "p90", "p99")):
            mean = size * k / 3
            doses.append(PLACE | {"mode": "clamp", "contrast": what, "feature": -1, "label": label, "dose": float(k),
                                  "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "control": 0.0,
                                  "control_low": -0.1, "control_high": 0.1, "clean": 2.0})  # fmt: skip
    pd.DataFrame(doses).to_parquet(folder / "tests" / "necessity.doses.parquet")
    shown = {"mode": "clamp", "feature": -1, "is_slope": True, "set": np.arange(-1, 99)}
    parts = [
        pd.DataFrame(PLACE | shown | {"contrast": what, "value": np.r_[size, 0.1 * rng.standard_normal(99)]})
        for what, size in (("mean", -0.6), ("subject", 0.3))
    ]
    pd.concat(parts, ignore_index=True).to_parquet(folder / "tests" / "necessity.controls.parquet")
    clamps = [
        PLACE | {"mode": "clamp", "norm": norm, "first": a, "second": b, "mean": a + b + 0.8 * a * b,
                 "low": a + b + 0.8 * a * b - 0.2, "high": a + b + 0.8 * a * b + 0.2}
        for norm in ("free", "frozen") for a in (0, 1) for b in (0, 1)
    ]  # fmt: skip
    pd.DataFrame(clamps).to_parquet(folder / "tests" / "together.clamps.parquet")
    grid = [
        PLACE | {"first": a, "second": b, "free": 0.1 * i * j, "frozen": 0.08 * i * j,
                 "p_corr": 0.01 if i * j > 2 else 0.4}
        for i, a in enumerate(("p50", "p90", "p99"), 1) for j, b in enumerate(("p50", "p90", "p99"), 1)
    ]  # fmt: skip
    pd.DataFrame(grid).to_parquet(folder / "tests" / "together.surface.parquet")
    silent = dict.fromkeys(("value", "dof", "estimate", "se", "effsize", "ci_low", "ci_high", "p_unc", "p_corr"))
    together = [joint("clamp"), joint("ablate", **silent, status="untestable", note="controls are badly matched: size")]
    return [table_of(rows), table_of(together)]
