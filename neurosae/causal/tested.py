"""Tests of what was measured on a model as if it were responses: contrasts between cells, or means against 0.

Attribution, attention and the logit lens each give one number per stimulus and thing (feature, head, layer); what is
done with them is what `test: contrast` does with activations, over the same items and relabellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from neurosae.design.weights import Effect
from neurosae.errors import choose
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import Asked, many
from neurosae.stats.contrast import run_family
from neurosae.stats.units import AnnData

MEAN = "mean"
"""Name of the effect of a test that asks for the mean over all cells."""


def mean_effect(design: Design, what: str) -> Effect:
    """The mean over all cells of the design, to be compared with 0 by flips of whole items.

    Examples
    --------
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "n", "factors": {"number": ["sg", "pl"]},
    ...     "frames": {"f": "The {noun:number}"}, "items": {"key": {"noun": {"sg": "key", "pl": "keys"}}}})
    >>> mean_effect(design, "the effect on LD").weights.tolist()
    [0.5, 0.5]
    """
    cells = tuple(product(*(factor.levels for factor in design.factors.values())))
    h0 = f"{what}, averaged over all cells, is symmetric around 0 over items"
    return Effect(cells, np.full(len(cells), 1 / len(cells)), tuple(design.factors), h0, "mean over all cells")


def block_settings(ask: Any, study: Any) -> Inference:
    """The `inference:` section, with what a block says itself in its place."""
    changed = {key: getattr(ask, key, None) for key in ("statistic", "correction", "alternative")}
    return study.spec.inference.model_copy(update={k: v for k, v in changed.items() if v is not None})


def block_effects(ask: Any, study: Any, *, what: str) -> dict[str, Any]:
    """The effects that a block names, or the mean over all cells."""
    if not ask.effect:
        return {MEAN: mean_effect(study.design, what)}
    return {name: choose("effect", name, study.spec.effects) for name in many(ask.effect)}


def name_of(ask: Any, study: Any) -> str:
    """The name under which a block stands in its study."""
    return next((name for name, block in study.spec.tests.items() if block is ask), ask.test)


def run_sites(
    sites: Mapping[str, AnnData],
    ask: Any,
    study: Any,
    *,
    effects: Mapping[str, Any],
    noun: str,
    features: Mapping[str, np.ndarray] | None = None,
) -> Tested:
    """One block on measured sites, as one family over effects, sites, regions and whatever the columns are.

    Parameters
    ----------
    sites : {name: responses}
    effects : by name, as written or compiled
    noun : what a column is, in the plural: heads, layers, components
    features : columns to test, by site; all without
    """
    regions = tuple(dict.fromkeys(str(r) for adata in sites.values() for r in adata.obs["region"].unique()))
    name, settings = name_of(ask, study), block_settings(ask, study)
    asked = Asked(name, dict(effects), regions, ask.split, None if features is None else dict(features))
    top = study.spec.report.top_features
    tested = run_family(dict(sites), asked, settings, seed=study.spec.seed, top=top)
    table = tested.table.assign(kind=pd.array([ask.test] * len(tested.table), dtype="string"))
    words = table["family"].str.replace("all testable features x positions", f"all {noun}", regex=False)
    return tested._replace(table=check_results(table.assign(family=words)))
