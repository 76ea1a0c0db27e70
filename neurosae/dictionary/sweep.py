"""Many dictionaries from one stream of activations: every combination of sparsity, size, seed and architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from neurosae.dictionary.record import Dictionary
from neurosae.dictionary.train import train_dictionaries
from neurosae.errors import ModelError

SWEPT = ("architecture", "d_sae", "k", "seed")
COLUMNS = ("l0", "fvu", "ce_recovered_mean", "dead", "loss_spikes")


def train_sweep(
    model: Any,
    texts: Sequence[str] | None,
    *,
    hook: str | Sequence[str],
    out: str | Path,
    over: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Dictionary], pd.DataFrame]:
    """Train every combination of settings, all in one pass over the text, each the same as if trained alone.

    Parameters
    ----------
    model : LanguageModel
    texts : documents; None for text that the model writes itself
    hook : hook point, or several
    out : folder of the sweep; each dictionary lies in a folder of its own there, named after what was varied
    over : lists of values to combine, such as `{"k": [16, 32], "seed": [0, 1]}`: any of architecture, d_sae, k and seed
    settings : what all have in common, as in `Settings`; n_tokens, batch, order and context are never varied, because
        they make the stream

    Returns
    -------
    dictionaries : {name: Dictionary}
    table : DataFrame
        One row per dictionary: `name hook architecture d_sae k seed l0 fvu ce_recovered_mean dead loss_spikes`.

    Notes
    -----
    Quality measures move with sparsity. Compare architectures at three or more values of k, at equal L0.
    What is finished is kept: a sweep that was killed, or is asked for more values, trains only what is missing.

    Examples
    --------
    >>> import tempfile
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=32, d_vocab=257, act_fn="gelu", seed=0)
    >>> texts = [f"Text {i} of many, and every one is different: {i * i}." for i in range(60)]
    >>> shared = {"d_sae": 32, "n_tokens": 1000, "batch": 50}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made, table = train_sweep(
    ...         load_model(toy), texts, hook="blocks.0.hook_resid_post", out=folder,
    ...         over={"k": [2, 4], "seed": [0, 1]}, settings=shared,
    ...     )
    >>> table[["name", "k", "seed"]].values.tolist()
    [['k2_seed0', 2, 0], ['k2_seed1', 2, 1], ['k4_seed0', 4, 0], ['k4_seed1', 4, 1]]
    """
    if strange := sorted(set(over) - set(SWEPT)):
        raise ModelError(
            f"{strange[0]} cannot be swept: {', '.join(SWEPT)} can; the rest makes the stream that all share, or "
            "belongs into settings."
        )
    if empty := [name for name, values in over.items() if not list(values)]:
        raise ModelError(f"over: {empty[0]} has no values; list at least one.")
    hooks = [hook] if isinstance(hook, str) else list(hook)
    swept = [name for name in SWEPT if name in over]
    sites: dict[str, dict[str, Any]] = {}
    for place in hooks:
        for values in product(*(over[name] for name in swept)):
            chosen = dict(zip(swept, values, strict=True))
            words = [place.replace(".", "-")] if len(hooks) > 1 else []
            name = "_".join([*words, *(_word(key, value) for key, value in chosen.items())]) or "dictionary"
            sites[name] = {**(settings or {}), **chosen, "hook": place, "out": Path(out) / name}
    made = train_dictionaries(model, texts, sites)
    return made, pd.DataFrame([_row(name, one) for name, one in made.items()])


def _word(name: str, value: Any) -> str:
    return str(value) if name == "architecture" else f"{name}{value}"


def _row(name: str, dictionary: Dictionary) -> dict[str, Any]:
    asked = dictionary.card["settings"]
    return {
        "name": name,
        "hook": dictionary.hook,
        **{key: asked[key] for key in SWEPT},
        **{key: dictionary.card.get(key) for key in COLUMNS},
    }
