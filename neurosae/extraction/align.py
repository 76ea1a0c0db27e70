"""Alignment: rules that label rows by their position within a stimulus. Activations never move, but for `dtw`.

Rules are blind to conditions. What a rule cannot free from the length of a text or region it says in a warning, which
stays with the responses (`provenance["warnings"]`) and is repeated in the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import spearmanr

from neurosae.errors import DataError, choose
from neurosae.extraction.cells import WHOLE, WINDOW
from neurosae.extraction.responses import (
    KEY,
    Responses,
    add_warnings,
    design_of,
    provenance_of,
    row_names,
    take_rows,
    with_provenance,
)
from neurosae.extraction.shifts import (
    activity,
    around,
    check_conditions,
    check_reference,
    columns_of,
    estimate_shifts,
    traces_of,
    unit_labels,
    warping_paths,
)

Window = Sequence[int] | None
Sites = Mapping[str, anndata.AnnData]
NOT_EVIDENCE = "peak height, latency and shape after data-driven shifts are not evidence"


class Asked(NamedTuple):
    """What `align` was asked for."""

    rule: str
    window: Window
    max_shift: int
    unit: str
    reference: Mapping[str, tuple[int, ...]]

    @property
    def span(self) -> tuple[int, int]:
        """First and last position."""
        low, high = self.window or (0, 0)
        if low > high:
            raise DataError(f"positions.window: [{low}, {high}] is empty; write the smaller number first.")
        return int(low), int(high)


class Labels(NamedTuple):
    """Rows (numbers in obs), their new region and position, the number of tokens of that region, and their shift.

    `weights` (rows, old rows) averages activations where a rule does more than relabel; None where rows are kept.
    """

    rows: np.ndarray
    region: np.ndarray
    position: np.ndarray
    n_tokens: np.ndarray
    shift: np.ndarray | None = None
    weights: sp.csr_matrix | None = None


def align(
    responses: Responses,
    rule: str = "region",
    *,
    window: Window = None,
    max_shift: int = 3,
    shift_unit: str = "stimulus",
    reference: Mapping[str, Sequence[int]] | None = None,
) -> Responses:
    """Label every row with a position, by one rule for all conditions.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}, as extracted
    rule : which token is position 0

        - `region`: the last token of the row's region; the one before it is -1
        - `start`, `end`: both, always as a pair: region r becomes `r@start` and `r@end`, position 0 is the first and
          the last token of r, and positions run over `window` (a token may have a row in each)
        - `middle_out`: p = t - floor((n - 1) / 2) for token t of the n tokens of the text, region `all`
        - `xcorr` (exploratory): the last token of the region, moved by the stimulus's shift (column `shift`) towards
          one template, the mean over all stimuli of all conditions and sites
        - `reference`: as `xcorr`, but the shifts come from `reference` features, which are removed from the result, so
          that no test can use them; they must have been chosen on other items
        - `dtw` (figures only): activations warped to the pooled template; tests refuse them

    window : (low, high) around the borders, for all but `region` and `middle_out`; default (0, 0)
    max_shift : largest shift, in tokens
    shift_unit : `stimulus`, or `item`: the same shift for all cells and frames of an item, the strictest
    reference : {site: features}, for `reference`

    Raises
    ------
    DataError
        If the rule needs tokens that were not extracted, or conditions or features that are not there.
    """
    function = choose("alignment", rule, ALIGNMENTS)
    given = {site: tuple(features) for site, features in (reference or {}).items()}
    if given and rule != "reference":
        raise DataError(f"align: {rule} takes no reference features; use align: reference.")
    asked = Asked(rule, window, max_shift, shift_unit, given)
    alone = isinstance(responses, anndata.AnnData)
    sites: Sites = {next(iter(given), "responses"): responses} if alone else responses  # type: ignore[dict-item]
    labels = function(sites, asked)
    made = {site: _relabelled(adata, labels[site], asked, site=site) for site, adata in sites.items()}
    return next(iter(made.values())) if alone else made  # type: ignore[return-value]


def _relabelled(adata: anndata.AnnData, labels: Labels, asked: Asked, *, site: str) -> anndata.AnnData:
    obs = cast(pd.DataFrame, adata.obs)
    old = [str(r) for r in obs["region"].cat.categories]
    known = sorted(
        set(labels.region.tolist()),
        key=lambda r: (old.index(r.removesuffix("@start").removesuffix("@end")), r.endswith("@end")),
    )
    new = obs.iloc[labels.rows].assign(
        region=pd.Categorical(labels.region, categories=known),
        position=labels.position.astype(np.int32),
        n_tokens=labels.n_tokens.astype(np.int32),
        **({} if labels.shift is None else {"shift": labels.shift.astype(np.int32)}),
    )
    # a warped token may stand for several positions
    names = row_names(new) if labels.weights is None else row_names(new) + "@" + new["position"].astype(str).to_numpy()
    out = take_rows(adata, labels.rows, new.set_axis(pd.Index(names, dtype=object)))
    record: dict[str, Any] = {"rule": asked.rule, "window": None if asked.window is None else list(asked.window)}
    if asked.rule in DATA_DRIVEN:
        record |= {"max_shift": asked.max_shift, "unit": asked.unit}
        record["reference"] = {name: list(features) for name, features in asked.reference.items()}
    if kept := asked.reference.get(site):
        out = out[:, np.setdiff1d(np.arange(out.n_vars), columns_of(out, kept))].copy()
    if labels.weights is not None:
        out.X = sp.csr_matrix(labels.weights @ cast(Any, adata.X), dtype=np.float32)
        if "x" in adata.obsm:
            out.obsm["x"] = (labels.weights @ np.asarray(adata.obsm["x"])).astype(np.float32)
        record["inference"] = "forbidden"
    factors = _factors(adata)
    said = _warnings(asked, cast(pd.DataFrame, out.obs), factors)
    return add_warnings(with_provenance(out, alignment=record), said)


# --- rules ----------------------------------------------------------------------------------------------------------


def _each(rule: Callable[[pd.DataFrame, Asked], Labels]) -> Callable[[Sites, Asked], dict[str, Labels]]:
    """A rule that looks at the rows of one site at a time."""
    return lambda sites, asked: {site: rule(_text_obs(adata), asked) for site, adata in sites.items()}


def _text_obs(adata: anndata.AnnData) -> pd.DataFrame:
    """Rows with `text_token`: the number of the token in its text, specials not counted."""
    obs, first = cast(pd.DataFrame, adata.obs), int(provenance_of(adata).get("first_token", 0))
    return obs.assign(text_token=obs["token_index"] - first)


def _by_region(obs: pd.DataFrame, asked: Asked) -> Labels:
    rows = np.flatnonzero((obs["region"] != WINDOW).to_numpy())
    kept = obs.iloc[rows]
    order = kept.groupby(["stimulus", "region"], observed=True, sort=False)["text_token"].rank(ascending=False)
    return Labels(rows, kept["region"].astype(str).to_numpy(), 1 - order.to_numpy(), kept["n_tokens"].to_numpy())


def _by_borders(obs: pd.DataFrame, asked: Asked) -> Labels:
    remedy = f"extract with `positions: {{align: {asked.rule}, window: {list(asked.span)}}}`"
    both = [around(obs, asked.span, border, remedy=remedy) for border in ("start", "end")]
    regions = [near.region + f"@{border}" for near, border in zip(both, ("start", "end"), strict=True)]
    rows, position, n_tokens = (
        np.concatenate([getattr(near, name) for near in both]) for name in ("row", "offset", "n_tokens")
    )
    order = np.lexsort((position, rows))
    return Labels(rows[order], np.concatenate(regions)[order], position[order], n_tokens[order])


def _middle_out(obs: pd.DataFrame, asked: Asked) -> Labels:
    rows = np.flatnonzero((obs["region"] == WHOLE).to_numpy())
    if not len(rows):
        raise DataError("align: middle_out needs all tokens of a text; extract with `positions: {align: middle_out}`.")
    kept = obs.iloc[rows]
    n = kept["stimulus_tokens"].to_numpy()
    whole = np.full(len(rows), WHOLE, dtype=object)
    return Labels(rows, whole, kept["text_token"].to_numpy() - (n - 1) // 2, n)


def _by_shift(sites: Sites, asked: Asked) -> dict[str, Labels]:
    """`xcorr` and `reference`: one shift per stimulus and region, the same at all sites."""
    obs, near, reach = _near_ends(sites, asked)
    if asked.rule == "reference":
        check_reference(sites, asked.reference)
        found = {site: activity(sites[site], features) for site, features in asked.reference.items()}
    else:
        found = {site: activity(adata) for site, adata in sites.items()}
    traces, names = traces_of(found, near, reach)
    shift = np.zeros(len(names), dtype=np.int64)
    for _, rows in names.groupby("region", sort=False).indices.items():
        units = unit_labels(names.iloc[rows], obs, asked.unit)
        shift[rows] = estimate_shifts(traces[rows], asked.max_shift, unit=units).shift
    of = dict(zip(zip(names["region"], names["stimulus"], strict=True), shift, strict=True))
    moved = np.array([of[key] for key in zip(near.region, near.stimulus, strict=True)])
    position = near.offset - moved
    kept = np.flatnonzero((asked.span[0] <= position) & (position <= asked.span[1]))
    kept = kept[np.lexsort((position[kept], near.row[kept]))]
    labels = Labels(near.row[kept], near.region[kept], position[kept], near.n_tokens[kept], moved[kept])
    return dict.fromkeys(sites, labels)


def _by_warping(sites: Sites, asked: Asked) -> dict[str, Labels]:
    """`dtw`: what a stimulus does at a position is the mean over the tokens that the path matches with it."""
    obs, near, reach = _near_ends(sites, asked)
    traces, names = traces_of({site: activity(adata) for site, adata in sites.items()}, near, reach)
    row_at = np.full(traces.shape, -1)
    code = {key: i for i, key in enumerate(zip(names["region"], names["stimulus"], strict=True))}
    trace = np.array([code[key] for key in zip(near.region, near.stimulus, strict=True)])
    row_at[trace, near.offset - reach[0]] = np.arange(len(near.row))
    out: list[tuple[int, int, np.ndarray]] = []  # trace, position, the numbers in `near` that are averaged there
    for rows in names.groupby("region", sort=False).indices.values():
        for i, path in zip(rows, warping_paths(traces[rows]), strict=True):
            out += [(i, p, row_at[i, path[path[:, 1] == p, 0]]) for p in np.unique(path[:, 1])]
    weights = sp.lil_matrix((len(out), len(obs)))
    for n, (_, _, at) in enumerate(out):
        weights[n, near.row[at]] = 1 / len(at)
    last = np.array([at[-1] for _, _, at in out])
    position = np.array([p for _, p, _ in out]) + reach[0]
    labels = Labels(near.row[last], near.region[last], position, near.n_tokens[last], weights=sp.csr_matrix(weights))
    return dict.fromkeys(sites, labels)


def _near_ends(sites: Sites, asked: Asked) -> tuple[pd.DataFrame, Any, tuple[int, int]]:
    """The rows around the regions' ends, wide enough for the shifts; the sites must have the same rows."""
    first = next(iter(sites.values()))
    obs = _text_obs(first)
    for site, adata in sites.items():
        if not np.array_equal(adata.obs_names, first.obs_names):
            raise DataError(f"align: {asked.rule} needs the same rows at every site; those of '{site}' differ.")
    check_conditions(obs, _factors(first), asked.rule)
    extra = asked.max_shift if asked.rule != "dtw" else 0
    reach = asked.span[0] - extra, asked.span[1] + extra
    given = f"align: {asked.rule}, window: {list(asked.span)}" + (f", max_shift: {extra}" if extra else "")
    return obs, around(obs, reach, "end", remedy=f"extract with `positions: {{{given}}}`"), reach


