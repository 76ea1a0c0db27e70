"""Parametric tests on the page: labelled, with their assumptions and the p of relabellings beside."""

from __future__ import annotations

import dataclasses

from neurosae.report.models import MODELS, PARAMETRIC
from neurosae.report.result_tables import result_table
from neurosae.report.sections import draw_study, methods_text, section_of, statements
from neurosae.stats.parametric import parametric
from neurosae.stats.simulate import example_design, simulate


def with_models(study, model="hc3"):
    """The study with one parametric test."""
    fake = simulate(example_design(20), n_features=40, density=(0.3, 0.6), effects={"number": 4}, shift=5.0, seed=1)
    table = parametric(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", model=model, seed=1)
    return dataclasses.replace(study, results=table)


def test_statements_say_parametric_and_what_the_relabellings_say(study):
    """The count, the model, the caution, and how many of the found also have a small flip p."""
    other = with_models(study)
    (said,) = statements(other)
    found = other.results[other.results["p_corr"] <= 0.05]
    assert section_of(other.results) is PARAMETRIC
    assert said.text.startswith(f"{len(found)} of ")
    assert "HC3 errors: a parametric result" in said.text
    assert f"of the {len(found)} found have p ≤ 0.05" in said.detail
    assert said.cautions[0].startswith("Parametric: assumes independent items")


def test_methods_name_the_model_and_its_source(study):
    """The sentence cites the errors and the correction."""
    paragraphs, references = methods_text(with_models(study))
    assert any("parametric alternative to relabelling: least squares" in p for p in paragraphs)
    assert any("MacKinnon" in text for _, text, _ in references)


def test_the_table_shows_the_flip_p_beside(study):
    """One column for the parametric p, one for the p of relabellings; no figure needs columns that are not there."""
    other = with_models(study)
    heads = [head["label"] for head in result_table(other, "parametric")["heads"]]
    assert {"p", "p corrected", "p flips"} <= set(heads)
    assert all(drawing.test != "parametric" for drawing in draw_study(other))


def test_every_statistic_has_words():
    """What the models call their statistics is what the page can name."""
    assert set(MODELS) == {"t", "t_hc3", "t_cluster", "t_mixed", "t_crossed", "min_f", "moderated_t"}
