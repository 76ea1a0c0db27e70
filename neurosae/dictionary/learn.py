"""Learning a dictionary from batches of centred and scaled activations: one learner per site, one step at a time.

Everything that changes with time (k, learning rate, coefficients) is a pure function of the step, and no step draws a
random number, so the state of a learner is its tensors alone.

`topk` uses our own step; `batchtopk`, `standard` and `jumprelu` use the training classes of sae-lens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from neurosae.dictionary.record import Dictionary, import_sae_lens
from neurosae.dictionary.topk import TopKStep, auxiliary_loss
from neurosae.errors import ModelError, choose

DENSE_SHARE = 1 / 8  # above this share of features kept, dense products are faster on a CPU too
STANDARD_RATE = 0.02  # step of the logarithm of the L1 coefficient, per relative distance of L0 from k
JUMP_COEFFICIENT = 0.3  # of the squared distance of L0 from k; L0 ends somewhat above k
ZERO = 1e-8


@dataclass(frozen=True)
class Settings:
    """How a dictionary is trained; `settings_of` replaces a 0 by the default.

    Attributes
    ----------
    architecture : `topk`; `batchtopk` (saved as jumprelu); `standard` (L1, its coefficient steered until L0 is k);
        `jumprelu` (L0 is drawn towards k)
    d_sae : number of features; default 10 times the width
    k : active features per token (their mean, but for topk)
    n_tokens : rows seen in training; texts are read again when they are shorter
    seed : of initial weights, order of the texts, held-out documents
    lr, batch : Adam's learning rate and rows per step; default 1e-3 (2e-3 for k up to 8), and 512 to 4,096 by length
    aux : coefficient of the auxiliary loss that revives silent features
    anneal : share of the steps in which k falls from the width to its value
    dead_window : share of the steps after which a silent feature counts as dead
    decay : share of the steps, at the end, in which the learning rate falls to a tenth
    context : largest number of tokens that the model reads at once
    dtype : of the matrices on disk, `float32` or `float16`
    """

    architecture: str = "topk"
    d_sae: int = 0
    k: int = 32
    n_tokens: int = 1_000_000
    seed: int = 0
    lr: float = 0.0
    batch: int = 0
    aux: float = 1 / 32
    anneal: float = 0.4
    dead_window: float = 0.05
    decay: float = 0.2
    context: int = 256
    dtype: Literal["float32", "float16"] = "float32"


def settings_of(block: Mapping[str, Any] | Any, d: int) -> Settings:
    """Settings from a `train:` block or a mapping, with every default filled in for activations of width d.

    Examples
    --------
    >>> made = settings_of({"k": 8, "n_tokens": 100_000}, 64)
    >>> made.d_sae, made.lr, made.batch
    (640, 0.002, 512)
    """
    given = dict(block) if isinstance(block, Mapping) else {n: getattr(block, n) for n in dir(block) if n in _NAMES}
    if strange := sorted(set(given) - _NAMES - {"texts"}):
        choose("training setting", strange[0], dict.fromkeys(sorted(_NAMES)), error=ModelError)
    made = Settings(**{name: value for name, value in given.items() if name in _NAMES and value is not None})
    choose("architecture", made.architecture, LEARNERS, error=ModelError)
    if not made.d_sae:
        made = replace(made, d_sae=10 * d)
    if not made.lr:
        made = replace(made, lr=2e-3 if made.k <= 8 else 1e-3)
    if not made.batch:
        made = replace(made, batch=512 if made.n_tokens < 2_000_000 else 1024 if made.n_tokens < 20_000_000 else 4096)
    if not 1 <= made.k < made.d_sae:
        raise ModelError(f"k is {made.k}, but there are {made.d_sae} features; k must be at least 1 and below d_sae.")
    if made.n_tokens // made.batch < 20:
        raise ModelError(f"n_tokens {made.n_tokens:,} is fewer than 20 batches of {made.batch:,}; give more tokens.")
    return made


_NAMES = {f.name for f in fields(Settings)}


class Report(NamedTuple):
    """What one step says about itself."""

    loss: float
    fvu: float
    l0: float
    dead: float
    k: int
    lr: float


class Learner:
    """Parameters, optimizer and silence counters of one dictionary; subclasses give loss and active features."""

    parameters: list[Tensor]

    def __init__(self, settings: Settings, d: int, *, device: str = "cpu") -> None:
        self.settings, self.d, self.device = settings, d, torch.device(device)
        self.n_steps = settings.n_tokens // settings.batch
        self.window = max(int(settings.dead_window * self.n_steps), 1)
        self.silent = torch.zeros(settings.d_sae, dtype=torch.int64, device=self.device)
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

    def step(self, x: Tensor, step: int) -> Report | None:
        """Learn from one batch (n, d); reports about every hundredth step and the last."""
        x = x.to(self.device)
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        dead = (self.silent > self.window).nonzero()[:, 0]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss, decoded, counts = self.loss(x, step, dead=dead)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.silent = torch.where(counts > 0, 0, self.silent + 1)
        if step % max(self.n_steps // 100, 1) and step != self.n_steps - 1:
            return None
        with torch.no_grad():
            fvu = float((decoded.float() - x).square().sum() / (x - x.mean(0)).square().sum())
        dead_share = float((self.silent > self.window).float().mean())
        return Report(float(loss.detach()), fvu, float(counts.sum()) / len(x), dead_share, self.k(step), rate)

    def k(self, step: int) -> int:
        """Active features per token at a step: falls linearly from the width to its value, then stays."""
        n = int(self.settings.anneal * self.n_steps) if "topk" in self.settings.architecture else 0
        start, end = min(self.d, self.settings.d_sae), self.settings.k
        return end if step >= n or start <= end else round(start + (end - start) * step / n)

    def _rate(self, step: int) -> float:
        left = (self.n_steps - step) / max(self.settings.decay * self.n_steps, 1)
        return self.settings.lr * min(1.0, 0.1 + 0.9 * left)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on."""
        made = {"silent": self.silent}
        for i, parameter in enumerate(self.parameters):
            made[f"parameter.{i}"] = parameter.detach()
            for name, value in self.optimizer.state[parameter].items():
                made[f"adam.{i}.{name}"] = value
        return made

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        self.silent = state["silent"].to(self.device)
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
        dense = self.device.type != "cpu" or k > DENSE_SHARE * m
        decoded, kept, values = TopKStep.apply(x, *self.parameters, k, dense)
        loss = (decoded - x).square().sum(1).mean()
        if len(dead) and self.settings.aux:
            loss = loss + self.settings.aux * auxiliary_loss(tuple(self.parameters), x, decoded, dead=dead)
        counts = torch.bincount(kept.reshape(-1), weights=(values > 0).reshape(-1).float(), minlength=m)
        return loss, decoded, counts

    def learned(self, hook: str, mean: Tensor, scale: float) -> Dictionary:
        """Folded: raw activations in, decoder rows of length 1."""
        encoder, bias, decoder, center = (p.detach() for p in self.parameters)
        made = Dictionary(
            hook, "topk", encoder, bias, decoder, center, torch.full_like(bias, float("nan")), self.settings.k
        )
        return fold(made, mean, scale)


