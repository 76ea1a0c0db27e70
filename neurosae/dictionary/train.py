"""Train dictionaries on a stream of activations: one pass over the texts for all sites, exactly resumable.

The recipe: activations are centred and scaled to unit mean square; TopK starts at k = width and falls to its value over
40 % of the steps; silent features learn what the others leave over (coefficient 1/32). Centring and scaling are folded
into the result, so it takes raw activations; it is saved in sae-lens format with a card of what held-out text shows.

An interrupted run continues from its checkpoint and gives the same bytes as an uninterrupted one (same machine,
same number of threads).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from neurosae.dictionary.checkpoint import Checkpoint, Running, read_checkpoint, tensors_of, write_checkpoint
from neurosae.dictionary.evaluate import (
    density_histogram,
    evaluate_dictionary,
    never_active,
    reconstruction,
    reference_contexts,
)
from neurosae.dictionary.learn import LEARNERS, Settings, recalibrate, settings_of
from neurosae.dictionary.record import CONFIG, Dictionary, as_stored, read_folder, write_folder
from neurosae.dictionary.stream import BUFFER, Block, batches, context_rows, hook_width, plan_blocks
from neurosae.dictionary.texts import Contexts, make_contexts, sample_texts, take_rows
from neurosae.errors import DataError, ModelError, StoreError
from neurosae.extraction.sites import check_hook
from neurosae.spec.files import content_hash, require_space, require_writable, write_atomic

TRAIN_VERSION = 1  # raised whenever the same settings would give other numbers
HELD_OUT = 0.05, 500  # share of the documents kept for validation, and the number that suffices
REFERENCE = 100_000  # training rows on which densities are counted
EVALUATED = 20_000  # held-out tokens for the card
CURVE = 2_048  # held-out tokens for the curve
PATIENCE = 60.0  # seconds of work that a killed run may lose; when a checkpoint is written changes no number
SAMPLED = 500_000  # tokens that the model writes when no text is given
LOG = "training.csv"
NOT_HELD_OUT = {"hook", "n_features", "dead", "n_dead", "density_bound", "share_dense"}


@dataclass(frozen=True)
class Site:
    """Where a dictionary is trained, how, and the folder that it is saved to."""

    hook: str
    settings: Settings
    out: Path


def train_dictionary(
    model: Any,
    texts: Sequence[str] | None,
    *,
    hook: str,
    out: str | Path,
    settings: Mapping[str, Any] | Any = (),
    checkpoint_every: int | None = None,
) -> Dictionary:
    """Train one dictionary and save it; see `train_dictionaries`.

    Examples
    --------
    >>> import tempfile
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=32, d_vocab=257, act_fn="gelu", seed=0)
    >>> texts = [f"Text {i} of many, and every one is different: {i * i}." for i in range(60)]
    >>> settings = {"d_sae": 32, "k": 4, "n_tokens": 2000, "batch": 50}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "late"
    ...     made = train_dictionary(
    ...         load_model(toy), texts, hook="blocks.0.hook_resid_post", out=out, settings=settings
    ...     )
    ...     sorted(p.name for p in out.iterdir()), made.n_features, made.metadata["prepend_bos"]
    (['card.json', 'cfg.json', 'density.npy', 'sae_weights.safetensors', 'training.csv'], 32, True)
    """
    made = train_dictionaries(
        model,
        texts,
        {"dictionary": {"hook": hook, "out": out, **_as_dict(settings)}},
        checkpoint_every=checkpoint_every,
    )
    return made["dictionary"]


def train_dictionaries(
    model: Any,
    texts: Sequence[str] | None,
    sites: Mapping[str, Mapping[str, Any]],
    *,
    checkpoint_every: int | None = None,
) -> dict[str, Dictionary]:
    """Train the dictionaries of several sites; sites with the same stream are read from the model in one pass.

    Parameters
    ----------
    model : LanguageModel
    texts : documents; None for text that the model writes itself (temperature 1, seeded)
    sites : for each name `hook`, `out` (the folder to save to) and settings as in `Settings`; sites that agree in
        `n_tokens`, `batch`, `seed` and `context` share a pass, and every dictionary is the same as if trained alone
    checkpoint_every : steps between checkpoints; default after every minute of work

    Returns
    -------
    {name: Dictionary}, read back from disk

    Raises
    ------
    ModelError, DataError
        If a hook point or setting does not exist, or the texts are too short.
    StoreError
        If a folder holds another dictionary, or nothing can be written there.
    """
    asked = {name: make_site(model, ask) for name, ask in sites.items()}
    groups: dict[tuple[Any, ...], dict[str, Site]] = {}
    for name, site in asked.items():
        s = site.settings
        groups.setdefault((s.n_tokens, s.batch, s.seed, s.context), {})[name] = site
    made: dict[str, Dictionary] = {}
    for group in groups.values():
        made |= _train_group(model, texts, group, checkpoint_every=checkpoint_every)
    return {name: made[name] for name in sites}


def _as_dict(settings: Mapping[str, Any] | Any) -> dict[str, Any]:
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
    require_space(out.parent, 8 * 4 * width * settings.d_sae)
    return Site(hook, settings, out)


# --- one pass -------------------------------------------------------------------------------------------------------


def _train_group(
    model: Any, texts: Sequence[str] | None, sites: Mapping[str, Site], *, checkpoint_every: int | None
) -> dict[str, Dictionary]:
    first = next(iter(sites.values()))
    facts = _facts(model, texts, first.settings)
    keys = {name: training_key(model, texts, hook=site.hook, settings=site.settings) for name, site in sites.items()}
    left = {name: site for name, site in sites.items() if not _is_done(site.out, keys[name])}
    if left:
        kept = first.out.with_name(f"{first.out.name}.part.safetensors")
        written = first.out.with_name(f"{first.out.name}.samples.json")
        documents = list(texts) if texts is not None else _own_texts(model, first.settings, facts, path=written)
        data = _split(model, documents, first.settings)
        checkpoint = Checkpoint(kept, {n: keys[n] for n in left}, checkpoint_every)
        finished = _learn(model, data, left, checkpoint=checkpoint)
        for name, (dictionary, card, log) in finished.items():
            stored = _described(dictionary, facts | card | {"key": keys[name]}, left[name].settings)
            write_folder(left[name].out, stored, dtype=left[name].settings.dtype, extra={LOG: log})
        kept.unlink(missing_ok=True)
        written.unlink(missing_ok=True)
    return {name: read_folder(site.out, device=model.device) for name, site in sites.items()}


def _n_steps(settings: Settings) -> int:
    return settings.n_tokens // settings.batch


def _facts(model: Any, texts: Sequence[str] | None, settings: Settings) -> dict[str, Any]:
    """What a dictionary depends on besides its own settings."""
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so no text can be given to it.")
    if texts is not None and len(texts) < 2:
        raise DataError(f"training needs at least 2 documents, one of them held out, but there are {len(texts)}.")
    known = {n: model.provenance.get(n) for n in ("weights_hash", "weights", "tokenizer_hash")}
    if texts is None:
        source = {"sampled_tokens": min(settings.n_tokens, SAMPLED), "sampled_seed": settings.seed}
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
    return content_hash(TRAIN_VERSION, _facts(model, texts, settings), hook, asdict(settings))


def _is_done(out: Path, key: str) -> bool:
    """Whether this very dictionary is there; anything else in the folder is never overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    stored = read_folder(out).metadata.get("key") if (out / CONFIG).is_file() else None
    if stored != key:
        raise StoreError(f"{out} exists and holds something else than this training; choose another folder.")
    return True


