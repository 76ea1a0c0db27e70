"""A finished study, made up from a seed: the files that a run leaves behind, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from neurosae.spec.results import as_results, counted_p, write_results
from tests.report.examined import write_examined
from tests.report.synthetic_causal import causal_tables
from tests.report.synthetic_circuits import circuit_tables
from tests.report.synthetic_patching import patching_table
from tests.report.synthetic_specialists import specialist_table
from tests.report.synthetic_written import written_tables

WORDS = """key/cabinet author/report picture/child driver/truck lamp/shelf nurse/patient road/village label/bottle
door/garden singer/band letter/editor window/tower farmer/horse teacher/pupil guard/prisoner boat/island coat/button
poem/writer ticket/train clock/station bridge/river photo/album chair/table river/valley pilot/plane baker/oven
artist/studio bell/church engine/car fence/field rope/sailor map/city coin/king drum/player seed/farmer tree/hill
ring/queen wall/castle book/reader song/choir flag/ship nail/board stone/path cup/saucer leaf/branch shoe/dancer
wheel/cart knife/cook""".split()
DESIGN = """schema: neurosae/design/1
name: number_agreement
description: Do features carry the subject's number at the verb, and does an attractor of the other number interfere?
factors: {subject: [sg, pl], attractor: [sg, pl]}
frames:
  pp: "The {head:subject} near the {local:attractor} {verb:subject}"
  by: "The {head:subject} behind the {local:attractor} {verb:subject}"
regions: {pre_verb: {before: verb}}
target: {slot: verb, foil: other_level, single_token: true}
partition: {localizer: 24, seed: 7}
items:
"""
ANALYSIS = """schema: neurosae/analysis/1
name: number_agreement
design: ../stimuli/number_agreement.yaml
seed: 20260401
model: {name: embedded, dtype: float32}
sites:
  early: {hook: blocks.1.hook_resid_post, dictionary: {embedded: early}}
  late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}
positions: {regions: [head, pre_verb], align: region, tokens: last}
inference: {statistic: moderated_t, correction: maxT, n_permutations: 2000, alpha: 0.05}
effects:
  subject: {subject: {pl: 1, sg: -1}}
  attractor: {attractor: {pl: 1, sg: -1}}
  congruence: {subject: {pl: 1, sg: -1}, attractor: {pl: 1, sg: -1}}
tests:
  number: {test: contrast, effect: subject, region: [head, pre_verb]}
  interference: {test: contrast, effect: congruence, region: pre_verb}
  geometry: {test: rsa, region: pre_verb, conditions: [subject, attractor], distance: crossnobis, compare: cosine_cov,
             models: {subject: {effect: subject}, attractor: {effect: attractor}, congruence: {effect: congruence}}}
report: {title: Number agreement in the embedded model, top_features: 20}
"""
CELLS = ("sg/sg", "sg/pl", "pl/sg", "pl/pl")
WEIGHTS = {"subject": (-0.5, -0.5, 0.5, 0.5), "attractor": (-0.5, 0.5, -0.5, 0.5), "congruence": (1, -1, -1, 1)}
SIZE = 1920
KEPT = 600


def item_names(n: int = 48) -> list[str]:
    return [pair.split("/")[0] for pair in WORDS[:n]]


def design_text(words: list[str]) -> str:
    lines = []
    for pair in words:
        head, local = pair.split("/")
        forms = {"head": {"sg": head, "pl": f"{head}s"}, "local": {"sg": local, "pl": f"{local}s"}}
        forms["verb"] = {"sg": "is", "pl": "are"}
        lines.append(f"  {json.dumps(head, ensure_ascii=False)}: {json.dumps(forms, ensure_ascii=False)}")
    return DESIGN.replace("localizer: 24", f"localizer: {len(words) // 2}") + "\n".join(lines) + "\n"


def stimuli_table(words: list[str]) -> pd.DataFrame:
    rows = []
    for number, pair in enumerate(words):
        head, local = pair.split("/")
        for frame, preposition in (("pp", "near"), ("by", "behind")):
            for cell in CELLS:
                subject, attractor = cell.split("/")
                first, second = head + "s" * (subject == "pl"), local + "s" * (attractor == "pl")
                verb, foil = ("are", "is") if subject == "pl" else ("is", "are")
                text = f"The {first} {preposition} the {second} {verb}"
                start = text.rindex(second)
                rows.append(
                    {
                        "stimulus": f"{head}/{frame}/{cell}",
                        "item": head,
                        "frame": frame,
                        "subject": subject,
                        "attractor": attractor,
                        "text": text,
                        "target": f" {verb}",
                        "foil": f" {foil}",
                        "split": "localizer" if number % 2 else "test",
                        "head_start": 4,
                        "head_end": 4 + len(first),
                        "local_start": start,
                        "local_end": start + len(second),
                        "pre_verb_start": start,
                        "pre_verb_end": start + len(second),
                        "verb_start": len(text) - len(verb),
                        "verb_end": len(text),
                    }
                )
    table = pd.DataFrame(rows).set_index("stimulus")
    for name in ("frame", "split"):
        table[name] = table[name].astype("category")
    for name in ("subject", "attractor"):
        table[name] = pd.Categorical(table[name], ["sg", "pl"], ordered=True)
    spans = [c for c in table if c.endswith(("_start", "_end"))]
    return table.astype(dict.fromkeys(spans, "Int64"))


def responses(rng, n_items: int, *, strength: float) -> np.ndarray:
    """Items x cells x features: sparse, non-negative, with the first 30 features driven by the subject's number."""
    density = np.exp(rng.uniform(np.log(0.02), np.log(0.6), KEPT))
    drive = rng.normal(size=(n_items, 1, KEPT)) * 0.8 + rng.normal(size=(n_items, 4, KEPT)) * 0.7
    density[:40] = rng.uniform(0.3, 0.6, 40)
    for effect, (start, stop), size in (
        ("subject", (0, 30), strength),
        ("attractor", (30, 36), 1.2),
        ("congruence", (36, 39), 0.36 * strength),
    ):
        signs = np.where(np.arange(start, stop) % 3 == 2, -1, 1)
        drive[:, :, start:stop] += size * np.array(WEIGHTS[effect])[None, :, None] * 2 * signs
    return np.maximum(drive + stats.norm.ppf(density), 0) * np.exp(rng.normal(0.3, 0.4, KEPT))


