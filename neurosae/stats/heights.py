"""Maps of a contrast under synchronised relabellings: the height of every cell, and what the whole map makes of it.

Relabelling b is the same for every cell. The height of a cell is its t where every cell has one number per item and all
degrees of freedom are equal; otherwise the normal equivalent z, so that cells can be compared. A cell of m > 1 features
shows the strongest, and cluster mass and TFCE use, in either direction,

    h = Phi^-1((1 - p)^m),   p the one-sided p of the strongest feature:

Sidak's correction for having taken the strongest of m. It makes cells of many and of few features comparable, and it is
the same monotone function in every relabelling, so the test stays exact. The two directions are maps of their own:
clusters of positive and of negative heights are separate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.results import TOLERANCE, counted_p
from neurosae.stats import kernels
from neurosae.stats.family import Cell, negated, relabel_cells
from neurosae.stats.flips import Columns, each_tile, take, to_t, to_z
from neurosae.stats.relabel import Relabelling
from neurosae.stats.statistics import STATISTICS, Ready
from neurosae.stats.tfce import Graph, cluster_maxima, clusters, tfce, tfce_maxima

FORMING = 0.05  # two-sided level of the t above which cells may form a cluster
STEEPEST = 1 - 1e-6  # |u| beyond which t = u sqrt(df / (1 - u^2)) has no digits left
LOWEST = -40.0  # lower heights are as good as this one: only positive ones enter clusters and TFCE


class Nodes(NamedTuple):
    """What a map is tested on: the tested cells, the node of each, and the graph of all nodes, untested ones included.

    A node without a cell is missing: it is in no cluster and joins none.
    """

    cells: Sequence[Cell]
    place: np.ndarray
    graph: Graph


class Cluster(NamedTuple):
    """A cluster: its cells, its highest one, its mass (with its sign) and its p over the map."""

    cells: np.ndarray
    peak: int
    mass: float
    p: float


@dataclass(frozen=True)
class Field:
    """A tested map; arrays have one entry per tested cell.

    Attributes
    ----------
    ready : statistics of the features of each cell;  relabellings : of each cell, equal in number
    strongest : place of the strongest feature among those of its cell
    height : signed height;  scale : "t" or "z";  threshold : height above which cells form clusters, nan without
    score : signed value that p_corr is about: the height (maxT) or TFCE; nan for clusters, whose cells have no p
    p_unc : p of a cell by itself: the strongest of its features against their own maximum
    p_corr : p over the map
    clusters : the largest mass first
    null_max : float32 (n_permutations,), maximum over the map; on the z scale for maxT
    """

    ready: list[Ready]
    relabellings: list[Relabelling]
    strongest: np.ndarray
    height: np.ndarray
    scale: str
    threshold: float
    score: np.ndarray
    p_unc: np.ndarray
    p_corr: np.ndarray
    clusters: list[Cluster]
    null_max: np.ndarray


class _Side(NamedTuple):
    """One cell in one direction: its columns in kernel order, what they are relabelled by, and u -> height."""

    columns: Columns
    relabelling: Relabelling
    height: Callable[[np.ndarray], np.ndarray]


def infer_map(nodes: Nodes, statistic: str, inference: Inference, *, seed: int, split: str) -> Field:
    """Test a whole map under the same relabellings.

    Parameters
    ----------
    nodes : tested cells and their graph
    statistic : key of MAPS
    inference : its `statistic` is computed for every feature, its `alternative` says which directions count
    seed, split : decide the relabellings, as in every other test on these items

    Raises
    ------
    DataError
        A statistic in activation units, in which sites cannot be compared; a direction of one that has no sign.
    """
    ready = [STATISTICS[inference.statistic](cell.data, cell.kept) for cell in nodes.cells]
    _check(ready, inference)
    rules = inference.model_copy(update={"correction": "maxT"})
    relabellings, columns = relabel_cells(nodes.cells, ready, rules, seed=seed, split=split)
    scale, df = _scale(columns)
    signs, sides = _sides(columns, relabellings, scale, strongest=statistic == "maxT", which=inference.alternative)
    one_sided = inference.alternative != "two-sided"
    threshold = float((stats.norm if np.isinf(df) else stats.t(df)).isf(FORMING if one_sided else FORMING / 2))
    seen = [np.array([side.height(side.columns.u).max() for side in cells]) for cells in sides]
    own = np.maximum.reduce(seen)
    whole = partial(MAPS[statistic], graph=nodes.graph, threshold=threshold)
    limit = own - TOLERANCE * (1 + np.abs(own))
    tiles = each_tile(partial(_tile, sides, nodes, whole=whole, limit=limit), relabellings[0])
    null = np.concatenate([top for top, _ in tiles])
    scores = [_scores(statistic, _spread(one, nodes), nodes) for one in seen]
    chosen = _larger(seen if statistic == "cluster" else scores, seen)
    sign = signs[chosen]
    height = np.choose(chosen, seen)
    several = np.array([len(c.u) > 1 for c in columns]) & (statistic != "maxT")
    score, directions = np.choose(chosen, scores), zip(signs, seen, strict=True)
    return Field(
        ready=ready,
        relabellings=relabellings,
        strongest=np.array([int((s * c.u).argmax()) for s, c in zip(sign, columns, strict=True)]),
        height=sign * np.where(several, np.maximum(height, 0), height),
        scale=scale,
        threshold=threshold if statistic == "cluster" else np.nan,
        score=sign * score,
        p_unc=np.sum([reached for _, reached in tiles], axis=0) / len(null),
        p_corr=counted_p(null, score),
        clusters=_clusters(nodes, directions, null, threshold=threshold) if statistic == "cluster" else [],
        null_max=(_to_z(null, df) if statistic == "maxT" else null).astype(np.float32),
    )


def _check(ready: Sequence[Ready], inference: Inference) -> None:
    if inference.statistic == "mean":
        raise DataError("a map compares cells, and a mean is in its own cell's units; use statistic t or moderated_t.")
    if len({r.columns.how.negate is None for r in ready}) > 1:
        raise DataError("effects with and without a sign cannot share a map; give {factor: all} a test of its own.")
    if inference.alternative != "two-sided" and any(r.columns.how.negate is None for r in ready):
        raise DataError(
            f"{ready[0].name} has no sign, so alternative {inference.alternative} means nothing for it; use two-sided."
        )


def _scale(columns: Sequence[Columns]) -> tuple[str, float]:
    """Scale t where every cell has one column and all have the same degrees of freedom; else z, df infinite."""
    plain = all(len(c.u) == 1 and c.how.to_value is to_t and c.how.to_z is to_z for c in columns)
    same = len({c.df for c in columns}) == 1
    return ("t", columns[0].df) if plain and same and np.isfinite(columns[0].df) else ("z", np.inf)


def _to_z(height: np.ndarray, df: float) -> np.ndarray:
    return to_z(height if np.isinf(df) else height / np.sqrt(df + height**2), df)


def _sides(
    columns: Sequence[Columns], relabellings: Sequence[Relabelling], scale: str, *, strongest: bool, which: str
) -> tuple[np.ndarray, list[list[_Side]]]:
    """The directions that count, +1 or -1, and the cells of each.

    strongest : the height is that of the strongest feature as it is, without Sidak's correction
    """
    unsigned = columns[0].how.negate is None
    signs = {"two-sided": [1] if unsigned else [1, -1], "greater": [1], "less": [-1]}[which]
    out = []
    for sign in signs:
        cells = []
        for c, relabelling in zip(columns, relabellings, strict=True):
            turned = c if sign > 0 else negated(c)
            m = 1 if strongest else len(c.u)
            height = partial(_t_height, c.df) if scale == "t" else partial(_z_height, c, m, unsigned=unsigned)
            cells.append(_Side(take(turned, c.how.order(turned)), relabelling, height))
        out.append(cells)
    return np.array(signs), out


def _t_height(df: float, u: np.ndarray) -> np.ndarray:
    return to_t(np.clip(u, -STEEPEST, STEEPEST), df)


def _z_height(columns: Columns, m: int, u: np.ndarray, *, unsigned: bool) -> np.ndarray:
    """z, or for the strongest of m features the z whose tail is 1 - (1 - p)^m; both tails where u has no sign."""
    z = columns.how.to_z(u, columns.df)
    if m == 1:
        return z
    tails = np.log(2.0) if unsigned else 0.0
    log_p = np.minimum(special.log_ndtr(-z) + tails, 0.0)
    p = np.exp(log_p)
    with np.errstate(divide="ignore"):  # p = 1: the height is -inf, and then LOWEST
        log_cell = np.where(p < 1e-300, log_p + np.log(m), np.log(-np.expm1(m * np.log1p(-p))))
        return np.maximum(-special.ndtri_exp(log_cell - tails), LOWEST)


def _tile(
    sides: Sequence[Sequence[_Side]], nodes: Nodes, first: int, *, whole: Callable[..., np.ndarray], limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One tile of relabellings: the maxima over the map (lanes,), and how often each cell reaches its own limit."""
    top, best, up = None, None, None
    for cells in sides:
        if up is None or any(len(side.columns.u) > 1 for side in cells):
            heights = np.stack([_lanes(side, first) for side in cells], axis=1)
        else:
            heights = -up  # one column per cell: the other direction is its mirror image
        up = heights if up is None else up
        best = heights if best is None else np.maximum(best, heights)
        reached = whole(_spread(heights, nodes))
        top = reached if top is None else np.maximum(top, reached)
    assert top is not None
    assert best is not None
    return top, (best >= limit).sum(axis=0)


