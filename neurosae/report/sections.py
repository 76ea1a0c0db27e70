"""SECTIONS: kind of test -> what it says, draws and cites on the page. A new kind is one entry here.

A kind without an entry, such as one of a user's own, is shown like the nearest that is known: rows of features as a
contrast, other rows by how many of them were found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pandas as pd

from neurosae.report.absence import EQUIVALENCE
from neurosae.report.anova import ANOVA
from neurosae.report.attribution import CIRCUITS
from neurosae.report.causal import INTERVENTION, JOINT_CLAMP
from neurosae.report.choosing import CHOOSING
from neurosae.report.factorial import FACTORIAL
from neurosae.report.figures import draw_contrast, draw_design, draw_overview
from neurosae.report.figures_training import draw_training
from neurosae.report.geometry import GEOMETRY
from neurosae.report.integration import INTEGRATION
from neurosae.report.joint import COMBINATION, CONJUNCTION
from neurosae.report.maps import MAP
from neurosae.report.methods import computing, contrast_methods, material, model, other_methods
from neurosae.report.models import PARAMETRIC
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.patching import PATCHING
from neurosae.report.prose import contrast_statements, other_statements
from neurosae.report.references import REFERENCES
from neurosae.report.regions import PAIRS, ROI
from neurosae.report.specialists import SPECIALISTS
from neurosae.report.stored import Study
from neurosae.report.subjects import SUBJECTS
from neurosae.report.tables import distinct, first_known
from neurosae.report.written import GENERATION, REMOVAL

CONTRAST = Section(contrast_statements, draw_contrast, contrast_methods)
OTHER = Section(other_statements, lambda study, test, rows: (), other_methods)
SECTIONS: Mapping[str, Section] = {
    "contrast": CONTRAST,
    **GEOMETRY,
    **CIRCUITS,
    "patching": PATCHING,
    "map": MAP,
    "roi": ROI,
    "pairs": PAIRS,
    "factorial": FACTORIAL,
    "choosing": CHOOSING,
    "anova": ANOVA,
    "specialists": SPECIALISTS,
    "integration": INTEGRATION,
    "intervention": INTERVENTION,
    "joint_clamp": JOINT_CLAMP,
    "generation": GENERATION,
    "removal": REMOVAL,
    "equivalence": EQUIVALENCE,
    "subjects": SUBJECTS,
    "parametric": PARAMETRIC,
    "conjunction": CONJUNCTION,
    "combination": COMBINATION,
}


def section_of(rows: pd.DataFrame) -> Section:
    """The section of the kind of test that made these rows."""
    nearest = CONTRAST if rows["feature"].notna().any() else OTHER
    return SECTIONS.get(first_known(rows["kind"], "contrast"), nearest)


def _by_test(study: Study) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((test, study.results[study.results["test"] == test]) for test in distinct(study.results["test"]))


def _by_kind(study: Study) -> Iterator[pd.DataFrame]:
    kinds = study.results["kind"].fillna("contrast")
    return (study.results[kinds == kind] for kind in distinct(kinds))


def statements(study: Study) -> list[Statement]:
    """What was found, in the order of the tests; localizers come last."""
    said = [one for test, rows in _by_test(study) for one in section_of(rows).statements(study, test, rows)]
    return sorted(said, key=lambda one: one.localizer)


def draw_study(study: Study) -> Iterator[Drawing]:
    """Every figure that the stored tables of a study allow, in the order of the page."""
    yield from draw_design(study)
    yield from draw_overview(study)
    for test, rows in _by_test(study):
        yield from section_of(rows).drawings(study, test, rows)
    yield from draw_training(study)


def methods_text(study: Study) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Paragraphs with numbered citations, and the cited references in the order of their numbers.

    Returns
    -------
    paragraphs : list of str
        Citations as [1, 2].
    references : list of (number, text, link); the link may be empty
    """
    drafts = [
        " ".join(p for p in part if p)
        for part in (
            material(study),
            model(study),
            *(section_of(rows).methods(study, rows) for rows in _by_kind(study)),
            computing(study),
        )
    ]
    order: list[str] = []

    def number(match: re.Match[str]) -> str:
        keys = [k.strip() for k in match[1].split(";")]
        order.extend(k for k in keys if k not in order)
        return f"[{', '.join(str(order.index(k) + 1) for k in keys)}]"

    keys = "|".join(REFERENCES)
    paragraphs = [re.sub(rf"\[((?:{keys})(?:; (?:{keys}))*)\]", number, draft) for draft in drafts if draft]
    return paragraphs, [(str(i + 1), *REFERENCES[key]) for i, key in enumerate(order)]
