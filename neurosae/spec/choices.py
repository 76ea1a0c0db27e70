"""Features chosen by earlier tests, families of tests, nuisance: what may refer to what, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.blocks import ADJUSTABLE, ContrastBlock, MapBlock, not_adjustable
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.examine_tests import SpecialistsBlock
from neurosae.spec.words import Problem, Where, short

CROSS_FITTED = ("moderated_t", "t", "mean")
"""Statistics whose features can be chosen anew inside every relabelling."""

NUISANCE = ("n_tokens", "token_index", "stimulus_tokens", "position", "norm", "surprisal", "logit_diff")
"""Numbers that every response has and that may be regressed out, beside the design's covariates."""
REGRESSED = ("contrast", "conjunction", "combination", "map")
"""Kinds of test that regress nuisance out and know slopes on a covariate; others refuse (rsa has nuisance models)."""
PATTERNS = ("factorial", "anova", "choosing")
"""Kinds of test that say themselves which effects they take (`factorial.pattern_problems`); none regresses nuisance."""


def regression_problems(analysis: Any) -> Iterator[Problem]:
    """What is wrong with nuisance columns and with slopes on a covariate, whatever the design."""
    inference = analysis.inference
    if inference.nuisance and inference.intervals != "marginal":
        yield ("inference", "intervals"), f"{inference.intervals} are not made beside nuisance columns; use marginal."
    for name, block in analysis.tests.items():
        where: Where = ("tests", name)
        effects = {e: analysis.effects.get(e, {}) for e in getattr(block, "effect", ())}
        slopes = [e for e, written in effects.items() if sloped(written) is not None and block.test not in PATTERNS]
        if block.test not in REGRESSED:
            if inference.nuisance and block.test in ("roi", "pairs", "parametric", "equivalence"):
                yield where, f"regresses no nuisance out; keep `test: {block.test}` in an analysis without nuisance."
            every = [e for e, written in effects.items() if omnibus(written) is not None]
            if every and block.test == "equivalence":
                yield where, f"bounds one contrast, and '{every[0]}' compares all levels; write weights of levels."
            if slopes:
                yield where, f"takes no slope on a covariate, as '{slopes[0]}' is; use `test: contrast`."
            continue
        own = None if isinstance(block, MapBlock) else block.statistic  # of a map it is how the map is corrected
        statistic = own or inference.statistic
        if inference.nuisance and statistic not in ADJUSTABLE:
            yield (*where, "statistic"), f"{statistic}: nuisance {not_adjustable(statistic)}"
        elif slopes and statistic not in ADJUSTABLE:
            text = f"{statistic} is no slope, which '{slopes[0]}' asks for; set `statistic: moderated_t`."
            yield (*where, "statistic"), text
        elif statistic == "slope" and len(slopes) < len(effects):
            other = next(e for e in effects if e not in slopes)
            yield (*where, "effect"), f"'{other}' is no slope on a covariate, {{slope: frequency}}; use moderated_t."


def nuisance_problems(analysis: Any, covariates: Iterable[str]) -> Iterator[Problem]:
    """Nuisance columns that no response will have."""
    known = [*NUISANCE, *covariates]
    for i, name in enumerate(analysis.inference.nuisance):
        if name not in known:
            yield ("inference", "nuisance", i), unknown("column", short(name), known)


