"""Collapse agrees with a loop; what grows with length is refused or cut to a common length."""

from __future__ import annotations

import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.align import align
from neurosae.extraction.collapse import collapse
from neurosae.extraction.responses import check_responses, provenance_of
from neurosae.extraction.run import extract


@pytest.fixture
def responses(toy_stimuli, toy_model, tiny):
    """The head of every stimulus: three to six byte tokens."""
    asked = {"regions": ["head", "pre_verb"], "keep_x": True}
    return align(extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions=asked))["s"]


@pytest.mark.parametrize("sign", [1, -1])
def test_collapse_agrees_with_a_loop(responses, sign):
    """Each rule equals numpy on the rows of one stimulus and region, implicit zeros and signed values included."""
    obs, responses.X = responses.obs, sign * responses.X
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurosae.extraction.collapse._refuse_unequal_lengths", lambda *a: None)
        for rule, expected in {
            "last": lambda x: x[-1], "first": lambda x: x[0], "mean": lambda x: x.mean(0),
            "max": lambda x: x.max(0), "sum": lambda x: x.sum(0),
        }.items():  # fmt: skip
            out = collapse(responses, rule)
            check_responses(out)
            for i in (0, 7, 31):
                one = (obs["stimulus"] == out.obs["stimulus"].iloc[i]) & (obs["region"] == out.obs["region"].iloc[i])
                assert_allclose(out.X[i].toarray()[0], expected(responses.X[one.to_numpy()].toarray()), rtol=1e-6)
            assert (out.obs["position"] == 0).all()


def test_collapse_refuses_sums_over_unequal_spans(responses):
    """`keys` has one byte more than `key`: a sum over tokens would be a test of length."""
    for rule in ("max", "sum"):
        with pytest.raises(DataError, match=rf"tokens: {rule} grows with span length, and region 'head' .*use last"):
            collapse(responses, rule)


def test_collapse_keeps_the_type_and_its_input(responses):
    """A dict of sites stays one; nothing is written to the argument."""
    before = responses.X.copy(), responses.obs.copy()
    out = collapse({"s": responses}, "mean")
    assert list(out) == ["s"]
    assert_array_equal(responses.X.toarray(), before[0].toarray())
    pd.testing.assert_frame_equal(responses.obs, before[1])


def test_length_match_cuts_every_region_to_its_shortest(responses):
    """Sums of the last n tokens, n the same in all conditions; the cut is said; without it they are refused."""
    out = collapse(responses, "sum", length_match=True)
    obs, n = responses.obs, responses.obs.groupby("region", observed=True)["n_tokens"].min()
    for i in (0, 5, 17):
        cell = out.obs.iloc[i]
        one = ((obs["stimulus"] == cell["stimulus"]) & (obs["region"] == cell["region"])).to_numpy()
        kept = responses.X[one].toarray()[-n[cell["region"]] :]
        assert_allclose(out.X[i].toarray()[0], kept.sum(0), rtol=1e-6)
        assert cell["n_tokens"] == n[cell["region"]]
    assert any("region 'head' was cut to its last 3 of up to" in w for w in provenance_of(out)["warnings"])
    with pytest.raises(DataError, match="length_match has no meaning with mean"):
        collapse(responses, "mean", length_match=True)
