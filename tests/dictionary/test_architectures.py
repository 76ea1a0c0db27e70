"""Every architecture: learned, folded exactly, read by plain sae-lens, and read back from sae-lens's own trainer."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neurosae.dictionary.architectures import JUMP_COEFFICIENT, LEARNERS
from neurosae.dictionary.learn import recalibrate
from neurosae.dictionary.record import read_folder, write_folder
from neurosae.dictionary.settings import ARCHITECTURES, BY_BATCH, settings_of
from tests.dictionary.conftest import HOOK
from tests.dictionary.test_learn import D, planted, recovered

NAMES = ["abstopk", "batchtopk", "gated", "jumprelu", "matryoshka", "standard", "topk"]
LENS = [name for name in NAMES if name != "topk"]


def run(name, x, *, steps=30, **changes):
    """A learner after some steps, with its mean and scale."""
    asked = {"architecture": name, "d_sae": 96, "k": 3, "n_tokens": 128 * steps, "batch": 128, "anneal": 0.2}
    settings = settings_of({**asked, **changes}, x.shape[1])
    mean, scale = x.mean(0), float((x - x.mean(0)).square().mean().sqrt())
    learner = LEARNERS[name](settings, x.shape[1])
    for step in range(learner.n_steps):
        a = step * settings.batch % (len(x) - settings.batch)
        report = learner.step((x[a : a + settings.batch] - mean) / scale, step)
    return learner, mean, scale, report


def test_registry_is_the_schema():
    """What may be named is what can be trained."""
    assert set(LEARNERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_plain_sae_lens_reads_what_is_trained_here(lens, tmp_path, name):
    """`SAE.load_from_disk` gives the same codes and reconstructions."""
    x, _ = planted(4000)
    learner, mean, scale, _ = run(name, x)
    made = learner.learned(HOOK, mean, scale)
    write_folder(tmp_path / name, made)
    theirs = lens.SAE.load_from_disk(str(tmp_path / name))
    codes = made.encode(x[:500])
    assert codes.nnz > 200
    with torch.no_grad():
        found = theirs.encode(x[:500])
        assert_close(torch.from_numpy(codes.toarray()), found, rtol=1e-5, atol=1e-5 * float(found.abs().max()))
        assert_close(made.decode(codes), theirs.decode(found), rtol=1e-5, atol=1e-4)
    again = read_folder(tmp_path / name)
    assert np.abs((again.encode(x[:500]) - codes).toarray()).max() == 0


@pytest.mark.parametrize("name", LENS)
def test_folding_is_exact(name):
    """Raw rows through the folded dictionary equal scaled rows through what sae-lens trained, scaled back."""
    x, _ = planted(4000, offset=20.0)
    learner, mean, scale, _ = run(name, x)
    if name == "gated":  # as trained for long: gates and magnitudes apart
        with torch.no_grad():
            draws = torch.Generator().manual_seed(1)
            for part in (learner.sae.r_mag, learner.sae.b_gate, learner.sae.b_mag):
                part.add_(torch.randn(96, generator=draws) * 0.3)
    made, some = learner.learned(HOOK, mean, scale), x[:500]
    with torch.no_grad():
        scaled = (some - mean) / scale
        if name in BY_BATCH:  # their training object keeps k per batch; what it saves is a threshold
            z = torch.relu((scaled - learner.sae.b_dec) @ learner.sae.W_enc + learner.sae.b_enc)
            codes = torch.where(z * learner.sae.W_dec.norm(dim=1) > learner.sae.topk_threshold, z, 0.0)
            wanted = codes @ learner.sae.W_dec + learner.sae.b_dec
        else:
            codes = learner.sae.encode(scaled)
            wanted = learner.sae.decode(codes)
        if name == "abstopk":
            codes = torch.cat([codes.relu(), (-codes).relu()], dim=1)
    found = made.encode(some)
    assert_close(made.W_dec.norm(dim=1), torch.ones(made.n_features))
    assert ((found.toarray() != 0) == (codes.numpy() != 0)).mean() == 1
    assert_close(made.decode(found), wanted * scale + mean, rtol=1e-5, atol=2e-4)


SIZES = {"d_in": D, "d_sae": 96, "device": "cpu"}
CONFIGS = {
    "standard": {"l1_coefficient": 0.5},
    "gated": {"l1_coefficient": 0.5},
    "jumprelu": {"l0_coefficient": 0.05},
    "topk": {"k": 3},
    "abstopk": {"k": 3},
    "batchtopk": {"k": 3.0},
    "matryoshka_batchtopk": {"k": 3.0, "matryoshka_widths": [24, 96]},
}


def trained_by_sae_lens(lens, name, x):
    """Sixty steps of sae-lens's own trainer, nothing written, nothing logged."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    make = lens.TrainingSAE.get_sae_class_for_architecture(name)
    config = lens.TrainingSAE.get_sae_config_class_for_architecture(name)(**SIZES, **CONFIGS[name])
    rows = iter(lambda: x[torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(0))], None)
    settings = SAETrainerConfig(
        total_training_samples=128 * 60, train_batch_size_samples=128, lr=1e-3, lr_end=1e-4, device="cpu",
        checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    return lens.SAETrainer(cfg=settings, sae=make(config), data_provider=rows).fit()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_what_sae_lens_trains_is_read_here(lens, tmp_path, name, *, monkeypatch):
    """Saved by its own trainer, read here: the codes of its own inference object."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    x, _ = planted(4000, offset=0.0)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = trained_by_sae_lens(lens, name, x)
        sae.save_inference_model(tmp_path / "saved")
        theirs = lens.SAE.load_from_disk(str(tmp_path / "saved"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]
    made = read_folder(tmp_path / "saved")
    with torch.no_grad():
        wanted = theirs.encode(x[:300])
        codes = torch.from_numpy(made.encode(x[:300]).toarray())
        if name == "abstopk":  # signed features are read as their two halves
            codes = codes[:, :96] - codes[:, 96:]
        assert int((wanted != 0).sum()) > 100
        assert_close(codes, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        assert_close(made.reconstruct(x[:300]), theirs.decode(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BY_BATCH))
def test_threshold_is_recalibrated(name):
    """The running threshold lags behind, so the saved L0 is several times k; on other rows it is set to k."""
    x, _ = planted(8000)
    learner, mean, scale, _ = run(name, x, steps=40)
    lagging = learner.learned(HOOK, mean, scale)
    assert lagging.encode(x[4000:]).nnz / 4000 > 6
    made = recalibrate(lagging, x[:4000], 3)
    assert made.encode(x[4000:]).nnz / 4000 == pytest.approx(3, rel=0.1)


def test_contributions_of_architectures_share_a_unit():
    """After folding, decoder rows have length 1 everywhere, so activations are in units of the stream."""
    x, _ = planted(4000)
    for name in NAMES:
        total = []
        for rows in (x, x * 10):
            learner, mean, scale, _ = run(name, rows, steps=20)
            made = learner.learned(HOOK, mean, scale)
            assert_close(torch.from_numpy(made.decoder_norm), torch.ones(made.n_features))
            total.append(made.encode(rows[:300]).sum())
        assert total[1] == pytest.approx(10 * total[0], rel=0.02)


@pytest.mark.parametrize("name", ["gated", "abstopk"])
def test_planted_directions_are_recovered(name):
    """Most true directions come back, and L0 ends near k."""
    x, directions = planted(12_000)
    learner, mean, scale, report = run(name, x, steps=700, d_sae=160, anneal=0.4, lr=2e-3)
    assert recovered(learner.learned(HOOK, mean, scale), directions) > 0.8
    assert 1.5 < report.l0 < 6


def test_first_features_of_matryoshka_reconstruct_alone():
    """A sixth of the features explains more of the variance than the same number of a batchtopk dictionary."""
    x, _ = planted(8000)
    left = {}
    for name, changes in (("matryoshka", {"widths": (32, 192)}), ("batchtopk", {})):
        learner, mean, scale, _ = run(name, x, steps=400, d_sae=192, **changes)
        made = recalibrate(learner.learned(HOOK, mean, scale), x, 3)
        codes = made.encode(x).tolil()
        codes[:, 32:] = 0
        left[name] = float((made.decode(codes.tocsr()) - x).square().sum() / (x - x.mean(0)).square().sum())
    assert left["matryoshka"] < 0.75
    assert left["matryoshka"] < left["batchtopk"] - 0.1


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_a_penalty_rises_from_nothing(name, monkeypatch):
    """Coefficients of sae-lens are 0 at the first step and whole after a tenth of the steps."""
    made = settings_of({"architecture": name, "k": 4, "d_sae": 16, "n_tokens": 6_400, "batch": 64}, 8)
    learner, given = LEARNERS[name](made, 8), []
    real, x = learner.sae.training_forward_pass, torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def keeping(asked):
        given.append(asked.coefficients)
        return real(asked)

    monkeypatch.setattr(learner.sae, "training_forward_pass", keeping)
    whole = {"l1": 0.1, "l0": JUMP_COEFFICIENT}
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (90, 1.0)):
        learner.coefficient = torch.tensor(0.1, dtype=torch.float64)
        learner.loss(x, step, dead=torch.arange(0))
        assert given[-1] == pytest.approx({of: share * value for of, value in whole.items()})
