"""Worlds of two factors within items, as responses: co-activation that looks like integration, and integration.

400 features; z pre-activations, y = phi(z) activations, z0 the pre-activation at x = 0. Cells are numbered a + 2 b.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.spec.design import Design
from neurosae.stats.simulate import features_table, responses_of, rows_of

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone

N_FEATURES, N_KEPT = 400, 60  # N_KEPT: active features of a stimulus under competition (C4)
CONTEXT_SD = 0.5  # of what a context adds to every pre-activation
A, B = np.array([0.0, 1, 0, 1])[:, None, None], np.array([0.0, 0, 1, 1])[:, None, None]


class Drives(NamedTuple):
    """One context: pre-activations and activations (4, n, m), gain of each stimulus (4, n, 1), feature masks (m,)."""

    pre: np.ndarray
    post: np.ndarray
    gain: np.ndarray
    origin: np.ndarray
    planted: np.ndarray


def factorial(name: str, *, n_items: int, seed: int, contexts: bool = False, size: float = 0.7) -> AnnData:
    """C0-C4, I1-I4, word_pair, item_shuffled: factors a and b within items; with `contexts` in a list and in a phrase.

    Features 0-19 answer to a, 20-39 to b, 40-59 to both; the drive of the others is noise.
    Not true in C0 (additive), C1 (random gain of a stimulus on its activations), C2 (divisive gain
    1/sqrt(1 + .35 (a + b)) of the drive, undone by the recorded norm), C3 (threshold on an additive drive) and C4 (only
    the 60 largest activations survive): an interaction of the drives, although activations interact in C2, C3 and C4.
    True: in I1 features 60-69 answer to the conjunction; in I2 a changes how features 20-29 answer to b; in I3 (always
    with contexts) b features follow the a features in cell 11 of the phrase; in I4 features 70-79 answer to exactly one
    of a and b. With contexts I1-I4 hold in the phrase alone and the list is additive; in `word_pair` the conjunction
    features of I1 answer in both contexts, so nothing is composed. In `item_shuffled` the levels of b of I1 are
    exchanged in random items: a is true, neither b nor the interaction is.
    """
    contexts = contexts or name in ("I3", "word_pair")
    rng = np.random.default_rng(seed)
    design = _design(n_items, contexts=contexts)
    obs = rows_of(design, "probe")
    made = context_drives(rng, name, n_items, contexts=contexts, size=size)
    place = _place(obs, rng if name == "item_shuffled" else None)
    pre, post, gain = (np.stack([getattr(part, key) for part in made])[place] for key in ("pre", "post", "gain"))
    obs["norm"] = (1 / gain[:, 0]).astype(np.float32)
    var = features_table((post > 0).mean(axis=0), _labels(name, made[-1].planted), origin=made[-1].origin)
    record = {"simulated": True, "world": name, "seed": seed}
    return responses_of(sp.csr_matrix(post.astype(np.float32)), obs, var, design=design, provenance=record, x=pre)


def context_drives(
    rng: np.random.Generator, name: str, n_items: int, *, contexts: bool = False, size: float = 0.7
) -> list[Drives]:
    """The arrays behind `factorial`: one context, or with `contexts` the list and the phrase."""
    inside = {"word_pair": "I1", "item_shuffled": "I1", "I3": "C0"}.get(name, name)
    same = rng.bit_generator.state
    made = [drives(rng, inside, n_items, size=size)]
    if contexts:  # the same words in both, hence the same random numbers
        rng.bit_generator.state = same
        made.insert(0, drives(rng, inside if name[0] in "Cw" else "C0", n_items, size=size))
        made = [_in_context(rng, part, name, phrase=k == 1) for k, part in enumerate(made)]
    return made


def drives(rng: np.random.Generator, name: str, n_items: int, *, size: float) -> Drives:
    """One context of C0-C4, I1, I2 or I4; `size` scales what is planted."""
    m, j = N_FEATURES, np.arange(N_FEATURES)
    is_a, is_b, both, conjunction = j < 20, (j >= 20) & (j < 40), (j >= 40) & (j < 60), (j >= 60) & (j < 70)
    threshold = -rng.uniform(1.0, 3.5, m)
    threshold[is_a | is_b] = -1.5
    threshold[both] = -2.2 if name == "C3" else 2.5  # always on: additive after the rectifier too
    threshold[conjunction] = -2.5
    common = 2.0 * np.random.default_rng(99).standard_normal(m)  # the origin is not the mean
    item = 1.5 * rng.standard_normal((n_items, m)) * np.where(j < 70, 0.35, 1.0)
    rest = rng.standard_normal((4, n_items, m)) * np.where(j < 70, 0.8, 1.0)
    drive = common + item + rest + A * (3.0 * is_a + 1.2 * both) + B * (3.0 * is_b + 1.2 * both)
    planted, exclusive = np.zeros(m, dtype=bool), (j >= 70) & (j < 80)
    if name == "I1":
        planted, drive = conjunction, drive + A * B * 3.0 * size * conjunction
    if name == "I2":
        planted = is_b & (j < 30)
        drive = drive + A * B * 1.5 * size * planted
    if name == "I4":
        planted, drive = exclusive, drive + ((2 * A - 1) * (2 * B - 1) * 0.6 * size + 3.5) * exclusive
    gain = np.ones((4, n_items, 1)) / np.sqrt(1 + 0.35 * (A + B) * (name == "C2"))
    pre = threshold - common + drive * gain
    post = _activations(pre, name)
    if name == "C1":
        post = post * np.exp(0.35 * rng.standard_normal((4, n_items, 1)))
    return Drives(pre, post, gain, threshold - common, planted)


def _activations(pre: np.ndarray, name: str) -> np.ndarray:
    """Rectified; under competition (C4) only the largest of a stimulus are kept."""
    least = np.sort(pre, axis=-1)[..., -N_KEPT, None] if name == "C4" else 0.0
    return np.where(pre >= least, np.maximum(pre, 0), 0.0)


def _in_context(rng: np.random.Generator, part: Drives, name: str, *, phrase: bool) -> Drives:
    """The same stimuli in one context: noise of its own and, in the phrase of I3, b features that follow a features."""
    pre = part.pre + CONTEXT_SD * rng.standard_normal(part.pre.shape)
    if name == "I3" and phrase:
        seed = pre[3, :, :20].mean(axis=1, keepdims=True)
        pre[3, :, 20:40] += 1.5 * 0.35 * (seed - seed.mean()) / seed.std()
    factor = np.exp(0.35 * rng.standard_normal((4, pre.shape[1], 1))) if name == "C1" else 1.0
    return part._replace(pre=pre, post=_activations(pre, name) * factor)


def _labels(name: str, planted: np.ndarray) -> np.ndarray:
    """What every feature carries, in words."""
    parts = np.array(["a"] * 20 + ["b"] * 20 + ["a b"] * 20 + [""] * (N_FEATURES - 60), dtype=object)
    if name == "item_shuffled":
        return np.where(parts == "a b", "a", np.where(parts == "b", "", parts)).astype(object)
    if name == "I3":
        parts[:40] = "coupling"
    return np.where(planted, "word pair" if name == "word_pair" else "a:b", parts).astype(object)


def _place(obs: pd.DataFrame, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context, cell and item of every row; with `rng` the levels of b are exchanged in random items."""
    a, b = ((obs[factor] == "yes").to_numpy().astype(int) for factor in ("a", "b"))
    item = np.array([int(text.removeprefix("item")) for text in obs["item"]])
    if rng is not None:
        b = b ^ rng.integers(0, 2, item.max() + 1)[item]
    context = (obs["context"] == "phrase").to_numpy().astype(int) if "context" in obs else np.zeros(len(obs), dtype=int)
    return context, a + 2 * b, item


