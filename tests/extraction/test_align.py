"""Alignment relabels rows; planted shifts come back as positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.align import align
from neurosae.extraction.responses import design_of, item_cells, provenance_of
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
    for _, rows in out.obs.groupby(["stimulus", "region"], observed=True):
        ordered = rows.sort_values("token_index")["position"].tolist()
        assert ordered == list(range(1 - len(rows), 1))  # the token before the last is -1


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


# --- data-driven rules ----------------------------------------------------------------------------------------------

WINDOW = [-3, 1]


def planted(toy_stimuli, toy_model, tiny, *, rule="xcorr", shift_of=None, max_shift=2):
    """Responses whose features 5 and 6 fire once per text, at the verb's end plus a planted shift."""
    asked = {"align": "xcorr", "window": WINDOW, "max_shift": 2, "tokens": "all"}
    raw = extracted(toy_stimuli, toy_model, tiny(), **asked)
    ends = raw.obs[raw.obs["region"] == "verb"].groupby("stimulus", observed=True)["token_index"].max()
    names = list(dict.fromkeys(raw.obs["stimulus"]))
    shift = {name: (i % 5) - 3 if shift_of is None else shift_of(name) for i, name in enumerate(names)}
    shift = {name: max(-2, min(s, 0)) for name, s in shift.items()}  # frame a ends with the verb
    offset = raw.obs["token_index"] - raw.obs["stimulus"].map(ends).astype(int)
    peak = offset.to_numpy() == raw.obs["stimulus"].map(shift).astype(int).to_numpy()
    X = np.full(raw.shape, 0.0, dtype=np.float32)
    X[:, 5] = 3.0 * peak
    X[:, 6] = 1.0 * peak + 0.1
    raw.X = sp.csr_matrix(X)
    return raw, shift


def test_xcorr_recovers_planted_shifts(toy_stimuli, toy_model, tiny):
    """Peaks at different tokens come to lie at one position; every row says its shift; the warning is there."""
    raw, shift = planted(toy_stimuli, toy_model, tiny)
    out = align(raw, "xcorr", window=WINDOW, max_shift=2)
    obs = out.obs.assign(value=out.X[:, 5].toarray().ravel())
    assert set(obs["region"]) == {"verb"}
    assert obs["position"].between(*WINDOW).all()
    peaks = obs[obs["value"] > 0].set_index("stimulus")
    assert peaks["position"].nunique() == 1  # all at one place, where the template has its own
    moved = peaks["shift"] - peaks.index.map(shift).astype(int)
    assert moved.nunique() == 1
    said = provenance_of(out)["warnings"]
    assert any(w.startswith("xcorr (exploratory): peak height, latency and shape") for w in said)
    assert provenance_of(out)["alignment"]["max_shift"] == 2


def test_item_shifts_are_equal_within_items(toy_stimuli, toy_model, tiny):
    """shift_unit: item moves all cells and frames of an item alike."""
    raw, _ = planted(toy_stimuli, toy_model, tiny)
    out = align(raw, "xcorr", window=WINDOW, max_shift=2, shift_unit="item")
    assert (out.obs.groupby("item", observed=True)["shift"].nunique() == 1).all()
    by_stimulus = align(raw, "xcorr", window=WINDOW, max_shift=2)
    assert (by_stimulus.obs.groupby("item", observed=True)["shift"].nunique() > 1).any()


def test_reference_features_set_the_shifts_and_leave(toy_stimuli, toy_model, tiny):
    """Only the reference features count, at their own site; no test can use them afterwards."""
    raw, shift = planted(toy_stimuli, toy_model, tiny)
    noisy = raw.copy()
    X = noisy.X.toarray()
    X[:, 7] = np.random.default_rng(0).random(len(X)) * 50  # would set the shifts of xcorr
    noisy.X = sp.csr_matrix(X.astype(np.float32))
    out = align({"s": noisy, "t": raw}, "reference", window=WINDOW, max_shift=2, reference={"s": [5, 6]})
    moved = out["s"].obs["shift"] - out["s"].obs["stimulus"].map(shift).astype(int)
    assert moved.nunique() == 1
    assert not {5, 6} & set(out["s"].var["feature"])
    assert {5, 6} <= set(out["t"].var["feature"])
    assert_array_equal(out["t"].obs["shift"].to_numpy(), out["s"].obs["shift"].to_numpy())
    assert any("features 5, 6 of s, which are left out of every test" in w for w in provenance_of(out["t"])["warnings"])


