"""Features of a study, looked at: tables, examples and a viewer beside its results, made once and kept by key.

What is shown describes; nothing is tested here. Features that a test of the study chose are shown on the same items
too, and every table says which test that was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import neurosae as ns
from neurosae.errors import ModelError, SpecError, StoreError, choose
from neurosae.examine.directions import feature_link, logit_weights, nearest_features
from neurosae.examine.endpoint import Endpoint
from neurosae.examine.examples import Show, distributions, examples_of
from neurosae.examine.inversion import invert_feature
from neurosae.examine.labels import label_features, read_labels
from neurosae.examine.levels import level_means
from neurosae.examine.rules import rules_of
from neurosae.examine.seen import Seen, text_maxima, watch
from neurosae.examine.tracking import track_feature
from neurosae.examine.verdicts import judge_strings
from neurosae.examine.viewer import viewer_page
from neurosae.extraction.tokens import agreed_bos
from neurosae.provenance import table_hash, versions
from neurosae.spec.block import FeatureChoice
from neurosae.spec.examine import ExamineBlock
from neurosae.spec.files import atomic_path, content_hash, file_hash, lock
from neurosae.spec.results import ranked
from neurosae.stages import Study, inputs_hash, keep_inputs, read_json, say, write_json, write_table

FOLDER = "examine"
FORMAT = 2  # of the tables: what was made in another one is made again
TABLES = ("features", "examples", "distributions", "pooled", "levels", "tokens", "neighbours", "rules", "labels",
          "inversions", "counterparts")  # fmt: skip
SILENT = {"zero": 8, "hard": 4}  # examples for a judge, beside random active ones
JUDGED = 12  # random active examples, of which the labeller may have seen some
OWN, OTHER = "study", "text"  # where examples come from
SHOWN_TEXTS = 300  # of every source, in the viewer


def examine_study(study: Study, *, changes: Mapping[str, Any] | None = None) -> dict[str, pd.DataFrame]:
    """Look at features of a study as `examine:` asks; what was made before from the same inputs is read back.

    Parameters
    ----------
    study : from `prepare_study`
    changes : keys of `examine:` that replace those of the file, e.g. `{"features": {"ids": {"late": [12]}}}`

    Returns
    -------
    {name: DataFrame}
        `features` (a row for each), `examples`, `distributions`, `pooled` (largest activation in every text of the
        study), `levels` (mean and density of these at every level of every factor, with bands over items), `tokens`
        (promoted and suppressed), `neighbours`, `rules`, `labels`, `inversions` (with a verdict whether each found
        string counts), `counterparts`; those that were not asked for are absent. Also written to
        `results/<study>/examine/` as .parquet and .csv, beside `viewer.html`.

    Raises
    ------
    SpecError
        Neither the analysis nor the call says which features.
    """
    ask = asked_of(study, changes)
    with lock(study.folder):
        keep_inputs(study) if study.design is not None else study.folder.mkdir(exist_ok=True)
        chosen, by = chosen_features(study, ask)
        key = _key(study, ask, chosen)
        folder = study.folder / FOLDER
        if read_json(folder / "record.json").get("key") == key and (found := _stored(folder)):
            say(study, f"examine: {sum(map(len, chosen.values()))} features, as stored")
            return found
        sources = _sources(study, ask)
        tables, page = _made(study, ask, chosen, sources=sources)
        tables["features"]["chosen_by"] = by
        record = {"key": key, "chosen_by": by, "sources": {name: len(one[0]) for name, one in sources.items()},
                  "asked": ask.model_dump(mode="json"), "tables": list(tables)}  # fmt: skip
        with atomic_path(folder) as part:
            part.mkdir()
            for name, table in tables.items():
                table.to_parquet(part / f"{name}.parquet")
                write_table(part / f"{name}.csv", table)
            (part / "viewer.html").write_text(page, encoding="utf-8")
            write_json(part / "record.json", record)
    say(study, f"examine: {len(tables['features'])} features, {len(tables['examples'])} examples")
    return tables


def asked_of(study: Study, changes: Mapping[str, Any] | None) -> ExamineBlock:
    """The block of the file with the changes of the command line."""
    block = study.spec.examine
    given = {} if block is None else {name: getattr(block, name) for name in block.model_fields_set}
    given |= dict(changes or {})
    if "features" not in given:
        raise SpecError(
            f"{study.path}:1: examine: is missing; add `examine: {{features: {{from: <test>, top: 5}}}}`, or name "
            "features with --features."
        )
    return ExamineBlock.model_validate(given)


def parse_features(words: str) -> dict[str, list[int]]:
    """Features as the command line names them.

    Examples
    --------
    >>> parse_features("late/12, late/40,early/3")
    {'late': [12, 40], 'early': [3]}
    """
    found: dict[str, list[int]] = {}
    for word in (part.strip() for part in words.split(",") if part.strip()):
        site, slash, index = word.rpartition("/")
        if not (slash and site and index.isdecimal()):
            raise SpecError(f"--features: '{word[:60]}' is no feature; write site/index, such as late/12,late/40.")
        found.setdefault(site, []).append(int(index))
    if not found:
        raise SpecError("--features: names none; write site/index, such as late/12,late/40.")
    return found


def chosen_features(study: Study, ask: ExamineBlock) -> tuple[dict[str, list[int]], str]:
    """Indices by site, and what chose them, in words."""
    choice: FeatureChoice = ask.features
    sites = list(study.live()[1]) if any("*" in s.hook for s in study.spec.sites.values()) else list(study.spec.sites)
    if choice.from_ is None:
        ids = choice.ids if isinstance(choice.ids, dict) else dict.fromkeys(sites, choice.ids)
        for site in ids:
            choose("site", site, dict.fromkeys(sites), error=SpecError)
        return {site: sorted(set(given)) for site, given in ids.items()}, "named"
    try:
        rows = ns.read_results(study.folder)
    except StoreError:
        raise SpecError(
            f"{study.path}:1: examine.features: come from test '{choice.from_}', which has not run; use `neurosae run`."
        ) from None
    rows = rows[rows["test"].eq(choice.from_) & rows["status"].eq("ok") & rows["feature"].notna()]
    if not len(rows):
        raise SpecError(f"{study.path}:1: examine.features: test '{choice.from_}' has no tested feature.")
    found = {
        str(site): list(dict.fromkeys(ranked(group)["feature"].astype(int)))[: choice.top]
        for site, group in rows.groupby("site", sort=False)
    }
    split = ", ".join(rows["split"].dropna().unique())
    return found, f"{choice.from_} top {choice.top}" + (f" (on {split} items)" if split else "")


# ------------------------------------------------------------------ what it rests on


def _key(study: Study, ask: ExamineBlock, chosen: Mapping[str, Sequence[int]]) -> str:
    files = [file_hash(path) for path in ([ask.labels] if ask.labels else [])]
    states = []
    for place in map(Path, ask.texts):
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        states += [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in found if f.is_file()]
    parts = {
        "version": versions()["neurosae"],
        "format": FORMAT,
        "ask": ask.model_dump(mode="json"),
        "chosen": chosen,
        "files": files,
    }
    return content_hash(
        parts | {"texts": states, "seed": study.spec.seed}, inputs_hash(study), table_hash(study.stimuli)
    )


def _stored(folder: Path) -> dict[str, pd.DataFrame] | None:
    names = read_json(folder / "record.json").get("tables", [])
    try:
        return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
    except (OSError, ValueError):
        return None


Source = tuple[list[str], list[str], pd.DataFrame | None, list[Any] | None]
"""Texts, what each is called, their levels, and what belongs together."""


def _sources(study: Study, ask: ExamineBlock) -> dict[str, Source]:
    """The study's own texts, with levels and items; text of the user, or that the model writes."""
    made: dict[str, Source] = {}
    if study.design is not None:
        stimuli = study.stimuli
        factors = [f for f in (ask.by if ask.by is not None else study.design.factors) if f in stimuli]
        names = [str(name) for name in stimuli.index]
        levels = stimuli[factors].reset_index(drop=True)
        made[OWN] = (stimuli["text"].astype(str).tolist(), names, levels, stimuli["item"].tolist())
    if ask.texts:
        texts, names = [], []
        for path in ask.texts:
            found = list(ns.read_texts(path))
            texts += found
            names += [f"{Path(path).name}, document {i}" for i in range(1, len(found) + 1)]
        made[OTHER] = (texts, names, None, None)
    elif ask.n_tokens is not None:
        texts = ns.sample_texts(study.live()[0], ask.n_tokens, seed=15_485 + study.spec.seed, purpose="text to examine")
        made[OTHER] = (texts, [f"written by the model, {i}" for i in range(1, len(texts) + 1)], None, None)
    if not made:
        raise SpecError(f"{study.path}:1: examine.texts: is missing, and there is no design; name text to look at.")
    return made


