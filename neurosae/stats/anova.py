r"""ANOVA tables of a few selected features, their simple effects and post-hoc comparisons, p of relabelling beside.

The table of a feature has every main effect and interaction of the design (`anova_tables`). Simple effects are the
differences of one factor at each level of another, post-hoc comparisons all pairs of more than two levels; each is
tested as a contrast (`contrast`), by t and by relabelling, and corrected by Holm inside its feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from neurosae.errors import DataError, SpecError, choose
from neurosae.extraction.responses import design_of, item_cells
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.factorial import AnovaBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.anova_tables import Term, anova_table, holm
from neurosae.stats.asked import Asked, positions_in, responses_by_site, settings_of
from neurosae.stats.contrast import run_family
from neurosae.stats.factorial import given_features, named_features
from neurosae.stats.units import AnnData

PARAMETRIC = "parametric, a labelled alternative; x_p_permutation is the p of relabelling, x_how the way it was made"


class Question(NamedTuple):
    """A checked block: name of the test, the block, settings, features of every site, seed."""

    name: str
    ask: AnovaBlock
    inference: Inference
    features: Mapping[str, np.ndarray]
    seed: int


def anova(
    responses: AnnData | Mapping[str, AnnData],
    *,
    features: Mapping[str, Sequence[int]] | Sequence[int],
    region: str | Sequence[str],
    inference: Mapping[str, Any] | Inference | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""ANOVA of selected features over all factors of their design, with simple effects and post-hoc comparisons.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    features : at most 50 indices, or {site: indices}; chosen on other items, or known beforehand
    region : name or names
    inference : keys of the `inference:` section; `n_permutations` is used
    settings : as in an `anova` test: `simple_effects`, `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema. Rows of `stat` "F", one per feature and term (`effect` "a:b"): `dof` of the denominator,
        `x_df1`, `effsize` partial eta squared, `x_eta2_g` generalized, `x_epsilon` and `x_p_sphericity` (Mauchly) where
        a within term has more than one degree of freedom, whose p is Greenhouse and Geisser's. Rows of `stat` "t":
        simple effects ("a: a2 - a1 at b1") and post-hoc comparisons. `p_corr` is Holm's, over the features for a term,
        and inside a feature for simple effects. `x_p_permutation` is the p of relabelling, NA where there is none.

    Raises
    ------
    DataError
        More than 50 features, an unknown one, or too few items.

    Notes
    -----
    Type III on cell means, which count equally. H0 of a term: no effect in the population of items; normal errors,
    equal in all groups, are assumed, which sparse activations are not: read p beside that of relabelling. Frames are
    averaged first and taken as fixed.

    References
    ----------
    Greenhouse & Geisser (1959), Psychometrika 24:95. Holm (1979), Scand. J. Stat. 6:65.

    Examples
    --------
    >>> from neurosae.stats.worlds import world
    >>> found = anova(world("C0", n_items=16, seed=0), features=[0, 30], region="probe", seed=1)
    >>> table = found[found.stat == "F"].set_index(["feature", "effect"])
    >>> (table.p_corr <= 0.05).tolist()  # feature 0 answers to a, 30 to b
    [True, False, False, True, False, False]
    """
    sites = responses_by_site(responses)
    by_site = features if isinstance(features, Mapping) else dict.fromkeys(sites, features)
    named = {site: tuple(int(j) for j in by_site[site]) for site in sites if site in by_site}
    block = {"test": "anova", "region": region, "features": {"named": named}, **(settings or {})}
    ask = as_record(block, AnovaBlock, name="anova")
    chosen = named_features(ask.features, sites)
    assert chosen is not None
    return answer(Question("anova", ask, settings_of(inference), chosen, seed), sites).table


