"""Rows of a test of patching, made up by a rule."""

from __future__ import annotations

import numpy as np
import pandas as pd

from neurosae.spec.results import as_results


def patching_table() -> pd.DataFrame:
    """Four layers by two regions, noising and denoising; the head carries early, the verb late; one place is idle."""
    rows = []
    for direction, effect in (("noising", "sg into pl"), ("denoising", "pl into sg")):
        for layer in range(4):
            for region, share in (("head", 1 - layer / 3), ("pre_verb", layer / 3)):
                idle = layer == 3 and region == "head"
                row = {
                    "test": "patch", "kind": "patching", "effect": effect, "site": f"blocks.{layer}.hook_resid_post",
                    "region": region, "position": 0, "split": "test", "set": "whole vector", "n_units": 24,
                    "unit": "item", "h0": "patching this place moves the outcome in no direction",
                    "x_direction": direction, "x_replace": "paired", "x_outcome": "logit_diff", "x_freeze": "none",
                }  # fmt: skip
                if idle:
                    row |= {"status": "untestable", "note": "nothing leads from here to the target"}
                else:
                    row |= {
                        "status": "ok", "stat": "t of the change", "value": 10 * share, "estimate": 1.1 * share,
                        "se": 0.1, "effsize": 2 * share, "eftype": "d_z", "ci_low": share - 0.1, "ci_high": share + 0.1,
                        "ci_level": 0.95, "p_unc": 0.001 if share > 0.1 else 0.5, "p_adjust": "maxT",
                        "p_corr": 0.001 if share > 0.1 else 0.9, "p_method": "exact", "n_perm": 2000, "n_family": 14,
                        "family": "all places of test patch", "alternative": "two-sided", "x_share": share,
                        "x_share_low": share - 0.05, "x_share_high": share + 0.05,
                    }  # fmt: skip
                rows.append(row)
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {
        name: [row.get(name, np.nan if name in ("value", "x_share") else None) for row in rows] for name in names
    }
    return as_results(columns, n_rows=len(rows))
