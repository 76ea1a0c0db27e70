"""What the page says of interventions: both p-values, cost, what was not shown; figures that draw their tables."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from neurosae.causal.rows import table_of
from neurosae.report.causal import INTERVENTION, JOINT_CLAMP
from neurosae.report.sections import SECTIONS, methods_text, statements
from tests.report.synthetic_causal import claim, joint


def study_with(study, *rows):
    return dataclasses.replace(study, results=table_of(rows))


def test_a_claim_names_both_p_dose_cost_and_limits(study):
    """Found: size, dose, share; in the detail both p, the equivalence test and the off-target cost."""
    (one,) = statements(study_with(study, claim("mean", -0.6)))
    assert one.verdict == "found"
    assert "moves the outcome by −0.600 at dose p50 to p99" in one.text
    said = ("Over items p 0.000400", "controls p 0.0100", "KL 0.0400", "perplexity x 1.02", "not shown to be smaller")
    for words in (*said, "norms frozen: none"):
        assert words in one.detail
    cautions = " ".join(one.cautions)
    assert "outside the natural range" in cautions
    assert "cosine differs by 2.10 sd" in cautions
    assert "for this" in cautions or "these features in this model" in cautions


def test_features_as_a_sample_are_told_apart_from_claims(study):
    """The mixed model over items and features: mean, dof, variances, min-F'; without one, the reason and min-F'."""
    more = {"effect": "clamp: mean, over items and features", "x_role": "population", "unit": "item and feature",
            "dof": 7.4, "n_features": 9, "x_min_f": 5.5, "x_min_f_dof": 8.2, "x_p_min_f": 0.046, "x_var_item": 0.2,
            "x_var_feature": 0.0, "x_var_resid": 0.7, "p_corr": 0.03, "note": "singular: the variance"}  # fmt: skip
    _, one = statements(study_with(study, claim("mean", -0.6), claim("mean", -0.4, **more)))
    assert one.verdict == "found"
    assert "one feature at a time" in one.text
    assert "over items like these and features like these (mean slope −0.400, 9 features)" in one.text
    for words in ("on 7.40 degrees of freedom", "features 0", "min-F' 5.50 on 1 and 8.20", "p 0.0460", "singular"):
        assert words in one.detail
    silent = dict.fromkeys(("value", "dof", "estimate", "se", "effsize", "ci_low", "ci_high", "p_unc", "p_corr"))
    row = claim("mean", -0.4, **(more | silent | {"status": "untestable", "note": "3 features cannot carry"}))
    _, none = statements(study_with(study, claim("mean", -0.6), row))
    assert none.verdict == "untested"
    assert "3 features cannot carry" in none.text
    assert "min-F' 5.50" in none.detail
    text = " ".join(methods_text(study_with(study, claim("mean", -0.6), claim("mean", -0.4, **more)))[0])
    assert "crossed random effects of items and features" in text


def test_controls_that_do_the_same_take_the_claim(study):
    """Items alone are no claim, and the sentence says that controls do it too."""
    row = claim("mean", -0.6, p_unc=0.4, p_corr=0.4, x_p_controls=0.4)
    (one,) = statements(study_with(study, row))
    assert one.verdict == "nothing"
    assert "more than matched features do: it changes by −0.600, but so it does for controls" in one.text


def test_a_refused_match_is_no_result(study):
    """No claim, with the covariate."""
    silent = dict.fromkeys(("value", "dof", "estimate", "se", "effsize", "ci_low", "ci_high", "p_unc", "p_corr"))
    row = claim("mean", -0.6) | silent | {"status": "untestable", "note": "controls are badly matched: size"}
    (one,) = statements(study_with(study, row))
    assert one.verdict == "untested"
    assert "no claim about the outcome. controls are badly matched: size" in one.text


def test_the_work_of_a_norm_is_called_so(study):
    """Free alone: nothing is claimed, and why."""
    row = joint("clamp", p_unc=1.0, p_corr=1.0, x_p_items=1.0, x_p_controls=1.0, estimate=0.0, x_estimate=0.0)
    (one,) = statements(study_with(study, row))
    assert one.verdict == "nothing"
    assert "are not shown to do anything but add up" in one.text
    assert "the work of the normalization" in one.text
    (found,) = statements(study_with(study, joint("clamp", x_kl=0.21, x_perplexity_ratio=1.3)))
    assert "KL 0.210 nats per token, perplexity x 1.30" in found.detail
    assert "KL" not in one.detail
    assert found.verdict == "found"
    assert "more than the sum of their single effects, by 0.800 logits with norms frozen" in found.text
    assert "grade 2" in " ".join(found.cautions)


def test_figures_draw_their_tables(study):
    """Intervals at every dose, a panel per contrast, two panels of the clamp, nine cells of the surface."""
    rows = study.results
    one = rows[rows["test"] == "necessity"]
    drawn = {d.kind: d for d in INTERVENTION.drawings(study, "necessity", one)}
    assert set(drawn) == {"doses", "controls", "ladder"}
    bars = drawn["ladder"].figure.axes[0].patches
    assert len(bars) == 4
    assert bars[0].get_width() == pytest.approx(-0.6)
    doses = study.extras["necessity", "doses"]
    first = drawn["doses"].figure.axes[0].lines
    assert any(list(line.get_ydata()) == doses["mean"].head(4).tolist() for line in first)
    both = {d.kind: d for d in JOINT_CLAMP.drawings(study, "together", rows[rows["test"] == "together"])}
    assert set(both) == {"clamps", "surface"}
    assert len(both["clamps"].figure.axes) == 2
    assert len(both["surface"].figure.axes[0].texts) == 9


def test_methods_say_what_was_exchanged_and_matched(study):
    """Delta form, flips, rank among controls, the four criteria of a joint clamp."""
    both = study_with(study, claim("mean", -0.6), joint("clamp"))
    text = " ".join(methods_text(both)[0])
    for words in ("delta form", "sign flips of whole items", "rank of the mean change among 99 sets", "larger one",
                  "I = L(AB) - L(A) - L(B) + L(0)", "all of four"):  # fmt: skip
        assert words in text
    assert SECTIONS["intervention"] is INTERVENTION
    assert SECTIONS["joint_clamp"] is JOINT_CLAMP


def test_shapley_rows_are_exploratory(study):
    """Without controls there is no claim."""
    row = joint("clamp", x_role="exploratory", p_corr=None, p_adjust=None, family=None, n_family=None)
    (one,) = statements(study_with(study, row))
    assert one.verdict == "exploratory"
    assert pd.isna(study_with(study, row).results["p_corr"]).all()
