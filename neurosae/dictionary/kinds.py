"""A dictionary: an encoder into sparse non-negative features and a decoder, behind one interface for every kind.

What a kind does and how it is stored stands in one table, `KINDS`:

| kind | features f | decoder |
|---|---|---|
| `topk` | the k largest positive z | linear |
| `jumprelu` | z above the feature's threshold | linear |
| `standard` | positive z | linear |
| `omp` | orthogonal matching pursuit on +/- atoms | linear |
| `nnls` | non-negative least squares on [x+, x-] | linear |
| `interaction` | as `topk` | linear plus products of pairs of features |
| `sae_lens` | whatever sae-lens computes | that of sae-lens |

with z = W_enc x + b_enc (after subtracting b_dec from x where the dictionary does so).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from neurosae.dictionary.encode import codes_threshold, codes_topk
from neurosae.dictionary.products import interaction_term
from neurosae.dictionary.pursuit import matching_pursuit, nonnegative_codes
from neurosae.dictionary.screen import Screen, prepare_screen
from neurosae.dictionary.topk import threshold_codes, topk_codes
from neurosae.errors import ModelError
from neurosae.spec.files import content_hash

CELLS = 1 << 24  # pre-activations held at once while encoding: 64 MB
HALVES = "halves"  # metadata["partner"] of a dictionary whose features j and j + m/2 are the two signs of one value


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Encoder, decoder and what is known about them.

    Attributes
    ----------
    hook : hook point that it was trained at, or is used at
    kind : one of `KINDS`
    W_enc, W_dec : float32 (n_features, d)
    b_enc, threshold : float32 (n_features,); the threshold is nan for topk, where it depends on the token
    b_dec : float32 (d,)
    k : active features per token, for topk, omp and interaction
    subtracts : whether b_dec is subtracted from x before encoding
    density : share of reference tokens on which each feature is active, None if unknown
    metadata : `cfg.metadata` of the folder
    card : what was measured when it was trained
    hash : SHA-256 of weights and settings
    fit : how well it fits the model that it was loaded for; empty before that
    sae : the sae-lens object behind the kind `sae_lens`
    parts : further tensors of the kind: `P` of nnls; `V`, `M` … of interaction

    Examples
    --------
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 2)
    >>> codes = raw.encode(torch.tensor([[1.5, -2.0]]))
    >>> codes.toarray().tolist(), raw.decode(codes).tolist()
    ([[1.5, 0.0, 0.0, 2.0]], [[1.5, -2.0]])
    """

    hook: str
    kind: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    k: int | None = None
    subtracts: bool = True
    density: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)
    sae: Any = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.W_dec.shape[0]

    @property
    def d_in(self) -> int:
        """Width of the activations that it reads."""
        return self.W_dec.shape[1]

    @property
    def partner(self) -> np.ndarray | None:
        """For each feature the one that is its negative half, int32 (n_features,); None for other dictionaries."""
        if self.metadata.get("partner") != HALVES:
            return None
        return np.roll(np.arange(self.n_features, dtype=np.int32), self.n_features // 2)

    @cached_property
    def decoder_norm(self) -> np.ndarray:
        """Length of each decoder row, float32 (n_features,): activation x norm is in units of the stream."""
        return self.W_dec.norm(dim=1).cpu().numpy()

    @cached_property
    def origin(self) -> np.ndarray:
        """Pre-activation of each feature at x = 0, float32 (n_features,)."""
        zero = torch.zeros(1, self.d_in, device=self.W_dec.device)
        return self.preactivations(zero)[0].cpu().numpy()

    @cached_property
    def screen(self) -> Screen:
        """The encoder, prepared for encoding on the CPU."""
        return prepare_screen(self.W_enc, self.b_enc)

    def centered(self, x: Tensor) -> Tensor:
        """What the encoder multiplies: x, or x - b_dec."""
        return x - self.b_dec if self.subtracts else x

    def preactivations(self, x: Tensor | np.ndarray, features: Sequence[int] | None = None) -> Tensor:
        """Pre-activations z (n, features), before the nonlinearity.

        Parameters
        ----------
        x : activations (n, d)
        features : feature indices; all without
        """
        x = self.centered(self._input(x))
        if features is None:
            return torch.addmm(self.b_enc, x, self.W_enc.t())
        chosen = torch.as_tensor(np.asarray(features, dtype=np.int64), device=self.W_enc.device)
        return torch.addmm(self.b_enc[chosen], x, self.W_enc[chosen].t())

    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray) -> sparse.csr_matrix:
        """Activations of all features, CSR float32 (n, n_features); never dense for more than a chunk of rows."""
        x, encoder = self._input(x), KINDS[self.kind].encode
        rows = max(1, CELLS // self.n_features)
        parts = [encoder(self, x[a : a + rows]) for a in range(0, len(x), rows)]
        if not parts:
            return sparse.csr_matrix((0, self.n_features), dtype=np.float32)
        return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    @torch.no_grad()
    def decode(self, features: sparse.csr_matrix | Tensor) -> Tensor:
        """Reconstruction (n, d) of activations given as CSR or as a dense tensor."""
        return KINDS[self.kind].decode(self, features)

    def reconstruct(self, x: Tensor | np.ndarray) -> Tensor:
        """Encode and decode (n, d), a chunk of rows at a time."""
        x = self._input(x)
        rows = max(1, CELLS // self.n_features)
        parts = [self.decode(self.encode(x[a : a + rows])) for a in range(0, len(x), rows)]
        return torch.cat(parts) if parts else x

    def _input(self, x: Tensor | np.ndarray) -> Tensor:
        x = torch.as_tensor(x).to(self.W_dec.device, torch.float32)
        if x.shape[-1] != self.d_in:
            raise ModelError(f"the dictionary reads vectors of width {self.d_in}, but these have {x.shape[-1]}.")
        return x


Codes = sparse.csr_matrix | Tensor


# --- encoders -------------------------------------------------------------------------------------------------------


def _largest(made: Dictionary, x: Tensor) -> sparse.csr_matrix:
    assert made.k is not None
    if x.device.type == "cpu":
        return codes_topk(made.centered(x), made.screen, made.k)
    return topk_codes(made.preactivations(x), made.k)


def _above(made: Dictionary, x: Tensor) -> sparse.csr_matrix:
    if x.device.type == "cpu":
        return codes_threshold(made.centered(x), made.screen, made.threshold)
    return threshold_codes(made.preactivations(x), made.threshold)


def _pursued(made: Dictionary, x: Tensor) -> sparse.csr_matrix:
    """A negative coefficient of atom j is a positive one of its partner j + m/2, whose decoder row is the negative."""
    assert made.k is not None
    half = made.n_features // 2
    rows = max(1, CELLS // (made.k * made.d_in + 2 * half))
    out = []
    for start in range(0, len(x), rows):
        found = matching_pursuit(x[start : start + rows] - made.b_dec, made.W_dec[:half], made.k)
        kept = torch.where(found.values < 0, found.kept + half, found.kept)
        dense = x.new_zeros(len(kept), made.n_features).scatter_(1, kept, found.values.abs())
        out.append(threshold_codes(dense, x.new_zeros(())))
    return sparse.csr_matrix(sparse.vstack(out, format="csr"))


def _nonnegative(made: Dictionary, x: Tensor) -> sparse.csr_matrix:
    x = x - made.b_dec
    both = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=1)
    return threshold_codes(nonnegative_codes(both, made.parts["P"]), x.new_zeros(()))


def _by_sae_lens(made: Dictionary, x: Tensor) -> sparse.csr_matrix:
    codes = made.sae.encode(x).float()
    if bool((codes < 0).any()):
        raise ModelError(
            f"{made.hook or 'the dictionary'}: its activations may be negative ({made.sae.cfg.architecture()} with "
            f"normalize_activations: {made.sae.cfg.normalize_activations}), which is read here only without that "
            "normalization; use another dictionary."
        )
    return threshold_codes(codes, x.new_zeros(()))


# --- decoders -------------------------------------------------------------------------------------------------------


def _linear(made: Dictionary, features: Codes) -> Tensor:
    if isinstance(features, Tensor):
        return features.to(made.W_dec.device, torch.float32) @ made.W_dec + made.b_dec
    if made.W_dec.device.type != "cpu":
        return _linear(made, torch.as_tensor(features.toarray()))
    return torch.as_tensor(features @ made.W_dec.numpy()) + made.b_dec


def _with_products(made: Dictionary, features: Codes) -> Tensor:
    codes = sparse.csr_matrix(features.cpu().numpy()) if isinstance(features, Tensor) else features
    term = interaction_term(codes, made.parts, n_top=int(made.metadata.get("linear_top") or 0))
    return _linear(made, features) + term.to(made.W_dec.device)


def _decoded_by_sae_lens(made: Dictionary, features: Codes) -> Tensor:
    dense = features if isinstance(features, Tensor) else torch.as_tensor(features.toarray())
    return made.sae.decode(dense.to(made.W_dec.device, torch.float32)).float()


class Kind(NamedTuple):
    """What a kind does, and how its folder looks.

    Attributes
    ----------
    encode, decode : (dictionary, x) -> CSR;  (dictionary, CSR or tensor) -> x^
    architecture : what sae-lens takes the folder for; empty for what is not written here
    weights : tensors of the weights file
    parts : file of the further tensors, which sae-lens does not look at; empty where there are none
    """

    encode: Callable[[Dictionary, Tensor], sparse.csr_matrix]
    decode: Callable[[Dictionary, Codes], Tensor]
    architecture: str
    weights: tuple[str, ...]
    parts: str = ""


FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")
KINDS: dict[str, Kind] = {
    "topk": Kind(_largest, _linear, "topk", FOUR),
    "jumprelu": Kind(_above, _linear, "jumprelu", (*FOUR, "threshold")),
    "standard": Kind(_above, _linear, "standard", FOUR),
    "omp": Kind(_pursued, _linear, "matching_pursuit", ("W_dec", "b_dec")),
    "nnls": Kind(_nonnegative, _linear, "matching_pursuit", ("W_dec", "b_dec"), "nonnegative.safetensors"),
    "interaction": Kind(_largest, _with_products, "topk", FOUR, "interaction.safetensors"),
    "sae_lens": Kind(_by_sae_lens, _decoded_by_sae_lens, "", ()),
}


def neuron_dictionary(hook: str, d: int, *, device: str = "cpu") -> Dictionary:
    """The raw stream as 2d non-negative features: f_j = max(x_j, 0) and f_(d+j) = max(-x_j, 0); exact."""
    eye = torch.eye(d, device=device)
    zeros = torch.zeros(d, device=device)
    card = {"decomposition": f"neurons: the {d} coordinates of the hook point, two signs each"}
    return signed_dictionary(hook, eye, eye, center=zeros, digest=content_hash("neurons", d, HALVES), card=card)


def signed_dictionary(
    hook: str, encoder: Tensor, decoder: Tensor, *, center: Tensor, digest: str = "",
    card: Mapping[str, Any] | None = None,
) -> Dictionary:  # fmt: skip
    """A linear decomposition s = A (x - c), x^ = c + s B as non-negative features: both signs of every value.

    Parameters
    ----------
    encoder, decoder : A and B (n, d); feature j is max(s_j, 0), feature j + n is max(-s_j, 0)
    center : c (d,)

    Examples
    --------
    >>> half = signed_dictionary("x", torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), center=torch.zeros(2))
    >>> half.encode(torch.tensor([[5.0, -2.0]])).toarray().tolist(), half.partner.tolist()
    ([[0.0, 2.0]], [1, 0])
    """
    zeros = encoder.new_zeros(2 * len(encoder))
    return Dictionary(
        hook, "standard", torch.cat([encoder, -encoder]), zeros, torch.cat([decoder, -decoder]), center, zeros,
        metadata={"hook_name": hook, "partner": HALVES}, card=card or {}, hash=digest,
    )  # fmt: skip
