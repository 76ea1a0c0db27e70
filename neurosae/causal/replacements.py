"""What is put in the place of activations: what another text has there, a mean, nothing, or noise beside what is there.

A region of several tokens is aligned at its last token. Means and standard deviations are those of the same place in
other texts; a mean leaves out the texts of the item that it is put into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.edits import Edit
from neurosae.causal.entries import NOTE, check_pattern, check_shape, is_pattern, mean_of_others, read_entries
from neurosae.causal.progress import with_bar
from neurosae.causal.prompts import Prompts, read_prompts, tokens_at
from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError, ModelError
from neurosae.extraction.firing import firing_order
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, hooked_pass
from neurosae.extraction.sites import check_hook, split_head

PAIRED = ("paired", "random")
BATCH = 4096  # ids in a pass


@dataclass(frozen=True, eq=False)
class Thing:
    """What is patched at a place: the vector at a hook point, or some features there.

    Attributes
    ----------
    hook : hook point; `blocks.2.attn.hook_z.h3` is one head
    dictionary, features : patch these features alone; left out, the whole vector
    site : name of the site of the dictionary, for tables
    keys : of attention weights, `blocks.2.attn.hook_pattern.h3`: the region that attention goes to, while the patched
        region is that of the queries
    """

    hook: str
    dictionary: Dictionary | None = None
    features: tuple[int, ...] = ()
    site: str = ""
    keys: str = ""

    @property
    def name(self) -> str:
        """What it is called in tables: the hook point, with the region of keys, or site and features."""
        if self.dictionary is None:
            return f"{self.hook} to {self.keys}" if self.keys else self.hook
        return f"{self.site or self.hook}/{','.join(map(str, self.features))}"


class Held(NamedTuple):
    """What the texts have at every place.

    Attributes
    ----------
    hosts : texts that are patched; `n_pairs` clean ones, then the other ones, if any
    sources : the texts behind `vectors`; those of `hosts` where they are patched into each other
    tokens : {region: tokens of every host};  of_sources : the same of every source; regions of keys too
    vectors : {(thing, region): per source an array (n_tokens, width)}, features of a thing that has features,
        attention weights (n_queries, n_keys) of one that has keys
    """

    hosts: pd.DataFrame
    n_pairs: int
    model: LanguageModel
    sources: pd.DataFrame
    tokens: dict[str, list[np.ndarray]]
    of_sources: dict[str, list[np.ndarray]]
    vectors: dict[tuple[str, str], list[np.ndarray]]


class Replaced(NamedTuple):
    """The edit of one place, and what a reader of its effect must know."""

    edit: Edit
    note: str


def hold(
    hosts: pd.DataFrame, sources: pd.DataFrame, model: LanguageModel, *, things: Sequence[Thing], regions: Sequence[str]
) -> Held:
    """Read the sources at every place, in one pass of the model.

    Parameters
    ----------
    hosts : texts to patch; if they are `sources` too, the first half are the clean texts, the second their others
    """
    dictionaries = [thing.dictionary for thing in things if thing.dictionary is not None]
    prompts = read_prompts(hosts, model, dictionaries)
    if missing := [why for why, at in zip(prompts.reason, prompts.at, strict=True) if at < 0]:
        raise DataError(f"{len(missing)} of {len(prompts.ids)} texts have no scored target: {missing[0]}.")
    _check_things(things, prompts.model)
    read = prompts if sources is hosts else read_prompts(sources, model, dictionaries)
    named = list(dict.fromkeys([*regions, *(thing.keys for thing in things if thing.keys)]))
    of_sources = {region: tokens_at(read, region) for region in named}
    tokens = of_sources if read is prompts else {region: tokens_at(prompts, region) for region in named}
    n = len(hosts) // 2 if sources is hosts else len(hosts)
    whole, entries = [t for t in things if not t.keys], [t for t in things if t.keys]
    vectors = _vectors(read, whole, {region: of_sources[region] for region in regions}) if whole else {}
    vectors |= _weights(read, entries, of_sources, regions=regions)
    return Held(hosts, n, prompts.model, sources, tokens, of_sources, vectors)


def _check_things(things: Iterable[Thing], model: LanguageModel) -> None:
    for thing in things:
        if bool(thing.keys) != is_pattern(thing.hook):
            raise DataError(f"{thing.hook}: attention weights have keys, and nothing else has; see `Thing.keys`.")
        check_pattern(thing.hook, model) if thing.keys else check_hook(thing.hook, model.hooks)
    points = {split_head(thing.hook)[0]: thing.hook for thing in things}
    shapes = {firing.name: firing.shape for firing in firing_order(model, list(points))}
    for thing in things:
        point, head = split_head(thing.hook)
        if point not in shapes:
            raise ModelError(f"hook point '{point}' never fires in {model.name}; name another one.")
        if thing.keys:
            check_shape(thing.hook, shapes[point])
        elif head is not None and len(shapes[point]) == 4 and head >= shapes[point][2]:
            n = shapes[point][2]
            raise ModelError(f"hook point '{thing.hook}': there are {n} heads, h0 to h{n - 1}.")


def _vectors(
    read: Prompts, things: Sequence[Thing], tokens: Mapping[str, list[np.ndarray]]
) -> dict[tuple[str, str], list[np.ndarray]]:
    """What every source has at every place, from passes that stop after the last hook point."""
    hooks = list(dict.fromkeys(thing.hook for thing in things))
    regions = list(tokens)
    got: dict[tuple[str, str], dict[int, np.ndarray]] = {(hook, region): {} for hook in hooks for region in regions}
    for rows in with_bar(length_buckets([len(ids) for ids in read.ids], BATCH), "read what is patched"):
        ids, mask = pad([read.ids[i] for i in rows])
        cells = [(k, region, i, tokens[region][i]) for region in regions for k, i in enumerate(rows.tolist())]
        sizes = [len(cell[3]) for cell in cells]
        at = np.repeat([cell[0] for cell in cells], sizes), np.concatenate([cell[3] for cell in cells])
        found = hooked_pass(read.model, ids, mask, hooks=hooks, rows=at[0], cols=at[1])
        ends = np.cumsum(sizes)
        for hook in hooks:
            values = found[hook].cpu().numpy()
            for (_, region, i, _), end, size in zip(cells, ends, sizes, strict=True):
                got[hook, region][i] = values[end - size : end]
    n = range(len(read.ids))
    out = {}
    for thing in things:
        for region in regions:
            out[thing.name, region] = _of_thing(thing, [got[thing.hook, region][i] for i in n])
    return out


def _weights(
    read: Prompts, things: Sequence[Thing], tokens: Mapping[str, list[np.ndarray]], *, regions: Sequence[str]
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Attention weights of every source, from every region to the region of keys of every thing."""
    if not things:
        return {}
    keys = dict.fromkeys(thing.keys for thing in things)
    pairs = {(region, key): (tokens[region], tokens[key]) for region in regions for key in keys}
    found = read_entries(read.model, read.ids, list(dict.fromkeys(thing.hook for thing in things)), pairs=pairs)
    return {(t.name, region): found[t.hook, (region, t.keys)] for t in things for region in regions}


