"""Interaction dictionary: a top-k autoencoder whose decoder also sees the products of active features.

    x^ = b_dec + f W_dec + b(f) M,    b(f) = .5 [(f V)^2 - f^2 V^2] = sum_(i<j) f_i f_j (v_i * v_j),

with V (m, r) and M (r, d): a factorization machine of rank r beside the linear decoder. Trained jointly, or in two
steps (`sequential`): the dictionary alone, then, frozen, the term on what it left over.

The two parts of a jointly trained dictionary have adapted to each other. What the term is worth is told by
dictionaries trained without it (`interaction_study`), never by leaving it out of one trained with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from neurosae.dictionary.learn import ZERO, TopKLearner, fold
from neurosae.dictionary.products import head, pair_sums
from neurosae.dictionary.record import Dictionary
from neurosae.dictionary.revival import Part, Rows
from neurosae.dictionary.topk import auxiliary_loss
from neurosae.errors import ModelError

START = 0.1  # standard deviation of V at the start; M starts at 0, where the term adds nothing
FIRST = 0.75  # share of the steps of a sequential run in which the dictionary learns alone
PAIRS = 4096  # pairs whose strength is computed at once
BINS = np.linspace(-1, 1, 21)  # of cosines between rows of V


class InteractionLearner(TopKLearner):
    """Top-k learner with the interaction term, and `linear_top`: a further linear term on the strongest features."""

    def build(self) -> None:
        """The dictionary as without a term; then V of random entries and everything after it 0."""
        super().build()
        s, m, d = self.settings, self.settings.d_sae, self.d
        self.names: list[str] = []
        made: dict[str, Tensor] = {}
        if s.rank:
            made = {"V": START * torch.randn(m, s.rank), "M": torch.zeros(s.rank, d)}
            if s.head == "mlp":
                made |= {"H": torch.randn(s.rank, s.rank) / s.rank**0.5, "h": torch.zeros(s.rank)}
        if s.linear_top:
            made["L"] = torch.zeros(m, d)
        self.names = list(made)
        self.parameters += [nn.Parameter(value.to(self.device)) for value in made.values()]

    @property
    def further(self) -> dict[str, Tensor]:
        """The parameters of the term, by name."""
        return dict(zip(self.names, self.parameters[4:], strict=True))

    def seen(self, kept: Tensor, values: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The codes that the term reads; a control may replace them."""
        del step
        return kept, values

    def loss(self, x: Tensor, step: int, *, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error summed over the width plus the auxiliary loss; in a sequential run one part at a time."""
        alone = self.settings.interaction == "sequential" and step < FIRST * self.n_steps
        frozen = self.settings.interaction == "sequential" and not alone
        encoder, bias, decoder, center = (p.detach() if frozen else p for p in self.parameters[:4])
        z = torch.addmm(bias, x - center, encoder.t())
        kept = (z.detach() * decoder.detach().norm(dim=1)).topk(self.k(step), dim=1, sorted=False).indices
        values = z.gather(1, kept).relu().to(x.dtype)
        decoded = functional.embedding_bag(kept, decoder, per_sample_weights=values, mode="sum") + center
        if not alone:
            decoded = decoded + self.term(*self.seen(kept, values, step), decoder)
        loss = (decoded - x).square().sum(1).mean()
        if len(dead) and self.aux and not frozen:
            parameters = (encoder, bias, decoder, center)
            loss = loss + self.aux * auxiliary_loss(parameters, x, decoded, dead=dead)
        counts = torch.bincount(kept.reshape(-1), weights=(values > 0).reshape(-1).float(), minlength=len(decoder))
        return loss, decoded, counts

    def term(self, kept: Tensor, values: Tensor, decoder: Tensor) -> Tensor:
        """What the interaction and the further linear term add (n, d)."""
        there, s = self.further, self.settings
        out = values.new_zeros(len(values), self.d)
        if "V" in there:
            out = out + head(pair_sums(kept, values, there["V"]), there, dropout=s.dropout, training=True)
        if "L" in there:  # the strongest in units of the stream, which is how they are compared afterwards
            size = values.detach() * decoder.detach().norm(dim=1)[kept]
            best = size.topk(min(s.linear_top, kept.shape[1]), dim=1).indices
            strong, weights = kept.gather(1, best), values.gather(1, best)
            out = out + functional.embedding_bag(strong, there["L"], per_sample_weights=weights, mode="sum")
        return out

    def parts(self) -> list[Part]:
        """What belongs to features, the rows of V and L included."""
        encoder, bias, decoder = self.parameters[:3]
        own = [Part(encoder, 0, None), Part(bias, 0, 0.0), Part(decoder, 0, None)]
        return own + [Part(p, 0, 0.0) for name, p in self.further.items() if name in ("V", "L")]

    def rows(self) -> Rows:
        """The plain part."""
        return Rows(*self.parameters[:4])

    def learned(self, hook: str, mean: Tensor, scale: float) -> Dictionary:
        """Folded: raw activations in, decoder rows of length 1; every f_j is multiplied by n_j = scale |W_dec[j]|."""
        encoder, bias, decoder, center = (p.detach() for p in self.parameters[:4])
        unknown = torch.full_like(bias, float("nan"))
        plain = fold(Dictionary(hook, "topk", encoder, bias, decoder, center, unknown, self.settings.k), mean, scale)
        n = scale * self.parameters[2].detach().double().norm(dim=1).clamp(min=ZERO)
        there = {name: value.detach().double() for name, value in self.further.items()}
        made = dict(there)
        if "V" in there:
            made |= {"V": there["V"] / n[:, None], "M": there["M"] * scale}
        if "L" in there:
            made["L"] = there["L"] * scale / n[:, None]
        facts = {"linear_top": self.settings.linear_top, "interaction": self.settings.interaction}
        parts = {name: value.float().contiguous() for name, value in made.items()}
        return replace(plain, kind="interaction", parts=parts, metadata={**plain.metadata, **facts})


class PermutedLearner(InteractionLearner):
    """Control: the term reads the codes of another row, so it can learn nothing about products in this one."""

    def seen(self, kept: Tensor, values: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The codes of a random other row of the batch."""
        draws = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        order = torch.randperm(len(kept), generator=draws).to(kept.device)
        return kept[order], values[order]


# --- what the term has learned --------------------------------------------------------------------------------------


def pair_strengths(
    dictionary: Dictionary, codes: sparse.csr_matrix, *, top: int = 100, least: int = 20
) -> pd.DataFrame:
    r"""Pairs of features by the strength of their product in the reconstruction.

    w_ij = \|(v_i * v_j) M\| E[f_i f_j], in units of the stream.

    Parameters
    ----------
    dictionary : of kind `interaction`, with a linear head
    codes : activations on text, CSR (n, n_features)
    top : number of pairs
    least : rows in which both features must be active

    Returns
    -------
    DataFrame with `first`, `second`, `strength`, `mean_product`, `n_rows`; the strongest first

    Notes
    -----
    Candidates for a test of integration, on other items than those behind `codes`: a pair may be strong because the
    features are often active together.

    Raises
    ------
    ModelError
        If the dictionary has no interaction term, or its head is not linear, so that pairs have no strength of their
        own.

    Examples
    --------
    >>> from neurosae.dictionary.kinds import Dictionary
    >>> eye, zeros = torch.eye(3), torch.zeros(3)
    >>> parts = {"V": torch.tensor([[1.0], [2.0], [0.0]]), "M": torch.tensor([[3.0, 0.0, 4.0]])}
    >>> made = Dictionary("h", "interaction", eye, zeros, eye, zeros, zeros, 2, parts=parts)
    >>> codes = sparse.csr_matrix([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    >>> pair_strengths(made, codes, least=1).iloc[0].tolist()
    [0.0, 1.0, 5.0, 0.5, 1.0]
    """
    V, M = _factors(dictionary)
    if "H" in dictionary.parts:
        raise ModelError("pairs have a strength of their own only behind a linear head; this dictionary has an mlp.")
    active = codes.copy()
    active.data = np.ones_like(active.data)
    together, products = sparse.triu(active.T @ active, k=1).tocoo(), sparse.csr_matrix(codes.T @ codes)
    kept = together.data >= least
    first, second = together.row[kept].astype(np.int64), together.col[kept].astype(np.int64)
    n = codes.shape[0]  # pyright: ignore[reportOptionalSubscript]
    mean = np.asarray(products[first, second]).ravel() / n if len(first) else np.zeros(0)
    size = np.concatenate(
        [np.zeros(0), *(np.linalg.norm((V[first[a : a + PAIRS]] * V[second[a : a + PAIRS]]) @ M, axis=1)
                        for a in range(0, len(first), PAIRS))]
    )  # fmt: skip
    table = pd.DataFrame(
        {"first": first, "second": second, "strength": size * mean, "mean_product": mean,
         "n_rows": together.data[kept].astype(np.int64)}
    )  # fmt: skip
    order = table.sort_values(["strength", "first", "second"], ascending=[False, True, True])
    return order.head(top).reset_index(drop=True)


def factor_norms(dictionary: Dictionary) -> tuple[np.ndarray, pd.DataFrame]:
    """Squared norm |v_i|^2 of every feature (n_features,), and the histogram of cosines between the rows of V.

    Examples
    --------
    >>> from neurosae.dictionary.kinds import Dictionary
    >>> eye, zeros = torch.eye(2), torch.zeros(2)
    >>> parts = {"V": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "M": torch.eye(2)}
    >>> norms, histogram = factor_norms(Dictionary("h", "interaction", eye, zeros, eye, zeros, zeros, 1, parts=parts))
    >>> norms.tolist(), int(histogram["pairs"].sum())
    ([25.0, 1.0], 1)
    """
    V, _ = _factors(dictionary)
    norms = np.square(V).sum(axis=1)
    unit = V / np.sqrt(np.maximum(norms, ZERO))[:, None]
    counts = np.zeros(len(BINS) - 1, dtype=np.int64)
    for start in range(0, len(V), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        later = np.arange(len(V)) > np.arange(start, min(start + 1024, len(V)))[:, None]
        counts += np.histogram(np.clip(cosines[later], -1, 1), bins=BINS)[0]
    return norms, pd.DataFrame({"low": BINS[:-1], "high": BINS[1:], "pairs": counts})


def _factors(dictionary: Dictionary) -> tuple[np.ndarray, np.ndarray]:
    if "V" not in dictionary.parts:
        raise ModelError(f"a dictionary of kind '{dictionary.kind}' has no interaction term; train one with a rank.")
    return dictionary.parts["V"].cpu().numpy(), dictionary.parts["M"].cpu().numpy()
