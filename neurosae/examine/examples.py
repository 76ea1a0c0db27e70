"""Examples of what features fire on: the strongest, the strongest of every factor level, and others that are not.

The strongest examples alone flatter a feature: they are what it was named after. So examples at quantiles of its active
range and random active ones stand beside them, and tokens where it is silent, for judges that must tell them apart.
Everything here is described, nothing is tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurosae.errors import DataError
from neurosae.examine.levels import level_names
from neurosae.examine.seen import Seen, cut_text, watch
from neurosae.extraction.tokens import Tokenizer, agreed_bos

KINDS = ("top", "level", "quantile", "random", "zero", "hard")
BINS = 24  # of log10 activation


@dataclass(frozen=True)
class Show:
    """How many examples of each kind are shown.

    Attributes
    ----------
    top : strongest, one per text, texts that are the same up to the token counted once
    per_level : strongest of every level of every factor
    quantiles : of the active values; one example at each
    random : random active tokens
    zero, hard : random tokens without activation; those whose token the feature does fire on elsewhere
    window : tokens shown on either side
    seed : of the random ones
    """

    top: int = 5
    per_level: int = 2
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    random: int = 3
    zero: int = 0
    hard: int = 0
    window: int = 12
    seed: int = 0


def top_examples(
    model: Any,
    dictionaries: Any,
    texts: Sequence[str],
    *,
    features: Sequence[int] | Mapping[str, Sequence[int]],
    levels: pd.DataFrame | None = None,
    names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Examples of what features fire on, with the activation of every token around.

    Parameters
    ----------
    model : LanguageModel with a tokenizer
    dictionaries : a Dictionary, or {site: Dictionary}
    texts : documents
    features : feature indices, or {site: indices}
    levels : one row per text, one column per factor: the strongest examples of every level are listed too
    names : where each text comes from, for the citation; numbers without
    settings : `top per_level quantiles random zero hard window seed` of `Show`, and `n_tokens`

    Returns
    -------
    DataFrame
        One row per example: `site feature kind factor level rank quantile value text name token_index n_same at pieces
        values`. kind is top, level, quantile, random, zero or hard; `pieces` are the tokens around as they stand in
        the text, `values` the activations there, `at` the place of the example among them; `n_same` counts the texts
        that begin alike up to this token, which a causal model cannot tell apart. Specials (BOS) are never examples.

    Raises
    ------
    DataError
        A feature that does not exist, or levels and names that do not match the texts.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> found = top_examples(load_model(toy), raw, ["abc", "abd"], features=[3], settings={"top": 1, "random": 0})
    >>> found.query("kind == 'top'")[["name", "n_same"]].values.tolist()
    [['text 0', 2]]
    """
    given = dict(settings or {})
    n_tokens = given.pop("n_tokens", None)
    show = _show(given)
    if isinstance(texts, str):
        raise DataError("texts is one string; give a list of documents, [text].")
    sites = dict(dictionaries) if isinstance(dictionaries, Mapping) else {"site": dictionaries}
    chosen = features if isinstance(features, Mapping) else dict.fromkeys(sites, features)
    seen = watch(model, sites, texts, features=chosen, n_tokens=n_tokens)
    tokens: Any = agreed_bos(model.tokens, sites)
    tables = [examples_of(one, texts, tokens, levels=levels, names=names, show=show) for one in seen.values()]
    return pd.concat(tables, ignore_index=True)


def _show(given: Mapping[str, Any]) -> Show:
    try:
        asked: dict[str, Any] = {k: tuple(value) if k == "quantiles" else value for k, value in given.items()}
        made = Show(**asked)
    except TypeError as error:
        raise DataError(f"settings of examples: {error}; known: {', '.join(Show.__dataclass_fields__)}.") from None
    if any(not 0 < q < 1 for q in made.quantiles):
        raise DataError(f"quantiles are {list(made.quantiles)}; each must lie between 0 and 1.")
    return made


