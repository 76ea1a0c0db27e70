"""What the page says of specialists: features that are strong in the texts of one category and weak in all others."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import held, n_units, named_cautions, shared_cautions, where, why_untested
from neurosae.report.figures_examine import category_bars, landscape, leaders, text_map
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, first_known, ranked, rows_found, rows_tested
from neurosae.report.wording import digits, feature_name, listed, plural, slug

SAME_ITEMS = (
    "The shares of strong texts and the AUROC of a found specialist are those of the texts that found it, and so too "
    "large; choose on a localizer, or test other texts, before its size is reported."
)
WORDS = (
    "A specialist separates these texts by category; it may answer to single words that they hold, and says nothing "
    "of whether the model uses it. Look at its top examples on other text, and intervene."
)
POOLED = {"max": "maximum", "last": "last token"}
FEW = "No specialist was found for {}: with so few texts only a feature that is strong in most of them reaches p ≤ {}."


def specialist_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One sentence per test: which categories have specialists, how many, and which are the first."""
    alpha = alpha_of(study)
    tested, found = rows_tested(rows), rows_found(rows, alpha)
    effect = first_known(rows["effect"]).partition(":")[0]
    localizer = distinct(rows["split"]) == ["localizer"]
    if not len(tested):
        yield Statement(test, effect, "untested", "–", f"No feature was tested for {effect}.", why_untested(rows),
                        localizer)  # fmt: skip
        return
    categories = distinct(tested["x_category"])
    by = found.groupby("x_category")["feature"].size()
    lost = [category for category in categories if category not in by]
    n_features = tested[["site", "feature"]].drop_duplicates().shape[0]
    if len(found):
        names = listed(
            f"{category} {by[category]} ({_first(found, category)})" for category in categories if category in by
        )
        text = f"{_many(found)} {'is a specialist' if len(found) == 1 else 'are specialists'} of {effect}{where(rows)}"
        text += f": {names}" + (f"; none of {listed(lost, last='or')}." if lost else ".")
    else:
        text = f"None of {plural(n_features, 'feature')} is a specialist of any of {plural(len(categories), effect)}"
        text += f"{where(rows)}."
    best = ranked(found if len(found) else tested).iloc[0]
    cautions = [WORDS, SAME_ITEMS] if len(found) else []
    cautions += [FEW.format(listed(lost, last="or"), f"{alpha:g}")] if lost else []
    cautions += [*shared_cautions(tested), *named_cautions(study, test, effect)]
    verdict = "found" if len(found) else "nothing"
    detail = f"{held(tested, alpha)} {_example(study, test, best)}"
    yield Statement(test, effect, verdict, str(len(found)), text, detail, localizer, tuple(cautions))


def _many(found: pd.DataFrame) -> str:
    n = found[["site", "feature"]].drop_duplicates().shape[0]
    return plural(n, "feature")


def _first(found: pd.DataFrame, category: str) -> str:
    mine = ranked(found[found["x_category"] == category]).head(3)
    names = [feature_name(row["site"], row["feature"]) for _, row in mine.iterrows()]
    more = int((found["x_category"] == category).sum()) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _example(study: Study, test: str, row: pd.Series) -> str:
    """The leading feature in plain counts, with the text where it is strongest."""
    said = (
        f"The leading feature is {feature_name(row['site'], row['feature'])} at {row['region']}: strong in "
        f"{int(row['x_in'])} of {int(row['x_n_in'])} texts of {row['x_category']} and in {int(row['x_out'])} of "
        f"{int(row['x_n_out'])} others (specialist score {int(row['x_specialist']):+d}, "
        f"AUROC {digits(row['x_auc'])}, p corrected {digits(row['p_corr'])})"
    ).replace("-", "−")
    scores = study.extras.get((test, "scores"))
    if scores is None or "text" not in study.stimuli:
        return f"{said}."
    mine = scores[(scores["site"] == row["site"]) & (scores["feature"] == row["feature"])]
    text = study.stimuli["text"].get(str(mine["text"].iloc[0])) if len(mine) else None
    return f"{said}; strongest in “{text}”" if text else f"{said}."


def draw_specialists(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """The dashboard of every site and region: lists, map of texts, categories, densities."""
    scores, texts = (study.extras.get((test, name)) for name in ("scores", "profiles"))
    if scores is None or texts is None or not len(scores):
        return
    alpha, n = alpha_of(study), n_units(rows)
    several = scores["region"].nunique() > 1
    for (site, region), mine in scores.groupby(["site", "region"], sort=False):
        here = texts[(texts["site"] == site) & (texts["region"] == region)]
        name, at = f"{slug(test)}-{slug(site)}-{slug(region)}", f"{site} · {region}" if several else str(site)
        source = f"Drawn from {plural(n, 'item')} of split {listed(distinct(rows['split']))}, site {at}."
        words = (
            "The first features of six lists over the texts. Only the last one is a test: filled bars have p ≤ "
            f"{alpha:g} corrected over all features and categories; the others describe. Lifetime sparseness is 1 for "
            "every feature of one text alone; the list by fewest strong texts is the older reading of selective, which "
            f"a feature that is weakly on everywhere can lead. {source}"
        )
        figure = leaders(mine, alpha=alpha)
        yield Drawing(f"{name}-lists", "lists", test, f"Leading features, {at}", words, figure, wide=True)
        if mine["z"].notna().any() and len(here):
            words = (
                f"Rows: features with the category that they lead (* p ≤ {alpha:g} corrected; above the line). "
                f"Columns: texts, grouped by category. Colour: pooled activation as a share of the feature's largest. "
                f"{source}"
            )
            figure = text_map(here, mine, alpha=alpha)
            yield Drawing(f"{name}-texts", "texts", test, f"Features by texts, {at}", words, figure, wide=True)
            words = (
                "Share of the texts of each category in which the feature is strong; green: the category that it "
                f"leads, filled where p ≤ {alpha:g} corrected. {source}"
            )
            figure = category_bars(here, mine, alpha=alpha)
            yield Drawing(f"{name}-bars", "bars", test, f"Category by category, {at}", words, figure, wide=True)
        words = (
            "Left: every active feature by the share of texts where it is active and its lifetime sparseness; green: "
            f"found specialists. Right: how many features have which density. {source}"
        )
        figure = landscape(mine, alpha=alpha)
        yield Drawing(
            f"{name}-densities", "densities", test, f"Density and selectivity, {at}", words, figure, wide=True
        )


def specialist_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Pooling, threshold, score, and what was permuted."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        ask, tokens = section(study.analysis, "tests", test), section(study.analysis, "positions").get("tokens", "last")
        pool = str(ask.get("pool", "max") if tokens == "all" else tokens)
        pool = POOLED.get(pool, pool)
        theta = ask.get("theta", "reference")
        above = {
            "reference": "the median of its active values on reference text",
            "stimuli": "the median of its active values on these texts",
        }.get(str(theta), f"{theta}")
        rate = ask.get("score", "rate") == "rate"
        score = "the share of strong texts" if rate else "the rank of the mean activation"
        n_perm = part["n_perm"].dropna()
        yield (
            f"{test}: the tokens of a text were pooled by their {pool}; a text was strong where a feature exceeded "
            f"{above}. Inside and outside each category {score} was compared, standardized by its variance inside "
            f"strata, one-sided; the categories of whole items were permuted "
            f"{digits(int(n_perm.max())) if len(n_perm) else '–'} times, and the maximum over features, categories, "
            "sites and regions corrects each [westfall1993]."
        )


SPECIALISTS = Section(specialist_statements, draw_specialists, specialist_methods)
