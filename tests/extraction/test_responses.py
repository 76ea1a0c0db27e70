"""The AnnData contract, and item x cell x feature."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.extraction.align import align
from neurosae.extraction.responses import (
    check_responses,
    design_of,
    item_cells,
    provenance_of,
)
from neurosae.extraction.run import extract


@pytest.fixture
def responses(toy_stimuli, toy_model, tiny):
    """The head of every stimulus: three to six byte tokens."""
    asked = {"regions": ["head", "pre_verb"], "keep_x": True}
    return align(extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions=asked))["s"]


def test_item_cells_agrees_with_groupby(responses, toy_design):
    """Means over frames per item and cell, in the design's order of levels."""
    got = item_cells(responses, toy_design, region="head")
    assert got.items == ("i0", "i1", "i2")
    assert got.cells == (("sg", "sg"), ("sg", "pl"), ("pl", "sg"), ("pl", "pl"))
    obs = responses.obs
    for row, (item, cell) in enumerate(zip(got.row_item, got.row_cell, strict=True)):
        number, near = got.cells[cell]
        mask = (obs["item"] == got.items[item]) & (obs["number"] == number) & (obs["near"] == near)
        mask &= (obs["region"] == "head") & (obs["position"] == 0)
        assert_allclose(got.X[row].toarray()[0], responses.X[mask.to_numpy()].toarray().mean(0), rtol=1e-6, atol=1e-7)
    assert (got.n_frames, len(got.dropped), got.X.dtype) == (2, 0, np.float64)


def test_item_cells_uses_complete_frames_only(responses, toy_design):
    """A frame that lacks one cell of an item is dropped there and listed, not averaged over what is left."""
    lost = (responses.obs["item"] == "i1") & (responses.obs["frame"] == "b") & (responses.obs["number"] == "pl")
    short = responses[~lost.to_numpy()].copy()
    got = item_cells(short, toy_design, region="head")
    assert got.dropped.to_dict("records") == [{"item": "i1", "frame": "b", "reason": "no row in cell pl/pl, pl/sg"}]
    only_a = short[(short.obs["item"] == "i1").to_numpy() & (short.obs["frame"] == "a").to_numpy()].copy()
    alone = item_cells(only_a, toy_design, region="head")
    assert_allclose(got.X[got.row_item == 1].toarray(), alone.X.toarray())


def test_item_cells_over_some_factors(responses, toy_design):
    """Unnamed factors are averaged over; separate frames become part of the cell."""
    full, one = (item_cells(responses, toy_design, region="head", factors=f) for f in (None, ["near"]))
    assert one.cells == (("sg",), ("pl",))
    assert_allclose(one.X[0].toarray(), full.X[[0, 2]].toarray().mean(0)[None], rtol=1e-12)
    apart = item_cells(responses, toy_design, region="head", frames="separate")
    assert apart.cells[0] == ("sg", "sg", "a")
    assert apart.X.shape[0] == 24


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"region": "hed"}, "Did you mean 'head'"),
        ({"region": "head", "position": 9}, r"no rows at region 'head', position 9.*-4, -3, -2, -1, 0"),
        ({"region": "head", "split": "localizer"}, "split localizer"),
        ({"region": "head", "factors": ["numbr"]}, "Did you mean 'number'"),
    ],
)
def test_item_cells_refuses(responses, ask, message):
    """What is not there is named, with what is."""
    with pytest.raises(DataError, match=message):
        item_cells(responses, design_of(responses), **ask)


def test_item_cells_refuses_two_rows_of_one_stimulus(responses):
    """Tokens that were not collapsed would count as if they were further frames."""
    responses.obs["position"] = np.int32(0)
    with pytest.raises(DataError, match=r"has two rows at region 'head', position 0; collapse first"):
        item_cells(responses, design_of(responses), region="head")


def test_responses_carry_provenance_and_design(responses, toy_design):
    """One JSON string holds both; the design comes back equal."""
    assert design_of(responses) == toy_design
    record = provenance_of(responses)
    assert record["hook"] == "blocks.1.hook_resid_post"
    assert record["batch_invariance"] < 1e-5


def damaged(responses, part):
    """Responses with one part broken."""
    out = responses.copy()
    if part == "CSR":
        out.X = out.X.toarray()
    elif part == "float32":
        out.X = out.X.astype(np.float64)
    elif part == "finite":
        out.X.data[0] = np.nan
    elif part == "norm":
        del out.obs["norm"]
    elif part == "integers":
        out.obs["position"] = out.obs["position"].astype(float)
    else:
        del out.uns["neurosae"]
    return out


@pytest.mark.parametrize("part", ["CSR", "float32", "finite", "norm", "integers", "provenance"])
def test_check_responses_refuses(responses, part):
    """Every broken part is named."""
    broken = damaged(responses, part)
    with pytest.raises(DataError, match=part):
        check_responses(broken)
