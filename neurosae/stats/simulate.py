"""Responses with planted truth: sparse features of known density that answer, or do not answer, to factors of a design.

A feature fires where a latent drive passes its threshold; the drive has an item part, an item x cell part, frame parts
if asked for, and a part of the single stimulus, so that items react differently, as they do in language models.
Neighbouring features correlate. What was planted is written into `var["planted"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtr, ndtri

from neurosae.design.expand import expand
from neurosae.errors import DataError, choose
from neurosae.extraction.responses import build_responses
from neurosae.spec.design import Design

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone


class Firing(NamedTuple):
    """How features fire where nothing is planted; shares are parts of the variance of the latent drive.

    Attributes
    ----------
    density : share of active stimuli; a pair is drawn log-uniformly, an array has one value per feature
    item : share of the item, the same in all cells: the intra-item correlation of the drive
    cell : share of item x cell: how differently items react, which is the noise of every effect
    frame, frame_cell : shares of the frame, and of frame x cell; the rest belongs to the single stimulus
    block, correlation : features come in blocks of this size; correlation of their drives within a block
    item_log_sd, log_sd : standard deviation of the log magnitude, between items and between stimuli
    """

    density: float | tuple[float, float] | np.ndarray = (0.003, 0.5)
    item: float = 225 / 361
    cell: float = 36 / 361
    frame: float = 0.0
    frame_cell: float = 0.0
    block: int = 10
    correlation: float = 0.5
    item_log_sd: float = 0.5
    log_sd: float = 0.4

    @property
    def parts(self) -> dict[str, float]:
        """Standard deviation of each part, in units of the stimulus part."""
        shares = {"item": self.item, "cell": self.cell, "frame": self.frame, "frame_cell": self.frame_cell}
        rest = 1 - sum(shares.values())
        if min(shares.values()) < 0 or rest <= 0:
            said = ", ".join(f"{name} {share:g}" for name, share in shares.items())
            raise DataError(f"the shares of the drive are {said}; none may be negative, and their sum is below 1.")
        return {name: float(np.sqrt(share / rest)) for name, share in shares.items() if share}

    @property
    def sd(self) -> float:
        """Standard deviation of the whole drive, in units of the stimulus part."""
        return float(np.sqrt(1 + sum(part**2 for part in self.parts.values())))


class Planted(NamedTuple):
    """An effect in `n` features: how far it moves their firing, and how strongly they fire.

    Attributes
    ----------
    n : number of features
    shift : distance of the drive between + and - cells, in units of the stimulus part's standard deviation
    density : instead of `shift`, the difference between the densities of the + and the - cells
    magnitude : factor on the magnitude in + against - cells where a feature fires
    """

    n: int
    shift: float | None = None
    density: float | None = None
    magnitude: float = 1.0


def simulate(
    design: Design,
    *,
    n_features: int,
    effects: Mapping[str, int | Planted] | None = None,
    density: float | tuple[float, float] | Firing = (0.003, 0.5),
    shift: float = 2.5,
    regions: tuple[str, ...] | None = None,
    seed: int,
) -> AnnData:
    """Simulate the responses of one site to the stimuli of a design.

    Equation, for stimulus s of item i in cell c and frame t, and feature j,

        h = u_ij + (uc)_icj + w_tj + (wc)_tcj + e_sj + shift w_c,   y = 1[h > theta_j] exp(item + noise + w_c log f),

    with theta_j set so that P(y > 0) is the feature's density where nothing is planted, and f the planted magnitude.

    Parameters
    ----------
    design : Design
    n_features : int
    effects : mapping from a factor, or `factor:factor` for their interaction, to the features that carry it
        A number of features, or `Planted` for an effect of its own size. The features are taken in order: 0 … n-1
        answer to the first effect, and so on; + is the last level.
    density : float, (low, high) or Firing
        Share of stimuli where a feature is active; a pair is drawn log-uniformly. `Firing` also sets the shares of
        items, item x cell and frames, the blocks, and the magnitudes.
    shift : float
        Distance of the latent drive between the + and - cells, in units of the stimulus part's standard deviation,
        where an effect does not say its own.
    regions : tuple of str, optional
        Regions to simulate, all by default; planted effects are present in each of them.
    seed : int

    Returns
    -------
    AnnData
        One row per stimulus x region, position 0, with `var["planted"]`: the effect's key, or "" where none.

    Raises
    ------
    DataError
        An unknown factor, more planted than simulated features, or shares of the drive that leave nothing.

    Examples
    --------
    >>> from neurosae.spec.design import Design
    >>> design = example_design(n_items=8)
    >>> fake = simulate(design, n_features=50, effects={"number": 5}, seed=0)
    >>> fake.shape, list(fake.var["planted"].unique())
    ((16, 50), ['number', ''])
    >>> more = {"number": Planted(5, density=0.3, magnitude=2.0)}
    >>> fake = simulate(design, n_features=50, effects=more, density=Firing(0.2, item=0.3, cell=0.2), seed=0)
    """
    firing = density if isinstance(density, Firing) else Firing(density)
    asked = {name: e if isinstance(e, Planted) else Planted(e) for name, e in (effects or {}).items()}
    stimuli = expand(design)
    rng = np.random.default_rng(seed)
    planted, weights = _plant(design, stimuli, asked, n_features=n_features)
    densities = draw_densities(rng, firing.density, n_features)
    obs = pd.concat([_rows(design, stimuli, region) for region in regions or _regions(stimuli)], ignore_index=True)
    shifts = [shift_for(e, densities, firing, default=shift) * planted[k] for k, e in enumerate(asked.values())]
    logs = [np.log(e.magnitude) * planted[k] for k, e in enumerate(asked.values())]
    place = stimuli.index.get_indexer(obs["stimulus"])  # pyright: ignore[reportArgumentType]
    drive, log = ((weights @ np.reshape(x, (len(asked), n_features)))[place] for x in (shifts, logs))
    X = fire(rng, _codes(design, obs), drive, densities=densities, firing=firing, log=log)
    provenance = {"simulated": True, "seed": seed, "shift": shift}
    names = np.array(["", *asked], dtype=object)
    var = features_table(densities, names[(planted * np.arange(1, len(names))[:, None]).sum(axis=0).astype(int)])
    return responses_of(sp.csr_matrix(X), obs, var, design=design, provenance=provenance)


def draw_densities(rng: np.random.Generator, density: Any, n_features: int) -> np.ndarray:
    """One density per feature: the same for all, drawn log-uniformly between two, or as given in an array."""
    if isinstance(density, np.ndarray):
        if density.shape != (n_features,):
            raise DataError(f"density has shape {density.shape}, but n_features is {n_features}; give one per feature.")
        return density.astype(float)
    low, high = (density, density) if isinstance(density, int | float) else density
    return np.exp(rng.uniform(np.log(low), np.log(high), n_features))


def shift_for(effect: Planted, densities: np.ndarray, firing: Firing, *, default: float = 0.0) -> np.ndarray:
    """Shift of the drive that gives the planted difference of densities, or the planted shift itself (m,).

    Solves Phi((x/2 - theta) / sd) - Phi((-x/2 - theta) / sd) = difference for x by bisection.
    """
    if effect.density is None:
        return np.full(len(densities), default if effect.shift is None else effect.shift)
    if not abs(effect.density) < 1:
        raise DataError(f"a planted difference of densities is {effect.density:g}; it lies between -1 and 1.")
    theta, low, high = -ndtri(densities), np.zeros(len(densities)), np.full(len(densities), 80.0)
    for _ in range(60):
        x = (low + high) / 2
        small = ndtr(x / 2 - theta) - ndtr(-x / 2 - theta) < abs(effect.density)
        low, high = np.where(small, x, low), np.where(small, high, x)
    return np.sign(effect.density) * firing.sd * (low + high) / 2


def _regions(stimuli: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_start") for name in stimuli.columns if name.endswith("_start")]


def _plant(design: Design, stimuli: pd.DataFrame, effects: Mapping[str, Planted], *, n_features: int):
    """Which feature carries which effect (n_effects, m), and the weight of every stimulus in it (n, n_effects)."""
    if (total := sum(effect.n for effect in effects.values())) > n_features:
        raise DataError(f"effects name {total} features, but n_features is {n_features}.")
    planted = np.zeros((len(effects), n_features))
    weights = np.ones((len(stimuli), len(effects)))
    start = 0
    for k, (name, effect) in enumerate(effects.items()):
        planted[k, start : start + effect.n] = 1
        start += effect.n
        for factor in name.split(":"):
            levels = list(choose("factor", factor, design.factors).levels)
            at = stimuli[factor].astype(str).to_numpy()
            weights[:, k] *= 1.0 * (at == levels[-1]) - 1.0 * (at == levels[0])
        weights[:, k] /= 2
    return planted, weights


def rows_of(design: Design, region: str) -> pd.DataFrame:
    """The `obs` of responses to a design at one region, one row per stimulus, without rows' names."""
    return _rows(design, expand(design), region)


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