def run(
    responses: Mapping[str, AnnData], ask: AnovaBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: anova`."""
    spec = study.spec
    name = name_of(ask, spec.tests)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    features = given_features(ask, sites, earlier)
    assert features is not None
    return answer(Question(name, ask, spec.inference, features, spec.seed), sites)


def answer(asked: Question, sites: Mapping[str, AnnData]) -> Tested:
    """Tables of every feature at every place."""
    rows: list[dict[str, Any]] = []
    for site, adata in sites.items():
        design = design_of(adata)
        columns = pd.Index(adata.var["feature"]).get_indexer(asked.features[site])  # pyright: ignore
        if (columns < 0).any():
            raise DataError(f"site '{site}' has no feature {int(asked.features[site][columns < 0][0])}.")
        effects = term_effects(design) | (simple_effects(design) if asked.ask.simple_effects else {})
        for region in asked.ask.region:
            beside = _relabelled(asked, {site: adata}, effects, region=region)
            for position in positions_in(adata, region):
                rows += _place_rows(asked, (site, region, position), adata, columns=columns, beside=beside)
    frame = pd.DataFrame(rows)
    return Tested(check_results(as_results({name: frame[name] for name in frame.columns})), None, {})


def term_effects(design: Design) -> dict[str, dict[str, Any]]:
    """Every main effect and interaction as an effect that can be relabelled: `all` for one factor of many levels.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design
    >>> term_effects(example_design(4))
    {'number': {'number': {'pl': 1, 'sg': -1}}}
    """
    found = {}
    for size in range(1, len(design.factors) + 1):
        for names in combinations(design.factors, size):
            many = [name for name in names if len(design.factors[name].levels) > 2]
            if len(many) > 1:
                continue
            effect: dict[str, Any] = {}
            for name in names:
                levels = design.factors[name].levels
                effect[name] = "all" if name in many else {levels[1]: 1, levels[0]: -1}
            found[":".join(names)] = effect
    return found


def simple_effects(design: Design) -> dict[str, dict[str, Any]]:
    """Pairs of levels of every factor at each level of every other, and post-hoc pairs of more than two levels.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design
    >>> simple_effects(example_design(4))
    {}
    """
    found = {}
    for name, factor in design.factors.items():
        pairs = [(high, low) for low, high in combinations(factor.levels, 2)]
        for high, low in pairs:
            if len(pairs) > 1:
                found[f"{name}: {high} - {low}"] = {name: {high: 1, low: -1}}
            for other, others in design.factors.items():
                for level in others.levels if other != name else ():
                    found[f"{name}: {high} - {low} at {level}"] = {name: {high: 1, low: -1}, other: {level: 1}}
    return found


def _relabelled(
    asked: Question, sites: Mapping[str, AnnData], effects: Mapping[str, Mapping[str, Any]], *, region: str
) -> pd.DataFrame:
    """Every effect as a contrast: t and its p by relabelling, uncorrected; effects that cannot be tested are absent."""
    settings = asked.inference.model_copy(
        update={"statistic": "t", "correction": "none", "nuisance": (), "intervals": "marginal"}
    )
    tables = []
    for name, effect in effects.items():
        one = Asked(asked.name, {name: effect}, (region,), asked.ask.split, dict(asked.features), "features")
        try:
            tables.append(run_family(sites, one, settings, seed=asked.seed, top=0).table)
        except (DataError, SpecError):
            continue
    if not tables:
        return pd.DataFrame({"effect": [], "position": [], "feature": []})
    return pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)


def _place_rows(
    asked: Question, key: tuple[str, str, int], adata: AnnData, *, columns: np.ndarray, beside: pd.DataFrame
) -> list[dict[str, Any]]:
    site, region, position = key
    design, split = design_of(adata), asked.ask.split
    chosen = asked.ask.features
    name = "named features" if chosen.from_ is None else f"{chosen.from_} top {chosen.top}"
    about = {"test": asked.name, "kind": "anova", "site": site, "region": region, "position": position, "split": split}
    about |= {"set": name, "unit": "item", "n_features": 1, "note": PARAMETRIC, "p_adjust": "holm"}
    try:
        tables = _tables(design, item_cells(adata, design, region=region, position=position, split=split), columns)
    except DataError as error:
        note = {"status": "untestable", "note": str(error), "p_adjust": pd.NA, "n_features": len(columns)}
        return [about | note]
    rows, here = [], beside[beside["position"] == position] if len(beside) else beside
    family = f"the {len(columns)} features of this test, term by term"
    for k, term in enumerate(tables[1][0]):
        p = holm(np.array([table[k].p for table in tables[1]]))
        for j, table in enumerate(tables[1]):
            row = _term_row(table[k], int(adata.var["feature"].iloc[columns[j]]), n_items=tables[0])
            row |= {"p_corr": p[j], "family": family, "n_family": len(columns)} if row["status"] == "ok" else {}
            rows.append(about | row | _permuted(here, ":".join(_in_order(design, term.factors)), row["feature"]))
            rows[-1]["effect"] = ":".join(_in_order(design, term.factors))
    return rows + _simple_rows(design, here, about)


def _in_order(design: Design, names: tuple[str, ...]) -> list[str]:
    return [name for name in design.factors if name in names]


def _tables(design: Design, cells: Any, columns: np.ndarray) -> tuple[int, list[list[Term]]]:
    """The table of every feature, and the number of items."""
    inside = {n: len(f.levels) for n, f in design.factors.items() if f.varies == "within"}
    own = [n for n, f in design.factors.items() if f.varies == "between"]
    axis, levels = list(design.factors), {n: list(f.levels) for n, f in design.factors.items()}
    n = len(cells.items)
    place = np.array([[levels[a].index(v) for a, v in zip(axis, cell, strict=True)] for cell in cells.cells])
    sizes = [inside[name] for name in inside]
    column = (
        np.ravel_multi_index([place[:, axis.index(name)] for name in inside], sizes)
        if inside
        else np.zeros(len(place), dtype=int)
    )
    Y = np.full((n, int(np.prod(sizes)) if sizes else 1, len(columns)), np.nan)
    Y[cells.row_item, column[cells.row_cell]] = cells.X[:, columns].toarray()
    if np.isnan(Y).any():
        raise DataError("some items lack cells of the design; every item must have all of them.")
    first = np.array([np.flatnonzero(cells.row_item == i)[0] for i in range(n)])
    between = {name: place[cells.row_cell[first], axis.index(name)] for name in own}
    return n, [anova_table(Y[:, :, j], within=inside, between=between) for j in range(len(columns))]


def _term_row(term: Term, feature: int, *, n_items: int) -> dict[str, Any]:
    row: dict[str, Any] = {"feature": feature, "stat": "F", "n_units": n_items, "alternative": "two-sided"}
    if not np.isfinite(term.F):
        return row | {"status": "degenerate", "note": "the response is the same in all items, so it has no variance"}
    row |= {"value": term.F, "dof": term.df2, "effsize": term.eta2_p, "eftype": "eta2_p", "p_unc": term.p}
    row |= {"p_method": "parametric", "status": "ok", "x_df1": term.df1, "x_eta2_g": term.eta2_g}
    return row | {"x_epsilon": term.epsilon, "x_p_sphericity": term.p_sphericity, "x_p_uncorrected": term.p_plain}


def _permuted(beside: pd.DataFrame, effect: str, feature: int) -> dict[str, Any]:
    if not len(beside):
        return {}
    row = beside[(beside["effect"] == effect) & (beside["feature"] == feature)]
    if not len(row) or pd.isna(row["p_unc"].iloc[0]):
        return {}
    return {"x_p_permutation": float(row["p_unc"].iloc[0]), "x_how": str(row["p_method"].iloc[0])}


def _simple_rows(design: Design, beside: pd.DataFrame, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Simple effects and post-hoc comparisons of every feature, a Holm family each."""
    if not len(beside):
        return []
    mine = beside[~beside["effect"].isin(term_effects(design)) & beside["p_unc"].notna() & (beside["status"] == "ok")]
    rows = []
    for feature, part in mine.groupby("feature", sort=True):
        p = 2 * stats.t.sf(np.abs(part["value"].to_numpy(dtype=float)), part["dof"].to_numpy(dtype=float))
        corrected = holm(p)
        for i, (_, one) in enumerate(part.iterrows()):
            shown = ("stat", "value", "dof", "estimate", "se", "effsize", "eftype", "ci_low", "ci_high", "ci_level")
            row = {name: one[name] for name in (*shown, "effect", "n_units", "n_informative", "h0", "alternative")}
            rows.append(
                {**about, **row, "feature": int(feature), "p_unc": float(p[i]), "p_corr": float(corrected[i])}  # pyright: ignore
                | {"p_method": "parametric", "status": "ok", "n_family": len(part)}
                | {"family": "simple effects and post-hoc comparisons of one feature"}
                | {"x_p_permutation": float(one["p_unc"]), "x_how": str(one["p_method"])}
            )
    return rows
