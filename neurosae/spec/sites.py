"""Schema of what an analysis says about the model, its sites, and the dictionaries there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from neurosae.errors import unknown
from neurosae.spec.fields import Bool, Count, FileName, Name, Natural, Number, Strict, Text, fail, refusing
from neurosae.spec.hooks import hook_problem
from neurosae.spec.words import short, text_problem

SOURCES = ("embedded", "path", "release", "train", "fit", "neurons", "vectors")


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
Share = Annotated[Number, Field(ge=0, le=1)]


def _device_problem(value: Any) -> str | None:
    if (wrong := text_problem(value)) or re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        return wrong
    return unknown("device", short(value), ["auto", "cpu", "cuda", "cuda:0", "mps"])


class ModelBlock(Strict):
    """The language model."""

    name: Annotated[Text, AfterValidator(_model_name)]
    """`embedded`, a folder in Hugging Face format, or a hub id such as gpt2."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward pass: float32, or bfloat16 or float16 by autocast; dictionaries stay in float32."""
    device: Annotated[str, refusing(_device_problem)] = "auto"
    """auto, cpu, cuda, cuda:0 or mps."""
    weights: Literal["raw", "compat"] = "raw"
    """raw, or compat: folded and centred, for dictionaries that were trained so."""
    bos: Annotated[Literal["auto", True, False], refusing(lambda value: _bos_problem(value))] = "auto"
    """Begin each text with the beginning-of-text token: true, false, or auto (as the dictionary or tokenizer wants)."""
    packing: Literal["auto", "trie", "buckets"] = "auto"
    """How stimuli share a forward pass: buckets of similar length, or a trie, where the tokens of a common beginning
    are computed once; auto takes the trie where the model allows it and it saves a quarter of the tokens."""
    control: Literal["reinit", "shuffle"] | None = None
    """Same architecture, weights drawn afresh or every weight matrix permuted: what would an untrained model show?"""
    control_seed: Natural = 0
    """Seed of the control's weights."""

    @model_validator(mode="after")
    def _check(self) -> ModelBlock:
        if self.control_seed and self.control is None:
            fail("control_seed", text="is the seed of a control; name one: control: reinit, or shuffle.")
        return self


def _bos_problem(value: Any) -> str | None:
    return None if value is True or value is False or value == "auto" else "must be auto, true or false."


