"""A dictionary on disk, in sae-lens format, and dictionaries that only sae-lens knows.

Folders of the kinds in `KINDS` are read here, without the 8 seconds that `import sae_lens` takes; every other one is
handed to sae-lens. On disk: `cfg.json`, `sae_weights.safetensors` (both readable by `SAE.load_from_disk`), `card.json`
(what was measured) and `density.npy` (share of reference tokens per feature). What sae-lens has no place for lies
beside it: `metadata.neurosae_encoder` names the kind, a further safetensors file holds its other tensors.
"""

from __future__ import annotations

import importlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from neurosae.dictionary.kinds import HALVES, KINDS, Dictionary, neuron_dictionary
from neurosae.errors import ModelError, unknown
from neurosae.spec.files import atomic_path, content_hash

CONFIG, WEIGHTS, CARD, DENSITY = "cfg.json", "sae_weights.safetensors", "card.json", "density.npy"
ENCODER = "neurosae_encoder"  # entry of the metadata: the kind, where it is not the architecture
PLAIN = {"topk", "jumprelu", "standard"}
GATED = {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}

__all__ = [
    "CARD", "CONFIG", "DENSITY", "WEIGHTS", "Dictionary", "as_stored", "first_line", "folder_content", "foreign",
    "import_sae_lens", "load_with_sae_lens", "neuron_dictionary", "read_folder", "write_folder",
]  # fmt: skip


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
    raw, state = _read_tensors(folder / WEIGHTS)
    kind = _kind(config, state)
    parts = _read_tensors(folder / KINDS[kind].parts) if kind and KINDS[kind].parts else (b"", {})
    card = _read_json(folder / CARD) if (folder / CARD).is_file() else {}
    density = np.load(folder / DENSITY, allow_pickle=False) if (folder / DENSITY).is_file() else None
    settings = _settings(config)
    special = [kind, parts[0], config.get("max_iterations")] if kind and kind not in PLAIN else []
    digest = content_hash(raw, settings, *special)
    if kind:
        here = {name: value.float().to(device) for name, value in state.items()}
        made = _plain(kind, config, here, where=str(folder))
        made = replace(made, parts={name: value.float().to(device) for name, value in parts[1].items()})
    else:
        made = foreign(load_with_sae_lens(folder, device))
    return replace(made, density=density, card=card, hash=digest)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that codes may depend on, for the hash: all but what is off, and what only stores."""
    always = ("architecture", "k", "apply_b_dec_to_input", "d_in", "d_sae")
    never = {*always, "metadata", "dtype", "device", "reshape_activations"}
    off = (None, False, "none")
    others = {name: value for name, value in config.items() if name not in never and value not in off}
    return {name: config.get(name) for name in always} | others


def _read_tensors(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; copy the whole dictionary there.")
    try:
        raw = path.read_bytes()
        return raw, safetensors.torch.load(raw)
    except Exception as error:  # the Rust side raises its own class and OSError
        raise ModelError(f"{path} is broken ({first_line(error)}); copy the dictionary again.") from None


def _kind(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
    """The kind of a folder that can be read without sae-lens; None for any other."""
    metadata, architecture = config.get("metadata") or {}, config.get("architecture")
    if config.get("normalize_activations") != "none" or "sae_lens_version" not in metadata:  # older: other keys
        return None
    if (own := metadata.get(ENCODER)) is not None:
        if own not in KINDS or KINDS[own].architecture != architecture:
            known = [name for name in KINDS if name not in PLAIN and KINDS[name].architecture == architecture]
            raise ModelError(unknown(f"{ENCODER} of {architecture}", str(own), known))
        return str(own)
    if architecture == "gated" and set(state) == GATED:
        return "jumprelu"
    if architecture == "abstopk" and set(state) == set(KINDS["topk"].weights):
        return "topk"
    return architecture if architecture in PLAIN and set(state) <= set(KINDS["jumprelu"].weights) else None


def _plain(kind: str, config: Mapping[str, Any], state: dict[str, Tensor], *, where: str) -> Dictionary:
    metadata = dict(config["metadata"])
    if config.get("architecture") == "gated":
        state = _ungated(state)
    _check_tensors(kind, state, where)
    k = _check_settings(kind, config, state, where=where)
    decoder = state["W_dec"].contiguous()
    encoder = state["W_enc"].t().contiguous() if "W_enc" in state else decoder
    bias = state.get("b_enc", decoder.new_zeros(len(decoder)))
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norm = decoder.norm(dim=1).clamp(min=1e-8)  # selection by z |W_dec|: folded, the same codes by plain top-k
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    if config.get("architecture") == "abstopk":  # signed: the k largest by size are the k largest of both halves
        encoder, bias, decoder = (torch.cat([one, -one]) for one in (encoder, bias, decoder))
        metadata["partner"] = HALVES
    fill = torch.zeros_like(bias) if kind == "standard" else torch.full_like(bias, float("nan"))
    return Dictionary(
        str(metadata.get("hook_name") or ""), kind, encoder, bias, decoder, state["b_dec"],
        state.get("threshold", fill), k,
        bool(config.get("apply_b_dec_to_input", True)), metadata=metadata,
    )  # fmt: skip


def _check_tensors(kind: str, state: Mapping[str, Tensor], where: str) -> None:
    wanted = KINDS[kind].weights
    if lost := sorted(set(wanted) - set(state)):
        raise ModelError(f"{where}: {WEIGHTS} lacks {', '.join(lost)}; copy the dictionary again.")
    m, d = state["W_dec"].shape
    shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,), "threshold": (m,)}
    if wrong := [n for n in wanted if tuple(state[n].shape) != shapes[n]]:
        raise ModelError(f"{where}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, not {shapes[wrong[0]]}.")
    for name in wanted:  # a threshold of infinity is a feature that was switched off
        if state[name].isnan().any() or (name != "threshold" and state[name].isinf().any()):
            raise ModelError(f"{where}: {name} holds values that are not finite; copy or train the dictionary again.")


def _check_settings(kind: str, config: Mapping[str, Any], state: Mapping[str, Tensor], *, where: str) -> int | None:
    """The number of active features, None where the kind has none; refused where settings and tensors disagree."""
    for name, size in zip(("d_sae", "d_in"), state["W_dec"].shape, strict=True):
        if config.get(name, size) != size:
            raise ModelError(
                f"{where}: {CONFIG} says {name} = {config[name]}, but W_dec has {size}; copy the dictionary again."
            )
    k = config.get("k", config["metadata"].get("k"))
    if kind in ("jumprelu", "standard") or (k is None and kind != "topk"):
        return None
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(state["W_dec"]):
        raise ModelError(
            f"{where}: k in {CONFIG} is {k}, but must be the number of active features, 1 to {len(state['W_dec'])}."
        )
    return k


def _ungated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A gated encoder as one with thresholds; its two paths share their directions, so nothing is lost.

    Active where u + b_gate > 0, with value relu(u exp(r) + b_mag): where z = u exp(r) + b_mag exceeds
    b_mag - b_gate exp(r), and 0.
    """
    scale = state["r_mag"].exp()
    threshold = (state["b_mag"] - state["b_gate"] * scale).clamp(min=0)
    kept = {name: state[name] for name in ("W_dec", "b_dec")}
    return kept | {"W_enc": state["W_enc"] * scale, "b_enc": state["b_mag"], "threshold": threshold}