class LensLearner(Learner):
    """One of the training classes of sae-lens, with our schedules."""

    def build(self) -> None:
        """Make the sae-lens object; k stands for the target of its own sparsity setting."""
        lens, s = import_sae_lens(), self.settings
        size = {"d_in": self.d, "d_sae": s.d_sae, "device": str(self.device)}
        if s.architecture == "batchtopk":
            config = lens.BatchTopKTrainingSAEConfig(**size, k=float(s.k), aux_loss_coefficient=s.aux)
            self.sae = lens.BatchTopKTrainingSAE(config)
        elif s.architecture == "standard":
            self.sae = lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**size, l1_coefficient=1.0))
        else:
            config = lens.JumpReLUTrainingSAEConfig(
                **size, jumprelu_sparsity_loss_mode="quadratic", target_l0=float(s.k), l0_coefficient=1.0
            )
            self.sae = lens.JumpReLUTrainingSAE(config)
        self.sae.train()
        self.parameters = list(self.sae.parameters())
        self.coefficient = torch.tensor(0.1, dtype=torch.float64)

    def loss(self, x: Tensor, step: int, *, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of sae-lens with the coefficients of this step."""
        mask = torch.zeros(self.settings.d_sae, dtype=torch.bool, device=self.device)
        mask[dead] = True
        if self.settings.architecture == "batchtopk":
            self.sae.activation_fn.k = self.k(step)
        warm = min(1.0, step / max(0.1 * self.n_steps, 1))
        coefficients = {"l1": warm * float(self.coefficient), "l0": warm * JUMP_COEFFICIENT}
        given = import_sae_lens().saes.sae.TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=mask, n_training_steps=step, is_logging_step=False
        )
        out = self.sae.training_forward_pass(given)
        counts = (out.feature_acts.detach() > 0).sum(0)
        if self.settings.architecture == "standard":
            distance = (float(counts.sum()) / len(x) - self.settings.k) / self.settings.k
            self.coefficient = self.coefficient * torch.tensor(STANDARD_RATE * min(max(distance, -1), 1)).double().exp()
        return out.loss, out.sae_out, counts

    def state(self) -> dict[str, Tensor]:
        """Parameters, optimizer, counters, buffers of sae-lens, and the steered coefficient."""
        buffers = {f"buffer.{name}": value for name, value in self.sae.named_buffers()}
        return super().state() | buffers | {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        super().restore(state)
        self.coefficient = state["coefficient"].clone()
        for name, value in self.sae.named_buffers():
            value.copy_(state[f"buffer.{name}"])

    def learned(self, hook: str, mean: Tensor, scale: float) -> Dictionary:
        """Folded: raw activations in, decoder rows of length 1; batchtopk becomes jumprelu, as in sae-lens."""
        sae = self.sae
        bias, decoder = sae.b_enc.detach(), sae.W_dec.detach()
        kind = "standard" if self.settings.architecture == "standard" else "jumprelu"
        threshold = torch.zeros_like(bias)
        if self.settings.architecture == "batchtopk":  # in units of z |W_dec|
            threshold = threshold + sae.topk_threshold.float() / decoder.norm(dim=1).clamp(min=ZERO)
        elif self.settings.architecture == "jumprelu":
            threshold = sae.threshold.detach().clamp(min=0)
        made = Dictionary(hook, kind, sae.W_enc.detach().t(), bias, decoder, sae.b_dec.detach(), threshold)
        return fold(made, mean, scale)


LEARNERS: dict[str, type[Learner]] = {
    "topk": TopKLearner, "batchtopk": LensLearner, "standard": LensLearner, "jumprelu": LensLearner,
}  # fmt: skip


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
