"""The whole flow on one page: from two YAML files to responses, results and a report; stored stages are reused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import pandas as pd

import neurosae as ns
from neurosae.errors import SpecError
from neurosae.provenance import command_line, counts, families, machine, public, table_hash, versions
from neurosae.spec.files import content_hash, lock, write_atomic
from neurosae.spec.results import is_found, strongest
from neurosae.stages import (
    Study,
    aligned,
    as_values,
    collapsed,
    given_words,
    keep_courses,
    keep_inputs,
    read_json,
    remember_responses,
    remember_texts,
    run_test,
    say,
    unchanged_responses,
    with_given_texts,
    write_json,
)

Mapper = Callable[..., Iterable[Any]]


def run_analysis(
    path: str | Path,
    out: str | Path = "results",
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    tests: Mapping[str, tuple[Any, str]] | None = None,
    mapper: Mapper = map,
) -> pd.DataFrame:
    """From two YAML files to a results table and a report.

    Parameters
    ----------
    path : analysis file
    out : folder of all studies; this one is written to `<out>/<name>/`
    device : `auto`, `cpu`, `cuda` …
    overrides : values that replace `dtype` and `seed` of the file; None keeps what the file says
    tests : registry of tests, default `ns.TESTS`; add your own as `{**ns.TESTS, "mine": (MyBlock, "my.module")}`
    mapper : applies a pure function to extraction shards; `map`, or one that distributes

    Returns
    -------
    DataFrame
        In the results schema; also stored as `results.parquet` and `results.csv` beside `report.html`.
    """
    return run_study(prepare_study(path, out, device=device, overrides=overrides, tests=tests, mapper=mapper))


def prepare_study(
    path: str | Path,
    out: str | Path = "results",
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    tests: Mapping[str, tuple[Any, str]] | None = None,
    mapper: Mapper = map,
) -> Study:
    """Read and check both files; whatever can be refused is refused here, before a model is loaded."""
    path, out, registry = Path(path), Path(out), ns.TESTS if tests is None else tests
    spec = ns.load_analysis(path, registry)
    spec = with_given_texts(_override(spec, overrides or {}), out / spec.name)
    design = None if spec.design is None else ns.load_design(spec.design)
    stimuli = pd.DataFrame() if design is None else ns.expand(design)
    checks = None if design is None else ns.check(design, spec, stimuli, tokenizer=tokenizer_of(spec), path=path)
    place = spec.model.device if device == "auto" else device
    live = cache(lambda: load_live(spec, out, device=place, stimuli=stimuli))
    return Study(path, spec, design, stimuli, checks, live, place, out / spec.name, out, registry, mapper)


def _override(spec: Any, overrides: Mapping[str, Any]) -> Any:
    given = {name: value for name, value in overrides.items() if value is not None}
    if "dtype" in given:
        model = type(spec.model).model_validate({**spec.model.model_dump(), "dtype": given.pop("dtype")})
        given["model"] = model
    return spec.model_copy(update=given)


def load_asked(block: Any, device: str) -> Any:
    """The language model of an analysis, or its random control."""
    asked = {name: getattr(block, name) for name in ("dtype", "weights", "bos", "packing")}
    model = ns.load_model(block.name, device=device, **asked)
    return ns.random_control(model, mode=block.control, seed=block.control_seed) if block.control else model


def load_live(
    spec: Any, out: Path, *, device: str = "auto", stimuli: pd.DataFrame | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load the language model, then the dictionary of every site; what was trained here before is reused."""
    model = load_asked(spec.model, device)
    asked = sites_of(spec, model.n_layers)

    @cache
    def texts() -> Any:
        """Reference text of the fit checks, written once for all sites, when all that is cheaper to check is right."""
        if model.has_head:
            return ns.sample_texts(model, 2048, seed=0, purpose="reference text, to check the fit of the dictionaries")
        known = [] if stimuli is None else list(dict.fromkeys(stimuli["text"]))
        return known or None  # a model without a head writes nothing: its stimuli are the text

    return model, {
        site: ns.load_dictionary(ask, model, store=out, texts=texts, stimuli=stimuli, where=site)
        for site, ask in asked.items()
    }


