"""Which tokens leave the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neurosae.errors import DataError
from neurosae.extraction.cells import WHOLE, WINDOW, Wanted, cut_ids, plan_cells


def plan(stimuli, model, **asked):
    """Cells of the toy under the given positions block."""
    plain = {"regions": ("pre_verb",), "align": "region", "window": None, "keep_x": False, "allow_straddle": False}
    block = Wanted(**(plain | asked))
    return plan_cells(stimuli, model.tokens, block, n_ctx=model.n_ctx, model="toy", target_slot="verb")


def test_plan_cells_recovers_the_words(toy_stimuli, toy_model):
    """Tokens of a region spell its word (bytes of one character share their text)."""
    rows = plan(toy_stimuli, toy_model, regions=("head", "pre_verb")).rows
    spelled = rows.groupby(["row", "region"])["token"].agg(lambda t: "".join(dict.fromkeys(t)))
    text = toy_stimuli["text"].iloc[0]
    assert (spelled[0, "head"], spelled[0, "pre_verb"]) == ("key", "house")
    assert text == "The key near the house is"


def test_plan_cells_adds_only_what_alignment_needs(toy_stimuli, toy_model):
    """A window adds its tokens once, inside the text; middle-out adds all tokens of the text."""
    window = plan(toy_stimuli, toy_model, regions=("verb",), align="end", window=(-2, 1)).rows
    first = window[window["row"] == 0]
    assert first.groupby("region")["token_index"].agg(list).to_dict() == {"verb": [24, 25], WINDOW: [22, 23]}
    middle = plan(toy_stimuli, toy_model, align="middle_out").rows
    assert (
        middle[middle["region"] == WHOLE].groupby("row").size().to_numpy()
        == middle.groupby("row")["stimulus_tokens"].first()
    ).all()


def test_plan_cells_gives_the_reason_for_a_missing_target(toy_stimuli, toy_model):
    """Under a byte tokenizer a verb is several tokens: never scored by its first piece."""
    target = plan(toy_stimuli, toy_model).target
    assert (target["at"] == -1).all()
    assert target["reason"].iloc[0] == "'is' is 2 tokens; 'are' is 3 tokens"


def test_plan_cells_refuses(toy_stimuli, toy_model):
    """Unknown regions, absent regions and long texts are refused by name."""
    with pytest.raises(DataError, match=r"unknown region 'hed'. Did you mean 'head'"):
        plan(toy_stimuli, toy_model, regions=("hed",))
    with pytest.raises(DataError, match=r"no stimulus has any of the regions head"):
        plan(toy_stimuli.assign(head_start=None, head_end=None), toy_model, regions=("head",))
    long = toy_stimuli.assign(text=toy_stimuli["text"] + " and" * 40)
    with pytest.raises(DataError, match=r"stimulus 'i0/a/sg/sg' has 186 tokens .* toy takes at most 96 \(24 stimuli"):
        plan(long, toy_model)


def test_cut_ids_end_at_the_last_token_that_is_needed(toy_stimuli, toy_model):
    """Causal: at the last wanted or scored token, not one later; where tokens look ahead, nothing is cut."""
    cells = plan(toy_stimuli, toy_model, regions=("head",))
    last = cells.rows.groupby("row")["token_index"].max()
    cut = cut_ids(cells, is_causal=True, is_scored=False)
    assert [len(ids) for ids in cut] == (last + 1).tolist()
    assert [ids.tolist() for ids in cut] == [ids[: len(c)].tolist() for ids, c in zip(cells.ids, cut, strict=True)]
    later = replace(cells, target=cells.target.assign(at=last.to_numpy() + 2))
    assert [len(ids) for ids in cut_ids(later, is_causal=True, is_scored=True)] == (last + 3).tolist()
    assert [len(ids) for ids in cut_ids(later, is_causal=True, is_scored=False)] == (last + 1).tolist()
    assert cut_ids(later, is_causal=False, is_scored=True) is cells.ids
