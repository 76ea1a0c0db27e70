"""Learning: planted directions come back, folding is exact, schedules are what they say."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from neurosae.dictionary.architectures import LEARNERS
from neurosae.dictionary.learn import fold, recalibrate
from neurosae.dictionary.settings import settings_of
from neurosae.errors import ModelError

D, TRUE = 32, 64


def planted(n_rows=24_000, offset=6.0, seed=0):
    """Sparse sums of 64 known directions in 32 dimensions around a mean as long as many standard deviations."""
    draws = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(TRUE, D, generator=draws), dim=1)
    which = torch.randint(0, TRUE, (n_rows, 3), generator=draws)
    codes = torch.zeros(n_rows, TRUE).scatter(1, which, 1 + torch.rand(n_rows, 3, generator=draws))
    center = normalize(torch.randn(D, generator=draws), dim=0) * offset
    return codes @ directions + center, directions


def learn(x, settings, *, mean=None):
    """Run a learner over the rows, several times if need be; the dictionary it ends with, and the last report."""
    made = settings_of(settings, x.shape[1])
    mean = x.mean(0) if mean is None else mean
    scale = float((x - mean).square().mean().sqrt())
    learner = LEARNERS[made.architecture](made, x.shape[1])
    report, per = None, len(x) // made.batch
    for step in range(learner.n_steps):
        a = step % per * made.batch
        report = learner.step((x[a : a + made.batch] - mean) / scale, step) or report
    return learner.learned("blocks.0.hook_resid_post", mean, scale), report


def recovered(dictionary, directions):
    """Share of the true directions that some decoder row matches with cosine above .9."""
    rows = normalize(dictionary.W_dec, dim=1)
    return float(((directions @ rows.t()).max(1).values > 0.9).float().mean())


TOY = {"d_sae": 192, "k": 3, "n_tokens": 240_000, "batch": 256, "lr": 2e-3}


def test_recipe_recovers_planted_directions():
    """Centred, annealed and with auxiliary loss: nearly all true directions in spite of the offset."""
    x, directions = planted()
    made, report = learn(x, TOY)
    assert recovered(made, directions) > 0.95
    fvu = float((made.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    assert fvu < 0.1
    assert report.k == 3
    assert report.lr < 4e-4


def test_uncentred_training_fails_as_documented():
    """The same data without centring: most features die and most directions are lost."""
    x, directions = planted(offset=60.0)
    plain = TOY | {"anneal": 0.0, "aux": 0.0}
    made, report = learn(x, plain, mean=torch.zeros(D))
    assert report.dead > 0.5
    assert recovered(made, directions) < 0.3


@pytest.mark.parametrize("architecture", ["batchtopk", "standard", "jumprelu"])
def test_architectures_reach_their_sparsity(architecture):
    """L0 ends near k and the planted directions are found; batchtopk after its threshold is calibrated."""
    x, directions = planted()
    made, _ = learn(x, TOY | {"architecture": architecture, "n_tokens": 180_000})
    if architecture == "batchtopk":
        made = recalibrate(made, x[:8000], 3)
        assert made.encode(x[8000:]).nnz / len(x[8000:]) == pytest.approx(3, rel=0.05)
    assert 2 < made.encode(x).nnz / len(x) < (6 if architecture == "jumprelu" else 4)
    assert recovered(made, directions) > 0.8


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
def test_fold_is_exact(make_dictionary, kind):
    """Raw activations through the folded dictionary equal scaled ones through the original, scaled back."""
    made = make_dictionary(kind)
    if kind == "topk":  # trained with selection by z |W_dec|, which the folded dictionary has built in
        norm = made.W_dec.norm(dim=1)
        order = (made.W_enc * norm[:, None], made.b_enc * norm, made.W_dec / norm[:, None])
        plain = made.__class__(**made.__dict__ | dict(zip(("W_enc", "b_enc", "W_dec"), order, strict=True)))
    else:
        plain = made
    mean, scale = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 10, 3.7
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(4)) * scale + mean
    folded = fold(made, mean, scale)
    assert_close(folded.reconstruct(x), plain.reconstruct((x - mean) / scale) * scale + mean, rtol=1e-4, atol=1e-4)
    assert_close(folded.W_dec.norm(dim=1), torch.ones(64))
    assert folded.encode(x).nnz == plain.encode((x - mean) / scale).nnz


@pytest.mark.parametrize("k", [0.7, 3, 9.5])
def test_a_recalibrated_threshold_keeps_exactly_k_per_row(make_dictionary, k):
    """Over all rows together round(k n) values lie above it, the smallest of them included."""
    d = make_dictionary("jumprelu")
    x = 2 * torch.randn(1500, d.d_in, generator=torch.Generator().manual_seed(4))
    assert len(recalibrate(d, x, k).encode(x).data) == round(k * 1500)


def test_k_falls_from_the_width():
    """From d_in to k over 40 % of the steps, then k; a pure function of the step."""
    made = settings_of({"k": 4, "d_sae": 64, "n_tokens": 51_200, "batch": 512}, 32)
    learner = LEARNERS["topk"](made, 32)
    ks = [learner.k(step) for step in range(100)]
    assert ks[0] == 32
    assert ks[20] == 18
    assert set(ks[40:]) == {4}
    assert ks == sorted(ks, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 64}, "k is 64, but there are 64 features"),
        ({"n_tokens": 100}, "fewer than 20 batches"),
        ({"architecture": "topkk"}, "Did you mean 'topk'"),
        ({"sparsity": 3}, "unknown training setting 'sparsity'"),
    ],
)
def test_settings_refuse(changes, message):
    """What cannot be trained is named before anything runs."""
    with pytest.raises(ModelError, match=message):
        settings_of({"d_sae": 64, "k": 4} | changes, 32)


def learner_of(**changes):
    """A learner of toy size."""
    made = settings_of({"k": 4, "d_sae": 64, "n_tokens": 51_200, "batch": 512} | changes, 32)
    return LEARNERS[made.architecture](made, 32)


def test_k_schedule_follows_its_settings():
    """It starts at k0 and takes the share that is asked for; what has no k to anneal keeps its own."""
    ks = [learner_of(k0=10, anneal=0.6).k(step) for step in range(100)]
    assert (ks[0], ks[30], ks[60]) == (10, 7, 4)
    assert {learner_of(anneal=0.0).k(step) for step in range(100)} == {4}
    assert {learner_of(architecture="gated").k(step) for step in range(100)} == {4}
    assert learner_of(architecture="matryoshka").k(0) == 32


def test_learning_rate_follows_its_settings():
    """Up from near 0, flat, down to a tenth; flat throughout where neither is asked for."""
    rates = [learner_of(lr=1.0, warm_up=0.1, decay=0.5).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[-1] == pytest.approx(0.118)
    assert {learner_of(lr=1.0, decay=0.0).rate(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize("step", [0, 40, 99])
def test_a_step_is_as_long_as_the_learning_rate(step):
    """Adam's first step moves a parameter by its rate, whatever the gradient: that of warm-up, plateau or decay."""
    learner = learner_of(lr=1e-2, warm_up=0.2, decay=0.2)
    before = learner.parameters[0].detach().clone()
    learner.step(planted(64)[0], step)
    moved = (learner.parameters[0].detach() - before).abs()
    assert float(moved.max()) == pytest.approx(learner.rate(step), rel=0.02)


