r"""Specialists: features that are strong in the texts of one category and weak in all others.

1. The tokens of a text are pooled, a_sj; a text is strong where a_sj exceeds the feature's threshold theta_j, the
   median of its active values on reference text.
2. Items are the units: y_ij is the share of an item's texts that are strong (`rate`), or the mid-rank of its mean
   activation (`auroc`).
3. With y centred inside strata and s_j its standard deviation there, which no relabelling changes,

       z_jC = (mean of y over the n_C items of C - mean over the N - n_C others) / (s_j sqrt(1/n_C + 1/(N - n_C))).

4. The categories of whole items are permuted inside strata; the maximum of z over all features and categories, sites
   and regions corrects each. A feature is called a specialist only by its corrected p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, choose
from neurosae.examine.items import CategoryItems, category_items, pooled_region
from neurosae.examine.profiles import feature_scores, text_profiles
from neurosae.examine.scores import as_columns, auroc, rate_difference, strong_texts
from neurosae.examine.thresholds import reference_medians, thresholds
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.examine_tests import SpecialistsBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results, counted_p
from neurosae.stats.asked import features_from_earlier, named_effects, responses_by_site, settings_of
from neurosae.stats.lengths import relabellings
from neurosae.stats.ranks import value_ranks
from neurosae.stats.relabel import Relabelling, labels, levels
from neurosae.stats.units import AnnData, item_data

TILE = 64  # relabellings at once
Thetas = Mapping[str, np.ndarray] | float | None


class Question(NamedTuple):
    """A checked block with its effect: test, block, name of the effect, the effect, settings, seed, thresholds, and
    which features of every site are asked about, where not all are.
    """

    name: str
    ask: SpecialistsBlock
    effect: str
    written: Mapping[str, Any]
    inference: Inference
    seed: int
    thetas: Thetas
    features: Mapping[str, np.ndarray] | None = None


class Place(NamedTuple):
    """One site and region, ready to be tested.

    adata : one row per text;  A : texts x features, pooled;  theta : (m,)
    items : units, categories and strata;  strong : share of strong texts per row of `items`;  values : mean activation
    """

    site: str
    region: str
    adata: AnnData
    A: sp.csc_matrix
    theta: np.ndarray
    items: CategoryItems
    strong: sp.csc_matrix
    values: sp.csc_matrix


class Scored(NamedTuple):
    """The tested columns of one place and their z (K, m), p uncorrected (K, m), maxima per relabelling (R,); and by
    reason which columns were left out.
    """

    columns: np.ndarray
    z: np.ndarray
    p_unc: np.ndarray
    maxima: np.ndarray
    left_out: dict[str, np.ndarray]


def specialists(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    theta: str | float | Mapping[str, np.ndarray] = "stimuli",
    settings: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Which features are strong in one category of texts, corrected over all features and categories.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : all levels of one factor, {"topic": "all"}, whose levels are the categories
    region : name or names
    theta : above which activation a text is strong: `stimuli` (median of the feature's active values there), one
        number, or {site: array (n_features,)}, such as the column q50 of `feature_summary`
    settings : as in a `specialists` test: `score` (`rate` or `auroc`), `pool`, `split`, `sites`, and `features`, named
        as {"ids": {"late": [12, 40]}}; left out, all
    inference : keys of the `inference:` section; `n_permutations`, `alpha` and `min_informative` are used
    seed : int

    Returns
    -------
    DataFrame
        The results schema, a row per feature and category (`effect` is "topic: sea"). `value` is z, `estimate` the
        difference of the shares of strong items inside and outside with its 95 % interval (Newcombe), `effsize` the
        rank-biserial correlation 2 AUROC - 1 (`x_auc`); `x_in`, `x_out` count strong texts (of `x_n_in`, `x_n_out`),
        `x_specialist` is their difference, `x_composite` 100 x share of strong texts x mean activation.

    Raises
    ------
    DataError
        Tokens are pooled by their maximum although lengths differ by category; too few items; negative responses.

    Notes
    -----
    H0: categories are exchangeable over items inside strata (or within every item), jointly for all features; exact.
    One-sided: more inside. The rates and AUROC of a found specialist are those of the items that found it, and so too
    large: choose on `split: localizer`, and read them on the test items. A specialist of a category may be a detector
    of one word that its texts share; look at its top examples.

    References
    ----------
    Westfall & Young (1993), Resampling-Based Multiple Testing. Newcombe (1998), Statistics in Medicine 17:873.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> design = example_design(40, between=True)
    >>> fake = simulate(design, n_features=60, effects={"number": 4}, density=0.3, shift=6.0, seed=1)
    >>> found = specialists(fake, {"number": "all"}, region="noun", theta=0.0, seed=1)
    >>> found[found.p_corr <= 0.05][["effect", "feature"]].values.tolist()
    [['number: pl', 0], ['number: pl', 1], ['number: pl', 2], ['number: pl', 3]]
    """
    ((name, written),) = named_effects(effect).items()
    block = {"test": "specialists", "region": region, "effect": name, **(settings or {})}
    ask = as_record(block, SpecialistsBlock, name="specialists")
    sites = responses_by_site(responses)
    sites = {site: choose("site", site, sites) for site in ask.sites or sites}
    if isinstance(theta, str):
        choose("theta", theta, {"stimuli": 1})
    given = None if isinstance(theta, str) else theta
    chosen = _chosen(ask, sites, {})
    return answer(Question("specialists", ask, name, written, settings_of(inference), seed, given, chosen), sites).table


