"""The page on seeds as subjects: from the block of an analysis to sentences, a figure and a paragraph of methods."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neurosae.report import subjects as page
from neurosae.report.style import svg_text
from neurosae.spec.blocks import Inference
from neurosae.spec.subjects import SubjectsBlock
from neurosae.stats.across_subjects import run
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}


def rows_of(statistic, planted):
    """Six seeds through the block of an analysis."""
    effects, settings = ({"number": 5} if planted else None), {"n_features": 30, "density": 0.4, "shift": 4.0}
    sites = {f"s{k}": simulate(example_design(16), effects=effects, seed=k, **settings) for k in range(6)}
    ask = SubjectsBlock(test="subjects", region=("noun",), effect=("number",), statistic=statistic)
    rules = Inference(n_permutations=300)
    spec = SimpleNamespace(tests={"seeds": ask}, effects={"number": NUMBER}, inference=rules, seed=1)
    return run(sites, ask, study=SimpleNamespace(spec=spec), earlier={}, rng=None).table


@pytest.mark.parametrize(
    ("statistic", "said"),
    [
        ("prevalence", ("found in more than 50% of subjects like these 6", "the same in all subjects")),
        ("mean", ("over 6 subjects", "whole subjects were sign-flipped (32 flips)")),
    ],
)
def test_seeds_reach_the_page(study, statistic, said):
    """Every subject is in the figure, and the page says which items the claim is for."""
    rows = rows_of(statistic, planted=True)
    (sentence,) = page.statements(study, "seeds", rows)
    assert said[0] in sentence.text
    assert (page.FIXED in sentence.cautions) == (sentence.verdict == "found")
    (paragraph,) = page.methods(study, rows)
    assert "the dictionaries s0, s1, s2, s3, s4 and s5 were subjects" in paragraph
    assert said[1] in paragraph
    (drawing,) = page.drawings(study, "seeds", rows)
    assert drawing.kind == "subjects"
    assert "s3" in svg_text(drawing.figure, drawing.name, drawing.title)


def test_an_effect_that_no_seed_shows_is_not_found(study):
    """Not found, with the caution on absence."""
    (sentence,) = page.statements(study, "seeds", rows_of("prevalence", planted=False))
    assert (sentence.verdict, sentence.cautions) == ("nothing", (page.NULL,))
    assert "not found" in sentence.text
