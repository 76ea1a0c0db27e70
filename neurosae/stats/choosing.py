r"""Which rule chooses features that predict? Rules compared by the prediction of held-out items.

1. Items are divided into folds, strata alike, several times; an item is never on both sides.
2. On the training items a rule chooses k features (`rules`), and an L1 logistic regression is fitted to them
   (`logistic`); both see nothing of the held-out items. Scores of held-out rows give accuracy and AUC.
3. Rules, and sites under one rule, are compared by the item-wise differences of accuracy, averaged over k: by flips of
   items and by relabelled effects, the larger p counts; the maximum over all comparisons corrects each.
4. Each rule is compared with chance by relabelling the effect, choice and fit repeated every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference
from neurosae.spec.factorial import ChoosingBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results, counted_p
from neurosae.stats.asked import named_effects, positions_in, responses_by_site, settings_of
from neurosae.stats.coded import coded_rows, relabelled
from neurosae.stats.crossfit import deal, item_order
from neurosae.stats.decoding import ordered_pairs
from neurosae.stats.joined import in_deviations
from neurosae.stats.lengths import relabellings
from neurosae.stats.logistic import predict_many
from neurosae.stats.paired import flip_t, resampled_interval, sign_tiles
from neurosae.stats.relabel import flips
from neurosae.stats.rules import BLIND, Training, best_features, rule_scores
from neurosae.stats.units import AnnData, ItemData, item_data


class Question(NamedTuple):
    """A checked block with its effect: name of the test, the block, name of the effect, the effect, settings, seed."""

    name: str
    ask: ChoosingBlock
    effect: str
    written: Mapping[str, Any]
    inference: Inference
    seed: int


class Rows(NamedTuple):
    """Rows to predict at one site and region: values, courses or None, unit and label of each, and the item data."""

    X: np.ndarray
    courses: np.ndarray | None
    unit: np.ndarray
    label: np.ndarray
    data: ItemData


class Scored(NamedTuple):
    """One rule at one site and region: accuracy of every unit per k (n_units, n_k), AUC per k, how often chosen."""

    accuracy: np.ndarray
    auc: np.ndarray
    chosen: np.ndarray
    null: np.ndarray


def choosing(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    inference: Mapping[str, Any] | Inference | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Compare rules that choose features by how well their features predict the effect's levels in held-out items.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}: dictionary features, neurons, components, … are sites
    effect : a difference of two levels of one factor, or {name: effect}
    region : name or names; where a region keeps all of its tokens, a row's value is its mean over the tokens that all
        texts have, and similarities are correlations over them
    inference : keys of the `inference:` section; `n_permutations` and `alpha` are used
    settings : as in a `choosing` test: `rules`, `k`, `folds`, `repeats`, `penalty`, `n_null`, `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema. Rows of `stat` "accuracy": one per site, region and rule (`set`), `value` the mean accuracy
        over k and repeats, its 95 % interval from resampled items, `p_unc` and `p_corr` against chance. Rows of `stat`
        "accuracy difference": two rules at one site, or two sites under one rule (site NA), corrected over all of them.
        `x_n_tokens` is how many tokens of the region were used: those that all texts have.

    Raises
    ------
    DataError, SpecError
        An effect that has no two levels, too few items for the folds, or fewer features than the largest k.

    Notes
    -----
    H0 of a difference: the two rules predict the items equally well; signs of item-wise differences are flipped. That
    alone rejects too often, because held-out items share a classifier: a difference must also exceed those that
    relabelled effects give, and p is the larger of the two (each corrected by its maximum over all differences). H0 of
    chance: the labels are exchangeable; exact, since choice and fit are repeated in every relabelling. A rule that
    predicts better has found features that are more useful for a linear readout of few; nothing follows for the
    features one by one.

    References
    ----------
    Kriegeskorte et al. (2009), Nature Neuroscience 12:535. Tibshirani (1996), JRSS B 58:267. Ojala & Garriga (2010),
    JMLR 11:1833.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> design = example_design(40, between=True)
    >>> fake = simulate(design, n_features=80, effects={"number": 6}, density=0.3, shift=4.0, seed=1)
    >>> ask = {"rules": ["contrast", "random"], "k": [2, 4], "repeats": 2, "n_null": 40}
    >>> found = choosing(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", settings=ask, seed=1)
    >>> found[["set", "stat"]].values.tolist()
    [['contrast', 'accuracy'], ['random', 'accuracy'], ['contrast - random', 'accuracy difference']]
    >>> bool(found.value[0] > 0.8), bool(found.p_corr[2] <= 0.05)
    (True, True)
    """
    ((name, written),) = named_effects(effect).items()
    block = {"test": "choosing", "region": region, "effect": name, **(settings or {})}
    ask = as_record(block, ChoosingBlock, name="choosing")
    sites = responses_by_site(responses)
    sites = {site: choose("site", site, sites) for site in ask.sites or sites}
    return answer(Question("choosing", ask, name, written, settings_of(inference), seed), sites).table


