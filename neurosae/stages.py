"""A study on disk: what each stage stores, and when a stored stage may be trusted instead of run again."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

import neurosae as ns
from neurosae.design.weights import compile_effect
from neurosae.errors import StoreError
from neurosae.provenance import table_hash, versions
from neurosae.spec.files import atomic_path, content_hash, write_atomic
from neurosae.spec.results import Tested, ranked

STRONGEST = 8  # features of a test whose course is kept
GIVEN = "training_texts.json"  # in the folder of a study: what `neurosae train --text` named


@dataclass(frozen=True)
class Study:
    """What a test may look at: the two files, the stimuli, and the model with its dictionaries, loaded when asked for.

    Attributes
    ----------
    path : the analysis file
    spec, design : what the two files say
    stimuli : one row per text
    checks : what `check` found
    live : returns (model, {site: dictionary}); the first call loads them
    device : where the model runs
    folder, out : the folder of this study, and of all studies
    tests : kind of test -> (schema, module)
    mapper : applies a function to extraction shards
    """

    path: Path
    spec: Any
    design: Any
    stimuli: pd.DataFrame
    checks: Any
    live: Callable[[], tuple[Any, dict[str, Any]]]
    device: str
    folder: Path
    out: Path
    tests: Mapping[str, tuple[Any, str]]
    mapper: Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Finished:
    """A finished study, read from its folder.

    Attributes
    ----------
    stimuli, results : tables
    provenance : the record of `provenance.json`
    responses : {site: AnnData}, not aligned; empty where the store beside the study was removed
    """

    folder: Path
    stimuli: pd.DataFrame
    results: pd.DataFrame
    provenance: Mapping[str, Any]
    responses: Mapping[str, Any]


def open_study(folder: str | Path) -> Finished:
    """Read a finished study: stimuli, responses, results and provenance.

    Raises
    ------
    StoreError
        The folder holds no finished study.
    """
    folder = Path(folder)
    results, design = ns.read_results(folder), ns.load_design(folder / "design.yaml")
    provenance, stimuli = read_json(folder / "provenance.json"), ns.expand(design)
    key = read_json(folder.parent / "_store" / str(provenance.get("responses", ""))[:12] / "key.json")
    stored = ns.stored_responses(folder.parent, key, stimuli=stimuli, design=design) if key else None
    return Finished(folder, stimuli, results, provenance, stored or {})


def say(study: Study, line: str) -> None:
    """One line for the reader of the terminal, and for `log.txt`."""
    print(line, file=sys.stderr, flush=True)
    with (study.folder / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as .csv or .parquet, complete or not at all.

    Raises
    ------
    StoreError
        Another ending, or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise StoreError(f"{path}: a table is written as .csv or .parquet; give the file one of these endings.")
    with atomic_path(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part)
        else:
            table.to_parquet(part)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, complete or not at all."""
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; empty if it is absent or damaged, because then nothing of it may be trusted."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def keep_inputs(study: Study) -> None:
    """The exact bytes of both files, and the stimuli, beside the results; what a killed run left half written goes."""
    for place in (study.folder, study.folder / "tests"):
        for left in place.glob(".tmp-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    write_atomic(study.folder / "analysis.yaml", study.path.read_bytes())
    write_atomic(study.folder / "design.yaml", Path(study.spec.design).read_bytes())
    write_table(study.folder / "stimuli.parquet", study.stimuli)
    write_table(study.folder / "stimuli.csv", study.stimuli)


# ------------------------------------------------------------------ training texts


def remember_texts(folder: Path, texts: Iterable[Path]) -> None:
    """Note which texts the last training of a study was given in place of those of its file; none: forget them."""
    given = [str(text.absolute()) for text in texts]
    if given and all(Path(text).exists() for text in given):
        write_json(folder / GIVEN, {"texts": given})
    else:
        (folder / GIVEN).unlink(missing_ok=True)


def with_given_texts(spec: Any, folder: Path) -> Any:
    """The analysis with those texts: what runs after a training reads the dictionaries that it made."""
    given = tuple(read_json(folder / GIVEN).get("texts", ()))
    if not given:
        return spec
    sites = dict(spec.sites)
    for name, site in spec.sites.items():
        if site.dictionary.train:
            train = site.dictionary.train.model_copy(update={"texts": given})
            sites[name] = site.model_copy(update={"dictionary": site.dictionary.model_copy(update={"train": train})})
    return spec.model_copy(update={"sites": sites})


def given_words(folder: Path) -> list[str]:
    """The sentence for the report, where the analysis file alone does not say what dictionaries were trained on."""
    names = ", ".join(Path(text).name for text in read_json(folder / GIVEN).get("texts", ()))
    return [f"dictionaries were trained on {names}, named by `train --text` and not by the analysis"] if names else []


# ------------------------------------------------------------------ responses


def as_values(study: Study, responses: Mapping[str, Any]) -> dict[str, Any]:
    """The two halves of signed features put together, at every site that does not ask for `signed: false`."""
    halves = {name for name, site in study.spec.sites.items() if not site.signed}
    return {
        name: adata if {name, name.rpartition(".")[0]} & halves else ns.signed(adata)
        for name, adata in responses.items()
    }


def aligned(responses: dict[str, Any], positions: Any) -> dict[str, Any]:
    """Stored responses, aligned as `positions:` asks; all tokens are still there."""
    return ns.align(
        responses, positions.align, window=positions.window, max_shift=positions.max_shift,
        shift_unit=positions.shift_unit, reference=positions.reference or None,
    )  # fmt: skip


def collapsed(responses: dict[str, Any], positions: Any) -> dict[str, Any]:
    """Aligned responses, their tokens made one response as `positions:` asks."""
    return ns.collapse(responses, positions.tokens, length_match=positions.length_match)


def unchanged_responses(study: Study) -> dict[str, Any] | None:
    """Stored responses whose inputs are what they were, so that no model has to be loaded to find out."""
    known = read_json(study.folder / "responses.json")
    if not known or known["inputs"] != inputs_hash(study):
        return None
    key = read_json(study.out / "_store" / known["responses"][:12] / "key.json")
    if content_hash(key) != known["responses"]:
        return None
    return ns.stored_responses(study.out, key, stimuli=study.stimuli, design=study.design)


def remember_responses(study: Study, responses: Mapping[str, Any], dictionaries: Mapping[str, Any]) -> None:
    """Note under which key the responses lie, and how the dictionaries fitted."""
    stored = ns.provenance_of(next(iter(responses.values())))["responses_hash"]
    cards = {site: dictionary_record(dictionary) for site, dictionary in dictionaries.items()}
    record = {"inputs": inputs_hash(study), "responses": stored, "dictionaries": cards}
    write_json(study.folder / "responses.json", record)


def dictionary_record(dictionary: Any) -> dict[str, Any]:
    """What a report says of a dictionary: its hash and size, its card, and its fit to the model as loaded here."""
    return {
        "hash": dictionary.hash,
        "hook": dictionary.hook,
        "d_in": int(dictionary.W_dec.shape[1]),
        "n_features": int(dictionary.n_features),
        "card": dict(dictionary.card),
        **{name: value for name, value in dict(dictionary.fit).items() if name != "warnings"},
        "warnings": list(dict(dictionary.fit).get("warnings", ())),
    }


def inputs_hash(study: Study) -> str:
    """Hash of the files and settings behind the responses; a file counts by name, size and time of change."""
    spec = study.spec
    places = [ns.find_checkpoint(spec.model.name)]
    for site in spec.sites.values():
        ask = site.dictionary
        places += [Path(text) for made in (ask.train, ask.fit) if made for text in made.texts]
        places += [Path(given) for given in (ask.path, ask.vectors) if given]
        places += [Path(__file__).parent / "embedded" / ask.embedded] if ask.embedded else []
    files = [f for place in places for f in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    states = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]
    asked = {name: site.model_dump(mode="json") for name, site in spec.sites.items()}
    positions = spec.positions.model_dump(mode="json")
    return content_hash(
        versions(), states, spec.model.model_dump(mode="json"), asked, positions, table_hash(study.stimuli)
    )


# ------------------------------------------------------------------ tests


def run_test(study: Study, name: str, responses: Mapping[str, Any], *, earlier: Mapping[str, Tested]) -> Tested:
    """One test, read back if its key is unchanged; the key is written last, so a half-written test is run again."""
    base, key = study.folder / "tests" / f"{name}.parquet", test_key(study, name, responses, earlier=earlier)
    stored = read_json(base.with_suffix(".key"))
    if stored.get("key") == key and (found := _read_test(base, stored)) is not None:
        return found
    base.with_suffix(".key").unlink(missing_ok=True)
    ask = study.spec.tests[name]
    rng = np.random.default_rng([study.spec.seed, crc32(name.encode())])  # adding a test moves no other number
    run = import_module(study.tests[ask.test][1]).run
    tested: Tested = run(responses, ask, study=study, earlier=earlier, rng=rng)
    table = tested.table.assign(test=pd.array([name] * len(tested.table), dtype="string"))
    tested = tested._replace(table=ns.check_results(table))
    write_table(base, tested.table)
    for extra, long in tested.extras.items():
        write_table(base.with_suffix(f".{extra}.parquet"), long)
    if tested.null_max is not None:
        with atomic_path(base.with_suffix(".null.npy")) as part:
            np.save(part, tested.null_max)
    record = {"key": key, "extras": list(tested.extras), "null": tested.null_max is not None}
    write_json(base.with_suffix(".key"), record)
    return tested


def _read_test(base: Path, stored: Mapping[str, Any]) -> Tested | None:
    try:
        extras = {name: pd.read_parquet(base.with_suffix(f".{name}.parquet")) for name in stored["extras"]}
        null = np.load(base.with_suffix(".null.npy"), allow_pickle=False) if stored["null"] else None
        return Tested(ns.read_results(base), null, extras)
    except (OSError, ValueError, KeyError, StoreError):
        return None


def test_key(study: Study, name: str, responses: Mapping[str, Any], *, earlier: Mapping[str, Tested]) -> str:
    """Hash of everything that one test's numbers depend on."""
    spec = study.spec
    ask = spec.tests[name]
    chosen = {n: table_hash(t.table) for n, t in earlier.items()} if getattr(ask, "features", None) else {}
    parts = {
        "version": versions()["neurosae"],
        "name": name,
        "ask": ask.model_dump(mode="json"),
        "inference": spec.inference.model_dump(mode="json"),
        "effects": spec.effects,
        "seed": spec.seed,
        "top_features": spec.report.top_features,
        "positions": spec.positions.model_dump(mode="json"),
        "design": study.design.to_json(),
        "responses": {site: ns.provenance_of(adata)["responses_hash"] for site, adata in responses.items()},
        "signed": [site for site, adata in responses.items() if ns.provenance_of(adata).get("signed")],
        "earlier": chosen,
    }
    return content_hash(parts)


test_key.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name


def keep_courses(study: Study, every_token: Mapping[str, Any], results: pd.DataFrame) -> None:
    """What the strongest features of each contrast do token by token, where tokens were collapsed into one response."""
    if study.spec.positions.tokens == "all":
        return
    effects = {name: compile_effect(study.design, written) for name, written in study.spec.effects.items()}
    for test, rows in results[results["kind"] == "contrast"].groupby("test", sort=False):
        tables = []
        best = ranked(rows[rows["feature"].notna() & rows["status"].eq("ok")]).head(STRONGEST)
        for (site, effect, region, split), chosen in best.groupby(["site", "effect", "region", "split"], sort=False):
            made, adata = effects.get(str(effect)), every_token.get(str(site))
            if adata is None or made is None or made.contrasts is not None or made.slope is not None:
                continue  # no + and - cells
            here = adata.obs["region"].astype(str) == region
            if adata.obs.loc[here, "n_tokens"].max() < 2:
                continue
            weights = dict(zip(made.cells, made.weights, strict=True))
            features = chosen["feature"].astype(int).tolist()
            long = ns.token_courses(adata, weights, features=features, region=str(region), split=str(split))
            place = {"site": site, "region": region, "position": chosen["position"].iloc[0], "effect": effect}
            tables.append(long.assign(**place, split=split))
        path = study.folder / "tests" / f"{test}.tokens.parquet"
        if tables:
            write_table(path, pd.concat(tables, ignore_index=True))
        else:
            path.unlink(missing_ok=True)