def test_dead_window_follows_its_setting():
    """Silent for a share of the steps, not for a fixed number: it starts in short runs too."""
    assert learner_of().window == 5
    assert learner_of(dead_window=0.2).window == 20
    learner = learner_of(dead_window=0.1)
    learner.silent[:3] = 11
    learner.silent[3] = 10
    assert learner.dead().tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["topk", "standard"])
def test_silence_counts_steps_since_a_feature_was_active(name, monkeypatch):
    """0 at the step at which it is active, one more at every other step, from the start if it never was."""
    learner = learner_of(architecture=name)
    x, real, steps = planted(64)[0], learner.loss, iter([[1, 3, 0], [0, 2, 0], [0, 0, 0], [0, 1, 0]])

    def loss(x, step, *, dead):
        counts = torch.ones(learner.settings.d_sae)
        counts[:3] = torch.tensor(next(steps), dtype=torch.float32)
        return *real(x, step, dead=dead)[:2], counts

    monkeypatch.setattr(learner, "loss", loss)
    seen = []
    for step in range(4):
        learner.step(x, step)
        seen.append(learner.silent[:4].tolist())
    assert seen == [[0, 0, 1, 0], [1, 0, 2, 0], [2, 1, 3, 0], [3, 0, 4, 0]]


@pytest.mark.parametrize("name", ["topk", "abstopk", "batchtopk", "matryoshka"])
def test_aux_is_the_coefficient(name):
    """The loss with dead features differs by aux times the auxiliary loss; ghost gradients switch it off."""
    x, _ = planted(256)
    x = (x - x.mean(0)) / float((x - x.mean(0)).square().mean().sqrt())
    dead = torch.arange(40, 64)
    losses = [float(learner_of(architecture=name, aux=c).loss(x, 90, dead=dead)[0].detach()) for c in (0.0, 0.5, 1.0)]
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]
    ghost = learner_of(architecture=name, aux=0.5, ghost_grads=True)
    assert float(ghost.loss(x, 90, dead=dead)[0].detach()) == pytest.approx(losses[0], rel=1e-6)


def test_autocast_is_opt_in_on_a_cpu():
    """Off by default there; where it is asked for, the step is nearly the same and parameters stay in float32."""
    x, _ = planted(512)
    x = (x - x.mean(0)) / float((x - x.mean(0)).square().mean().sqrt())
    assert not learner_of().amp
    for name in ("topk", "gated", "batchtopk"):
        reports = []
        for amp in (False, True):
            learner = learner_of(architecture=name, amp=amp)
            reports.append([learner.step(x, step) for step in range(30)][-1])
            assert {p.dtype for p in learner.parameters} == {torch.float32}
        assert reports[0] != reports[1]
        assert reports[1].fvu == pytest.approx(reports[0].fvu, abs=0.03)


def test_recipe_finds_what_the_plain_one_loses():
    """In few steps annealing and auxiliary loss find all true directions; without them, a quarter."""
    x, directions = planted(30_000)
    asked = {"d_sae": 256, "k": 3, "n_tokens": 90_000, "batch": 64, "lr": 1e-3}
    full, plain = (recovered(learn(x, asked | c)[0], directions) for c in ({}, {"anneal": 0.0, "aux": 0.0}))
    assert full > 0.9
    assert plain < 0.5
