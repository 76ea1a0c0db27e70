"""Texts written under edits: the same as without a cache, the same for every batch, from the right distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import neurosae as ns
from neurosae.causal.decoding import batches, passed, rows_at_once
from neurosae.causal.edits import Edit
from neurosae.causal.generation import Sampling, continuation_costs, continue_conditions, continue_texts, generate
from neurosae.causal.prompting import beside, named_edits, steered_samples
from neurosae.dictionary.kinds import neuron_dictionary
from neurosae.errors import DataError, ModelError
from neurosae.extraction.tokens import byte_tokenizer, token_ids

EARLY, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
TOY = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=48, d_vocab=257, act_fn="gelu", seed=0)
PROMPTS = ["ab", "xyz", "pqr"]


@pytest.fixture(scope="module")
def toy():
    """A seeded model without a cache, bytes and BOS as tokens."""
    return ns.load_model(TOY)


@pytest.fixture(scope="module")
def cached():
    """A random GPT-2 with a key-value cache, bytes as tokens and nothing in front."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    sizes = dict(n_layer=2, n_embd=16, n_head=2, vocab_size=257, n_positions=48, initializer_range=0.6)
    return ns.load_model(
        (GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=256)), byte_tokenizer().backend)
    )


@pytest.fixture(scope="module")
def raw():
    """The coordinates of the stream as features."""
    return neuron_dictionary(EARLY, 16)


def pushed(raw, where="all", *, dose=4.0, hook=EARLY):
    """An edit that moves two features."""
    return Edit(hook, "steer", where, dictionary=raw, features=(1, 20), dose=np.array([dose, 2 * dose]))


def by_hand(model, ids, edit, *, cells):
    """Logits of the next token by one pass over the whole text, edited at absolute positions without any cache."""

    def hook(x, hook):
        x = x.clone()
        x[:, cells] += torch.as_tensor(edit.dose, dtype=torch.float32) @ edit.dictionary.W_dec[list(edit.features)]
        return x

    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(edit.hook, hook)]):
        return model.bridge(torch.tensor([ids]), return_type="logits")[0, -1]


@pytest.mark.parametrize("which", ["toy", "cached"])
@pytest.mark.parametrize("where", ["all", "prompt", "generated", "given"])
def test_generation_agrees_with_passes_over_the_whole_text(request, raw, *, which, where):
    """Greedy text under an edit is what recomputing everything at absolute positions gives, cache or not."""
    model = request.getfixturevalue(which)
    first = model.tokens.first
    start = token_ids(model.tokens, ["xyz"])[0]
    n = len(start)
    given = [np.array([first + 1, n, n + 2])]
    edit = pushed(raw, given if where == "given" else where)
    ids, written = list(start), continue_texts(model, ["xyz"], (edit,), sampling=Sampling(8, 1, 0), seed=0)
    for _ in range(len(written.ids[0]) - n):
        at = np.arange(len(ids))
        cells = {"all": at[first:], "prompt": at[first:n], "generated": at[n:], "given": np.intersect1d(given[0], at)}
        ids.append(int(by_hand(model, ids, edit, cells=cells[where]).argmax()))
    assert written.ids[0].tolist() == ids
    assert written.moved > 0


@pytest.mark.parametrize("which", ["toy", "cached"])
def test_generation_under_no_edit_agrees_with_plain_text(request, raw, which):
    """No edit, a dose of 0, and an edit without tokens all leave the text and its probabilities as they are."""
    model, ask = request.getfixturevalue(which), Sampling(6, 2, 1.0)
    plain = continue_texts(model, PROMPTS, (), sampling=ask, seed=4)
    for edit in (pushed(raw, dose=0.0), pushed(raw, [np.array([], dtype=int)] * 3)):
        same = continue_texts(model, PROMPTS, (edit,), sampling=ask, seed=4)
        assert same.texts == plain.texts
        assert same.moved == 0
        np.testing.assert_array_equal(np.concatenate(same.log_prob), np.concatenate(plain.log_prob))


