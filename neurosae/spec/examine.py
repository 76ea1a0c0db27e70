"""Schema of `examine:`, which says what features are looked at and how, and what may refer to what in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import FeatureChoice
from neurosae.spec.fields import Bool, Count, Name, Names, Natural, Number, OneOrMore, Strict, Text, fail
from neurosae.spec.sites import AnyPath
from neurosae.spec.words import Problem, Where, short

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Hosts that a key may be sent to without encryption."""


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
        fail(text="must be the name of an environment variable, never a key itself: MY_KEY.")
    return value


def endpoint_problem(base_url: str, key: str = "") -> str | None:
    """What is wrong with an address, or None.

    Examples
    --------
    >>> endpoint_problem("http://127.0.0.1:8000/v1"), endpoint_problem("https://models.example/v1", "MY_KEY")
    (None, None)
    >>> endpoint_problem("http://models.example/v1", "MY_KEY")
    'would send the key unencrypted; use https, or a server on this machine.'
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"'{base_url[:80]}' is no address; write https://host/v1."
    if parts.scheme not in ("http", "https") or not host:
        return f"'{base_url[:80]}' is no address; write https://host/v1."
    if parts.username or parts.password or parts.query or parts.fragment:
        return "holds more than host and path; the key belongs into an environment variable, named by `key`."
    if key and parts.scheme == "http" and host not in LOCAL:
        return "would send the key unencrypted; use https, or a server on this machine."
    return None


class EndpointBlock(Strict):
    """A language model that proposes labels, by the OpenAI-compatible protocol; without this block nothing is sent."""

    base_url: Text
    """Its address: http://localhost:8000/v1. Example texts of the examined features are sent there."""
    model: Text
    """Name of the model there."""
    key: Annotated[Text, AfterValidator(_variable)] | None = None
    """Name of the environment variable that holds the key; left out where none is needed."""
    judge: Bool = True
    """Let it also score every label, blind to activation, on examples that the label was not made from."""

    @model_validator(mode="after")
    def _check(self) -> EndpointBlock:
        if wrong := endpoint_problem(self.base_url, self.key or ""):
            fail("base_url", text=wrong)
        return self


class RuleBlock(Strict):
    """Rules of one's own, which compete with those that are proposed."""

    words: dict[Name, tuple[Text, ...]] = Field(default_factory=dict)
    """Lists of words by name: {colours: [red, blue]}."""
    patterns: dict[Name, Text] = Field(default_factory=dict)
    """Regular expressions by name, which the word of a token must match as a whole: {plural: ".+s"}."""
    n_permutations: Count = 2_000
    """Signs of whole items that p over all rules is counted from."""

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                fail(name, text=f"'{short(pattern)}' is no regular expression ({error}).")
        return value


class ExamineBlock(Strict):
    """Features to look at: examples, promoted tokens, neighbours, rules, labels. Described, not tested."""

    features: FeatureChoice
    """{from: number, top: 5}, the strongest of an earlier test at every site, or {ids: {late: [12, 40]}}."""
    texts: tuple[AnyPath, ...] = ()
    """Text files or data set folders beside the study's own texts, relative to this file."""
    n_tokens: Count | None = None
    """Tokens of these texts; without texts, tokens that the model writes itself. Left out: all, or none."""
    by: Names | None = None
    """Factors whose levels have examples and distributions of their own; left out, all."""
    top: Count = 5
    """Strongest examples, one per text."""
    per_level: Natural = 2
    """Strongest examples of every level."""
    quantiles: tuple[Annotated[Number, Field(gt=0, lt=1)], ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Examples at these quantiles of the active values."""
    random: Natural = 3
    """Random active examples."""
    window: Count = 12
    """Tokens shown on either side."""
    tokens: Count = 8
    """Promoted and suppressed tokens listed."""
    neighbours: Natural = 5
    """Nearest decoder directions listed."""
    rules: RuleBlock = RuleBlock()
    """Rules of your own; proposed ones are scored anyway."""
    invert: Natural = 0
    """Search a string of this many tokens that drives the feature; 0: none."""
    track: OneOrMore | None = None
    """Sites where counterparts of each feature are looked for."""
    labels: AnyPath | None = None
    """Your own labels: a .csv file with the columns site, feature, label."""
    endpoint: EndpointBlock | None = None
    """A language model that proposes and scores labels; left out, nothing is sent anywhere."""


def examine_problems(analysis: Any) -> Iterator[Problem]:
    """Sites, tests and features that `examine:` names and the analysis does not have."""
    ask = analysis.examine
    if ask is None:
        return
    where: Where = ("examine",)
    source, ids = ask.features.from_, ask.features.ids
    if source is not None and source not in analysis.tests:
        yield (*where, "features"), unknown("test", short(source), analysis.tests)
    if isinstance(ids, dict):
        for site in ids:
            yield from _site_problems(site, analysis, (*where, "features", "ids"))
    elif ids and (len(analysis.sites) > 1 or any("*" in site.hook for site in analysis.sites.values())):
        first = next(iter(analysis.sites))
        text = f"is a list, but there are several sites; write indices by site: {{ids: {{{first}: [12, 40]}}}}."
        yield (*where, "features", "ids"), text
    for site in ask.track or ():
        yield from _site_problems(site, analysis, (*where, "track"))


def _site_problems(site: str, analysis: Any, where: Where) -> Iterator[Problem]:
    base, _, layer = site.rpartition(".")
    spread = layer.isdecimal() and base in analysis.sites and "*" in analysis.sites[base].hook
    if site not in analysis.sites and not spread:
        yield where, unknown("site", short(site), analysis.sites)


def examine_design_problems(analysis: Any, factors: Any) -> Iterator[Problem]:
    """Factors that `examine:` names and the design does not have."""
    if analysis.examine is not None:
        for i, name in enumerate(analysis.examine.by or ()):
            if name not in factors:
                yield ("examine", "by", i), unknown("factor", short(name), factors)
