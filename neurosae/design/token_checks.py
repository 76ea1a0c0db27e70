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