def _lanes(side: _Side, first: int) -> np.ndarray:
    """Height of one cell under the relabellings of a tile: its largest feature, in this direction."""
    lanes, m = min(kernels.LANES, side.relabelling.n - first), len(side.columns.u)
    never = np.full(m, np.inf)
    top, _ = side.columns.how.tile(side.columns, side.relabelling, first, two_sided=False, prune=True, limit=never)
    return side.height(np.asarray(top[:lanes], dtype=np.float64))


def _spread(heights: np.ndarray, nodes: Nodes) -> np.ndarray:
    """Heights of the tested cells at their nodes, nan elsewhere."""
    out = np.full((*heights.shape[:-1], nodes.graph.n), np.nan)
    out[..., nodes.place] = heights
    return out


def _scores(statistic: str, heights: np.ndarray, nodes: Nodes) -> np.ndarray:
    """What p_corr of the cells is about, in one direction."""
    if statistic == "cluster":
        return np.full(len(nodes.place), np.nan)
    scores = heights if statistic == "maxT" else tfce(np.maximum(heights, 0), nodes.graph)
    return scores[nodes.place]


def _larger(values: Sequence[np.ndarray], ties: Sequence[np.ndarray]) -> np.ndarray:
    """Number of the direction in which each cell is larger."""
    if len(values) == 1:
        return np.zeros(len(values[0]), dtype=int)
    return ((values[1] > values[0]) | ((values[1] == values[0]) & (ties[1] > ties[0]))).astype(int)


