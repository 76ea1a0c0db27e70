"""The sanity ladder: edits of the same size or more that are not the features', to read an effect against.

| rung | what is done at the edited tokens |
|---|---|
| random direction | a random vector as long as the edit is added, another one for every item; mean of 5 draws |
| shuffled decoder | the edit with the entries of the decoder rows permuted; mean of 5 draws |
| sign reversal | the negative of the edit is added |
| difference of means | x moves to the other level of an effect, by the difference of the levels' mean vectors |
| whole stream | x is replaced by that of the same item at the other level: an upper bound |
| other layer: <site> | the edit is added at the hook point of another site |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.edits import Edit
from neurosae.causal.material import Place, by_stimulus

DRAWS = 5
RUNGS = 2 * DRAWS + 3  # conditions of all rungs but those of other layers


class Rung(NamedTuple):
    """One rung: its name, the conditions whose outcomes are averaged, and what the reader must know of it."""

    name: str
    conditions: list[tuple[Edit, ...]]
    note: str


def ladder_of(
    place: Place, delta: np.ndarray, *, others: Mapping[str, str], factor: Mapping[str, Mapping[str, float]], seed: int
) -> list[Rung]:
    """All rungs that these stimuli allow.

    Parameters
    ----------
    delta : array of shape (n_cells, d), what the edit adds (`material.change_of`)
    others : {site: hook point} of the other sites, for the rung `other layer`
    factor : {factor: {level: weight}} of a two-level effect within items, for difference of means and whole stream;
        empty where there is none
    seed : of the random rungs
    """
    W = place.dictionary.hook
    rungs = [
        Rung(
            "random direction",
            [_added(place, W, _random(place, delta, seed=seed, draw=k)) for k in range(DRAWS)],
            f"mean of {DRAWS} draws",
        ),
        Rung(
            "shuffled decoder",
            [_added(place, W, _shuffled(delta, seed, k)) for k in range(DRAWS)],
            f"mean of {DRAWS} draws",
        ),
        Rung("sign reversal", [_added(place, W, -delta)], ""),
    ]
    rungs += _of_levels(place, factor) if factor else []
    rungs += [
        Rung(f"other layer: {site}", [_added(place, hook, delta)], f"added at {hook}") for site, hook in others.items()
    ]
    return rungs


def _added(place: Place, hook: str, vectors: np.ndarray) -> tuple[Edit, ...]:
    return (Edit(hook, "add", place.region, vector=by_stimulus(place, vectors)),)


def _random(place: Place, delta: np.ndarray, *, seed: int, draw: int) -> np.ndarray:
    """A direction per item, as long as the edit is at each token."""
    rng = np.random.default_rng([seed, 17, draw])
    names = place.stimuli["item"].astype(str).to_numpy()
    items = {name: k for k, name in enumerate(dict.fromkeys(names))}
    unit = rng.standard_normal((len(items), delta.shape[1]))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    own = np.array([items[name] for name in names])[place.row]
    return unit[own] * np.linalg.norm(delta, axis=1, keepdims=True)


def _shuffled(delta: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """Permuting the entries of all decoder rows alike permutes those of the edit."""
    return delta[:, np.random.default_rng([seed, 23, draw]).permutation(delta.shape[1])]


def _of_levels(place: Place, factor: Mapping[str, Mapping[str, float]]) -> list[Rung]:
    """Difference of means and whole stream, between the two levels of an effect."""
    ((name, weights),) = factor.items()
    high = [level for level, weight in weights.items() if weight > 0]
    low = [level for level, weight in weights.items() if weight < 0]
    if len(high) != 1 or len(low) != 1:
        return []
    level = place.stimuli[name].astype(str).to_numpy()
    side = np.where(level == str(high[0]), 1, np.where(level == str(low[0]), -1, 0))
    partner = _partners(place.stimuli, name, (str(high[0]), str(low[0])))
    used = partner >= 0
    if not used.all():
        return []
    means = {s: place.x[side[place.row] == s].mean(axis=0) for s in (1, -1)}
    moved = (means[-1] - means[1])[None] * side[place.row][:, None]
    n = len(place.prompts.ids)
    cells = np.split(np.arange(len(place.row)), np.searchsorted(place.row, np.arange(1, n)))
    last = [own[-1:] for own in cells]
    tokens = _tokens(place)
    same = all(len(cells[i]) == len(cells[partner[i]]) for i in range(n))
    taken = cells if same else last
    where: Any = place.region if same else [t[-1:] for t in tokens]
    vectors = [place.x[taken[partner[i]]] for i in range(n)]
    whole = (Edit(place.dictionary.hook, "replace", where, vector=vectors),)
    said = "" if same else "at the last token of the region, whose length differs"
    note = f"between {name} {high[0]} and {low[0]}"
    return [
        Rung("difference of means", [_added(place, place.dictionary.hook, moved)], note),
        Rung("whole stream", [whole], "; ".join(filter(None, [note, said]))),
    ]


def _tokens(place: Place) -> list[np.ndarray]:
    from neurosae.causal.prompts import tokens_at

    return tokens_at(place.prompts, place.region)


def _partners(stimuli: pd.DataFrame, factor: str, levels: tuple[str, str]) -> np.ndarray:
    """Row of the stimulus that differs in the factor alone; -1 where there is none."""
    from neurosae.spec.design import Design

    factors = list(Design.from_json(stimuli.attrs["design"]).factors)
    keys = stimuli[["item", "frame", *factors]].astype(str)
    at = {tuple(key): k for k, key in enumerate(keys.itertuples(index=False, name=None))}
    place = 2 + factors.index(factor)
    swap = dict(zip(levels, reversed(levels), strict=True))
    out = []
    for key in keys.itertuples(index=False, name=None):
        other = swap.get(key[place])
        out.append(-1 if other is None else at.get((*key[:place], other, *key[place + 1 :]), -1))
    return np.array(out)
