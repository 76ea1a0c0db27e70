"""A dictionary: an encoder into sparse non-negative features and a linear decoder, and its folder in sae-lens format.

Folders of the plain architectures (topk, jumprelu, standard) are read here, without the 8 seconds that `import
sae_lens` takes; every other kind is handed to sae-lens. On disk: `cfg.json`, `sae_weights.safetensors` (both readable
by `SAE.load_from_disk`), `card.json` (what was measured) and `density.npy` (share of reference tokens per feature).
"""

from __future__ import annotations

import importlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from scipy import sparse
from torch import Tensor

from neurosae.dictionary.topk import threshold_codes, topk_codes
from neurosae.errors import ModelError
from neurosae.spec.files import atomic_path, content_hash

CONFIG, WEIGHTS, CARD, DENSITY = "cfg.json", "sae_weights.safetensors", "card.json", "density.npy"
PLAIN = {"topk", "jumprelu", "standard"}
TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
CELLS = 1 << 24  # pre-activations held at once while encoding: 64 MB


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Encoder, decoder and what is known about them.

    With z = W_enc x + b_enc (after subtracting b_dec from x where the dictionary does so), features are
    f = z at the k largest positive z (`topk`), at z above the feature's threshold (`jumprelu`), or at z > 0
    (`standard`); x^ = b_dec + f W_dec.

    Attributes
    ----------
    hook : hook point that it was trained at, or is used at
    kind : `topk`, `jumprelu`, `standard`, or `sae_lens` for an architecture that only sae-lens knows
    W_enc, W_dec : float32 (n_features, d)
    b_enc, threshold : float32 (n_features,); the threshold is nan for topk, where it depends on the token
    b_dec : float32 (d,)
    k : active features per token, for topk
    subtracts : whether b_dec is subtracted from x before encoding
    density : share of reference tokens on which each feature is active, None if unknown
    metadata : `cfg.metadata` of the folder
    card : what was measured when it was trained
    hash : SHA-256 of weights and settings
    fit : how well it fits the model that it was loaded for; empty before that
    sae : the sae-lens object behind the kind `sae_lens`

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

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.W_dec.shape[0]

    @property
    def d_in(self) -> int:
        """Width of the activations that it reads."""
        return self.W_dec.shape[1]

    @cached_property
    def decoder_norm(self) -> np.ndarray:
        """Length of each decoder row, float32 (n_features,): activation x norm is in units of the stream."""
        return self.W_dec.norm(dim=1).cpu().numpy()

    @cached_property
    def origin(self) -> np.ndarray:
        """Pre-activation of each feature at x = 0, float32 (n_features,)."""
        zero = torch.zeros(1, self.d_in, device=self.W_dec.device)
        return self.preactivations(zero)[0].cpu().numpy()

    def preactivations(self, x: Tensor | np.ndarray, features: Sequence[int] | None = None) -> Tensor:
        """Pre-activations z (n, features), before the nonlinearity.

        Parameters
        ----------
        x : activations (n, d)
        features : feature indices; all without
        """
        x = self._input(x)
        if self.subtracts:
            x = x - self.b_dec
        if features is None:
            return torch.addmm(self.b_enc, x, self.W_enc.t())
        chosen = torch.as_tensor(np.asarray(features, dtype=np.int64), device=self.W_enc.device)
        return torch.addmm(self.b_enc[chosen], x, self.W_enc[chosen].t())

    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray) -> sparse.csr_matrix:
        """Activations of all features, CSR float32 (n, n_features); never dense for more than a chunk of rows."""
        x = self._input(x)
        rows = max(1, CELLS // self.n_features)
        parts = [self._codes(x[a : a + rows]) for a in range(0, len(x), rows)]
        if not parts:
            return sparse.csr_matrix((0, self.n_features), dtype=np.float32)
        return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    def _codes(self, x: Tensor) -> sparse.csr_matrix:
        if self.kind == "sae_lens":
            return threshold_codes(self.sae.encode(x).float(), x.new_zeros(()))
        z = self.preactivations(x)
        return topk_codes(z, self.k) if self.k is not None else threshold_codes(z, self.threshold)

    @torch.no_grad()
    def decode(self, features: sparse.csr_matrix | Tensor) -> Tensor:
        """Reconstruction (n, d) of activations given as CSR or as a dense tensor."""
        if isinstance(features, Tensor):
            dense = features.to(self.W_dec.device, torch.float32)
            return self.sae.decode(dense).float() if self.kind == "sae_lens" else dense @ self.W_dec + self.b_dec
        if self.kind == "sae_lens" or self.W_dec.device.type != "cpu":
            return self.decode(torch.as_tensor(features.toarray()))
        return torch.as_tensor(features @ self.W_dec.numpy()) + self.b_dec

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


def neuron_dictionary(hook: str, d: int, *, device: str = "cpu") -> Dictionary:
    """The raw stream as 2d non-negative features: f_j = max(x_j, 0) and f_(d+j) = max(-x_j, 0); exact."""
    eye = torch.eye(d, device=device)
    both, zeros = torch.cat([eye, -eye]), torch.zeros(2 * d, device=device)
    digest = content_hash("neurons", d)
    facts = {"hook_name": hook, "partner": "feature j and j + d are the two signs of dimension j"}
    return Dictionary(hook, "standard", both, zeros, both, zeros[:d], zeros, metadata=facts, hash=digest)


def read_folder(folder: str | Path, *, device: str = "cpu") -> Dictionary:
    """Read a dictionary in sae-lens format.

    Raises
    ------
    ModelError
        In one sentence, if the folder is missing, incomplete or broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"dictionary folder {folder} does not exist; give a folder with {CONFIG} and {WEIGHTS}.")
    config = _read_json(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; copy the whole dictionary there.")
    try:
        state = safetensors.torch.load(weights.read_bytes())
    except Exception as error:  # the Rust side raises its own class and OSError
        raise ModelError(f"{weights} is broken ({first_line(error)}); copy the dictionary again.") from None
    card = _read_json(folder / CARD) if (folder / CARD).is_file() else {}
    density = np.load(folder / DENSITY, allow_pickle=False) if (folder / DENSITY).is_file() else None
    settings = {name: config.get(name) for name in ("architecture", "k", "apply_b_dec_to_input", "d_in", "d_sae")}
    digest = content_hash(weights.read_bytes(), settings)
    if _is_plain(config, state):
        made = _plain(config, {name: value.float().to(device) for name, value in state.items()}, str(folder))
    else:
        made = foreign(load_with_sae_lens(folder, device))
    return replace(made, density=density, card=card, hash=digest)


def _is_plain(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    return (
        config.get("architecture") in PLAIN
        and config.get("normalize_activations") == "none"
        and "sae_lens_version" in (config.get("metadata") or {})  # older folders have other keys
        and set(state) <= TENSORS
    )


def _plain(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> Dictionary:
    kind = config["architecture"]
    wanted = TENSORS if kind == "jumprelu" else TENSORS - {"threshold"}
    if lost := sorted(wanted - set(state)):
        raise ModelError(f"{where}: {WEIGHTS} lacks {', '.join(lost)}; copy the dictionary again.")
    m, d = state["W_dec"].shape
    shapes = {"W_enc": (d, m), "b_enc": (m,), "b_dec": (d,), "threshold": (m,)}
    if wrong := [n for n in wanted - {"W_dec"} if tuple(state[n].shape) != shapes[n]]:
        raise ModelError(f"{where}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, not {shapes[wrong[0]]}.")
    encoder, decoder = state["W_enc"].t().contiguous(), state["W_dec"].contiguous()
    bias, metadata = state["b_enc"], dict(config["metadata"])
    k = int(config["k"]) if kind == "topk" else None
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norm = decoder.norm(dim=1).clamp(min=1e-8)  # selection by z |W_dec|: folded, the same codes by plain top-k
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    fill = torch.full((m,), float("nan"), device=bias.device) if kind == "topk" else torch.zeros_like(bias)
    return Dictionary(
        str(metadata.get("hook_name") or ""), kind, encoder, bias, decoder, state["b_dec"],
        state.get("threshold", fill), k, bool(config.get("apply_b_dec_to_input", True)), metadata=metadata,
    )  # fmt: skip


def foreign(sae: Any) -> Dictionary:
    """Wrap a sae-lens object of any architecture; its own encode and decode are used."""
    sae.turn_off_forward_pass_hook_z_reshaping()  # hooks hand over flattened heads
    metadata = sae.cfg.metadata.to_dict()
    m, d = sae.cfg.d_sae, sae.cfg.d_in
    decoder = sae.W_dec.detach().float()
    zeros, unknown = decoder.new_zeros(m), decoder.new_full((m,), float("nan"))
    encoder = sae.W_enc.detach().float().t() if getattr(sae, "W_enc", None) is not None else decoder
    bias = sae.b_enc.detach().float() if getattr(sae, "b_enc", None) is not None else zeros
    if tuple(decoder.shape) != (m, d):
        raise ModelError(
            f"decoder of shape {tuple(decoder.shape)} for {m} features of width {d}; this is no dictionary."
        )
    threshold = sae.threshold.detach().float() if getattr(sae, "threshold", None) is not None else unknown
    state = {name: value.detach().float().cpu().numpy().tobytes() for name, value in sorted(sae.state_dict().items())}
    digest = content_hash(sae.cfg.architecture(), *state, *state.values())
    return Dictionary(
        str(metadata.get("hook_name") or ""), "sae_lens", encoder, bias, decoder, sae.b_dec.detach().float(),
        threshold, None, bool(sae.cfg.apply_b_dec_to_input), metadata=metadata, hash=digest, sae=sae,
    )  # fmt: skip


def load_with_sae_lens(folder: str | Path, device: str = "cpu") -> Any:
    """The sae-lens object of a folder."""
    try:
        return import_sae_lens().SAE.load_from_disk(str(folder), device=device)
    except Exception as error:  # KeyError, ValueError, TypeError, RuntimeError: whatever the file provokes
        raise ModelError(
            f"{folder} cannot be read as a dictionary ({first_line(error)}); is it in sae-lens format?"
        ) from error


def import_sae_lens() -> Any:
    """Import sae-lens (8 s) when it is needed, without its announcements; it takes nothing from the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its imports of names that transformer-lens renamed
        return importlib.import_module("sae_lens")


def write_folder(
    folder: str | Path, dictionary: Dictionary, *, dtype: str = "float32", extra: Mapping[str, str] | None = None
) -> None:
    """Write a plain dictionary as a sae-lens folder, whole or not at all.

    Parameters
    ----------
    folder : replaced if it exists
    dictionary : topk, jumprelu or standard
    dtype : of the two matrices on disk, `float32` or `float16` (half the size; read back as float32)
    extra : further text files, name -> content
    """
    config, state = folder_content(dictionary, dtype)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(state))
        (temporary / CARD).write_text(json.dumps(dictionary.card, indent=1), encoding="utf-8")
        for name, content in (extra or {}).items():
            (temporary / name).write_text(content, encoding="utf-8")
        if dictionary.density is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(dictionary.density, dtype=np.float32))
            (temporary / DENSITY).write_bytes(buffer.getvalue())


