"""The page on specialists: verdicts, counts in words, the dashboard, and what it must not claim."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from neurosae.examine.specialists import Question, answer
from neurosae.report import specialists as page
from neurosae.report.figures_examine import LISTS, category_bars, found_first, landscape, leaders, text_map
from neurosae.report.sections import SECTIONS
from neurosae.report.style import ACCENT, svg_text
from neurosae.spec.blocks import Inference
from neurosae.spec.examine_tests import SpecialistsBlock
from tests.examine.test_specialists import noise, responses_to, topic_design, topics_of

ASK = {"test": "specialists", "region": "whole", "effect": "topic", "theta": 5.0}


def run_with(*, planted: bool):
    fake = responses_to(topic_design(), noise(70, 40, seed=1))
    if planted:
        X, topic = fake.X.toarray(), topics_of(fake)
        for j, name in enumerate(("sea", "war")):
            X[np.flatnonzero(topic == name)[:9], j] = 9.0
        fake.X = sp.csr_matrix(X)
    ask = SpecialistsBlock.model_validate(ASK if planted else {**ASK, "theta": 0.7})
    question = Question("who", ask, "topic", {"topic": "all"}, Inference(n_permutations=300), 1, ask.theta)
    return answer(question, {"late": fake})


@pytest.fixture(scope="module")
def found():
    """Two planted specialists."""
    return run_with(planted=True)


@pytest.fixture(scope="module")
def empty():
    """No category has any."""
    return run_with(planted=False)


def test_statement_counts_specialists_by_category(study, found):
    """Which categories have specialists, their names, and which have none, with a caution on both."""
    (said,) = page.specialist_statements(study, "who", found.table)
    assert (said.verdict, said.number) == ("found", "2")
    assert said.text.startswith("2 features are specialists of topic at whole in late: sea 1 (late/0) and war 1 (")
    assert "none of sky, food, home, school or music" in said.text
    assert {page.WORDS, page.SAME_ITEMS} <= set(said.cautions)
    assert "strong in 9 of 10 texts of" in said.detail
    assert "specialist score +" in said.detail


def test_statement_without_specialists_claims_nothing(study, empty):
    """Nothing found is no proof of absence; nothing is said of the size of what was not found."""
    (said,) = page.specialist_statements(study, "who", empty.table)
    assert said.verdict == "nothing"
    assert "None of" in said.text
    assert any("so few texts" in caution for caution in said.cautions)
    assert page.SAME_ITEMS not in said.cautions


def test_untested_features_have_a_reason(study, found):
    """Where no feature could be tested the reasons are given."""
    rows = found.table[found.table["feature"].isna()]
    if not len(rows):
        rows = found.table.head(1).assign(status="untestable", note="active in fewer than 6 items", feature=None)
    (said,) = page.specialist_statements(study, "who", rows)
    assert said.verdict == "untested"


def test_dashboard_fills_only_what_was_found(found):
    """A panel per list; of all bars only those of found specialists are coloured."""
    figure = leaders(found.extras["scores"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [title for title, *_ in LISTS.values()]
    coloured = [
        sum(
            patch.get_facecolor()[:3] == tuple(int(ACCENT[i : i + 2], 16) / 255 for i in (1, 3, 5))
            for patch in a.patches
        )
        for a in figure.axes
    ]
    assert coloured == [0, 0, 0, 0, 0, 2]


def test_map_puts_found_specialists_first(found):
    """Rows: found ones by category, then by z; columns: texts grouped by category; a line between."""
    scores, texts = found.extras["scores"], found.extras["profiles"]
    rows = found_first(scores, texts["feature"].unique().tolist(), alpha=0.05, most=10)
    assert rows["feature"].tolist()[:2] in ([0, 1], [1, 0])
    assert rows["found"].tolist() == [True, True] + [False] * 8
    axes = text_map(texts, scores, most=10).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == list(dict.fromkeys(texts["category"]))
    assert axes.collections[0].get_array().shape == (10, 70)
    assert axes.get_yticklabels()[0].get_text().endswith("*")


def test_bars_are_shares_of_strong_texts(found):
    """The bar of a planted feature in its own category is 9 of 10."""
    figure = category_bars(found.extras["profiles"], found.extras["scores"], most=2)
    first = figure.axes[0]
    own = [t.get_text() for t in first.get_yticklabels()].index(first.get_title(loc="left").split("· ")[1])
    assert first.patches[own].get_width() == pytest.approx(0.9)
    assert len(first.patches) == 7


def test_drawings_of_a_study_have_captions(study, found):
    """Four figures per site, each with its source, and an svg of each."""
    extras = {("who", name): long for name, long in found.extras.items()}
    drawings = list(page.draw_specialists(replace(study, extras=extras), "who", found.table))
    assert [d.kind for d in drawings] == ["lists", "texts", "bars", "densities"]
    assert all("Drawn from 70 items of split test, site late." in d.caption for d in drawings)
    assert all(re.match("<svg", svg_text(d.figure, d.name, d.title)) for d in drawings)
    assert list(page.draw_specialists(study, "who", found.table)) == []


def test_landscape_of_a_site_without_specialists(empty):
    """Nothing is coloured where nothing was found."""
    axes = landscape(empty.extras["scores"]).axes[0]
    assert len(axes.collections) == 1


def test_methods_say_what_was_permuted(study, found):
    """Pooling, threshold and correction are in the sentence; the section is registered."""
    (said,) = page.specialist_methods(study, found.table)
    assert "categories of whole items were permuted 300 times" in said
    assert "[westfall1993]" in said
    assert SECTIONS["specialists"] is page.SPECIALISTS