def run(
    responses: Mapping[str, AnnData], ask: SpecialistsBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: specialists`; extras: `scores` of all features, `profiles` of some."""
    spec = study.spec
    name = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    thetas: Thetas = None if ask.theta == "stimuli" else ask.theta if not isinstance(ask.theta, str) else None
    if ask.theta == "reference":
        model, dictionaries = study.live()
        chosen = {site: dictionaries[site] for site in sites}
        thetas = reference_medians(model, chosen, ask.texts, n_tokens=ask.n_tokens, seed=spec.seed)
    written = choose("effect", ask.effect, spec.effects)
    chosen = _chosen(ask, sites, earlier)
    return answer(Question(name, ask, ask.effect, written, spec.inference, spec.seed, thetas, chosen), sites)


def _chosen(
    ask: SpecialistsBlock, sites: Mapping[str, AnnData], earlier: Mapping[str, Tested]
) -> dict[str, np.ndarray] | None:
    """The features asked about, by site; of an earlier test of specialists those of the largest z, never the smallest.

    A z far below 0 says that a feature is weak in a category, which makes it no candidate.
    """
    if ask.features is None:
        return None
    return features_from_earlier(ask, sites, earlier)[0]


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(asked: Question, sites: Mapping[str, AnnData]) -> Tested:
    """All places under the same relabellings, and the maximum over them."""
    made = [_place(asked, site, adata, region=r) for r in asked.ask.region for site, adata in sites.items()]
    hows = relabellings(
        [place.items.data for place in made], asked.inference.n_permutations, seed=asked.seed, split=asked.ask.split
    )
    if len({how.n for how, _ in hows}) > 1:
        raise DataError("sites or regions have other items, so their labels cannot be permuted alike; test them apart.")
    with threadpool_limits(1, user_api="blas"):
        scored = [_scored(asked, place, how, at=at) for place, (how, at) in zip(made, hows, strict=True)]
    null = np.max([one.maxima for one in scored], axis=0)
    if not np.isfinite(null).all():
        raise DataError(
            f"no feature is active in {asked.inference.min_informative} items with a share of strong texts that "
            "differs between them; lower theta, or min_informative."
        )
    size = sum(one.z.size for one in scored)
    rows = [_rows(asked, p, s, null=null, how=h, size=size) for p, s, (h, _) in zip(made, scored, hows, strict=True)]
    table = check_results(as_results({str(c): t for c, t in pd.concat(rows, ignore_index=True).items()}))
    places = [(p.site, p.region, p.adata, p.A, p.theta) for p in made]
    scores = feature_scores(places, table)
    factor = next(iter(asked.written))
    return Tested(table, None, {"scores": scores, "profiles": text_profiles(places, scores, category=factor)})


def _place(asked: Question, site: str, adata: AnnData, *, region: str) -> Place:
    ask, design = asked.ask, design_of(adata)
    if asked.features is not None:
        wanted = np.isin(adata.var["feature"].to_numpy(dtype=np.int64), asked.features[site])
        adata = adata[:, wanted].copy()
    texts = pooled_region(adata, region, pool=ask.pool, split=ask.split)
    A = as_columns(texts.X)
    given = asked.thetas[site] if isinstance(asked.thetas, Mapping) else asked.thetas
    theta = thresholds(A, given, texts.var["feature"].to_numpy(dtype=np.int64))
    data = item_data(texts, design, asked.written, region=region, position=0, split=ask.split, flips_only=False)
    items = category_items(data, design, next(iter(asked.written)))
    one = texts.copy()
    one.X = sp.csr_matrix(strong_texts(A, theta), dtype=np.float32)
    share = item_data(one, design, asked.written, region=region, position=0, split=ask.split, flips_only=False)
    return Place(site, region, texts, A, theta, items, items.means(share.Y), items.means(data.Y))


def _scored(asked: Question, place: Place, how: Relabelling, *, at: np.ndarray) -> Scored:
    """Observed z, counted p and maxima of one place."""
    items, rate = place.items, asked.ask.score == "rate"
    active = np.diff(place.values.indptr)
    known = np.isfinite(place.theta) if rate else np.ones(len(active), dtype=bool)
    enough = active >= asked.inference.min_informative
    columns = np.flatnonzero(enough & known)
    Y = place.strong[:, columns].toarray() if rate else value_ranks(place.values[:, columns].toarray())
    Z, spread = items.standardized(Y)
    left = {
        "never active": np.flatnonzero(active == 0),
        f"active in fewer than {asked.inference.min_informative} items": np.flatnonzero((active > 0) & ~enough),
        "without a threshold: not active on the reference text": np.flatnonzero(enough & ~known),
        "strong in no text, or alike in all texts of a stratum": columns[~spread],
    }
    columns, Z = columns[spread], Z[:, spread]
    weight = np.sqrt(1 / items.counts + 1 / (len(Z) - items.counts))[:, None]
    observed = items.sums(Z, items.codes[None])[0] * weight
    limit, reached = observed - 1e-9 * (1 + np.abs(observed)), np.zeros(observed.shape, dtype=np.int64)
    maxima = np.full(how.n, -np.inf)
    for first in range(0, how.n, TILE):
        moved = relabelled_codes(items, how, at, first=first, count=min(TILE, how.n - first))
        z = items.sums(Z, moved) * weight
        reached += (z >= limit).sum(axis=0)
        maxima[first : first + len(moved)] = z.max(axis=(1, 2), initial=-np.inf)
    return Scored(columns, observed, reached / how.n, maxima, left)


def relabelled_codes(items: CategoryItems, how: Relabelling, at: np.ndarray, *, first: int, count: int) -> np.ndarray:
    """Categories (count, n_rows) of the rows under relabellings first … first + count - 1."""
    if how.kind == "permute":
        return items.category_of_group[labels(how, first, count)]
    moved = levels(how, first, count)[at]  # (n_units, K, count): where the value of each level goes
    return moved.reshape(-1, count).T.astype(np.int64)


# --- the table ------------------------------------------------------------------------------------------------------


def _rows(
    asked: Question, place: Place, scored: Scored, *, null: np.ndarray, how: Relabelling, size: int
) -> pd.DataFrame:
    items, columns = place.items, scored.columns
    exchange, choice = items.data.exchange, asked.ask.features
    which = "features" if choice is None else choice.name if choice.from_ is None else f"features of {choice.name}"
    common = {
        "test": asked.name, "kind": "specialists", "site": place.site, "region": place.region, "position": 0,
        "split": asked.ask.split, "unit": exchange.unit, "n_units": items.data.n, "alternative": "greater",
    }  # fmt: skip
    total = place.strong[:, columns]
    features = place.adata.var["feature"].to_numpy(dtype=np.int64)[columns]
    texts_strong = strong_texts(place.A, place.theta)[:, columns]
    mean = np.asarray(place.A[:, columns].mean(axis=0)).ravel()
    of_text = items.category_of_text(place.adata)
    out = []
    for k, level in enumerate(items.levels):
        inside, here = items.codes == k, of_text == k
        n_in, n_out = (np.asarray(total[rows].sum(axis=0)).ravel() for rows in (inside, ~inside))
        estimate, low, high = rate_difference((n_in, int(inside.sum())), (n_out, int((~inside).sum())))
        x_in, x_out = (np.asarray(sp.csr_matrix(texts_strong)[r].sum(axis=0)).ravel() for r in (here, ~here))
        auc = auroc(place.values[:, columns], inside)
        bounds = {"ci_low": low, "ci_high": high, "ci_level": 0.95} if items.between else {}
        out.append(pd.DataFrame({
            **common, "effect": f"{asked.effect}: {level}", "feature": features, "n_features": 1,
            "stat": f"{asked.ask.score} z", "value": scored.z[k], "estimate": estimate, **bounds,
            "effsize": 2 * auc - 1, "eftype": "rank_biserial", "x_auc": auc,
            "p_unc": scored.p_unc[k], "p_corr": counted_p(null, scored.z[k], tolerance=1e-9), "p_adjust": "maxT",
            "p_method": "exact" if how.exhaustive else "permutations",
            "family": f"maximum over {which}, categories, sites and regions of this test", "n_family": size,
            "n_informative": np.diff(place.values[:, columns].indptr), "n_perm": how.n, "p_min": 1 / how.n,
            "h0": f"the categories of {asked.effect} are exchangeable over items, jointly for all features",
            "status": "ok", "note": None if items.between else "no interval: categories vary within items",
            "x_category": level, "x_theta": place.theta[columns], "x_in": x_in, "x_n_in": int(here.sum()),
            "x_out": x_out, "x_n_out": int((~here).sum()), "x_specialist": x_in - x_out,
            "x_composite": 100 * (x_in + x_out) / len(here) * mean,
        }))  # fmt: skip
    others = _others(asked, scored, common, features=place.adata.var["feature"].to_numpy(dtype=np.int64))
    return pd.concat([*out, others], ignore_index=True)


def _others(asked: Question, scored: Scored, common: Mapping[str, Any], *, features: np.ndarray) -> pd.DataFrame:
    """What was not tested and why: a row for each reason, with how many it holds for; for each feature asked about."""
    rows = []
    for why, columns in scored.left_out.items():
        row = {**common, "effect": asked.effect, "p_method": "none", "alternative": "greater", "note": why}
        row["status"] = "dead" if why == "never active" else "untestable"
        if asked.features is not None:
            rows += [row | {"feature": int(f), "n_features": 1} for f in features[columns]]
        elif len(columns):
            rows.append(row | {"set": f"features {why}", "n_features": len(columns)})
    return pd.DataFrame(rows)
