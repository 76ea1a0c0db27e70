"""What an intervention is scored by.

| outcome | value of a stimulus |
|---|---|
| `logit_diff` | logit of the target minus logit of the foil |
| `log_prob` | natural logarithm of the probability of the target |
| `accuracy` | 1 where the target has the higher logit of the two, else 0 |
| `surprisal` | -log2 p of a region, summed over its tokens; without a region, of the text |
| `loss` | mean of -ln p over the tokens of a region; its exponential is the perplexity |
| `kl` | KL(clean, edited) in nats, mean over the predictions of the tokens of a region; `kl:target` at the target |

A region is written behind a colon, `surprisal:verb`; `:target` is the target in the place of what the text says. The
first three, and those with `:target`, are read at the token that predicts the target, the others at the tokens that
predict the region. `Activation` is another feature's activation. A function from `Predictions` to one number per
prediction may be given in place of a name; it is read at the target.
Claims about interaction use the logit difference: a probability saturates, and saturation is no integration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurosae.causal.prompts import ALL, TARGET, Prompts, predicted, tokens_at
from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError, choose

LN2 = float(np.log(2))


class Predictions(NamedTuple):
    """Some predictions of the next token.

    Attributes
    ----------
    logits, clean : float32 (n, n_vocab), with the edits and without
    target, foil : int64 (n,), ids; the target is the next token where a region is scored, and has no foil (-1)
    """

    logits: Tensor
    clean: Tensor
    target: Tensor
    foil: Tensor


Score = Callable[[Predictions], Tensor]


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids[:, None])[:, 0]


def logit_difference(p: Predictions) -> Tensor:
    """Logit of the target minus logit of the foil."""
    return _at(p.logits, p.target) - _at(p.logits, p.foil)


def log_probability(p: Predictions) -> Tensor:
    """Natural logarithm of the probability of the target."""
    return _at(p.logits.double().log_softmax(1), p.target)


def divergence(p: Predictions) -> Tensor:
    """KL(clean, edited), nats."""
    clean, edited = p.clean.double().log_softmax(1), p.logits.double().log_softmax(1)
    return (clean.exp() * (clean - edited)).sum(1)


class Outcome(NamedTuple):
    """How predictions are scored, where they are read, and how those of one stimulus are joined (`mean`, `sum`)."""

    score: Score
    place: str
    join: str


OUTCOMES: Mapping[str, Outcome] = {
    "logit_diff": Outcome(logit_difference, TARGET, "mean"),
    "log_prob": Outcome(log_probability, TARGET, "mean"),
    "accuracy": Outcome(lambda p: (logit_difference(p) > 0).double(), TARGET, "mean"),
    "surprisal": Outcome(lambda p: -log_probability(p) / LN2, ALL, "sum"),
    "loss": Outcome(lambda p: -log_probability(p), ALL, "mean"),
    "kl": Outcome(divergence, ALL, "mean"),
}


@dataclass(frozen=True, eq=False)
class Activation:
    """Another feature's activation as an outcome: its mean over the tokens of a place.

    Attributes
    ----------
    dictionary, feature : whose, read at the dictionary's hook point
    where : region, `target`, `all`, or one array of token indices per stimulus
    """

    dictionary: Dictionary
    feature: int
    where: str | Sequence[np.ndarray] = TARGET

    @property
    def name(self) -> str:
        """What its values are called."""
        return f"{self.dictionary.hook}/{self.feature}"


Ask = str | Activation | Score


@dataclass(frozen=True)
class Asked:
    """An outcome of some stimuli: which logits it reads.

    Attributes
    ----------
    name : key of its values
    outcome : how it is scored
    cells : per stimulus the tokens whose output is read
    target, foil : per stimulus the ids that are scored there
    """

    name: str
    outcome: Outcome
    cells: list[np.ndarray]
    target: list[np.ndarray]
    foil: list[np.ndarray]


def ask_outcome(ask: str | Score, prompts: Prompts) -> Asked:
    """Find where an outcome is read.

    Raises
    ------
    DataError
        The outcome or its region is unknown, or no stimulus can be scored.
    """
    if not isinstance(ask, str):
        return _at_target(getattr(ask, "__name__", type(ask).__name__), Outcome(ask, TARGET, "mean"), prompts)
    name, _, place = ask.partition(":")
    outcome = choose("outcome", name, OUTCOMES)
    if outcome.place == TARGET and place not in ("", TARGET):
        raise DataError(f"outcome '{ask}': {name} is read where the target is predicted; leave the region out.")
    place = place or outcome.place
    if place == TARGET:
        return _at_target(ask, outcome, prompts)
    tokens = predicted(prompts, place)
    if empty := [name for name, one in zip(prompts.names, tokens, strict=True) if not len(one)]:
        raise DataError(
            f"outcome '{ask}': nothing is predicted in stimulus '{empty[0]}'; a model without BOS reads it."
        )
    target = [ids[one] for ids, one in zip(prompts.ids, tokens, strict=True)]
    return Asked(ask, outcome, [one - 1 for one in tokens], target, [np.full(len(one), -1) for one in tokens])


def _at_target(name: str, outcome: Outcome, prompts: Prompts) -> Asked:
    if not (prompts.at >= 0).any():
        raise DataError(f"outcome '{name}' needs a target: {prompts.reason[0] or 'there is none'}.")
    some = [slice(0, 1) if at >= 0 else slice(0, 0) for at in prompts.at]
    found = ([np.array([value])[one] for value, one in zip(values, some, strict=True)]
             for values in (prompts.at, prompts.target, prompts.foil))  # fmt: skip
    return Asked(name, outcome, *found)


def activation_cells(ask: Activation, prompts: Prompts) -> list[np.ndarray]:
    """The tokens at which a feature is read."""
    if not 0 <= ask.feature < ask.dictionary.n_features:
        raise DataError(f"feature {ask.feature}: the dictionary has features 0 to {ask.dictionary.n_features - 1}.")
    return tokens_at(prompts, ask.where)


@torch.no_grad()
def score(asked: Asked, predictions: Predictions) -> np.ndarray:
    """The outcome of each prediction, float64 (n,).

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
    >>> p = Predictions(logits, logits, torch.tensor([0]), torch.tensor([2]))
    >>> asked = Asked("logit_diff", OUTCOMES["logit_diff"], [], [], [])
    >>> score(asked, p)
    array([1.])
    """
    values = asked.outcome.score(predictions)
    if tuple(values.shape) != (len(predictions.target),):
        raise DataError(
            f"outcome '{asked.name}' gives shape {tuple(values.shape)}, not one number for each of "
            f"{len(predictions.target)} predictions."
        )
    return values.double().cpu().numpy()
