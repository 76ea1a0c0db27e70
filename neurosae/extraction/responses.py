"""Responses: what the features of one site did at the wanted tokens, as one AnnData per site.

Rows are stimulus x position (ragged, so alignment only relabels), columns are features of one dictionary:

| part | content |
|---|---|
| `X` | CSR float32 (rows, features): activations after the nonlinearity |
| `obs` | `stimulus item frame split`, factors, covariates, labels, `region token`, and the numbers named below |
| `var` | `feature decoder_norm threshold density origin` |
| `obsm["x"]` | optional float32 (rows, d_model): the raw stream |
| `uns["neurosae"]` | one JSON string: provenance and the design |

`token_index` counts the ids given to the model (a leading BOS is 0 and never a row), `n_tokens` the tokens of the
row's region, `stimulus_tokens` those of its text, specials excluded. A token of two regions has one row for each.
`norm` is the length of the raw stream vector, `ln_scale` the scale of the normalisation that comes next, `surprisal` is
in bits, `logit_diff` (target minus foil) is one value per stimulus, `n_active` and `sum_active` describe X,
`recon_error` is the length of the raw vector minus its reconstruction; `position` is set by alignment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError, choose, unknown
from neurosae.spec.design import Design

KEY = "neurosae"
OBS = {"stimulus": "O", "item": "O", "frame": None, "split": None, "region": None, "token": "O"}
OBS |= {name: "i" for name in ("token_index", "position", "n_tokens", "stimulus_tokens")}
OBS |= {name: "f" for name in ("norm", "surprisal", "logit_diff")}
VAR = {"feature": "i", "decoder_norm": "f", "threshold": "f", "density": "f", "origin": "f"}

Responses = TypeVar("Responses", anndata.AnnData, "Mapping[str, anndata.AnnData]")


def build_responses(
    X: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    design: Design | None,
    provenance: Mapping[str, Any],
    x: np.ndarray | None = None,
) -> anndata.AnnData:
    """Assemble and check one site's responses.

    Parameters
    ----------
    X : CSR float32 of shape (n_rows, n_features), activation units
    obs, var : one row per stimulus x position, one per feature; columns as in the module docstring
    design : the design behind the stimuli, from which every test derives what may be exchanged; None where unknown
    provenance : JSON-able record of model, dictionary, dtype, warnings and so on
    x : optional float32 of shape (n_rows, d_model), the raw stream at the same cells

    Raises
    ------
    DataError
        If a column is missing or of the wrong kind, or sizes disagree.
    """
    matrix = sp.csr_matrix(X, dtype=np.float32)
    matrix.sort_indices()
    adata = anndata.AnnData(matrix, obs=obs.copy(), var=var.copy())
    record = {"provenance": dict(provenance), "design": None if design is None else design.to_json()}
    adata.uns[KEY] = json.dumps(record, default=str)
    if x is not None:
        adata.obsm["x"] = np.asarray(x, dtype=np.float32)
    check_responses(adata)
    return adata


def check_responses(adata: anndata.AnnData) -> None:
    """Refuse an AnnData that breaks the contract of this module, naming the part."""
    X = cast(Any, adata.X)
    if not sp.isspmatrix_csr(X) and not isinstance(X, sp.csr_array):
        raise DataError(f"responses need X as a CSR matrix, not {type(X).__name__}; use scipy.sparse.csr_matrix.")
    if X.dtype != np.float32:
        raise DataError(f"responses need X in float32, not {X.dtype}; use X.astype('float32').")
    if not np.isfinite(X.data).all():
        raise DataError("responses hold activations that are not finite; run the model in float32.")
    _check_columns(cast(pd.DataFrame, adata.obs), OBS, "obs")
    _check_columns(cast(pd.DataFrame, adata.var), VAR, "var")
    if KEY not in adata.uns:
        raise DataError(f"responses need uns['{KEY}'], the JSON record of provenance and design.")
    if not adata.obs_names.is_unique:
        raise DataError("responses need a unique row index, stimulus@token_index.")


def _check_columns(table: pd.DataFrame, columns: Mapping[str, str | None], part: str) -> None:
    for name, kind in columns.items():
        if name not in table.columns:
            raise DataError(unknown(f"{part} column asked of responses", name, table.columns))
        if kind in {"i", "f"} and table[name].dtype.kind != kind:
            raise DataError(
                f"responses need {part}['{name}'] as {'integers' if kind == 'i' else 'floats'}, "
                f"not {table[name].dtype}."
            )


def provenance_of(adata: anndata.AnnData) -> dict[str, Any]:
    """The provenance that extraction wrote (model, dictionary, dtype, warnings …), as a new dict."""
    return json.loads(adata.uns[KEY])["provenance"]


def design_of(adata: anndata.AnnData) -> Design:
    """The design behind the responses; DataError where they were made from a bare stimulus table."""
    text = json.loads(adata.uns[KEY])["design"]
    if text is None:
        raise DataError("these responses carry no design; pass design= to extract, or make the stimuli with expand.")
    return Design.from_json(text)


def with_provenance(adata: anndata.AnnData, **entries: Any) -> anndata.AnnData:
    """Set entries of the provenance in place of the old ones; returns the same, freshly made, object."""
    record = json.loads(adata.uns[KEY])
    record["provenance"] |= entries
    adata.uns[KEY] = json.dumps(record, default=str)
    return adata


def add_warnings(adata: anndata.AnnData, sentences: list[str]) -> anndata.AnnData:
    """Append warnings for the reader of the result; each sentence is kept once."""
    old = provenance_of(adata).get("warnings", [])
    return with_provenance(adata, warnings=list(dict.fromkeys([*old, *sentences])))


def each_site(responses: Responses, function: Callable[[anndata.AnnData], anndata.AnnData]) -> Responses:
    """Apply a function to one AnnData or to every site of a dict."""
    if isinstance(responses, anndata.AnnData):
        return function(responses)
    return {site: function(adata) for site, adata in responses.items()}  # type: ignore[return-value]


def take_rows(adata: anndata.AnnData, rows: np.ndarray, obs: pd.DataFrame) -> anndata.AnnData:
    """New responses from the given rows (repeats allowed) with a new obs; features and record are kept."""
    X, var = cast(Any, adata.X), cast(pd.DataFrame, adata.var)
    out = anndata.AnnData(X[rows], obs=obs, var=var.copy(), uns=dict(adata.uns))
    if "x" in adata.obsm:
        out.obsm["x"] = np.asarray(adata.obsm["x"])[rows]
    return out


def row_names(obs: pd.DataFrame) -> pd.Index:
    """`stimulus@token_index`, with `@region` appended from the second row of the same token on."""
    names = obs["stimulus"].astype(str) + "@" + obs["token_index"].astype(str)
    again = names.duplicated()
    return pd.Index(names.where(~again, names + "@" + obs["region"].astype(str)), dtype=object)


# --- item x cell x feature ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemCells:
    """Mean responses of every item in every cell of the design, frames averaged within the item.

    Attributes
    ----------
    items, cells : names; a cell is a tuple of levels, in the design's order
    X : CSR float64 of shape (n_rows, n_features); rows sorted by item, then cell
    row_item, row_cell : for each row of X its number in `items` and in `cells`
    numbers : numeric columns of obs (n_tokens, token_index, norm, covariates …), averaged as X is
    dropped : item, frame, reason of what could not be used
    n_frames : number of frames that were used
    """

    items: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    X: sp.csr_matrix
    row_item: np.ndarray
    row_cell: np.ndarray
    numbers: pd.DataFrame
    dropped: pd.DataFrame
    n_frames: int


def item_cells(
    adata: anndata.AnnData,
    design: Design,
    *,
    region: str,
    position: int = 0,
    split: str | None = "test",
    factors: list[str] | None = None,
    frames: str = "mean",
) -> ItemCells:
    """Average the rows of one region and position to item x cell x feature.

    Parameters
    ----------
    adata : aligned (and, where asked for, collapsed) responses of one site
    design : its design
    region, position, split : which rows; split None takes all items
    factors : the factors that span the cells, the others are averaged over with equal weight; default all
    frames : `mean` averages frames, `separate` appends the frame to the cell

    Notes
    -----
    A frame enters an item only if it is present in all of the item's cells: a mean over unequal numbers of frames
    is not exchangeable for sparse features. An item without a complete frame is dropped and listed.

    Raises
    ------
    DataError
        If nothing is left, or a stimulus has two rows at the region and position.
    """
    if provenance_of(adata).get("alignment", {}).get("inference") == "forbidden":
        raise DataError("these positions were warped (align: dtw), for figures only; test on align: region or start.")
    obs = _rows_at(adata, region=region, position=position, split=split)
    names = list(design.factors)
    kept, dropped = _complete_frames(obs, design)
    if not len(kept):
        raise DataError(f"no item has a frame with region '{region}' at position {position} in all of its cells.")
    shown = [n for n in names if factors is None or n in factors]
    for name in factors or []:
        choose("factor", name, design.factors)
    labels = kept[shown].astype(str).apply(tuple, axis=1)
    levels = [list(design.factors[n].levels) for n in shown]
    if frames == "separate":
        labels = labels + kept["frame"].astype(str).map(lambda f: (f,))
        levels.append(list(dict.fromkeys(obs["frame"].astype(str))))
    cells = tuple(sorted(set(labels), key=lambda c: tuple(v.index(x) for v, x in zip(levels, c, strict=True))))
    items = tuple(dict.fromkeys(kept["item"].astype(str)))
    item_of, cell_of = {k: i for i, k in enumerate(items)}, {k: i for i, k in enumerate(cells)}
    code = kept["item"].astype(str).map(item_of).to_numpy() * len(cells) + labels.map(cell_of).to_numpy()
    out, inverse, counts = np.unique(code, return_inverse=True, return_counts=True)
    mean = sp.csr_matrix((1 / counts[inverse], (inverse, kept["row"].to_numpy())), shape=(len(out), adata.n_obs))
    X = sp.csr_matrix(mean @ cast(Any, adata.X).astype(np.float64))
    X.sort_indices()
    numeric = cast(pd.DataFrame, adata.obs).select_dtypes("number")
    numbers = pd.DataFrame(mean @ numeric.to_numpy(dtype=float, na_value=np.nan)[:, :], columns=numeric.columns)
    return ItemCells(items, cells, X, out // len(cells), out % len(cells), numbers, dropped, kept["frame"].nunique())


def _rows_at(adata: Any, *, region: str, position: int, split: str | None) -> pd.DataFrame:
    obs = adata.obs.assign(row=np.arange(adata.n_obs))
    regions = list(dict.fromkeys(obs["region"].astype(str)))
    if region not in regions:
        raise DataError(unknown("region of these responses", region, regions))
    obs = obs[(obs["region"] == region).to_numpy()]
    positions = sorted({int(p) for p in obs["position"]})
    obs = obs[(obs["position"] == position).to_numpy()]
    if split is not None:
        obs = obs[(obs["split"].astype(str) == split).to_numpy()]
    if not len(obs):
        raise DataError(
            f"no rows at region '{region}', position {position}, split {split}; its positions are {positions}."
        )
    if obs["stimulus"].duplicated().any():
        twice = obs["stimulus"][obs["stimulus"].duplicated()].iloc[0]
        raise DataError(f"stimulus '{twice}' has two rows at region '{region}', position {position}; collapse first.")
    return obs


def _complete_frames(obs: pd.DataFrame, design: Design) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the frames that are present in all cells of their item; and what was left out, with the reason."""
    names = list(design.factors)
    between = [i for i, n in enumerate(names) if design.factors[n].varies == "between"]
    cell = obs[names].astype(str).apply(tuple, axis=1)
    present = set(cell)
    keep, dropped = np.zeros(len(obs), dtype=bool), []
    pairs = obs.assign(cell=cell, place=np.arange(len(obs))).groupby(["item", "frame"], sort=False, observed=True)
    for (item, frame), rows in pairs:
        own = rows["cell"].iloc[0]
        expected = {c for c in present if all(c[i] == own[i] for i in between)}
        missing = sorted(expected - set(rows["cell"]))
        if missing:
            reason = f"no row in cell {', '.join('/'.join(c) for c in missing)}"
            dropped.append({"item": str(item), "frame": str(frame), "reason": reason})
        else:
            keep[rows["place"].to_numpy()] = True
    return obs[keep], pd.DataFrame(dropped, columns=["item", "frame", "reason"])
