"""The page on whole patterns and on rules that choose features: verdicts, readings, figures, methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurosae.report import choosing as rules_page
from neurosae.report import factorial as page
from neurosae.report.figures_factorial import abstraction, pattern_effects, rule_curves, rule_differences, shares
from neurosae.report.sections import SECTIONS
from neurosae.report.style import svg_text
from neurosae.stats.choosing import ChoosingBlock as Block
from neurosae.stats.choosing import Question, answer
from neurosae.stats.factorial import factorial
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.worlds import world

A, B = ({name: {"yes": 1, "no": -1}} for name in "ab")


def rows_of(statistic, effects, **settings):
    fake = world("additive", n_items=16, seed=0)
    return factorial(
        {"late": fake, "early": fake}, effects, region="probe", statistic=statistic, settings=settings,
        inference={"n_permutations": 200}, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def chosen():
    """A choosing test of two sites and three rules: table and extras."""
    from neurosae.spec.blocks import Inference

    fake = simulate(
        example_design(24, between=True), n_features=40, effects={"number": 8}, density=0.4, shift=4.0, seed=1
    )
    ask = Block.model_validate(
        {"test": "choosing", "region": "noun", "effect": "number", "rules": ["contrast", "maximum", "random"],
         "k": [1, 2, 4], "repeats": 1, "n_null": 40, "folds": 4}
    )  # fmt: skip
    asked = Question("rules", ask, "number", {"number": {"pl": 1, "sg": -1}}, Inference(n_permutations=200), 1)
    return answer(asked, {"late": fake, "early": fake})


def test_statements_say_what_was_found_and_what_was_not(study):
    """One statement per effect; the interaction that is not there is not found, with a caution on absence."""
    said = list(page.pattern_statements(study, "pattern", rows_of("contrast_length", {"a": A, "ab": A | B})))
    assert [one.verdict for one in said] == ["found", "nothing"]
    assert "2 of 2 places" in said[0].text
    assert page.ANY in said[0].cautions
    assert said[1].cautions == (page.NULL,)
    assert "D_c =" in said[0].detail


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ((0.01, 0.01, 0.4), "abstract, additive"),
        ((0.01, 0.01, 0.01), "changed by the condition"),
        ((0.5, 0.4, 0.01), "context-bound"),
        ((0.01, 0.4, 0.4), "undecided"),
    ],
)
def test_reading_of_abstraction(p, words):
    """High generalization and no interaction is abstract; none and an interaction is bound to its context."""
    row = {"value": 0.9, "p_corr": p[0], "x_decoding": 0.95, "x_p_geometry": p[1], "x_parallelism": np.nan}
    said = page.reading(pd.Series(row | {"x_p_interaction": p[2], "x_interaction": 1.0}))
    assert words in said.partition("Reading:")[2]
    assert "parallelism undefined" in said


def test_permanova_names_its_dispersion(study):
    """The comparison of spreads stands beside the F."""
    (said,) = page.pattern_statements(study, "spread", rows_of("permanova", {"a": A}))
    assert "Dispersion: mean distance to the spatial median" in said.detail


def test_shares_are_described_not_tested(study):
    """No verdict of significance for a share of variance."""
    (said,) = page.pattern_statements(study, "variance", rows_of("demixed", {"a": A, "b": B, "ab": A | B}))
    assert said.verdict == "exploratory"
    assert "not tested" in said.detail


def test_figures_draw_every_row(study):
    """A dot per effect and place, filled where found; a bar per share."""
    rows = rows_of("ccgp", {"a": A, "b": B})
    dots = [line for line in pattern_effects(rows).axes[0].lines if len(line.get_xdata()) == 1]
    assert len([d for d in dots if np.isfinite(d.get_xdata()[0])]) >= len(rows)
    assert "generalization" in abstraction(rows).axes[0].get_ylabel()
    variance = rows_of("demixed", {"a": A, "b": B, "ab": A | B})
    assert len(shares(variance).axes[0].patches) == len(variance)
    assert "<svg" in svg_text(shares(variance), "s", "shares")
    assert {d.kind for d in page.draw_factorial(study, "t", rows)} == {"patterns", "abstraction"}


def test_rules_are_compared_in_words_and_figures(study, chosen):
    """What predicts above chance is named; a panel per site, a dot per difference."""
    (said,) = rules_page.choosing_statements(study, "rules", chosen.table)
    assert said.verdict == "found"
    assert "contrast in late" in said.text
    figure = rule_curves(chosen.extras["choosing"])
    assert len(figure.axes) == 2
    assert len(figure.axes[0].lines) == 4  # three rules and chance
    pairs = chosen.table[chosen.table["stat"] == "accuracy difference"]
    assert len(rule_differences(pairs).axes[0].get_yticks()) == len(pairs)
    assert all("_rsa" not in t.get_text() for t in rule_differences(pairs).axes[0].get_yticklabels())


def test_methods_name_the_statistic_and_how_it_was_corrected(study, chosen):
    """Every kind has a section, and its methods sentence cites what it used."""
    assert {"factorial", "choosing"} <= set(SECTIONS)
    words = " ".join(page.factorial_methods(study, rows_of("contrast_length", {"a": A, "b": B})))
    assert "Holm's method over effects" in words
    assert "[allefeld2014; walther2016]" in words
    words = " ".join(rules_page.choosing_methods(study, chosen.table))
    assert "split no item" in words
    assert "[ojala2010]" in words