def from_state(config: Mapping[str, Any], state: Mapping[str, Tensor], *, where: str) -> Dictionary | None:
    """A dictionary from settings and tensors as sae-lens names them; None where only sae-lens can compute its codes."""
    kind = _kind(config, state)
    if kind is None:
        return None
    tensors = {name: value.detach().float() for name, value in state.items()}
    raw = [value.cpu().contiguous().numpy().tobytes() for _, value in sorted(tensors.items())]
    settings = _settings(config)
    return replace(_plain(kind, config, tensors, where=where), hash=content_hash(*raw, settings))


def foreign(sae: Any) -> Dictionary:
    """A sae-lens object of any architecture; what is no kind of ours keeps its own encode and decode."""
    _refuse_foreign(sae.cfg)
    sae = sae.to(dtype=torch.float32)  # what was saved in half precision is computed in whole, like our own kinds
    sae.turn_off_forward_pass_hook_z_reshaping()  # hooks hand over flattened heads
    config = {**sae.cfg.to_dict(), "architecture": sae.cfg.architecture()}
    if (made := from_state(config, sae.state_dict(), where="the dictionary")) is not None:
        return made
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
    digest = content_hash(_settings(config), *state, *state.values())
    return Dictionary(
        str(metadata.get("hook_name") or ""), "sae_lens", encoder, bias, decoder, sae.b_dec.detach().float(),
        threshold, None, bool(sae.cfg.apply_b_dec_to_input), metadata=metadata, hash=digest, sae=sae,
    )  # fmt: skip