def examples_of(
    seen: Seen,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    levels: pd.DataFrame | None = None,
    names: Sequence[str] | None = None,
    show: Show | None = None,
) -> pd.DataFrame:
    """Examples from what was seen already; see `top_examples`."""
    show, factors = show or Show(), pd.DataFrame(index=range(len(texts))) if levels is None else levels
    if len(factors) != len(texts) or (names is not None and len(names) != len(texts)):
        raise DataError(f"there are {len(texts)} texts, but {len(factors)} rows of levels; give one for each text.")
    cited = [f"text {i}" for i in range(len(texts))] if names is None else [str(name) for name in names]
    beginnings = _beginnings(seen)
    rows = []
    for feature in seen.features.tolist():
        for kind, row, extra in _chosen(seen, feature, factors, show=show, beginnings=beginnings):
            rows.append({"site": seen.site, "feature": feature, "kind": kind, "row": row, **extra})
    columns = ["site", "feature", "kind", "factor", "level", "rank", "quantile", "value", "row", "n_same"]
    table = pd.DataFrame(rows, columns=columns)
    at = table.pop("row").to_numpy(dtype=np.int64)
    cut = {int(t): cut_text(tokenizer, texts[int(t)]) for t in np.unique(seen.text[at])}
    windows = [_window(seen, f, r, cut=cut, show=show) for f, r in zip(table["feature"], at, strict=True)]
    table["text"], table["token_index"] = seen.text[at], seen.token_index[at]
    table["name"] = [cited[t] for t in seen.text[at]]
    for i, name in enumerate(("at", "pieces", "values")):
        table[name] = pd.Series([w[i] for w in windows], index=table.index, dtype=object)
    order = ["site", "feature", "kind", "factor", "level", "rank", "quantile", "value", "text", "name", "token_index"]
    return table[[*order, "n_same", "at", "pieces", "values"]].astype({"at": "int64", "n_same": "int64"})


def _beginnings(seen: Seen) -> np.ndarray:
    """A number for every row: rows whose contexts are the same up to and including their token share it."""
    numbers, known, before = np.empty(len(seen.text), dtype=np.int64), dict[tuple[int, int], int](), -1
    for row, (token, index, start) in enumerate(zip(seen.ids.tolist(), seen.token_index, seen.start, strict=True)):
        before = known.setdefault((-1 if index == start else before, token), len(known))
        numbers[row] = before
    return numbers


