r"""Parametric models of an effect, feature by feature: labelled alternatives beside the relabellings, never instead.

| model | rows | assumed | speaks of |
|---|---|---|---|
| `ols` | items | independent normal items, equal variance | items |
| `hc3` | items | independent items, many of them | items |
| `cluster` | cells or stimuli | many items; anything inside them | items |
| `item_intercept` | stimuli | y ~ cell + frame + (1 \| item), normal; only between items | items |
| `crossed` | differences per frame | d ~ 1 + (1 \| item) + (1 \| frame), normal; only within items | items, frames |
| `min_f` | differences per frame | normal item means and frame means | items, frames |
| `limma_trend` | items | normal items; variances around a trend over activity | items |

Strata of the design are a fixed factor of effects between items; min-F' has no place for them and is refused.
Prompts of one item repeat the same words. Where rows are taken as independent they are one number per item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from scipy import stats

from neurosae.design.weights import compile_effect
from neurosae.errors import DataError, NeurosaeError, SpecError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference, ParametricBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.asked import features_from_earlier, many, named_effects, positions_in, responses_by_site
from neurosae.stats.contrast import contrast
from neurosae.stats.layout import BLOCK, Layout, layout
from neurosae.stats.multiplicity import CORRECTIONS
from neurosae.stats.parametric_models import MODELS, Numbers

LEVEL = 0.95
MOST = 50  # features up to which p of a mixed model is corrected
KEPT = ("effect", "site", "region", "position", "split", "feature", "set", "n_features", "effsize", "eftype")
KEPT += ("unit", "n_units", "n_informative", "alternative", "h0", "status", "x_weights")
NOTHING_LEFT = "no variance is left that the model could compare the effect with"


class Asked(NamedTuple):
    """One parametric test: the block, the effects by name, the rest of the inference, the features, the seed."""

    name: str
    block: ParametricBlock
    effects: Mapping[str, Mapping[str, Any]]
    inference: Inference
    features: Mapping[str, np.ndarray] | None
    set_name: str | None
    seed: int


def parametric(
    responses: Any,
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    model: str,
    features: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Fit a parametric model of an effect to every feature, beside the p of the relabellings.

    With the effect's weights w over the columns of X (means of cells, or of groups of items),

        t = w'beta / se(w'beta),

    where the model decides what a row is, how the error is estimated and with how many degrees of freedom.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several
    region : name or names
    model : "ols", "hc3", "cluster", "item_intercept", "crossed", "min_f" or "limma_trend"
    features : indices to test, chosen on other items; all by default
    settings : other keys of a `parametric` test: `correction` ("fdr_bh"), `rows`, `split` ("test"), `alternative`
    seed : int, of the relabellings behind `x_p_flips`

    Returns
    -------
    DataFrame
        The results schema, one row per feature. `p_method` is "parametric" and `note` says what is assumed;
        `x_p_flips` is the p of the same contrast by relabelling whole items, `x_flips` how that was computed, both NA
        where the design admits none. Further `x_d0`, `x_var_item`, `x_var_frame`, `x_var_resid`, `x_F1`, `x_F2`.

    Raises
    ------
    DataError
        Prompts of an item as independent rows; (1 | item) for an effect within items; fewer than 6 frames for a claim
        over frames; corrected p of a mixed model for more than 50 features.

    Notes
    -----
    H0: w'beta = 0. Nothing is exchanged. Rare features break the assumptions: unbalanced groups of items give a
    family-wise error up to .9, few active items no power. Report it beside the relabellings, or as a screen.

    References
    ----------
    Clark (1973), J. Verbal Learning and Verbal Behavior 12:335. Barr et al. (2013), J. Memory and Language 68:255.
    Smyth (2004), Stat. Appl. Genet. Mol. Biol. 3:3.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=40, effects={"number": 3}, density=0.4, shift=5.0, seed=1)
    >>> found = parametric(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", model="ols", seed=1)
    >>> found[found.p_corr <= 0.05].feature.tolist(), set(found.p_method.dropna())
    ([0, 1, 2], {'parametric'})
    """
    sites, effects = responses_by_site(responses), named_effects(effect)
    block = _block({"region": region, "model": model, "effect": list(effects), **(settings or {})})
    chosen = features if isinstance(features, Mapping) or features is None else dict.fromkeys(sites, features)
    wanted = None if chosen is None else {site: np.unique(np.asarray(f, dtype=int)) for site, f in chosen.items()}
    name = None if wanted is None else "chosen features"
    return _run(sites, Asked("parametric", block, effects, Inference(), wanted, name, seed)).table


