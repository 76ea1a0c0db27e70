"""Dictionaries of a study: found by what the analysis names, then made to prove that they fit the model.

A dictionary that does not fit still gives numbers: features of another hook point, of other weights, of another model.
So width, hook point, weights and reconstruction are checked here, before a stimulus is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.dictionary.alternatives import fit_site
from neurosae.dictionary.convert import read_dictionary
from neurosae.dictionary.evaluate import contexts_for, reconstruction
from neurosae.dictionary.record import (
    Dictionary,
    first_line,
    foreign,
    import_sae_lens,
    neuron_dictionary,
    read_folder,
)
from neurosae.dictionary.stream import context_rows, hook_width
from neurosae.dictionary.texts import read_texts, sample_texts
from neurosae.dictionary.train import make_site, train_dictionaries, training_key
from neurosae.dictionary.vectors import read_vectors
from neurosae.errors import ModelError, unknown
from neurosae.extraction.model import load_model
from neurosae.extraction.sites import check_hook
from neurosae.extraction.tokens import with_bos

__all__ = ["DICTIONARIES", "Dictionary", "check_fit", "load_dictionary"]

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"
REFERENCE = 2_048  # tokens of the fit check
NO_FIT, POOR_FIT, SUSPECT = 0.9, 0.5, 0.3  # FVU that is refused; announced; tried under the other weights mode
KEPT = 0.5  # share of the explained variance on its card that a dictionary must reach here
PARTIAL = ("random", "diff_means", "vectors")  # decompositions that do not set out to reconstruct
L0_ANNOUNCED, L0_REFUSED = 2.0, 5.0  # largest factor between L0 here and on its card


def load_dictionary(
    site: Mapping[str, Any] | Any,
    model: Any,
    *,
    store: str | Path | None = None,
    texts: Sequence[str] | Callable[[], Sequence[str]] | None = None,
    stimuli: Any = None,
    where: str = "",
) -> Dictionary:
    """Load, train or fit the dictionary of a site and check that it fits the model.

    Parameters
    ----------
    site : `{"hook": name, "dictionary": {...}}`, or such a block of an analysis. The dictionary is one of
        `embedded: name` (shipped with the package), `path: folder` (of sae-lens, or of another project that
        `neurosae.dictionary.convert` knows), `release:` and `id:` (published; the only kind that may use the network),
        `train: {...}` (trained on the site's `texts`, else on text that the model writes, and kept in `store`),
        `fit: {...}` (another decomposition, likewise), `neurons: true` (the raw stream, each dimension as two signs),
        `vectors: file` (directions found elsewhere)
    model : LanguageModel
    store : folder of all studies, for `train` and `fit`
    texts : reference text of the fit check, or a function that gives it when all else fits; without, 2,048 tokens
        that the model writes itself
    stimuli : for `fit: {kind: diff_means}`, whose directions come from the localizer items
    where : name of the site, for messages

    Returns
    -------
    Dictionary, with `fit` = `fvu_here l0_here n_tokens fvu_card l0_card warnings`

    Raises
    ------
    ModelError
        If it is missing or broken, was trained at another hook point or for other weights, reads another width, or
        reconstructs this model's activations badly (FVU above 0.9, or less than half of the explained variance on its
        card, or L0 off by more than a factor of 5).

    Examples
    --------
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> site = {"hook": "blocks.0.hook_resid_post", "dictionary": {"neurons": True}}
    >>> raw = load_dictionary(site, load_model(toy), texts=["A dog.", "Two cats."])
    >>> raw.n_features, raw.fit["fvu_here"]
    (16, 0.0)
    """
    hook, block = _parts(site)
    prefix = f"sites.{where}: " if where else ""
    try:
        check_hook(hook, model.hooks)
        kind = next((name for name in DICTIONARIES if block.get(name)), None)
        if kind is None:
            raise ModelError(unknown("dictionary", ", ".join(block) or "none", DICTIONARIES))
        place = Path(store) if store is not None else None
        found = DICTIONARIES[kind](Ask(block, model, hook, place, where or hook, stimuli))
        if kind == "neurons" and (texts is None or callable(texts)):  # exact whatever the text
            exact = {"fvu_here": 0.0, "l0_here": float(found.d_in), "n_tokens": 0}
            return replace(found, fit=exact | {"fvu_card": None, "l0_card": None, "warnings": ()})
        there = _at(found, model, hook)
        return check_fit(there, model, texts=texts() if callable(texts) else texts)
    except ModelError as error:
        raise ModelError(f"{prefix}{error}") from error


def _parts(site: Mapping[str, Any] | Any) -> tuple[str, dict[str, Any]]:
    if isinstance(site, Mapping):
        hook, block = site["hook"], site["dictionary"]
    else:
        hook, block = site.hook, site.dictionary
    if not isinstance(block, Mapping):
        block = block.model_dump(exclude_none=True)
    return hook, {name: value for name, value in block.items() if value not in (None, False)}


# --- where a dictionary comes from ----------------------------------------------------------------------------------


class Ask(NamedTuple):
    """What a site asks for: its dictionary block, the model, hook point, folder of all studies, name, the stimuli."""

    block: Mapping[str, Any]
    model: Any
    hook: str
    store: Path | None
    name: str
    stimuli: Any = None


def _embedded(ask: Ask) -> Dictionary:
    known = sorted(p.parent.name for p in EMBEDDED.glob("*/sae_weights.safetensors"))
    if ask.block["embedded"] not in known:
        raise ModelError(unknown("embedded dictionary", ask.block["embedded"], known))
    return read_folder(EMBEDDED / ask.block["embedded"], device=ask.model.device)


def _path(ask: Ask) -> Dictionary:
    return read_dictionary(Path(ask.block["path"]).expanduser(), device=ask.model.device)


def _release(ask: Ask) -> Dictionary:
    release, name = ask.block["release"], ask.block.get("id")
    if not name:
        raise ModelError(f"release '{release}' needs `id:`, the name of one of its dictionaries.")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            sae = import_sae_lens().SAE.from_pretrained(release, name, device=ask.model.device)
        except Exception as error:  # sae-lens' own ValueError, or whatever the hub's client raises
            raise ModelError(
                f"dictionary '{name}' of release '{release}' cannot be had ({first_line(error)}); run once with "
                "a network, or copy its folder here and name it as `path:`."
            ) from error
    heard = tuple(str(w.message).strip() for w in said if issubclass(w.category, UserWarning))
    return replace(foreign(sae), fit={"warnings": heard})


def _train(ask: Ask) -> Dictionary:
    if ask.store is None:
        raise ModelError("a dictionary that is trained needs a folder to be kept in; give store=, or --out.")
    site = {"hook": ask.hook, "dictionary": ask.block}
    folder = train_sites({ask.name: site}, ask.model, store=ask.store)[ask.name]
    return read_folder(folder, device=ask.model.device)


def train_sites(
    sites: Mapping[str, Mapping[str, Any] | Any], model: Any, *, store: str | Path, texts: Sequence[str] = ()
) -> dict[str, Path]:
    """Train the dictionaries that sites ask for, several sites in one pass; what is finished already is kept.

    Parameters
    ----------
    sites : for each name `{"hook": ..., "dictionary": {"train": {...}}}`, or such a block of an analysis
    model : LanguageModel
    store : folder of all studies; a dictionary lies in `<store>/_store/dictionaries/<hash12>`
    texts : files or folders read instead of the sites' own `texts`; none of either: the model's own samples

    Returns
    -------
    {name: folder of the finished dictionary}
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, site in sites.items():
        hook, block = _parts(site)
        settings = {key: value for key, value in block["train"].items() if value is not None}
        own = settings.pop("texts", None) or ()
        groups.setdefault(tuple(map(str, texts or own)), {})[name] = {**settings, "hook": hook}
    folders: dict[str, Path] = {}
    for paths, group in groups.items():
        read = list(read_texts(paths)) if paths else None
        for name, ask in group.items():
            place = Path(store) / "_store" / "dictionaries"
            full = make_site(model, {**ask, "out": place / "new"}).settings
            folders[name] = place / training_key(model, read, hook=ask["hook"], settings=full)[:12]
        asked = {name: {**ask, "out": folders[name]} for name, ask in group.items()}
        train_dictionaries(model, read, asked, store=Path(store) / "_store" / "activations")
    return {name: folders[name] for name in sites}