ALIGNMENTS: dict[str, Callable[[Sites, Asked], dict[str, Labels]]] = {
    "region": _each(_by_region),
    "start": _each(_by_borders),
    "end": _each(_by_borders),
    "middle_out": _each(_middle_out),
    "xcorr": _by_shift,
    "reference": _by_shift,
    "dtw": _by_warping,
}
DATA_DRIVEN = ("xcorr", "reference", "dtw")


# --- warnings -------------------------------------------------------------------------------------------------------


def _factors(adata) -> dict[str, tuple[str, ...]]:
    if json.loads(adata.uns[KEY])["design"] is None:
        return {}
    return {name: factor.levels for name, factor in design_of(adata).factors.items()}


def _warnings(asked: Asked, obs: pd.DataFrame, factors: dict[str, tuple[str, ...]]) -> list[str]:
    if asked.rule == "middle_out":
        return [
            f"middle-out index depends on length parity; Spearman(length, {factor}) = {r:+.2f}"
            for factor, r in _length_correlations(obs, factors, column="stimulus_tokens").items()
        ] or ["middle-out index depends on length parity"]
    return _about_shifts(asked, obs) + [
        f"region '{region}': length confounded with {factor} (Spearman r = {r:+.2f}): "
        "its number of tokens differs by condition"
        for region, rows in obs.groupby("region", observed=True, sort=False)
        for factor, r in _length_correlations(rows, factors, column="n_tokens").items()
        if abs(r) > 1e-9
    ]


