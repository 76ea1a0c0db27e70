"""Learning a dictionary from batches of centred and scaled activations: one learner per site, one step at a time.

Everything that changes with time (k, learning rate, coefficients) is a pure function of the step, and what is drawn is
one of (seed, step), so the state of a learner is its tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neurosae.dictionary.record import Dictionary
from neurosae.dictionary.revival import Part, Rows, draw_rows, ghost_loss, resample
from neurosae.dictionary.settings import COUNTED, Settings
from neurosae.dictionary.topk import TopKStep, auxiliary_loss
from neurosae.dictionary.watch import MEMORY, empty_memory, spiked
from neurosae.errors import ModelError

DENSE_SHARE = 1 / 8  # above this share of features kept, dense products are faster on a CPU too
ZERO = 1e-8


class Report(NamedTuple):
    """What one step says about itself; `spikes` counts the jumps of the loss so far."""

    loss: float
    fvu: float
    l0: float
    dead: float
    k: int
    lr: float
    spikes: int


class Learner:
    """Parameters, optimizer and silence counters of one dictionary; subclasses give loss and active features."""

    parameters: list[Tensor]

    def __init__(self, settings: Settings, d: int, *, device: str = "cpu") -> None:
        self.settings, self.d, self.device = settings, d, torch.device(device)
        self.n_steps = settings.n_tokens // settings.batch
        self.window = max(int(settings.dead_window * self.n_steps), 1)
        self.amp = self.device.type == "cuda" if settings.amp is None else settings.amp
        self.silent = torch.zeros(settings.d_sae, dtype=torch.int64, device=self.device)
        self.recent = empty_memory(self.device)
        self.spikes = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.random.fork_rng(devices=[]):  # sae-lens draws from the global generator
            torch.manual_seed(settings.seed)
            self.build()
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.lr, fused=True)

    def build(self) -> None:
        """Make the initial parameters."""
        raise TypeError("a learner is made by one of its subclasses")

    def loss(self, x: Tensor, step: int, *, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, reconstruction, and how often each feature was active in the batch."""
        raise TypeError("a learner is made by one of its subclasses")

    def rows(self) -> Rows:
        """Encoder, bias, decoder and center, one row per feature."""
        raise TypeError("a learner is made by one of its subclasses")

    def parts(self) -> list[Part]:
        """The parameters that belong to features."""
        raise TypeError("a learner is made by one of its subclasses")

    @property
    def aux(self) -> float:
        """Coefficient of the auxiliary loss; ghost gradients take its place."""
        return 0.0 if self.settings.ghost_grads else self.settings.aux

    def step(self, x: Tensor, step: int) -> Report | None:
        """Learn from one batch (n, d); reports about every hundredth step and the last."""
        x = x.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        dead = self.dead()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            loss, decoded, counts = self.loss(x, step, dead=dead)
        decoded = decoded.float()
        if self.settings.ghost_grads and len(dead):
            loss = loss + ghost_loss(self.rows(), x, decoded, dead=dead)
        self._remember(loss.detach(), step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.silent = torch.where(counts > 0, 0, self.silent + 1)
        every = self.settings.resample_every
        if every and (step + 1) % every == 0 and step + 1 < self.n_steps:
            self._resample(x, decoded.detach(), step)
        if step % max(self.n_steps // 100, 1) and step != self.n_steps - 1:
            return None
        return self._report(x, (loss.detach(), decoded.detach(), counts), step)

    def _report(self, x: Tensor, found: tuple[Tensor, Tensor, Tensor], step: int) -> Report:
        loss, decoded, counts = found
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is {float(loss)} at step {step + 1:,}; use a smaller lr ({self.settings.lr}).")
        fvu = float((decoded - x).square().sum() / (x - x.mean(0)).square().sum())
        dead = float((self.silent > self.window).float().mean())
        l0 = float(counts.sum()) / len(x)
        return Report(float(loss), fvu, l0, dead, self.k(step), self.rate(step), int(self.spikes))

    def dead(self) -> Tensor:
        """Indices of the features that were silent for longer than the window."""
        return (self.silent > self.window).nonzero()[:, 0]

    def _remember(self, loss: Tensor, step: int) -> None:
        if self.k(step) != self.settings.k and self.settings.architecture in COUNTED:
            return  # the loss rises by itself while k falls
        self.spikes = self.spikes + spiked(self.recent, loss)
        self.recent[step % MEMORY] = loss

    def _resample(self, x: Tensor, decoded: Tensor, step: int) -> None:
        dead = self.dead()
        if not len(dead):
            return
        chosen = draw_rows((decoded - x).square().sum(1), len(dead), seed=(self.settings.seed, 4, step))
        inputs = x[torch.as_tensor(chosen, device=x.device)]
        resample(self.rows(), self.parts(), self.optimizer, dead=dead, inputs=inputs)
        self.silent[dead] = 0

    def k(self, step: int) -> int:
        """Active features per token at a step: falls linearly from k0 to its value, then stays."""
        n = int(self.settings.anneal * self.n_steps) if self.settings.architecture in COUNTED else 0
        start, end = self.settings.k0, self.settings.k
        return end if step >= n or start <= end else round(start + (end - start) * step / n)

    def rate(self, step: int) -> float:
        """Learning rate at a step: rises from 0 over `warm_up`, falls to a tenth over `decay`."""
        risen = (step + 1) / max(self.settings.warm_up * self.n_steps, 1)
        left = (self.n_steps - step) / max(self.settings.decay * self.n_steps, 1)
        return self.settings.lr * min(1.0, risen, 0.1 + 0.9 * left)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        made = {"silent": self.silent, "recent": self.recent, "spikes": self.spikes}
        for i, parameter in enumerate(self.parameters):
            made[f"parameter.{i}"] = parameter.detach()
            for name, value in self.optimizer.state[parameter].items():
                made[f"adam.{i}.{name}"] = value
        return made

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        self.silent, self.recent, self.spikes = (
            state[name].clone().to(self.device) for name in ("silent", "recent", "spikes")
        )
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(state[f"parameter.{i}"])
            names = [n for n in state if n.startswith(f"adam.{i}.")]
            self.optimizer.state[parameter] = {n.rpartition(".")[2]: state[n].clone().to(self.device) for n in names}

    def learned(self, hook: str, mean: Tensor, scale: float) -> Dictionary:
        """The dictionary so far, for raw activations."""
        raise TypeError("a learner is made by one of its subclasses")


class TopKLearner(Learner):
    """TopK with annealed k and auxiliary loss; the encoder starts as the decoder's transpose."""

    def build(self) -> None:
        """Decoder rows of random direction and length .1, as in sae-lens."""
        m, d = self.settings.d_sae, self.d
        rows = nn.functional.normalize(torch.rand(m, d) * 2 - 1, dim=1) * 0.1
        parts = rows.clone(), torch.zeros(m), rows, torch.zeros(d)
        self.parameters = [nn.Parameter(part.to(self.device)) for part in parts]

    def loss(self, x: Tensor, step: int, *, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error summed over the width plus the auxiliary loss."""
        k, m = self.k(step), self.settings.d_sae
        dense = self.device.type != "cpu" or self.amp or k > DENSE_SHARE * m
        decoded, kept, values = TopKStep.apply(x, *self.parameters, k, dense)
        loss = (decoded - x).square().sum(1).mean()
        if len(dead) and self.aux:
            loss = loss + self.aux * auxiliary_loss(tuple(self.parameters), x, decoded, dead=dead)
        counts = torch.bincount(kept.reshape(-1), weights=(values > 0).reshape(-1).float(), minlength=m)
        return loss, decoded, counts

    def rows(self) -> Rows:
        """The parameters as they are."""
        return Rows(*self.parameters)

    def parts(self) -> list[Part]:
        """Both matrices and the encoder's bias."""
        encoder, bias, decoder, _ = self.parameters
        return [Part(encoder, 0, None), Part(bias, 0, 0.0), Part(decoder, 0, None)]

    def learned(self, hook: str, mean: Tensor, scale: float) -> Dictionary:
        """Folded: raw activations in, decoder rows of length 1."""
        encoder, bias, decoder, center = (p.detach() for p in self.parameters)
        made = Dictionary(
            hook, "topk", encoder, bias, decoder, center, torch.full_like(bias, float("nan")), self.settings.k
        )
        return fold(made, mean, scale)


def fold(dictionary: Dictionary, mean: Tensor, scale: float) -> Dictionary:
    """A dictionary of (x - mean) / scale as one of raw x, its decoder rows of length 1; exact.

    With n_j = scale |W_dec[j]|: W_enc n / scale, b_enc n, threshold n, W_dec / |W_dec|, and b_dec scale + mean. Every
    feature is multiplied by its n, so that activations of all features, in all architectures, are in units of x.
    TopK selects by z |W_dec| before and by the new z after: the same features.
    """
    double = {n: getattr(dictionary, n).double() for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    length = double["W_dec"].norm(dim=1).clamp(min=ZERO)
    n = scale * length
    made = {
        "W_enc": double["W_enc"] * length[:, None],
        "b_enc": double["b_enc"] * n,
        "W_dec": double["W_dec"] / length[:, None],
        "b_dec": double["b_dec"] * scale + mean.to(n.device).double(),
        "threshold": double["threshold"] * n,
    }
    return replace(dictionary, **{name: value.float().contiguous() for name, value in made.items()})


def recalibrate(dictionary: Dictionary, x: Tensor, k: float) -> Dictionary:
    """One threshold for all features of a jumprelu dictionary, so that on x (n, d) mean L0 is k.

    The running threshold of BatchTopK starts at 0 and lags behind: after short runs the saved L0 is several times k.
    """
    wanted = max(round(k * len(x)), 1)
    best = torch.empty(0)
    for start in range(0, len(x), 1024):
        z = dictionary.preactivations(x[start : start + 1024]).flatten()
        best = torch.cat([best, z[z > 0].cpu()])
        best = best.topk(min(wanted, len(best))).values
    threshold = float(best.min()) * (1 - 1e-6) if len(best) == wanted else 0.0
    return replace(dictionary, threshold=torch.full_like(dictionary.threshold, threshold))
