"""What a model's tokenizer makes of the stimuli: tokens per region and condition, straddled borders, single targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from neurosae.design.confounds import spearman
from neurosae.errors import DataError
from neurosae.extraction.tokens import Tokenizer, encode, load_tokenizer, make_tokenizer, region_tokens, replaced_token
from neurosae.spec.design import Design


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer from a model folder (with `tokenizer.json`), a fast tokenizer, or what is one already."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else make_tokenizer(tokenizer)


def token_numbers(
    stimuli: pd.DataFrame, tokenizer: Tokenizer, *, regions: tuple[str, ...], allow_straddle: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Token counts of every stimulus, and what is wrong with its borders.

    Returns
    -------
    numbers : one row per stimulus: `tokens of the text`, `tokens of <region>`, `token position of <region>` (of its
        last token, from 1); NA where a text lacks the region
    problems : one sentence for each token that straddles a border, or region without a token
    """
    coded = encode(tokenizer, stimuli["text"].tolist())
    found = {"tokens of the text": [float(len(e.ids) - len(tokenizer.prefix) - len(tokenizer.suffix)) for e in coded]}
    problems: list[str] = []
    for region in regions:
        counts, places = [], []
        spans = zip(stimuli[f"{region}_start"], stimuli[f"{region}_end"], strict=True)
        for name, encoded, (start, end) in zip(stimuli.index, coded, spans, strict=True):
            tokens = np.zeros(0, dtype=int)
            if not pd.isna(start):
                where = f"stimulus '{name}', region '{region}'"
                try:
                    tokens = region_tokens(encoded, (int(start), int(end)), where=where, allow_straddle=allow_straddle)
                except DataError as error:
                    problems.append(str(error))
            counts.append(float(len(tokens)) or np.nan)
            places.append(float(tokens[-1]) + 1 - tokenizer.first if len(tokens) else np.nan)
        found[f"tokens of {region}"], found[f"token position of {region}"] = counts, places
    return pd.DataFrame(found, index=stimuli.index), problems


def unequal_lengths(n_tokens: pd.Series, levels: pd.DataFrame) -> str:
    """Mean number of tokens by condition where its distribution differs between conditions; "" where it does not.

    Parameters
    ----------
    n_tokens : of a region, one per stimulus
    levels : the factors of these stimuli, same index; without columns every difference counts
    """
    factors = [levels[name] for name in levels]
    cells: Any = n_tokens.groupby(factors, observed=True) if factors else [((), n_tokens)]
    shares: dict[Any, Any] = {k: sorted(cell.value_counts(normalize=True).items()) for k, cell in cells}
    first = next(iter(shares.values()))
    if all(share == first for share in shares.values()) and (factors or len(first) == 1):
        return ""
    means = {"/".join(map(str, np.atleast_1d(k))): sum(n * share for n, share in v) for k, v in shares.items()}
    return ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())


def growing_problem(
    stimuli: pd.DataFrame, numbers: pd.DataFrame, *, rule: str, factors: list[str], regions: tuple[str, ...]
) -> str:
    """Why `tokens: max` or `sum` cannot be taken of these regions; "" where it can."""
    for region in regions:
        known = cast("pd.Series", numbers[f"tokens of {region}"].dropna())
        means = unequal_lengths(known, cast("pd.DataFrame", stimuli.loc[known.index, factors])) if len(known) else ""
        if means:
            return growing_words(rule, region, means=means)
    return ""


def growing_words(rule: str, region: str, *, means: str) -> str:
    """The refusal of a maximum or sum over regions of unequal length."""
    return (
        f"{rule} grows with span length, and region '{region}' has different numbers of tokens by condition "
        f"(mean {means}); use last, first or mean, or set length_match: true."
    )


def token_table(design: Design, stimuli: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Mean token counts by level: one row per number and factor, a column `means`, Spearman's `rho` with the levels."""
    rows = []
    columns: list[Any] = list(numbers)
    for column in columns:
        use = numbers[column].notna().to_numpy()
        for factor in design.factors if use.any() else ():
            known, levels = cast("pd.Series", numbers.loc[use, column]), cast("pd.Series", stimuli.loc[use, factor])
            means = known.groupby(levels, observed=True).mean()
            shown = ", ".join(f"{level} {mean:.2f}" for level, mean in means.items())
            rho = spearman(levels.cat.codes.to_numpy(), known.to_numpy())
            rows.append((column, factor, shown, float(np.ptp(means)), rho))
    return pd.DataFrame(rows, columns=["measure", "factor", "means", "spread", "rho"])


def target_problems(design: Design, stimuli: pd.DataFrame, tokenizer: Tokenizer) -> list[str]:
    """Targets and foils that are not one token in their context, each with the first stimulus that has it."""
    if design.target is None:
        return []
    slot, seen = design.target.slot, dict[tuple[str, str], str]()
    rows = zip(stimuli.index, stimuli["text"], stimuli[f"{slot}_start"], stimuli[f"{slot}_end"], strict=True)
    for (name, text, start, end), target, foil in zip(rows, stimuli["target"], stimuli["foil"], strict=True):
        for kind, word in (("target", target), ("foil", foil)):
            if (kind, word) not in seen:
                reason = replaced_token(tokenizer, text, (int(start), int(end)), word=word.strip())[1]
                seen[kind, word] = f"{kind} of '{name}': {reason}" if reason else ""
    return [problem for problem in seen.values() if problem]