@pytest.mark.parametrize("which", ["toy", "cached"])
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_clamped_text_agrees_with_passes_over_the_whole_text(request, raw, *, which, where):
    """Clamps read the features of every token anew: what recomputing everything without a cache gives."""
    model = request.getfixturevalue(which)
    edit = Edit(EARLY, "clamp", where, dictionary=raw, features=(1, 20), dose=np.array([3.0, 6.0]))
    start = token_ids(model.tokens, ["xyz"])[0]
    written = continue_texts(model, ["xyz"], (edit,), sampling=Sampling(8, 1, 0), seed=0)
    ids, first, n = list(start), model.tokens.first, len(start)
    for _ in range(len(written.ids[0]) - n):
        cells = {"all": slice(first, None), "prompt": slice(first, n), "generated": slice(n, None)}[where]

        def hook(x, hook, *, cells=cells):
            x = x.clone()
            W = raw.W_dec[[1, 20]]
            x[:, cells] += (torch.tensor([3.0, 6.0]) - torch.relu(x[:, cells] @ W.T)) @ W
            return x

        with torch.inference_mode(), model.bridge.hooks(fwd_hooks=[(EARLY, hook)]):
            ids.append(int(model.bridge(torch.tensor([ids]), return_type="logits")[0, -1].argmax()))
    assert written.ids[0].tolist() == ids
    assert written.moved > 0


def test_conditions_side_by_side_agree_with_one_at_a_time(cached, raw, monkeypatch):
    """Plain, constant, clamped, scaled, a head and a vector at once, in batches that split samples: as each alone."""
    head = Edit("blocks.1.attn.hook_z.h1", "add", "all", vector=np.full(8, 3.0))
    clamp = Edit(EARLY, "clamp", "all", dictionary=raw, features=(3,), dose=np.array([[9.0], [0.0], [4.0]]))
    scale = Edit(EARLY, "scale", "prompt", dictionary=raw, features=(2, 17), dose=np.array([5.0, 3.0]))
    vector = Edit(LAST, "replace", "generated", vector=np.linspace(-3, 3, 16))
    given = pushed(raw, [np.array([0]), np.array([4]), np.array([1, 5])])
    conditions = [(), (pushed(raw),), (clamp, head), (scale, pushed(raw, "generated")), (vector,), (given,)]
    ask = Sampling(6, 3, 1.0)
    alone = [continue_texts(cached, PROMPTS, edits, sampling=ask, seed=1) for edits in conditions]
    monkeypatch.setattr("neurosae.causal.decoding.ROWS", 7)
    together = continue_conditions(cached, PROMPTS, conditions, sampling=ask, seed=1)
    for one, other in zip(alone, together, strict=True):
        assert [row.tolist() for row in one.ids] == [row.tolist() for row in other.ids]
        assert one.moved == pytest.approx(other.moved, rel=1e-4)
        np.testing.assert_allclose(np.concatenate(one.log_prob), np.concatenate(other.log_prob), atol=1e-4)
        np.testing.assert_array_equal(one.sample, other.sample)
    assert len({tuple(w.texts) for w in together}) == len(conditions)
    assert [w.moved > 0 for w in together] == [False, True, True, True, True, True]


