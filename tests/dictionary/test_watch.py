"""Early diagnosis: what is said, when, and that nothing is said about a healthy run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neurosae.dictionary.architectures import LEARNERS
from neurosae.dictionary.budget import budget, require_budget, threads_for
from neurosae.dictionary.settings import Settings, settings_of
from neurosae.dictionary.train import train_dictionary
from neurosae.dictionary.watch import MEMORY, checkpoints_of_dead, dead_words, diagnosis, missed_words, moments
from neurosae.errors import ModelError, StoreError
from tests.dictionary.conftest import HOOK
from tests.dictionary.test_learn import D, planted

LONG = Settings(d_sae=64, k=4, k0=16, n_tokens=1_000_000, batch=500, lr=1e-3)


def test_gamma_is_the_distance_of_the_mean():
    """In standard deviations, whatever the settings leave out of the training rows."""
    x = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(0)) * 2 + torch.tensor([20.0, 0, 0, 0])
    found = moments(x, LONG, where="here")
    assert found.gamma == pytest.approx(20 / (2 * 4**0.5), rel=0.01)
    assert found.scale == pytest.approx(2, rel=0.01)
    raw = moments(x, replace(LONG, center=False), where="here")
    assert raw.gamma == found.gamma
    assert not raw.mean.any()
    assert raw.scale == pytest.approx(float(x.square().mean().sqrt()), rel=1e-6)
    assert moments(x, replace(LONG, scale=False), where="here").scale == 1
    with pytest.raises(ModelError, match="all activations are equal"):
        moments(torch.ones(5, 3), LONG, where="here")


def logged(*, dead=0.0, spikes=0, every=20, n=100):
    """A log with the same share of dead features throughout."""
    return [{"step": i * every, "dead": dead, "spikes": spikes} for i in range(n)]


def test_a_healthy_run_says_nothing():
    """Few dead features, rare jumps, a near mean: no sentence."""
    found = diagnosis(1.0, logged(dead=0.3, spikes=3), settings=LONG)
    assert found == {"gamma": 1.0, "loss_spikes": 3, "warnings": []}


def test_dead_features_are_said_twice():
    """Once after a tenth of the steps, once after annealing, at the first row of the log from there on."""
    assert checkpoints_of_dead(LONG, 2000) == (200, 901)
    found = diagnosis(1.0, logged(dead=0.6), settings=LONG)["warnings"]
    assert [words.split(" of 2,000")[0].rsplit(" ", 1)[1] for words in found] == ["201", "921"]
    assert "60% of the features were silent for the last 50,000 tokens" in found[0]
    assert diagnosis(1.0, logged(dead=0.5), settings=LONG)["warnings"] == []
    assert checkpoints_of_dead(replace(LONG, n_tokens=20_000), 40) == ()  # too short to call anything dead


def test_advice_fits_the_settings():
    """What is switched on already is not advised."""
    words = dead_words(0.9, 500, settings=LONG, n_steps=2000)
    assert "consider fewer features (d_sae) or a smaller learning rate (lr)." in words
    words = dead_words(0.9, 500, settings=replace(LONG, center=False, anneal=0.0), n_steps=2000)
    assert "consider center: true, annealing (anneal: 0.4), fewer features" in words


def test_far_means_and_jumps_are_said():
    """A mean far away is explained, and a warning where it stays; jumps from one in a hundred steps on."""
    found = diagnosis(10.0, logged(spikes=21), settings=LONG)
    assert "10 standard deviations from the origin" in found["gamma_means"]
    assert len(found["warnings"]) == 1
    assert "21 of 2,000 steps" in found["warnings"][0]
    assert "Set center: true." in diagnosis(10.0, logged(), settings=replace(LONG, center=False))["warnings"][0]


def test_jumps_of_the_loss_are_counted():
    """A batch that is ten times as large jumps; annealing, where the loss rises by itself, is not counted."""
    x, _ = planted(4000)
    x = (x - x.mean(0)) / float((x - x.mean(0)).square().mean().sqrt())
    s = settings_of({"d_sae": 96, "k": 3, "n_tokens": 25_600, "batch": 64, "anneal": 0.5}, D)
    learner = LEARNERS["topk"](s, D)
    for step in range(400):
        learner.step(x[:64] * (10 if step in (100, 150, 300, 350) else 1), step)
    assert int(learner.spikes) == 2
    assert len(learner.recent) == MEMORY


def test_a_loss_that_is_no_number_stops_the_run():
    """Named with its step and the remedy, at the next report."""
    x, _ = planted(200)
    learner = LEARNERS["topk"](settings_of({"d_sae": 96, "k": 3, "n_tokens": 2000, "batch": 50}, D), D)
    with pytest.raises(ModelError, match=r"the loss is nan at step 1; use a smaller lr"):
        learner.step(x[:50] * float("nan"), 0)


def test_training_warns_and_keeps_it_on_the_card(toy, toy_texts, tmp_path):
    """The warning is raised during the run, and its sentence stays with the dictionary."""
    settings = {"d_sae": 640, "k": 1, "n_tokens": 240_000, "batch": 1000, "anneal": 0.0, "aux": 0.0, "lr": 0.05}
    with pytest.warns(UserWarning, match="of the features were silent for the last 12,000 tokens"):
        made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=settings)
    assert any("silent" in words for words in made.card["warnings"])
    assert made.card["gamma"] > 0
    assert made.card["loss_spikes"] >= 0


# --- budget ---------------------------------------------------------------------------------------------------------


def test_budget_counts_adam_and_dense_steps():
    """Four copies of the parameters; a dense step holds batch x d_sae as well, a file its rows."""
    base = budget(replace(LONG, d_sae=10_000), 100)
    assert base.disk == 4 * 4 * 10_000 * 201
    assert base.memory > base.disk
    dense = budget(replace(LONG, d_sae=10_000, architecture="gated"), 100)
    assert dense.memory - base.memory == pytest.approx(4 * 4 * 500 * 10_000, rel=0.6)
    assert budget(replace(LONG, d_sae=10_000, cache="bfloat16"), 100).disk == base.disk + 2 * 1_000_000 * 100


def test_budget_refuses(tmp_path, *, monkeypatch):
    """Too much memory or disk is refused before anything runs, with the setting to change."""
    from neurosae.dictionary import budget as module

    big, small = replace(LONG, d_sae=10**9), replace(LONG, d_sae=1000)
    with pytest.raises(ModelError, match=r"d_sae 1,000,000,000 at width 768 .* are free; use a smaller d_sae or batch"):
        require_budget([(big, 768)], out=tmp_path, device="cpu")
    monkeypatch.setattr(module, "free_memory", lambda device: 10_000_000)
    require_budget([(small, 64)], out=tmp_path, device="cpu")
    with pytest.raises(ModelError, match="and 39 more beside it"):
        require_budget([(small, 64)] * 40, out=tmp_path, device="cpu")
    with pytest.raises(StoreError, match="bfloat16 or no cache"):
        require_budget([(replace(small, n_tokens=10**15, cache="float32"), 64)], out=tmp_path, device="cpu")


def test_threads_depend_on_the_settings_alone():
    """A short step takes one thread, a long one all; never more on an accelerator."""
    assert threads_for(LONG, 16, device="cpu") == 1
    assert threads_for(replace(LONG, d_sae=24_576, batch=2048), 768, device="cpu") is None
    assert threads_for(LONG, 16, device="cuda") is None


def test_busy_processors_are_said(monkeypatch):
    """Several threads among other programs: named, with the remedy; never with one thread, or on a free machine."""
    from neurosae.dictionary import budget as module

    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (3.5, 0, 0), raising=False)
    assert "3.5 of 4 processors" in module.busy_words(4)
    assert "OMP_NUM_THREADS=1" in module.busy_words(4)
    assert not module.busy_words(1)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.2, 0, 0), raising=False)
    assert not module.busy_words(4)


def test_a_sparsity_that_was_missed_is_said():
    """Within a factor of 1.5 of k nothing; beyond it the remedy of the architecture."""
    assert missed_words(5.9, LONG) == missed_words(2.7, LONG) == ""
    assert missed_words(6.1, LONG).startswith("6.1 features are active per token where k asks for 4; compare it")
    assert "(n_tokens)" in missed_words(1.0, replace(LONG, architecture="jumprelu"))
    assert missed_words(0.0, LONG)


def test_a_short_training_says_on_its_card_that_it_missed_k(toy, toy_texts, tmp_path):
    """The penalty of `standard` is steered, and 30 steps are too few."""
    settings = {"architecture": "standard", "d_sae": 48, "k": 2, "n_tokens": 960, "batch": 32, "aux": False}
    card = train_dictionary(toy, toy_texts, hook=HOOK, settings=settings, out=tmp_path / "d").card
    assert card["l0"] > 3
    assert [words for words in card["warnings"] if "where k asks for 2" in words]