def _fit(ask: Ask) -> Dictionary:
    return fit_site(ask.hook, ask.block["fit"], ask.model, store=ask.store, stimuli=ask.stimuli)


def _neurons(ask: Ask) -> Dictionary:
    return neuron_dictionary(ask.hook, hook_width(ask.model, ask.hook), device=ask.model.device)


def _vectors(ask: Ask) -> Dictionary:
    return read_vectors(ask.block["vectors"], hook=ask.hook, device=ask.model.device)


DICTIONARIES: dict[str, Callable[[Ask], Dictionary]] = {
    "embedded": _embedded,
    "path": _path,
    "release": _release,
    "train": _train,
    "fit": _fit,
    "neurons": _neurons,
    "vectors": _vectors,
}


# --- does it fit? ---------------------------------------------------------------------------------------------------


def _at(dictionary: Dictionary, model: Any, hook: str) -> Dictionary:
    """The dictionary at the site's hook point; refused if it was made for another place or another model."""
    own, facts = dictionary.hook, dictionary.metadata
    if own and model.hooks.get(own, own) != model.hooks[hook]:
        raise ModelError(f"the dictionary was trained at {own}, but the site's hook is {hook}.")
    width = hook_width(model, hook)
    if dictionary.d_in != width:
        raise ModelError(
            f"the dictionary reads vectors of width {dictionary.d_in}, but {hook} of {model.name} gives {width}; "
            "use a dictionary that was trained for this model."
        )
    mode, here = facts.get("weights_mode"), model.provenance.get("weights")
    if mode and mode != here:
        raise ModelError(
            f"the dictionary was trained on weights: {mode}, but the model is loaded with weights: {here}."
        )
    if facts.get("model_hash") and facts["model_hash"] != model.provenance.get("weights_hash"):
        raise ModelError(
            f"the dictionary was trained on other weights ({facts.get('model_name')}) than those of {model.name}; "
            "train one for this model."
        )
    return replace(dictionary, hook=hook)