class TrainBlock(Strict):
    """A dictionary trained here. Sites that agree in n_tokens, batch, order, context and cache share one pass."""

    architecture: Literal[
        "topk", "abstopk", "batchtopk", "matryoshka", "standard", "gated", "jumprelu", "interaction"
    ] = "topk"
    """Kind of sparse autoencoder: topk keeps the k strongest features of each token, batchtopk k on average over a
    batch; matryoshka is batchtopk whose first features must reconstruct alone; abstopk has signed features, stored as
    two halves; standard and gated have an L1 penalty that is steered until L0 is k, jumprelu a threshold per feature;
    interaction is topk whose decoder also sees products of active features."""
    d_sae: Count | None = None
    """Number of features; left out, ten times the width of the hook point."""
    k: Count = 32
    """Features active per token (their mean, but for topk and abstopk)."""
    n_tokens: Count
    """Tokens seen in training."""
    seed: Natural = 0
    """Seed of the initial weights: dictionaries that differ in it alone show what is stable."""
    order: Natural = 0
    """Seed of the order of the texts, of the held-out documents and of the model's own samples."""
    lr: Annotated[Number, Field(gt=0)] | None = None
    """Learning rate; left out, it follows from k."""
    batch: Count | None = None
    """Tokens per step; left out, it follows from the size."""
    widths: tuple[Count, ...] = ()
    """Sizes of the nested dictionaries of matryoshka, rising to d_sae; left out, each is twice the one before."""
    center: Bool = True
    """Subtract the mean activation (folded into the result). Where it lies far from 0, nothing trains without."""
    scale: Bool = True
    """Divide by the root mean square (folded into the result); standard, gated and jumprelu need it."""
    anneal: Share = 0.4
    """Share of the steps in which k falls from k0 to its value, so that every feature learns at first; 0: none."""
    k0: Count | None = None
    """Where k begins; left out, at the width of the hook point."""
    aux: Annotated[Number, Field(ge=0)] = 0.03125
    """Weight of the loss by which silent features of topk and its kin explain what the others left over; 0: none."""
    dead_window: Share = 0.05
    """Share of the steps after which a silent feature counts as dead."""
    ghost_grads: Bool = False
    """Revive dead features by ghost gradients, in place of aux. They all come back, and the dictionary gets worse."""
    resample_every: Natural = 0
    """Steps between two rounds in which dead features start again from badly reconstructed tokens; 0: none."""
    recalibrate: Bool = True
    """Set the threshold of batchtopk and matryoshka on held-out tokens so that L0 is k; else it lags behind."""
    warm_up: Share = 0.0
    """Share of the steps, at the start, in which the learning rate rises from 0."""
    decay: Share = 0.2
    """Share of the steps, at the end, in which the learning rate falls to a tenth."""
    amp: Bool | None = None
    """Products in bfloat16 (autocast); left out, on CUDA only."""
    cache: Literal["", "float32", "bfloat16"] = ""
    """Write the activations to a file of the store first, in this format, and train from it: rows are shuffled over the
    whole text, and later dictionaries of the same texts need no model. Left out: straight from the model."""
    rank: Count | None = None
    """Rank of the interaction term; left out, 32 (none where linear_top is given)."""
    head: Literal["linear", "mlp"] = "linear"
    """What the products go through before they are added: a matrix, or one hidden layer and a matrix."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Dropout of that hidden layer."""
    linear_top: Natural = 0
    """Give the n strongest features of a token a second decoder row each (interaction only); 0: none."""
    interaction: Literal["joint", "sequential"] = "joint"
    """Learn dictionary and term together, or the term last, on what the finished dictionary left over."""
    context: Count | None = None
    """Largest number of tokens that the model reads at once; left out, 256."""
    texts: tuple[AnyPath, ...] = ()
    """Text files or data set folders, relative to this file; none: the model's own samples."""

    @model_validator(mode="after")
    def _check(self) -> TrainBlock:
        if self.architecture != "interaction":
            for key in ("rank", "head", "dropout", "linear_top", "interaction"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    fail(
                        key, text=f"belongs to interaction, but the architecture is {self.architecture}; leave it out."
                    )
        if self.dropout and self.head != "mlp":
            fail("dropout", text="is that of the hidden layer; it needs head: mlp.")
        if self.d_sae is not None and self.k >= self.d_sae:
            fail("k", text=f"is {self.k}, but there are only {self.d_sae} features; use fewer, or raise d_sae.")
        if self.k0 is not None and self.k0 < self.k:
            fail("k0", text=f"is {self.k0}; k falls from k0 to k, so it must be at least {self.k}.")
        if self.widths and self.architecture != "matryoshka":
            fail("widths", text=f"belong to matryoshka, but the architecture is {self.architecture}; leave them out.")
        if self.widths and (list(self.widths) != sorted(set(self.widths)) or self.widths[-1] != self.d_sae):
            fail("widths", text=f"are {list(self.widths)}; they must rise and end at d_sae, which must be given.")
        if not self.scale and self.architecture in ("standard", "gated", "jumprelu"):
            fail(
                "scale", text=f"is false, but the penalty of {self.architecture} assumes scaled rows; leave it at true."
            )
        if self.warm_up + self.decay > 1:
            fail("warm_up", text=f"{self.warm_up} and decay {self.decay} are more than all steps together.")
        batch = self.batch or 512  # what follows from the size is larger only where 20 of them are far away
        if self.n_tokens < 20 * batch:
            fail("n_tokens", text=f"is {self.n_tokens:,}, fewer than 20 batches of {batch:,}; give more tokens.")
        return self


FIT_KEYS = {
    "n": ("pca", "ica", "nmf", "ksvd", "online_dl", "random"), "k": ("ksvd", "online_dl"), "alpha": ("online_dl",),
    "region": ("diff_means",),
}  # fmt: skip
"""Keys of `fit:` that belong to some kinds only."""


class FitBlock(Strict):
    """Another decomposition, fitted here: a control for what a sparse dictionary shows."""

    kind: Literal["pca", "ica", "nmf", "ksvd", "online_dl", "random", "diff_means"]
    """Principal or independent components, non-negative parts, atoms by K-SVD or online dictionary learning, random
    directions, or the differences of means between factor levels in localizer items."""
    n: Count | None = None
    """Number of components or atoms (signed ones give two features each); left out, the width of the hook point."""
    k: Count | None = None
    """Atoms per token, for ksvd and online_dl; left out, 8."""
    alpha: Annotated[Number, Field(gt=0)] | None = None
    """L1 penalty of online_dl, for activations scaled to unit mean square; left out, 1."""
    region: Name | None = None
    """For diff_means: the region whose last token is read."""
    n_tokens: Count = 50_000
    """Tokens that are fitted."""
    seed: Natural = 0
    """Seed of directions, of starting values, of the text that the model writes and of the held-out documents."""
    texts: tuple[AnyPath, ...] = ()
    """Text files or data set folders, relative to this file; none: the model's own samples."""

    @model_validator(mode="after")
    def _check(self) -> FitBlock:
        for key, kinds in FIT_KEYS.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                fail(key, text=f"belongs to {' and '.join(kinds)}, but the kind is {self.kind}; leave it out.")
        if self.n is not None and self.k is not None and self.k > self.n:
            fail("k", text=f"is {self.k}, but there are only {self.n} atoms; use fewer, or raise n.")
        if self.kind == "diff_means" and self.region is None:
            fail("region", text="is missing; diff_means reads the last token of a region: name it.")
        return self


class DictionaryBlock(Strict):
    """A dictionary: exactly one of embedded, path, release (with id), train, fit, neurons and vectors."""

    embedded: FileName | None = None
    """Name of a dictionary that comes with the embedded model."""
    path: AnyPath | None = None
    """Folder of sae-lens, gemma-scope, llama-scope, dictionary_learning or sparsify; its files tell which."""
    release: Text | None = None
    """Name of a published sae-lens release (with `id`)."""
    id: Text | None = None
    """Dictionary inside the release."""
    train: TrainBlock | None = None
    """Train one here, and keep it in the store."""
    fit: FitBlock | None = None
    """Fit another decomposition here, and keep it in the store."""
    neurons: Literal[True] | None = None
    """true: no dictionary; the coordinates of the hook point, split into positive and negative parts."""
    vectors: AnyPath | None = None
    """Directions found elsewhere (steering vectors, probe weights) as features: a .csv, .npy, .npz or .safetensors."""

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

    hook: Annotated[str, refusing(hook_problem)]
    """Where the model is read: blocks.3.hook_resid_post; blocks.*.hook_resid_post gives one site per layer. Also
    hook_attn_out, hook_mlp_out, mlp.hook_post, attn.hook_z (all heads side by side), attn.hook_z.h3 (one head),
    hook_embed, and any other hook point that gives one vector per token, such as ln_final.hook_normalized."""
    dictionary: DictionaryBlock
    """What the activations are decomposed with."""
    signed: Bool = True
    """Where features come as two halves of a signed value (neurons, components, atoms), test the value; false: each
    half by itself."""

    @model_validator(mode="after")
    def _check(self) -> Site:
        if "*" in self.hook and self.dictionary.source not in ("train", "fit", "neurons"):
            text = f"'{self.hook}' names every layer, but {self.dictionary.source} gives a dictionary of one; name it."
            fail("hook", text=text)
        return self
