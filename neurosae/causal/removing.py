r"""Ways to remove a difference between two levels from the stream, each with a strength.

With f the features of the set, mu their mean over both levels, u the unit vector that joins the mean activations of the
levels, c the midpoint of those means, and s the strength (1 is the full edit), at every token of the text

    ablate      x -> x - s f W_dec
    mean        x -> x + s (mu - f) W_dec
    direction   x -> x - s <x - c, u> u

Means are taken on localizer items at the last token of the region, every item with equal weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from neurosae.causal.controls import Controls
from neurosae.causal.costs import neutral_costs
from neurosae.causal.edits import Edit
from neurosae.causal.material import Place
from neurosae.dictionary.kinds import Dictionary, signed_dictionary
from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.spec.generation import RemovalBlock

CLOSE = 0.02  # relative error of a matched divergence
TRIES = 6


class Levels(NamedTuple):
    """Means of two levels on localizer items.

    Attributes
    ----------
    features : the set
    mean : array (n_features,), mean activity over both levels
    difference : array (n_items, d), activation at the + level minus that at the - level, of every item
    center : array (d,), midpoint of the means
    """

    features: np.ndarray
    mean: np.ndarray
    difference: np.ndarray
    center: np.ndarray


class Removal(NamedTuple):
    """What all conditions of a block share.

    stimuli : of test items;  levels : means of localizer items;  controls : matched sets
    means : mean activity of every feature over both levels (n_features,)
    """

    model: Any
    dictionary: Any
    stimuli: pd.DataFrame
    design: Design
    levels: Levels
    means: np.ndarray
    controls: Controls
    texts: Sequence[str]
    ask: RemovalBlock
    seed: int


class Matched(NamedTuple):
    """Strength of every method at equal divergence: strength, KL, ratio of perplexities, and the target KL."""

    strength: dict[str, float]
    kl: dict[str, float]
    ratio: dict[str, float]
    target: float


def strengths_of(ask: RemovalBlock) -> list[float]:
    """The strengths that are run: those asked for, and the full edit."""
    return sorted({*ask.strengths, 1.0})


def level_means(place: Place, features: Sequence[int], *, factor: str, levels: tuple[str, str]) -> Levels:
    """Means of the + and the - level from localizer stimuli, items weighing equally.

    Raises
    ------
    DataError
        An item lacks one of the levels.
    """
    last = np.append(np.flatnonzero(np.diff(place.row)), len(place.row) - 1)
    of = place.stimuli.iloc[place.row[last]]
    f = place.codes[last][:, np.asarray(features)].toarray()
    both = pd.DataFrame(np.hstack([place.x[last].astype(np.float64), f]))
    keys = [of["item"].astype(str).to_numpy(), of[factor].astype(str).to_numpy()]
    mean = both.groupby(keys, sort=False).mean().unstack(1)
    found = [mean.loc[:, mean.columns.get_level_values(1) == level] for level in levels]
    if any(not part.shape[1] or bool(part.isna().to_numpy().any()) for part in found):
        raise DataError(f"some localizer items lack level {levels[0]} or {levels[1]} of {factor}; each needs both.")
    plus, minus = (part.to_numpy() for part in found)
    d = place.x.shape[1]
    middle = (plus + minus).mean(axis=0) / 2
    return Levels(np.asarray(features, dtype=int), middle[d:], (plus - minus)[:, :d], middle[:d])


def ablation(dictionary: Dictionary, levels: Levels, strength: float) -> tuple[Edit, ...]:
    """Features of the set scaled to 1 - strength."""
    return (_scaled(dictionary, levels.features, strength),)


def to_the_mean(dictionary: Dictionary, levels: Levels, strength: float) -> tuple[Edit, ...]:
    """Features of the set moved by a share of the way to their mean over both levels."""
    W = dictionary.W_dec[levels.features.tolist()].detach().float().cpu().numpy()
    vector = (strength * levels.mean @ W).astype(np.float32)
    return (_scaled(dictionary, levels.features, strength), Edit(dictionary.hook, "add", "all", vector=vector))


def off_the_direction(dictionary: Dictionary, levels: Levels, strength: float) -> tuple[Edit, ...]:
    """A share of the component along the difference of means taken away, around the midpoint."""
    v = levels.difference.mean(axis=0)
    length = float(np.linalg.norm(v))
    if not length > 0:
        raise DataError("the means of both levels are equal, so there is no direction to remove; use a later region.")
    u = torch.as_tensor(v / length, dtype=torch.float32)[None]
    center = torch.as_tensor(levels.center, dtype=torch.float32)
    axis = signed_dictionary(dictionary.hook, u, u, center=center)
    return (_scaled(axis, np.array([0, 1]), strength),)


def _scaled(dictionary: Dictionary, features: np.ndarray, strength: float) -> Edit:
    chosen = tuple(int(j) for j in features)
    return Edit(dictionary.hook, "scale", "all", dictionary=dictionary, features=chosen, dose=1.0 - strength)


METHODS: Mapping[str, Callable[[Dictionary, Levels, float], tuple[Edit, ...]]] = {
    "ablate": ablation,
    "mean": to_the_mean,
    "direction": off_the_direction,
}
"""Ways to remove a difference."""


def as_control(levels: Levels, method: str, *, members: np.ndarray, means: np.ndarray, signs: np.ndarray) -> Levels:
    """The same edit of what the levels do not differ in.

    A control of `ablate` and `mean` is a matched set of features with their own means; of `direction` it is the
    difference of means after exchanging the levels in a random half of the items.
    """
    if method == "direction":
        return levels._replace(difference=levels.difference * signs[:, None])
    return levels._replace(features=members, mean=means)


def matched_strength(
    cost: Callable[[float], float], target: float, *, known: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The strength at which an edit costs a given divergence, and the divergence there.

    Parameters
    ----------
    cost : strength -> KL in nats per token
    known : (strength, KL) pairs, rising; KL of strength 0 is 0

    Notes
    -----
    A small edit costs a divergence of the order of its square, so the root of KL is interpolated linearly between two
    strengths that enclose the target, until it is met within 2 %.

    Examples
    --------
    >>> strength, kl = matched_strength(lambda s: s**2, 0.25, known=[(0.25, 0.0625), (1.0, 1.0)])
    >>> round(strength, 3), round(kl, 3)
    (0.5, 0.25)
    """
    points = [(0.0, 0.0), *known]
    above = next((k for k, (_, kl) in enumerate(points) if kl >= target * (1 - 1e-9)), None)
    if above is None or not target > 0:
        raise DataError(f"no strength up to {points[-1][0]:g} costs {target:.3g} nats per token; add larger strengths.")
    (low, low_kl), (high, high_kl) = points[max(above - 1, 0)], points[above]
    strength, kl = high, high_kl
    for _ in range(TRIES):
        if abs(kl - target) <= CLOSE * target:
            break
        share = (np.sqrt(target) - np.sqrt(low_kl)) / max(np.sqrt(high_kl) - np.sqrt(low_kl), 1e-12)
        strength = float(low + share * (high - low))
        kl = cost(strength)
        if kl < target:
            low, low_kl = strength, kl
        else:
            high, high_kl = strength, kl
    return strength, kl


def cost_of(model: Any, texts: Sequence[str], *, n_tokens: int) -> Callable[[Sequence[Edit]], tuple[float, float]]:
    """A function from the edits of a condition to its KL and its ratio of perplexities on neutral text."""

    def cost(edits: Sequence[Edit]) -> tuple[float, float]:
        found = neutral_costs(model, [edits], texts, n_tokens=n_tokens)
        return float(found.kl[0]), float(found.perplexity_ratio[0])

    return cost