# ------------------------------------------------------------------ the tables


def _made(
    study: Study, ask: ExamineBlock, chosen: Mapping[str, Sequence[int]], *, sources: Mapping[str, Source]
) -> tuple[dict[str, pd.DataFrame], str]:
    model, dictionaries = study.live()
    tokenizer: Any = agreed_bos(model.tokens, dictionaries)
    seen = {
        name: watch(model, dictionaries, one[0], features=chosen, n_tokens=ask.n_tokens if name == OTHER else None)
        for name, one in sources.items()
    }
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    show = Show(ask.top, ask.per_level, ask.quantiles, ask.random, window=ask.window, seed=study.spec.seed)
    for name, (texts, names, levels, items) in sources.items():
        for one in seen[name].values():
            shown = examples_of(one, texts, tokenizer, levels=levels, names=names, show=show)
            parts["examples"].append(shown.assign(source=name))
            parts["distributions"].append(distributions(one, levels=levels).assign(source=name))
            settings = {**ask.rules.model_dump(), "seed": study.spec.seed}
            found = rules_of(one, texts, tokenizer, levels=levels, groups=items, settings=settings)
            parts["rules"].append(found.assign(source=name))
            if levels is not None and items is not None:
                pooled = _pooled(one, names, levels)
                parts["pooled"].append(pooled)
                parts["levels"] += _level_means(pooled, levels, items, seed=study.spec.seed)
    for site, features in chosen.items():
        parts["features"].append(_features(site, dictionaries[site], features))
        _directions(parts, model, (site, dictionaries[site]), features=features, ask=ask)
    if ask.track:
        text = sources.get(OTHER, next(iter(sources.values())))[0]
        parts["counterparts"] = [
            _counterparts(model, dictionaries, text, at=(site, feature), ask=ask)
            for site, features in chosen.items()
            for feature in features
        ]
    tables = {name: pd.concat(found, ignore_index=True) for name, found in parts.items() if found}
    if ask.invert:
        tables["inversions"] = _inversions(study, ask, chosen, tables=tables, seen=seen)
    _label(study, ask, tables, seen=seen, sources=sources, tokenizer=tokenizer)
    texts = {name: (one[0], one[1]) for name, one in sources.items()}
    page = viewer_page(study.spec.name, tables, seen, texts=texts, tokenizer=tokenizer, most=SHOWN_TEXTS)
    return {name: tables[name] for name in TABLES if name in tables}, page