def choice_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with the features that a test is given: never chosen by its own effect on its own items."""
    block = analysis.tests[name]
    where = ("tests", name, "features")
    if isinstance(block.features, dict):
        for part, choice in block.features.items():
            if choice.from_ is not None:
                yield from _earlier_problems(name, analysis, (*where, part), source=choice.from_)
            yield from named_problems(choice, block.sites or analysis.sites, analysis, where=(*where, part))
        return
    yield from named_problems(block.features, getattr(block, "sites", None) or analysis.sites, analysis, where=where)
    if block.features.from_ is not None:
        yield from _earlier_problems(name, analysis, where, source=block.features.from_)
    if getattr(block.features, "cross_fit", None) is not None:
        yield from _cross_fit_problems(block, analysis.inference, where)
    orthogonal = getattr(block.features, "orthogonal", None)
    if orthogonal is not None and orthogonal in block.effect:
        text = f"would choose features by '{orthogonal}' and test them for it on the same items"
        yield where, f"{text}; use {{cross_fit: {{top: {block.features.top}}}}}, or choose on localizer items."


def named_problems(choice: Any, used: Iterable[str], analysis: Any, *, where: Where) -> Iterator[Problem]:
    """What is wrong with features that are named by their indices: sites that do not exist, or that have none."""
    ids, sites = getattr(choice, "ids", ()), list(used)
    layers = any("*" in analysis.sites[site].hook for site in sites if site in analysis.sites)
    if not ids:
        return
    if not isinstance(ids, Mapping):
        if len(sites) > 1 or layers:
            text = f"is a list, but there are several sites; write indices by site: {{ids: {{{sites[0]}: [12, 40]}}}}."
            yield (*where, "ids"), text
        return
    for site in ids:
        base = site.rpartition(".")[0]
        if site not in analysis.sites and not (base in analysis.sites and "*" in analysis.sites[base].hook):
            yield (*where, "ids"), unknown("site", short(site), analysis.sites)
    if not layers and (without := [site for site in sites if site not in ids]):
        text = f"names no features at site '{without[0]}'; name some, or say `sites: [{', '.join(ids)}]`."
        yield (*where, "ids"), text


def _cross_fit_problems(block: Any, inference: Any, where: Where) -> Iterator[Problem]:
    statistic = block.statistic or inference.statistic
    if statistic not in CROSS_FITTED:
        text = f"chooses anew in every relabelling, for {', '.join(CROSS_FITTED)} only, not {statistic}"
        yield (*where, "cross_fit"), f"{text}; set the statistic of this test."
    if inference.nuisance:
        text = "cannot take nuisance columns out of a choice that changes; choose features on localizer items instead."
        yield (*where, "cross_fit"), text


def _earlier_problems(name: str, analysis: Any, where: Where, *, source: str) -> Iterator[Problem]:
    block = analysis.tests[name]
    earlier = list(analysis.tests)[: list(analysis.tests).index(name)]
    may = (ContrastBlock, SpecialistsBlock) if isinstance(block, SpecialistsBlock) else (ContrastBlock,)
    kind = [other for other in earlier if isinstance(analysis.tests[other], may)]
    chooser = analysis.tests.get(source)
    if source not in kind or not isinstance(chooser, may):
        if source in analysis.tests and source not in earlier:
            yield where, f"'{source}' is no earlier test; tests run in the order of the file, so put it above '{name}'."
        else:
            what = "contrast or specialists test" if len(may) > 1 else "contrast test"
            yield where, unknown(what, short(source), kind)
    elif isinstance(chooser, ContrastBlock) and len(chooser.effect) > 1:
        text = f"'{source}' tests {', '.join(chooser.effect)}, whose statistics are no one ranking of features"
        yield where, f"{text}; choose them by a test of one effect."
    elif chooser.split == block.split:
        other, at = ("localizer", source) if block.split == "test" else ("test", name)
        text = f"would choose features and test them on the same items (split: {block.split}). Set `split: {other}`"
        yield where, f"{text} on '{at}'."
    elif chooser.sites is not None and (other := set(block.sites or analysis.sites) - {*chooser.sites}):
        site = min(other)
        yield where, f"'{source}' chooses no features at site '{site}'; name sites in both tests: {{sites: [{site}]}}."


def family_problems(analysis: Any) -> Iterator[Problem]:
    """What is wrong with declared families: every test in one of them, all with max-T, on the same items."""
    owner: dict[str, str] = {}
    for family, members in analysis.inference.families.items():
        where: Where = ("inference", "families", family)
        splits: dict[str, str] = {}
        for member in members:
            block = analysis.tests.get(member)
            if block is None:
                yield where, unknown("test", short(member), analysis.tests)
                continue
            if member in owner:
                other = "twice" if owner[member] == family else f"also in family '{owner[member]}'"
                yield where, f"test '{member}' is {other}; a test belongs to one family."
            owner[member] = family
            correction = getattr(block, "correction", None) or analysis.inference.correction
            if isinstance(block, MapBlock):  # a map of cluster mass or TFCE has a maximum on a scale of its own
                correction = block.statistic
            if correction != "maxT":
                text = f"test '{member}' is corrected by {correction}, but a family shares one maximum"
                key = "statistic" if isinstance(block, MapBlock) else "correction"
                yield where, f"{text}; set `{key}: maxT` on it, or take it out."
            splits.setdefault(getattr(block, "split", "test"), member)
        if len(splits) > 1:
            pair = " and ".join(f"'{member}' ({split})" for split, member in splits.items())
            yield where, f"{pair} use different items; a family needs the same split."