def _refuse_foreign(config: Any) -> None:
    """What sae-lens reads, but cannot stand for the activations at one hook point, token by token."""
    kind, scaling = config.architecture(), getattr(config, "normalize_activations", "none")
    if "transcoder" in kind:
        raise ModelError(
            f"this is a {kind}: it predicts the output of a layer from its input and reconstructs nothing at its hook "
            "point; use a dictionary of the residual stream, of attn_out or of mlp_out."
        )
    if kind == "temporal":
        raise ModelError(
            "this is a temporal dictionary, whose code of a token depends on all tokens before it; here every token is "
            "encoded alone, so use another architecture."
        )
    if scaling in ("expected_average_only_in", "covariance_whitening"):
        raise ModelError(
            f"its inputs must be scaled first (normalize_activations: {scaling}), and the folder does not say by how "
            "much; fold the scaling into the weights with sae-lens (fold_activation_norm_scaling_factor) and save it."
        )


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
    """Write a dictionary of any kind of ours as a sae-lens folder, whole or not at all.

    Parameters
    ----------
    folder : replaced if it exists
    dictionary : of any kind but `sae_lens`
    dtype : of the two matrices on disk, `float32` or `float16` (half the size; read back as float32)
    extra : further text files, name -> content
    """
    config, state = folder_content(dictionary, dtype)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(state))
        if name := KINDS[dictionary.kind].parts:
            parts = {n: value.cpu().contiguous() for n, value in dictionary.parts.items()}
            (temporary / name).write_bytes(safetensors.torch.save(parts))
        (temporary / CARD).write_text(json.dumps(dictionary.card, indent=1), encoding="utf-8")
        for file, content in (extra or {}).items():
            (temporary / file).write_text(content, encoding="utf-8")
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
    """`cfg.json` and the tensors of a dictionary, as sae-lens wants them."""
    kind = KINDS[dictionary.kind]
    if not kind.architecture:
        raise ModelError(f"a dictionary of kind '{dictionary.kind}' is saved with sae-lens, not here.")
    own = {} if dictionary.kind in PLAIN else {ENCODER: dictionary.kind}
    own |= {"k": dictionary.k} if kind.architecture == "matching_pursuit" and dictionary.k else {}
    own |= {"co_adapted": True} if dictionary.kind == "interaction" else {}
    config = {
        "architecture": kind.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # without this key sae-lens takes the folder for one of its versions before 6 and drops the metadata
        "metadata": {"sae_lens_version": version("sae-lens"), **dictionary.metadata, **own},
    }
    config |= _settings_of(kind.architecture, dictionary.k)
    matrix = torch.float16 if dtype == "float16" else torch.float32
    state = {name: getattr(dictionary, name).cpu().contiguous() for name in kind.weights}
    if "W_enc" in state:
        state["W_enc"] = state["W_enc"].t().to(matrix).contiguous()
    return config, state | {"W_dec": state["W_dec"].to(matrix)}


def _settings_of(architecture: str, k: int | None) -> dict[str, Any]:
    """What only one architecture of sae-lens has."""
    if architecture == "topk":
        return {"k": k, "rescale_acts_by_decoder_norm": False}
    if architecture == "matching_pursuit":
        return {"residual_threshold": 0.0, "max_iterations": k, "stop_on_duplicate_support": False}
    return {}


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
