"""Learners of the other architectures: the training classes of sae-lens, with our schedules, and how each is saved.

Whatever is trained ends as one of the plain kinds, exactly: batchtopk and matryoshka as jumprelu (one threshold), gated
as jumprelu (a feature whose gate and magnitude share their direction opens above a threshold of its own), abstopk as
topk over both signs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neurosae.dictionary.interaction import InteractionLearner
from neurosae.dictionary.learn import ZERO, Learner, TopKLearner, fold
from neurosae.dictionary.record import Dictionary, import_sae_lens
from neurosae.dictionary.revival import Part, Rows
from neurosae.dictionary.settings import BY_BATCH, COUNTED

L1_RATE = 0.02  # step of the logarithm of the L1 coefficient, per relative distance of L0 from k
JUMP_COEFFICIENT = 0.3  # of the squared distance of L0 from k; L0 ends somewhat above k
JUMP_START = 0.01  # threshold of a jumprelu feature that starts
WARM = 0.1  # share of the steps in which a penalty rises from 0
PENALIZED = {"standard", "gated"}


class LensLearner(Learner):
    """One of the training classes of sae-lens."""

    def build(self) -> None:
        """Make the sae-lens object; k stands for the target of its own sparsity setting."""
        self.sae = _sae_of(self)
        self.sae.train()
        self.parameters = list(self.sae.parameters())
        self.coefficient = torch.tensor(0.1, dtype=torch.float64)

    def loss(self, x: Tensor, step: int, *, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of sae-lens with the coefficients of this step."""
        mask = torch.zeros(self.settings.d_sae, dtype=torch.bool, device=self.device)
        mask[dead] = True
        if self.settings.architecture in COUNTED:
            self.sae.activation_fn.k = self.k(step)
        warm = min(1.0, step / max(WARM * self.n_steps, 1))
        coefficients = {"l1": warm * float(self.coefficient), "l0": warm * JUMP_COEFFICIENT}
        given = import_sae_lens().saes.sae.TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=mask, n_training_steps=step, is_logging_step=False
        )
        out = self.sae.training_forward_pass(given)
        counts = (out.feature_acts.detach() != 0).sum(0)
        if self.settings.architecture in PENALIZED:
            distance = (float(counts.sum()) / len(x) - self.settings.k) / self.settings.k
            self.coefficient = self.coefficient * torch.tensor(L1_RATE * min(max(distance, -1), 1)).double().exp()
        return out.loss, out.sae_out, counts

    def rows(self) -> Rows:
        """Encoder and decoder; for gated the gate, by which a feature is silent or not."""
        sae = self.sae
        bias = sae.b_gate if self.settings.architecture == "gated" else sae.b_enc
        return Rows(sae.W_enc.t(), bias, sae.W_dec, sae.b_dec)

    def parts(self) -> list[Part]:
        """Both matrices, and every vector with one number per feature."""
        made = [Part(self.sae.W_enc, 1, None), Part(self.sae.W_dec, 0, None)]
        vectors = {name: value for name, value in self.sae.named_parameters() if value.ndim == 1 and name != "b_dec"}
        return made + [Part(p, 0, JUMP_START if name == "threshold" else 0.0) for name, p in vectors.items()]

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
        """Folded: raw activations in, decoder rows of length 1."""
        sae, name = self.sae, self.settings.architecture
        encoder, decoder, center = sae.W_enc.detach().t(), sae.W_dec.detach(), sae.b_dec.detach()
        if name == "abstopk":
            return fold(_both_signs(hook, sae, self.settings.k), mean, scale)
        if name == "gated":
            # gate: <w, x> + b_gate > 0, and magnitude: z = e^r <w, x> + b_mag; so z > b_mag - e^r b_gate
            stretch = sae.r_mag.detach().exp()
            bias = sae.b_mag.detach()
            threshold = (bias - stretch * sae.b_gate.detach()).clamp(min=0)
            encoder = encoder * stretch[:, None]
        else:
            bias, threshold = sae.b_enc.detach(), torch.zeros_like(sae.b_enc)
        if name in BY_BATCH:  # in units of z |W_dec|
            threshold = threshold + sae.topk_threshold.float() / decoder.norm(dim=1).clamp(min=ZERO)
        elif name == "jumprelu":
            threshold = sae.threshold.detach().clamp(min=0)
        kind = "standard" if name == "standard" else "jumprelu"
        return fold(Dictionary(hook, kind, encoder, bias, decoder, center, threshold), mean, scale)


def _sae_of(learner: Learner) -> Any:
    """The training object of sae-lens for the settings of a learner."""
    lens, s = import_sae_lens(), learner.settings
    size = {"d_in": learner.d, "d_sae": s.d_sae, "device": str(learner.device)}
    counted = {**size, "aux_loss_coefficient": learner.aux}
    if s.architecture == "abstopk":
        return lens.AbsTopKTrainingSAE(lens.AbsTopKTrainingSAEConfig(**counted, k=s.k))
    if s.architecture == "batchtopk":
        return lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(**counted, k=float(s.k)))
    if s.architecture == "matryoshka":
        with warnings.catch_warnings():  # one width is a fair thing to ask for
            warnings.filterwarnings("ignore", message="WARNING: You have only set one matryoshka level")
            config = lens.MatryoshkaBatchTopKTrainingSAEConfig(
                **counted, k=float(s.k), matryoshka_widths=list(s.widths)
            )
            return lens.MatryoshkaBatchTopKTrainingSAE(config)
    if s.architecture == "standard":
        return lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**size, l1_coefficient=1.0))
    if s.architecture == "gated":
        return lens.GatedTrainingSAE(lens.GatedTrainingSAEConfig(**size, l1_coefficient=1.0))
    config = lens.JumpReLUTrainingSAEConfig(
        **size,
        jumprelu_sparsity_loss_mode="quadratic",
        jumprelu_init_threshold=JUMP_START,
        target_l0=float(s.k),
        l0_coefficient=1.0,
    )
    return lens.JumpReLUTrainingSAE(config)


def _both_signs(hook: str, sae: Any, k: int) -> Dictionary:
    """A signed dictionary as features j and j + d_sae: the k strongest of both are the k largest by size."""
    encoder, bias, decoder = sae.W_enc.detach().t(), sae.b_enc.detach(), sae.W_dec.detach()
    both = [torch.cat([one, -one]) for one in (encoder, bias, decoder)]
    unknown = torch.full_like(both[1], float("nan"))
    facts = {"partner": "halves"}  # feature j + d_sae is feature j with the other sign
    return Dictionary(hook, "topk", both[0], both[1], both[2], sae.b_dec.detach(), unknown, k, metadata=facts)


LEARNERS: dict[str, type[Learner]] = {
    "topk": TopKLearner, "abstopk": LensLearner, "batchtopk": LensLearner, "matryoshka": LensLearner,
    "standard": LensLearner, "gated": LensLearner, "jumprelu": LensLearner, "interaction": InteractionLearner,
}  # fmt: skip