def test_shifts_are_blind_to_conditions(toy_stimuli, toy_model, tiny):
    """Labels may be permuted: no shift changes. A part of the conditions is refused."""
    raw, _ = planted(toy_stimuli, toy_model, tiny)
    other = raw.copy()
    other.obs["number"] = other.obs["number"].cat.rename_categories({"sg": "pl", "pl": "sg"})
    first, second = (align(x, "xcorr", window=WINDOW, max_shift=2).obs["shift"].to_numpy() for x in (raw, other))
    assert_array_equal(first, second)
    part = raw[(raw.obs["number"] == "sg").to_numpy()].copy()
    with pytest.raises(DataError, match="xcorr needs all conditions at once, but number has no pl here"):
        align(part, "xcorr", window=WINDOW, max_shift=2)


def test_dtw_warps_and_forbids_inference(toy_stimuli, toy_model, tiny):
    """Every position is the mean of the tokens that the path matches; tests refuse the result."""
    raw, _ = planted(toy_stimuli, toy_model, tiny)
    out = align(raw, "dtw", window=WINDOW)
    spread = out.obs.assign(value=out.X[:, 5].toarray().ravel()).groupby("position")["value"].mean()
    plain = align(raw, "xcorr", window=WINDOW, max_shift=0)
    before = plain.obs.assign(value=plain.X[:, 5].toarray().ravel()).groupby("position")["value"].mean()
    assert spread.max() > before.max()
    assert out.X[:, 6].min() > 0.09  # a mean of tokens, not a sum and not an empty row
    assert any("warped, for figures only; no test is made on them" in w for w in provenance_of(out)["warnings"])
    with pytest.raises(DataError, match=r"warped \(align: dtw\), for figures only"):
        item_cells(out, design_of(out), region="verb")


def test_data_driven_rules_refuse(toy_stimuli, toy_model, tiny):
    """What is missing is named with its remedy."""
    raw, _ = planted(toy_stimuli, toy_model, tiny)
    with pytest.raises(DataError, match=r"token -6 from the end of region 'verb' was not extracted; extract with"):
        align(raw, "xcorr", window=(-3, 1), max_shift=3)
    with pytest.raises(DataError, match="feature 4 of site 's' is active nowhere"):
        align({"s": raw}, "reference", window=WINDOW, max_shift=2, reference={"s": [5, 4]})
    with pytest.raises(DataError, match="there is no feature 999; features run from 0 to 95"):
        align({"s": raw}, "reference", window=WINDOW, max_shift=2, reference={"s": [999]})
    with pytest.raises(DataError, match="unknown site 'late'"):
        align({"s": raw}, "reference", window=WINDOW, max_shift=2, reference={"late": [5]})
    with pytest.raises(DataError, match="xcorr takes no reference features"):
        align({"s": raw}, "xcorr", window=WINDOW, max_shift=2, reference={"s": [5]})
    with pytest.raises(DataError, match="xcorr needs the same rows at every site; those of 't' differ"):
        align({"s": raw, "t": raw[:-1].copy()}, "xcorr", window=WINDOW, max_shift=2)
    with pytest.raises(DataError, match="a window of 2 positions is too short"):
        align(raw, "xcorr", window=(0, 1), max_shift=1)
    assert_allclose(align(raw, "region").X.sum(), raw[(raw.obs["region"] != "@window").to_numpy()].X.sum(), rtol=1e-5)
