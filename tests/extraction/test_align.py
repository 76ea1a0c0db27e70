"""Alignment relabels rows; planted shifts come back as positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.align import align
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract


def extracted(stimuli, model, dictionary, **asked):
    """Responses of one site under a positions block."""
    return extract(stimuli, model, {"s": dictionary}, positions={"regions": ["verb"], **asked})["s"]


def test_region_puts_the_last_token_at_zero(toy_stimuli, toy_model, tiny):
    """However long the word and wherever it stands, position 0 is its last token."""
    out = align(extracted(toy_stimuli, toy_model, tiny()), "region")
    last = out.obs[out.obs["position"] == 0]
    ends = toy_stimuli["text"].str.encode("utf-8").str.len()  # BOS first: byte i of a text is token i + 1
    plain = toy_stimuli["frame"].astype(str).to_numpy() == "a"
    assert_array_equal(last["token_index"].to_numpy()[plain], ends.to_numpy()[plain])
    assert set(last["token"]) == {"s", "e"}


def test_windows_recover_a_planted_shift(toy_stimuli, toy_model, tiny):
    """Letters put in front move every token index and no position."""
    asked = {"align": "start", "window": [-2, 1], "tokens": "all"}
    spans = [c for c in toy_stimuli if c.endswith(("_start", "_end"))]
    seen = []
    for shift in (0, 3, 7):
        moved = toy_stimuli.assign(text="x" * shift + toy_stimuli["text"])
        moved[spans] += shift
        obs = align(extracted(moved, toy_model, tiny(), **asked), "start", window=(-2, 1)).obs
        assert list(obs["region"].cat.categories) == ["verb@start", "verb@end"]
        seen.append(obs.assign(token_index=obs["token_index"] - shift).reset_index(drop=True))
    columns = ["stimulus", "region", "position", "token", "token_index"]
    for later in seen[1:]:
        pd.testing.assert_frame_equal(seen[0][columns], later[columns])


def test_windows_leave_out_what_lies_outside_the_text(toy_stimuli, toy_model, tiny):
    """Frame a ends with the verb: there is no row after it, and no invented one."""
    asked = {"align": "end", "window": [0, 2], "tokens": "all"}
    obs = align(extracted(toy_stimuli, toy_model, tiny(), **asked), "end", window=(0, 2)).obs
    ends = obs[obs["region"] == "verb@end"].groupby("frame", observed=True)["position"].max()
    assert (ends["a"], ends["b"]) == (0, 2)


def test_windows_refuse_tokens_that_were_not_extracted(toy_stimuli, toy_model, tiny):
    """Alignment never goes back to the model: the message says what to extract."""
    plain = extracted(toy_stimuli, toy_model, tiny())
    with pytest.raises(DataError, match=r"token -1 from the start of region 'verb' was not extracted; extract with"):
        align(plain, "start", window=(-1, 0))
    with pytest.raises(DataError, match="align: middle_out"):
        align(plain, "middle_out")
    with pytest.raises(DataError, match="Did you mean 'region'"):
        align(plain, "regions")


def test_middle_out_centres_every_text(toy_stimuli, toy_model, tiny):
    """p = t - floor((n - 1) / 2): texts of odd and even length have their middle at 0; always with its warning."""
    out = align(extracted(toy_stimuli, toy_model, tiny(), align="middle_out", tokens="all"), "middle_out")
    for n, rows in out.obs.groupby("stimulus_tokens"):
        one = rows[rows["stimulus"] == rows["stimulus"].iloc[0]]["position"].to_numpy()
        assert_array_equal(one, np.arange(n) - (n - 1) // 2)
    assert any(
        w.startswith("middle-out index depends on length parity; Spearman(length, number) = +")
        for w in provenance_of(out)["warnings"]
    )


def test_region_warns_where_length_is_confounded(toy_stimuli, toy_model, tiny):
    """`is` and `are` differ in length with number, not with the attractor."""
    said = provenance_of(align(extracted(toy_stimuli, toy_model, tiny()), "region"))["warnings"]
    assert any("region 'verb': length confounded with number (Spearman r = +1.00)" in w for w in said)
    assert not any("with near" in w for w in said)


def test_align_moves_no_activation(toy_stimuli, toy_model, tiny):
    """Rows keep their activations; the input is not written to."""
    raw = extracted(toy_stimuli, toy_model, tiny())
    before = raw.obs.copy()
    out = align(raw, "end")
    at = [raw.obs_names.get_loc(name.split("@verb")[0]) for name in out.obs_names]
    assert_array_equal(out.X.toarray(), raw.X[at].toarray())
    assert raw.obs.equals(before)
