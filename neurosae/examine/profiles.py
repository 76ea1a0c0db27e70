"""What the dashboard of a site is drawn from: scores of every feature, and the leading features text by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.examine.scores import text_scores

LEADING = 12  # features of each list whose texts are kept
LISTS = ("strongest", "frequent", "selective", "composite", "specialist")
"""Lists of leading features, in the order of the dashboard."""
Site = tuple[str, str, Any, sp.csc_matrix, np.ndarray]


def score_table(A: sp.csc_matrix, theta: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    """Scores of all features that are active in some text, one row each; definitions in `examine.scores`.

    Returns
    -------
    DataFrame
        `feature n_texts theta max text n_active density n_strong share_strong mean mean_active sparseness composite`;
        `text` is the row of A where the strongest activation stands.
    """
    found, S = text_scores(A, theta), A.shape[0]  # pyright: ignore[reportOptionalSubscript]
    table = pd.DataFrame({
        "feature": features, "n_texts": S, "theta": theta, "max": found.largest, "text": found.text,
        "n_active": found.n_active, "density": found.n_active / S, "n_strong": found.n_strong,
        "share_strong": found.n_strong / S, "mean": found.mean, "mean_active": found.mean_active,
        "sparseness": found.sparseness, "composite": found.composite,
    })  # fmt: skip
    return table[table["n_active"] > 0].reset_index(drop=True)


def leading(scores: pd.DataFrame, what: str, n: int = LEADING) -> pd.DataFrame:
    """The first n features of a list, best first; ties by feature index.

    `strongest` by the largest activation, `frequent` by the number of texts with any activation, `selective` by
    lifetime sparseness among features that are strong at least once, `legacy` by the fewest strong texts (at least
    one), `composite`, `specialist` by the largest z of any category.
    """
    strong = scores["n_strong"] > 0
    table, column, rising = {
        "strongest": (scores, "max", False),
        "frequent": (scores, "n_active", False),
        "selective": (scores[strong], "sparseness", False),
        "legacy": (scores[strong], "n_strong", True),
        "composite": (scores, "composite", False),
        "specialist": (scores[scores["z"].notna()] if "z" in scores else scores[:0], "z", False),
    }[what]
    if not len(table):
        return table
    return table.sort_values([column, "feature"], ascending=[rising, True], kind="stable").head(n)


def feature_scores(places: Sequence[Site], results: pd.DataFrame) -> pd.DataFrame:
    """Scores of every feature at every site and region, with the category that it leads, its z and corrected p."""
    out = []
    for site, region, adata, A, theta in places:
        table = score_table(A, theta, adata.var["feature"].to_numpy(dtype=np.int64))
        table["text"] = adata.obs["stimulus"].astype(str).to_numpy()[table["text"]]
        mine = results[(results["site"] == site) & (results["region"] == region) & results["feature"].notna()]
        best = mine.sort_values("value", ascending=False, kind="stable").drop_duplicates("feature")
        best = best[["feature", "x_category", "value", "p_corr", "x_auc", "x_in", "x_out"]].astype({"feature": int})
        names = {"x_category": "category", "value": "z", "x_auc": "auroc", "x_in": "n_in", "x_out": "n_out"}
        out.append(table.merge(best.rename(columns=names), on="feature", how="left").assign(site=site, region=region))
    return pd.concat(out, ignore_index=True)


def text_profiles(places: Sequence[Site], scores: pd.DataFrame, *, category: str, alpha: float = 0.05) -> pd.DataFrame:
    """Pooled activation of the leading features of every list, and of found specialists, in every text; long.

    Returns
    -------
    DataFrame
        `site region feature stimulus item category activation strong`.
    """
    out = []
    for site, region, adata, A, theta in places:
        mine = scores[(scores["site"] == site) & (scores["region"] == region)]
        sizes = {what: 2 * LEADING if what == "specialist" else LEADING for what in LISTS}
        chosen = {int(f) for what, n in sizes.items() for f in leading(mine, what, n)["feature"]}
        chosen |= {int(f) for f in mine[mine["p_corr"] <= alpha].nlargest(4 * LEADING, "z")["feature"]}
        columns = np.flatnonzero(np.isin(adata.var["feature"].to_numpy(dtype=np.int64), sorted(chosen)))
        X, obs = A[:, columns].toarray(), adata.obs
        n, m = X.shape
        out.append(pd.DataFrame({
            "site": site, "region": region,
            "feature": np.repeat(adata.var["feature"].to_numpy(dtype=np.int64)[columns], n),
            "stimulus": np.tile(obs["stimulus"].astype(str), m), "item": np.tile(obs["item"].astype(str), m),
            "category": np.tile(obs[category].astype(str), m), "activation": X.T.ravel(),
            "strong": (X > theta[columns]).T.ravel(),
        }))  # fmt: skip
    return pd.concat(out, ignore_index=True)
