"""What a map may ask of an analysis: two cells at least, neighbours where it has clusters, comparable statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neurosae.spec.words import Problem, Where


def map_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with a map, as far as it can be seen before a model is loaded."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    if analysis.inference.statistic == "mean":
        text = "compares cells, but inference.statistic: mean is in each site's own units; use t or moderated_t there."
        yield where, text
    sites, positions = _n_sites(block, analysis), _n_positions(analysis)
    if sites is None:
        return
    if "site" in block.over and sites < 2 and len(block.over) == 1:
        yield (*where, "over"), "goes over sites, but there is one; name more under `sites:`, or use over: position."
    elif positions is not None and sites * positions * _n_regions(block, analysis) < 2:
        yield where, "has one cell; a map needs at least 2: name more sites or regions, or use a contrast."
    elif block.statistic != "maxT" and positions == 1 and ("site" not in block.over or sites < 2):
        text = f"no two cells are neighbours, so {block.statistic} has nothing to join"
        yield (*where, "statistic"), f"{text}; use statistic: maxT, more sites, or positions.tokens: all."


def _n_sites(block: Any, analysis: Any) -> int | None:
    """Number of sites of a map; None where a hook stands for every layer of a model that is not loaded yet."""
    names = block.sites or tuple(analysis.sites)
    hooks = [analysis.sites[site].hook for site in names if site in analysis.sites]
    return None if any("*" in hook for hook in hooks) else len(names)


def _n_regions(block: Any, analysis: Any) -> int:
    """Number of regions; a region that is locked to its start and end counts twice."""
    return sum(2 if analysis.positions.locked and "@" not in region else 1 for region in block.region)


def _n_positions(analysis: Any) -> int | None:
    """Number of positions of every region; None where it depends on the texts."""
    positions = analysis.positions
    if positions.tokens != "all":
        return 1
    if positions.window is not None:
        return positions.window[1] - positions.window[0] + 1
    return None
