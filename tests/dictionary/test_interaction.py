"""The interaction term: its equation and gradients, what it can represent, how it is stored, what it is worth."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.nn import functional
from torch.testing import assert_close

from neurosae.dictionary.interaction import FIRST, InteractionLearner, PermutedLearner, factor_norms, pair_strengths
from neurosae.dictionary.interaction_study import _arms, _row, interaction_gain, interaction_study, train_rows
from neurosae.dictionary.learn import TopKLearner
from neurosae.dictionary.load import load_dictionary
from neurosae.dictionary.pathology import pathology, random_error
from neurosae.dictionary.products import head, pair_sums, pair_sums_of, strongest
from neurosae.dictionary.record import neuron_dictionary, read_folder, write_folder
from neurosae.dictionary.settings import settings_of
from neurosae.dictionary.train import train_dictionary
from neurosae.errors import DataError, ModelError
from tests.dictionary.conftest import HOOK

ASK = {"architecture": "interaction", "d_sae": 40, "k": 3, "rank": 8, "n_tokens": 20_000, "batch": 100, "lr": 3e-3}


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes_of(n, m, k, *, seed=0):
    """Active features, their activations, and both as a dense matrix."""
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(n, m, generator=g).topk(k, dim=1).indices
    values = (0.5 + torch.rand(n, k, generator=g)).double()
    return kept, values, torch.zeros(n, m, dtype=torch.float64).scatter(1, kept, values)


def rows_of(n, *, products, seed=1):
    """Rows of 12 features in 16 dimensions, 3 active; half hold a pair whose product adds one of 4 other dimensions."""
    fixed, g = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    atoms, ways = torch.linalg.qr(torch.randn(16, 16, generator=fixed))[0].split([12, 4])
    wish = torch.rand(n, 12, generator=g)
    pair = torch.randint(4, (n,), generator=g)
    paired = (torch.rand(n, generator=g) < 0.5).float()
    wish.scatter_add_(1, torch.stack([2 * pair, 2 * pair + 1], 1), paired[:, None].expand(-1, 2))
    active = wish.topk(3, dim=1).indices
    f = torch.zeros(n, 12).scatter(1, active, 0.5 + torch.rand(n, 3, generator=g))
    return f @ atoms + products * (f[:, 0:8:2] * f[:, 1:8:2]) @ ways


def test_pair_sums_agree_with_the_sum_over_pairs():
    """The short formula is the sum over all pairs, on active features alone, for tensors and for sparse codes."""
    kept, values, f = codes_of(20, 9, 4)
    V = draws(9, 5, seed=1)
    pairs = sum(f[:, i, None] * f[:, j, None] * (V[i] * V[j]) for i in range(9) for j in range(i + 1, 9))
    assert_close(pair_sums(kept, values, V), pairs)
    assert_close(pair_sums_of(sparse.csr_matrix(f.numpy()), V), pairs.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", [("M",), ("M", "H", "h")])
def test_gradients_agree_with_the_dense_formula(parts):
    """Gradients of codes, V, M and the hidden layer are those of autograd on dense matrices."""
    kept, values, f = codes_of(30, 12, 4)
    shapes = {"V": (12, 6), "M": (6, 5), "H": (6, 6), "h": (6,)}
    there = {n: draws(*shapes[n], seed=i).requires_grad_() for i, n in enumerate(("V", *parts))}
    target, sparse_values = draws(30, 5, seed=9), values.clone().requires_grad_()
    ours = head(pair_sums(kept, sparse_values, there["V"]), there)
    wanted = [sparse_values, *there.values()]
    one = torch.autograd.grad((ours - target).square().sum(), wanted)
    dense = f.clone().requires_grad_()
    sums = 0.5 * ((dense @ there["V"]).square() - dense.square() @ there["V"].square())
    if "H" in there:
        sums = functional.relu(sums @ there["H"] + there["h"])
    other = torch.autograd.grad((sums @ there["M"] - target).square().sum(), [dense, *there.values()])
    assert_close(one[0], other[0].gather(1, kept))
    for a, b in zip(one[1:], other[1:], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("rank", "low", "high"), [(8, 0.97, 1.01), (16, 0.97, 1.01), (4, 0.4, 0.8)])
def test_term_recovers_planted_products(rank, low, high):
    """IXD-4 at reduced size, true codes, 8 products: R2 is 1 at rank 8 and 16, and about a half at rank 4."""
    kept, values, f = codes_of(3000, 16, 4)
    kept, values, f = kept, values.float(), f.float()
    target = (f[:, 0::2] * f[:, 1::2]) @ functional.normalize(draws(8, 12, seed=3).float(), dim=1)
    V, M = ((0.05 * draws(*s, seed=i).float()).requires_grad_() for i, s in enumerate(((16, rank), (rank, 12))))
    optimizer = torch.optim.Adam([V, M], lr=0.02)
    for step in range(900):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 900)
        chosen = torch.arange(300) + 300 * (step % 10)
        loss = (pair_sums(kept[chosen], values[chosen], V) @ M - target[chosen]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        left = (pair_sums(kept, values, V) @ M - target).square().mean() / target.var(0).mean()
    assert low < 1 - float(left) < high


@pytest.mark.parametrize("extra", [{}, {"head": "mlp"}, {"linear_top": 2}, {"rank": 0, "linear_top": 3}])
def test_learned_agrees_with_the_learner(extra, tmp_path):
    """Folding to raw activations is exact, for every head, and survives the disk; parts are stored beside."""
    x = rows_of(500, products=1.0) + 4
    learner = InteractionLearner(settings_of(ASK | extra, 16), 16)
    mean, scale = x.mean(0), 0.7
    for step in range(150):
        learner.step((x[(step * 3) % 400 :][:100] - mean) / scale, step)
    inside = (x - mean) / scale
    made = learner.learned("h", mean, scale)
    learner.k = lambda step: 3
    with torch.no_grad():
        theirs = learner.loss(inside, 199, dead=torch.empty(0, dtype=torch.int64))[1] * scale + mean
    assert_close(made.reconstruct(x), theirs, atol=1e-4, rtol=1e-4)
    write_folder(tmp_path / "d", made)
    again = read_folder(tmp_path / "d")
    assert torch.equal(again.reconstruct(x), made.reconstruct(x))
    assert again.metadata["co_adapted"] is True
    assert {"V", "M", "H", "h", "L"} >= set(again.parts)


def test_sequential_recovers_the_term_on_a_frozen_dictionary():
    """After its share of the steps nothing but the term moves; before it the term stays where it was."""
    x = rows_of(4000, products=1.0)
    learner = InteractionLearner(settings_of(ASK | {"interaction": "sequential"}, 16), 16)
    start = [p.detach().clone() for p in learner.parameters]
    for step in range(learner.n_steps):
        if step == int(FIRST * learner.n_steps):
            frozen = [p.detach().clone() for p in learner.parameters]
        learner.step(x[(step * 100) % 4000 :][:100], step)
    assert all(torch.equal(a, b) for a, b in zip(frozen[:4], learner.parameters[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(start[4:], frozen[4:], strict=True))
    assert not torch.equal(frozen[5], learner.parameters[5])


@pytest.fixture(scope="module")
def worlds():
    """The study in a world with planted products and in one without."""
    ask = ASK | {"rank": 4, "d_sae": 16, "n_tokens": 30_000, "batch": 64, "lr": 5e-3}
    ask.pop("architecture")
    return {
        name: interaction_study(rows_of(8000, products=p), rows_of(2000, products=p, seed=2), settings=ask)
        for name, p in (("planted", 1.5), ("additive", 0.0))
    }


def test_study_recovers_planted_products(worlds):
    """Where products are, the term beats the base and its permuted control; arms are what they say they are."""
    table = worlds["planted"]
    fvu = table.groupby("arm")["fvu"].mean()
    assert fvu["interaction"] < 0.7 * fvu["base"]
    assert fvu["interaction"] < 0.8 * fvu["permuted"]
    size = table.drop_duplicates("arm").set_index("arm")["n_parameters"]
    assert abs(size["wider"] / size["interaction"] - 1) < 0.03
    assert size["base"] == size["more_1"] < size["interaction"]
    l0 = table.groupby("arm")["l0"].mean()
    assert l0["more_2"] > l0["more_1"] > l0["base"] == pytest.approx(3, abs=0.1)
    assert sorted(table["seed"].unique()) == [0, 1]


def test_leaving_the_term_out_misleads_even_without_products(worlds):
    """IXD-3: in the additive world the term is worth nothing against its rivals, yet without it the rest is worse."""
    fvu = worlds["additive"].groupby("arm")["fvu"].mean()
    apparent = 1 - fvu["interaction"] / fvu["term_dropped"]
    assert apparent > 0.05
    gain = interaction_gain(worlds["additive"]).set_index("arm")["gain"]["interaction"]
    assert gain < apparent / 2


def test_interaction_gain_is_quoted_against_the_best_rival():
    """Not against the base, nor against arms with a term; outside the ladder k_equal is missing, with a reason."""
    fvu = {"base": 0.2, "wider": 0.1, "more_1": 0.15, "duplicate": 0.19, "interaction": 0.09, "term_dropped": 0.01}
    rows = [{"arm": a, "seed": s, "k": 4 if a == "more_1" else 3, "fvu": v} for s in (0, 1) for a, v in fvu.items()]
    row = interaction_gain(pd.DataFrame(rows)).iloc[0]
    assert (row["best_rival"], round(row["gain"], 6)) == ("wider", 0.1)
    assert np.isnan(row["k_equal"])
    assert "below" in row["note"]


def test_study_refuses_what_says_nothing():
    """One seed, no rank, too few rows."""
    x = rows_of(500, products=1.0)
    ask = {"d_sae": 40, "k": 3, "rank": 4, "n_tokens": 4000, "batch": 100}
    with pytest.raises(DataError, match="one seed"):
        interaction_study(x, x, settings=ask, seeds=[0])
    with pytest.raises(ModelError, match="needs `rank`"):
        interaction_study(x, x, settings=ask | {"rank": 0, "linear_top": 2})
    with pytest.raises(DataError, match="50 rows are fewer than a batch"):
        interaction_study(x[:50], x, settings=ask)
    with pytest.raises(ModelError, match="belong to interaction, but this is topk"):
        settings_of({"architecture": "topk", "rank": 3}, 16)


def test_permuted_control_reads_other_rows():
    """The codes that its term sees are those of other rows, another order in every step."""
    learner = PermutedLearner(settings_of(ASK, 16), 16)
    kept = torch.arange(50)[:, None]
    first, second = (learner.seen(kept, kept.float(), step)[0][:, 0] for step in (0, 1))
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, kept[:, 0])
    assert not torch.equal(first, second)


def test_arms_differ_in_what_they_are_named_after():
    """Equal activity, equal parameters, a code more, a second linear decoder alone, the codes of other rows."""
    asked = settings_of({"architecture": "interaction", "d_sae": 64, "k": 4, "rank": 3, "n_tokens": 20_000}, 16)
    arms = _arms(asked, 16)
    ask = {name: settings for name, (_, settings) in arms.items()}
    assert ask["base"].architecture == "topk"
    assert (ask["wider"].d_sae - 64) * 33 == pytest.approx(3 * (64 + 16), abs=33)
    assert (ask["more_1"].k, ask["more_2"].k) == (5, 6)
    assert (ask["duplicate"].rank, ask["duplicate"].linear_top) == (0, 4)
    assert (ask["interaction"].rank, ask["interaction"].linear_top) == (3, 0)
    assert ask["sequential"].interaction == "sequential"
    assert {name for name, (learner, _) in arms.items() if learner is PermutedLearner} == {"permuted"}


def test_interaction_gain_never_quotes_a_term_left_out():
    """The rest of a jointly trained dictionary has adapted to its term: without it FVU says nothing of its worth."""
    fvu = {"base": 0.2, "more_1": 0.18, "interaction": 0.17, "term_dropped": 0.6}
    table = pd.DataFrame([{"arm": arm, "seed": s, "k": 4, "fvu": fvu[arm]} for s in (0, 1) for arm in fvu])
    made = interaction_gain(table)
    assert made["arm"].tolist() == ["interaction"]
    assert made["best_rival"].tolist() == ["more_1"]


def test_the_permuted_arm_is_measured_as_it_was_trained(make_dictionary):
    """Its term reads the codes of another row in the score too, or the control would be scored as what it is not."""
    draws = torch.Generator().manual_seed(0)
    parts = {"V": torch.randn(64, 3, generator=draws), "M": torch.randn(3, 16, generator=draws)}
    made = replace(make_dictionary("topk"), kind="interaction", parts=parts)
    x = torch.randn(40, 16, generator=draws)
    asked = settings_of({"architecture": "interaction", "d_sae": 64, "k": 4, "rank": 3, "n_tokens": 20_000}, 16)
    order = np.random.default_rng(5).permutation(40)
    term = made.decode(made.encode(x)) - replace(made, kind="topk", parts={}).decode(made.encode(x))
    left = x - replace(made, kind="topk", parts={}).reconstruct(x) - term[order]
    wanted = float(left.square().sum() / (x - x.mean(0)).square().sum())
    found = {arm: _row(arm, made, x, asked=asked, seed=5)["fvu"] for arm in ("interaction", "permuted")}
    assert found["permuted"] == pytest.approx(wanted, rel=1e-4)
    assert found["interaction"] != pytest.approx(wanted, rel=1e-3)


def test_pair_strengths_recover_planted_pairs():
    """After training on true pairs the strongest products are among the features that carry them."""
    x = rows_of(8000, products=1.5)
    made = train_rows(InteractionLearner(settings_of(ASK | {"n_tokens": 20_000}, 16), 16), x)
    codes = made.encode(x[:2000])
    best = pair_strengths(made, codes, top=5)
    V, M = made.parts["V"].numpy(), made.parts["M"].numpy()
    i, j = int(best["first"][0]), int(best["second"][0])
    f = codes.toarray()
    wanted = np.linalg.norm((V[i] * V[j]) @ M) * (f[:, i] * f[:, j]).mean()
    assert best["strength"][0] == pytest.approx(wanted, rel=1e-4)
    assert best["strength"].is_monotonic_decreasing
    norms, histogram = factor_norms(made)
    np.testing.assert_allclose(norms, (V**2).sum(1), rtol=1e-5)
    assert histogram["pairs"].sum() == 40 * 39 / 2
    with pytest.raises(ModelError, match="no interaction term"):
        factor_norms(neuron_dictionary("h", 4))
    with pytest.raises(ModelError, match="only behind a linear head"):
        pair_strengths(replace(made, parts={**made.parts, "H": torch.eye(8)}), codes)


def test_strongest_keeps_its_input():
    """The n largest of each row, and the matrix that was given is as before."""
    codes = sparse.random(50, 30, density=0.3, random_state=0, format="csr")
    before = codes.toarray()
    kept = strongest(codes, 3).toarray()
    np.testing.assert_array_equal(codes.toarray(), before)
    np.testing.assert_array_equal(kept, np.where(before >= np.sort(before, axis=1)[:, [-3]], before, 0))


def test_train_and_load_an_interaction_dictionary(toy, toy_texts, lens, *, tmp_path):
    """As a `train:` block: trained, resumable like others, loaded as a site, and plain for sae-lens."""
    ask = ASK | {"n_tokens": 6000}
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=ask)
    assert made.kind == "interaction"
    theirs = lens.SAE.load_from_disk(str(tmp_path / "d"))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(torch.from_numpy(made.encode(x).toarray()), theirs.encode(x), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loaded = load_dictionary({"hook": HOOK, "dictionary": {"path": str(tmp_path / "d")}}, toy, texts=toy_texts)
    assert loaded.fit["fvu_here"] == pytest.approx(made.card["fvu"], abs=0.1)


def test_state_restores_to_the_same_steps():
    """Interrupted and resumed is uninterrupted, bit for bit, before and after the term begins to learn."""
    x = rows_of(4000, products=1.0)
    for interaction in ("joint", "sequential"):
        one = InteractionLearner(settings_of(ASK | {"interaction": interaction, "n_tokens": 4000}, 16), 16)
        two = InteractionLearner(one.settings, 16)
        for step in range(40):
            if step == 20:
                two.restore({name: value.clone() for name, value in one.state().items()})
            batch = x[(step * 100) % 4000 :][:100]
            one.step(batch, step)
            if step >= 20:
                two.step(batch, step)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters, two.parameters, strict=True))
    assert isinstance(one, TopKLearner)


# --- pathology ------------------------------------------------------------------------------------------------------


def test_random_error_has_the_length_of_the_error():
    """Row by row, in directions that have nothing to do with the error."""
    x, made = torch.randn(500, 16), torch.randn(500, 16)
    other = random_error(x, made, torch.Generator().manual_seed(0))
    assert_close((other - x).norm(dim=1), (made - x).norm(dim=1), rtol=1e-4, atol=1e-4)
    cosine = torch.cosine_similarity(other - x, made - x, dim=1)
    assert abs(float(cosine.mean())) < 0.1


def test_pathology_recovers_a_random_error_and_a_harmful_one(toy, toy_texts):
    """A dictionary whose error is random has a ratio of about 1; one that errs along the unembedding a larger one."""
    raw = neuron_dictionary(HOOK, 16)
    turned = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    mixed = replace(raw, W_dec=raw.W_dec + 0.05 * torch.cat([turned, -turned]))
    one = pathology(mixed, toy, toy_texts, n_tokens=1500).iloc[0]
    assert 0.6 < one["pathology"] < 1.7
    head_rows = toy.bridge.unembed.W_U.detach().float()
    worst = torch.linalg.svd(head_rows - head_rows.mean(1, keepdim=True))[0][:, 0]
    push = replace(raw, b_dec=0.5 * worst, subtracts=False)
    other = pathology(push, toy, toy_texts, n_tokens=1500).iloc[0]
    assert other["pathology"] > 1.5 * one["pathology"]
    assert other["pathology_low"] <= other["pathology"] <= other["pathology_high"]
    with pytest.raises(ModelError, match="no error"):
        pathology(raw, toy, toy_texts, n_tokens=500)