def _pooled(one: Seen, names: Sequence[str], levels: pd.DataFrame | None) -> pd.DataFrame:
    """The largest activation in every text, long: a row per text and feature."""
    values = text_maxima(one, len(names)).toarray()
    tables = []
    for column, feature in enumerate(one.features.tolist()):
        table = pd.DataFrame({"site": one.site, "feature": feature, "stimulus": names, "value": values[:, column]})
        tables.append(table if levels is None else pd.concat([table, levels.astype(str)], axis=1))
    return pd.concat(tables, ignore_index=True)


def _level_means(pooled: pd.DataFrame, levels: pd.DataFrame, items: Sequence[Any], *, seed: int) -> list[pd.DataFrame]:
    """Tuning of every feature of one site to every factor, by its largest activation in every text."""
    if not len(levels.columns):
        return []
    tables = []
    for feature in pooled["feature"].unique().tolist():
        rows = pooled[pooled["feature"].eq(feature)]
        made = level_means(rows["value"].to_numpy(), levels, items, seed=seed)
        tables.append(made.assign(site=rows["site"].iloc[0], feature=feature))
    return tables


def _features(site: str, dictionary: Any, features: Sequence[int]) -> pd.DataFrame:
    """One row per feature: where it lies and what its dictionary calls it."""
    names, half = dictionary.metadata.get("directions") or [], dictionary.n_features // 2
    given = [names[f % half] if dictionary.partner is not None and f % half < len(names) else None for f in features]
    halves = [None if dictionary.partner is None else "positive" if f < half else "negative" for f in features]
    return pd.DataFrame({
        "site": site, "feature": list(features), "hook": dictionary.hook, "direction": given, "half": halves,
        "decoder_norm": dictionary.decoder_norm[list(features)],
        "density_card": np.nan if dictionary.density is None else dictionary.density[list(features)],
        "link": [feature_link(dictionary, f) for f in features],
    })  # fmt: skip