def check_fit(dictionary: Dictionary, model: Any, *, texts: Sequence[str] | None = None) -> Dictionary:
    """Reconstruct reference activations and compare FVU and L0 with the dictionary's card.

    Parameters
    ----------
    texts : at least 2,000 tokens are wanted, all are used if there are fewer; without, the model writes them

    Returns
    -------
    the same dictionary with `fit` filled in; what is poor but not refused is announced there and as a warning
    """
    if texts is None:
        texts = sample_texts(model, REFERENCE, seed=0, purpose="reference text, to check the fit of a dictionary")
    here, card = _measure(dictionary, model, texts), _recorded(dictionary)
    _suggest_weights(dictionary, model, texts, fvu=here["fvu"])
    _refuse(dictionary, here, card)
    said = [*dictionary.fit.get("warnings", ()), *_announcements(here, card), *_about_bos(dictionary, model)]
    fit = {"fvu_here": here["fvu"], "l0_here": here["l0"], "n_tokens": here["n_tokens"],
           "fvu_card": card["fvu"], "l0_card": card["l0"], "warnings": tuple(said)}  # fmt: skip
    for sentence in said:
        warnings.warn(f"{dictionary.hook}: {sentence}", UserWarning, stacklevel=2)
    return replace(dictionary, fit=fit)


