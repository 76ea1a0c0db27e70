"""Fit other decompositions to a hook point of a model, and keep them beside the dictionaries that were trained.

A `fit:` block names the kind; the rows come from text as in training, and what was fitted lies in the store under the
hash of everything that its numbers depend on, so that it is fitted once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.budget import free_memory, words
from neurosae.dictionary.decompositions import DECOMPOSITIONS, NAMES, FitSettings, decompose, from_directions
from neurosae.dictionary.evaluate import density_histogram, evaluate_dictionary, never_active
from neurosae.dictionary.kinds import Dictionary, neuron_dictionary
from neurosae.dictionary.record import CONFIG, read_folder, write_folder
from neurosae.dictionary.stream import BUFFER, context_rows, hook_width
from neurosae.dictionary.texts import Contexts, make_contexts, read_texts, sample_texts, take_rows
from neurosae.errors import DataError, ModelError, StoreError, choose
from neurosae.extraction.collapse import collapse
from neurosae.extraction.run import extract
from neurosae.extraction.signed import signed
from neurosae.extraction.sites import check_hook
from neurosae.extraction.source import config_hash
from neurosae.spec.files import content_hash, require_space, require_writable, write_atomic

FIT_VERSION = 1  # raised whenever the same settings would give other numbers
KINDS_OF_FIT = (*DECOMPOSITIONS, "diff_means")
HELD_OUT = 0.05, 500  # share of the documents kept for the card, and the number that suffices
EVALUATED = 5_000  # held-out tokens for the card
DENSITIES = 20_000  # rows on which densities are counted
CONTEXT = 256
HELD = {
    "pca": (36, 0), "ica": (40, 24), "nmf": (60, 24), "ksvd": (36, 16), "online_dl": (44, 8), "random": (24, 0),
    "diff_means": (24, 0),
}  # fmt: skip
"""Bytes held at once for each token: per dimension and per component."""
PER_PART = 48  # bytes per component and dimension: both matrices, their halves, and a copy in float64


@dataclass(frozen=True)
class Asked(FitSettings):
    """A `fit:` block: how to decompose, and what.

    Attributes
    ----------
    n_tokens : rows that are fitted
    region : for diff_means, the region whose last token is read
    """

    n_tokens: int = 50_000
    region: str = ""


def fit_dictionary(
    model: Any,
    texts: Sequence[str] | None,
    *,
    hook: str,
    settings: Mapping[str, Any] | Any,
    store: str | Path,
    stimuli: pd.DataFrame | None = None,
) -> Dictionary:
    """Fit a decomposition at a hook point, or read the one that was fitted before.

    Parameters
    ----------
    model : LanguageModel
    texts : documents; None for text that the model writes itself (temperature 1, seeded)
    hook : hook point
    settings : `kind` (pca, ica, nmf, ksvd, online_dl, random, diff_means) and `n k alpha seed n_tokens region`
    store : folder of all studies; the result lies in `<store>/_store/dictionaries/<hash12>`
    stimuli : for diff_means, from `expand`; only its localizer items are read

    Returns
    -------
    Dictionary, read back from disk, with its card (FVU, L0 and so on, on held-out documents)

    Notes
    -----
    `diff_means`: for every factor and level, the mean of the localizer's stimuli at that level minus the mean of those
    at the other levels, cells weighing equally; a factor of two levels gives one direction, whose two signs are the two
    levels. Tests belong on the other items.

    Raises
    ------
    ModelError, DataError
        If the kind or the hook point does not exist, or texts, rows or localizer items are too few.

    Examples
    --------
    >>> import tempfile
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=32, d_vocab=257, act_fn="gelu", seed=0)
    >>> texts = [f"Text {i} of many, and every one is different: {i * i}." for i in range(60)]
    >>> ask = {"kind": "pca", "n": 8, "n_tokens": 1000}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = fit_dictionary(load_model(toy), texts, hook="blocks.0.hook_resid_post", settings=ask, store=folder)
    >>> made.n_features, made.card["fvu"] < 1e-10, made.card["decomposition"]
    (16, True, 'principal components: 8, two signs each')
    """
    check_hook(hook, model.hooks)
    asked = asked_of(settings, hook_width(model, hook))
    facts = _facts(model, texts, asked, stimuli=stimuli)
    key = content_hash(FIT_VERSION, facts, hook, asdict(asked))
    out = Path(store) / "_store" / "dictionaries" / key[:12]
    if (out / CONFIG).is_file():
        found = read_folder(out, device=model.device)
        if found.metadata.get("key") != key:
            raise StoreError(f"{out} holds something else than this fit; delete it, or choose another folder.")
        return found
    require_writable(out.parent)
    require_memory(asked, hook_width(model, hook))
    require_space(out.parent, 12 * 4 * hook_width(model, hook) * asked.n)
    train, held_out = _split(model, list(texts) if texts is not None else _own_texts(model, facts, store), asked)
    rows = _rows(model, train, hook, title=f"fit {asked.kind}")
    made = _fitted(model, rows, asked, hook=hook, stimuli=stimuli)
    write_folder(out, _described(made, model, facts | {"key": key}, rows=rows, held_out=held_out, asked=asked))
    return read_folder(out, device=model.device)


def require_memory(asked: Asked, width: int) -> int:
    """Bytes that a fit takes; refused, with the parameter to change, where they are not free.

    Examples
    --------
    >>> words(require_memory(Asked("pca", n=64, n_tokens=50_000), 256))
    '462 MB'
    """
    per_dimension, per_part = HELD[asked.kind]
    tokens = asked.n_tokens * per_dimension * width
    parts = asked.n * (asked.n_tokens * per_part + PER_PART * width)
    needed, free = tokens + parts, free_memory("cpu")
    if free is not None and needed > free:
        name, value = ("n_tokens", asked.n_tokens) if tokens > parts else ("n", asked.n)
        raise ModelError(
            f"{asked.kind} with {name} {value:,} at width {width:,} needs {words(needed)} of memory, but {words(free)} "
            f"are free; use a smaller {name}."
        )
    return needed


def fit_site(
    hook: str, block: Mapping[str, Any], model: Any, *, store: str | Path | None, stimuli: Any = None
) -> Dictionary:
    """The decomposition that the `fit:` block of a site asks for."""
    if store is None:
        raise ModelError("a decomposition that is fitted needs a folder to be kept in; give store=, or --out.")
    settings = {name: value for name, value in block.items() if value is not None}
    paths = tuple(map(str, settings.pop("texts", None) or ()))
    texts = list(read_texts(paths)) if paths else None
    return fit_dictionary(model, texts, hook=hook, settings=settings, store=store, stimuli=stimuli)


def asked_of(settings: Mapping[str, Any] | Any, width: int) -> Asked:
    """A `fit:` block or mapping with its defaults filled in, n by the width."""
    given = dict(settings) if isinstance(settings, Mapping) else settings.model_dump(exclude_none=True)
    names = dict.fromkeys(f.name for f in fields(Asked))
    for name in given:
        choose("setting of a decomposition", name, names, error=ModelError)
    if "kind" not in given:
        raise ModelError(f"settings name no kind of decomposition; give one of {', '.join(KINDS_OF_FIT)}.")
    choose("decomposition", given["kind"], dict.fromkeys(KINDS_OF_FIT), error=ModelError)
    made = Asked(**given)
    return replace(made, n=made.n or width)


def _facts(model: Any, texts: Sequence[str] | None, asked: Asked, *, stimuli: pd.DataFrame | None) -> dict[str, Any]:
    """What a decomposition depends on besides its own settings."""
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so no text can be given to it.")
    known = {n: model.provenance.get(n) for n in ("weights_hash", "weights", "tokenizer_hash")}
    known["config_hash"] = config_hash(model.provenance.get("config", {}))
    source: dict[str, Any] = {"sampled_tokens": round(1.1 * asked.n_tokens), "sampled_seed": asked.seed}
    if texts is not None:
        source = {"text_hash": content_hash(*texts), "n_documents": len(texts)}
    if asked.kind == "diff_means":
        source["localizer"] = content_hash(_localizer(stimuli, asked).to_csv())
    form = {"model_dtype": model.dtype, "prefix": list(model.tokens.prefix)}
    return {"model_name": model.name, **known, **form, **source}


def text_to_decompose(model: Any, asked: Asked, store: str | Path, *, stimuli: pd.DataFrame | None) -> list[str]:
    """What a model writes to be fitted, where the analysis names no text."""
    return _own_texts(model, _facts(model, None, asked, stimuli=stimuli), store)


def _own_texts(model: Any, facts: Mapping[str, Any], store: str | Path) -> list[str]:
    """The model's own samples, written once for all fits of the same size and seed."""
    named = ("weights_hash", "config_hash", "tokenizer_hash", "prefix", "sampled_tokens", "sampled_seed")
    wanted = {n: facts[n] for n in named}
    path = Path(store) / "_store" / "texts" / f"{content_hash(wanted)[:12]}.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["wanted"] == wanted:
            return stored["texts"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    texts = sample_texts(model, facts["sampled_tokens"], seed=facts["sampled_seed"], purpose="text to decompose")
    write_atomic(path, json.dumps({"wanted": wanted, "texts": texts}))
    return texts


def _split(model: Any, texts: list[str], asked: Asked) -> tuple[Contexts, list[str]]:
    """Contexts to fit on, and documents kept aside."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise DataError("a fit needs at least 2 different documents, one of them held out; give more text.")
    order = np.random.default_rng([asked.seed, 0]).permutation(len(distinct))
    n_held = min(max(round(HELD_OUT[0] * len(distinct)), 1), HELD_OUT[1])
    held_out = [distinct[i] for i in order[:n_held]]
    aside = set(held_out)
    contexts = make_contexts(model.tokens, [t for t in texts if t not in aside], length=min(CONTEXT, model.n_ctx))
    return take_rows(contexts, asked.n_tokens, seed=asked.seed), held_out


def _rows(model: Any, contexts: Contexts, hook: str, *, title: str) -> Tensor:
    sizes, parts = contexts.n_rows, []
    blocks = np.array_split(np.arange(len(sizes)), max(int(sizes.sum()) // (BUFFER // 4), 1))
    with tqdm(total=int(sizes.sum()), desc=title, unit="tok", unit_scale=True, disable=None, mininterval=1) as bar:
        for block in blocks:
            parts.append(context_rows(model, contexts, block, hooks=[hook])[hook])
            bar.update(int(sizes[block].sum()))
    return torch.cat(parts)


def _fitted(model: Any, rows: Tensor, asked: Asked, *, hook: str, stimuli: pd.DataFrame | None) -> Dictionary:
    if asked.kind != "diff_means":
        kept = {f.name: getattr(asked, f.name) for f in fields(FitSettings)}
        return decompose(rows, FitSettings(**kept), hook=hook)
    directions, names = _differences(model, _localizer(stimuli, asked), asked, hook=hook)
    made = from_directions(directions, center=rows.double().mean(0).float())
    facts = {"hook_name": hook, "fitted": asked.kind, "directions": names, "region": asked.region}
    card = {"decomposition": f"{NAMES[asked.kind]}: {', '.join(names)}"}
    return replace(made, hook=hook, metadata={**made.metadata, **facts}, card=card)


# --- differences of means -------------------------------------------------------------------------------------------


def _localizer(stimuli: pd.DataFrame | None, asked: Asked) -> pd.DataFrame:
    if stimuli is None or not len(stimuli):
        raise ModelError("diff_means needs the stimuli of a design; run it inside an analysis, or give stimuli=.")
    if not asked.region:
        raise ModelError("diff_means needs `region`: the region whose last token is read.")
    kept = stimuli[stimuli["split"].astype(str) == "localizer"]
    if not len(kept):
        raise DataError("diff_means reads localizer items only, and there are none; add `partition: {localizer: n}`.")
    kept.attrs = dict(stimuli.attrs)
    return kept


def _differences(model: Any, stimuli: pd.DataFrame, asked: Asked, *, hook: str) -> tuple[Tensor, list[str]]:
    """One direction per factor level, from means in which cells weigh equally."""
    raw = {"x": neuron_dictionary(hook, hook_width(model, hook), device=model.device)}
    found = collapse(signed(extract(stimuli, model, raw, positions={"regions": [asked.region]})), "last")["x"]
    obs, factors = found.obs, list(json.loads(stimuli.attrs["design"])["factors"])
    if not len(obs):
        raise DataError(f"no localizer item has region '{asked.region}'.")
    values = pd.DataFrame(cast(Any, found.X).toarray().astype(np.float64))
    cells = values.groupby([obs[f].astype(str).to_numpy() for f in factors], sort=False).mean()
    directions, names = [], []
    for i, factor in enumerate(factors):
        level = cells.index.get_level_values(i) if len(factors) > 1 else cells.index
        levels = [str(one) for one in obs[factor].cat.categories if one in set(level)]
        for one in levels[1:] if len(levels) == 2 else levels:
            inside = np.asarray(level == one)
            directions.append(cells[inside].mean().to_numpy() - cells[~inside].mean().to_numpy())
            names.append(f"{factor} {one} minus {levels[0] if len(levels) == 2 else 'the others'}")
    return torch.from_numpy(np.stack(directions)), names


# --- card -----------------------------------------------------------------------------------------------------------


def _described(
    made: Dictionary, model: Any, facts: Mapping[str, Any], *, rows: Tensor, held_out: Sequence[str], asked: Asked
) -> Dictionary:
    """The dictionary with its densities, its card, and the metadata that a later load checks."""
    codes = made.encode(rows[:: max(1, len(rows) // DENSITIES)])
    counts = np.bincount(codes.indices, minlength=made.n_features)
    density = counts / codes.shape[0]  # pyright: ignore[reportOptionalSubscript]
    row = evaluate_dictionary(made, model, held_out, n_tokens=EVALUATED, seed=asked.seed).iloc[0]
    scores = {str(n): v.item() if hasattr(v, "item") else v for n, v in row.items() if n not in ("hook", "n_features")}
    scores = {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in scores.items()}
    scores |= {**never_active(counts, len(codes.indptr) - 1), "densities": density_histogram(density)}
    given = {n: v for n, v in asdict(asked).items() if n not in UNUSED.get(asked.kind, ("k", "alpha", "region"))}
    metadata = {
        "model_name": facts["model_name"], "model_hash": facts["weights_hash"], "weights_mode": facts["weights"],
        "tokenizer_hash": facts["tokenizer_hash"], "prepend_bos": bool(facts["prefix"]), "context_size": CONTEXT,
        "recipe": given, "fvu": scores["fvu"], "l0": scores["l0"], "key": facts["key"],
        "text": {n: v for n, v in facts.items() if n.startswith(("text_", "sampled_", "n_documents", "localizer"))},
    }  # fmt: skip
    card = {**made.card, **scores, "n_rows": len(rows), "settings": given}
    return replace(made, density=density.astype(np.float32), metadata={**made.metadata, **metadata}, card=card)


UNUSED = {"ksvd": ("alpha", "region"), "online_dl": ("region",), "diff_means": ("n", "k", "alpha")}
