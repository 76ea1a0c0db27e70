"""The dictionaries of a study once more, by the same recipes, on a model without what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurosae.dictionary.alternatives import asked_of, fit_dictionary, text_to_decompose
from neurosae.dictionary.kinds import Dictionary, neuron_dictionary
from neurosae.dictionary.plan import facts_of_run, make_site, own_texts, training_key
from neurosae.dictionary.record import read_folder
from neurosae.dictionary.settings import settings_of
from neurosae.dictionary.stream import hook_width
from neurosae.dictionary.texts import read_texts
from neurosae.dictionary.train import train_dictionaries
from neurosae.errors import ModelError
from neurosae.spec.files import content_hash


def control_dictionaries(
    sites: Mapping[str, Any],
    dictionaries: Mapping[str, Dictionary],
    models: tuple[Any, Any],
    *,
    store: str | Path,
    stimuli: Any = None,
) -> tuple[dict[str, Dictionary], dict[str, str]]:
    """Train or fit every dictionary of a study again, on a control of its model and on the same text.

    Parameters
    ----------
    sites : {name: site of an analysis}, `blocks.*` written out
    dictionaries : {name: Dictionary} of the model as it was learned
    models : the model, and its `random_control`
    store : folder of all studies; what was made before is reused
    stimuli : for `fit: {kind: diff_means}`

    Returns
    -------
    {name: Dictionary}, {name: sentence}
        Of every site one or the other; the sentence says why there is no recipe to repeat.

    Notes
    -----
    The text is that of the first training. Where the model wrote it, the learned model's samples are read, because the
    control writes noise. Fits are not checked: a control may reconstruct badly.

    References
    ----------
    Heap et al. (2025), Sparse autoencoders can interpret randomly initialized transformers, arXiv 2501.17727.
    """
    made: dict[str, Dictionary] = {}
    notes: dict[str, str] = {}
    for name, site in sites.items():
        try:
            made[name] = _again(site, dictionaries[name], models, store=Path(store), stimuli=stimuli)
        except _NoRecipe as reason:
            notes[name] = f"no control: {reason}"
    return made, notes


class _NoRecipe(Exception):
    """Why a dictionary cannot be made again."""


def _again(site: Any, made: Dictionary, models: tuple[Any, Any], *, store: Path, stimuli: Any) -> Dictionary:
    block, hook, control = site.dictionary, site.hook, models[1]
    if block.neurons:
        return neuron_dictionary(hook, hook_width(control, hook), device=control.device)
    if block.fit:
        settings = block.fit.model_dump(exclude={"texts"}, exclude_none=True)
        texts = _read(block.fit.texts)
        if texts is None:
            texts = text_to_decompose(models[0], asked_of(settings, made.d_in), store, stimuli=stimuli)
        return fit_dictionary(control, texts, hook=hook, settings=settings, store=store, stimuli=stimuli)
    if block.train:
        settings = block.train.model_dump(exclude={"texts"}, exclude_none=True)
        return _trained(settings, _read(block.train.texts), models, hook=hook, store=store)
    return _trained(_recorded(made, models[0]), None, models, hook=hook, store=store)


def _read(paths: Sequence[str]) -> list[str] | None:
    return list(read_texts(list(paths))) if paths else None


def _recorded(made: Dictionary, model: Any) -> dict[str, Any]:
    """The recipe that a folder states, if everything is there to follow it."""
    recipe, text = made.metadata.get("recipe"), made.metadata.get("text") or {}
    if not isinstance(recipe, Mapping) or not {"architecture", "d_sae", "k", "n_tokens"} <= set(recipe):
        raise _NoRecipe("its folder does not state how it was trained; train one here with `train:`.")
    if "sampled_seed" not in text:
        n = text.get("n_training_documents")
        count = f"{n:,} documents" if isinstance(n, int) else "text"
        raise _NoRecipe(
            f"it was trained on {count} that are not stored with it; name them as `texts:` of a `train:` block."
        )
    if made.metadata.get("model_hash") != model.provenance.get("weights_hash"):
        raise _NoRecipe("it was trained on the samples of another model; train one here with `train:`.")
    try:
        settings_of(recipe, made.d_in)
    except ModelError as error:
        raise _NoRecipe(f"the recipe in its folder cannot be followed ({error})") from error
    return dict(recipe)


def _trained(
    settings: dict[str, Any], texts: list[str] | None, models: tuple[Any, Any], *, hook: str, store: Path
) -> Dictionary:
    """The dictionary of the control, in the store under a key of its own."""
    model, control = models
    folder = store / "_store" / "dictionaries"
    full = make_site(control, {**settings, "hook": hook, "out": folder / "new"}).settings
    if texts is None:
        facts = facts_of_run(model, None, full)
        path = store / "_store" / "texts" / f"{content_hash(facts, full.context)[:12]}.json"
        texts = own_texts(model, full, facts, path=path)
    out = folder / training_key(control, texts, hook=hook, settings=full)[:12]
    ask = {**settings, "hook": hook, "out": out}
    train_dictionaries(control, texts, {f"{hook}, control": ask}, store=store / "_store" / "activations")
    return replace(read_folder(out, device=control.device), hook=hook)
