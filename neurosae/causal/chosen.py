"""Which features an intervention edits, which are no controls, and the reference text of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from neurosae.errors import DataError
from neurosae.extraction.source import config_hash
from neurosae.spec.files import content_hash, write_atomic
from neurosae.spec.results import Tested


def reference_texts(study: Any, ask: Any, model: Any) -> list[str]:
    """Reference text of a study: the files that a block names, or what the model writes, once for all tests."""
    from neurosae.dictionary.texts import read_texts

    if ask.texts:
        return list(read_texts(ask.texts))

    config = config_hash(model.provenance.get("config", {}))
    key = content_hash(model.provenance.get("weights_hash"), config, ask.n_tokens, study.spec.seed)
    path = study.folder / "tests" / f"reference_text.{key[:12]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    texts = written_texts(model, ask.n_tokens, seed=study.spec.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(texts, ensure_ascii=False))
    return texts


def directed(
    features: np.ndarray, choice: Any, earlier: Mapping[str, Tested], *, site: str, alpha: float
) -> tuple[tuple[int, ...], np.ndarray]:
    """The chosen features of the asked direction, and those that answer to the choosing contrast (no controls)."""
    if choice.from_ is None:
        return tuple(map(int, features)), np.empty(0, dtype=int)
    table = earlier[choice.from_].table
    table = table[(table["site"] == site) & table["status"].eq("ok") & table["feature"].notna()]
    answers = table.loc[(table["p_unc"].astype(float) <= alpha).fillna(False), "feature"].astype(int)
    order = np.argsort(-table["value"].abs().to_numpy(dtype=float), kind="stable")
    value = table.iloc[order].drop_duplicates("feature").set_index("feature")["value"].astype(float)
    sign = {"both": 0, "plus": 1, "minus": -1}[choice.direction]
    kept = tuple(int(j) for j in features if sign == 0 or np.sign(value.loc[j]) == sign)
    if not kept:
        raise DataError(
            f"none of the features that '{choice.from_}' chose at site '{site}' is larger on the side asked."
        )
    return kept, np.unique(answers.to_numpy())


def written_texts(model: Any, n_tokens: int, *, seed: int) -> list[str]:
    """Reference text that the model writes itself."""
    from neurosae.dictionary.texts import sample_texts

    return sample_texts(model, n_tokens, seed=seed, purpose="reference text, for natural doses and costs")
