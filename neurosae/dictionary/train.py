"""Train dictionaries on a stream of activations: one pass over the texts for all sites, exactly resumable.

The recipe: activations are centred and scaled to unit mean square; TopK starts at k = width and falls to its value over
40 % of the steps; silent features learn what the others leave over (coefficient 1/32). Centring and scaling are folded
into the result, so it takes raw activations; it is saved in sae-lens format with a card of what held-out text shows.

An interrupted run continues from its checkpoint and gives the same bytes as an uninterrupted one (same machine,
same number of threads).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.architectures import LEARNERS
from neurosae.dictionary.budget import Clock, busy_words, require_budget, threads_for, using_threads
from neurosae.dictionary.checkpoint import Checkpoint, Running, read_checkpoint, tensors_of, write_checkpoint
from neurosae.dictionary.evaluate import (
    density_histogram,
    evaluate_dictionary,
    never_active,
    reconstruction,
    reference_contexts,
)
from neurosae.dictionary.learn import Report, recalibrate
from neurosae.dictionary.plan import (
    Data,
    Site,
    as_dict,
    facts_of_run,
    is_done,
    make_site,
    own_texts,
    split_documents,
    stream_of,
    training_key,
)
from neurosae.dictionary.record import Dictionary, as_stored, read_folder, write_folder
from neurosae.dictionary.rows import Place, cached_batches, cached_rows, first_rows
from neurosae.dictionary.settings import BY_BATCH, Settings
from neurosae.dictionary.stream import BUFFER, batches, context_rows, plan_blocks
from neurosae.dictionary.texts import Contexts, take_rows
from neurosae.dictionary.watch import (
    dead_words,
    diagnosis,
    far_words,
    is_looked_at,
    missed_words,
    moments,
    offset_words,
    spike_words,
)

__all__ = ["make_site", "train_dictionaries", "train_dictionary", "training_key"]

REFERENCE = 100_000  # training rows on which densities are counted
EVALUATED = 20_000  # held-out tokens for the card
CURVE = 2_048  # held-out tokens for the curve
PATIENCE = 60.0  # seconds of work that a killed run may lose; when a checkpoint is written changes no number
LOG = "training.csv"
NOT_HELD_OUT = {"hook", "n_features", "dead", "n_dead", "density_bound", "share_dense"}


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
        {"dictionary": {"hook": hook, "out": out, **as_dict(settings)}},
        checkpoint_every=checkpoint_every,
    )
    return made["dictionary"]


def train_dictionaries(
    model: Any,
    texts: Sequence[str] | None,
    sites: Mapping[str, Mapping[str, Any]],
    *,
    checkpoint_every: int | None = None,
    store: str | Path | None = None,
) -> dict[str, Dictionary]:
    """Train several dictionaries; those with the same stream of activations are trained in one pass over the text.

    Parameters
    ----------
    model : LanguageModel
    texts : documents; None for text that the model writes itself (temperature 1, seeded)
    sites : for each name `hook`, `out` (the folder to save to) and settings as in `Settings`; sites that agree in
        `n_tokens`, `batch`, `order`, `context` and `cache` share a pass, whatever their hook points, widths, seeds and
        architectures, and every dictionary is the same as if trained alone
    checkpoint_every : steps between checkpoints; default after every minute of work
    store : folder of the activations that `cache` keeps; default `activations` beside the first `out`

    Returns
    -------
    {name: Dictionary}, read back from disk

    Raises
    ------
    ModelError, DataError
        If a hook point or setting does not exist, the texts are too short, or memory does not suffice.
    StoreError
        If a folder holds another dictionary, or nothing can be written there.
    """
    asked = {name: make_site(model, ask) for name, ask in sites.items()}
    groups: dict[tuple[Any, ...], dict[str, Site]] = {}
    for name, site in asked.items():
        groups.setdefault(stream_of(site.settings), {})[name] = site
    made: dict[str, Dictionary] = {}
    for group in groups.values():
        folder = Path(store) if store is not None else next(iter(group.values())).out.parent / "activations"
        made |= _train_group(model, texts, group, checkpoint_every=checkpoint_every, store=folder)
    return {name: made[name] for name in sites}


# --- one pass -------------------------------------------------------------------------------------------------------


def _train_group(
    model: Any, texts: Sequence[str] | None, sites: Mapping[str, Site], *, checkpoint_every: int | None, store: Path
) -> dict[str, Dictionary]:
    first = next(iter(sites.values()))
    facts = facts_of_run(model, texts, first.settings)
    keys = {name: training_key(model, texts, hook=site.hook, settings=site.settings) for name, site in sites.items()}
    left = {name: site for name, site in sites.items() if not is_done(site.out, keys[name])}
    if left:
        kept = first.out.with_name(f"{first.out.name}.part.safetensors")
        written = first.out.with_name(f"{first.out.name}.samples.json")
        documents = list(texts) if texts is not None else own_texts(model, first.settings, facts, path=written)
        data = split_documents(model, documents, first.settings)
        s = first.settings
        place = Place(store, s.cache, {**facts, "order": s.order, "context": s.context, "n_tokens": s.n_tokens})
        checkpoint = Checkpoint(kept, {n: keys[n] for n in left}, checkpoint_every)
        finished = _learn(model, data, left, checkpoint=checkpoint, place=place)
        for name, (dictionary, card, log) in finished.items():
            stored = _described(dictionary, facts | card | {"key": keys[name]}, left[name].settings)
            write_folder(left[name].out, stored, dtype=left[name].settings.dtype, extra={LOG: log})
        kept.unlink(missing_ok=True)
        written.unlink(missing_ok=True)
    return {name: read_folder(site.out, device=model.device) for name, site in sites.items()}


Finished = tuple[Dictionary, dict[str, Any], str]


class Source(NamedTuple):
    """Where batches come from: rows for mean and scale, and batches from a step on."""

    first: Callable[[], dict[str, Tensor]]
    batches: Callable[[int], Iterator[dict[str, Tensor]]]


def _source(model: Any, data: Data, hooks: list[str], *, s: Settings, place: Place) -> Source:
    """Activations kept in a file, or straight from the model."""
    n_steps = s.n_tokens // s.batch
    if s.cache:
        rows = cached_rows(model, take_rows(data.train, s.n_tokens, seed=s.order), hooks, place=place)
        ask = {"batch": s.batch, "seed": s.order, "n_steps": n_steps}
        return Source(lambda: first_rows(rows, seed=s.order), lambda start: cached_batches(rows, **ask, start=start))
    blocks = plan_blocks(data.train.n_rows, batch=s.batch, n_steps=n_steps, seed=s.order)
    ask = {"hooks": hooks, "batch": s.batch, "seed": s.order}
    return Source(
        lambda: context_rows(model, data.train, blocks[0].contexts, hooks=hooks),
        lambda start: batches(model, data.train, blocks, **ask, start=start),
    )


def _learn(
    model: Any, data: Data, sites: Mapping[str, Site], *, checkpoint: Checkpoint, place: Place
) -> dict[str, Finished]:
    s = next(iter(sites.values())).settings
    n_steps, hooks = s.n_tokens // s.batch, list(dict.fromkeys(site.hook for site in sites.values()))
    needed = require_budget([(one.settings, one.d) for one in sites.values()], out=place.folder, device=model.device)
    source = _source(model, data, hooks, s=s, place=place)
    runs, start = _begin(source, sites, checkpoint=checkpoint, device=model.device)
    held_out = reference_contexts(model, data.held_out, n_tokens=CURVE, seed=s.order, length=s.context)
    held_rows = context_rows(model, held_out, np.arange(len(held_out.ids)), hooks=hooks)
    wanted = [threads_for(site.settings, site.d, device=model.device) for site in sites.values()]
    if model.device == "cpu" and None in wanted and (sentence := busy_words(None)):
        _say("threads", sentence)
    title, since, clock = f"train {', '.join(sites)}", time.monotonic(), Clock(n_steps, start, needed)
    with tqdm(
        total=n_steps * s.batch, initial=start * s.batch, desc=title, unit="tok", unit_scale=True, disable=None
    ) as bar:
        for step, batch in zip(range(start, n_steps), source.batches(start), strict=False):
            for name, run in runs.items():
                with using_threads(threads_for(run.learner.settings, run.learner.d, device=model.device)):
                    report = run.learner.step((batch[run.hook] - run.mean) / run.scale, step)
                if report is not None:
                    bar.set_postfix(loss=f"{report.loss:.3g}", fvu=f"{report.fvu:.3f}", dead=f"{report.dead:.1%}")
                    _note(name, run, report, step=step, held_out=held_rows[run.hook])
            bar.update(s.batch)
            clock.tick(step)
            if _is_due(checkpoint, step + 1, since):
                write_checkpoint(checkpoint, runs, step + 1)
                since = time.monotonic()
    return _finish(model, data, sites, runs=runs)


def _note(name: str, run: Running, report: Report, *, step: int, held_out: Tensor) -> None:
    """A row of the curve, and a warning where most features are dead."""
    s, n_steps = run.learner.settings, run.learner.n_steps
    row = {"step": step, "tokens": (step + 1) * s.batch, **report._asdict(), "fvu_held_out": np.nan}
    if len(run.log) % 5 == 4 or step == n_steps - 1:
        row["fvu_held_out"] = reconstruction(_so_far(run), held_out)[0]["fvu"]
    run.log.append(row)
    if is_looked_at(run.log, s, n_steps=n_steps):
        _warn(name, dead_words(report.dead, step, settings=s, n_steps=n_steps))


def _say(name: str, sentence: str) -> None:
    """A line beside the progress bar."""
    tqdm.write(f"{name}: {sentence}", file=sys.stderr)


def _warn(name: str, sentence: str) -> None:
    if sentence:
        warnings.warn(f"{name}: {sentence}", UserWarning, stacklevel=2)


def _is_due(checkpoint: Checkpoint, n_done: int, since: float) -> bool:
    if checkpoint.every is not None:
        return n_done % checkpoint.every == 0
    return time.monotonic() - since > PATIENCE


def _so_far(run: Running) -> Dictionary:
    return run.learner.learned(run.hook, run.mean, run.scale)


def _begin(
    source: Source, sites: Mapping[str, Site], *, checkpoint: Checkpoint, device: str
) -> tuple[dict[str, Running], int]:
    """Fresh learners with mean and scale from the first rows; or all of it from the checkpoint."""
    tensors, record = read_checkpoint(checkpoint)
    rows = {} if record else source.first()
    runs: dict[str, Running] = {}
    for name, site in sites.items():
        stored = tensors_of(tensors, checkpoint.keys[name])
        if record:
            mean, scale, gamma = stored.pop("mean"), float(stored.pop("scale")), float(stored.pop("gamma"))
        else:
            mean, scale, gamma = moments(rows[site.hook], site.settings, where=site.hook)
            _say(name, f"|mean| / |standard deviation| = {gamma:.3g}. {far_words(gamma)}".strip())
            _warn(name, offset_words(gamma, center=site.settings.center))
        learner = LEARNERS[site.settings.architecture](site.settings, len(mean), device=device)
        if record:
            learner.restore(stored)
        log = record["logs"][checkpoint.keys[name]] if record else []
        runs[name] = Running(learner, site.hook, mean, scale, log, gamma)
    return runs, record["step"] if record else 0


def _finish(model: Any, data: Data, sites: Mapping[str, Site], *, runs: Mapping[str, Running]) -> dict[str, Finished]:
    """Recalibrate, round as on disk, count densities on training rows, measure on held-out documents."""
    s = next(iter(sites.values())).settings
    cards: dict[str, dict[str, Any]] = {}
    made: dict[str, Dictionary] = {}
    for name, run in runs.items():
        own = sites[name].settings
        cards[name] = {"hook": run.hook, "scale": run.scale, **diagnosis(run.gamma, run.log, settings=own)}
        _warn(name, spike_words(cards[name]["loss_spikes"], run.learner.n_steps))
        cards[name]["curve"] = _curve(run.log)
        made[name] = _so_far(run)
        if own.architecture in BY_BATCH and own.recalibrate:
            made[name], cards[name]["recalibrated"] = _recalibrated(model, data, made[name], s=own)
        made[name] = as_stored(made[name], sites[name].settings.dtype)
    counts, n_rows = _count_active(model, data.train, made, seed=s.order)
    finished: dict[str, Finished] = {}
    for name, dictionary in made.items():
        dictionary = replace(dictionary, metadata={**dictionary.metadata, "context_size": sites[name].settings.context})
        row = evaluate_dictionary(dictionary, model, data.held_out, n_tokens=EVALUATED, seed=s.order).iloc[0]
        density = counts[name] / n_rows
        scores = {str(n): v.item() if hasattr(v, "item") else v for n, v in row.items() if n not in NOT_HELD_OUT}
        scores |= {**never_active(counts[name], n_rows), "n_reference": n_rows, "densities": density_histogram(density)}
        if missed := missed_words(scores["l0"], sites[name].settings):
            cards[name]["warnings"].append(missed)
            _say(name, missed)
        log = pd.DataFrame(runs[name].log).to_csv(index=False)
        finished[name] = replace(dictionary, density=density.astype(np.float32)), cards[name] | scores, log
    return finished


def _curve(log: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of the log that the report draws."""
    table = pd.DataFrame(log)[["tokens", "fvu", "fvu_held_out", "l0", "k", "dead", "loss"]]
    return {str(name): [None if pd.isna(v) else v for v in column.tolist()] for name, column in table.items()}


def _recalibrated(model: Any, data: Data, dictionary: Dictionary, *, s: Settings) -> tuple[Dictionary, dict[str, Any]]:
    """On rows that were not used for training; L0 and FVU before and after."""
    contexts = reference_contexts(model, data.held_out, n_tokens=EVALUATED, seed=s.order + 1, length=s.context)
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
        "centring": "mean and root mean square of the training rows, folded into the weights" if settings.center
        else "none",
        "text": {n: card[n] for n in card if n.startswith(("text_", "sampled_", "n_training_documents"))},
        "fvu": card["fvu"], "l0": card["l0"],
    }  # fmt: skip
    clean = {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in card.items()}
    return replace(
        dictionary, metadata={**dictionary.metadata, **metadata}, card=clean | {"settings": asdict(settings)}
    )
