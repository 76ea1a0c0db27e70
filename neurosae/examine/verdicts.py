"""What a found string is worth: its surprisal beside that of real examples, and whether the feature's rule predicts it.

A search finds a string for every feature, whether the feature means anything or not. The string counts only where the
rule that was found on texts, and that held on others, would have predicted it.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.examine.directions import token_text
from neurosae.examine.inversion import surprisal_at
from neurosae.examine.rules import piece_table, rule_holds
from neurosae.examine.seen import Seen
from neurosae.extraction.tokens import agreed_bos, token_ids

SOURCES = ("text", "study")
"""Where rules and examples are taken from: running text before the study's own, which were written for a contrast."""
COUNTS, NOT = "counts: ", "does not count: "


class Verdict(NamedTuple):
    """Whether a rule predicts a string (None: there is no rule that could), which rule, from where, and in words."""

    predicted: bool | None
    rule: str | None
    source: str | None
    words: str


def rule_verdict(rules: pd.DataFrame, pieces: Sequence[str], *, alpha: float = 0.05) -> Verdict:
    """What the rule of a feature says of a string that was found for it, read at the last of its tokens.

    Parameters
    ----------
    rules : rows of one feature of `detect_rule`, best first, with a column `source` where they are of several texts
    pieces : the string, cut at its tokens
    alpha : the best rule is the feature's rule only if its p over all rules is at most this

    Examples
    --------
    >>> says = '{"columns": ["token"], "among": ["ship"]}'
    >>> rules = pd.DataFrame({"rule": ["the token is 'ship'"], "says": [says], "auroc": [0.9], "p_corr": [0.01]})
    >>> rule_verdict(rules, ["the", " ship"]).words, rule_verdict(rules, [" ship", " was"]).predicted
    ('counts: its rule predicts it', False)
    """
    if not len(rules):
        return Verdict(None, None, None, f"{NOT}no rule was looked for")
    best, source = _best(rules)
    if pd.isna(best["auroc"]):
        return Verdict(None, None, source, f"{NOT}the feature {str(best['note']).rstrip('.')}")
    if not best["p_corr"] <= alpha:
        text = f"{NOT}no rule holds; the best has p {best['p_corr']:.2g} over all rules"
        return Verdict(None, str(best["rule"]), source, text)
    says = json.loads(best["says"])
    if "factor" in says:
        text = f"{NOT}its rule speaks of a level of the design, which a string does not have"
        return Verdict(None, str(best["rule"]), source, text)
    true = bool(rule_holds(says, piece_table(pieces))[-1])
    words = f"{COUNTS}its rule predicts it" if true else f"{NOT}its rule does not predict it"
    return Verdict(true, str(best["rule"]), source, words)


def _best(rules: pd.DataFrame) -> tuple[pd.Series, str | None]:
    """The best rule of the first source that has a scored one; where none has, the reason of the first."""
    if "source" not in rules:
        return rules.iloc[0], None
    order = sorted(dict.fromkeys(rules["source"]), key=lambda s: SOURCES.index(s) if s in SOURCES else len(SOURCES))
    tops = [(rules[rules["source"].eq(source)].iloc[0], source) for source in order]
    return next((top for top in tops if pd.notna(top[0]["auroc"])), tops[0])


def judge_strings(
    model: Any,
    dictionary: Any,
    found: pd.DataFrame,
    *,
    rules: pd.DataFrame,
    examples: pd.DataFrame,
    seen: Mapping[str, Seen],
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Found strings with what they are worth beside them.

    Parameters
    ----------
    model, dictionary : as given to `invert_feature`
    found : last rows of `invert_feature`, with a column `feature`
    rules, examples : of the same site, with a column `source`
    seen : {source: Seen}, what `examples` were taken from
    alpha : as in `rule_verdict`

    Returns
    -------
    DataFrame
        `found` with `predicted` (missing where there is no rule that could), `verdict`, `rule`, `rule_source`;
        `surprisal_examples`, the median over the feature's strongest examples of the mean surprisal of as many tokens,
        up to the active one, `n_examples`; `typed`, whether the string is cut into the same tokens when it is typed;
        `note`, why a surprisal is missing.
    """
    tokens: Any = agreed_bos(model.tokens, {"": dictionary})
    rows = []
    for _, row in found.iterrows():
        ids = [int(i) for i in row["token_ids"]]
        verdict = rule_verdict(_of(rules, row), [token_text(tokens, i) for i in ids], alpha=alpha)
        bits = _surprisals(model, dictionary, examples=_of(examples, row), seen=seen, n=len(ids))
        note = None if model.has_head else "no surprisal: the model has no head that predicts tokens."
        rows.append({
            "predicted": verdict.predicted, "verdict": verdict.words, "rule": verdict.rule,
            "rule_source": verdict.source, "surprisal_examples": float(np.median(bits)) if bits else np.nan,
            "n_examples": len(bits), "typed": token_ids(tokens, [row["text"]], specials=False)[0] == ids, "note": note,
        })  # fmt: skip
    kept = found.drop(columns="predicted").reset_index(drop=True)
    return pd.concat([kept, pd.DataFrame(rows)], axis=1).astype({"predicted": "boolean"})


def _of(table: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    return table[table["feature"].eq(row["feature"])]


def _surprisals(
    model: Any, dictionary: Any, *, examples: pd.DataFrame, seen: Mapping[str, Seen], n: int
) -> list[float]:
    """Mean surprisal of the last n tokens of every strongest example, of the source that rules are taken from."""
    top = examples[examples["kind"].eq("top")]
    source = next((name for name in SOURCES if top["source"].eq(name).any()), None)
    if source is None or not model.has_head:
        return []
    one, out = seen[source], []
    for _, row in top[top["source"].eq(source)].iterrows():
        mine = np.flatnonzero(one.text == row["text"])
        last = mine[one.token_index[mine] == row["token_index"]].item()
        first = mine[one.token_index[mine] == one.start[last]].item()
        bits = surprisal_at(model, dictionary, one.ids[first : last + 1].tolist(), n=n)
        out += [] if np.isnan(bits) else [bits]
    return out