def _own_texts(model: Any, settings: Settings, facts: Mapping[str, Any], *, path: Path) -> list[str]:
    """The model's own samples, kept beside the checkpoint so that a resumed run need not write them again."""
    key = content_hash(dict(facts))
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["texts"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    texts = sample_texts(
        model, facts["sampled_tokens"], seed=settings.seed, length=settings.context, purpose="its training text"
    )
    write_atomic(path, json.dumps({"key": key, "texts": texts}))
    return texts


class Data(NamedTuple):
    """Contexts to learn from, and documents kept aside."""

    train: Contexts
    held_out: list[str]


def _split(model: Any, texts: Sequence[str], settings: Settings) -> Data:
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise DataError("training needs at least 2 different documents, one of them held out; give more text.")
    order = np.random.default_rng([settings.seed, 0]).permutation(len(distinct))
    n_held = min(max(round(HELD_OUT[0] * len(distinct)), 1), HELD_OUT[1])
    held_out = [distinct[i] for i in order[:n_held]]
    aside = set(held_out)
    train = [text for text in texts if text not in aside]
    contexts = make_contexts(model.tokens, train, length=min(settings.context, model.n_ctx))
    filled = [i for i, n in enumerate(contexts.n_rows) if n]
    return Data(
        contexts._replace(ids=[contexts.ids[i] for i in filled], documents=contexts.documents[filled]), held_out
    )


Finished = tuple[Dictionary, dict[str, Any], str]


def _learn(model: Any, data: Data, sites: Mapping[str, Site], *, checkpoint: Checkpoint) -> dict[str, Finished]:
    s = next(iter(sites.values())).settings
    n_steps, hooks = _n_steps(s), list(dict.fromkeys(site.hook for site in sites.values()))
    blocks = plan_blocks(data.train.n_rows, batch=s.batch, n_steps=n_steps, seed=s.seed)
    runs, start = _begin(model, data, sites, checkpoint=checkpoint, first=blocks[0])
    held_out = reference_contexts(model, data.held_out, n_tokens=CURVE, seed=s.seed, length=s.context)
    held_rows = context_rows(model, held_out, np.arange(len(held_out.ids)), hooks=hooks)
    stream = batches(model, data.train, blocks, hooks=hooks, batch=s.batch, seed=s.seed, start=start)
    title, since = f"train {', '.join(sites)}", time.monotonic()
    with tqdm(total=n_steps * s.batch, initial=start * s.batch, desc=title, unit="tok", unit_scale=True) as bar:
        for step, batch in zip(range(start, n_steps), stream, strict=False):
            for run in runs.values():
                report = run.learner.step((batch[run.hook] - run.mean) / run.scale, step)
                if report is not None:
                    bar.set_postfix(loss=f"{report.loss:.3g}", fvu=f"{report.fvu:.3f}", dead=f"{report.dead:.1%}")
                    row = {"step": step, "tokens": (step + 1) * s.batch, **report._asdict(), "fvu_held_out": np.nan}
                    if len(run.log) % 5 == 4 or step == n_steps - 1:
                        row["fvu_held_out"] = reconstruction(_so_far(run), held_rows[run.hook])[0]["fvu"]
                    run.log.append(row)
            bar.update(s.batch)
            if _is_due(checkpoint, step + 1, since):
                write_checkpoint(checkpoint, runs, step + 1)
                since = time.monotonic()
    return _finish(model, data, sites, runs=runs)


def _is_due(checkpoint: Checkpoint, n_done: int, since: float) -> bool:
    if checkpoint.every is not None:
        return n_done % checkpoint.every == 0
    return time.monotonic() - since > PATIENCE


def _so_far(run: Running) -> Dictionary:
    return run.learner.learned(run.hook, run.mean, run.scale)


def _begin(
    model: Any, data: Data, sites: Mapping[str, Site], *, checkpoint: Checkpoint, first: Block
) -> tuple[dict[str, Running], int]:
    """Fresh learners with mean and scale from the first block; or all of it from the checkpoint."""
    tensors, record = read_checkpoint(checkpoint)
    hooks = list(dict.fromkeys(site.hook for site in sites.values()))
    rows = {} if record else context_rows(model, data.train, first.contexts, hooks=hooks)
    runs: dict[str, Running] = {}
    for name, site in sites.items():
        stored = tensors_of(tensors, checkpoint.keys[name])
        if record:
            mean, scale = stored.pop("mean"), float(stored.pop("scale"))
        else:
            mean = rows[site.hook].double().mean(0).float()
            scale = float((rows[site.hook] - mean).double().square().mean().sqrt())
        if not scale > 0:
            raise ModelError(f"{site.hook}: all activations are equal; there is nothing to learn.")
        learner = LEARNERS[site.settings.architecture](site.settings, len(mean), device=model.device)
        if record:
            learner.restore(stored)
        runs[name] = Running(learner, site.hook, mean, scale, record["logs"][checkpoint.keys[name]] if record else [])
    return runs, record["step"] if record else 0


def _finish(model: Any, data: Data, sites: Mapping[str, Site], *, runs: Mapping[str, Running]) -> dict[str, Finished]:
    """Recalibrate, round as on disk, count densities on training rows, measure on held-out documents."""
    s = next(iter(sites.values())).settings
    cards: dict[str, dict[str, Any]] = {}
    made: dict[str, Dictionary] = {}
    for name, run in runs.items():
        spread = run.scale * len(run.mean) ** 0.5
        cards[name] = {"hook": run.hook, "gamma": float(run.mean.norm()) / spread, "scale": run.scale}
        made[name] = _so_far(run)
        if sites[name].settings.architecture == "batchtopk":
            made[name], cards[name]["recalibrated"] = _recalibrated(model, data, made[name], s=sites[name].settings)
        made[name] = as_stored(made[name], sites[name].settings.dtype)
    counts, n_rows = _count_active(model, data.train, made, seed=s.seed)
    finished: dict[str, Finished] = {}
    for name, dictionary in made.items():
        row = evaluate_dictionary(dictionary, model, data.held_out, n_tokens=EVALUATED, seed=s.seed).iloc[0]
        density = counts[name] / n_rows
        scores = {str(n): v.item() if hasattr(v, "item") else v for n, v in row.items() if n not in NOT_HELD_OUT}
        scores |= {**never_active(counts[name], n_rows), "n_reference": n_rows, "densities": density_histogram(density)}
        log = pd.DataFrame(runs[name].log).to_csv(index=False)
        finished[name] = replace(dictionary, density=density.astype(np.float32)), cards[name] | scores, log
    return finished


def _recalibrated(model: Any, data: Data, dictionary: Dictionary, *, s: Settings) -> tuple[Dictionary, dict[str, Any]]:
    """On rows that were not used for training; L0 and FVU before and after."""
    contexts = reference_contexts(model, data.held_out, n_tokens=EVALUATED, seed=s.seed + 1, length=s.context)
    x = context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[dictionary.hook])[dictionary.hook]
    after = recalibrate(dictionary, x, s.k)
    record = {}
    for when, one in (("before", dictionary), ("after", after)):
        scores = reconstruction(one, x)[0]
        record |= {f"l0_{when}": scores["l0"], f"fvu_{when}": scores["fvu"]}
    return after, record


