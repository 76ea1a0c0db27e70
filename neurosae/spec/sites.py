"""Schema of what an analysis says about the model, its sites, and the dictionaries there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from neurosae.errors import unknown
from neurosae.spec.fields import Count, FileName, Natural, Number, Strict, Text, fail, refusing
from neurosae.spec.words import short, text_problem

HOOKS = "hook_resid_pre hook_resid_mid hook_resid_post hook_attn_out hook_mlp_out mlp.hook_post attn.hook_z".split()
"""Hook points of a layer that give one vector per token; `hook_embed` lies before the layers."""

SOURCES = ("embedded", "path", "release", "train", "neurons")


def resolve(path: str, info: ValidationInfo) -> str:
    """A path as seen from the file that names it; unchanged when it was not read from a file."""
    folder = (info.context or {}).get("folder")
    if folder is None:
        return path
    # normpath, not resolve: what a symbolic link points to is the user's own business
    return os.path.normpath(Path(folder).absolute() / (Path(path).expanduser() if path[0] == "~" else path))


def _anywhere(value: str, info: ValidationInfo) -> str:
    return resolve(value, info)


def _model_name(value: str, info: ValidationInfo) -> str:
    """A folder if it looks like a path or exists beside the file, else a name: `embedded` or a hub id."""
    if value == "embedded":
        return value
    there = resolve(value, info)
    try:
        return there if value[0] in "./~" or Path(there).is_dir() else value
    except OSError:  # longer than any path
        return value


def _within_study(value: Any, info: ValidationInfo) -> Any:
    """A path that stays inside the folder that holds the folder of the file."""
    if isinstance(value, Path):
        return value
    if wrong := text_problem(value):
        fail(text=wrong)
    folder = (info.context or {}).get("folder")
    if folder is None:
        return Path(value)
    there, study = Path(resolve(value, info)), Path(os.path.normpath(Path(folder).absolute().parent))
    inside = there.is_relative_to(study)
    if inside and (Path(value).is_absolute() or value.startswith("~")):
        relative = os.path.relpath(there, Path(folder).absolute())
        fail(text=f"'{short(value)}' is an absolute path, which no other machine has; write {relative}.")
    if not inside:
        fail(text=f"'{short(value)}' leaves the study; write a path relative to this file, inside {study}.")
    return Path(os.path.normpath(Path(folder) / value))


StudyPath = Annotated[Path, BeforeValidator(_within_study, json_schema_input_type=str)]
AnyPath = Annotated[Text, AfterValidator(_anywhere)]


def _device_problem(value: Any) -> str | None:
    if (wrong := text_problem(value)) or re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        return wrong
    return unknown("device", short(value), ["auto", "cpu", "cuda", "cuda:0", "mps"])


def _hook_problem(value: Any) -> str | None:
    if (wrong := text_problem(value)) or value == "hook_embed":
        return wrong
    found = re.fullmatch(r"blocks\.([0-9]+|\*)\.(.+)", value)
    if not found:
        return f"'{short(value)}' is no hook point; write blocks.3.hook_resid_post, or blocks.*.… for every layer."
    return None if found[2] in HOOKS else unknown("hook point", short(found[2]), HOOKS)


class ModelBlock(Strict):
    """The language model."""

    name: Annotated[Text, AfterValidator(_model_name)]
    """`embedded`, a folder in Hugging Face format, or a hub id such as gpt2."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights and activations."""
    device: Annotated[str, refusing(_device_problem)] = "auto"
    """auto, cpu, cuda, cuda:0 or mps."""
    weights: Literal["raw", "compat"] = "raw"
    """raw, or compat: folded and centred, for dictionaries that were trained so."""
    bos: Annotated[Literal["auto", True, False], refusing(lambda value: _bos_problem(value))] = "auto"
    """Begin each text with the beginning-of-text token: true, false, or auto (as the dictionary or tokenizer wants)."""


def _bos_problem(value: Any) -> str | None:
    return None if value is True or value is False or value == "auto" else "must be auto, true or false."


class TrainBlock(Strict):
    """A dictionary trained here."""

    architecture: Literal["topk", "batchtopk", "standard", "jumprelu"] = "topk"
    """Kind of sparse autoencoder; standard is the one with an L1 penalty."""
    d_sae: Count | None = None
    """Number of features; left out, ten times the width of the hook point."""
    k: Count = 32
    """Features active per token (their mean, but for topk)."""
    n_tokens: Count
    """Tokens seen in training."""
    seed: Natural = 0
    """Seed of the weights and of the order of the tokens."""
    lr: Annotated[Number, Field(gt=0)] | None = None
    """Learning rate; left out, it follows from the size."""
    batch: Count | None = None
    """Tokens per step; left out, it follows from the size."""
    context: Count | None = None
    """Largest number of tokens that the model reads at once; left out, 256."""
    texts: tuple[AnyPath, ...] = ()
    """Text files or data set folders, relative to this file; none: the model's own samples."""

    @model_validator(mode="after")
    def _check(self) -> TrainBlock:
        if self.d_sae is not None and self.k >= self.d_sae:
            fail("k", text=f"is {self.k}, but there are only {self.d_sae} features; use fewer, or raise d_sae.")
        return self


class DictionaryBlock(Strict):
    """A dictionary: exactly one of embedded, path, release (with id), train and neurons."""

    embedded: FileName | None = None
    """Name of a dictionary that comes with the embedded model."""
    path: AnyPath | None = None
    """Folder in sae-lens format."""
    release: Text | None = None
    """Name of a published sae-lens release (with `id`)."""
    id: Text | None = None
    """Dictionary inside the release."""
    train: TrainBlock | None = None
    """Train one here, and keep it in the store."""
    neurons: Literal[True] | None = None
    """true: no dictionary; the coordinates of the hook point, split into positive and negative parts."""

    @model_validator(mode="after")
    def _check(self) -> DictionaryBlock:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "names no dictionary"
            fail(text=f"{what}; give exactly one of {', '.join(SOURCES)}.")
        if (self.release is None) != (self.id is None):
            fail(text="a published dictionary needs both: {release: gpt2-small-res-jb, id: blocks.6.hook_resid_pre}.")
        return self

    @property
    def source(self) -> str:
        """Which of the sources is given."""
        return next(name for name in SOURCES if getattr(self, name) is not None)


class Site(Strict):
    """A hook point and the dictionary that reads it."""

    hook: Annotated[str, refusing(_hook_problem)]
    """Where the model is read: blocks.3.hook_resid_post; blocks.*.hook_resid_post gives one site per layer."""
    dictionary: DictionaryBlock
    """What the activations are decomposed with."""

    @model_validator(mode="after")
    def _check(self) -> Site:
        if "*" in self.hook and self.dictionary.source not in ("train", "neurons"):
            text = f"'{self.hook}' names every layer, but {self.dictionary.source} gives a dictionary of one; name it."
            fail("hook", text=text)
        return self
