"""What a kind of test hands to the page: statements, drawings, sentences for the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from neurosae.report.stored import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Statement:
    """One sentence of the summary.

    Attributes
    ----------
    test, effect : what it speaks about
    verdict : "found", "nothing", "untested" or "exploratory"
    number : the figure in large print, e.g. "31"
    text : the sentence
    detail : how it was corrected, and the strongest example
    localizer : whether it only chose features for later tests
    cautions : what a reader must know before believing it
    """

    test: str
    effect: str
    verdict: str
    number: str
    text: str
    detail: str
    localizer: bool
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """One figure of a study, with the words around it.

    Attributes
    ----------
    name : safe file name
    kind : key of FIGURES
    test : the test it belongs to, "" for the whole study
    title, caption : plain text; the caption names the items behind the figure
    wide : whether it wants the full width of the page
    """

    name: str
    kind: str
    test: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False


class Section(NamedTuple):
    """What one kind of test adds to the page.

    Attributes
    ----------
    statements : (study, name of the test, its rows) -> the sentences under "What was found"
    drawings : (study, name of the test, its rows) -> its figures, in the order of the page
    methods : (study, all rows of this kind) -> sentences for the methods; citations as [key; key] of REFERENCES
    """

    statements: Callable[[Study, str, pd.DataFrame], Iterable[Statement]]
    drawings: Callable[[Study, str, pd.DataFrame], Iterable[Drawing]]
    methods: Callable[[Study, pd.DataFrame], Iterable[str]]
