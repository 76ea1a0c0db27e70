"""A finished study as it lies on disk; the report knows nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import SpecError, StoreError
from neurosae.spec.design import Design, load_design
from neurosae.spec.load import parse_yaml
from neurosae.spec.results import read_results

EXTRAS = ("items", "cells", "choosing", "scores", "coupling", "requirements", "rdm", "fits", "tokens", "plane",
          "partition", "doses", "controls", "balance", "clamps", "surface", "texts", "profiles", "screen", "lens",
          "attention", "strengths")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The stored files of one study.

    Attributes
    ----------
    results : the results table
    provenance : the record of `provenance.json`; every key may be absent
    stimuli : one row per stimulus
    design, analysis : what the two YAML files say; the second as plain values, so that tests of later versions and of
        users can be read too
    extras : (test, name) -> long table
    nulls : test -> maximum of the family per relabelling
    sources : the exact text of both YAML files
    """

    folder: Path
    results: pd.DataFrame
    provenance: Mapping[str, Any]
    stimuli: pd.DataFrame
    design: Design
    analysis: Mapping[str, Any]
    extras: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    nulls: Mapping[str, np.ndarray] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def read_study(folder: str | Path) -> Study:
    """Read what a finished study left behind.

    Raises
    ------
    StoreError
        If the folder holds no finished study: the message names the missing file and how to get it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(
            f"{folder}: there is no such folder; give the folder of a study, e.g. results/number_agreement."
        )
    for name in ("results.parquet", "provenance.json", "stimuli.parquet", "design.yaml", "analysis.yaml"):
        if not (folder / name).is_file():
            raise StoreError(
                f"{folder}: holds no {name}, so no finished study; run `neurosae run` on its analysis first."
            )
    results = read_results(folder)
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in ("design.yaml", "analysis.yaml")}
    analysis = parse_yaml(sources["analysis.yaml"], name=str(folder / "analysis.yaml")).data
    tests: list[str] = list(dict.fromkeys([*(analysis.get("tests") or {}), *results["test"].dropna()]))
    extras = {
        (test, name): pd.read_parquet(path)
        for test in tests
        for name in EXTRAS
        if (path := folder / "tests" / f"{test}.{name}.parquet").is_file()
    }
    nulls = {
        test: np.load(path, allow_pickle=False)
        for test in tests
        if (path := folder / "tests" / f"{test}.null.npy").is_file()
    }
    return Study(
        folder=folder,
        results=results,
        provenance=_json(folder / "provenance.json"),
        stimuli=pd.read_parquet(folder / "stimuli.parquet"),
        design=load_design(folder / "design.yaml"),
        analysis=analysis,
        extras=extras,
        nulls=nulls,
        sources=sources,
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON ({error}); run the analysis again.") from None
    if not isinstance(record, dict):
        raise StoreError(f"{path}: holds no record; run the analysis again.")
    return record


def section(record: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of a nested record, empty where it is absent or no mapping.

    Examples
    --------
    >>> section({"a": {"b": {"c": 1}}}, "a", "b"), section({"a": 3}, "a", "b")
    ({'c': 1}, {})
    """
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def alpha_of(study: Study) -> float:
    """The level of the study's tests."""
    return float(section(study.analysis, "inference").get("alpha", 0.05))


def factor_levels(study: Study) -> dict[str, tuple[str, ...]]:
    """Levels of every factor, in the order of the design."""
    return {name: tuple(factor.levels) for name, factor in study.design.factors.items()}


def compiled_effects(study: Study) -> dict[str, Effect]:
    """Every declared effect that is weights over cells; one of a user's own kind of test may be something else."""
    made = {}
    for name, effect in section(study.analysis, "effects").items():
        try:
            made[name] = compile_effect(study.design, effect)
        except SpecError:
            continue
    return made


def effect_weights(study: Study) -> pd.DataFrame:
    """Weight of every cell in every declared effect: the design matrix, shape (n_effects, n_cells)."""
    rows = {
        name: {"/".join(cell): float(w) for cell, w in zip(effect.cells, effect.weights, strict=True)}
        for name, effect in compiled_effects(study).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def tested_stimuli(study: Study) -> pd.DataFrame:
    """The stimuli of the test items; all of them where the design has no partition."""
    kept = study.stimuli["split"].astype(str) == "test" if "split" in study.stimuli else None
    return study.stimuli[kept] if kept is not None and kept.any() else study.stimuli


def effect_ends(study: Study) -> dict[str, tuple[str, str]]:
    """Names of the - and + end of every declared effect: the two levels it compares, else "- cells", "+ cells"."""
    ends = {}
    for name, effect in section(study.analysis, "effects").items():
        ends[name] = ("− cells", "+ cells")
        if (
            isinstance(effect, Mapping)
            and len(effect) == 1
            and isinstance(levels := next(iter(effect.values())), Mapping)
        ):
            low = [str(k) for k, w in levels.items() if w < 0]
            high = [str(k) for k, w in levels.items() if w > 0]
            if low and high:
                ends[name] = (" + ".join(low), " + ".join(high))
    return ends
