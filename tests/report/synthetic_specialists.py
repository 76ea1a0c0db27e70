"""A test of specialists over six words of a study, made up by a rule: one is found, one is near, one is everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurosae.examine.profiles import score_table
from neurosae.examine.scores import as_columns
from neurosae.spec.results import as_results

CATEGORIES = ("animals", "tools", "places")
P = {(7, "animals"): 0.001, (11, "tools"): 0.2}


def specialist_table(folder: Path, stimuli: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test `kinds`; its extras are written to the folder of tests."""
    shown = stimuli.index[:24].tolist()
    kind = np.repeat(np.arange(3), 8)
    X = np.zeros((24, 4))
    X[kind == 0, 0] = [9.0, 8, 9, 7, 9, 8, 9, 0]
    X[kind == 1, 1] = [5.0, 6, 5, 6, 5, 0, 0, 0]
    X[:, 2] = 2.0
    X[3, 3] = 4.0
    features, theta = np.array([7, 11, 20, 31]), np.full(4, 3.0)
    rows, best = [], {}
    for j, feature in enumerate(features[:3].tolist()):
        for k, category in enumerate(CATEGORIES):
            strong = X[:, j] > 3
            n_in, n_out = int(strong[kind == k].sum()), int(strong[kind != k].sum())
            p, z = P.get((feature, category), 0.9), 1.2 * (n_in - n_out / 2)
            if z >= best.get(feature, (-np.inf,))[0]:
                best[feature] = (z, category, p, n_in, n_out)
            rows.append({
                "test": "kinds", "kind": "specialists", "effect": f"kind: {category}", "site": "late",
                "region": "pre_verb", "position": 0, "split": "test", "feature": feature, "n_features": 1,
                "stat": "rate z", "value": z, "estimate": n_in / 8 - n_out / 16, "effsize": n_in / 8 - n_out / 16,
                "eftype": "rank_biserial", "p_unc": p, "p_corr": p, "p_adjust": "maxT", "p_method": "permutations",
                "family": "maximum over features, categories, sites and regions of this test", "n_family": 9,
                "unit": "item", "n_units": 24, "n_informative": 8, "n_perm": 2000, "p_min": 0.0005,
                "alternative": "greater", "h0": "the categories of kind are exchangeable over items", "status": "ok",
                "x_category": category, "x_theta": 3.0, "x_in": n_in, "x_n_in": 8, "x_out": n_out, "x_n_out": 16,
                "x_specialist": n_in - n_out, "x_composite": 50.0, "x_auc": 0.5 + (n_in / 8 - n_out / 16) / 2,
            })  # fmt: skip
    scores = score_table(as_columns(X), theta, features).assign(site="late", region="pre_verb")
    scores["text"] = [shown[i] for i in scores["text"]]
    known = [best.get(f, (np.nan, None, np.nan, np.nan, np.nan)) for f in scores["feature"]]
    scores[["z", "category", "p_corr", "n_in", "n_out"]] = pd.DataFrame(known, index=scores.index)
    texts = pd.DataFrame({
        "site": "late", "region": "pre_verb", "feature": np.repeat(features, 24), "stimulus": shown * 4,
        "item": shown * 4, "category": np.tile(np.array(CATEGORIES)[kind], 4), "activation": X.T.ravel(),
        "strong": (X > 3).T.ravel(),
    })  # fmt: skip
    scores.to_parquet(folder / "tests" / "kinds.scores.parquet")
    texts.to_parquet(folder / "tests" / "kinds.profiles.parquet")
    return as_results(pd.DataFrame(rows).to_dict("list"))
