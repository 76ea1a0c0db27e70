"""Rules that tell where a feature fires, found and scored on running text: the offline answer to "what is it?".

A rule is a plain statement about a token: it is one of some words, follows one, matches an expression, stands first in
its text, belongs to a factor level. Rules are proposed on one half of the texts and scored on the other; that many were
tried is paid for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import DataError
from neurosae.examine.seen import Seen, cut_text, watch
from neurosae.extraction.tokens import Tokenizer, agreed_bos

SIZES = (1, 2, 4, 8, 16, 32)  # words of the lists that are proposed
CLASSES = {
    "is capitalised": r"[A-Z].*", "is a number": r"\d+", "is punctuation": r"[^\w\s]+", "is one letter": r"\w",
    "ends in s": r".*s", "ends in ed": r".*ed", "ends in ing": r".*ing", "ends in ly": r".*ly",
}  # fmt: skip
"""Expressions that the word of a token must match as a whole."""
READ = ("token", "word", "previous", "first", "last")
"""What a rule can read of a token."""


class Rule(NamedTuple):
    """A statement about tokens: kind, what it says in words, and the same as `rule_holds` reads it."""

    kind: str
    words: str
    says: Mapping[str, Any]


def token_table(seen: Seen, texts: Sequence[str], tokenizer: Tokenizer) -> pd.DataFrame:
    """One row per token: `text token word previous first last`, as rules speak of them.

    `token` is without its blank and in lower case, `word` what stands between blanks around it (punctuation apart),
    `previous` the token before it, empty at the start of a text.
    """
    rows: dict[str, list[Any]] = {name: [] for name in READ}
    for number, n in zip(*np.unique(seen.text, return_counts=True), strict=True):
        for name, values in _pieces(cut_text(tokenizer, texts[int(number)])[:n]).items():
            rows[name] += values
    return pd.DataFrame({"text": seen.text, **rows})


def piece_table(pieces: Sequence[str]) -> pd.DataFrame:
    """The same of one text that is cut into pieces already, without its number.

    Examples
    --------
    >>> piece_table(["The", " old", " boat", "s", "."])[["token", "word", "previous"]].values.tolist()[2:]
    [['boat', 'boats', 'old'], ['s', 'boats', 'boat'], ['.', '.', 's']]
    """
    return pd.DataFrame(_pieces(pieces))


def _pieces(pieces: Sequence[str]) -> dict[str, list[Any]]:
    plain, n = [piece.strip().lower() for piece in pieces], len(pieces)
    ends = [i == 0 for i in range(n)], [i == n - 1 for i in range(n)]
    return dict(zip(READ, (plain, _words(pieces), ["", *plain][:n], *ends), strict=True))


def _words(pieces: Sequence[str]) -> list[str]:
    """The word that each piece belongs to: a new one begins at a blank, and between letters and other signs."""
    number, numbers = -1, []
    for i, piece in enumerate(pieces):
        core, before = piece.strip(), pieces[i - 1] if i else " "
        joined = core[:1].isalnum() and before[-1:].isalnum() and not piece[:1].isspace()
        number += not (joined or not core)
        numbers.append(max(number, 0))
    whole = [""] * (max(numbers, default=-1) + 1)
    for piece, n in zip(pieces, numbers, strict=True):
        whole[n] += piece.strip()
    return [whole[n] for n in numbers]


def detect_rule(
    model: Any,
    dictionary: Any,
    texts: Sequence[str],
    *,
    feature: int,
    levels: pd.DataFrame | None = None,
    groups: Sequence[Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    r"""Find the rule that best tells on which tokens a feature is active, and score it on held-out text.

    With "rule true" as the only evidence, AUROC = (P(true | f > 0) + P(false | f = 0)) / 2.

    Parameters
    ----------
    model, dictionary, texts : as given to `top_examples`
    feature : feature index
    levels : one row per text, one column per factor; every level is a rule
    groups : what belongs together, e.g. the item of each text; left out, every text by itself. Halves never split a
        group, and groups are the units of the test
    settings : `words` ({name: words}: lists of your own), `patterns` ({name: expression that the word must match}),
        `n_permutations` (2,000), `n_tokens`, `seed` (0; of the halves and flips)

    Returns
    -------
    DataFrame
        One row per rule, best first: `site feature kind rule says auroc auroc_hard sensitivity specificity n_true
        n_active n_tokens n_units p_corr note`. `auroc_hard` is that among tokens which the feature fires on at least
        once, so that the token alone does not help (missing where there are none); p_corr holds over all rules tried;
        `says` is the rule as JSON, for `rule_holds`.

    Notes
    -----
    H0: on held-out texts the rule and f > 0 are uncorrelated over tokens. The score
    u_g = sum_{t in g} (rule_t - mean)(active_t - mean) of every group is given a random sign, the same for all rules;
    the statistic is sum u / sqrt(sum u^2), its maximum over the rules is counted, identity included, one-sided. The
    means are estimated, so p is approximate for few groups. A rule that holds is not what the feature "is".

    References
    ----------
    Liu (1988), Annals of Statistics 16:1696 (wild bootstrap); Westfall & Young (1993).

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw, texts = neuron_dictionary("blocks.0.hook_embed", 8), ["ab ba", "cab", "b a", "abc", "bb", "a"] * 4
    >>> found = detect_rule(load_model(toy), neuron_dictionary("hook_embed", 8), texts, feature=3)
    >>> bool(found["auroc"].is_monotonic_decreasing)
    True
    """
    asked = rule_settings(settings)
    seen = watch(model, {"site": dictionary}, texts, features={"site": [feature]}, n_tokens=asked["n_tokens"])["site"]
    tokenizer: Any = agreed_bos(model.tokens, {"site": dictionary})
    return rules_of(seen, texts, tokenizer, levels=levels, groups=groups, settings=asked)


def rule_settings(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings with their defaults; unknown ones are refused."""
    known: dict[str, Any] = {"words": {}, "patterns": {}, "n_permutations": 2000, "n_tokens": None, "seed": 0}
    if wrong := sorted(set(given or {}) - set(known)):
        raise DataError(f"settings of rules has no '{wrong[0]}'; known: {', '.join(known)}.")
    made = known | dict(given or {})
    for name, pattern in made["patterns"].items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise DataError(f"patterns.{name}: '{pattern}' is no regular expression ({error}).") from None
    return made