def _measure(dictionary: Dictionary, model: Any, texts: Sequence[str]) -> dict[str, float]:
    wanted = dictionary.metadata.get("prepend_bos")
    if model.tokens is not None and model.tokens.rule == "auto" and wanted is not None:
        model = replace(model, tokens=with_bos(model.tokens, bool(wanted)))
    contexts = contexts_for(dictionary, model, texts, n_tokens=2 * REFERENCE, seed=0)
    x = context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[dictionary.hook])[dictionary.hook]
    return reconstruction(dictionary, x.to(torch.device(model.device)))[0]


def _recorded(dictionary: Dictionary) -> dict[str, float | None]:
    """FVU and L0 that the dictionary claims, wherever it says so."""
    card, facts = dictionary.card, dictionary.metadata
    l0 = card.get("l0", facts.get("l0"))
    return {"fvu": card.get("fvu", facts.get("fvu")), "l0": dictionary.k if l0 is None else l0}


def _suggest_weights(dictionary: Dictionary, model: Any, texts: Sequence[str], *, fvu: float) -> None:
    """Refuse where folded weights fit much better than raw ones, or the reverse; nothing is chosen silently."""
    source, mode = model.provenance.get("source", ""), model.provenance.get("weights")
    if fvu <= SUSPECT or dictionary.metadata.get("weights_mode") or not Path(source).is_dir():
        return
    other_mode: Any = "raw" if mode == "compat" else "compat"
    try:
        other = load_model(source, dtype=model.dtype, device=model.device, weights=other_mode)
    except ModelError:
        return
    there = _measure(dictionary, replace(other, tokens=model.tokens), texts)["fvu"]
    if there < 0.5 * fvu:
        raise ModelError(
            f"the dictionary leaves {fvu:.0%} of the variance unexplained with weights: {mode}, but {there:.0%} with "
            f"weights: {other_mode}; set `model: {{weights: {other_mode}}}`."
        )


def _refuse(dictionary: Dictionary, here: Mapping[str, float], card: Mapping[str, float | None]) -> None:
    remedy = "it does not belong to this model, hook point or dtype; use one that was trained for it."
    if np.isnan(here["fvu"]):
        raise ModelError(f"{dictionary.hook} gives the same vector at every token, so nothing can be reconstructed.")
    lost = here["fvu"] > NO_FIT or (card["fvu"] is not None and 1 - here["fvu"] < KEPT * (1 - card["fvu"]))
    if lost and dictionary.metadata.get("fitted") not in PARTIAL:
        claim = "" if card["fvu"] is None else f" (its card says {card['fvu']:.1%})"
        raise ModelError(
            f"the dictionary leaves {here['fvu']:.1%} of the variance at {dictionary.hook} unexplained{claim}: {remedy}"
        )
    if _factor(here["l0"], card["l0"]) > L0_REFUSED:
        raise ModelError(
            f"{here['l0']:.1f} features are active per token here, but {card['l0']:.1f} on its card: {remedy}"
        )


def _announcements(here: Mapping[str, float], card: Mapping[str, float | None]) -> list[str]:
    said = []
    if here["fvu"] > POOR_FIT:
        said.append(f"the dictionary leaves {here['fvu']:.0%} of the variance unexplained here.")
    if _factor(here["l0"], card["l0"]) > L0_ANNOUNCED:
        said.append(f"{here['l0']:.1f} features are active per token here, but {card['l0']:.1f} on its card.")
    return said


def _about_bos(dictionary: Dictionary, model: Any) -> list[str]:
    wanted = dictionary.metadata.get("prepend_bos")
    if wanted is None or model.tokens is None or model.tokens.rule == "auto":
        return []
    if bool(wanted) == bool(model.tokens.prefix):
        return []
    return [f"it was trained with prepend_bos: {wanted}, but the analysis asks for the opposite."]


def _factor(one: float, other: float | None) -> float:
    if not other or not one:
        return 1.0
    return max(one / other, other / one)
