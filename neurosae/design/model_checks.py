"""What can be refused about a model and its dictionaries from their folders alone, before anything is loaded.

`config.json` names layers, width and context of a checkpoint; `cfg.json` names width and hook point of a dictionary.
What a folder does not say is left to the loaders, which look at the weights themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from neurosae.errors import unknown
from neurosae.extraction.sites import READABLE, split_head
from neurosae.extraction.source import EMBEDDED, is_hub_id, weight_files
from neurosae.spec.words import Problem, Where, short

if TYPE_CHECKING:
    from neurosae.extraction.tokens import Tokenizer

LAYERS = ("n_layer", "num_hidden_layers", "num_layers", "n_layers")
WIDTHS = ("n_embd", "hidden_size", "d_model", "dim")
HEADS = ("n_head", "num_attention_heads", "n_heads")
CONTEXTS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
"""Hook points that are as wide as the residual stream; of others only the model knows the width."""
ROTATIONS = ("pca", "ica", "random")
"""Decompositions with at most as many directions as dimensions."""


class Facts(NamedTuple):
    """What `config.json` says; None where it has no key that is known."""

    name: str
    n_layers: int | None
    width: int | None
    n_ctx: int | None
    n_heads: int | None = None


def model_folder(name: str) -> Path | None:
    """The folder of a model that lies on this machine; None for a hub id.

    Examples
    --------
    >>> model_folder("embedded").name, model_folder("gpt2")
    ('lm', None)
    """
    if name == "embedded":
        return EMBEDDED
    return None if is_hub_id(name) and not Path(name).is_dir() else Path(name).expanduser()


def model_facts(folder: Path) -> Facts:
    """Layers, width, context and heads of a checkpoint folder.

    Examples
    --------
    >>> facts = model_facts(EMBEDDED)
    >>> facts.name, facts.n_layers, facts.width, facts.n_ctx
    ('the embedded model', 4, 256, 256)
    """
    config = _read(folder / "config.json")
    config = config.get("text_config", config)  # models of several modalities nest the one that reads text
    name = "the embedded model" if folder == EMBEDDED else f"model {folder.name}"
    return Facts(name, *(_whole(config, names) for names in (LAYERS, WIDTHS, CONTEXTS, HEADS)))


def _whole(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = [config[name] for name in names if type(config.get(name)) is int]
    return found[0] if found else None


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def model_problems(spec: Any) -> Iterator[Problem]:
    """What is wrong with the model and the sites of an analysis, as far as their folders tell.

    Parameters
    ----------
    spec : Analysis

    Yields
    ------
    (where, sentence) : missing folders, hook points of layers that the model lacks, dictionaries that are missing or
        were made for another width or hook point, missing training texts
    """
    folder = model_folder(spec.model.name)
    missing = None if folder is None else _folder_problem(folder)
    if missing is not None:
        yield ("model", "name"), missing
        return
    facts = None if folder is None else model_facts(folder)
    for name, site in spec.sites.items():
        where: Where = ("sites", name)
        if facts is not None:
            yield from _hook_problems(site.hook, facts, (*where, "hook"))
        yield from _dictionary_problems(site, facts, (*where, "dictionary"))
    if facts is not None:
        for name, block in spec.tests.items():
            for hook in getattr(block, "hooks", ()):
                yield from _hook_problems(hook, facts, ("tests", name, "hooks"))


def _folder_problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"there is no model folder {folder}; give a checkpoint folder, a hub id, or embedded."
    if not (folder / "config.json").is_file():
        return f"{folder} has no config.json; a model folder holds config.json, tokenizer.json and weights."
    if not weight_files(folder):
        return f"{folder} has no weights (model.safetensors); copy them there."
    return None


def _hook_problems(hook: str, facts: Facts, where: Where) -> Iterator[Problem]:
    layer = hook.split(".")[1] if hook.startswith("blocks.") else ""
    if facts.n_layers is not None and layer.isdecimal() and int(layer) >= facts.n_layers:
        yield where, f"'{short(hook)}' is not there: {facts.name} has blocks.0 … blocks.{facts.n_layers - 1}."
    head = split_head(hook)[1]
    if head is not None and facts.n_heads is not None and head >= facts.n_heads:
        yield where, f"'{short(hook)}' is not there: {facts.name} has heads h0 … h{facts.n_heads - 1}."


def _dictionary_problems(site: Any, facts: Facts | None, where: Where) -> Iterator[Problem]:
    block = site.dictionary
    if block.embedded is not None:
        home = EMBEDDED.parent
        known = sorted(path.parent.name for path in home.glob("*/cfg.json"))
        if block.embedded not in known:
            yield (*where, "embedded"), unknown("embedded dictionary", short(block.embedded), known)
        else:
            yield from _fit_problems(home / block.embedded, site.hook, facts, where=(*where, "embedded"))
    if block.path is not None:
        folder = Path(block.path).expanduser()
        lost = [name for name in ("cfg.json", "sae_weights.safetensors") if not (folder / name).is_file()]
        if not folder.is_dir():
            yield (*where, "path"), f"there is no folder {folder}; give a dictionary in sae-lens format."
        elif lost:
            yield (*where, "path"), f"{folder} has no {lost[0]}; copy the whole dictionary there."
        else:
            yield from _fit_problems(folder, site.hook, facts, where=(*where, "path"))
    for key in ("train", "fit"):
        made = getattr(block, key)
        lost = [text for text in (made.texts if made is not None else ()) if not Path(text).expanduser().exists()]
        for text in lost:
            yield (*where, key, "texts"), f"there is no {text}; give text files or data set folders."
    if facts is not None and facts.width is not None and site.hook.endswith(STREAM):
        yield from _size_problems(block, facts, where)


def _size_problems(block: Any, facts: Facts, where: Where) -> Iterator[Problem]:
    """Sizes of what is trained or fitted here that the width of the hook point rules out."""
    width, fit, train = facts.width or 0, block.fit, block.train
    if fit is not None and fit.n is not None and fit.kind in ROTATIONS and fit.n > width:
        yield (
            (*where, "fit", "n"),
            f"is {fit.n}, but {fit.kind} has at most as many directions as dimensions: {facts.name} has width {width}.",
        )
    if train is not None and train.d_sae is None and train.k >= 10 * width:
        yield (*where, "train", "k"), f"is {train.k}, but there are {10 * width} features; k must be below d_sae."


def _fit_problems(folder: Path, hook: str, facts: Facts | None, *, where: Where) -> Iterator[Problem]:
    config = _read(folder / "cfg.json")
    made, width = (config.get("metadata") or {}).get("hook_name"), config.get("d_in")
    if isinstance(made, str) and READABLE.fullmatch(made) and _stream(made) != _stream(hook):
        yield where, f"'{folder.name}' was trained at {made}, not at {hook}; name that hook point, or another one."
    elif (
        facts is not None and facts.width is not None and isinstance(width, int) and width != facts.width
    ) and hook.endswith(STREAM):
        yield where, f"'{folder.name}' reads vectors of width {width}, but {facts.name} has width {facts.width}."


def _stream(hook: str) -> str:
    """The residual stream before a block is that after the one below it."""
    parts = hook.split(".")
    if len(parts) == 3 and parts[2] == "hook_resid_pre" and parts[1].isdecimal() and int(parts[1]) > 0:
        return f"blocks.{int(parts[1]) - 1}.hook_resid_post"
    return hook


def length_problem(stimuli: pd.DataFrame, tokenizer: Tokenizer, facts: Facts | None) -> tuple[str, str] | None:
    """The item of the longest text that does not fit into the model's context, and a sentence; None if all fit."""
    from neurosae.extraction.tokens import token_ids

    if facts is None or facts.n_ctx is None:
        return None
    lengths = pd.Series([len(ids) for ids in token_ids(tokenizer, stimuli["text"].tolist())], index=stimuli.index)
    n_long = int((lengths > facts.n_ctx).sum())
    if not n_long:
        return None
    name = str(lengths.idxmax())
    more = f" ({n_long} stimuli are too long)" if n_long > 1 else ""
    text = (
        f"stimulus '{short(name)}' has {lengths.max():,} tokens with specials, {facts.name} takes at most "
        f"{facts.n_ctx:,}{more}; shorten the text."
    )
    return str(stimuli.loc[name, "item"]), text
