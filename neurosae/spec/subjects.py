"""Schema of tests over seeds or models as subjects: one number per site, and what may be asked of such numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neurosae.spec.block import Block
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.fields import Number, OneOrMore, fail
from neurosae.spec.words import Problem, Where

FEWEST = 6
"""Subjects below which whole-subject flips reach no two-sided p of .05."""


class SubjectsBlock(Block):
    """Seeds, or dictionaries or layers that you declare comparable, as subjects: each site gives one number."""

    test: Literal["subjects"]
    """subjects"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`."""
    statistic: Literal["prevalence", "mean", "difference"] = "prevalence"
    """prevalence: in how many subjects is the effect in the pattern (contrast length D_c, minimum statistic)? mean: the
    signed mean of the standardized contrast over features, whole subjects flipped. difference: D_c of the first effect
    minus D_c of the second, whole subjects flipped. D_c itself is never averaged against 0: it cannot be negative in
    truth, so its mean says no more than that some subject has the effect."""
    gamma0: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """With prevalence, the share of subjects to be exceeded: .5 is the majority, 0 asks for any."""
    alternative: Literal["two-sided", "greater", "less"] | None = None
    """With mean and difference, instead of the alternative under `inference:`."""

    @model_validator(mode="after")
    def _check(self) -> SubjectsBlock:
        if self.statistic == "prevalence" and self.alternative is not None:
            fail("alternative", text="has no meaning with prevalence, which asks for lengths above 0; leave this out.")
        if self.statistic != "prevalence" and "gamma0" in self.model_fields_set:
            fail("gamma0", text=f"belongs to prevalence, not to {self.statistic}; leave this out.")
        if self.statistic == "difference" and len(self.effect) != 2:
            fail("effect", text=f"has {len(self.effect)}, but a difference is that of two: the first minus the second.")
        return self


def sites_of(block: SubjectsBlock, analysis: Any) -> tuple[str, ...] | None:
    """The subjects; None where their number depends on the model's layers."""
    named = block.sites or tuple(analysis.sites)
    return None if block.sites is None and any("*" in analysis.sites[s].hook for s in named) else tuple(named)


def too_few(n: int, block: SubjectsBlock, *, alpha: float, alternative: str) -> str | None:
    """Why n subjects are too few, if they are.

    Examples
    --------
    >>> block = SubjectsBlock(test="subjects", effect=("number",), region=("end",))
    >>> too_few(4, block, alpha=0.05, alternative="greater")[:84]
    '4 subjects cannot show an effect in more than 0.5 of them: the smallest p is 0.0625,'
    """
    if block.statistic == "prevalence":
        level, least = alpha / len(block.effect), 2
        while block.gamma0**least >= level:
            least += 1
        if n >= least:
            return None
        reach = f"cannot show an effect in more than {block.gamma0:g} of them: the smallest p is {block.gamma0**n:.3g}"
        over = "" if len(block.effect) == 1 else f"; Holm over {len(block.effect)} effects needs {level:.3g}"
        return f"{n} subjects {reach}, above alpha {alpha:g}{over}. Use at least {least}."
    smallest = 2.0 ** ((1 if alternative == "two-sided" else 0) - n)
    least = FEWEST
    while 2.0 ** ((1 if alternative == "two-sided" else 0) - least) > alpha:
        least += 1
    if n >= least:
        return None
    return (
        f"{n} subjects allow {2**n} flips; the smallest {alternative} p is {smallest:.3g}. Use at least {least} "
        "seeds or models, or describe them without a test."
    )


def subject_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with a test over subjects, as far as it can be seen before a model is loaded."""
    block, where, rules = analysis.tests[name], ("tests", name), analysis.inference
    if rules.nuisance:
        yield where, "regresses no nuisance out; keep `test: subjects` in an analysis without nuisance."
    for family, members in rules.families.items():
        if name in members:
            text = f"test '{name}' relabels subjects or all of them at once, and shares no maximum; take it out."
            yield ("inference", "families", family), text
    if block.statistic == "mean":
        for effect in block.effect:
            written = analysis.effects.get(effect, {})
            if omnibus(written) is not None or sloped(written) is not None:
                yield (*where, "effect"), f"'{effect}' has no direction, which a mean needs; use statistic: prevalence."
    subjects = sites_of(block, analysis)
    if subjects is None:
        return
    yield from _repeated(block, analysis, subjects, where=where)
    alternative = block.alternative or rules.alternative
    if (text := too_few(len(subjects), block, alpha=rules.alpha, alternative=alternative)) is not None:
        yield (*where, "sites"), text


def _repeated(block: SubjectsBlock, analysis: Any, subjects: tuple[str, ...], *, where: Where) -> Iterator[Problem]:
    """One dictionary at one hook point under two names is one subject."""
    seen: dict[str, str] = {}
    for site in subjects:
        if site not in analysis.sites:
            if subjects.count(site) > 1:
                yield (*where, "sites"), f"'{site}' is named twice; a subject counts once."
                return
            continue
        key = analysis.sites[site].model_dump_json()
        if key in seen:
            text = f"'{seen[key]}' and '{site}' are the same dictionary; a subject counts once. Train it with another"
            yield (*where, "sites"), f"{text} seed, or leave one out."
            return
        seen[key] = site


def subject_notes(analysis: Any) -> Iterator[str]:
    """What is exchanged by tests over subjects, how often, and how small p can get; what their subjects share."""
    if analysis is None:
        return
    for name, block in analysis.tests.items():
        if not isinstance(block, SubjectsBlock):
            continue
        subjects = sites_of(block, analysis)
        if subjects is None:
            yield f"{name}: every layer is a subject; their number is known when the model is loaded."
            continue
        n = len(subjects)
        shown = ", ".join(subjects[:4]) + (", …" if n > 4 else "")
        if block.statistic == "prevalence":
            how = "items are relabelled alike in all of them, and the smallest of their lengths is compared; "
            reach = max(block.gamma0**n, 1 / analysis.inference.n_permutations)
            how += f"smallest p for more than {block.gamma0:g} of the subjects about {reach:.2g}"
        else:
            alternative = block.alternative or analysis.inference.alternative
            p = 2.0 ** ((1 if alternative == "two-sided" else 0) - n)
            how = f"whole subjects are sign-flipped: 2^{n} = {2**n:,} relabellings, smallest {alternative} p {p:.2g}"
        yield f"{name}: {n} subjects ({shown}); {how}. p speaks of subjects like these, on these items and this model."
        hooks = {analysis.sites[site].hook for site in subjects if site in analysis.sites}
        if len(hooks) > 1 or any(site not in analysis.sites for site in subjects):
            yield (
                f"{name}: its subjects read different hook points; layers of one model are no random sample and depend "
                "on each other, so p holds for them only as far as you declare them exchangeable."
            )
