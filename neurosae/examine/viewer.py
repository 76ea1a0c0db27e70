"""One file to look at features in: texts whose tokens are shaded, for every examined feature, without any network.

Everything that comes from texts, labels or dictionaries reaches the page as JSON and is put there as text, never as
markup; the one script is named by its hash. The page is at most 5 MB: what does not fit is left out, and said so.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.examine.seen import Seen, cut_text, text_maxima
from neurosae.examine.summary import known

LARGEST = 5_000_000  # bytes of the page
HERE = Path(__file__).parent


def viewer_page(
    name: str,
    tables: Mapping[str, pd.DataFrame],
    seen: Mapping[str, Mapping[str, Seen]],
    *,
    texts: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    tokenizer: Any,
    most: int = 300,
) -> str:
    """The page.

    Parameters
    ----------
    name : of the study
    tables : of `examine_study`; those that are absent say nothing
    seen : {source: {site: Seen}}
    texts : {source: (texts, what each is called)}
    tokenizer : of the model
    most : texts of every source that are shown, those that drive some feature most
    """
    features = [(str(r["site"]), int(r["feature"]), r.get("label")) for _, r in tables["features"].iterrows()]
    largest = [_largest(seen, site, feature) for site, feature, _ in features]
    shown_features = [
        {"name": f"{site}/{feature}", "label": "" if pd.isna(label) else str(label), "largest": top,
         "lines": known(tables, site, feature)}
        for (site, feature, label), top in zip(features, largest, strict=True)
    ]  # fmt: skip
    n_all = sum(len(one[0]) for one in texts.values())
    shown = [entry for source in texts for entry in _texts(seen[source], *texts[source], features=features,
             tokenizer=tokenizer, most=most)]  # fmt: skip
    shown.sort(key=lambda entry: -entry["most"])
    page = _page(name, shown_features, shown, n_all=n_all)
    while len(page.encode()) > LARGEST and shown:
        shown = shown[: int(len(shown) * min(0.9, LARGEST / len(page.encode())))]
        page = _page(name, shown_features, shown, n_all=n_all)
    return page


def _largest(seen: Mapping[str, Mapping[str, Seen]], site: str, feature: int) -> float:
    values = [one[site].column(feature)[1] for one in seen.values() if site in one]
    return round(float(max((v.max() for v in values if len(v)), default=0.0)), 4)


def _texts(
    seen: Mapping[str, Seen], texts: Sequence[str], names: Sequence[str], *, features: Sequence[Any], tokenizer: Any,
    most: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Texts that drive some feature most, each feature relative to its own largest, and what all features do there."""
    heights = []
    for one in seen.values():
        top = text_maxima(one, len(texts)).toarray()
        heights.append(top / np.where(top.max(axis=0) > 0, top.max(axis=0), 1))
    height = np.concatenate(heights, axis=1).max(axis=1)
    best = np.argsort(-height, kind="stable")[:most]
    entries = []
    for number in map(int, best):
        if height[number] <= 0:
            break
        active = {str(i): cells for i, (site, feature, _) in enumerate(features)
                  if site in seen and (cells := _cells(seen[site], feature, number))}  # fmt: skip
        pieces = cut_text(tokenizer, texts[number])
        entries.append({"n": names[number], "p": pieces, "a": active, "most": float(height[number])})
    return entries


def _cells(one: Seen, feature: int, text: int) -> list[list[float]]:
    """[place of the token, activation] where a feature is active in a text."""
    first, last = np.searchsorted(one.text, [text, text + 1])
    rows, values = one.column(feature)
    inside = slice(*np.searchsorted(rows, [first, last]))
    return [[int(one.token_index[r]), round(float(v), 3)] for r, v in zip(rows[inside], values[inside], strict=True)]


def _page(name: str, features: Sequence[Any], texts: Sequence[Mapping[str, Any]], *, n_all: int) -> str:
    kept = [{key: entry[key] for key in ("n", "p", "a")} for entry in texts]
    record = json.dumps({"features": features, "texts": kept}, ensure_ascii=True, separators=(",", ":"))
    # no character of a text can end the element that holds it
    data = record.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    note = f"{len(texts):,} of {n_all:,} texts are here, those that drive some feature most."
    parts = {"name": html.escape(name), "note": html.escape(note), "hash": digest, "script": script, "data": data}
    page = (HERE / "viewer.html").read_text(encoding="utf-8")
    return re.sub(
        "@(hash|name|note|data|script)@", lambda found: parts[found[1]], page
    )  # what is put in is not searched
