"""Sets of features as responses of their own: a set answers with the mean over its features.

The mean is linear, so it commutes with averaging over frames, with contrasts and with every relabelling: a set is
tested as one feature is, by the same code on a matrix with one column per set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of, provenance_of
from neurosae.spec.blocks import Inference, RegionChoice
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import Asked
from neurosae.stats.contrast import run_family
from neurosae.stats.units import AnnData


class FeatureSet(NamedTuple):
    """Some features of a site: columns, a sign for each (-1: it enters with a minus sign), and how they were chosen."""

    columns: np.ndarray
    signs: np.ndarray
    note: str = ""


Sets: TypeAlias = Mapping[str, Mapping[str, Mapping[str, FeatureSet]]]
"""Site -> region -> name -> set; a name may stand for other features in another region."""


def plain(adata: AnnData, indices: Any, name: str) -> FeatureSet:
    """A set of features by their indices in the dictionary, each with weight 1.

    Raises
    ------
    DataError
        If it is empty, names a feature twice, or names one that the site does not have.
    """
    wanted = np.asarray(list(indices), dtype=np.int64)
    if not len(wanted) or len(np.unique(wanted)) < len(wanted):
        raise DataError(
            f"set '{name}' {'names a feature twice' if len(wanted) else 'is empty'}; give distinct indices."
        )
    columns = pd.Index(adata.var["feature"]).get_indexer(wanted)  # pyright: ignore[reportArgumentType]
    if (columns < 0).any():
        missing = int(wanted[columns < 0][0])
        raise DataError(f"set '{name}' names feature {missing}, which is not among the {adata.n_vars} of this site.")
    return FeatureSet(np.sort(columns), np.ones(len(columns)))


def top_rows(rows: pd.DataFrame, choice: RegionChoice) -> pd.DataFrame:
    """The most extreme features of a contrast in the wanted direction: by |value|, ties by feature index."""
    value = rows["value"].to_numpy(dtype=float)
    wanted = {"both": np.abs(value), "plus": value, "minus": -value}[choice.direction]
    ranked = rows.assign(_size=-wanted)[wanted > 0].sort_values(["_size", "feature"], kind="stable")
    return ranked.drop_duplicates("feature").head(choice.top or 0).drop(columns="_size")


def described(n: int, signs: np.ndarray, how: str) -> str:
    """What a set is, in words."""
    minus = int((signs < 0).sum())
    turned = f"; {minus} of them enter with a minus sign, their direction where they were chosen" if minus else ""
    return f"mean of {n:,} features, {how}{turned}"


def set_responses(adata: AnnData, by_region: Mapping[str, Mapping[str, FeatureSet]]) -> AnnData:
    """Responses whose columns are sets, in order of appearance: the signed mean over the features of each set."""
    names = list(dict.fromkeys(name for sets in by_region.values() for name in sets))
    region, n = adata.obs["region"].astype(str).to_numpy(), len(names)
    parts = []
    for where, sets in by_region.items():
        rows = np.flatnonzero(region == where)
        W = sp.lil_matrix((adata.n_vars, n))
        for name, one in sets.items():
            W[one.columns, names.index(name)] = (one.signs / len(one.columns))[:, None]
        spread = sp.csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(adata.n_obs, len(rows)))
        parts.append(spread @ (adata.X[rows].astype(np.float64) @ sp.csr_matrix(W)))
    zeros = np.zeros(n, dtype=np.float32)
    var = {"feature": np.arange(n), "decoder_norm": zeros, "threshold": zeros, "density": zeros, "origin": zeros}
    table = pd.DataFrame(var, index=pd.Index([f"set/{k}" for k in range(n)]))
    X = sp.csr_matrix(sum(parts[1:], start=parts[0]))
    return build_responses(X, adata.obs, table, design=design_of(adata), provenance=provenance_of(adata))


def test_sets(sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, sets: Sets, seed: int) -> Tested:
    """Test every set at every site, region and position as one family; extras: `chosen`, the features of each set."""
    made = {site: set_responses(adata, sets[site]) for site, adata in sites.items()}
    names = {site: list(dict.fromkeys(name for by in sets[site].values() for name in by)) for site in sites}
    tested = run_family(made, asked, inference, seed=seed, top=max(map(len, names.values())))
    table = _named(tested.table, sets, names)
    chosen = [
        {"site": site, "region": region, "set": name, "fold": -1, "sign": one.signs}
        | {"feature": sites[site].var["feature"].to_numpy()[one.columns]}
        for site in sites
        for region, by in sets[site].items()
        for name, one in by.items()
    ]
    long = pd.concat([pd.DataFrame(one) for one in chosen], ignore_index=True)
    return Tested(check_results(table), tested.null_max, {"chosen": long} | _items(tested.extras, names))


test_sets.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name


def _items(extras: Mapping[str, pd.DataFrame], names: Mapping[str, list[str]]) -> dict[str, pd.DataFrame]:
    """Contrast of every item for every set, long."""
    if "items" not in extras:
        return {}
    items = extras["items"]
    sets = [names[site][int(column)] for site, column in zip(items["site"], items["feature"], strict=True)]
    return {"items": items.drop(columns="feature").assign(set=sets)}


def _named(table: pd.DataFrame, sets: Sets, names: Mapping[str, list[str]]) -> pd.DataFrame:
    """Rows of sets instead of rows of columns; silent sets, counted in one row until here, get one each."""
    place = list(zip(*(table[key] for key in ("effect", "site", "region", "position")), strict=True))
    numbered = table["feature"].notna().to_numpy()
    at: list[tuple[int, str]] = []
    for row, (key, has) in enumerate(zip(place, numbered, strict=True)):
        known = names[key[1]]
        if has:
            at.append((row, known[int(table["feature"].iloc[row])]))
            continue
        seen = {known[int(table["feature"].iloc[k])] for k in np.flatnonzero(numbered) if place[k] == key}
        at += [(row, name) for name in known if name not in seen]
    at = [(row, name) for row, name in at if name in sets[place[row][1]][place[row][2]]]
    out = table.iloc[[row for row, _ in at]].reset_index(drop=True)
    picked = [sets[place[row][1]][place[row][2]][name] for row, name in at]
    said = pd.Series([one.note or f"mean of {len(one.columns):,} features" for one in picked], dtype="string")
    notes = said.where(out["note"].isna(), said + "; " + out["note"])
    family = out["family"].str.replace("all testable features", "all testable sets of features")
    return out.assign(
        kind=pd.array(["roi"] * len(out), dtype="string"),
        feature=pd.array([pd.NA] * len(out), dtype="Int64"),
        set=pd.array([name for _, name in at], dtype="string"),
        n_features=pd.array([len(one.columns) for one in picked], dtype="Int64"),
        note=notes.astype("string"),
        family=family,
    )