def _clusters(nodes: Nodes, directions, null: np.ndarray, *, threshold: float) -> list[Cluster]:
    """Clusters of either direction with their p, the largest mass first."""
    cell = np.full(nodes.graph.n, -1)
    cell[nodes.place] = np.arange(len(nodes.place))
    out = []
    for sign, heights in directions:
        found = clusters(np.maximum(_spread(heights, nodes), 0), nodes.graph, threshold)
        for number, mass in enumerate(found.mass, start=1):
            members = cell[found.label == number]
            peak = int(members[heights[members].argmax()])
            out.append(Cluster(members, peak, float(sign * mass), float(counted_p(null, np.array([mass]))[0])))
    return sorted(out, key=lambda one: -abs(one.mass))


# ------------------------------------------------------------------ what a map is tested by


def _highest(heights: np.ndarray, *, graph: Graph, threshold: float) -> np.ndarray:
    del graph, threshold
    return np.nanmax(heights, axis=1)


def _heaviest(heights: np.ndarray, *, graph: Graph, threshold: float) -> np.ndarray:
    return cluster_maxima(heights, graph, threshold, two_sided=False)


def _most_enhanced(heights: np.ndarray, *, graph: Graph, threshold: float) -> np.ndarray:
    del threshold
    return tfce_maxima(heights, graph, two_sided=False)


MAPS: Mapping[str, Callable[..., np.ndarray]] = {"maxT": _highest, "cluster": _heaviest, "tfce": _most_enhanced}
"""Map statistic -> heights (n_maps, n_nodes) of one direction -> maxima (n_maps,)."""
