"""One study on several dictionaries: what each is worth, what each finds, and what they agree on.

Sets, contrasts and geometry are compared, never feature indices: the same index in two dictionaries means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd

import neurosae as ns
from neurosae.errors import DataError, SpecError, unknown
from neurosae.spec.results import is_found, strongest
from neurosae.stages import Study
from neurosae.study import sites_of

TABLES = ("comparison", "contrasts", "levels", "probes", "pairs", "sets")
TOKENS = 2_000
CONTROL = (
    "Rows of a control: the same recipe and text, a model without what was learned. What it reaches too, a low FVU or "
    "a high recovered cross-entropy, is no evidence of learned structure."
)


def evaluate_study(
    study: Study, *, texts: Sequence[str] = (), n_tokens: int = TOKENS, control: str | None = None
) -> pd.DataFrame:
    """Measure the dictionary of every site of an analysis on held-out text; a row per site.

    Parameters
    ----------
    texts : files or data set folders; without, text that the model writes itself, with another seed than for training
    n_tokens : tokens that are read
    control : `reinit` or `shuffle`: below each site a second row, of the same recipe on `random_control` of the model
        (trained once, kept in the store)

    Returns
    -------
    DataFrame, as of `evaluate_dictionaries`; with a control, column `control` is empty or its mode, and `note` says
    which sites have no recipe that could be followed again

    Raises
    ------
    SpecError
        If the analysis reads a control already.
    """
    if control and study.spec.model.control:
        raise SpecError(
            f"{study.path}:1: model.control: is {study.spec.model.control} already; a control has no control: leave it "
            "out of the analysis, or out of the command."
        )
    model, dictionaries = study.live()
    text = held_out(study, model, texts, n_tokens=n_tokens)
    table = ns.evaluate_dictionaries(dictionaries, model, text, n_tokens=n_tokens)
    return _with_control(study, table, text, n_tokens=n_tokens, mode=control) if control else table


def _with_control(study: Study, table: pd.DataFrame, text: list[str], *, n_tokens: int, mode: str) -> pd.DataFrame:
    """A row of the control below that of every site."""
    model, dictionaries = study.live()
    random = ns.random_control(model, cast(Any, mode), seed=study.spec.model.control_seed)
    sites = sites_of(study.spec, model.n_layers)
    made, notes = ns.control_dictionaries(sites, dictionaries, (model, random), store=study.out, stimuli=study.stimuli)
    learned = table.assign(control="")
    reasons = learned["site"].map(notes).fillna("")
    learned["note"] = [f"{said} {why}".strip() for said, why in zip(learned["note"], reasons, strict=True)]
    both = [learned]
    if made:
        found = ns.evaluate_dictionaries(made, random, text, n_tokens=n_tokens, l0=float(table["l0"].iloc[0]))
        both.append(found.assign(control=mode))
    rows = pd.concat(both, ignore_index=True)
    place = {site: i for i, site in enumerate(table["site"])}
    rows = rows.sort_values("site", key=lambda names: names.map(place), kind="stable", ignore_index=True)
    return rows[["site", "control", *table.columns.drop("site")]]


def held_out(study: Study, model: Any, texts: Sequence[str], *, n_tokens: int) -> list[str]:
    """Text of the user, or text that the model writes itself with a seed that no training uses."""
    if texts:
        return list(ns.read_texts(texts))
    seed = 7_919 + study.spec.seed  # training and the fit check draw with small seeds
    return ns.sample_texts(model, n_tokens, seed=seed, purpose="held-out text")


def compare_dictionaries(
    study: Study, *, sites: Sequence[str] = (), texts: Sequence[str] = (), n_tokens: int = TOKENS
) -> dict[str, pd.DataFrame]:
    """Run a study on the dictionaries that its sites name, and compare them; stored stages are reused.

    Parameters
    ----------
    sites : some of the sites; all without
    texts, n_tokens : held-out text of the evaluation

    Returns
    -------
    {name: DataFrame}, also written as `results/<study>/comparison/<name>.csv`
        `comparison` (evaluation, a row per site), `contrasts` (tested and found features per test, effect, place and
        site), `levels` (best AUROC and number of selective features per factor level), `probes` (held-out AUROC at
        equal numbers of features), `pairs` (per two sites and place: decoder overlap, matched activations, rank
        correlation of distances), `sets` (found features that are matched, against chance)

    Raises
    ------
    SpecError
        If an unknown site is named, or fewer than two are left.
    """
    results = ns.test_study(study)
    responses = ns.extract_study(study)
    chosen = _chosen(study, list(sites), list(responses))
    model, dictionaries = study.live()
    dictionaries = {name: dictionaries[name] for name in chosen}
    responses = {name: responses[name] for name in chosen}
    text = held_out(study, model, texts, n_tokens=n_tokens)
    places = _places(results, responses)
    tables = {
        "comparison": ns.evaluate_dictionaries(dictionaries, model, text, n_tokens=n_tokens),
        "contrasts": contrast_table(results[results["site"].isin(chosen)], alpha=study.spec.inference.alpha),
        "levels": _each(responses, places, ns.level_scores),
        "probes": _each(responses, places, ns.probe_scores),
    }
    tables["pairs"], tables["sets"] = _pairs(responses, places, results, alpha=study.spec.inference.alpha)
    alive = ns.alive_features(dictionaries, model, text, n_tokens=n_tokens)
    tables["pairs"] = _with_overlap(tables["pairs"], ns.overlap_table(dictionaries, alive=alive))
    folder = study.folder / "comparison"
    for name, table in tables.items():
        ns.write_table(folder / f"{name}.csv", table.set_index(table.columns[0]))
    return tables


def _chosen(study: Study, asked: list[str], known: list[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise SpecError(f"{study.path}:1: sites: {unknown('site', name, known)}")
    order = list(study.spec.sites)  # the file's; a site of every layer is called late.0, late.1 …
    known = sorted(known, key=lambda name: order.index(name if name in order else name.rpartition(".")[0]))
    chosen = [name for name in known if not asked or name in asked]
    if len(chosen) < 2:
        raise SpecError(f"{study.path}:1: sites: only {', '.join(chosen)} is left; a comparison needs two or more.")
    return chosen


def _places(results: pd.DataFrame, responses: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Regions and positions that were tested and that all sites have."""
    found = [
        {(str(r), int(p)) for r, p in adata.obs[["region", "position"]].drop_duplicates().to_numpy()}
        for adata in responses.values()
    ]
    common = set.intersection(*found)
    asked = dict.fromkeys(
        (str(r), int(p)) for r, p in results[["region", "position"]].dropna().drop_duplicates().to_numpy()
    )
    return [place for place in asked if place in common]


