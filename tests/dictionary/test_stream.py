"""Blocks and batches: every row once an epoch, each a pure function of its place."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neurosae.dictionary import stream
from neurosae.dictionary.stream import Block, batches, context_rows, hook_width, plan_blocks
from neurosae.dictionary.texts import make_contexts
from neurosae.errors import DataError
from tests.dictionary.conftest import HOOK

HOOKS = ["blocks.0.hook_resid_post", HOOK]


@pytest.fixture(scope="module")
def contexts(toy, toy_texts):
    """Contexts of 30 ids."""
    return make_contexts(toy.tokens, toy_texts, length=30)


def test_blocks_cover_every_context_once_an_epoch():
    """Blocks of an epoch partition the contexts, hold at least a batch, and suffice for the steps."""
    n_rows = np.random.default_rng(0).integers(1, 60, size=200)
    blocks = plan_blocks(n_rows, batch=50, n_steps=260, seed=1, buffer=700)
    assert sum(b.n_batches for b in blocks) >= 260
    assert min(b.n_batches for b in blocks) >= 1
    seen = np.concatenate([b.contexts for b in blocks])
    assert sorted(seen[:200]) == list(range(200))
    assert not np.array_equal(seen[:150], seen[200:350])


def test_rows_agree_with_one_context_at_a_time(toy, contexts):
    """Rows come in the order asked for, without specials, whatever the padding."""
    chosen = np.array([7, 2, 30])
    rows = context_rows(toy, contexts, chosen, hooks=HOOKS)[HOOK]
    alone = [context_rows(toy, contexts, np.array([i]), hooks=[HOOK])[HOOK] for i in chosen]
    assert_close(rows, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert len(rows) == contexts.n_rows[chosen].sum()


def test_batches_invariant_to_where_they_start(toy, contexts):
    """A batch is the same bytes whether earlier ones were drawn or not."""
    blocks = plan_blocks(contexts.n_rows, batch=40, n_steps=60, seed=1, buffer=500)
    ask = {"hooks": HOOKS, "batch": 40, "seed": 1}
    whole = list(islice(batches(toy, contexts, blocks, **ask, start=0), 60))
    for start in (0, 7, 13, 59):
        late = next(batches(toy, contexts, blocks, **ask, start=start))
        assert all(torch.equal(late[hook], whole[start][hook]) for hook in HOOKS)


def test_plan_refuses_too_little_text():
    """Fewer rows than a batch: the message has both numbers."""
    with pytest.raises(DataError, match=r"30 tokens, fewer than a batch of 512"):
        plan_blocks(np.array([10, 20]), batch=512, n_steps=3, seed=0)


def test_hook_width_agrees_with_the_model(toy):
    """Measured, so that it holds for every kind of hook point."""
    assert [hook_width(toy, h) for h in (HOOK, "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z")] == [16, 32, 16]


def test_every_block_is_shuffled_by_itself(monkeypatch):
    """Blocks of equal size have orders of their own, another one for another seed; each row comes once."""
    monkeypatch.setattr(stream, "context_rows", lambda *a, hooks: {hooks[0]: torch.arange(12.0)[:, None]})
    blocks = [Block(number, np.arange(3), 3) for number in range(2)]

    def orders(seed):
        found = [x["h"][:, 0] for x in stream.batches(None, None, blocks, hooks=["h"], batch=4, seed=seed)]
        return [torch.cat(found[:3]).tolist(), torch.cat(found[3:]).tolist()]

    first, second = orders(0)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert orders(1)[0] != first
    assert orders(0) == [first, second]