def _about_shifts(asked: Asked, obs: pd.DataFrame) -> list[str]:
    """What data-driven rules must say, with how far stimuli were moved."""
    if asked.rule == "dtw":
        return [f"dtw: positions are warped, for figures only; no test is made on them, and {NOT_EVIDENCE}"]
    if asked.rule not in DATA_DRIVEN:
        return []
    once = obs.drop_duplicates(["stimulus", "region"])["shift"]
    moved = f"{(once != 0).mean():.0%} of stimuli were moved, {(abs(once) == asked.max_shift).mean():.0%} to the limit"
    if asked.rule == "xcorr":
        return [f"xcorr (exploratory): {NOT_EVIDENCE}; {moved} of {asked.max_shift} tokens"]
    named = "; ".join(f"{', '.join(map(str, f))} of {site}" for site, f in asked.reference.items())
    return [
        f"reference: shifts come from features {named}, which are left out of every test and must have been chosen on "
        f"other items; {moved} of {asked.max_shift} tokens"
    ]


def _length_correlations(obs: pd.DataFrame, factors: dict[str, tuple[str, ...]], *, column: str) -> dict[str, float]:
    """Spearman correlation, over stimuli, of a length with the level of each factor (in the design's order)."""
    once = obs.drop_duplicates("stimulus")
    length = once[column].to_numpy()
    out = {}
    for factor, levels in factors.items():
        if factor not in once:
            continue
        code = once[factor].astype(str).map({level: i for i, level in enumerate(levels)}).to_numpy(dtype=float)
        constant = len(np.unique(length)) < 2 or len(np.unique(code)) < 2
        found = None if constant else cast(Any, spearmanr(length, code))
        out[factor] = 0.0 if found is None else float(found.statistic)
    return out