def _split(adata: Any) -> str | None:
    """The test items; all items where the design has no partition."""
    return "test" if adata.obs["split"].astype(str).eq("test").any() else None


def _each(responses: Mapping[str, Any], places: Sequence[tuple[str, int]], measure: Any) -> pd.DataFrame:
    parts = []
    for site, adata in responses.items():
        for region, position in places:
            try:
                found = measure(adata, region=region, position=position, split=_split(adata))
            except DataError as error:
                found = pd.DataFrame([{"note": str(error)}])
            parts.append(
                pd.DataFrame({"site": site, "region": region, "position": position}, index=found.index).join(found)
            )
    return pd.concat(parts, ignore_index=True)


def contrast_table(results: pd.DataFrame, *, alpha: float) -> pd.DataFrame:
    """How many features were tested and found, and the strongest of them, per test, effect, place and site."""
    rows = []
    keys = ["test", "effect", "region", "position", "split", "site"]
    features = results[results["feature"].notna()]
    for key, part in features.groupby(keys, sort=False, dropna=False, observed=True):
        tested = part[part["p_corr"].notna() & part["status"].isin(["ok", "degenerate"])]
        n, found = len(tested), int(is_found(tested, alpha).sum())
        best = strongest(tested) if n else None
        rows.append({
            **dict(zip(keys, key, strict=True)), "tested": n, "found": found, "share": found / n if n else np.nan,
            "strongest": np.nan if best is None else float(best["value"]),
            "effsize": np.nan if best is None else float(best["effsize"]),
            "p_corr": np.nan if best is None else float(best["p_corr"]),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=[*keys, "tested", "found", "share", "strongest", "effsize", "p_corr"])


def _pairs(
    responses: Mapping[str, Any], places: Sequence[tuple[str, int]], results: pd.DataFrame, *, alpha: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    pairs, sets = [], []
    for one, other in combinations(responses, 2):
        for region, position in places:
            about = {"one": one, "other": other, "region": region, "position": position}
            where = {"region": region, "position": position, "split": _split(responses[one])}
            row: dict[str, Any] = {**about, "note": ""}
            try:
                row |= ns.geometry_agreement(responses[one], responses[other], **where)
                matched = ns.matched_activations(responses[one], responses[other], **where)
                row |= {
                    "n_matched": len(matched),
                    "r_median": matched["r"].median(),
                    "r_70": (matched["r"] > 0.7).mean(),
                }
                sets += [about | found for found in _sets(matched, results, about, alpha=alpha)]
            except DataError as error:
                row["note"] = str(error)
            pairs.append(row)
    columns = ["one", "other", "region", "position", "effect", "found_one", "found_other", "n_both", "n_expected", "p"]
    table = pd.DataFrame(pairs)
    if "p" in table:
        table["p_holm"] = _holm(table["p"].to_numpy(dtype=float))
    agreed = pd.DataFrame(sets, columns=columns)
    return table, agreed.assign(p_holm=_holm(agreed["p"].to_numpy(dtype=float)))


def _sets(
    matched: pd.DataFrame, results: pd.DataFrame, about: Mapping[str, Any], *, alpha: float
) -> list[dict[str, Any]]:
    """The found features of both sites under the same test, effect and place."""
    here = results[
        results["feature"].notna() & (results["kind"] == "contrast") & (results["region"] == about["region"])
        & (results["position"] == about["position"]) & (results["split"] != "localizer")
    ]  # fmt: skip
    out = []
    for effect, rows in here.groupby("effect", sort=False, observed=True):
        first = rows[rows["site"] == about["one"]], rows[rows["site"] == about["other"]]
        chosen = []
        for part in first:
            tested = part[part["p_corr"].notna()]
            hits = tested[is_found(tested, alpha)]
            chosen.append((tested["feature"].to_numpy(dtype=int), hits["feature"].unique().astype(int)))
        if not all(len(tested) for tested, _ in chosen):
            continue
        agreed = ns.set_agreement(matched, chosen[0], chosen[1])
        out.append({"effect": effect, "found_one": len(chosen[0][1]), "found_other": len(chosen[1][1]), **agreed})
    return out


def _holm(p: np.ndarray) -> np.ndarray:
    """Adjusted for all rows of the table; missing values stay missing."""
    out, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return out


def _with_overlap(pairs: pd.DataFrame, overlap: pd.DataFrame) -> pd.DataFrame:
    names = {"note": "overlap_note", "n_matched": "n_decoder", "n_one": "alive_one", "n_other": "alive_other"}
    return pairs.merge(overlap.rename(columns=names), on=["one", "other"], how="left")


def summarize_comparison(tables: Mapping[str, pd.DataFrame]) -> str:
    """The terminal's view: the dictionaries, what each found, and what every two agree on.

    Examples
    --------
    >>> rows = pd.DataFrame({"site": ["a", "b"], "l0": [8.0, 16.0], "fvu": [0.2, 0.1], "l0_matched": [True, False]})
    >>> print(summarize_comparison({"comparison": rows}))
    site     l0   fvu  l0_matched
       a  8.000 0.200        True
       b 16.000 0.100       False
    L0 of b is more than 20 % from that of a: its numbers are not comparable at equal sparsity.
    """
    lines = []
    shown = {
        "comparison": ["site", "control", "l0", "fvu", "ce_recovered_mean", "kl_recovered_mean", "pathology", "dead",
                       "absorbed", "l0_matched"],
        "contrasts": ["test", "effect", "region", "site", "tested", "found", "share", "p_corr"],
        "levels": ["site", "region", "factor", "level", "auroc", "auroc_limit", "n_selective"],
        "probes": ["site", "region", "factor", "level", "k", "auroc"],
        "pairs": ["one", "other", "region", "overlap_70", "r_median", "rho", "rho_low", "rho_high"],
        "sets": ["one", "other", "region", "effect", "found_one", "found_other", "n_both", "n_expected", "p_holm"],
    }  # fmt: skip
    for name, columns in shown.items():
        if name in tables and len(tables[name]):
            table = tables[name][[c for c in columns if c in tables[name]]]
            lines += [table.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.3f}")]
    return "\n".join(["\n\n".join(lines), *_remarks(tables["comparison"])])


def _remarks(rows: pd.DataFrame) -> list[str]:
    """Sentences below the tables: unequal sparsity, what a control is for, and notes of single rows."""
    said = []
    learned = rows[rows["control"] == ""] if "control" in rows else rows
    odd = learned.loc[~learned["l0_matched"].astype(bool), "site"]
    if len(odd):
        said.append(
            f"L0 of {', '.join(odd)} is more than 20 % from that of {rows['site'].iloc[0]}: "
            f"{'its' if len(odd) == 1 else 'their'} numbers are not comparable at equal sparsity."
        )
    if "control" in rows:
        said.append(CONTROL)
    if "note" in rows:
        said += dict.fromkeys(f"{site}: {note}" for site, note in zip(rows["site"], rows["note"], strict=True) if note)
    return said