def deviate(t: np.ndarray, df: int) -> np.ndarray:
    return stats.norm.isf(stats.t.sf(np.abs(t), df)) * np.sign(t)


def contrast_test(rng, name: str, effect: str, *, regions: list[str], items: list[str], strength: float):
    """Table, null and extras of one contrast test, by plain flips of a t statistic."""
    n_perm, blocks, nulls, extras = 2000, [], [], {"items": [], "cells": [], "tokens": []}
    signs = np.where(np.random.default_rng(0).random((n_perm, len(items))) < 0.5, -1, 1)
    signs[0] = 1
    for site in ("early", "late"):
        for region in regions:
            y = responses(rng, len(items), strength=strength * (1 if region == "head" else 0.55))
            d = np.einsum("c,icf->if", WEIGHTS[effect], y)
            k = (d != 0).sum(0)
            keep = k >= 6
            q = (d**2).sum(0) + 1e-12
            means = signs @ d / len(items)
            t = means / np.sqrt((q - len(items) * means**2) / len(items) / (len(items) - 1) + 1e-12)
            nulls.append(deviate(np.abs(t[:, keep]).max(1), len(items) - 1))
            blocks.append((site, region, y, d, k, keep, t[0], deviate(t[0], len(items) - 1)))
    null = np.max(nulls, axis=0).astype(np.float32)
    n_family = int(sum(b[5].sum() for b in blocks))
    tables = []
    for site, region, y, d, k, keep, t, z in blocks:
        shared = {"test": name, "kind": "contrast", "effect": effect, "site": site, "region": region, "split": "test"}
        index = np.flatnonzero(keep)
        sd = d.std(0, ddof=1) + 1e-12
        se = sd / np.sqrt(len(items))
        feature = 3 * np.arange(KEPT) + 1
        tables.append(
            as_results(
                {
                    **shared,
                    "position": 0,
                    "feature": feature[keep],
                    "n_features": 1,
                    "stat": "moderated_t",
                    "value": t[keep],
                    "dof": len(items) - 1.0,
                    "estimate": d.mean(0)[keep],
                    "se": se[keep],
                    "effsize": (d.mean(0) / sd)[keep],
                    "eftype": "d_z",
                    "ci_low": (d.mean(0) - 2.07 * se)[keep],
                    "ci_high": (d.mean(0) + 2.07 * se)[keep],
                    "ci_level": 0.95,
                    "p_unc": np.clip(2 * stats.norm.sf(np.abs(z[keep])), 1.2e-7, 1),
                    "p_corr": counted_p(null, np.abs(z[keep])),
                    "p_adjust": "maxT",
                    "p_method": "exact",
                    "family": f"all features, positions and sites of {name}",
                    "n_family": n_family,
                    "unit": "item",
                    "n_units": len(items),
                    "n_informative": k[keep],
                    "n_perm": n_perm,
                    "p_min": 1 / n_perm,
                    "alternative": "two-sided",
                    "h0": f"{effect}: swapping its levels within an item leaves the joint law unchanged",
                    "status": "ok",
                    "x_z": z[keep],
                    "x_d0": 5.3,
                    "x_density_diff": (y[:, 2:].mean(1) > 0).mean(0)[keep] - (y[:, :2].mean(1) > 0).mean(0)[keep],
                }
            )
        )
        rest = {"alternative": "two-sided", "unit": "item", "n_units": len(items)}
        poor = feature[~keep]
        if len(poor):
            note = "active in fewer than 6 informative items"
            tables.append(
                as_results(
                    {
                        **shared,
                        **rest,
                        "position": 0,
                        "feature": poor,
                        "n_features": 1,
                        "status": "untestable",
                        "note": note,
                    }
                )
            )
        tables.append(
            as_results(
                {
                    **shared,
                    **rest,
                    "position": 0,
                    "n_features": SIZE - KEPT,
                    "status": "dead",
                    "note": "never active in the tested rows",
                }
            )
        )
        where = {"site": site, "region": region, "position": 0, "effect": effect, "split": "test"}
        for j in index[np.argsort(-np.abs(z[keep]))[:20]]:
            low, high = y[:, np.array(WEIGHTS[effect]) < 0, j].mean(1), y[:, np.array(WEIGHTS[effect]) > 0, j].mean(1)
            extras["items"].append(
                pd.DataFrame(
                    {**where, "feature": feature[j], "item": items, "difference": d[:, j], "plus": high, "minus": low}
                )
            )
            extras["tokens"].append(
                pd.DataFrame(
                    {
                        **where,
                        "feature": feature[j],
                        "side": np.repeat(["minus", "plus"], 3),
                        "token": [-2, -1, 0] * 2,
                        "mean": np.outer([low.mean(), high.mean()], [0.2, 0.5, 1]).ravel(),
                        "density": np.repeat([(low > 0).mean(), (high > 0).mean()], 3),
                        "n_items": len(items),
                    }
                )
            )
            extras["cells"].append(
                pd.DataFrame(
                    {
                        **where,
                        "feature": feature[j],
                        "cell": CELLS,
                        "mean": y[:, :, j].mean(0),
                        "density": (y[:, :, j] > 0).mean(0),
                        "n": len(items),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True), null, {n: pd.concat(t, ignore_index=True) for n, t in extras.items()}


def rsa_test(rng, items: list[str]):
    rows, rdm = [], []
    codes = {e: np.array(w) for e, w in WEIGHTS.items()}
    for site, fit in (("early", 0.35), ("late", 0.82)):
        where = {"site": site, "region": "pre_verb", "position": 0}
        data = np.abs(rng.normal(0.05, 0.03, (4, 4)))
        for number, (model, code) in enumerate(codes.items()):
            distance = (code[:, None] - code[None, :]) ** 2
            data = data + fit * distance * (1.0, 0.4, 0.0)[number]
            value, p = (fit, 0.25 * fit, -0.02)[number], (0.0005, 0.031, 0.61)[number]
            rows.append(
                {
                    **where,
                    "test": "geometry",
                    "kind": "rsa",
                    "effect": model,
                    "split": "test",
                    "n_features": KEPT,
                    "stat": "cosine_cov",
                    "value": value,
                    "p_unc": p / 2,
                    "p_corr": p,
                    "p_adjust": "holm",
                    "p_method": "flips",
                    "family": "models of geometry over sites",
                    "n_family": 6,
                    "unit": "item",
                    "n_units": len(items),
                    "n_perm": 2000,
                    "p_min": 0.0005,
                    "alternative": "two-sided",
                    "h0": f"model {model} has no weight",
                    "status": "ok",
                    "ci_low": value - 0.1,
                    "ci_high": value + 0.1,
                    "ci_level": 0.95,
                    "x_ceiling": 0.93,
                    "x_reliability": 0.86,
                }
            )
            rdm += [
                {**where, "name": model, "kind": "model", "row": CELLS[i], "column": CELLS[j], "value": distance[i, j]}
                for i in range(4)
                for j in range(4)
            ]
        data = (data + data.T) / 2
        rdm += [
            {
                **where,
                "name": "data",
                "kind": "data",
                "row": CELLS[i],
                "column": CELLS[j],
                "value": data[i, j] * (i != j),
            }
            for i in range(4)
            for j in range(4)
        ]
    return as_results(pd.DataFrame(rows).to_dict("list")), pd.DataFrame(rdm)


CURVE = {
    "tokens": [1000, 2000, 3000], "fvu": [0.6, 0.4, 0.3], "fvu_held_out": [None, None, 0.31], "l0": [64.0, 40.0, 32.0],
    "k": [64, 40, 32], "dead": [0.0, 0.1, 0.02], "loss": [9.0, 6.0, 5.0],
}  # fmt: skip


PROVENANCE = {
    "command": "neurosae run analyses/number_agreement.yaml",
    "versions": {"neurosae": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.1.0", "scipy": "1.15.0"},
    "model": {
        "name": "embedded",
        "source": "embedded",
        "weights_hash": "9c1d4e" * 8,
        "n_layers": 4,
        "d_model": 192,
        "bos": True,
        "weights": "raw",
        "batch_invariance": 4.1e-7,
    },
    "dictionaries": {
        site: {
            "hash": "ab12" * 10,
            "hook": hook,
            "d_in": 192,
            "n_features": SIZE,
            "l0_here": l0,
            "fvu_here": fvu,
            "card": {"l0": 32.0, "fvu": 0.18, "dead": 0.02, "architecture": "topk", "n_tokens": 4_000_000}
            | ({"curve": CURVE} if site == "late" else {}),
        }
        for site, hook, l0, fvu in (
            ("early", "blocks.1.hook_resid_post", 31.4, 0.171),
            ("late", "blocks.3.hook_resid_post", 32.6, 0.223),
        )
    },
    "design_hash": "0f" * 32,
    "analysis_hash": "1e" * 32,
    "stimuli_hash": "2d" * 32,
    "dtype": "float32",
    "device": "cpu",
    "blas": ["openblas SkylakeX 0.3.27"],
    "threads": {"openblas": 2},
    "seed": 20260401,
    "n_permutations": 2000,
    "families": {},
    "items": {"localizer": 24, "test": 24},
    "exchangeability": {
        "number/subject": "whole items are sign-flipped, one flip for all features, positions and sites"
    },
    "check_text": (
        "subject, attractor vary within item: whole items are sign-flipped.\n  24 test items: "
        "2^24 = 16,777,216 relabellings\nregion     subject  attractor\nhead         48/48       "
        '0/48   <- a "subject" effect here is also the plural word itself\npre_verb      0/48   '
        "   48/48"
    ),
    "times": {"extract": 12.4, "test": 3.21},
    "warnings": ["The pilot of site 'late' has 3 items that share the form 'rivers'."],
    "methods": {"number": {"m_total": 7680, "m_kept": 2200}},
}


def write_study(
    folder: Path,
    *,
    strength: float = 1.4,
    words: list[str] | None = None,
    tests: tuple[str, ...] = (
        *("number", "interference", "geometry", "circuits", "causal", "patching", "specialists"),
        "written",
    ),
) -> Path:
    """Write the files of a finished study; `strength` 0 plants no subject effect."""
    words = words or WORDS[:48]
    rng, stimuli = np.random.default_rng(5), stimuli_table(words)
    items = list(dict.fromkeys(stimuli.loc[stimuli["split"] == "test", "item"]))
    (folder / "tests").mkdir(parents=True)
    (folder / "design.yaml").write_text(design_text(words), encoding="utf-8")
    (folder / "analysis.yaml").write_text(ANALYSIS, encoding="utf-8")
    stimuli.to_parquet(folder / "stimuli.parquet")
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE), encoding="utf-8")
    tables = []
    for name, effect, regions in (
        ("number", "subject", ["head", "pre_verb"]),
        ("interference", "congruence", ["pre_verb"]),
    ):
        if name in tests:
            table, null, extras = contrast_test(rng, name, effect, regions=regions, items=items, strength=strength)
            tables.append(table)
            np.save(folder / "tests" / f"{name}.null.npy", null)
            for extra, long in extras.items():
                long.to_parquet(folder / "tests" / f"{name}.{extra}.parquet")
    if "geometry" in tests:
        table, rdm = rsa_test(rng, items)
        tables.append(table)
        rdm.to_parquet(folder / "tests" / "geometry.rdm.parquet")
        where = {"site": "late", "region": "pre_verb", "position": 0}
        points = {"x": [0.0, 1, 0, 1], "y": [0.0, 0, 1, 1], "xx": 0.01, "xy": 0.0, "yy": 0.02, "share": 0.97}
        pd.DataFrame({**where, "condition": CELLS, **points}).to_parquet(folder / "tests" / "geometry.plane.parquet")
        parts = {
            "models": ["subject", "attractor", "subject & attractor"],
            "n_models": [1, 1, 2],
            "part": [0.6, 0.1, 0.1],
        }
        pd.DataFrame({**where, **parts, "ceiling": 0.9}).to_parquet(folder / "tests" / "geometry.partition.parquet")
    if "circuits" in tests:
        tables += circuit_tables(folder)
    if "patching" in tests:
        tables.append(patching_table())
    if "specialists" in tests:
        tables.append(specialist_table(folder, stimuli))
    if "geometry" in tests:
        write_examined(folder)
    if "causal" in tests:
        tables += causal_tables(folder)
    if "written" in tests:
        tables += written_tables(folder)
    joined = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True) if tables else pd.DataFrame()
    write_results(folder, as_results({c: joined[c] for c in joined.columns}, n_rows=len(joined)))
    return folder