def _of_thing(thing: Thing, vectors: list[np.ndarray]) -> list[np.ndarray]:
    """The vectors themselves, or the features of a thing that has features."""
    if thing.dictionary is None:
        return vectors
    codes = thing.dictionary.encode(np.concatenate(vectors))[:, list(thing.features)].toarray()
    return np.split(codes, np.cumsum([len(v) for v in vectors])[:-1])


# --- replacements ---------------------------------------------------------------------------------------------------


def replacement(
    held: Held, thing: Thing, region: str, *, replace: str, sigma: float, rng: np.random.Generator
) -> Replaced:
    """The edit that puts a replacement into every host at one place."""
    return REPLACEMENTS[replace](held, thing, region, sigma=sigma, rng=rng)


def _set_to(
    thing: Thing, where: list[np.ndarray], values: list[np.ndarray], *, keys: Any = None, note: str = ""
) -> Replaced:
    if keys is not None:
        said = "; ".join(filter(None, [note, NOTE]))
        return Replaced(Edit(thing.hook, "replace", where, vector=values, keys=keys), said)
    if thing.dictionary is None:
        return Replaced(Edit(thing.hook, "replace", where, vector=values), note)
    edit = Edit(thing.hook, "clamp", where, dictionary=thing.dictionary, features=thing.features, dose=values)
    return Replaced(edit, note)