def _design(n_items: int, *, contexts: bool = False) -> Design:
    """Two slots, of which a and b fill one each with a word of the item or with a filler, and a probe after them."""
    factors = {"a": ["no", "yes"], "b": ["no", "yes"]}
    frames: dict[str, Any] = {"plain": "The {first:a} {second:b} here"}
    if contexts:
        factors["context"] = ["list", "phrase"]
        frames = {"plain": {"context": {"list": "The {first:a} , {second:b} here", "phrase": frames["plain"]}}}
    items = {
        f"item{i}": {slot: {"no": f"filler{k}x{i}", "yes": f"{slot}{i}"} for k, slot in enumerate(("first", "second"))}
        for i in range(n_items)
    }
    made = {"schema": "neurosae/design/1", "name": "two_factors", "factors": factors, "frames": frames, "items": items}
    return Design.model_validate(made | {"regions": {"probe": {"after": "second"}}})


def geometry(name: str, *, n_items: int, seed: int, n_features: int = 200) -> AnnData:
    """`additive` and `random_geometry`: pre-activations of factors a and b within items.

    True in both: all four cells differ. True in `additive` alone: the direction of a is the same at both levels of b;
    in `random_geometry` the cells lie in unrelated directions. Activations are the pre-activations, rectified.
    """
    rng, m = np.random.default_rng(seed), n_features
    design = _design(n_items)
    obs = rows_of(design, "probe")
    a, b = 0.35 * rng.standard_normal((2, m))
    cells = np.array([0 * a, a, b, a + b]) if name == "additive" else 0.3 * rng.standard_normal((4, m))
    z = cells[:, None] + rng.standard_normal((1, n_items, m)) + 0.8 * rng.standard_normal((4, n_items, m))
    _, cell, item = _place(obs, None)
    pre = z[cell, item]
    post = np.maximum(pre, 0).astype(np.float32)
    var = features_table((post > 0).mean(axis=0), np.full(m, "a b" if name == "additive" else "a:b", dtype=object))
    record = {"simulated": True, "world": name, "seed": seed}
    return responses_of(sp.csr_matrix(post), obs, var, design=design, provenance=record, x=pre)
