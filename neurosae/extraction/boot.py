"""Where a model comes from: a checkpoint folder, objects in memory, or the settings of a toy, as a bridge.

Weights that a checkpoint lacks are an error, not a random fill. A `change` may replace the weights before the bridge
takes them: the random controls do.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from neurosae.errors import ModelError
from neurosae.extraction.siblings import SIBLINGS, as_bert
from neurosae.extraction.source import first_line
from neurosae.extraction.tokens import Tokenizer, byte_tokenizer

Change = Callable[[Any], Any]  # a model of transformers -> one to take in its place
Said = tuple[torch.Tensor, torch.Tensor] | None  # ids, and the logits that transformers computes from them
SAME = 1e-3  # largest max|d| / rms of the logits: float32 shows 1e-6, a setting that is left out .1


def boot_folder(
    folder: Path, device: torch.device, change: Change | None = None, *, tokens: Tokenizer | None = None
) -> tuple[Any, bool]:
    """The bridge of a checkpoint, and whether its head was there; the specials of `tokens` are part of what is tried.

    Raises
    ------
    ModelError
        If the checkpoint is broken, lacks weights below the head, or holds more layers than it says.
    """
    import transformers
    from transformer_lens.model_bridge import TransformerBridge  # 3 to 11 s: only when a model is loaded
    from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture

    lost: list[str] = []
    left: list[str] = []
    known: list[str] = []
    plain: list[Said] = []

    class Checked:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            architecture = kwargs["config"].architectures[0] if kwargs["config"].architectures else ""
            auto = cast(Any, get_hf_model_class_for_architecture(architecture))
            if kwargs["config"].model_type in SIBLINGS:
                auto = transformers.AutoModelForMaskedLM
            model, info = auto.from_pretrained(*args, output_loading_info=True, **kwargs)
            lost.extend(sorted(info["missing_keys"]))
            left.extend(sorted(info["unexpected_keys"]))
            known.extend(model.state_dict())
            model = (change(model) if change else model).eval()
            plain.append(_said_by(model, tokens))
            return model

    try:
        with quiet():
            own: dict[str, Any] = {"model_class": Checked}
            config = transformers.AutoConfig.from_pretrained(folder)
            if config.model_type in SIBLINGS:
                own = {"hf_model": as_bert(Checked.from_pretrained(folder, config=config, dtype=torch.float32))}
            bridge = TransformerBridge.boot_transformers(str(folder), device=device, tokenizer=_stand_in(), **own)
    except Exception as error:  # transformers, safetensors and the bridge each raise their own
        if "supported architecture" in str(error) or "Unsupported architecture" in str(error):
            raise ModelError(_unsupported(folder)) from error
        raise ModelError(
            f"{folder} cannot be loaded as a language model ({first_line(error)}); "
            "check config.json and the weight files, or copy the checkpoint again."
        ) from error
    _check_weights(folder, lost=lost, left=left, known=known)
    _check_same(bridge, plain[0], name=str(folder))
    return bridge, not lost


def _said_by(model: Any, tokens: Tokenizer | None = None) -> Said:
    """Ids, and what transformers predicts from them; None where its forward pass takes no ids alone."""
    try:
        n, pad = model.get_input_embeddings().weight.shape[0], getattr(model.config, "pad_token_id", None)
        some = [i for i in (7 * k % n for k in range(7)) if i != pad][:6]  # RoBERTa leaves pads out of its count
        ids = torch.tensor([[*tokens.prefix, *some, *tokens.suffix] if tokens else some])
        with torch.inference_mode():
            return ids, model(ids.to(model.device)).logits.float().cpu()
    except Exception:  # two stacks, images: refused by name once the bridge is there
        return None


def _check_same(bridge: Any, plain: Said, *, name: str) -> None:
    """Refuse a model whose bridge predicts otherwise: it builds attention anew, and leaves settings out silently."""
    if plain is None or not torch.isfinite(plain[1]).all() or not plain[1].any():
        return  # what is no number is refused by the self-test
    ids, wanted = plain[0].to(bridge.cfg.device), plain[1]
    with torch.inference_mode():
        logits = bridge(ids, return_type="logits", attention_mask=torch.ones_like(ids)).float().cpu()
    error = float((logits - wanted).abs().max() / wanted.square().mean().sqrt()) if logits.shape == wanted.shape else 1
    if not error <= SAME:
        raise ModelError(
            f"{name}: with hook points of transformer-lens {version('transformer-lens')} the model predicts otherwise "
            f"than in transformers (relative error {error:.1e}), so a setting of config.json is not known there, or "
            "its special tokens are not those of the tokenizer; use one with the usual settings of its kind."
        )


def _check_weights(folder: Path, *, lost: Sequence[str], left: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a checkpoint whose weights are not those of its config.json: fewer (`lost`), or more layers (`left`)."""
    for name in left:
        stack = re.split(r"\.\d+\.", name, maxsplit=1)[0]
        if stack != name and any(f"{stack}.0." in own for own in known):
            raise ModelError(
                f"{folder}: the weights hold a layer that config.json does not speak of ({name}); copy config.json and "
                "weights of the same model."
            )
    heads = r"(cls|lm_head|predictions|vocab_projector|vocab_transform)\b"
    trunk = [name for name in lost if not re.match(heads, name)]
    if trunk:
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(trunk)} weights, such as {trunk[0]}; copy the whole checkpoint again."
        )


def _unsupported(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ", ".join(config.get("architectures") or [str(config.get("model_type", "without a name"))])
    return (
        f"{folder}: architecture {names} is not known to transformer-lens {version('transformer-lens')}, so its hook "
        "points have no names; use a model of another architecture, such as GPT-2, Llama, Pythia, BERT or RoBERTa."
    )


def boot_objects(model: Any, device: torch.device) -> Any:
    """The bridge of a copy of a model of transformers: the bridge rebuilds what it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        own = copy.deepcopy(model).to(device).float()
        own.set_attn_implementation("eager")  # as for folders: the others give hook points nothing to fire on
        plain = _said_by(own.eval())
        with quiet():
            bridge = TransformerBridge.boot_transformers(
                "memory", hf_model=as_bert(own), tokenizer=_stand_in(), device=device
            )
    except Exception as error:
        raise ModelError(
            f"this {type(model).__name__} cannot be read ({first_line(error)}); save it with save_pretrained, and "
            "give the folder."
        ) from error
    _check_same(bridge, plain, name=type(model).__name__)
    return bridge


def _stand_in() -> Any:
    """A tokenizer for the bridge alone, which asks for one and changes it; ours never passes through the bridge."""
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend)  # a BOS needs a folder


def boot_toy(settings: dict[str, Any], device: torch.device) -> Any:
    """A seeded toy from its settings; no files are read."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(settings, device=device)


def fuse_activations(bridge: Any) -> None:
    """Compute the tanh form of GELU in one pass over memory instead of eight; the same function, equal to rounding."""
    for module in bridge.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def state_hash(bridge: Any) -> str:
    """SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(bridge.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading bars of transformers are switched off, and back on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
