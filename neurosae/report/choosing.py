"""What the page says of rules that choose features, compared by the prediction of held-out items."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import by_effect, n_units, named_cautions, where
from neurosae.report.figures_factorial import rule_curves, rule_differences
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, is_found, place_names, ranked
from neurosae.report.wording import digits, listed, p_words, plural, slug

LIMIT = (
    "A rule that predicts better finds features that serve a linear readout of few; this says nothing of what a single "
    "feature means."
)


def choosing_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """What predicts better than chance, and which rules and representations differ."""
    for effect, part in by_effect(rows):
        yield _statement(study, test, effect, rows=part)


def _statement(study: Study, test: str, effect: str, *, rows: pd.DataFrame) -> Statement:
    alpha = alpha_of(study)
    rules, pairs = (rows[(rows["stat"] == stat).to_numpy(dtype=bool)] for stat in ("accuracy", "accuracy difference"))
    above = rules[is_found(rules, alpha)]
    differ = ranked(pairs[is_found(pairs, alpha)])
    best = rules.loc[rules["value"].astype(float).idxmax()]
    places = pd.Series(place_names(rules).to_numpy(), index=rules.index)
    n_rules = f"{plural(rules['set'].nunique(), 'rule')} × {plural(rules['site'].nunique(), 'site')}"
    if len(above):
        names = listed(f"{_plain(row['set'])} in {places[i]}" for i, row in above.head(6).iterrows())
        more = f" and {len(above) - 6} more" if len(above) > 6 else ""
        text = f"{effect} of held-out items is predicted above chance by {names}{more}{where_region(rules)}"
    else:
        text = f"None of {n_rules} predicts {effect} of held-out items above chance{where_region(rules)}"
    text += f"; {_difference_words(differ, len(pairs))}."
    p = p_words(best["p_corr"], None, None)
    detail = (
        f"The best mean accuracy over k is {digits(best['value'])} ({_plain(best['set'])}, {places[best.name]}; "
        f"against chance p corrected {p}, maximum over {plural(len(rules), 'rule and place', 'rules and places')}), "
        f"{plural(n_units(rules), 'item')}."
    )
    verdict = "found" if len(above) or len(differ) else "nothing"
    cautions = (LIMIT, *named_cautions(study, test, effect))
    localizer = distinct(rows["split"]) == ["localizer"]
    return Statement(test, effect, verdict, f"{len(differ)}/{len(pairs)}", text, detail, localizer, cautions)


def where_region(rows: pd.DataFrame) -> str:
    """` at <regions>`; sites stand beside the rules."""
    return where(rows.assign(site=pd.array([pd.NA] * len(rows), "string")))


def _plain(rule: object) -> str:
    return str(rule).replace("_rsa", " RSA")


def _difference_words(differ: pd.DataFrame, n: int) -> str:
    if not len(differ):
        return f"of {plural(n, 'comparison')} of rules and of sites none differs"
    first = differ.iloc[0]
    at = f" in {first['site']}" if pd.notna(first["site"]) else ""
    bounds = f" [{digits(first['ci_low'])}, {digits(first['ci_high'])}]"
    return (
        f"{len(differ)} of {plural(n, 'comparison')} of rules and of sites "
        f"{'differ' if len(differ) > 1 else 'differs'}, first {_plain(first['set'])}{at} "
        f"({digits(first['estimate'])}{bounds}, p corrected {digits(first['p_corr'])})"
    )


def draw_choosing(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Accuracy over k, and the table of differences."""
    curves, alpha = study.extras.get((test, "choosing")), alpha_of(study)
    source = f"Drawn from {plural(n_units(rows), 'item')} of split {listed(distinct(rows['split']))}."
    if curves is not None and len(curves):
        words = (
            "Accuracy on held-out items over the number of features that each rule chooses on the others; upright: "
            f"95 % intervals from resampled items; dashed: chance. {source}"
        )
        title = "What predicts held-out items"
        yield Drawing(f"{slug(test)}-rules", "rules", test, title, words, rule_curves(curves), wide=True)
    pairs = rows[(rows["stat"] == "accuracy difference").to_numpy(dtype=bool)]
    if len(pairs):
        few = f"The 24 largest of {len(pairs)} differences. " if len(pairs) > 24 else ""
        words = (
            f"{few}Difference of accuracy between two rules at one site, or two sites under one rule, mean over k, "
            f"with its 95 % interval from resampled items. "
            f"Filled: p ≤ {alpha:g} corrected over all differences. {source}"
        )
        figure = rule_differences(pairs, alpha=alpha)
        yield Drawing(f"{slug(test)}-differences", "differences", test, "Rules compared", words, figure, wide=True)


def choosing_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Rules, classifier, folds and inference."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        ask = section(study.analysis, "tests", test)
        rules = part[(part["stat"] == "accuracy").to_numpy(dtype=bool)]
        n = {stat: digits(int(x.dropna().max())) for stat, x in part.groupby("stat")["n_perm"] if x.notna().any()}
        k = listed(ask.get("k", (1, 2, 4, 8)))
        yield (
            f"{test}: the rules {listed(_plain(r) for r in distinct(rules['set']))} chose k = {k} features at "
            f"{listed(distinct(rules['site']))}; an L1-penalized logistic regression [tibshirani1996] of these "
            f"features predicted held-out items ({ask.get('folds', 5)} folds that split no item, "
            f"{ask.get('repeats', 3)} "
            "divisions), choice, standardization and fit being made without them. "
            f"Accuracy was compared with chance by {n.get('accuracy', '–')} relabellings with choice and fit repeated "
            f"[ojala2010], and between rules and between sites by the larger p of flips of "
            "item-wise differences and of the differences that relabelled effects give; the maximum over all corrects "
            "each [westfall1993]."
        )


CHOOSING = Section(choosing_statements, draw_choosing, choosing_methods)