def _count_active(
    model: Any, train: Contexts, made: Mapping[str, Dictionary], *, seed: int
) -> tuple[dict[str, np.ndarray], int]:
    """On how many of about `REFERENCE` training rows each feature is active."""
    some = take_rows(train, REFERENCE, seed=seed)
    hooks = list(dict.fromkeys(one.hook for one in made.values()))
    counts = {name: np.zeros(one.n_features, dtype=np.int64) for name, one in made.items()}
    n_rows = 0
    for chosen in np.array_split(np.arange(len(some.ids)), max(int(some.n_rows.sum()) // BUFFER, 1)):
        rows = context_rows(model, some, chosen, hooks=hooks)
        n_rows += len(next(iter(rows.values())))
        for name, one in made.items():
            counts[name] += np.bincount(one.encode(rows[one.hook]).indices, minlength=one.n_features)
    return counts, n_rows


def _described(dictionary: Dictionary, card: dict[str, Any], settings: Settings) -> Dictionary:
    """The dictionary with its card, and with the metadata that a later load checks."""
    metadata = {
        "model_name": card["model_name"], "model_hash": card["weights_hash"], "weights_mode": card["weights"],
        "tokenizer_hash": card["tokenizer_hash"], "hook_name": dictionary.hook, "prepend_bos": bool(card["prefix"]),
        "context_size": settings.context, "recipe": asdict(settings), "key": card["key"],
        "centring": "mean and root mean square of the training rows, folded into the weights",
        "text": {n: card[n] for n in card if n.startswith(("text_", "sampled_", "n_training_documents"))},
        "fvu": card["fvu"], "l0": card["l0"],
    }  # fmt: skip
    clean = {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in card.items()}
    return replace(dictionary, metadata=metadata, card=clean | {"settings": asdict(settings)})
