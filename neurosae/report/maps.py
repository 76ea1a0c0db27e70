"""What the page says of maps: where an effect was found, and what a cluster does not license."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import CORRECTIONS, by_effect, held, where, why_untested
from neurosae.report.figures_maps import cells_of, clusters_of, heat, largest, observed_of
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of, effect_ends
from neurosae.report.tables import distinct, first_known, has_numbers, is_found, ranked
from neurosae.report.wording import digits, listed, p_words, plural, slug

NO_ONSET = {
    "cluster": (
        "A cluster p never licenses “onset at”, “begins at” or “extends to”; claims about single cells come from a "
        "max-T map."
    ),
    "tfce": (
        "TFCE lends every cell the extent of its neighbourhood: like a cluster p, its p never licenses “onset at”, "
        "“begins at” or “extends to”; claims about single cells come from a max-T map."
    ),
}


def map_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect: how many cells or clusters were found, and where the strongest is."""
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    for effect, part in by_effect(rows):
        cells = cells_of(part)
        kind, tested = first_known(part["p_adjust"], "maxT"), cells[has_numbers(cells)]
        if not len(tested):
            text = f"No cell of the map of {effect} could be tested{where(cells)}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), localizer)
            continue
        asked = clusters_of(part) if kind == "cluster" else tested
        found = asked[is_found(asked, alpha)]
        told = {"test": test, "effect": effect, "localizer": localizer}
        number, detail = f"{len(found):,}", f"{held(part, alpha)} {_strongest(asked)} {NO_ONSET.get(kind, '')}".strip()
        noun = "cluster" if kind == "cluster" else "cell"
        if not len(asked):
            text = f"No cell passes the threshold for {effect}, so there is no cluster{where(cells)}."
            yield Statement(verdict="nothing", number="0", text=text, detail=held(part, alpha), **told)
        elif len(found):
            ways = _directions(found, effect_ends(study).get(effect, ("− cells", "+ cells")))
            text = (
                f"{effect} is found in {len(found):,} of {plural(len(asked), noun)} of the map{where(cells)}: {ways}."
            )
            yield Statement(verdict="found", number=number, text=text, detail=detail, **told)
        else:
            text = f"{effect} is found in none of {plural(len(asked), noun)} of the map{where(cells)}."
            yield Statement(verdict="nothing", number=number, text=text, detail=detail, **told)


def _directions(found: pd.DataFrame, ends: tuple[str, str]) -> str:
    """How many are more active at the + end of the effect, and how many at its - end."""
    sign = found["value"].astype(float)
    more = [(int((sign > 0).sum()), ends[1]), (int((sign < 0).sum()), ends[0])]
    return listed(f"{n:,} more active for {end}" for n, end in more if n)


def _strongest(rows: pd.DataFrame) -> str:
    if not len(rows):
        return ""
    row = ranked(rows).iloc[0]
    p = p_words(row["p_corr"], row.get("x_p_low"), row.get("x_p_high"))
    if pd.isna(row["site"]):
        size = f"{plural(int(row['x_n_cells']), 'cell')} around {row['x_peak']}"
        return f"The largest cluster has {size} (mass {digits(row['value'])}, p corrected {p})."
    place = f"{row['site']} · {row['region']} · position {int(row['position'])}".replace("-", "−")
    feature = row.get("x_feature")
    of = f", feature {int(feature)}" if feature is not None and pd.notna(feature) else ""
    return f"The strongest cell is {place} ({row['x_scale']} = {digits(row['x_height'])}{of}, p corrected {p})."


def draw_map(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """One heat map per effect, and the maximum over the map under the null."""
    alpha = alpha_of(study)
    effects = distinct(rows["effect"])
    for effect, part in by_effect(rows):
        if not has_numbers(cells_of(part)).any():
            continue
        kind = first_known(part["p_adjust"], "maxT")
        name = f"{slug(test)}-map" if len(effects) == 1 else f"{slug(test)}-{slug(effect)}-map"
        caption = f"{_colour(part)} {_outline(kind, alpha)} {_items(part)} {NO_ONSET.get(kind, '')}".strip()
        yield Drawing(name, "map", test, f"Where: {effect}", caption, heat(part, alpha=alpha), wide=_is_wide(part))
    if test in study.nulls and len(observed_of(rows)):
        words = (
            f"Histogram: the largest value of the map under each of {len(study.nulls[test]):,} relabellings, the "
            "identity included. Lines: what was observed (orange +, blue −). Dashed: the value that only "
            f"{alpha:.0%} of the relabellings reach."
        )
        figure = largest(study.nulls[test], rows, alpha=alpha)
        yield Drawing(f"{slug(test)}-null", "null", test, "The maximum under the null", words, figure)


def _is_wide(rows: pd.DataFrame) -> bool:
    return len(cells_of(rows)[["region", "position"]].drop_duplicates()) > 9


def _colour(rows: pd.DataFrame) -> str:
    cells = cells_of(rows)
    scale = first_known(cells["x_scale"], "z")
    what = "the t" if scale == "t" else "the normal equivalent z"
    strongest = "x_feature" in cells and cells["x_feature"].notna().any()
    if not strongest:
        of = f" of the {first_known(cells['set'], 'mean')}"
    elif first_known(rows["p_adjust"]) == "maxT":
        of = " of each cell's strongest feature"
    else:
        of = " of each cell's strongest feature, corrected for its having been the strongest (Šidák)"
    hatched = " Hatched: not tested." if not has_numbers(cells).all() else ""
    return f"Colour: {what}{of}; orange + cells, blue − cells. Sites from below in the order of the map.{hatched}"


def _outline(kind: str, alpha: float) -> str:
    return {
        "maxT": f"Contours: cells with p ≤ {alpha:g}, corrected over features and map.",
        "cluster": f"Contours: clusters with p ≤ {alpha:g} over the map, numbered as in the table.",
        "tfce": f"Contours: cells with p ≤ {alpha:g} of their TFCE, corrected over the map.",
    }.get(kind, "")


def _items(rows: pd.DataFrame) -> str:
    n = rows["n_units"].dropna().astype(int)
    split = first_known(rows["split"], "test")
    span = f"{n.min():,}" if n.min() == n.max() else f"{n.min():,} to {n.max():,}"
    return f"n = {span} {split} items; {int(rows['n_perm'].max()):,} relabellings, the same for every cell."


def map_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """How every map was made and corrected."""
    alpha = alpha_of(study)
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        kind, cells = first_known(part["p_adjust"], "maxT"), cells_of(part)
        shown = (
            first_known(cells["set"]) if not cells["x_feature"].notna().any() else "the strongest feature of each cell"
        )
        clusters = (
            " Cells above the t quantile of two-sided .05 formed clusters, positive and negative ones apart."
            if kind == "cluster"
            else ""
        )
        correction = f"{CORRECTIONS.get(kind, kind)} {CITED.get(kind, '')}".strip()
        yield (
            f"Map {test}: {shown} over {plural(len(cells), 'cell')} ({first_known(part['family'])}); {correction} "
            f"(level {alpha:g}), with the same relabelling in every cell.{clusters} {NO_ONSET.get(kind, '')}".strip()
        )


MAP = Section(map_statements, draw_map, map_methods)
"""What a map adds to the page."""
