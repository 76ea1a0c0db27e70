"""FIGURES: one figure per function, a table in and a Figure out; and which of them contrasts and geometries ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.figures_attribution import attention_regions, components, head_grid, lens, screen
from neurosae.report.figures_cards import feature_card, label_deciles, tuning_levels
from neurosae.report.figures_causal import clamp_lines, control_histogram, dose_response, dose_surface, ladder_bars
from neurosae.report.figures_courses import courses
from neurosae.report.figures_examine import category_bars, landscape, leaders, text_map
from neurosae.report.figures_features import cells, items, profile
from neurosae.report.figures_geometry import divided, plane
from neurosae.report.figures_patching import patching
from neurosae.report.figures_pattern import fits, rdms, weights
from neurosae.report.figures_training import training_curves
from neurosae.report.figures_univariate import null_maximum, strip, volcano
from neurosae.report.figures_written import removal_cells, removal_costs, steering
from neurosae.report.parts import Drawing
from neurosae.report.stored import (
    Study,
    alpha_of,
    compiled_effects,
    effect_ends,
    effect_weights,
    factor_levels,
    section,
)
from neurosae.report.tables import KEY, distinct, is_found, of_activations, ranked, rows_tested
from neurosae.report.wording import plural, slug

FIGURES: dict[str, Callable[..., Figure]] = {
    "volcano": volcano,
    "strip": strip,
    "profile": profile,
    "items": items,
    "cells": cells,
    "courses": courses,
    "null": null_maximum,
    "weights": weights,
    "rdms": rdms,
    "fits": fits,
    "plane": plane,
    "parts": divided,
    "training": training_curves,
    "lists": leaders,
    "texts": text_map,
    "bars": category_bars,
    "densities": landscape,
    "card": feature_card,
    "tuning": tuning_levels,
    "deciles": label_deciles,
    "patching": patching,
    "clamps": clamp_lines,
    "controls": control_histogram,
    "doses": dose_response,
    "surface": dose_surface,
    "ladder": ladder_bars,
    "screen": screen,
    "components": components,
    "lens": lens,
    "heads": head_grid,
    "regions": attention_regions,
    "steering": steering,
    "removal": removal_costs,
    "removal_cells": removal_cells,
}
MAX_EFFECTS = 8  # figures of one test; its table has them all


def draw_design(study: Study) -> Iterator[Drawing]:
    """The effects as weights over cells."""
    table = effect_weights(study)
    if table.size:
        caption = (
            "The weight of every cell in every effect, as written. Each row sums to zero; an item's contrast is the "
            "weighted sum of its cells."
        )
        yield Drawing("design-weights", "weights", "", "Effects as weights over cells", caption, weights(table))


def draw_overview(study: Study) -> Iterator[Drawing]:
    """What the found features of all contrasts respond to."""
    alpha, rows = alpha_of(study), study.results[study.results["split"] != "localizer"]
    rows = of_activations(rows)
    hits = rows_tested(rows)
    columns = hits.groupby(["effect", "region", "position"], dropna=False).ngroups
    if not is_found(hits, alpha).any() or columns < 2:
        return
    caption = (
        "Features found somewhere (rows) over every effect and place that was tested (columns). Colour: signed effect "
        f"size; a dot marks where the corrected p is at most {alpha:g}; white: not active or not tested there. "
        + _items_words(study, "test")
    )
    yield Drawing("profile", "profile", "", "What the found features respond to", caption, profile(rows, alpha=alpha))


def _items_words(study: Study, split: str) -> str:
    kept = study.stimuli[study.stimuli["split"].astype(str) == split] if "split" in study.stimuli else study.stimuli
    n = kept["item"].nunique()
    return f"Drawn from the {plural(n, f'{split} item')}."


def draw_contrast(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Volcano, places, null maximum, items and cells of one contrast."""
    if not len(rows_tested(rows)):
        return
    alpha, split = alpha_of(study), (distinct(rows["split"]) or ["test"])[0]
    source = _items_words(study, split)
    effects = distinct(rows["effect"])
    for effect in effects[:MAX_EFFECTS]:
        part = rows[rows["effect"] == effect]
        name = slug(test) if len(effects) == 1 else f"{slug(test)}-{slug(effect)}"
        of = f": {effect}" if len(effects) > 1 else ""
        if part["effsize"].notna().any() and part["p_unc"].notna().any():
            words = (
                "One point per tested feature. Orange: a positive contrast (+ cells minus − cells), blue: a negative "
                f"one; grey: not found at corrected p ≤ {alpha:g}. {source}"
            )
            yield Drawing(
                f"{name}-volcano", "volcano", test, f"Effect and evidence{of}", words, volcano(part, alpha=alpha)
            )
        words = f"The same tests by place; colour marks corrected p ≤ {alpha:g}. {source}"
        yield Drawing(f"{name}-strip", "strip", test, f"Where{of}", words, strip(part, alpha=alpha))
    if test in study.nulls and "x_z" in rows and rows["x_z"].notna().any():
        yield _null(study, test, rows)
    yield from _top(study, test, rows)


