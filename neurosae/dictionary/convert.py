"""Dictionaries in the formats of other projects, read from a folder and turned into the settings of sae-lens.

| format | told by | kind |
|---|---|---|
| sae_lens | `cfg.json`, `sae_weights.safetensors` | any |
| gemma_scope | `params.npz` | jumprelu |
| gemma_scope_2 | `params.safetensors`, `config.json` | jumprelu |
| llama_scope | `hyperparams.json`, `checkpoints/final.safetensors` | jumprelu, input scaling folded |
| dictionary_learning | `config.json`, `ae.pt` | standard, gated, topk, batchtopk and its kin, jumprelu |
| sparsify | `cfg.json`, `sae.safetensors` | topk |

The numbers are those that sae-lens makes of the same files after a download, for sparsify those of sparsify itself.
Files of the other formats that it knows (connor_rob_hook_z, deepseek_r1, qwen_scope, goodfire) take their settings from
the name of the repository: they are read as `release:` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from neurosae.dictionary.record import CONFIG, WEIGHTS, Dictionary, first_line, from_state, read_folder
from neurosae.errors import ModelError

__all__ = ["FORMATS", "find_format", "read_dictionary"]

State = dict[str, Tensor]


class Format(NamedTuple):
    """A foreign format: the files that tell it, and what reads them as settings and tensors."""

    files: tuple[str, ...]
    read: Callable[[Path], tuple[dict[str, Any], State]]


def read_dictionary(folder: str | Path, *, device: str = "cpu") -> Dictionary:
    """Read a dictionary from a folder in any known format; the format is told by its files.

    Raises
    ------
    ModelError
        In one sentence: no such folder, an unknown format, a transcoder, a broken or incomplete file.
    """
    folder = Path(folder)
    name = find_format(folder)
    if name == "sae_lens":
        return read_folder(folder, device=device)
    try:
        settings, state = FORMATS[name].read(folder)
    except ModelError:
        raise
    except Exception as error:  # KeyError, ValueError, zipfile's, torch's: whatever a damaged file provokes
        said = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise ModelError(f"{folder} looks like {name}, but cannot be read ({said}); copy it again.") from error
    facts = {"sae_lens_version": version("sae-lens"), "converted_from": name, **settings.pop("metadata", {})}
    m, d = state["W_dec"].shape
    config = {"normalize_activations": "none", "d_in": d, "d_sae": m, **settings, "metadata": facts}
    made = from_state(config, {key: value.to(device) for key, value in state.items()}, where=str(folder))
    if made is None:
        raise ModelError(f"{folder}: {name} with {settings['architecture']} and {', '.join(state)} is not known here.")
    return replace(made, hook=str(facts.get("hook_name") or ""))


def find_format(folder: Path) -> str:
    """The name of a folder's format.

    Raises
    ------
    ModelError
        If the folder is missing or holds no dictionary of a known format.
    """
    if not folder.is_dir():
        raise ModelError(f"dictionary folder {folder} does not exist; give a folder with {CONFIG} and {WEIGHTS}.")
    foreign = [name for name, form in FORMATS.items() if all((folder / file).is_file() for file in form.files)]
    if (folder / WEIGHTS).exists() or not foreign:
        known = "; ".join(f"{name} ({', '.join(form.files)})" for name, form in FORMATS.items())
        if not (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file():
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
            raise ModelError(
                f"{folder} holds {inside}, which is no dictionary; give a folder of sae-lens ({CONFIG}, {WEIGHTS}), or "
                f"of {known}."
            )
        return "sae_lens"
    return foreign[0]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _tensors(path: Path) -> State:
    return {name: value.float() for name, value in safetensors.torch.load(path.read_bytes()).items()}


def _hook_of(folder: Path, sites: Mapping[str, str]) -> dict[str, str]:
    """The hook point, where layer and site stand in the names of the folder and its parents; else nothing is said."""
    words = "/".join(folder.absolute().parts[-4:])
    layer = re.search(r"layers?[._](\d+)", words)
    site = next((hook for word, hook in sites.items() if re.search(word, words)), None)
    return {"hook_name": f"blocks.{layer[1]}.{site}"} if layer and site else {}


def _gemma_scope(folder: Path) -> tuple[dict[str, Any], State]:
    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        state = {name.replace("w_", "W_"): torch.from_numpy(arrays[name]).float() for name in arrays.files}
    scale = state.pop("scaling_factor", torch.ones(1))
    if not torch.allclose(scale, torch.ones_like(scale)):
        raise ModelError(f"{folder} has a finetuning scaling factor, which is not supported; use the plain dictionary.")
    if state["W_enc"].shape[0] != state["W_dec"].shape[1]:
        raise ModelError(f"{folder} is a transcoder: it reads and writes different widths; use a dictionary.")
    where = _hook_of(folder, {r"-res\b": "hook_resid_post", r"-mlp\b": "hook_mlp_out", r"-att\b": "attn.hook_z"})
    facts = {"prepend_bos": True, **where}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": facts}, state


def _gemma_scope_2(folder: Path) -> tuple[dict[str, Any], State]:
    told, raw = _json(folder / "config.json"), _tensors(folder / "params.safetensors")
    if told.get("architecture") != "jump_relu":
        raise ModelError(f"{folder}: architecture {told.get('architecture')} is not known; jump_relu is.")
    if "affine_skip_connection" in raw or re.search(r"transcoder|clt", str(folder)):
        raise ModelError(f"{folder} is a transcoder: it reconstructs nothing at its hook point; use a dictionary.")
    state = {name.replace("w_", "W_"): value for name, value in raw.items()}
    where = _hook_of(folder, {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"})
    facts = {"prepend_bos": True, "model_name": told.get("model_name"), **where}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": facts}, state


def _llama_scope(folder: Path) -> tuple[dict[str, Any], State]:
    told, raw = _json(folder / "hyperparams.json"), _tensors(folder / "checkpoints" / "final.safetensors")
    # inputs were scaled to a mean length of sqrt(d); the scale is folded, as sae-lens does
    scale = told["d_model"] ** 0.5 / told["dataset_average_activation_norm"]["in"]
    m = len(raw["encoder.bias"])
    state = {
        "W_enc": raw["encoder.weight"].t() * scale, "b_enc": raw["encoder.bias"],
        "W_dec": raw["decoder.weight"].t() / scale, "b_dec": raw["decoder.bias"] / scale,
        "threshold": torch.full((m,), float(told["jump_relu_threshold"] * scale)),
    }  # fmt: skip
    if told.get("hook_point_out", told["hook_point_in"]) != told["hook_point_in"]:
        raise ModelError(f"{folder} is a transcoder: it reconstructs nothing at its hook point; use a dictionary.")
    facts = {"prepend_bos": True, "hook_name": told["hook_point_in"]}
    return {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": facts}, state


LEARNED = {
    "AutoEncoder": "standard", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
"""Classes of dictionary_learning as architectures of sae-lens; the batch ones are saved with their threshold."""
NAMES = {
    "W_enc": ("W_enc", "encoder.weight"), "W_dec": ("W_dec", "decoder.weight"), "b_enc": ("b_enc", "encoder.bias"),
    "b_dec": ("b_dec", "bias", "decoder_bias"), "b_mag": ("mag_bias",), "b_gate": ("gate_bias",), "r_mag": ("r_mag",),
}  # fmt: skip


def _dictionary_learning(folder: Path) -> tuple[dict[str, Any], State]:
    told = _json(folder / "config.json")["trainer"]
    # weights_only: tensors, and no code
    raw = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    kind = LEARNED.get(told["dict_class"])
    if kind is None:
        raise ModelError(f"{folder}: class {told['dict_class']} is not known; known are {', '.join(LEARNED)}.")
    found = {ours: next((n for n in names if n in raw), None) for ours, names in NAMES.items()}
    state = {
        ours: (raw[name].t() if name.endswith(".weight") else raw[name]).float()
        for ours, name in found.items()
        if name is not None
    }
    if kind == "jumprelu":
        state["threshold"] = raw["threshold"].float().expand(len(state["b_enc"])).clone()
    facts = {"hook_name": f"blocks.{told['layer']}.hook_resid_post", "model_name": told.get("lm_name")}
    if not isinstance(told["layer"], int) or (told.get("submodule_name") or "").startswith(("mlp", "att")):
        facts["hook_name"] = ""  # not of the residual stream; the site says where
    settings = {"architecture": kind, "apply_b_dec_to_input": told["dict_class"] != "JumpReluAutoEncoder"}
    if kind == "topk":
        settings |= {"k": int(told["k"])}
    return {**settings, "metadata": {"prepend_bos": True, **facts}}, state


def _sparsify(folder: Path) -> tuple[dict[str, Any], State]:
    told, raw = _json(folder / CONFIG), _tensors(folder / "sae.safetensors")
    if told.get("signed") or told.get("transcode") or told.get("skip_connection"):
        raise ModelError(f"{folder}: signed codes and transcoders of sparsify are not supported; use a plain one.")
    if told.get("activation", "topk") != "topk":
        raise ModelError(f"{folder}: activation {told['activation']} of sparsify is not known; topk is.")
    encoder, decoder = (raw.get(f"W_{n}", raw.get(f"{n}oder.weight")) for n in ("enc", "dec"))
    if encoder is None or decoder is None:
        raise ModelError(f"{folder}: sae.safetensors lacks its encoder or decoder; copy the dictionary again.")
    d = told["d_in"]
    state = {
        "W_enc": encoder if encoder.shape[0] == d else encoder.t(),
        "W_dec": decoder if decoder.shape[1] == d else decoder.t(),
        "b_enc": raw.get("b_enc", raw.get("encoder.bias", torch.zeros(max(decoder.shape)))),
        "b_dec": raw.get("b_dec", raw.get("decoder.bias", torch.zeros(d))),
    }
    # sparsify subtracts b_dec always, sae-lens only where normalize_decoder is off
    settings = {"architecture": "topk", "k": int(told["k"]), "apply_b_dec_to_input": True}
    return {**settings, "metadata": {"prepend_bos": True, **_module_of(folder.name)}}, state


MODULES = {
    "": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "hook_attn_out", "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
}  # fmt: skip


def _module_of(name: str) -> dict[str, str]:
    """The hook point of a folder of sparsify, named after the module whose output it reads: `layers.3.mlp`."""
    if name == "embed_tokens":
        return {"hook_name": "hook_embed"}
    found = re.search(r"layers[._](\d+)(?:[._](\w+(?:\.\w+)*))?$", name)
    site = MODULES.get(found[2] or "") if found else None
    return {"hook_name": f"blocks.{found[1]}.{site}"} if found and site else {}


FORMATS = {
    "gemma_scope": Format(("params.npz",), _gemma_scope),
    "gemma_scope_2": Format(("config.json", "params.safetensors"), _gemma_scope_2),
    "llama_scope": Format(("hyperparams.json", "checkpoints/final.safetensors"), _llama_scope),
    "dictionary_learning": Format(("config.json", "ae.pt"), _dictionary_learning),
    "sparsify": Format((CONFIG, "sae.safetensors"), _sparsify),
}
