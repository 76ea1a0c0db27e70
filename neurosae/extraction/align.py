"""Alignment: rules that label rows by their position within a stimulus. Activations never move.

Rules are blind to conditions. What a rule cannot free from the length of a text or region it says in a warning, which
stays with the responses (`provenance["warnings"]`) and is repeated in the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from neurosae.errors import DataError, choose
from neurosae.extraction.cells import WHOLE, WINDOW
from neurosae.extraction.responses import (
    KEY,
    Responses,
    add_warnings,
    design_of,
    each_site,
    provenance_of,
    row_names,
    take_rows,
    with_provenance,
)

Window = Sequence[int] | None
# rows (numbers in obs), their new region and position, and the number of tokens of that region
Labels = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def align(responses: Responses, rule: str = "region", *, window: Window = None) -> Responses:
    """Label every row with a position, by one rule for all conditions.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}, as extracted
    rule : which token is position 0

        - `region`: the last token of the row's region; the one before it is -1
        - `start`, `end`: both, always as a pair: region r becomes `r@start` and `r@end`, position 0 is the first and
          the last token of r, and positions run over `window` (a token may have a row in each)
        - `middle_out`: p = t - floor((n - 1) / 2) for token t of the n tokens of the text, region `all`

    window : (low, high) around the two borders, for `start` and `end`; default (0, 0)

    Raises
    ------
    DataError
        If the rule needs tokens that were not extracted.
    """
    function = choose("alignment", rule, ALIGNMENTS)

    def one(adata):
        obs, first = adata.obs, int(provenance_of(adata).get("first_token", 0))
        rows, region, position, n_tokens = function(obs.assign(text_token=obs["token_index"] - first), window)
        old = [str(r) for r in obs["region"].cat.categories]
        labels = sorted(
            set(region.tolist()),
            key=lambda r: (old.index(r.removesuffix("@start").removesuffix("@end")), r.endswith("@end")),
        )
        new = obs.iloc[rows].assign(
            region=pd.Categorical(region, categories=labels),
            position=position.astype(np.int32),
            n_tokens=n_tokens.astype(np.int32),
        )
        out = take_rows(adata, rows, new.set_axis(row_names(new)))
        span = None if window is None else list(window)
        said = _warnings(rule, cast(pd.DataFrame, out.obs), _factors(adata))
        return add_warnings(with_provenance(out, alignment={"rule": rule, "window": span}), said)

    return each_site(responses, one)


def _by_region(obs: pd.DataFrame, window: Window) -> Labels:
    rows = np.flatnonzero((obs["region"] != WINDOW).to_numpy())
    kept = obs.iloc[rows]
    order = kept.groupby(["stimulus", "region"], observed=True, sort=False)["text_token"].rank(ascending=False)
    return rows, kept["region"].astype(str).to_numpy(), 1 - order.to_numpy(), kept["n_tokens"].to_numpy()


def _by_borders(obs: pd.DataFrame, window: Window) -> Labels:
    low, high = window or (0, 0)
    if low > high:
        raise DataError(f"positions.window: [{low}, {high}] is empty; write the smaller number first.")
    at = {
        (stimulus, token): row
        for row, stimulus, token in zip(range(len(obs)), obs["stimulus"], obs["text_token"], strict=True)
    }
    found: list[tuple[int, str, int, int]] = []
    plain = obs[(obs["region"] != WINDOW).to_numpy()]
    for (region, stimulus), span in plain.groupby(["region", "stimulus"], observed=True, sort=False):
        n, last = int(span["n_tokens"].iloc[0]), int(span["stimulus_tokens"].iloc[0]) - 1
        for name, border in (("start", span["text_token"].min()), ("end", span["text_token"].max())):
            for k in range(low, high + 1):
                if not 0 <= border + k <= last:
                    continue
                if (stimulus, border + k) not in at:
                    raise DataError(
                        f"align: token {k:+d} from the {name} of region '{region}' was not extracted; extract with "
                        f"`positions: {{align: {name}, window: [{low}, {high}]}}`."
                    )
                found.append((at[stimulus, border + k], f"{region}@{name}", k, n))
    rows, regions, positions, n_tokens = (np.array(column) for column in zip(*found, strict=True))
    order = np.lexsort((positions, rows))
    return rows[order], regions[order].astype(object), positions[order], n_tokens[order]


def _middle_out(obs: pd.DataFrame, window: Window) -> Labels:
    rows = np.flatnonzero((obs["region"] == WHOLE).to_numpy())
    if not len(rows):
        raise DataError("align: middle_out needs all tokens of a text; extract with `positions: {align: middle_out}`.")
    kept = obs.iloc[rows]
    n = kept["stimulus_tokens"].to_numpy()
    return rows, np.full(len(rows), WHOLE, dtype=object), kept["text_token"].to_numpy() - (n - 1) // 2, n


ALIGNMENTS: dict[str, Callable[[pd.DataFrame, Window], Labels]] = {
    "region": _by_region,
    "start": _by_borders,
    "end": _by_borders,
    "middle_out": _middle_out,
}


# --- warnings -------------------------------------------------------------------------------------------------------


def _factors(adata) -> dict[str, tuple[str, ...]]:
    if json.loads(adata.uns[KEY])["design"] is None:
        return {}
    return {name: factor.levels for name, factor in design_of(adata).factors.items()}


def _warnings(rule: str, obs: pd.DataFrame, factors: dict[str, tuple[str, ...]]) -> list[str]:
    if rule == "middle_out":
        return [
            f"middle-out index depends on length parity; Spearman(length, {factor}) = {r:+.2f}"
            for factor, r in _length_correlations(obs, factors, column="stimulus_tokens").items()
        ] or ["middle-out index depends on length parity"]
    return [
        f"region '{region}': length confounded with {factor} (Spearman r = {r:+.2f}): "
        "its number of tokens differs by condition"
        for region, rows in obs.groupby("region", observed=True, sort=False)
        for factor, r in _length_correlations(rows, factors, column="n_tokens").items()
        if abs(r) > 1e-9
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