def run(
    responses: Mapping[str, AnnData], ask: ChoosingBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: choosing`; extras: `choosing`, accuracy over k, and `chosen`, the features."""
    spec = study.spec
    name = name_of(ask, spec.tests)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    written = choose("effect", ask.effect, spec.effects)
    return answer(Question(name, ask, ask.effect, written, spec.inference, spec.seed), sites)


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(asked: Question, sites: Mapping[str, AnnData]) -> Tested:
    """Accuracy of every rule at every site and region, and all comparisons."""
    made: dict[tuple[str, str, str], Scored] = {}
    data: dict[tuple[str, str], Rows] = {}
    with threadpool_limits(1, user_api="blas"):
        for region in asked.ask.region:
            for site, adata in sites.items():
                rows = data[site, region] = rows_to_predict(asked, adata, region)
                for rule, scored in score_rules(asked, rows).items():
                    made[site, region, rule] = scored
    tables = [_rule_rows(asked, made, data), _comparisons(asked, made, data)]
    table = check_results(_joined(tables))
    return Tested(table, None, {"choosing": _curves(asked, made), "chosen": _chosen(made, data)})


def _joined(tables: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    frame = pd.DataFrame([row for rows in tables for row in rows])
    return as_results({name: frame[name] for name in frame.columns})


def rows_to_predict(asked: Question, adata: AnnData, region: str) -> Rows:
    """Values and labels of all rows of the effect at one region; of several tokens, those that all texts have."""
    design, ask = design_of(adata), asked.ask
    found, labels = [], None
    for position in positions_in(adata, region):
        try:
            data = item_data(adata, design, asked.written, region=region, position=position, split=ask.split)
            rows = coded_rows(data, np.arange(adata.n_vars), scaled=False)
        except DataError:  # texts are not equally long, so other positions than 0 may be missing in some
            if position == 0:
                raise
            continue
        if labels is None or len(rows.unit) == len(labels.unit):
            labels = labels or rows
            found.append((position, rows.X, data))
    assert labels is not None
    data = next(one for position, _, one in found if position == found[0][0])
    if data.n < 2 * ask.folds:
        raise DataError(f"{data.n} items do not make {ask.folds} folds of two; use fewer folds, or more items.")
    courses = np.stack([X for _, X, _ in sorted(found, key=lambda one: one[0])], axis=1) if len(found) > 2 else None
    X = labels.X if courses is None else courses.mean(axis=1)
    alive = np.flatnonzero(np.abs(X).max(axis=0) > 0)
    if len(alive) < max(ask.k):
        raise DataError(f"region '{region}' has {len(alive)} active features, fewer than k = {max(ask.k)}.")
    return Rows(X, courses, labels.unit, labels.label, data)


def score_rules(asked: Question, rows: Rows) -> dict[str, Scored]:
    """Held-out accuracy and AUC of all rules; the null repeats choice and fit under every relabelling."""
    ask, data = asked.ask, rows.data
    n_units, sizes = data.n, np.array(ask.k)
    ((how, place),) = relabellings([data], ask.n_null, seed=asked.seed, split=ask.split)
    Y = relabelled(_as_coded(rows), how, place, first=0, count=how.n)
    out = {
        rule: Scored(np.zeros((n_units, len(sizes))), np.zeros(len(sizes)), np.zeros(rows.X.shape[1]), np.zeros(how.n))
        for rule in ask.rules
    }
    for repeat in range(ask.repeats):
        fold = _folds(data, ask, seed=asked.seed + repeat)[rows.unit]
        for rule in ask.rules:
            scores, chosen = _held_out(asked, rows, Y, rule=rule, fold=(fold, repeat))
            right = np.where(scores == 0, 0.5, np.sign(scores) == Y[:, None])  # (labellings, k, rows)
            old = out[rule]
            per_unit = _unit_means(right[0].T, rows.unit, n_units)
            auc = np.array([_auc(scores[0, q], rows.label, fold) for q in range(len(sizes))])
            null = old.null + _unit_means(right.mean(axis=1).T, rows.unit, n_units).mean(axis=0)
            out[rule] = Scored(old.accuracy + per_unit, old.auc + auc, old.chosen + chosen, null)
    return {rule: Scored(*(part / ask.repeats for part in scored)) for rule, scored in out.items()}


def _as_coded(rows: Rows) -> Any:
    return coded_rows(rows.data, np.zeros(0, dtype=int), scaled=False)


def _folds(data: ItemData, ask: ChoosingBlock, *, seed: int) -> np.ndarray:
    codes = np.zeros(data.n, dtype=np.int64) if data.strata is None else np.unique(data.strata, return_inverse=True)[1]
    return deal(codes, item_order(data, seed=seed, split=ask.split), ask.folds)


def _held_out(
    asked: Question, rows: Rows, labels: np.ndarray, *, rule: str, fold: tuple[np.ndarray, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all rows, each by the classifier of the other folds; and how often features were chosen."""
    ask, sizes = asked.ask, np.array(asked.ask.k)
    folds, repeat = fold
    scores = np.empty((len(labels), len(sizes), len(rows.X)))
    chosen = np.zeros(rows.X.shape[1])
    for q in range(ask.folds):
        inside, held = np.flatnonzero(folds != q), np.flatnonzero(folds == q)
        courses = None if rows.courses is None else rows.courses[inside]
        train = Training(rows.X[inside], rows.unit[inside], rows.data.codes is None, courses)
        y = labels[:1, inside] if rule in BLIND else labels[:, inside]
        best = best_features(rule_scores(rule, train, y, seed=(asked.seed, repeat, q)), int(sizes.max()))
        best = np.broadcast_to(best, (len(labels), best.shape[1]))
        parts = (np.ascontiguousarray(rows.X[inside]), np.ascontiguousarray(rows.X[held]))
        choice = (np.ascontiguousarray(labels[:, inside]), np.ascontiguousarray(best), sizes)
        scores[:, :, held] = predict_many(parts, choice, float(ask.penalty))
        chosen[best[0]] += 1 / ask.folds
    return scores, chosen


def _unit_means(values: np.ndarray, unit: np.ndarray, n: int) -> np.ndarray:
    """Mean over the rows of every unit, (n_units, ...)."""
    counts = np.bincount(unit, minlength=n)
    return np.stack([np.bincount(unit, values[:, j], n) / counts for j in range(values.shape[1])], axis=1)


def _auc(scores: np.ndarray, label: np.ndarray, fold: np.ndarray) -> float:
    """Share of (+, -) pairs of one fold that scores put in order, mean over folds."""
    values = []
    for q in np.unique(fold):
        wins = np.empty(1)
        ordered_pairs(scores[None, fold == q], np.ascontiguousarray(label[None, fold == q]), wins)
        values.append(wins[0])
    return float(np.nanmean(values))


# --- rows -----------------------------------------------------------------------------------------------------------


def _about(asked: Question, site: Any, region: str, *, rows: Rows) -> dict[str, Any]:
    row = {"test": asked.name, "kind": "choosing", "effect": asked.effect, "site": site, "region": region}
    row |= {"position": 0, "split": asked.ask.split, "unit": rows.data.exchange.unit, "n_units": rows.data.n}
    row["x_n_tokens"] = 1 if rows.courses is None else rows.courses.shape[1]  # those that all texts have
    return row | {"status": "ok", "ci_level": 0.95}


def _rule_rows(
    asked: Question, made: Mapping[tuple[str, str, str], Scored], data: Mapping[tuple[str, str], Rows]
) -> list[dict[str, Any]]:
    """Every rule at every place, against chance; the maximum over rules and places corrects."""
    z = {key: in_deviations(scored.null) for key, scored in made.items()}
    corrected = counted_p(np.max(list(z.values()), axis=0), np.array([null[0] for null in z.values()]), tolerance=1e-9)
    out = []
    for (key, scored), p in zip(made.items(), corrected, strict=True):
        (site, region, rule), null = key, scored.null
        rows = data[site, region]
        mean = scored.accuracy.mean(axis=1)
        low, high = resampled_interval(mean, asked.seed)
        out.append(
            _about(asked, site, region, rows=rows)
            | {"set": rule, "n_features": max(asked.ask.k), "stat": "accuracy", "value": float(mean.mean())}
            | {"estimate": float(mean.mean() - 0.5), "effsize": float(scored.auc.mean()), "eftype": "AUC"}
            | {"ci_low": low - 0.5, "ci_high": high - 0.5, "p_unc": _reached(null), "p_corr": float(p)}
            | {"p_adjust": "maxT", "p_method": "permutations" if rows.data.codes is not None else "flips"}
            | {"family": f"all rules, sites and regions of test {asked.name} against chance", "n_family": len(made)}
            | {"n_perm": len(null), "p_min": 1 / len(null), "alternative": "greater", "x_z": float(z[key][0])}
            | {"h0": f"{rows.data.effect.h0}: held-out items are predicted at chance"}
            | {"note": "choice and fit were repeated in every relabelling"}
        )
    return out


def _reached(null: np.ndarray) -> float:
    return float((null >= null[0] - 1e-9).mean())


def _comparisons(
    asked: Question, made: Mapping[tuple[str, str, str], Scored], data: Mapping[tuple[str, str], Rows]
) -> list[dict[str, Any]]:
    """Item-wise differences of all pairs of rules at a site, and of all pairs of sites under a rule."""
    rules = asked.ask.rules
    pairs = []
    for region in asked.ask.region:
        sites = list(dict.fromkeys(site for site, where, _ in made if where == region))
        pairs += [((s, region, a), (s, region, b)) for s in sites for a, b in combinations(rules, 2)]
        pairs += [((s, region, a), (t, region, a)) for a in rules for s, t in combinations(sites, 2)]
    alike = {key[:2]: rows.data.names for key, rows in data.items()}
    pairs = [(one, two) for one, two in pairs if alike[one[:2]] == alike[two[:2]]]
    if not pairs:
        return []
    D = np.stack([made[one].accuracy.mean(axis=1) - made[two].accuracy.mean(axis=1) for one, two in pairs], axis=1)
    rows = data[pairs[0][0][:2]]
    relabelling = flips(rows.data.numbers, asked.inference.n_permutations, seed=asked.seed, split=asked.ask.split)
    t = np.concatenate([flip_t(D, S) for S in sign_tiles(relabelling)])
    null = np.stack([made[one].null - made[two].null for one, two in pairs], axis=1)
    z = np.abs(null) / np.maximum(np.sqrt((null**2).mean(axis=0)), 1e-12)
    both = [np.abs(t), z]
    p_unc = np.max([(v >= v[0] - 1e-9 * (1 + v[0])).mean(axis=0) for v in both], axis=0)
    p_corr = np.max([counted_p(v.max(axis=1), v[0], tolerance=1e-9) for v in both], axis=0)
    out = []
    for j, (one, two) in enumerate(pairs):
        low, high = resampled_interval(D[:, j], asked.seed)
        same_site = one[0] == two[0]
        name = f"{one[2]} - {two[2]}" if same_site else f"{one[2]}: {one[0]} - {two[0]}"
        flat = not D[:, j].any()
        out.append(
            _about(asked, one[0] if same_site else pd.NA, one[1], rows=rows)
            | {
                "set": name,
                "n_features": max(asked.ask.k),
                "stat": "accuracy difference",
                "value": float(D[:, j].mean()),
            }
            | {
                "estimate": float(D[:, j].mean()),
                "ci_low": low,
                "ci_high": high,
                "p_unc": float(p_unc[j]),
                "p_corr": float(p_corr[j]),
            }
            | {"p_adjust": "maxT", "p_method": "flips and relabellings, the larger", "n_family": len(pairs)}
            | {"family": f"all pairs of rules and of sites of test {asked.name}", "n_perm": len(null)}
            | {"p_min": 1 / len(null), "alternative": "two-sided", "status": "degenerate" if flat else "ok"}
            | {"h0": "both predict the items equally well", "n_informative": int((D[:, j] != 0).sum())}
            | {"x_t": float(t[0, j])}
            | {"note": "the larger p of flipped items and of relabelled effects"}
        )
    return out


def _curves(asked: Question, made: Mapping[tuple[str, str, str], Scored]) -> pd.DataFrame:
    """Accuracy and AUC over k, long, with bands of resampled items."""
    out = []
    for (site, region, rule), scored in made.items():
        for q, k in enumerate(asked.ask.k):
            low, high = resampled_interval(scored.accuracy[:, q], asked.seed)
            row = {"site": site, "region": region, "rule": rule, "k": int(k), "low": low, "high": high}
            out.append(row | {"accuracy": float(scored.accuracy[:, q].mean()), "auc": float(scored.auc[q])})
    return pd.DataFrame(out)


def _chosen(
    made: Mapping[tuple[str, str, str], Scored], data: Mapping[tuple[str, str], Rows], *, top: int = 20
) -> pd.DataFrame:
    """The features that a rule chose most often, and in which share of the folds."""
    out = []
    for (site, region, rule), scored in made.items():
        best = np.lexsort([np.arange(len(scored.chosen)), -scored.chosen])[:top]
        for j in best[scored.chosen[best] > 0]:
            feature = int(data[site, region].data.features[j])
            out.append({"site": site, "region": region, "rule": rule, "feature": feature, "share": scored.chosen[j]})
    return pd.DataFrame(out)
