"""What a dictionary is trained on: its site, its documents, held-out ones beside, and the hash of all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neurosae.dictionary.budget import require_budget
from neurosae.dictionary.record import CONFIG, read_folder
from neurosae.dictionary.settings import Settings, settings_of
from neurosae.dictionary.stream import hook_width
from neurosae.dictionary.texts import Contexts, make_contexts, sample_texts
from neurosae.errors import DataError, ModelError, StoreError
from neurosae.extraction.sites import check_hook
from neurosae.extraction.source import config_hash
from neurosae.spec.files import content_hash, require_writable, write_atomic

TRAIN_VERSION = 2  # raised whenever the same settings would give other numbers
HELD_OUT = 0.05, 500  # share of the documents kept for validation, and the number that suffices
SAMPLED = 500_000  # tokens that the model writes when no text is given


@dataclass(frozen=True)
class Site:
    """Where a dictionary is trained, how, the folder that it is saved to, and the width of its rows."""

    hook: str
    settings: Settings
    out: Path
    d: int


class Data(NamedTuple):
    """Contexts to learn from, and documents kept aside."""

    train: Contexts
    held_out: list[str]


def as_dict(settings: Mapping[str, Any] | Any) -> dict[str, Any]:
    """Settings from a mapping, from pairs, or from a block of an analysis."""
    if isinstance(settings, Mapping):
        return dict(settings)
    return settings.model_dump(exclude_none=True) if hasattr(settings, "model_dump") else dict(settings)


def make_site(model: Any, ask: Mapping[str, Any]) -> Site:
    """A site with every setting filled in; refused here when it cannot be trained or saved."""
    ask = {name: value for name, value in ask.items() if name != "texts"}
    hook, out = ask.pop("hook"), Path(ask.pop("out"))
    check_hook(hook, model.hooks)
    width = hook_width(model, hook)
    settings = settings_of(ask, width)
    require_writable(out.parent)
    require_budget([(settings, width)], out=out.parent, device=model.device)
    return Site(hook, settings, out, width)


def stream_of(settings: Settings) -> tuple[Any, ...]:
    """Sites that agree in this read the same batches, so one pass over the text serves them all."""
    return settings.n_tokens, settings.batch, settings.order, settings.context, settings.cache


def facts_of_run(model: Any, texts: Sequence[str] | None, settings: Settings) -> dict[str, Any]:
    """What a dictionary depends on besides its own settings."""
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so no text can be given to it.")
    if texts is not None and len(texts) < 2:
        raise DataError(f"training needs at least 2 documents, one of them held out, but there are {len(texts)}.")
    known = {n: model.provenance.get(n) for n in ("weights_hash", "weights", "tokenizer_hash")}
    known["config_hash"] = config_hash(model.provenance.get("config", {}))
    if texts is None:
        source = {"sampled_tokens": min(settings.n_tokens, SAMPLED), "sampled_seed": settings.order}
    else:
        source = {"text_hash": content_hash(*texts), "n_training_documents": len(texts)}
    return {
        "model_name": model.name,
        **known,
        "model_dtype": model.dtype,
        "prefix": list(model.tokens.prefix),
        **source,
    }


def training_key(model: Any, texts: Sequence[str] | None, *, hook: str, settings: Settings) -> str:
    """Hash of everything that the numbers of a trained dictionary depend on."""
    return content_hash(TRAIN_VERSION, facts_of_run(model, texts, settings), hook, asdict(settings))


def is_done(out: Path, key: str) -> bool:
    """Whether this very dictionary is there; anything else in the folder is never overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    stored = read_folder(out).metadata.get("key") if (out / CONFIG).is_file() else None
    if stored != key:
        raise StoreError(f"{out} exists and holds something else than this training; choose another folder.")
    return True


def own_texts(model: Any, settings: Settings, facts: Mapping[str, Any], *, path: Path) -> list[str]:
    """The model's own samples, kept beside the checkpoint so that a resumed run need not write them again."""
    key = content_hash(dict(facts))
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["texts"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    texts = sample_texts(
        model, facts["sampled_tokens"], seed=settings.order, length=settings.context, purpose="its training text"
    )
    write_atomic(path, json.dumps({"key": key, "texts": texts}))
    return texts


def split_documents(model: Any, texts: Sequence[str], settings: Settings) -> Data:
    """Documents to learn from and documents kept aside; one that occurs twice is on one side only."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise DataError("training needs at least 2 different documents, one of them held out; give more text.")
    order = np.random.default_rng([settings.order, 0]).permutation(len(distinct))
    n_held = min(max(round(HELD_OUT[0] * len(distinct)), 1), HELD_OUT[1])
    held_out = [distinct[i] for i in order[:n_held]]
    aside = set(held_out)
    train = [text for text in texts if text not in aside]
    contexts = make_contexts(model.tokens, train, length=min(settings.context, model.n_ctx))
    filled = [i for i, n in enumerate(contexts.n_rows) if n]
    return Data(
        contexts._replace(ids=[contexts.ids[i] for i in filled], documents=contexts.documents[filled]), held_out
    )
