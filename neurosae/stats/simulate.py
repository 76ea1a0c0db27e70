"""Responses with planted truth: sparse features of known density that answer, or do not answer, to factors of a design.

A feature fires where a latent drive passes its threshold; the drive has an item part, an item x cell part and a part
of the single stimulus, so that items react differently, as they do in language models. Neighbouring features
correlate. What was planted is written into `var["planted"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtri

from neurosae.design.expand import expand
from neurosae.errors import DataError, choose
from neurosae.extraction.responses import build_responses
from neurosae.spec.design import Design

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone

ITEM_SD, CELL_SD, BLOCK, CORRELATION = 1.5, 0.6, 10, 0.5
ITEM_LOG_SD, LOG_SD = 0.5, 0.4  # of the log magnitude where a feature fires


def simulate(
    design: Design,
    *,
    n_features: int,
    effects: Mapping[str, int] | None = None,
    density: float | tuple[float, float] = (0.003, 0.5),
    shift: float = 2.5,
    regions: tuple[str, ...] | None = None,
    seed: int,
) -> AnnData:
    """Simulate the responses of one site to the stimuli of a design.

    Equation, for stimulus s of item i in cell c and feature j,

        h = u_ij + (uc)_icj + e_sj + shift w_c,   y = 1[h > theta_j] exp(item + noise),

    with theta_j set so that P(y > 0) is the feature's density where nothing is planted.

    Parameters
    ----------
    design : Design
    n_features : int
    effects : mapping from a factor, or `factor:factor` for their interaction, to the number of features that carry it
        The features are taken in order: 0 … n-1 answer to the first effect, and so on; + is the last level.
    density : float or (low, high)
        Share of stimuli where a feature is active; a pair is drawn log-uniformly.
    shift : float
        Distance of the latent drive between the + and - cells, in units of the stimulus part's standard deviation.
    regions : tuple of str, optional
        Regions to simulate, all by default; planted effects are present in each of them.
    seed : int

    Returns
    -------
    AnnData
        One row per stimulus x region, position 0, with `var["planted"]`: the effect's key, or "" where none.

    Examples
    --------
    >>> from neurosae.spec.design import Design
    >>> design = example_design(n_items=8)
    >>> fake = simulate(design, n_features=50, effects={"number": 5}, seed=0)
    >>> fake.shape, list(fake.var["planted"].unique())
    ((16, 50), ['number', ''])
    """
    stimuli = expand(design)
    rng = np.random.default_rng(seed)
    planted, weights = _plant(design, stimuli, effects or {}, n_features=n_features)
    low, high = (density, density) if isinstance(density, int | float) else density
    densities = np.exp(rng.uniform(np.log(low), np.log(high), n_features))
    obs = pd.concat([_rows(design, stimuli, region) for region in regions or _regions(stimuli)], ignore_index=True)
    drive = shift * (weights @ planted)
    codes = {name: pd.factorize(obs[name])[0] for name in ("item", "stimulus")}
    levels = cast(Any, [obs[f].astype(str) for f in design.factors])
    codes["cell"] = pd.factorize(obs["item"].astype(str).str.cat(levels, sep="/"))[0]
    place = stimuli.index.get_indexer(obs["stimulus"])  # pyright: ignore[reportArgumentType]
    X = _fire(rng, codes, drive[place], densities=densities)
    obs["norm"] = np.float32(1.0)
    obs = obs.set_index(
        pd.Index(obs["stimulus"] + "@" + obs["token_index"].astype(str) + "@" + obs["region"].astype(str))
    )
    obs.index.name = None
    names = np.array(["", *(effects or {})], dtype=object)
    var = _features(densities, names[(planted * np.arange(1, len(names))[:, None]).sum(axis=0).astype(int)])
    return build_responses(X, obs, var, design=design, provenance={"simulated": True, "seed": seed, "shift": shift})


def _regions(stimuli: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_start") for name in stimuli.columns if name.endswith("_start")]


def _plant(design: Design, stimuli: pd.DataFrame, effects: Mapping[str, int], *, n_features: int):
    """Which feature carries which effect (n_effects, m), and the weight of every stimulus in it (n, n_effects)."""
    if sum(effects.values()) > n_features:
        raise DataError(f"effects name {sum(effects.values())} features, but n_features is {n_features}.")
    planted = np.zeros((len(effects), n_features))
    weights = np.ones((len(stimuli), len(effects)))
    start = 0
    for k, (effect, count) in enumerate(effects.items()):
        planted[k, start : start + count] = 1
        start += count
        for factor in effect.split(":"):
            levels = list(choose("factor", factor, design.factors).levels)
            at = stimuli[factor].astype(str).to_numpy()
            weights[:, k] *= 1.0 * (at == levels[-1]) - 1.0 * (at == levels[0])
        weights[:, k] /= 2
    return planted, weights


def _rows(design: Design, stimuli: pd.DataFrame, region: str) -> pd.DataFrame:
    """One row per stimulus that has the region; words stand for tokens."""
    rows = stimuli.loc[stimuli[f"{region}_start"].notna()]
    carried = ["item", "frame", "split", *design.factors, *design.labels, *design.covariates]
    obs = rows[carried].reset_index(drop=True)
    obs.insert(0, "stimulus", rows.index.to_numpy())
    spans = [
        (t, t[:a], t[a:b]) for t, a, b in zip(rows["text"], rows[f"{region}_start"], rows[f"{region}_end"], strict=True)
    ]
    obs["region"] = pd.Categorical([region] * len(rows))
    obs["token"] = [(words.split() or [""])[-1] for _, _, words in spans]
    counts = {
        "token_index": [len(before.split()) + len(words.split()) for _, before, words in spans],
        "position": 0,
        "n_tokens": [max(len(words.split()), 1) for _, _, words in spans],
        "stimulus_tokens": [len(text.split()) for text, _, _ in spans],
    }
    for name, values in counts.items():
        obs[name] = np.asarray(values, dtype=np.int32) if name != "position" else np.int32(0)
    for name in ("surprisal", "logit_diff"):
        obs[name] = np.float32(np.nan)
    return obs


def _fire(rng: np.random.Generator, codes: Mapping[str, np.ndarray], drive: np.ndarray, *, densities: np.ndarray):
    n, m = drive.shape
    parts = {"item": ITEM_SD, "cell": CELL_SD}
    h = drive + _blocks(rng, n, m)
    for name, sd in parts.items():
        h += sd * _blocks(rng, codes[name].max() + 1, m)[codes[name]]
    threshold = -ndtri(densities) * np.sqrt(1 + sum(sd**2 for sd in parts.values()))
    size = ITEM_LOG_SD * rng.standard_normal((codes["item"].max() + 1, m))[codes["item"]]
    size += LOG_SD * rng.standard_normal((n, m))
    return sp.csr_matrix(np.where(h > threshold, np.exp(size), 0.0).astype(np.float32))


def _blocks(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Standard normal (n, m); features of one block of ten correlate."""
    shared = np.repeat(rng.standard_normal((n, -(-m // BLOCK))), BLOCK, axis=1)[:, :m]
    return np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * rng.standard_normal((n, m))


def _features(densities: np.ndarray, planted: np.ndarray) -> pd.DataFrame:
    m = len(densities)
    var = pd.DataFrame({"feature": np.arange(m, dtype=np.int32)}, index=pd.Index([f"simulated/{j}" for j in range(m)]))
    for name, value in {"decoder_norm": 1.0, "threshold": 0.0, "density": densities, "origin": 0.0}.items():
        var[name] = np.full(m, value, dtype=np.float32)
    return var.assign(planted=planted)


def example_design(n_items: int = 24, *, between: bool = False) -> Design:
    """A small design for examples and tests: number (sg, pl), within items or, as a list, between them.

    Examples
    --------
    >>> list(example_design(4).factors)
    ['number']
    """
    levels = ["sg", "pl"]
    made: dict[str, object] = {"schema": "neurosae/design/1", "name": "example"}
    if between:
        made["factors"] = {"number": {"levels": levels, "varies": "between"}}
        made["regions"] = {"noun": {"words": [2, 2]}}
        made["lists"] = {v: [{"text": f"The {v} noun{i} is here."} for i in range(n_items // 2)] for v in levels}
    else:
        made["factors"] = {"number": levels}
        made["frames"] = {"plain": "The {noun:number} near me"}
        made["items"] = {f"item{i}": {"noun": {"sg": f"noun{i}", "pl": f"nouns{i}"}} for i in range(n_items)}
    return Design.model_validate(made)