def _null(study: Study, test: str, rows: pd.DataFrame) -> Drawing:
    null, alpha = study.nulls[test], alpha_of(study)
    joined = any(test in tests for tests in section(study.analysis, "inference", "families").values())
    words = (
        "Histogram: the largest statistic among all features of this test under each of "
        f"{len(null):,} relabellings, the "
        "identity included. Lines: the most extreme observed features (orange +, blue −). The dashed line is the value "
        f"that only {alpha:.0%} of the relabellings reach."
        + (
            " The declared family joins this maximum with that of its other tests; p_corr comes from the joint one."
            if joined
            else ""
        )
    )
    figure = null_maximum(null, rows, alpha=alpha)
    return Drawing(f"{slug(test)}-null", "null", test, "The maximum under the null", words, figure)


def _top(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Items and cells of the most extreme features; the caption says whether they were found."""
    alpha, split = alpha_of(study), (distinct(rows["split"]) or ["test"])[0]
    best = ranked(rows_tested(rows))
    n_found = int(is_found(best, alpha).sum())
    n_shown = min(8, n_found) if n_found else min(4, len(best))
    best = best.head(n_shown)
    said = (
        f"The {n_shown} most extreme of {n_found:,} found features."
        if n_found
        else (
            "None of these features was found; they are the most extreme ones, drawn so that you can "
            "see what was tested."
        )
    )
    said += (
        f" Chosen and drawn on the same {plural(_n_items(study, split), f'{split} item')}, so their size is optimistic."
    )
    long = study.extras.get((test, "items"))
    if long is not None and len(chosen := _chosen(long, best)):
        paired = (chosen["plus"].notna() & chosen["minus"].notna()).any()
        how = (
            (
                "Each thin line is one item, from its mean over the − cells to its mean over the + cells; "
                "the thick line is the mean."
            )
            if paired
            else "Each dot is one item; the bar is the mean of the group."
        )
        figure = items(chosen, ends=effect_ends(study), top=n_shown)
        yield Drawing(f"{slug(test)}-items", "items", test, "Item by item", f"{how} {said}", figure, wide=n_shown > 2)
    long = study.extras.get((test, "cells"))
    if long is not None and len(chosen := _chosen(long, best)):
        words = (
            f"Mean activation per cell; the area of a dot is the share of items in which the feature is active. {said}"
        )
        named = {name: effect.factors for name, effect in compiled_effects(study).items()}
        figure = cells(chosen, factors=factor_levels(study), named=named, top=n_shown)
        yield Drawing(f"{slug(test)}-cells", "cells", test, "Cell means", words, figure, wide=n_shown > 2)
    yield from _tokens(study, test, best, said=said)


def _tokens(study: Study, test: str, best: pd.DataFrame, *, said: str) -> Iterator[Drawing]:
    """What a collapse over tokens hides: the same features at every token of their region."""
    long = study.extras.get((test, "tokens"))
    if long is None or not len(chosen := _chosen(long, best)):
        return
    rule = str(section(study.analysis, "positions").get("tokens", "last"))
    words = (
        f"The test used the {rule} of the tokens of a region; here is each of them, 0 the last. Mean activation over "
        "the + and over the − cells; the area of a dot is the share of items in which the feature is active there. "
        f"Tokens that only some texts have are means over those. {said}"
    )
    shown = len(chosen.groupby(KEY, dropna=False))
    yield Drawing(
        f"{slug(test)}-courses", "courses", test, "Before the collapse: token by token", words,
        courses(chosen, ends=effect_ends(study)), wide=shown > 2,
    )  # fmt: skip


def _n_items(study: Study, split: str) -> int:
    if "split" not in study.stimuli:
        return int(study.stimuli["item"].nunique())
    return int(study.stimuli.loc[study.stimuli["split"].astype(str) == split, "item"].nunique())


def _chosen(long: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """The rows of a long table that belong to the given results rows, in their order."""
    if "split" in long and "split" in best and len(splits := distinct(best["split"])):
        long = long[long["split"].astype(str).isin(splits)]
    order = {tuple(map(_key, key)): i for i, key in enumerate(best[KEY].itertuples(index=False))}
    rank = [order.get(tuple(map(_key, key)), -1) for key in long[KEY].itertuples(index=False)]
    kept = long.assign(_rank=rank)
    return kept[kept["_rank"] >= 0].sort_values("_rank", kind="stable").drop(columns="_rank")


def _key(value: Any) -> str | int | None:
    if value is None or pd.isna(value):
        return None
    return value if isinstance(value, str) else int(value)


def draw_pattern(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Distances between conditions, and how well the models fit them."""
    alpha, split = alpha_of(study), (distinct(rows["split"]) or ["test"])[0]
    source = _items_words(study, split)
    long = study.extras.get((test, "rdm"))
    if long is not None and len(long):
        words = (
            "Dissimilarity of every pair of conditions: the data, then each model. Each matrix has its own scale; "
            f"cross-validated distances can be negative, and 0 means no reliable difference. {source}"
        )
        yield Drawing(f"{slug(test)}-rdms", "rdms", test, "Geometry of data and models", words, rdms(long), wide=True)
    if rows["value"].notna().any():
        words = (
            f"Agreement of each model with the data. Filled bars: corrected p ≤ {alpha:g}. The grey band is the noise "
            f"ceiling, where one was estimated: no model can be expected beyond it. {source}"
        )
        yield Drawing(f"{slug(test)}-fits", "fits", test, "Model fits", words, fits(rows, alpha=alpha), wide=True)