def _codes(design: Design, obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Numbers of the item, item x cell, frame and frame x cell of every row."""
    levels = cast(Any, [obs[f].astype(str) for f in design.factors])
    codes = {}
    for name in ("item", "frame"):
        codes[name] = pd.factorize(obs[name].astype(str))[0]
        cells = obs[name].astype(str).str.cat(levels, sep="/")
        codes["cell" if name == "item" else "frame_cell"] = pd.factorize(cells)[0]
    return codes


def fire(
    rng: np.random.Generator,
    codes: Mapping[str, np.ndarray],
    drive: np.ndarray,
    *,
    densities: np.ndarray,
    firing: Firing,
    log: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Activations (n, m), float32, of n rows whose parts are numbered by `codes`, with the planted drive added."""
    n, m = drive.shape
    h = drive + _blocks(rng, (n, m), firing)
    for name, sd in firing.parts.items():
        h += sd * _blocks(rng, (codes[name].max() + 1, m), firing)[codes[name]]
    threshold = -ndtri(densities) * firing.sd
    size = firing.item_log_sd * rng.standard_normal((codes["item"].max() + 1, m))[codes["item"]]
    size += firing.log_sd * rng.standard_normal((n, m))
    return np.where(h > threshold, np.exp(size + log), 0.0).astype(np.float32)


def _blocks(rng: np.random.Generator, shape: tuple[int, int], firing: Firing) -> np.ndarray:
    """Standard normal (n, m); features of one block correlate."""
    n, m = shape
    shared = np.repeat(rng.standard_normal((n, -(-m // firing.block))), firing.block, axis=1)[:, :m]
    return np.sqrt(firing.correlation) * shared + np.sqrt(1 - firing.correlation) * rng.standard_normal((n, m))


def features_table(densities: np.ndarray, planted: np.ndarray, *, origin: np.ndarray | float = 0.0) -> pd.DataFrame:
    """The `var` of simulated responses; `planted` names what each feature carries, "" where nothing."""
    m = len(densities)
    var = pd.DataFrame({"feature": np.arange(m, dtype=np.int32)}, index=pd.Index([f"simulated/{j}" for j in range(m)]))
    for name, value in {"decoder_norm": 1.0, "threshold": 0.0, "density": densities, "origin": origin}.items():
        var[name] = np.broadcast_to(np.asarray(value, dtype=np.float32), (m,))
    return var.assign(planted=planted)


def responses_of(
    X: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    design: Design,
    provenance: Mapping[str, Any],
    x: np.ndarray | None = None,
) -> AnnData:
    """Name the rows, stimulus@token@region, and assemble the responses; `norm` is 1 where `obs` has none."""
    obs = obs if "norm" in obs else obs.assign(norm=np.float32(1.0))
    names = obs["stimulus"] + "@" + obs["token_index"].astype(str) + "@" + obs["region"].astype(str)
    obs = obs.set_index(pd.Index(names))
    obs.index.name = None
    return build_responses(X, obs, var, design=design, provenance=provenance, x=x)


def example_design(n_items: int = 24, *, between: bool = False, n_frames: int = 1) -> Design:
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
        places = ["near me", "over there", "on top", "far away", "down below", "next door", "up front", "back home"]
        names = ["plain", *(f"frame{t}" for t in range(1, n_frames))]
        made["factors"] = {"number": levels}
        made["frames"] = {f: f"The {{noun:number}} {places[t % 8]}" + " now" * (t // 8) for t, f in enumerate(names)}
        made["items"] = {f"item{i}": {"noun": {"sg": f"noun{i}", "pl": f"nouns{i}"}} for i in range(n_items)}
    return Design.model_validate(made)
