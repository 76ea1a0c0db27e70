"""G16: the TopK training step against sae-lens, and what the default recipe finds where the truth is known.

Step: 128 -> 4,096, 2,048 rows, k = 16, Adam and clipping included on both sides; loss and all gradients are equal
first. Quality: 256 true features in 64 dimensions, 8 active per row, .41 M rows, a dictionary of 1,024; the share of
true features that some decoder row meets with a cosine above .9. Run alone: `python benchmarks/bench_training.py`.
"""

from __future__ import annotations

import sys
import warnings

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import torch
from torch import Tensor
from torch.nn.functional import normalize

from neurosae.dictionary.architectures import LEARNERS
from neurosae.dictionary.learn import Learner
from neurosae.dictionary.record import import_sae_lens
from neurosae.dictionary.settings import settings_of
from neurosae.dictionary.topk import TopKStep

TRUE, D, ACTIVE, ROWS = 256, 64, 8, 409_600
PLAIN = {"anneal": 0.0, "aux": 0.0}


def lens_step(d: int, m: int, k: int) -> tuple:
    """A training object of sae-lens and a function that takes one step with it."""
    lens = import_sae_lens()
    sae = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(d_in=d, d_sae=m, k=k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        lens_loss(sae, x).backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return sae, step


def lens_loss(sae, x: Tensor) -> Tensor:
    """The loss of sae-lens on a batch."""
    given = import_sae_lens().saes.sae.TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    return sae.training_forward_pass(given).loss


def equal_gradients(sae, x: Tensor, k: int) -> float:
    """Largest relative difference of loss and gradients; the weights are those of sae-lens."""
    theirs = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    reference = lens_loss(sae, x)
    wanted = torch.autograd.grad(reference, theirs)
    ours = [p.detach().clone().requires_grad_() for p in (sae.W_enc.t().contiguous(), *theirs[1:])]
    loss = (TopKStep.apply(x, *ours, k, False)[0] - x).square().sum(1).mean()
    found = list(torch.autograd.grad(loss, ours))
    found[0] = found[0].t()
    gaps = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    return max(abs(float(loss / reference) - 1), *gaps)


def learner_of(d: int, m: int, k: int, *, batch: int) -> Learner:
    """A learner after annealing from its first step, as long as sae-lens trains."""
    asked = {"d_sae": m, "k": k, "batch": batch, "n_tokens": 1000 * batch, "anneal": 0.0, "lr": 1e-4}
    return LEARNERS["topk"](settings_of(asked, d), d)


def compare_steps(floors: Floors, *, d: int, m: int, k: int, batch: int, floor: float | None) -> None:
    """Equality, then CPU seconds of whole steps."""
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(0))
    sae, theirs = lens_step(d, m, k)
    gap = equal_gradients(sae, x, k)
    what = f"{d} -> {m:,}, batch {batch:,}, k {k}"
    floors.add("G16", f"loss and gradients against sae-lens, {what}", gap, floor=1e-5, most=True)
    learner = learner_of(d, m, k, batch=batch)
    steps = iter(range(1, 10**6))
    learner.step(x, 0), theirs(x)
    repeats = 5 if floor else 2
    floors.ratio(
        "G16",
        f"training step, {what}: sae-lens with torch's Adam",
        peer=lambda: cpu(lambda: theirs(x), repeats),
        ours=lambda: cpu(lambda: learner.step(x, next(steps)), repeats + 2),
        floor=floor,
    )


def planted(gamma: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sums of 8 of 256 known directions with weights of 1 to 2, around a mean gamma standard deviations long."""
    draws = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(TRUE, D, generator=draws), dim=1)
    x = torch.zeros(ROWS, D)
    for start in range(0, ROWS, 1 << 15):
        n = min(1 << 15, ROWS - start)
        which = torch.rand(n, TRUE, generator=draws).topk(ACTIVE, dim=1).indices
        codes = torch.zeros(n, TRUE).scatter(1, which, 1 + torch.rand(n, ACTIVE, generator=draws))
        x[start : start + n] = codes @ directions
    x = x - x.mean(0)
    spread = float(x.square().mean().sqrt()) * D**0.5
    return x + gamma * spread * normalize(torch.randn(D, generator=draws), dim=0), directions


def recovered(x: Tensor, directions: Tensor, **changes) -> tuple[float, float, float]:
    """Share of true features found, share of dead features and FVU after one pass of training."""
    s = settings_of({"d_sae": 1024, "k": ACTIVE, "n_tokens": ROWS, **changes}, D)
    mean = x.mean(0) if s.center else torch.zeros(D)
    scale = float((x - mean).square().mean().sqrt())
    learner = LEARNERS[s.architecture](s, D)
    for step in range(learner.n_steps):
        report = learner.step((x[step * s.batch : (step + 1) * s.batch] - mean) / scale, step)
    rows = normalize(learner.learned("", mean, scale).W_dec, dim=1)
    return float(((directions @ rows.t()).max(1).values > 0.9).float().mean()), report.dead, report.fvu


def compare_recipes(floors: Floors) -> None:
    """The default recipe and the plain one, near the origin and far from it."""
    small = {"batch": 256, "lr": 1e-3}
    far = "mean 10 standard deviations away"
    cases = (
        ("default recipe", 0.0, {}, 0.9, False),
        ("default recipe, batch 256, lr 1e-3", 0.0, small, 0.9, False),
        ("plain (no annealing, no auxiliary loss), batch 256, lr 1e-3", 0.0, small | PLAIN, 0.6, True),
        (f"{far}, default recipe", 10.0, {}, 0.9, False),
        (f"{far}, plain, not centred", 10.0, {**PLAIN, "center": False}, 0.1, True),
    )
    for words, gamma, changes, bound, most in cases:
        share, dead, fvu = recovered(*planted(gamma), **changes)
        note = f"dead {dead:.2f}, FVU {fvu:.3f}"
        floors.add("TRN", f"true features found: {words}", share, floor=bound, most=most, note=note)


def main() -> int:
    """Check, measure, assert."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    header("torch", "sae-lens")
    floors = Floors()
    compare_steps(floors, d=128, m=4096, k=16, batch=2048, floor=4)
    compare_steps(floors, d=768, m=24_576, k=32, batch=1024, floor=None)
    compare_recipes(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