def _chosen(
    seen: Seen, feature: int, factors: pd.DataFrame, *, show: Show, beginnings: np.ndarray
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(kind, row, columns) of every example of one feature."""
    rows, values = seen.column(feature)
    best = _strongest(seen, rows, values)
    same = np.bincount(beginnings[best], minlength=1) if len(best) else np.zeros(1, dtype=int)
    value_at = dict(zip(rows.tolist(), values.tolist(), strict=True))

    def made(row: int, rank: int, **more: Any) -> dict[str, Any]:
        n = int(same[beginnings[row]]) if beginnings[row] < len(same) else 0
        blank = {"factor": None, "level": None, "quantile": np.nan}
        return {**blank, "rank": rank, "value": value_at.get(row, 0.0), "n_same": max(n, 1), **more}

    for rank, row in enumerate(_once(best, beginnings)[: show.top].tolist(), 1):
        yield "top", row, made(row, rank)
    for factor in factors.columns:
        level = factors[factor].astype(str).to_numpy()[seen.text[best]]
        for name in level_names(factors[factor]):
            for rank, row in enumerate(_once(best[level == name], beginnings)[: show.per_level].tolist(), 1):
                yield "level", row, made(row, rank, factor=str(factor), level=name)
    if len(rows):
        by_value = rows[np.lexsort((rows, values))]
        for rank, q in enumerate(show.quantiles, 1):
            row = int(by_value[round(q * (len(by_value) - 1))])
            yield "quantile", row, made(row, rank, quantile=q)
    draw = np.random.default_rng([show.seed, feature])
    for kind, pool, n in _pools(seen, rows, beginnings, show=show):
        once = pool[np.sort(np.unique(beginnings[pool], return_index=True)[1])]
        for rank, row in enumerate(draw.permutation(once)[:n].tolist(), 1):
            yield kind, row, made(row, rank)


def _strongest(seen: Seen, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The strongest row of every text, by falling value, then in the order of the texts."""
    order = np.lexsort((rows, -values))
    _, at = np.unique(seen.text[rows[order]], return_index=True)
    return rows[order[np.sort(at)]]


def _once(rows: np.ndarray, beginnings: np.ndarray) -> np.ndarray:
    """Rows without those whose context was there before."""
    return rows[np.sort(np.unique(beginnings[rows], return_index=True)[1])]


def _pools(
    seen: Seen, rows: np.ndarray, beginnings: np.ndarray, *, show: Show
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Rows that random examples are drawn from."""
    yield "random", rows, show.random
    if show.zero or show.hard:
        silent = np.setdiff1d(np.arange(len(seen.text)), rows)
        yield "zero", silent, show.zero
        yield "hard", silent[np.isin(seen.ids[silent], seen.ids[rows])], show.hard


def _window(
    seen: Seen, feature: int, row: int, *, cut: Mapping[int, Sequence[str]], show: Show
) -> tuple[int, list[str], list[float]]:
    """Place of a row among the tokens shown, the pieces of text, and the activations there."""
    here, pieces = int(seen.token_index[row]), cut[int(seen.text[row])]
    a, b = max(0, here - show.window), min(len(pieces), here + show.window + 1)
    first = row - here
    last = min(first + b, int(np.searchsorted(seen.text, seen.text[row], side="right")))  # text may end at n_tokens
    rows, values = seen.column(feature)
    inside = slice(*np.searchsorted(rows, [first + a, last]))
    shown = np.zeros(b - a)
    shown[rows[inside] - first - a] = values[inside]
    return here - a, list(pieces[a:b]), [float(v) for v in np.round(shown, 4)]


def distributions(seen: Seen, *, levels: pd.DataFrame | None = None) -> pd.DataFrame:
    """How often and how strongly features fire, over all texts and over those of every factor level.

    Returns
    -------
    DataFrame
        `site feature factor level n_tokens n_active density p50 p90 p99 largest bins counts`; factor and level are
        missing in the row over all texts; quantiles are those of the active values; `bins` are the edges of log10
        activation, the same for all rows of a feature, and `counts` the active tokens in each.
    """
    rows = []
    for feature in seen.features.tolist():
        at, values = seen.column(feature)
        logs = np.log10(values.astype(np.float64))
        low, high = (logs.min(), logs.max()) if len(logs) else (0.0, 1.0)
        edges = np.linspace(low - 1e-9, max(high, low + 0.1), BINS + 1)
        for factor, level, texts in _groups(levels):
            inside = np.ones(len(at), dtype=bool) if texts is None else texts[seen.text[at]]
            n = len(seen.text) if texts is None else int(texts[seen.text].sum())
            quantiles = np.quantile(values[inside], [0.5, 0.9, 0.99, 1]) if inside.any() else np.full(4, np.nan)
            p50, p90, p99, most = (float(q) for q in quantiles)
            counts = np.histogram(logs[inside], edges)[0]
            rows.append({
                "site": seen.site, "feature": feature, "factor": factor, "level": level, "n_tokens": n,
                "n_active": int(inside.sum()), "density": inside.sum() / n if n else np.nan, "p50": p50, "p90": p90,
                "p99": p99, "largest": most, "bins": edges.tolist(), "counts": counts.tolist(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _groups(levels: pd.DataFrame | None) -> Iterator[tuple[str | None, str | None, np.ndarray | None]]:
    yield None, None, None
    for factor in () if levels is None else levels.columns:
        column = levels[factor].astype(str).to_numpy()  # type: ignore[index]
        for level in level_names(levels[factor]):  # type: ignore[index]
            yield str(factor), level, column == level