def sites_of(spec: Any, n_layers: int) -> dict[str, Any]:
    """The sites of an analysis, `blocks.*` written out as one site per layer."""
    return {
        name: site.model_copy(update={"hook": hook})
        for base, site in spec.sites.items()
        for name, hook in ns.expand_hook(base, site.hook, n_layers).items()
    }


def run_study(study: Study) -> pd.DataFrame:
    """Extract, test, look at features where `examine:` asks for it, report."""
    results = test_study(study)
    if study.spec.examine is not None:
        ns.examine_study(study)
    ns.write_report(study.folder)
    return results


def extract_study(study: Study) -> dict[str, Any]:
    """The responses of every site, aligned and collapsed as `positions:` asks; extracted only if not stored."""
    if study.design is None:
        raise SpecError(f"{study.path}:1: design: is missing; extraction needs the file that holds the stimuli.")
    with lock(study.folder):
        return collapsed(_aligned(study), study.spec.positions)


def _aligned(study: Study) -> dict[str, Any]:
    keep_inputs(study)
    positions = study.spec.positions
    responses = unchanged_responses(study)
    if responses is None:
        model, dictionaries = study.live()
        responses = ns.extract(
            study.stimuli, model, dictionaries, positions=positions, store=study.out, mapper=study.mapper
        )
        remember_responses(study, responses, dictionaries)
    return aligned(as_values(study, responses), positions)


def test_study(study: Study) -> pd.DataFrame:
    """Run every test in file order on the stored responses and save the results table with its provenance."""
    if not study.spec.tests:
        raise SpecError(f"{study.path}:1: tests: is missing; name at least one test, or use `neurosae extract`.")
    started = time.monotonic()
    with lock(study.folder):
        every_token = _aligned(study)
        responses = collapsed(every_token, study.spec.positions)
        extracted = time.monotonic()
        done: dict[str, Any] = {}
        for name in study.spec.tests:
            begin = time.monotonic()
            done[name] = run_test(study, name, responses, earlier=done)
            say(study, f"test {name}: {len(done[name].table):,} rows, {time.monotonic() - begin:.1f} s")
        kinds = {test: set(rows) for test, rows in study.checks.exchange.groupby("test")["kind"]}
        ns.write_results(study.folder, ns.stack(done, study.spec.inference, kinds=kinds))
        results = ns.read_results(study.folder)  # what is returned is what is stored
        keep_courses(study, every_token, results)
        times = {"responses": extracted - started, "tests": time.monotonic() - extracted}
        write_json(study.folder / "provenance.json", study_provenance(study, responses, results, times=times))
    return results


test_study.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name


def study_provenance(
    study: Study, responses: Mapping[str, Any], results: pd.DataFrame, *, times: Mapping[str, float]
) -> dict[str, Any]:
    """Everything that the results of a study rest on, as one JSON-able record."""
    sites = {site: ns.provenance_of(adata) for site, adata in responses.items()}
    first, stored = next(iter(sites.values())), read_json(study.folder / "responses.json")
    warned = [w for record in sites.values() for w in record.get("warnings", [])]
    warned += [f"site {site}: {w}" for site, card in stored["dictionaries"].items() for w in card.get("warnings", [])]
    warned += given_words(study.folder)
    groups = study.stimuli.groupby("split", observed=True)["item"]
    record = {
        "command": command_line(),
        "versions": versions(),
        "model": {**first["model"], "batch_invariance": first["batch_invariance"]},
        "dictionaries": stored["dictionaries"],
        "responses": stored["responses"],
        "design_hash": content_hash((study.folder / "design.yaml").read_bytes()),
        "analysis_hash": content_hash((study.folder / "analysis.yaml").read_bytes()),
        "stimuli_hash": table_hash(study.stimuli),
        "dtype": first["model"]["dtype"],
        "device": first["model"]["device"],
        **machine(),
        "seed": study.spec.seed,
        "n_permutations": study.spec.inference.n_permutations,
        "alpha": study.spec.inference.alpha,
        "families": families(results),
        "items": {str(split): int(n) for split, n in groups.nunique().items()},
        "exchangeability": dict(study.checks.exchangeability),
        "check_text": study.checks.text(),
        "methods": counts(results),
        "extraction": first.get("extraction"),
        "times": {name: round(seconds, 2) for name, seconds in times.items()},
        "warnings": list(dict.fromkeys([*study.checks.warnings, *warned])),
    }
    return public(record)


