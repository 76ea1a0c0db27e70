"""What interventions will cost before they run: forward rows, tokens, and about how long, in a table.

A row is one text under one condition. Rows of a batch carry different texts and conditions, so the number of passes is
that of tokens, not of conditions. Seconds are those of a few rows timed on the texts themselves; layers below the edit
run once per text there as in the test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from neurosae.causal.edits import Edit
from neurosae.causal.material import Place
from neurosae.causal.passes import edited_outcomes
from neurosae.dictionary.budget import time_words
from neurosae.errors import NeurosaeError

LONG = 10.0  # seconds from which the table is printed before the run
TEXTS, CONDITIONS = 4, (2, 16, 80)  # of the rows that are timed: a first run that warms up, a short and a longer one


class Part(NamedTuple):
    """Some conditions on some texts.

    where : columns that say the place;  part : what is run;  n_conditions : how many
    n_texts, n_tokens : of one condition: texts, and tokens of all of them
    """

    where: dict[str, Any]
    part: str
    n_conditions: int
    n_texts: int
    n_tokens: int


def part_of(place: Place, where: dict[str, Any], part: str, *, n_conditions: int) -> Part:
    """Conditions on the texts of a place, which are run up to the token that predicts the target."""
    shown = {name: where[name] for name in ("site", "region", "mode", "feature") if name in where}
    return Part(shown, part, n_conditions, len(place.prompts.ids), int((place.prompts.at + 1).sum()))


def tokens_per_second(place: Place) -> float:
    """How many tokens of edited texts a second takes here; nan where a small push at this place moves nothing."""
    size = float(np.sqrt(np.mean(np.square(place.x)))) if place.x.size else 1.0
    vector = np.random.default_rng(0).standard_normal(place.dictionary.d_in).astype(np.float32) * size * 0.1
    condition = (Edit(place.dictionary.hook, "add", place.region, vector=vector),)
    some = place.stimuli.iloc[:TEXTS]
    n_tokens = int((place.prompts.at[: len(some)] + 1).sum())
    taken = []
    for n in CONDITIONS:
        begun = time.perf_counter()
        try:
            edited_outcomes(some, place.prompts.model, [condition] * n)
        except NeurosaeError:
            return np.nan
        taken.append(time.perf_counter() - begun)
    _, short, longer = taken
    # what every run needs once is in both
    more = longer - short if longer > short else longer
    return n_tokens * (CONDITIONS[2] - CONDITIONS[1] * (longer > short)) / max(more, 1e-9)


def workload(parts: Sequence[Part], rate: float) -> pd.DataFrame:
    """The cost table: one row per part, `site region mode feature part conditions texts rows tokens seconds`.

    Examples
    --------
    >>> made = workload([Part({"site": "late", "region": "head"}, "target and controls", 100, 96, 960)], 9600.0)
    >>> made[["conditions", "texts", "rows", "tokens", "seconds"]].values.tolist()
    [[100.0, 96.0, 9600.0, 96000.0, 10.0]]
    """
    rows = [
        part.where
        | {"part": part.part, "conditions": part.n_conditions, "texts": part.n_texts}
        | {"rows": part.n_conditions * part.n_texts, "tokens": part.n_conditions * part.n_tokens}
        for part in parts
    ]
    table = pd.DataFrame(rows)
    return table.assign(seconds=table["tokens"] / rate)


def announce(test: str, table: pd.DataFrame) -> str:
    """Say what a long run costs before it begins; returns what was said, empty where it is short."""
    seconds = float(table["seconds"].sum())
    if not seconds > LONG:
        return ""
    total = table[["conditions", "rows", "tokens"]].sum()
    lines = [
        f"{test}: {total['conditions']:,} conditions, {total['rows']:,} rows (text x condition), "
        f"{total['tokens']:,} tokens: about {time_words(seconds)}"
    ]
    for part, rows in table.groupby("part", sort=False):
        share = time_words(float(rows["seconds"].sum()))
        lines.append(f"  {part}: {rows['rows'].sum():,} rows, {rows['tokens'].sum():,} tokens, about {share}")
    said = "\n".join(lines)
    tqdm.write(said, file=sys.stderr)
    return said
