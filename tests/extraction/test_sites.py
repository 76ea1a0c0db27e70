"""Hook points are checked by name before anything runs."""

from __future__ import annotations

import pytest

from neurosae.errors import ModelError
from neurosae.extraction.sites import check_hook, hook_depth


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("blocks.1.hook_resid_pst", "Did you mean 'blocks.1.hook_resid_post'"),
        ("blocks.9.hook_resid_post", "unknown hook point"),
        ("blocks.1.attn.hook_pattern", "not one that gives a vector per token"),
    ],
)
def test_check_hook_refuses(toy_model, hook, message):
    """Misspelt, too deep, or no vector per token: refused, with the nearest known name."""
    with pytest.raises(ModelError, match=message):
        check_hook(hook, toy_model.hooks, where="sites.late")


def test_canonical_hooks_name_one_point_once(toy_model):
    """An alias leads to the canonical name of the same hook point."""
    assert toy_model.hooks["blocks.1.hook_resid_post"] == toy_model.hooks["blocks.1.hook_out"] == "blocks.1.hook_out"


def test_hook_depth_orders_as_the_pass_runs():
    """Deeper in the pass sorts later."""
    hooks = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"]
    hooks += ["blocks.0.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.10.hook_resid_pre"]
    assert sorted(hooks[::-1], key=hook_depth) == hooks