def _directions(
    parts: dict[str, list[pd.DataFrame]], model: Any, at: tuple[str, Any], *, features: Sequence[int], ask: ExamineBlock
) -> None:
    """Promoted tokens, neighbours and inversions, where the model and the hook point have them."""
    site, dictionary = at
    try:
        parts["tokens"].append(logit_weights(model, dictionary, features, n=ask.tokens).assign(site=site))
    except ModelError as error:  # no head, or no linear way into the stream: said in the table, not dropped
        parts["tokens"].append(pd.DataFrame({"feature": list(features), "site": site, "note": str(error)}))
    if ask.neighbours:
        parts["neighbours"].append(nearest_features(dictionary, features, n=ask.neighbours).assign(site=site))


def _counterparts(
    model: Any, dictionaries: Any, text: Sequence[str], *, at: tuple[str, int], ask: ExamineBlock
) -> pd.DataFrame:
    site, feature = at
    others = [name for name in ask.track or () if name != site]
    if not others:
        note = "no counterpart: examine.track names no other site."
        return pd.DataFrame({"site": [site], "feature": [feature], "other": [site], "note": [note]})
    return track_feature(model, dictionaries, text, site=site, feature=feature, sites=others, n_tokens=ask.n_tokens)


def _inversions(
    study: Study, ask: ExamineBlock, chosen: Mapping[str, Sequence[int]], *, tables: Mapping[str, pd.DataFrame],
    seen: Mapping[str, Mapping[str, Seen]],
) -> pd.DataFrame:  # fmt: skip
    """A string that drives each feature, beside real examples, and whether the feature's rule predicts it."""
    model, dictionaries = study.live()
    made = []
    for site, features in chosen.items():
        found = [
            invert_feature(model, dictionaries[site], f, n_tokens=ask.invert).tail(1).assign(feature=f)
            for f in features
        ]
        own = {name: table[table["site"].eq(site)] for name, table in tables.items() if name in ("rules", "examples")}
        judged = judge_strings(
            model, dictionaries[site], pd.concat(found, ignore_index=True), rules=own["rules"],
            examples=own["examples"], seen={name: one[site] for name, one in seen.items()},
            alpha=study.spec.inference.alpha,
        )  # fmt: skip
        made.append(judged.assign(site=site))
    return pd.concat(made, ignore_index=True)


def _label(
    study: Study, ask: ExamineBlock, tables: dict[str, pd.DataFrame], *, seen: Mapping[str, Mapping[str, Seen]],
    sources: Mapping[str, Source], tokenizer: Any,
) -> None:  # fmt: skip
    """The user's own labels first; then what the named endpoint says of examples, scored by it where asked."""
    features = tables["features"]
    features["label"], features["label_source"] = None, None
    if ask.endpoint is not None:
        name = OTHER if OTHER in sources else OWN
        texts, names = sources[name][0], sources[name][1]
        show = Show(
            ask.top, 0, ask.quantiles, max(ask.random, JUDGED), **SILENT, window=ask.window, seed=study.spec.seed
        )
        shown = pd.concat([examples_of(one, texts, tokenizer, names=names, show=show) for one in seen[name].values()])
        cache = str(study.out / "_store" / "answers")
        endpoint = Endpoint(ask.endpoint.base_url, ask.endpoint.model, ask.endpoint.key or "", cache)
        judge = endpoint if ask.endpoint.judge else None
        made = label_features(shown, endpoint, judge=judge, say=lambda line: say(study, line), seed=study.spec.seed)
        tables["labels"] = made
        known = made.set_index(["site", "feature"])["label"].dropna()
        _name(features, known, f"proposed by {ask.endpoint.model}")
    if ask.labels is not None:
        _name(features, read_labels(ask.labels).set_index(["site", "feature"])["label"], "yours")


def _name(features: pd.DataFrame, labels: pd.Series, source: str) -> None:
    for row, key in enumerate(zip(features["site"], features["feature"], strict=True)):
        if key in labels.index:
            features.loc[features.index[row], ["label", "label_source"]] = [labels.loc[key], source]