def _from_other(held: Held, thing: Thing, region: str, *, sigma: float, rng: np.random.Generator) -> Replaced:
    """What the other text of the pair has there, aligned at the last token."""
    tokens, vectors, n = held.tokens[region], held.vectors[thing.name, region], held.n_pairs
    where, values, uneven, moved = [], [], 0, 0
    other = held.tokens[thing.keys] if thing.keys else None
    keys: list[np.ndarray] | None = None if other is None else []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        m = min(len(tokens[i]), len(tokens[j]))
        uneven += len(tokens[i]) != len(tokens[j]) and i < n
        moved += bool(m) and i < n and tokens[i][-1] != tokens[j][-1]
        where.append(tokens[i][len(tokens[i]) - m :])
        values.append(vectors[j][len(vectors[j]) - m :])
        if other is not None and keys is not None:
            k = min(len(other[i]), len(other[j]))
            uneven += len(other[i]) != len(other[j]) and i < n
            keys.append(other[i][len(other[i]) - k :])
            values[-1] = values[-1][:, values[-1].shape[1] - k :]
    said = []
    if uneven:
        said.append(f"in {uneven} of {n} pairs the numbers of tokens differ: aligned at the last token")
    if moved:
        said.append(f"in {moved} of {n} pairs the region stands at another token of the text")
    return _set_to(thing, where, values, keys=keys, note="; ".join(said))


def _zero(held: Held, thing: Thing, region: str, *, sigma: float, rng: np.random.Generator) -> Replaced:
    where = held.tokens[region]
    if thing.keys:
        keys = held.tokens[thing.keys]
        return _set_to(thing, where, [np.zeros((len(q), len(k))) for q, k in zip(where, keys, strict=True)], keys=keys)
    width = held.vectors[thing.name, region][0].shape[1]
    return _set_to(thing, where, [np.zeros((len(one), width), dtype=np.float32) for one in where])


def _mean(held: Held, thing: Thing, region: str, *, sigma: float, rng: np.random.Generator) -> Replaced:
    """The mean of the same token of the region, counted from its end, over the texts of other items."""
    vectors = held.vectors[thing.name, region]
    items = held.sources["item"].astype(str).to_numpy()
    if thing.keys:
        places = zip(held.hosts["item"].astype(str), held.tokens[region], held.tokens[thing.keys], strict=True)
        values = [mean_of_others(vectors, items, item=item, shape=(len(q), len(k))) for item, q, k in places]
        return _set_to(thing, held.tokens[region], values, keys=held.tokens[thing.keys])
    names = {name: k for k, name in enumerate(dict.fromkeys(items))}
    longest = max(len(v) for v in vectors)
    total = np.zeros((len(names), longest, vectors[0].shape[1]))
    count = np.zeros((len(names), longest, 1))
    for item, one in zip(items, vectors, strict=True):
        total[names[item], : len(one)] += one[::-1]  # from the end
        count[names[item], : len(one)] += 1
    values = []
    for item, tokens in zip(held.hosts["item"].astype(str), held.tokens[region], strict=True):
        others = np.arange(len(names)) != names.get(item, -1)
        n = count[others].sum(axis=0)[: len(tokens)]
        if not others.any() or not n.all():
            raise DataError(f"item '{item}': no other item has region '{region}' of {len(tokens)} tokens; use zero.")
        values.append((total[others].sum(axis=0)[: len(tokens)] / n)[::-1].astype(np.float32))
    return _set_to(thing, held.tokens[region], values)


def _noise(held: Held, thing: Thing, region: str, *, sigma: float, rng: np.random.Generator) -> Replaced:
    """What is there, plus sigma standard deviations of every dimension over the texts."""
    if thing.dictionary is not None:
        raise DataError("noise is added to vectors, not to features; name hook points, or use another replacement.")
    if thing.keys:
        raise DataError(
            "noise is added to vectors, not to attention weights, which are shares; use another replacement."
        )
    sd = np.concatenate(held.vectors[thing.name, region]).std(axis=0)
    where = held.tokens[region]
    values = [(sigma * sd * rng.standard_normal((len(one), len(sd)))).astype(np.float32) for one in where]
    return Replaced(Edit(thing.hook, "add", where, vector=values), "")


REPLACEMENTS: Mapping[str, Callable[..., Replaced]] = {
    "paired": _from_other, "random": _from_other, "mean": _mean, "zero": _zero, "noise": _noise,
}  # fmt: skip
"""What is put there -> how it is made."""
