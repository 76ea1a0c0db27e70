"""What `neurosae examine` leaves behind, made up: two features with everything that a card can show."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

KINDS = ("top", "level", "quantile", "random")


def write_examined(folder: Path, *, text: str = "the keys", link: str = "https://www.neuronpedia.org/x/3") -> None:
    """Write `examine/` into a study's folder; `text` is every word that a user, text or model can give."""
    place = folder / "examine"
    place.mkdir()
    tables = {name: made(text) for name, made in MAKERS.items()}
    tables["features"]["link"] = [link, None]
    for name, table in tables.items():
        table.to_parquet(place / f"{name}.parquet")
    record = {"key": "k", "chosen_by": "number top 2", "sources": {"study": 12, "text": 3}, "tables": list(tables)}
    (place / "record.json").write_text(json.dumps(record))


def _both(**columns) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"site": "late", "feature": f, **columns}) for f in (3, 40)], ignore_index=True)


def _features(text: str) -> pd.DataFrame:
    return _both(hook=[text], direction=[None], half=["positive"], label=[text], label_source=["yours"])


def _examples(text: str) -> pd.DataFrame:
    rows = []
    for source in ("study", "text"):
        for kind in KINDS:
            for value in (8.0, 2.0):
                level = {"factor": text, "level": text} if kind == "level" else {"factor": None, "level": None}
                rows.append({"kind": kind, "rank": 1, "quantile": 0.5 if kind == "quantile" else np.nan, **level,
                             "value": value, "text": 0, "name": text, "token_index": 1, "n_same": 2, "at": 1,
                             "pieces": ["a", text, "\u202eb\n"], "values": [0.0, value, 0.1],
                             "source": source})  # fmt: skip
    return _both(**pd.DataFrame(rows).to_dict("list"))


def _distributions(text: str) -> pd.DataFrame:
    rows = [
        {"factor": factor, "level": factor and text, "n_tokens": 100, "n_active": 5, "density": 0.05, "p50": 2.0,
         "p90": 7.0, "p99": 8.0, "largest": 8.0, "bins": [0.0, 0.5, 1.0], "counts": [4, 1], "source": source}
        for factor in (None, text) for source in ("study", "text")
    ]  # fmt: skip
    return _both(**pd.DataFrame(rows).to_dict("list"))


def _pooled(text: str) -> pd.DataFrame:
    return _both(stimulus=[text] * 6, value=[0.0, 1, 2, 3, 4, 8.0], subject=["sg", "pl"] * 3, other=[text] * 6)


def _tokens(text: str) -> pd.DataFrame:
    sides = ["promoted", "promoted", "suppressed", "suppressed"]
    return _both(side=sides, rank=[1, 2] * 2, token=[text] * 4, weight=[2.0, 1, -2, -1], skewness=1.5, kurtosis=7.0)


def _rules(text: str) -> pd.DataFrame:
    scored = {"kind": "words", "rule": text, "auroc": 0.9, "auroc_hard": np.nan, "p_corr": 0.01, "n_units": 24}
    blank = dict.fromkeys(("kind", "rule"), None) | dict.fromkeys(("auroc", "auroc_hard", "p_corr", "n_units"), np.nan)
    rows = [{**scored, "note": None, "source": "study"}, {**blank, "note": text, "source": "text"}]
    return _both(**pd.DataFrame(rows).to_dict("list"))


def _levels(text: str) -> pd.DataFrame:
    rows = [
        {"factor": factor, "level": level, "n_items": 12, "n_texts": 24, "mean": mean, "mean_low": mean - 0.5,
         "mean_high": mean + 0.5, "density": mean / 10, "density_low": 0.1, "density_high": 0.9, "note": None}
        for factor, level, mean in (("subject", "sg", 1.0), ("subject", "pl", 4.0), ("other", text, 2.5))
    ]  # fmt: skip
    return _both(**pd.DataFrame(rows).to_dict("list"))


def _labels(text: str) -> pd.DataFrame:
    rows = []
    for feature in (3, 40):  # the judge's answer for the second was malformed
        ok, known = feature == 3, [np.nan] * 6 + [1.0, 2.0, 2.5, 3.0]
        rows.append({
            "site": "late", "feature": feature, "label": text, "status": "ok", "auroc": 0.8 if ok else np.nan,
            "rho": 0.3, "mean_active": 2.0, "mean_silent": 0.5, "mean_other": 1.0, "n_active": 8, "n_silent": 8,
            "deciles": known if ok else [np.nan] * 10, "deciles_n": [0] * 6 + [2] * 4,
            "deciles_other": [np.nan] * 6 + [0.5] * 4, "judge_status": "ok" if ok else "malformed",
            "other_status": "ok",
        })  # fmt: skip
    return pd.DataFrame(rows)


MAKERS = {
    "features": _features,
    "examples": _examples,
    "distributions": _distributions,
    "pooled": _pooled,
    "tokens": _tokens,
    "neighbours": lambda text: _both(rank=[1], neighbour=[9], cosine=[0.4]),
    "rules": _rules,
    "levels": _levels,
    "labels": _labels,
    "inversions": lambda text: _both(text=[text], z=[9.0], surprisal=[17.0], surprisal_examples=[6.0], n_examples=[5],
                                     typed=[True], predicted=[False], rule=[text],
                                     verdict=["does not count: its rule does not predict it"]),
    "counterparts": lambda text: _both(other=[text], counterpart=[7], cosine=[0.9], correlation=[0.5], edge=[0.1]),
}  # fmt: skip
