"""Encoders that are BERT under other names: RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT, rewritten as BERT.

transformer-lens names the hook points of BERT only. These families compute the same function from weights of other
names (RoBERTa counts positions from its padding index + 1, DistilBERT has no token types), so they are rewritten, and
the logits compared with those of the original before the model is used.
"""

from __future__ import annotations

import re
from typing import Any

SIBLINGS = ("roberta", "xlm-roberta", "camembert", "distilbert")
HEAD = {
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layer_norm": "cls.predictions.transform.LayerNorm",
    "lm_head.decoder": "cls.predictions.decoder",
    "lm_head.bias": "cls.predictions.bias",
    "vocab_transform": "cls.predictions.transform.dense",
    "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector": "cls.predictions.decoder",
}
LAYER = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def as_bert(model: Any) -> Any:
    """The same function as a BertForMaskedLM; the model itself where it is none of the siblings.

    Parameters
    ----------
    model : a masked language model of transformers

    Examples
    --------
    >>> import torch
    >>> from transformers import DistilBertConfig, DistilBertForMaskedLM
    >>> tiny = DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=12)
    >>> model = DistilBertForMaskedLM(tiny).eval()
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> bool(torch.allclose(as_bert(model)(ids).logits, model(ids).logits, atol=1e-5))
    True
    """
    from transformers import BertForMaskedLM

    config = model.config
    if config.model_type not in SIBLINGS or not type(model).__name__.endswith("ForMaskedLM"):
        return model
    if getattr(config, "is_decoder", False):
        return model
    weights = {_renamed(name): value for name, value in model.state_dict().items()}
    types, words = "bert.embeddings.token_type_embeddings.weight", "bert.embeddings.word_embeddings.weight"
    weights.setdefault(types, weights[words].new_zeros(1, weights[words].shape[1]))
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"]
    if config.model_type != "distilbert":
        first = config.pad_token_id + 1
        places = "bert.embeddings.position_embeddings.weight"
        weights[places] = weights[places][first:]
    made = BertForMaskedLM(_config(config, weights))
    made.load_state_dict(weights, strict=True)
    made.set_attn_implementation("eager")  # the others give hook points nothing to fire on
    return made.to(next(model.parameters()).device).eval()


def _renamed(name: str) -> str:
    """The name of a weight in BERT."""
    name = re.sub(r"^(roberta|distilbert)\.", "bert.", name).replace("bert.transformer.layer", "bert.encoder.layer")
    found = re.match(r"(bert\.encoder\.layer\.\d+\.)(.+)(\.weight|\.bias)$", name)
    if found:
        return found[1] + LAYER.get(found[2], found[2]) + found[3]
    for own, theirs in HEAD.items():
        if name.startswith(own):
            return theirs + name[len(own) :]
    return name


def _config(config: Any, weights: dict[str, Any]) -> Any:
    """The settings of BERT that say the same."""
    from transformers import BertConfig

    small = config.model_type == "distilbert"
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim if small else config.hidden_size,
        num_hidden_layers=config.n_layers if small else config.num_hidden_layers,
        num_attention_heads=config.n_heads if small else config.num_attention_heads,
        intermediate_size=config.hidden_dim if small else config.intermediate_size,
        hidden_act=config.activation if small else config.hidden_act,
        layer_norm_eps=1e-12 if small else config.layer_norm_eps,
        max_position_embeddings=len(weights["bert.embeddings.position_embeddings.weight"]),
        type_vocab_size=len(weights["bert.embeddings.token_type_embeddings.weight"]),
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=getattr(config, "tie_word_embeddings", True),
    )
