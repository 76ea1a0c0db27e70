"""How a dictionary is trained: every setting with its default, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from neurosae.errors import ModelError, choose

ARCHITECTURES = {
    "topk": "the k strongest features of each token",
    "abstopk": "the k strongest of each token by size, either sign; stored as two halves, features j and j + d_sae",
    "batchtopk": "k features per token on average over a batch; saved as jumprelu",
    "matryoshka": "batchtopk whose first features must reconstruct alone; saved as jumprelu",
    "standard": "ReLU with an L1 penalty, steered until L0 is k",
    "gated": "a gate decides, a magnitude says how much; L1 on the gate, steered until L0 is k; saved as jumprelu",
    "jumprelu": "a learned threshold per feature; L0 is drawn towards k",
    "interaction": "topk whose decoder also sees products of active features, through a term of low rank",
}
COUNTED = {"topk", "abstopk", "batchtopk", "matryoshka", "interaction"}
"""Architectures that keep a number of features, so that k can be annealed."""
BY_BATCH = {"batchtopk", "matryoshka"}
"""Architectures whose one threshold lags behind and is recalibrated."""
LEVELS = 5  # nested dictionaries of matryoshka, each twice the one before


@dataclass(frozen=True)
class Settings:
    """How a dictionary is trained; `settings_of` replaces a 0 by the default.

    Attributes
    ----------
    architecture : key of `ARCHITECTURES`
    d_sae : number of features; default 10 times the width
    k : active features per token (their mean, but for topk and abstopk)
    n_tokens : rows seen in training; texts are read again when they are shorter
    seed : of the initial weights, and of what resampling draws
    order : seed of the order of the texts, of the held-out documents and of the model's own samples
    lr, batch : Adam's learning rate and rows per step; default 1e-3 (2e-3 for k up to 8), and 512 to 4,096 by length
    widths : numbers of features of the nested dictionaries of matryoshka; default d_sae / 16, / 8, / 4, / 2, / 1
    center, scale : whether the mean is subtracted, and whether rows are divided by their root mean square; both are
        folded into the result
    anneal, k0 : share of the steps in which k falls from k0 (default: the width) to its value
    aux : coefficient of the auxiliary loss that revives silent features (topk and its kin)
    dead_window : share of the steps after which a silent feature counts as dead
    ghost_grads : whether dead features learn by ghost gradients, in place of `aux`
    resample_every : steps between two rounds in which dead features start again from badly reconstructed rows; 0: none
    recalibrate : whether the threshold of batchtopk and matryoshka is set on held-out rows so that L0 is k
    warm_up, decay : share of the steps, at the start, in which the learning rate rises, and at the end, in which it
        falls to a tenth
    amp : bfloat16 products (autocast); None: on CUDA only
    cache : activations from a file, `float32` or `bfloat16`, that is written once; "": straight from the model
    rank, head, dropout : of the interaction term: its rank; `linear`, or `mlp` with one hidden layer and its dropout
    linear_top : the interaction architecture's further linear term sees this many of the strongest features; 0: none
    interaction : `joint`, or `sequential`: the dictionary alone, then, frozen, the term on what it left over
    context : largest number of tokens that the model reads at once
    dtype : of the matrices on disk, `float32` or `float16`
    """

    architecture: str = "topk"
    d_sae: int = 0
    k: int = 32
    n_tokens: int = 1_000_000
    seed: int = 0
    order: int = 0
    lr: float = 0.0
    batch: int = 0
    widths: tuple[int, ...] = ()
    center: bool = True
    scale: bool = True
    anneal: float = 0.4
    k0: int = 0
    aux: float = 1 / 32
    dead_window: float = 0.05
    ghost_grads: bool = False
    resample_every: int = 0
    recalibrate: bool = True
    warm_up: float = 0.0
    decay: float = 0.2
    amp: bool | None = None
    cache: Literal["", "float32", "bfloat16"] = ""
    rank: int = 0
    head: Literal["linear", "mlp"] = "linear"
    dropout: float = 0.0
    linear_top: int = 0
    interaction: Literal["joint", "sequential"] = "joint"
    context: int = 256
    dtype: Literal["float32", "float16"] = "float32"


_NAMES = {f.name for f in fields(Settings)}


def settings_of(block: Mapping[str, Any] | Any, d: int) -> Settings:
    """Settings from a `train:` block or a mapping, with every default filled in for activations of width d.

    Examples
    --------
    >>> made = settings_of({"k": 8, "n_tokens": 100_000}, 64)
    >>> made.d_sae, made.lr, made.batch, made.k0
    (640, 0.002, 512, 64)
    >>> settings_of({"architecture": "matryoshka", "k": 8, "d_sae": 64}, 16).widths
    (8, 16, 32, 64)
    """
    given = dict(block) if isinstance(block, Mapping) else {n: getattr(block, n) for n in dir(block) if n in _NAMES}
    if strange := sorted(set(given) - _NAMES - {"texts"}):
        choose("training setting", strange[0], dict.fromkeys(sorted(_NAMES)), error=ModelError)
    made = Settings(**{name: value for name, value in given.items() if name in _NAMES and value is not None})
    choose("architecture", made.architecture, ARCHITECTURES, error=ModelError)
    if not made.d_sae:
        made = replace(made, d_sae=10 * d)
    if not made.lr:
        made = replace(made, lr=2e-3 if made.k <= 8 else 1e-3)
    if not made.batch:
        made = replace(made, batch=512 if made.n_tokens < 2_000_000 else 1024 if made.n_tokens < 20_000_000 else 4096)
    if not made.k0:
        made = replace(made, k0=max(min(d, made.d_sae), made.k))
    if made.architecture == "interaction" and not made.rank and not made.linear_top:
        made = replace(made, rank=32)
    _check_sizes(made)
    made = replace(made, widths=_widths(made))
    _check_recipe(made)
    return made


def _check_sizes(s: Settings) -> None:
    if not 1 <= s.k < s.d_sae:
        raise ModelError(f"k is {s.k}, but there are {s.d_sae} features; k must be at least 1 and below d_sae.")
    if not s.k <= s.k0 <= s.d_sae:
        raise ModelError(f"k0 is {s.k0}; k falls from k0 to k, so it must lie between {s.k} and d_sae {s.d_sae}.")
    if s.n_tokens // s.batch < 20:
        raise ModelError(f"n_tokens {s.n_tokens:,} is fewer than 20 batches of {s.batch:,}; give more tokens.")


def _check_recipe(s: Settings) -> None:
    """What would parse and then do something else than it says."""
    for name in ("anneal", "dead_window", "warm_up", "decay"):
        if not 0 <= getattr(s, name) <= 1:
            raise ModelError(f"{name} is {getattr(s, name)}; it is a share of the steps, between 0 and 1.")
    if s.warm_up + s.decay > 1:
        raise ModelError(f"warm_up {s.warm_up} and decay {s.decay} are more than all steps; their sum is at most 1.")
    if not s.scale and s.architecture not in COUNTED:
        raise ModelError(
            f"scale: false does not go with {s.architecture}, whose penalty assumes rows of unit mean square; "
            "leave scale at true."
        )
    if s.architecture != "interaction" and (s.rank or s.linear_top):
        raise ModelError(f"rank and linear_top belong to interaction, but this is {s.architecture}; leave them out.")
    if not 0 <= s.dropout < 1 or (s.dropout and s.head != "mlp"):
        raise ModelError(f"dropout is {s.dropout}; it is a share below 1 of the hidden layer of head: mlp.")
    if s.aux < 0 or s.resample_every < 0:
        raise ModelError("aux and resample_every cannot be negative; 0 switches them off.")


def _widths(s: Settings) -> tuple[int, ...]:
    """Nested widths up to d_sae, none below k."""
    if s.architecture != "matryoshka":
        if s.widths:
            raise ModelError(f"widths belong to architecture matryoshka, but this is {s.architecture}; leave them out.")
        return ()
    if not s.widths:
        halves = [s.d_sae >> i for i in reversed(range(LEVELS))]
        return tuple(w for w in halves if w >= s.k)
    if list(s.widths) != sorted(set(s.widths)) or s.widths[0] < 1 or s.widths[-1] != s.d_sae:
        raise ModelError(f"widths {list(s.widths)} must rise, and end at d_sae {s.d_sae}.")
    return tuple(s.widths)