def run(
    responses: Mapping[str, Any], ask: ParametricBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: parametric`; all its effects, regions, positions and sites are one family."""
    spec = study.spec
    test = name_of(ask, spec.tests)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    effects = {name: choose("effect", name, spec.effects) for name in ask.effect}
    features, name = (None, None) if ask.features is None else features_from_earlier(ask, sites, earlier)
    return _run(sites, Asked(test, ask, effects, spec.inference, features, name, spec.seed))


def _block(given: Mapping[str, Any]) -> ParametricBlock:
    try:
        return ParametricBlock.model_validate({"test": "parametric", **given})
    except ValueError as error:
        if isinstance(error, NeurosaeError):
            raise
        details = getattr(error, "errors", list)()
        said = f"{'.'.join(map(str, details[0]['loc']))}: {details[0]['msg']}" if details else str(error)
        raise DataError(said) from error


# ------------------------------------------------------------------ the test


def _run(sites: Mapping[str, Any], asked: Asked) -> Tested:
    """Rows of the relabelling test with its numbers replaced by the model's, its p kept beside them."""
    base = _relabelled(sites, asked)
    parts, words = [], [MODELS[asked.block.model].assumed]
    if asked.inference.nuisance:
        words.append(f"without the nuisance {', '.join(asked.inference.nuisance)}, which this model has no columns for")
    for (effect, site, region, position), rows in base.groupby(
        ["effect", "site", "region", "position"], sort=False, observed=True, dropna=False
    ):
        tested = rows["status"].isin(["ok", "degenerate"])
        parts.append(_silent(rows[~tested]))
        if tested.any():
            where = (str(region), int(cast(Any, position)), asked.block.split)
            made, alive, layed = _fitted(
                sites[str(site)], asked, str(effect), where=where, features=rows.loc[tested, "feature"]
            )
            blocked = any(name.startswith(BLOCK) for name in layed.names)
            strata = design_of(sites[str(site)]).strata
            own = [*words, f"the strata ({strata}) are a fixed factor: no claim over them"] if blocked else words
            common = {"words": own, "alternative": str(rows["alternative"].iloc[0])}
            parts.append(_rows(rows[tested], made, layed, alive=alive, **common))
    table = pd.concat([p.dropna(axis=1, how="all") for p in parts if len(p)])
    table = table.loc[base.index]
    for name in ("p_unc", "x_p_flips", "x_flips"):
        if name not in table:
            table[name] = np.nan
    return Tested(_corrected(table, asked, sites), None, {})


def _relabelled(sites: Mapping[str, Any], asked: Asked) -> pd.DataFrame:
    """One row per feature, with the p of the relabellings where the design admits any."""
    block, rules = asked.block, asked.inference
    settings = {"statistic": "t", "correction": "none", "alternative": block.alternative or rules.alternative}
    settings |= {"n_permutations": rules.n_permutations, "min_informative": rules.min_informative, "alpha": rules.alpha}
    if block.model == "min_f" and settings["alternative"] != "two-sided":
        raise DataError("min-F' has no direction; set `alternative: two-sided` on this test.")
    common: dict[str, Any] = {"region": block.region, "split": block.split, "features": asked.features}
    tables = []
    for name, effect in asked.effects.items():
        try:
            tables.append(contrast(sites, {name: effect}, inference=settings, seed=asked.seed, **common))
        except SpecError as error:
            if block.model != "cluster":
                raise
            tables += _unrelabelled(sites, asked, name, why=str(error), alternative=str(settings["alternative"]))
    table = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
    for name in (*KEPT, "note", "p_unc", "p_method"):
        if name not in table:
            table[name] = pd.NA
    return table.assign(set=pd.array([asked.set_name] * len(table), dtype="string"))


def _unrelabelled(
    sites: Mapping[str, Any], asked: Asked, effect: str, *, why: str, alternative: str
) -> list[pd.DataFrame]:
    """Rows of an effect that no relabelling tests: features that are active in enough items, and the others."""
    tables, block = [], asked.block
    for site, adata in sites.items():
        made = compile_effect(design_of(adata), dict(asked.effects[effect]))
        for region in many(block.region):
            for position in positions_in(adata, region):
                where = (region, position, block.split)
                rows = layout(adata, design_of(adata), asked.effects[effect], rows="cells", where=where)
                wanted = np.arange(adata.n_vars)
                if asked.features is not None:
                    wanted = pd.Index(adata.var["feature"]).get_indexer(asked.features[site])  # pyright: ignore
                active = np.zeros((rows.n_units, rows.Y.shape[1]), dtype=bool)  # pyright: ignore
                active[np.unique(rows.unit, return_inverse=True)[1][rows.Y.indices], _columns_of(rows.Y)] = True
                count = active.sum(axis=0)[wanted]
                few = (count > 0) & (count < asked.inference.min_informative)
                keep = np.flatnonzero(count > 0)
                common = {"effect": effect, "site": site, "region": region, "position": position, "split": block.split}
                common |= {"h0": made.h0, "x_weights": made.vector, "unit": "item", "n_units": rows.n_units}
                note = np.where(few, "too few active items for a test", f"no flip p: {why}")[keep]
                own = {"feature": adata.var["feature"].to_numpy()[wanted][keep], "n_features": 1, "note": note}
                own |= {"n_informative": count[keep], "status": np.where(few, "untestable", "ok")[keep]}
                tables.append(as_results(common | own | {"alternative": alternative}))
                if n_dead := int((count == 0).sum()):
                    dead = {"n_features": n_dead, "status": "dead", "note": "no activity in any tested row"}
                    tables.append(as_results(common | dead, n_rows=1))
    return tables


def _columns_of(Y: Any) -> np.ndarray:
    return np.repeat(np.arange(Y.shape[1]), np.diff(Y.indptr))


def _fitted(adata: Any, asked: Asked, effect: str, *, where: tuple[str, int, str], features: pd.Series):
    """The model's numbers of the wanted features, and the layout they come from."""
    model = MODELS[asked.block.model]
    kind = asked.block.rows or model.rows[0]
    rows = layout(adata, design_of(adata), asked.effects[effect], rows=kind, where=where)
    if model.is_independent and len(rows.unit) > rows.n_units:
        raise DataError(
            f"model {asked.block.model} takes every row as independent, but {len(rows.unit)} {kind} come from "
            f"{rows.n_units} items: prompts of one item repeat its words, and counting them as replicates rejects "
            "up to .6 of true hypotheses at .05. Use `rows: items`, or `model: cluster`."
        )
    columns = pd.Index(adata.var["feature"]).get_indexer(features.to_numpy(dtype=np.int64))
    Y = rows.Y[:, columns]
    made = model.fit(rows._replace(Y=Y, activity=rows.activity[columns]))
    alive = np.arange(len(columns)) if len(made.value) == len(columns) else np.flatnonzero(np.diff(Y.indptr))
    return made, alive, rows


def _silent(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without numbers stay as the relabelling test gave them."""
    return rows[[*KEPT, "note"]]


def _rows(
    base: pd.DataFrame, made: Numbers, rows: Layout, *, alive: np.ndarray, words: Sequence[str], alternative: str
) -> pd.DataFrame:
    """One row per tested feature."""

    def full(values: np.ndarray) -> np.ndarray:
        out = np.full(len(base), np.nan)
        out[alive] = values
        return out

    value, dof, estimate, se = (full(x) for x in (made.value, made.dof, made.estimate, made.se))
    p = full(made.p)
    if alternative != "two-sided":
        p = stats.t.sf(value if alternative == "greater" else -value, dof)
    known = np.isfinite(value) & np.isfinite(p)
    half = stats.t.isf((1 - LEVEL) / 2, np.where(known, dof, 1.0)) * se
    notes = [_note(own, ok, rows=rows, words=words) for own, ok in zip(base["note"], known, strict=True)]
    columns: dict[str, Any] = {
        "stat": made.stat,
        "value": np.where(known, value, np.nan),
        "dof": np.where(known, dof, np.nan),
        "estimate": estimate,
        "se": np.where(known, se, np.nan),
        "ci_low": np.where(known, estimate - half, np.nan),
        "ci_high": np.where(known, estimate + half, np.nan),
        "ci_level": LEVEL,
        "p_unc": np.where(known, np.maximum(p, np.finfo(float).tiny), np.nan),
        "p_method": "parametric",
        "status": np.where(known, "ok", "degenerate"),
        "note": pd.array(notes, dtype="string"),
        "x_p_flips": base["p_unc"].to_numpy(dtype=float, na_value=np.nan),
        "x_flips": base["p_method"].to_numpy(),
    }
    if rows.n_frames > 1:
        columns["x_n_frames"] = rows.n_frames
    return base[list(KEPT)].assign(**columns, **{name: full(values) for name, values in made.extras.items()})


def _note(own: Any, known: bool, *, rows: Layout, words: Sequence[str]) -> str:
    parts = [*words]
    parts += [] if known else [NOTHING_LEFT]
    parts += [] if pd.isna(own) else str(own).split("; ")
    return "; ".join(dict.fromkeys(part for part in [*parts, rows.dropped] if part))


def _corrected(table: pd.DataFrame, asked: Asked, sites: Mapping[str, Any]) -> pd.DataFrame:
    block, p = asked.block, table["p_unc"].to_numpy(dtype=float)
    m = int(np.isfinite(p).sum())
    if block.model in ("item_intercept", "crossed") and block.correction != "none" and m > MOST:
        raise DataError(
            f"p of a mixed model is corrected for at most {MOST} features, not {m}: choose them by an earlier test on "
            "other items, {from: …, top: 50}, or set `correction: none` to estimate only."
        )
    correct = CORRECTIONS[block.correction]
    assert correct is not None
    what = "all testable features" if asked.set_name is None else f"testable features of {asked.set_name}"
    where = f"regions {', '.join(many(block.region))}; sites {', '.join(sites)}"
    family = f"{what} x positions of test {asked.name}: effects {', '.join(asked.effects)}; {where}; {block.model}"
    known = {"test": asked.name, "kind": "parametric", "family": family, "n_family": m, "p_adjust": block.correction}
    columns: dict[str, Any] = {str(name): table[name].array for name in table} | known
    made = as_results(columns | {"p_corr": correct(p)}, n_rows=len(table))
    sizes = {} if asked.features is not None else {site: adata.n_vars for site, adata in sites.items()}
    return check_results(made.reset_index(drop=True), sizes)
