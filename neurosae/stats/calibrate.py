"""The calibration: error rates, discoveries and coverage of every method over a grid of data sets with known truth.

Cells are run one after the other; each finished cell is written at once, so a killed run continues where it stopped.
The numbers are a pure function of the seed, so anyone can repeat them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from neurosae.errors import DataError
from neurosae.spec.files import write_atomic
from neurosae.stats.trials import ALPHA, TRIALS, Score, Scores, Trial, grid, template_of

CELL = ["kind", "design", "balance", "density", "icc", "n_items", "n_features", "n_permutations"]
LEAST = {"coverage": 0.92, "joint coverage": 0.86}
"""Coverage that a 95 % interval must reach with sparse features."""


def calibrate(
    out: str | Path | None = None, *, n_sets: int = 200, full: bool = False, seed: int = 0, version: str = ""
) -> pd.DataFrame:
    """Measure error rates of every method on data without an effect, and discoveries and coverage with known ones.

    Parameters
    ----------
    out : folder, optional
        Where `calibration.csv` is kept; cells that it already holds, with the same `n_sets`, `seed` and `version`, are
        not run again.
    n_sets : int
        Data sets per cell.
    full : bool
        The whole grid {within, between} x {complete, missing frames, 16/16, 8/24} x density x intra-item correlation,
        with effects, intervals and random frames; otherwise ten cells without effects.
    seed : int
    version : str
        Written into every row.

    Returns
    -------
    DataFrame
        One row per cell and score: the cell, `method`, `role`, `measure`, `rate` over `n_sets` data sets, the binomial
        99 % band `low`, `high` and the upper end `limit` of the 99.9 % band around .05, and a `verdict`.

    Notes
    -----
    Below the band is reported and passes: rare features allow few values of p. Rows whose role is `demonstration` are
    methods that must not be used; they are shown failing.

    Examples
    --------
    >>> table = calibrate(n_sets=2, seed=0)
    >>> len(table[CELL].drop_duplicates()), set(table["role"]) == {"tested", "parametric", "demonstration"}
    (10, True)
    """
    return run_cells(grid(full=full), out, n_sets=n_sets, seed=seed, version=version)


def run_cells(
    cells: Sequence[Trial], out: str | Path | None, *, n_sets: int, seed: int, version: str = ""
) -> pd.DataFrame:
    """Run the cells that are not stored yet; see `calibrate`."""
    if n_sets < 1:
        raise DataError(f"n_sets is {n_sets}; give the number of data sets per cell, 200 say.")
    path = None if out is None else Path(out) / "calibration.csv"
    run = {"n_sets": n_sets, "seed": seed, "version": version}
    done = _stored(path, run)
    tables: list[pd.DataFrame] = []
    with tqdm(total=len(cells) * n_sets, unit="set", desc="calibrate", disable=None, mininterval=1) as bar:
        for trial in cells:
            known = done[_same(done, trial)]
            if not len(known):
                known = _table(trial, _scores(trial, n_sets, bar, seed=seed), run)
            else:
                bar.update(n_sets)
            tables.append(known)
            done = done[~_same(done, trial)]
            bar.set_postfix_str(f"{trial.kind} {trial.design} {trial.balance} density {trial.density:g}")
            if path is not None:
                later = [done[_same(done, other)] for other in cells] if len(done) else []
                write_atomic(path, pd.concat([*tables, *later], ignore_index=True).to_csv(index=False))
    return pd.concat(tables, ignore_index=True)


def _stored(path: Path | None, run: dict[str, Any]) -> pd.DataFrame:
    """Rows of an earlier run with the same settings; of any other run nothing can be used."""
    if path is None or not path.is_file():
        return pd.DataFrame(columns=pd.Index(CELL))
    table = pd.read_csv(path, keep_default_na=False, na_values=["nan"], dtype={"balance": str, "version": str})
    if set(run) - set(table.columns) or set(CELL) - set(table.columns):
        return pd.DataFrame(columns=pd.Index(CELL))
    same = np.logical_and.reduce([table[name] == value for name, value in run.items()])
    return table[same]


def _same(table: pd.DataFrame, trial: Trial) -> np.ndarray:
    return np.logical_and.reduce([(table[name] == value).to_numpy() for name, value in trial._asdict().items()])


def _scores(trial: Trial, n_sets: int, bar: Any, *, seed: int) -> list[Scores]:
    template, made = template_of(trial), []
    for number in range(n_sets):
        made.append(TRIALS[trial.kind](trial, template, seed=seed, number=number))
        bar.update(1)
    return made


def _table(trial: Trial, made: Sequence[Scores], run: dict[str, Any]) -> pd.DataFrame:
    """Rates over data sets; a data set in which nothing can be tested makes no error."""
    rows = []
    for score in dict.fromkeys(key for scores in made for key in scores):
        values = np.array([scores.get(score, _nothing(score)) for scores in made])
        rows.append(
            {**trial._asdict(), **score._asdict(), **judged(score, float(np.nanmean(values)), len(made)), **run}
        )
    return pd.DataFrame(rows)


def _nothing(score: Score) -> float:
    return np.nan if "coverage" in score.measure else 0.0


def judged(score: Score, rate: float, n_sets: int) -> dict[str, Any]:
    """A rate with its binomial bands around alpha, and what it says of the method.

    Examples
    --------
    >>> judged(Score("max-T t", "tested", "familywise"), 0.2, 200)["verdict"]
    'above'
    >>> judged(Score("prompts as n", "demonstration", "single test"), 0.2, 200)["verdict"]
    'fails, as it must'
    """
    low, high = stats.binom.interval(0.99, n_sets, ALPHA)
    limit = stats.binom.interval(0.999, n_sets, ALPHA)[1]
    bands = {"rate": rate, "low": low / n_sets, "high": high / n_sets, "limit": limit / n_sets}
    return bands | {"verdict": _verdict(score, rate, bands)}


def _verdict(score: Score, rate: float, bands: dict[str, float]) -> str:
    if score.measure == "power":
        return ""
    if score.measure in LEAST:
        return "inside" if rate >= LEAST[score.measure] else "below"
    above = rate > bands["limit"] + 1e-12
    if score.role == "demonstration":
        return "fails, as it must" if above else "harmless here"
    if above:
        return "above"
    return (
        "inside"
        if bands["low"] - 1e-12 <= rate <= bands["high"] + 1e-12
        else "below"
        if rate < bands["low"]
        else "high"
    )