def test_batches_hold_every_text_once_and_no_prompt_twice():
    """Condition x prompt x sample, equal lengths, at most the asked number; a pair's prompt is read once per batch."""
    coded, seen = [np.arange(n) for n in (2, 3, 2, 5)], []
    for batch, sample in batches(coded, n_conditions=3, n_samples=2, size=5):
        assert len(batch.pair) <= 5
        pairs = list(zip(batch.condition.tolist(), batch.owner.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs) == len(batch.ids)
        assert all(len(coded[p]) == batch.ids.shape[1] for p in batch.owner)
        seen += [(*pairs[k], int(s)) for k, s in zip(batch.pair, sample, strict=True)]
    assert sorted(seen) == [(c, p, s) for c in range(3) for p in range(4) for s in range(2)]


def test_fewer_texts_at_once_where_they_need_more_memory(cached):
    """Keys, values and probabilities of a wide or long model hold the number of rows down, never below one."""
    assert rows_at_once(cached, 40) == 512
    assert rows_at_once(cached, 10**9) == 1
    assert 1 < rows_at_once(replace(cached, d_model=4096, n_layers=32, n_vocab=50_000), 40) < 40


def test_drawn_tokens_agree_with_the_cumulated_distribution():
    """Blocks first and then inside the block: the index that one cumulated sum in float64 gives."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(1000, 0.02), size=400).astype(np.float32)
    u = rng.random(400)
    total = p.astype(np.float64).cumsum(1)
    wanted = [int(np.searchsorted(t, x * t[-1])) for t, x in zip(total, u, strict=True)]
    found = passed(torch.as_tensor(p), torch.as_tensor(u)).tolist()
    assert found == wanted
    assert len(set(found)) > 100


def test_generation_invariant_to_what_else_is_written(cached):
    """A text depends on seed, prompt and sample, not on other rows; another seed writes another text."""
    ask = Sampling(8, 3, 1.0)
    three = continue_texts(cached, PROMPTS, (), sampling=ask, seed=1)
    alone = continue_texts(cached, PROMPTS[2:], (), sampling=ask, seed=1)
    assert [t for t, p in zip(three.texts, three.prompt, strict=True) if p == 2] == alone.texts
    assert len(set(alone.texts)) == 3
    assert continue_texts(cached, PROMPTS[2:], (), sampling=ask, seed=2).texts != alone.texts


def test_every_prompt_and_sample_has_random_numbers_of_its_own(cached):
    """So hot that all tokens are alike, a text is its random numbers: others for every prompt, sample and seed."""
    ask = Sampling(8, 2, 1e9)
    hot = continue_texts(cached, ["ab", "cd", "ab"], (), sampling=ask, seed=1)
    new = [tuple(ids[n:].tolist()) for ids, n in zip(hot.ids, hot.start, strict=True)]
    again = continue_texts(cached, ["ab"], (), sampling=ask, seed=2)
    new += [tuple(ids[n:].tolist()) for ids, n in zip(again.ids, again.start, strict=True)]
    assert new[:2] == new[4:6]
    assert len(set(new)) == 6


def test_edits_at_one_hook_point_add_up(cached, raw):
    """Two pushes of one feature each at the same tokens are one push of both, whichever is named first."""
    ask = Sampling(8, 1, 0)
    two = [Edit(EARLY, "steer", "all", dictionary=raw, features=(j,), dose=d) for j, d in ((1, 4.0), (20, 8.0))]
    both = continue_texts(cached, PROMPTS, [pushed(raw)], sampling=ask, seed=0)
    for edits in (two, two[::-1]):
        assert continue_texts(cached, PROMPTS, edits, sampling=ask, seed=0).texts == both.texts
    assert continue_texts(cached, PROMPTS, two[:1], sampling=ask, seed=0).texts != both.texts
    assert continue_texts(cached, PROMPTS, two[1:], sampling=ask, seed=0).texts != both.texts


def test_doses_of_prompts_follow_their_prompt(cached, raw):
    """A dose per prompt reaches the rows of that prompt, in whatever batch they stand."""
    each = Edit(EARLY, "steer", "all", dictionary=raw, features=(1, 20), dose=np.array([[0, 0], [4.0, 8.0], [0, 0]]))
    ask = Sampling(6, 2, 0)
    found = continue_texts(cached, PROMPTS, (each,), sampling=ask, seed=0).texts
    plain = continue_texts(cached, PROMPTS, (), sampling=ask, seed=0).texts
    moved = continue_texts(cached, PROMPTS, (pushed(raw),), sampling=ask, seed=0).texts
    assert found == [*plain[:2], *moved[2:4], *plain[4:]]
    assert plain != moved


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_recover_the_distribution(cached, temperature):
    """Next tokens of 3,000 samples follow softmax(logits / T): total variation within that of exact draws."""
    ids = token_ids(cached.tokens, ["ab"])[0]
    with torch.inference_mode():
        p = (cached.bridge(torch.tensor([ids]), return_type="logits")[0, -1].double() / temperature).softmax(-1).numpy()
    found = continue_texts(cached, ["ab"], (), sampling=Sampling(1, 3000, temperature), seed=5)
    new = [w[2] if len(w) > 2 else 256 for w in found.ids]
    share = np.bincount(new, minlength=257) / 3000
    draws = np.random.default_rng(0).multinomial(3000, p / p.sum(), size=200) / 3000
    assert np.abs(share - p).sum() <= np.abs(draws - p).sum(1).max()


def test_text_ends_where_the_model_ends_it(toy):
    """The special token ends a text and is no part of it; other rows go on."""
    head = toy.bridge.unembed.W_U[:, 256].detach().numpy()
    end = 200 * head / np.linalg.norm(head)
    vector = np.stack([np.zeros(16), end, np.zeros(16)])
    edit = Edit(LAST, "add", [np.arange(1, 40), np.array([4]), np.arange(1, 40)], vector=vector)
    found = continue_texts(toy, PROMPTS, (edit,), sampling=Sampling(5, 1, 0), seed=0)
    assert found.ended.tolist() == [False, True, False]
    assert [len(w) - s for w, s in zip(found.ids, found.start, strict=True)] == [5, 1, 5]
    assert 256 not in found.ids[1][1:]


def test_log_probabilities_agree_with_a_pass_over_the_finished_text(cached):
    """What is noted while writing is what the model gives the finished text."""
    found = continue_texts(cached, PROMPTS, (), sampling=Sampling(7, 2, 1.3), seed=2)
    mean = [-lp.mean() for lp in found.log_prob]
    np.testing.assert_allclose(continuation_costs(cached, found), mean, rtol=1e-4)


def test_generate_returns_both_texts_and_says_what_was_edited(cached, raw):
    """The public function, with {feature: value}; a second call gives the same."""
    two = generate(cached, raw, "ab", clamp={3: 9.0}, n_tokens=6, seed=1)
    assert two == generate(cached, raw, "ab", clamp={3: 9.0}, n_tokens=6, seed=1)
    assert two.plain != two.steered
    assert two.record["edits"] == [f"{EARLY}: clamp features [3] at [9.0], all tokens"]
    assert "seed 1, temperature 1" in beside([two])
    words = steered_samples(cached, {"raw": raw}, "ab", features="raw/3=9", settings={"n_tokens": 6}, seeds=[1, 2])
    assert words[0].steered == two.steered
    assert words[1].plain != two.plain


def test_generate_refuses_an_edit_that_changes_no_logit(cached, raw):
    """Activations moved, and no probability did: the last block at a token that nothing reads any more."""
    edit = pushed(raw, [np.array([0])], hook=LAST)
    with pytest.raises(ModelError, match="no logit changed"):
        generate(cached, raw, "ab", clamp=[edit], n_tokens=4, seed=0)


def test_generate_refuses_hooks_that_do_not_exist_or_fire(cached, raw):
    """A misspelt hook point is named with the nearest one, a switched-off one with its reason."""
    for hook, said in (("blocks.0.hook_resid_past", "hook_resid_post"), ("blocks.0.hook_mlp_in", "switched off")):
        with pytest.raises(ModelError, match=said):
            generate(cached, raw, "ab", clamp=[pushed(raw, hook=hook)], n_tokens=2, seed=0)


def test_generation_refuses_a_hook_that_never_fires(toy):
    """Known to the model and silent in every pass: the text would be the plain one, under the name of an edit."""
    edit = Edit("blocks.1.attn.hook_hidden_states", "add", "all", vector=np.ones(16))
    with pytest.raises(ModelError, match=r"hook points never fired: blocks\.1\.attn\.hook_hidden_states"):
        continue_texts(toy, PROMPTS, (edit,), sampling=Sampling(2, 1, 0), seed=0)


def test_generation_refuses_long_prompts_wrong_places_and_nothing(cached, raw):
    """The context, a place that only scored stimuli have, an empty prompt, and no feature at all."""
    with pytest.raises(DataError, match="exceed the context"):
        generate(cached, raw, "abc", clamp={3: 1.0}, n_tokens=46, seed=0)
    with pytest.raises(DataError, match="place in a written text"):
        generate(cached, raw, "abc", clamp=[pushed(raw, "target")], n_tokens=4, seed=0)
    with pytest.raises(DataError, match="empty prompt"):
        generate(cached, raw, "", clamp={3: 1.0}, n_tokens=4, seed=0)
    with pytest.raises(DataError, match="nothing would be steered"):
        generate(cached, raw, "abc", clamp={}, n_tokens=4, seed=0)
    for asked, said in (
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(DataError, match=said):
            generate(cached, raw, "abc", clamp={3: 1.0}, **({"n_tokens": 4, "seed": 0} | asked))
    wrong = Edit(EARLY, "steer", "all", dictionary=raw, features=(1, 2), dose=np.zeros((1, 3)))
    with pytest.raises(DataError, match="dose does not fit"):
        generate(cached, raw, "abc", clamp=[wrong], n_tokens=4, seed=0)


def test_named_features_refuse_what_they_cannot_mean(raw):
    """Site, value and mode are checked before anything is written."""
    for words, mode, said in (
        ("raw/3", "clamp", "no site/feature=value"),
        ("raw/3=1", "ablate", "no site/feature,"),
        ("late/3=1", "clamp", "unknown site 'late'"),
        ("raw/3=1", "clamped", "Did you mean 'clamp'"),
        ("", "clamp", "no feature is named"),
        ("raw/32=1", "clamp", "'raw/32=1': raw has features 0 to 31"),
        ("raw/3=1,raw/3=2", "clamp", "named twice"),
        ("raw/3=1e999", "clamp", "too large"),
        ("raw/3=nan", "clamp", "no site/feature=value"),
    ):
        with pytest.raises(DataError, match=said):
            named_edits({"raw": raw}, words, mode=mode)