# ------------------------------------------------------------------ the other verbs


def check_file(path: str | Path, *, tokenizer: str | Path | None = None) -> Any:
    """Check a design or an analysis file, whichever it is; a local model's tokenizer is used without loading it."""
    path = Path(path)
    if _is_design(path):
        return ns.check(ns.load_design(path), tokenizer=tokenizer, path=path)
    spec = ns.load_analysis(path)
    if spec.design is None:
        raise SpecError(f"{path}:1: design: is missing; there is nothing to check without stimuli.")
    return ns.check(ns.load_design(spec.design), spec, tokenizer=tokenizer or tokenizer_of(spec), path=path)


def tokenizer_of(spec: Any) -> Path | None:
    """The folder of the tokenizer of an analysis, where the model lies on this machine."""
    folder = ns.find_checkpoint("embedded") if spec.model.name == "embedded" else Path(spec.model.name)
    return folder if (folder / "tokenizer.json").is_file() else None


def _is_design(path: Path) -> bool:
    """By the schema line or, where that is missing, by the section that only a design has."""
    text = path.read_bytes() if path.is_file() else b""
    schema = re.search(rb"^schema:[ '\"]*neurosae/(\w+)", text, re.MULTILINE)
    return schema[1] == b"design" if schema else re.search(rb"^factors:", text, re.MULTILINE) is not None


def train_study(study: Study, texts: list[Path]) -> dict[str, Path]:
    """Train the dictionaries that the sites of an analysis ask for, several sites in one pass over the text.

    Parameters
    ----------
    texts : files or data set folders that replace the sites' own `texts`, here and in all that is run afterwards; none:
        theirs, else the model's own samples

    Returns
    -------
    {site: folder of the finished dictionary}
    """
    remember_texts(study.folder, texts)
    spec = with_given_texts(ns.load_analysis(study.path, study.tests), study.folder)
    model = load_asked(study.spec.model, study.device)
    asked = {name: site for name, site in sites_of(spec, model.n_layers).items() if site.dictionary.train}
    if not asked:
        raise SpecError(f"{study.path}:1: sites: none asks for training; write `dictionary: {{train: {{d_sae: …}}}}`.")
    return ns.train_sites(asked, model, store=study.out, texts=tuple(map(str, texts)))


def calibrate_study(study: Study, *, n_sets: int) -> pd.DataFrame:
    """Shuffle the labels of the study's own responses and count how often each contrast finds anything.

    A test is calibrated as it is run: its effects, regions and sites are one family, with its own statistic and
    correction. Tests of features that another test chooses are left out, and named.
    """
    responses = extract_study(study)
    spec, rows = study.spec, []
    for name, ask in spec.tests.items():
        if ask.test != "contrast" or ask.features is not None:
            say(study, f"null {name}: left out, only contrasts over all features can be calibrated by shuffling")
            continue
        changed = {key: getattr(ask, key) for key in ("statistic", "correction", "alternative")}
        row = ns.null_rate(
            {site: responses[site] for site in ask.sites or responses},
            {effect: spec.effects[effect] for effect in ask.effect},
            region=ask.region,
            split=ask.split,
            inference=spec.inference.model_copy(update={k: v for k, v in changed.items() if v is not None}),
            n_sets=n_sets,
            seed=spec.seed,
        )
        rows.append(row.assign(test=name, effect=", ".join(ask.effect)))
    if not rows:
        raise SpecError(f"{study.path}:1: tests: none is a contrast over all features; there is nothing to calibrate.")
    table = pd.concat(rows, ignore_index=True)
    return table[["test", "effect", *(c for c in table if c not in ("test", "effect"))]]


def calibrate_methods(out: str | Path, *, n_sets: int = 200, full: bool = False, seed: int = 0) -> pd.DataFrame:
    """Run the calibration grid (`ns.calibrate`); writes calibration.csv and, made from it, calibration.md."""
    table = ns.calibrate(out, n_sets=n_sets, full=full, seed=seed, version=versions()["neurosae"])
    command = f"neurosae calibrate{' --full' * full} --sets {n_sets} --seed {seed}"
    write_atomic(Path(out) / "calibration.md", ns.calibration_page(table, command=command))
    return table


