"""Data-driven alignment: one shift per stimulus, estimated without a look at conditions. Exploratory by nature.

Each stimulus has a trace: the summed activation at the tokens around the end of a region. With one template t for all
stimuli of all conditions, the shift of stimulus i is

    s_i = argmax over |s| <= L of sum_p (trace_i[p + s] - mean_i) (t[p] - mean t) / sd_i,

and the token at p + s_i is relabelled p. A template per condition, or one condition aligned to its own, makes effects
out of noise (family-wise error .99 where nothing differs), so neither can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import anndata
import numpy as np
import pandas as pd

from neurosae.errors import DataError, choose, unknown
from neurosae.extraction.cells import WINDOW

ROUNDS = 5  # template and shifts are estimated in turn at most so often
LEAST = 3  # positions that make a course
UNITS = ("stimulus", "item")


class Around(NamedTuple):
    """Rows at the tokens around one border of every region.

    Attributes
    ----------
    row : numbers in obs
    region, stimulus : of the border (a row of another region, or of none, may stand near it)
    offset : tokens from the border
    n_tokens : length of the region
    """

    row: np.ndarray
    region: np.ndarray
    stimulus: np.ndarray
    offset: np.ndarray
    n_tokens: np.ndarray


def around(obs: pd.DataFrame, span: tuple[int, int], border: str, *, remedy: str) -> Around:
    """Find the rows from span[0] to span[1] tokens around the `start` or `end` of each region in each stimulus.

    What lies outside the text is left out; what lies inside but was not extracted is refused with the remedy.
    """
    names, tokens = obs["stimulus"].astype(str), obs["text_token"]
    at = {cell: row for row, cell in enumerate(zip(names, tokens, strict=True))}
    found: list[tuple[int, str, str, int, int]] = []
    plain = obs[(obs["region"] != WINDOW).to_numpy()]
    for (region, stimulus), rows in plain.groupby(["region", "stimulus"], observed=True, sort=False):
        n, last = int(rows["n_tokens"].iloc[0]), int(rows["stimulus_tokens"].iloc[0]) - 1
        edge = int(rows["text_token"].min() if border == "start" else rows["text_token"].max())
        for k in range(span[0], span[1] + 1):
            if not 0 <= edge + k <= last:
                continue
            if (str(stimulus), edge + k) not in at:
                raise DataError(
                    f"align: token {k:+d} from the {border} of region '{region}' was not extracted; {remedy}."
                )
            found.append((at[str(stimulus), edge + k], str(region), str(stimulus), k, n))
    row, regions, stimuli, offset, n_tokens = (np.array(column) for column in zip(*found, strict=True))
    return Around(row, regions.astype(object), stimuli.astype(object), offset, n_tokens)


class Shifts(NamedTuple):
    """Shifts (n,) and the pooled template (n_positions,) that they were found with."""

    shift: np.ndarray
    template: np.ndarray


def estimate_shifts(
    traces: np.ndarray, max_shift: int, *, unit: np.ndarray | None = None, template: np.ndarray | None = None
) -> Shifts:
    """One shift per trace, to one template for all.

    Parameters
    ----------
    traces : (n, n_positions + 2 max_shift); nan where a stimulus has no token
    max_shift : largest |shift| in tokens
    unit : label of each trace; traces of one label share a shift (the sum of their cross-correlations decides);
        without, each has its own
    template : (n_positions,); without, the mean of all traces, estimated in turn with the shifts up to 5 times

    Returns
    -------
    Shifts; ties and constant traces give the smallest |shift|

    Examples
    --------
    >>> bump = np.exp(-0.5 * (np.arange(13) - 6.0) ** 2)
    >>> traces = np.array([bump, np.roll(bump, 2), np.roll(bump, -1), bump])
    >>> estimate_shifts(traces, 2).shift.tolist()
    [0, 2, -1, 0]
    """
    n, width = traces.shape
    n_positions = width - 2 * max_shift
    if n_positions < LEAST:
        raise DataError(f"a window of {n_positions} positions is too short for shifts; use at least {LEAST}.")
    codes = np.arange(n) if unit is None else np.unique(unit, return_inverse=True)[1]
    if template is not None:
        return Shifts(_best(traces, template, max_shift, codes=codes), template)
    shift = np.zeros(n, dtype=np.int64)
    template = _mean(_moved(traces, shift, max_shift))
    for _ in range(ROUNDS):
        before, shift = shift, _best(traces, template, max_shift, codes=codes)
        template = _mean(_moved(traces, shift, max_shift))
        if np.array_equal(before, shift):
            break
    return Shifts(shift, template)


def _moved(traces: np.ndarray, shift: np.ndarray, max_shift: int) -> np.ndarray:
    """Traces with the token at p + shift at p."""
    n_positions = traces.shape[1] - 2 * max_shift
    columns = max_shift + shift[:, None] + np.arange(n_positions)
    return np.take_along_axis(traces, columns, axis=1)


def _mean(traces: np.ndarray) -> np.ndarray:
    there = np.isfinite(traces)
    return np.where(there, traces, 0).sum(0) / np.maximum(there.sum(0), 1)


def _best(traces: np.ndarray, template: np.ndarray, max_shift: int, *, codes: np.ndarray) -> np.ndarray:
    lags = np.array(sorted(range(-max_shift, max_shift + 1), key=lambda s: (abs(s), s)))  # of equals the first wins
    there = np.isfinite(traces)
    mean = np.where(there, traces, 0).sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
    x = np.where(there, traces - mean, 0)  # a token that is not there speaks for no shift
    length = np.sqrt(np.square(x).sum(1, keepdims=True))
    near_zero = 1e-12 * np.sqrt(np.square(np.where(there, traces, 0)).sum(1, keepdims=True))
    x = np.where(length > near_zero, x, 0) / np.where(length > near_zero, length, 1)
    t = template - template.mean()
    score = np.array([_moved(x, np.full(len(x), s), max_shift) @ t for s in lags])
    pooled = np.array([np.bincount(codes, weights=row) for row in score])  # (lags, units)
    near = pooled >= pooled.max(axis=0) - 1e-12 * np.abs(t).sum()  # the same sum in another order of stimuli
    return lags[near.argmax(axis=0)][codes]


def warping_paths(traces: np.ndarray) -> list[np.ndarray]:
    """Dynamic time warping of every trace to the mean of all.

    The path from the first pair of positions to the last, by steps (1, 0), (0, 1), (1, 1), with the smallest sum of
    squared differences between the standardised trace and template; a diagonal step counts twice, so that all paths
    have the same total weight and the cost may be divided by it (symmetric normalisation).

    Parameters
    ----------
    traces : (n, n_positions); positions without a token (nan) are never matched

    Returns
    -------
    for each trace an integer array (steps, 2): position in the trace, position in the template

    Notes
    -----
    Sakoe and Chiba (1978), Dynamic programming algorithm optimization for spoken word recognition.

    Examples
    --------
    >>> [path.tolist() for path in warping_paths(np.array([[0.0, 0, 1], [0, 1, 1], [0, 1, 1]]))][0]
    [[0, 0], [1, 0], [1, 1], [2, 2]]
    """
    template = _standard(_mean(traces))
    seen = np.isfinite(traces).any(axis=0)
    return [_path(trace, np.where(seen, template, np.nan)) for trace in traces]


def _standard(values: np.ndarray) -> np.ndarray:
    spread = np.nanstd(values)
    return (values - np.nanmean(values)) / (spread if spread > 0 else 1)


def _path(trace: np.ndarray, template: np.ndarray) -> np.ndarray:
    there, wanted = np.flatnonzero(np.isfinite(trace)), np.flatnonzero(np.isfinite(template))
    cost = np.subtract.outer(_standard(trace[there]), template[wanted]) ** 2
    total = np.full((len(there) + 1, len(wanted) + 1), np.inf)
    total[0, 0] = 0
    back = np.zeros(cost.shape, dtype=np.int64)
    for i in range(len(there)):
        for j in range(len(wanted)):
            ways = total[i, j] + 2 * cost[i, j], total[i, j + 1] + cost[i, j], total[i + 1, j] + cost[i, j]
            back[i, j] = int(np.argmin(ways))
            total[i + 1, j + 1] = ways[back[i, j]]
    i, j, path = len(there) - 1, len(wanted) - 1, []
    while i >= 0 and j >= 0:
        path.append((there[i], wanted[j]))
        step = back[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return np.array(path[::-1])


# --- traces of responses --------------------------------------------------------------------------------------------


def check_conditions(obs: pd.DataFrame, factors: Mapping[str, tuple[str, ...]], rule: str) -> None:
    """Refuse a part of the conditions: their shifts would be estimated apart from those of the others."""
    for name, levels in factors.items():
        lost = [level for level in levels if level not in set(obs[name].astype(str))] if name in obs else []
        if lost:
            raise DataError(
                f"align: {rule} needs all conditions at once, but {name} has no {', '.join(lost)} here; a template for "
                "some conditions only makes differences out of noise. Give the responses of all conditions."
            )


def traces_of(found: Mapping[str, np.ndarray], where: Around, span: tuple[int, int]) -> tuple[np.ndarray, pd.DataFrame]:
    """Traces (n, positions) of every stimulus at every region, the sites' sums scaled to sd 1 and added.

    Parameters
    ----------
    found : for each site the activation of every row of obs, summed over features
    where : the rows around each region's end

    Returns
    -------
    traces, and a table with `region` and `stimulus`, one row per trace
    """
    pairs = pd.MultiIndex.from_arrays([where.region, where.stimulus])
    codes, names = pd.factorize(pairs)
    traces = np.full((len(names), span[1] - span[0] + 1), np.nan)
    total = np.zeros(len(where.row))
    for values in found.values():
        near = values[where.row].astype(float)
        spread = near.std()
        total += near / (spread if spread > 0 else 1)
    traces[codes, where.offset - span[0]] = total
    return traces, pd.DataFrame([tuple(n) for n in names], columns=["region", "stimulus"])


def activity(adata: anndata.AnnData, features: tuple[int, ...] | None = None) -> np.ndarray:
    """|Activation| of every row, summed over all features or over the named ones."""
    X: Any = adata.X if features is None else cast(Any, adata.X)[:, columns_of(adata, features)]
    return np.asarray(abs(X).sum(axis=1)).ravel()


def columns_of(adata: anndata.AnnData, features: tuple[int, ...]) -> np.ndarray:
    """Columns of named features; refused if one does not exist."""
    found = pd.Index(adata.var["feature"]).get_indexer(list(features))  # pyright: ignore[reportArgumentType]
    if (found < 0).any():
        lost = features[int(np.flatnonzero(found < 0)[0])]
        raise DataError(f"positions.reference: there is no feature {lost}; features run from 0 to {adata.n_vars - 1}.")
    return found


def check_reference(sites: Mapping[str, anndata.AnnData], reference: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse reference features of unknown sites, and those that never fire."""
    if not any(reference.values()):
        raise DataError("align: reference needs features that no test uses; give reference: {site: [feature, ...]}.")
    for site, features in reference.items():
        if site not in sites:
            raise DataError("positions.reference: " + unknown("site", site, sites))
        X: Any = sites[site].X
        count = np.asarray((X[:, columns_of(sites[site], features)] != 0).sum(axis=0)).ravel()
        if dead := [f for f, c in zip(features, count, strict=True) if c == 0]:
            raise DataError(
                f"positions.reference: feature {dead[0]} of site '{site}' is active nowhere in these responses; "
                "name features that fire near the region."
            )


def unit_labels(traces: pd.DataFrame, obs: pd.DataFrame, unit: str) -> np.ndarray | None:
    """Which traces of a region share a shift: None for each its own, else the items of their stimuli."""
    choose("shift_unit", unit, dict.fromkeys(UNITS))
    if unit == "stimulus":
        return None
    item = obs.drop_duplicates("stimulus").set_index("stimulus")["item"].astype(str)
    return item.reindex(traces["stimulus"]).to_numpy(dtype=object).astype(str)
