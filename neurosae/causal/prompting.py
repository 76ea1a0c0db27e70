"""Features named in words, `late/12=8`, and what a prompt becomes with and without them: the verb `generate`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurosae.causal.edits import MODES, Edit
from neurosae.causal.generation import Generated, generate
from neurosae.errors import DataError, choose

NAMED = re.compile(r"([^/=\s]+)/(\d+)(?:=(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))?")
DOSELESS = ("ablate",)


def steered_samples(
    model: Any,
    dictionaries: Mapping[str, Any],
    prompt: str,
    *,
    features: str,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int],
) -> list[Generated]:
    """Continue a prompt several times, each time with named features edited and beside it without.

    Parameters
    ----------
    dictionaries : {site: dictionary}
    features : `site/feature=value`, several with commas: `early/12=8,late/40=2.5`; of `ablate` without a value
    settings : `mode` (`clamp`, `conditional`, `steer`, `scale` or `ablate`), `where` (`all`, `prompt` or `generated`
        tokens), `n_tokens` (40), `temperature` (1.0)
    seeds : one pair of texts for each

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}
    >>> made = steered_samples(load_model(toy), raw, "ab", features="raw/3=50", settings={"n_tokens": 4}, seeds=[1])
    >>> made[0].record["edits"]
    ['blocks.0.hook_resid_post: clamp features [3] at [50.0], all tokens']
    """
    known = {"mode": "clamp", "where": "all", "n_tokens": 40, "temperature": 1.0}
    for name in settings or {}:
        choose("setting", name, known)
    given = known | dict(settings or {})
    edits = named_edits(dictionaries, features, mode=str(given["mode"]), where=str(given["where"]))
    rest = {name: given[name] for name in ("n_tokens", "temperature")}
    return [generate(model, edits[0].dictionary, prompt, clamp=edits, seed=seed, **rest) for seed in seeds]


def named_edits(dictionaries: Mapping[str, Any], features: str, *, mode: str, where: str = "all") -> tuple[Edit, ...]:
    """Edits of features that are named in words, one per site.

    Raises
    ------
    DataError
        A word is no `site/feature=value`, or its site or mode is unknown.
    """
    kinds = {name: found for name, found in MODES.items() if found.change is not None}
    choose("mode", mode, kinds)
    by_site: dict[str, dict[int, float]] = {}
    for word in filter(None, (part.strip() for part in features.split(","))):
        found = NAMED.fullmatch(word)
        if found is None or (found[3] is None) != (mode in DOSELESS):
            shape = "site/feature" if mode in DOSELESS else "site/feature=value"
            raise DataError(f"'{word}' is no {shape}, which {mode} needs; write {_example(dictionaries, mode)}.")
        choose("site", found[1], dictionaries)
        own, feature, dose = by_site.setdefault(found[1], {}), int(found[2]), float(found[3] or 0.0)
        if feature >= (n := dictionaries[found[1]].n_features):
            raise DataError(f"'{word}': {found[1]} has features 0 to {n - 1}.")
        if feature in own:
            raise DataError(f"'{word}': {found[1]}/{feature} is named twice; give it one value.")
        if not np.isfinite(dose):
            raise DataError(f"'{word}': the value is too large to be computed with; activations are of order 1 to 100.")
        own[feature] = dose
    if not by_site:
        raise DataError(f"no feature is named; write {_example(dictionaries, mode)}.")
    return tuple(
        Edit(
            dictionaries[site].hook, mode, where, dictionary=dictionaries[site],
            features=tuple(doses), dose=np.array(list(doses.values())),
        )
        for site, doses in by_site.items()
    )  # fmt: skip


def _example(dictionaries: Mapping[str, Any], mode: str) -> str:
    return f"{next(iter(dictionaries))}/12" + ("" if mode in DOSELESS else "=8")


def beside(samples: Sequence[Generated]) -> str:
    """Plain and steered texts under each other, for the terminal."""
    lines = [f"prompt      {samples[0].prompt!r}", *(f"edit        {edit}" for edit in samples[0].record["edits"])]
    for made in samples:
        record = made.record
        lines.append(f"seed {record['seed']}, temperature {record['temperature']:g}")
        for name, text in (("plain", made.plain), ("steered", made.steered)):
            cost = f"perplexity {record['perplexity'][name]:.1f} without the edit"
            lines.append(f"  {name:<8}  {text!r}  ({cost}{', ended' if record['ended'][name] else ''})")
    lines.append("One text shows what an edit can do; `test: generation` tests it over items and control features.")
    return "\n".join(lines)