def as_stored(dictionary: Dictionary, dtype: str) -> Dictionary:
    """The dictionary as it will be after a round trip through the disk."""
    if dtype != "float16":
        return dictionary
    return replace(dictionary, W_enc=dictionary.W_enc.half().float(), W_dec=dictionary.W_dec.half().float())


def folder_content(dictionary: Dictionary, dtype: str = "float32") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`cfg.json` and the tensors of a plain dictionary, as sae-lens wants them."""
    if dictionary.kind not in PLAIN:
        raise ModelError(f"a dictionary of kind '{dictionary.kind}' is saved with sae-lens, not here.")
    config = {
        "architecture": dictionary.kind,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # without this key sae-lens takes the folder for one of its versions before 6 and drops the metadata
        "metadata": {"sae_lens_version": version("sae-lens"), **dictionary.metadata},
    }
    if dictionary.kind == "topk":
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    matrix = torch.float16 if dtype == "float16" else torch.float32
    state = {
        "W_enc": dictionary.W_enc.t().cpu().to(matrix).contiguous(),
        "b_enc": dictionary.b_enc.cpu().contiguous(),
        "W_dec": dictionary.W_dec.cpu().to(matrix).contiguous(),
        "b_dec": dictionary.b_dec.cpu().contiguous(),
    }
    if dictionary.kind == "jumprelu":
        state["threshold"] = dictionary.threshold.cpu().contiguous()
    return config, state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; copy the whole dictionary there.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is broken ({first_line(error)}); copy the dictionary again.") from None
    if not isinstance(record, dict):
        raise ModelError(f"{path} holds no settings of a dictionary; copy the dictionary again.")
    return record


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, short enough for a message of ours."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:160]