def power_study(study: Study) -> pd.DataFrame:
    """Plan the number of items as `power:` asks; writes power.csv, power.svg and power.png.

    Stored responses of the study are the pilot, where there are any: their noise is used, their effect never. Without
    them, noise is simulated for the design. No model is loaded.
    """
    spec, ask = study.spec, study.spec.power
    contrasts = [block for block in spec.tests.values() if block.test == "contrast"]
    if study.design is None or not (contrasts or (ask.effect and ask.region)):
        raise SpecError(f"{study.path}:1: power: needs a design, and a contrast or its own effect and region.")
    effect = ask.effect or contrasts[0].effect[0]
    settings = ask.model_copy(update={"region": ask.region or contrasts[0].region[0]})
    with lock(study.folder):
        stored = unchanged_responses(study) if ask.noise == "pilot" else None
        source = study.design
        if stored is not None:
            whole = aligned(as_values(study, stored), spec.positions)
            source = collapsed(whole, spec.positions)[ask.site or next(iter(stored))]
        say(study, f"power: {effect} at {settings.region}, noise from {'stored' if stored else 'simulated'} responses")
        table = ns.power(source, spec.effects[effect], settings=settings, inference=spec.inference, seed=spec.seed)
        ns.write_table(study.folder / "power.csv", table.set_index("method"))
        ns.write_power(study.folder, table)
    return table


def needs_network(spec: Any) -> bool:
    """Whether an analysis names something that only a hub has: a model id, or a released dictionary."""
    return ns.is_hub_id(spec.model.name) or any(site.dictionary.release for site in spec.sites.values())


def summarize(results: pd.DataFrame, alpha: float = 0.05) -> str:
    """A few lines per test for the terminal: how many were tested, how many were found, and the strongest.

    The strongest is the first by corrected p, then |value|, then index, as in the report. A model RDM is one row: its
    fit, p and noise ceiling. What failed is named with its reason.

    Examples
    --------
    >>> from neurosae.spec.results import as_results
    >>> found = as_results({"test": "number", "kind": "contrast", "effect": "subject", "site": "late", "region": "head",
    ...     "feature": [3, 8], "n_features": 1, "value": [5.0, 0.1], "p_corr": [0.01, 0.9], "status": "ok"})
    >>> print(summarize(found))
    test    effect   region  site  tested  found  strongest
    number  subject  head    late       2      1  feature 3, value 5, p_corr 0.01
    """
    lines = [["test", "effect", "region", "site", "tested", "found", "strongest"]]
    keys = ["test", "effect", "region", "site"]
    for key, rows in results.groupby(keys, sort=False, dropna=False, observed=True):
        names = ["-" if pd.isna(part) else str(part) for part in cast("tuple[Any, ...]", key)]
        lines.append([*names, *_summary_words(rows, alpha)])
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    right = (4, 5)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _summary_words(rows: pd.DataFrame, alpha: float) -> list[str]:
    """How many rows were tested and found, the strongest of them, and what failed or has no variance."""
    tested = rows[rows["p_corr"].notna() & rows["status"].isin(["ok", "degenerate"])]
    found, words, known = int(is_found(tested, alpha).sum()), "-", rows[rows["value"].notna()]
    if len(known):  # the fit of a nuisance model is described, not tested
        best = strongest(tested if len(tested) else known)
        name = f"feature {best['feature']}, " if pd.notna(best["feature"]) else ""
        fit = str(best["stat"]).replace("_", " ") if rows["kind"].eq("rsa").any() else "value"
        p = f"p_corr {best['p_corr']:.2g}" if pd.notna(best["p_corr"]) else "described, not tested"
        words = f"{name}{fit} {best['value']:.3g}, {p}"
        ceiling = best.get("x_ceiling")
        words += f", ceiling {ceiling:.2g}" if pd.notna(ceiling) else ""
    flat = int((tested["status"] == "degenerate").sum())
    words += f"; {flat:,} without variance, not counted" if flat else ""
    failed = rows[rows["status"] == "failed"]
    if len(failed):
        positions = ", ".join(str(p) for p in failed["position"].dropna().unique())
        words += f"; FAILED{f' at position {positions}' if positions else ''}: {failed['note'].iloc[0]}"
    pattern = len(tested) == 1 and rows["kind"].eq("rsa").all()  # one model at one place: found or not
    return [f"{len(tested):,}", ("yes" if found else "no") if pattern else f"{found:,}", words]
