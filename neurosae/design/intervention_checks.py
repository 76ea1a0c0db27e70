"""What is true of interventions before a model is loaded: what is exchanged, how small p can get, what a run costs.

Their datum is the change of an outcome behind the edit, so what is said of contrasts of activations (which words stand
at the region, whether texts differ up to it) says nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import pandas as pd

from neurosae.design.units import carriers, components
from neurosae.spec.causal import InterventionBlock, JointClampBlock
from neurosae.spec.design import Design
from neurosae.spec.patching import PLACES, PatchingBlock
from neurosae.spec.words import Problem

FEWEST = 6  # items
BATCH = 4096  # tokens of a pass
H0 = "edited and clean outcomes are exchangeable within items, or these features with their controls"
H0_JOINT = "the effects of the sets add up over items, or fail to no more than those of matched pairs"
EDITS = (InterventionBlock, JointClampBlock, PatchingBlock)


def is_edit(block: Any) -> bool:
    """Whether a test changes activations, so that its outcome lies behind its region."""
    return isinstance(block, EDITS)


def intervention_lines(design: Design, stimuli: pd.DataFrame, analysis: Any) -> Iterator[tuple[str, str]]:
    """(test, sentences) of every test that edits: units, what is exchanged, smallest p, cost."""
    for name, block in edits_of(analysis):
        rows = [_texts(stimuli, block, region) for region in block.region]
        n = min(_n_units(design, part) for part in rows)
        unit = "groups of items" if design.unit == "shared_forms" else "items"
        said = [f"{n} test {unit}, whole {unit} are sign-flipped, one flip for {_flipped(block)}: p over items can "
                f"reach {2.0 ** (1 - n):.2g}"]  # fmt: skip
        said += _among_controls(block, analysis) if not isinstance(block, PatchingBlock) else _over_grid(block)
        yield name, f"{name} ({block.test}): {'. '.join([*said, *_cost(block, rows)])}."


def edits_of(analysis: Any) -> Iterator[tuple[str, Any]]:
    """The tests of an analysis that edit."""
    tests = analysis.tests if analysis is not None else {}
    yield from ((name, block) for name, block in tests.items() if is_edit(block))


def intervention_problems(design: Design, stimuli: pd.DataFrame, analysis: Any) -> Iterator[Problem]:
    """Too few items for any p, where the file says how many there are."""
    for name, block in edits_of(analysis):
        for region in block.region:
            n = _n_units(design, _texts(stimuli, block, region))
            if n < FEWEST:
                where = f"region '{region}'" + (f" at {_levels(block)}" if getattr(block, "only", None) else "")
                text = f"{n} test items have {where}; sign flips of {n} reach p {2.0 ** (1 - n) if n else 1:.2g}, so "
                yield ("tests", name), text + f"nothing can be claimed. Use at least {FEWEST} items."


def intervention_warnings(analysis: Any) -> Iterator[str]:
    """Tests whose controls are too few for any claim after its correction."""
    for name, block in edits_of(analysis):
        if isinstance(block, PatchingBlock) or block.correction == "none":
            continue
        m = n_claims(block, analysis) * (2 if block.correction == "maxT" else 1)
        if m / (block.n_controls + 1) > analysis.inference.alpha:
            least = ceil(m / analysis.inference.alpha - 1e-9) - 1
            yield (
                f"{name}: {n_claims(block, analysis)} claims and {block.n_controls} controls: after {block.correction} "
                f"the smallest p is {min(1.0, m / (block.n_controls + 1)):.2g}, so no claim can be made unless several "
                f"hold at once. Use n_controls: {least} or more, or fewer claims."
            )


def n_claims(block: InterventionBlock | JointClampBlock, analysis: Any) -> int:
    """Claims of a test, as far as the file says: modes (directions) x contrasts x features x regions x sites."""
    sites = len(block.sites or analysis.sites)
    places = len(block.region) * sites
    if isinstance(block, JointClampBlock):
        return places * (2 if block.direction == "both" else 1)
    n_features = block.features.top or max((len(block.features.at(site)) for site in analysis.sites), default=1)
    return places * len(block.mode) * (1 + len(block.effect)) * (n_features if block.per == "feature" else 1)


def _flipped(block: Any) -> str:
    return "all places of the grid" if isinstance(block, PatchingBlock) else "all claims"


def _among_controls(block: InterventionBlock | JointClampBlock, analysis: Any) -> list[str]:
    """The second p of a claim, and what both can reach together."""
    n, m = block.n_controls, n_claims(block, analysis)
    if isinstance(block, JointClampBlock) and len(block.features) > 2:
        return ["more than two sets have no controls, so their Shapley-Taylor interactions are exploratory"]
    what = "matched pairs of control sets" if isinstance(block, JointClampBlock) else "matched control sets"
    kind = " of directions as long as the edit" if block.controls == "directions" else ""
    factor = {"none": 1, "holm": m, "maxT": 2 * m}[block.correction]
    reach = min(1.0, factor / (n + 1))
    claims = f"{m} claim{'s' * (m != 1)}"
    said = {"none": "not corrected", "holm": f"Holm over {claims}", "maxT": f"maxT over {claims}"}[block.correction]
    last = f": the smallest can reach {reach:.2g}" if block.correction != "none" else ""
    return [
        f"{n} {what}{kind}, matched on {', '.join(block.match)}: p among them can reach {1 / (n + 1):.2g}",
        f"The claim's p is the largest of its parts, {said}{last}",
        f"H0: {H0_JOINT if isinstance(block, JointClampBlock) else H0}",
    ]


def _over_grid(block: PatchingBlock) -> list[str]:
    how = {"maxT": "that of the largest |t| over the grid", "holm": "Holm over the grid", "none": "not corrected"}
    return [f"p is {how[block.correction]}; no controls. H0: patched and unpatched are exchangeable within items"]


def _levels(block: Any) -> str:
    return ", ".join(f"{factor} {level}" for factor, level in block.only.items())


def _texts(stimuli: pd.DataFrame, block: Any, region: str) -> pd.DataFrame:
    """The test texts that have a region, at the levels that are kept."""
    kept = (stimuli["split"] == "test").to_numpy()
    if region not in PLACES:
        kept &= stimuli[f"{region}_start"].notna().to_numpy()
    for factor, level in (getattr(block, "only", None) or {}).items():
        kept &= (stimuli[factor].astype(str) == level).to_numpy()
    return stimuli[kept]


def _n_units(design: Design, rows: pd.DataFrame) -> int:
    items = tuple(dict.fromkeys(rows["item"]))
    return int(components(design, items, carriers(design, tuple(design.factors))).max()) + 1 if items else 0


def _cost(block: Any, rows: list[pd.DataFrame]) -> list[str]:
    """Rows of forward passes, and passes, of one site and one set of features; tokens are counted as words here."""
    if not isinstance(block, InterventionBlock):
        return []
    conditions = sum((1 + block.n_controls) * _n_doses(block, mode) for mode in block.mode)
    texts = sum(len(part) for part in rows)
    words = sum(float((part["text"].str.count(" ") + 2).sum()) for part in rows)
    each = " for each feature" if block.per == "feature" else ""
    passes = max(1, round(conditions * words / BATCH))
    return [
        f"A site costs {conditions:,} conditions x {texts:,} texts = {conditions * texts:,} rows{each}, about "
        f"{passes:,} passes of {BATCH:,} tokens"
    ]


def _n_doses(block: InterventionBlock, mode: str) -> int:
    """Doses that need passes; several of a clamp also need the base at 0."""
    if mode == "ablate":
        return 1
    rest = {"steer": 0.0, "scale": 1.0}.get(mode, 0.0)
    own = len(block.doses)
    if own < 2:
        return own
    others = sum(dose != rest for dose in block.doses)
    return others + (mode in ("clamp", "conditional"))
