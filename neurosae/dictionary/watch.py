"""Early diagnosis of a training run, in plain words: a far mean, dead features, losses that jump.

The bounds are wide on purpose: what is said here should be worth a look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurosae.dictionary.settings import COUNTED, Settings
from neurosae.errors import ModelError

FAR = 3.0  # distance of the mean from the origin, in standard deviations, that is worth a sentence
MANY_DEAD = 0.5
LEAST_ROWS = 10_000  # a feature that is silent for fewer rows may just be rare
SPIKE, MEMORY = 3.0, 50  # a loss above so many running medians, over so many steps
MANY_SPIKES = 0.01  # of the steps
MISSED = 1.5  # factor between L0 and k that is announced
EARLY = 0.1  # share of the steps after which dead features are looked at, and again after annealing


class Moments(NamedTuple):
    """What is subtracted from rows, what they are divided by, and gamma = |mean| / |standard deviation|."""

    mean: Tensor
    scale: float
    gamma: float


def moments(x: Tensor, settings: Settings, *, where: str) -> Moments:
    """Mean, root mean square and gamma of rows (n, d); 0 and 1 in place of what the settings leave out.

    Examples
    --------
    >>> moments(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), Settings(), where="here")
    Moments(mean=tensor([2., 4.]), scale=0.707..., gamma=4.472...)
    """
    mean = x.double().mean(0).float()
    spread = float((x - mean).double().square().mean().sqrt())
    if not spread > 0:
        raise ModelError(f"{where}: all activations are equal; there is nothing to learn.")
    gamma = float(mean.double().norm()) / (spread * x.shape[1] ** 0.5)
    mean = mean if settings.center else torch.zeros_like(mean)
    scale = float((x - mean).double().square().mean().sqrt()) if settings.scale else 1.0
    return Moments(mean, scale, gamma)


def far_words(gamma: float) -> str:
    """What a mean far from the origin means for training; "" if it is near.

    Examples
    --------
    >>> far_words(0.5), far_words(10.0)[:53]
    ('', 'The mean lies 10 standard deviations from the origin:')
    """
    if gamma <= FAR:
        return ""
    return (
        f"The mean lies {gamma:.3g} standard deviations from the origin: without centring, features would be spent on "
        "it and most would die."
    )


def offset_words(gamma: float, *, center: bool) -> str:
    """The warning about a far mean that is not subtracted; "" if there is none."""
    return "" if center or gamma <= FAR else f"{far_words(gamma)} Set center: true."


def spiked(recent: Tensor, loss: Tensor) -> Tensor:
    """Whether a loss is more than 3 times the median of the recent ones (nan: not seen yet); never before all are seen.

    Examples
    --------
    >>> spiked(torch.ones(4), torch.tensor(3.5)).item(), spiked(torch.ones(4), torch.tensor(2.0)).item()
    (True, False)
    >>> spiked(torch.tensor([1.0, float("nan")]), torch.tensor(9.0)).item()
    False
    """
    return loss > SPIKE * recent.median()  # the median with a nan is nan, and no loss is above it


def checkpoints_of_dead(settings: Settings, n_steps: int) -> tuple[int, ...]:
    """Steps from which on dead features are reported: after a tenth, and after annealing; none in short runs.

    Examples
    --------
    >>> checkpoints_of_dead(Settings(n_tokens=1_000_000, batch=500), 2000)
    (200, 901)
    """
    window = max(int(settings.dead_window * n_steps), 1)
    if window * settings.batch < LEAST_ROWS:
        return ()
    annealed = int(settings.anneal * n_steps) if settings.architecture in COUNTED else 0
    return tuple(sorted({max(int(EARLY * n_steps), window + 1), annealed + window + 1}))


def dead_words(dead: float, step: int, *, settings: Settings, n_steps: int) -> str:
    """The sentence about dead features at a step; "" when there are few."""
    if dead <= MANY_DEAD:
        return ""
    rows = max(int(settings.dead_window * n_steps), 1) * settings.batch
    advice = ["fewer features (d_sae)", "a smaller learning rate (lr)"]
    if settings.architecture in COUNTED and not settings.anneal:
        advice.insert(0, "annealing (anneal: 0.4)")
    if not settings.center:
        advice.insert(0, "center: true")
    return (
        f"{dead:.0%} of the features were silent for the last {rows:,} tokens at step {step + 1:,} of {n_steps:,}; "
        f"consider {', '.join(advice[:-1])} or {advice[-1]}."
    )


def spike_words(spikes: int, n_steps: int) -> str:
    """The sentence about jumping losses at the end; "" when they were rare."""
    if spikes <= MANY_SPIKES * n_steps:
        return ""
    return (
        f"the loss jumped above {SPIKE:g} times its running median in {spikes:,} of {n_steps:,} steps; "
        "consider a smaller learning rate (lr) or a longer warm_up."
    )


def missed_words(l0: float, settings: Settings) -> str:
    """The sentence about an L0 far from the k that was asked for; "" when it is near."""
    if l0 > 0 and max(l0 / settings.k, settings.k / l0) <= MISSED:
        return ""
    steered = settings.architecture in ("standard", "gated", "jumprelu")
    advice = "its penalty is steered towards k and had no time to arrive: train on more tokens (n_tokens)"
    return (
        f"{l0:.3g} features are active per token where k asks for {settings.k}; "
        f"{advice if steered else 'compare it with dictionaries of its own L0, not of its k'}."
    )


def is_looked_at(log: Sequence[Mapping[str, Any]], settings: Settings, *, n_steps: int) -> bool:
    """Whether dead features are reported at the last row of the log: the first at or after each of the steps."""
    before = log[-2]["step"] if len(log) > 1 else -1
    return any(before < at <= log[-1]["step"] for at in checkpoints_of_dead(settings, n_steps))


def diagnosis(gamma: float, log: Sequence[Mapping[str, Any]], *, settings: Settings) -> dict[str, Any]:
    """What the card keeps: gamma, the jumps of the loss, and every sentence that was said."""
    n_steps, spikes = settings.n_tokens // settings.batch, int(log[-1]["spikes"])
    said = [offset_words(gamma, center=settings.center)]
    for i in range(1, len(log) + 1):
        if is_looked_at(log[:i], settings, n_steps=n_steps):
            said.append(dead_words(log[i - 1]["dead"], log[i - 1]["step"], settings=settings, n_steps=n_steps))
    said.append(spike_words(spikes, n_steps))
    record: dict[str, Any] = {"gamma": gamma, "loss_spikes": spikes, "warnings": [words for words in said if words]}
    return record | ({"gamma_means": far_words(gamma)} if gamma > FAR else {})


def empty_memory(device: torch.device) -> Tensor:
    """The recent losses before the first."""
    return torch.full((MEMORY,), float("nan"), device=device)
