"""One row per dictionary: everything that says how far it can be trusted, measured on the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from neurosae.dictionary.evaluate import contexts_for, density_histogram, evaluate_dictionary, reference_contexts
from neurosae.dictionary.kinds import Dictionary
from neurosae.dictionary.overlap import absorption, decoder_overlap
from neurosae.dictionary.pathology import pathology
from neurosae.dictionary.stream import context_rows
from neurosae.errors import ModelError

L0_MATCHED = 0.2  # GRD-11: dictionaries are compared only where L0 agrees within this share


def evaluate_dictionaries(
    dictionaries: Mapping[str, Dictionary],
    model: Any,
    texts: Sequence[str],
    *,
    n_tokens: int = 5_000,
    seed: int = 0,
    l0: float | None = None,
) -> pd.DataFrame:
    """Measure several dictionaries of one model on the same held-out text.

    Parameters
    ----------
    dictionaries : {site: Dictionary}
    model : LanguageModel
    texts : documents that none of them was trained on
    n_tokens : contexts are drawn until they hold this many tokens
    seed : of that draw, of random errors and of the bootstrap over documents
    l0 : what L0 is compared with; left out, that of the first dictionary

    Returns
    -------
    DataFrame
        One row per dictionary: `site model kind`, the columns of `evaluate_dictionary`, then `pathology pathology_low
        pathology_high` (divergence over that of a random error of the same length), `absorbed` (pairs of the absorption
        screen), `log10_density` (counts of features per half decade from 1e-7 to 1), `l0_matched` (whether L0 lies
        within 20 % of `l0`) and `note`, which says why a value is missing

    Examples
    --------
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}
    >>> evaluate_dictionaries(raw, load_model(toy), ["A dog.", "Two cats."])[["site", "fvu", "note"]].values.tolist()
    [['raw', 0.0, 'pathology: the reconstruction has no error, so there is no random error of the same length.']]
    """
    rows = [
        {"site": site, "model": model.name, "kind": made.kind, **_row(made, model, texts, n_tokens=n_tokens, seed=seed)}
        for site, made in dictionaries.items()
    ]
    table = pd.DataFrame(rows)
    first = float(table["l0"].iloc[0]) if l0 is None else l0
    table["l0_matched"] = (table["l0"] - first).abs() <= L0_MATCHED * first
    return table


def _row(made: Dictionary, model: Any, texts: Sequence[str], *, n_tokens: int, seed: int) -> dict[str, Any]:
    measured = evaluate_dictionary(made, model, texts, n_tokens=n_tokens, seed=seed).iloc[0]
    row: dict[str, Any] = {str(name): value for name, value in measured.items()}
    notes = []
    try:
        found = pathology(made, model, texts, n_tokens=min(n_tokens, 1_000), n_draws=1, seed=seed).iloc[0]
        row |= {name: float(found[name]) for name in ("pathology", "pathology_low", "pathology_high")}
    except ModelError as error:  # nothing predicted, or nothing lost: said, not guessed
        row |= dict.fromkeys(("pathology", "pathology_low", "pathology_high"), np.nan)
        notes.append(f"pathology: {error}")
    contexts = contexts_for(made, model, texts, n_tokens=n_tokens, seed=seed)
    x = context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[made.hook])[made.hook]
    codes = made.encode(x)
    words = [ids[contexts.n_prefix : len(ids) - contexts.n_suffix] for ids in contexts.ids]
    row["absorbed"] = len(absorption(codes, np.concatenate(words), made.W_dec))
    density = np.bincount(codes.indices, minlength=made.n_features) / len(x)
    row["log10_density"] = density_histogram(density)["features"]
    return row | {"note": "; ".join(notes)}


def alive_features(
    dictionaries: Mapping[str, Dictionary], model: Any, texts: Sequence[str], *, n_tokens: int = 5_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Which features of each dictionary are ever active: on its own reference tokens, else on these texts."""
    alive, contexts = {}, reference_contexts(model, texts, n_tokens=n_tokens, seed=seed)
    for site, made in dictionaries.items():
        if made.density is not None:
            alive[site] = made.density > 0
            continue
        x = context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[made.hook])[made.hook]
        alive[site] = np.bincount(made.encode(x).indices, minlength=made.n_features) > 0
    return alive


def overlap_table(
    dictionaries: Mapping[str, Dictionary], *, alive: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """`decoder_overlap` of every two dictionaries that read one hook point; columns `one other hook` first.

    Parameters
    ----------
    alive : features that take part, as of `alive_features`; all without
    """
    rows = []
    for (a, one), (b, other) in combinations(dictionaries.items(), 2):
        if one.hook == other.hook:
            chosen = (alive[a], alive[b]) if alive is not None else None
            found = decoder_overlap(one, other, alive=chosen).iloc[0].to_dict()
            rows.append({"one": a, "other": b, "hook": one.hook, **found})
    scores = ["n_one", "n_other", "n_matched", "overlap_70", "overlap_90", "cosine_median", "note"]
    return pd.DataFrame(rows, columns=["one", "other", "hook", *scores])