def rules_of(
    seen: Seen,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    levels: pd.DataFrame | None = None,
    groups: Sequence[Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Rules of every feature that was seen already; see `detect_rule`."""
    asked, units = (
        rule_settings(settings),
        np.arange(len(texts)) if groups is None else pd.factorize(np.array(groups))[0],
    )
    if len(units) != len(texts) or (levels is not None and len(levels) != len(texts)):
        raise DataError(f"there are {len(texts)} texts; give one group and one row of levels for each.")
    tokens = token_table(seen, texts, tokenizer)
    unit = units[seen.text]
    order = np.random.default_rng([asked["seed"], 1]).permutation(np.unique(unit))
    held = np.isin(unit, order[len(order) // 2 :])
    tables = []
    for feature in seen.features.tolist():
        active = np.zeros(len(tokens), dtype=bool)
        active[seen.column(feature)[0]] = True
        if note := _not_scored(active, held):
            row = {"feature": feature, "n_active": int(active.sum()), "n_tokens": len(active), "note": note}
            tables.append(pd.DataFrame([row]))
            continue
        rules = list(_proposed(tokens, active & ~held, ~held, levels=levels, settings=asked))
        true = np.stack([rule_holds(rule.says, tokens, levels)[held] for rule in rules])
        table = _scored(rules, true, active[held], unit=unit[held], ids=seen.ids[held], settings=asked)
        tables.append(table.assign(feature=feature))
    made = pd.concat(tables, ignore_index=True).assign(site=seen.site)
    order_ = ["site", "feature", "kind", "rule", "says", "auroc", "auroc_hard", "sensitivity", "specificity", "n_true",
              "n_active", "n_tokens", "n_units", "p_corr", "note"]  # fmt: skip
    return made.reindex(columns=order_)


def _not_scored(active: np.ndarray, held: np.ndarray) -> str | None:
    """Why no rule can be scored: a feature that is silent, or never silent, in one half of the texts."""
    if not active.any():
        return "is active on no token; no rule can be scored."
    if active.all():
        return "is active on every token; there is nothing for a rule to tell apart."
    if not active[held].any() or not active[~held].any():
        return "is active in one half of the texts alone; no rule can be scored."
    return "is active on every token of the half that scores; no rule can be scored." if active[held].all() else None


def _proposed(
    tokens: pd.DataFrame, active: np.ndarray, train: np.ndarray, *, levels: pd.DataFrame | None,
    settings: Mapping[str, Any],
) -> Iterator[Rule]:  # fmt: skip
    """Rules in the order in which ties are broken: the plain ones first."""
    for name, members in settings["words"].items():
        says = {"columns": ["word", "token"], "among": sorted({str(member).lower() for member in members})}
        yield Rule("your words", f"the word is one of {name}", says)
    for name, pattern in settings["patterns"].items():
        yield Rule("your pattern", f"the word matches {name}", {"columns": ["word"], "matches": pattern})
    for column, kind, said in (("token", "words", "the token is"), ("previous", "previous", "the token before it is")):
        best = _enriched(tokens[column].to_numpy(dtype=str), active, train)
        for size in [n for n in SIZES if n == 1 or n <= len(best)]:
            if len(best) >= size:
                names = ", ".join(f"'{name}'" if name else "nothing" for name in best[:size])
                of = "" if size == 1 else "one of "
                yield Rule(kind, f"{said} {of}{names}", {"columns": [column], "among": best[:size]})
    for name, pattern in CLASSES.items():
        yield Rule("characters", f"the word {name}", {"columns": ["word"], "matches": pattern})
    yield Rule("position", "the first token of the text", {"columns": ["first"]})
    yield Rule("position", "the last token of the text", {"columns": ["last"]})
    for factor in () if levels is None else levels.columns:
        for level in pd.unique(levels[factor].astype(str)):  # type: ignore[index]
            yield Rule("level", f"the text is {factor}: {level}", {"factor": str(factor), "level": str(level)})


def rule_holds(says: Mapping[str, Any], tokens: pd.DataFrame, levels: pd.DataFrame | None = None) -> np.ndarray:
    """On which rows of a token table a rule is true.

    Parameters
    ----------
    says : what the rule reads: `columns`, true where one of them is (in lower case) `among` some words, `matches` an
        expression as a whole, or is true; or `factor` and `level` of the text
    tokens : of `token_table`, or of `piece_table` for rules that do not speak of levels
    levels : one row per text, one column per factor

    Examples
    --------
    >>> tokens = piece_table(["The", " boat", "s"])
    >>> rule_holds({"columns": ["word"], "matches": ".*s"}, tokens).tolist()
    [False, True, True]
    """
    if "factor" in says:
        if levels is None or says["factor"] not in levels:
            raise DataError(f"the rule speaks of the factor '{says['factor']}', which these texts do not have.")
        return (levels[says["factor"]].astype(str).to_numpy() == says["level"])[tokens["text"].to_numpy()]
    made = np.zeros(len(tokens), dtype=bool)
    for name in says["columns"]:
        column = tokens[name]
        if "among" in says:
            made |= column.str.lower().isin(says["among"]).to_numpy()
        else:
            words = column.to_numpy()
            made |= _matches(words.astype(str), says["matches"]) if "matches" in says else words.astype(bool)
    return made


def _matches(words: np.ndarray, pattern: str) -> np.ndarray:
    known = {word: re.fullmatch(pattern, word) is not None for word in np.unique(words).tolist()}
    return np.array([known[word] for word in words.tolist()], dtype=bool)


def _enriched(names: np.ndarray, active: np.ndarray, train: np.ndarray) -> list[str]:
    """Names by how much each, as a rule of its own, adds to AUROC on the training half; those that add nothing not."""
    found, code = np.unique(names, return_inverse=True)
    hits = np.bincount(code[active], minlength=len(found)) / max(active.sum(), 1)
    misses = np.bincount(code[train & ~active], minlength=len(found)) / max((train & ~active).sum(), 1)
    gain = hits - misses
    best = np.argsort(-gain, kind="stable")[: max(SIZES)]
    return [str(found[i]) for i in best if gain[i] > 0]


def _scored(
    rules: Sequence[Rule], true: np.ndarray, a: np.ndarray, *, unit: np.ndarray, ids: np.ndarray,
    settings: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Scores on the tokens of the half that scores, true (n_rules, n_tokens) and active (n_tokens,)."""
    R, group = true.astype(np.float64), pd.factorize(unit)[0]
    hard = np.isin(ids, ids[a])
    p, n_units = _p_over_rules(R, a, group, settings=settings)
    sensitivity, specificity = R[:, a].mean(axis=1), 1 - R[:, ~a].mean(axis=1)
    either = (hard & a).any() and (hard & ~a).any()
    harder = (R[:, hard & a].mean(axis=1) + 1 - R[:, hard & ~a].mean(axis=1)) / 2 if either else np.nan
    table = pd.DataFrame({
        "kind": [rule.kind for rule in rules], "rule": [rule.words for rule in rules],
        "says": [json.dumps(rule.says, ensure_ascii=False) for rule in rules],
        "auroc": (sensitivity + specificity) / 2, "auroc_hard": harder, "sensitivity": sensitivity,
        "specificity": specificity, "n_true": R.sum(axis=1).astype(int), "n_active": int(a.sum()),
        "n_tokens": len(a), "n_units": n_units, "p_corr": p, "note": None,
    })  # fmt: skip
    return table.sort_values("auroc", ascending=False, kind="stable")


def _p_over_rules(R: np.ndarray, a: np.ndarray, group: np.ndarray, *, settings: Mapping[str, Any]):
    """One-sided p of every rule, from signs of whole groups and the maximum over rules; and the number of groups."""
    n = int(group.max()) + 1
    each = (R - R.mean(axis=1, keepdims=True)) * (a - a.mean())
    u = np.stack([np.bincount(group, row, minlength=n) for row in each])
    size = np.sqrt((u**2).sum(axis=1))
    u = u / np.where(size > 0, size, 1)[:, None]
    draw = np.random.default_rng([settings["seed"], 2])
    signs = draw.choice([-1.0, 1.0], (settings["n_permutations"], n))
    signs[0] = 1  # the identity
    null = (u @ signs.T).max(axis=0)
    value = u.sum(axis=1)
    return (null[None] >= value[:, None] - 1e-9).mean(axis=1), n
