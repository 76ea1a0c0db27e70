"""Grades of the integration battery on random networks: what does it find where nothing was learned?

    python tools/random_battery.py analyses/composition.yaml --seeds 20 --features dictionary --out results/random

The analysis is run as it stands, with four changes: the weights are those of the same architecture before training
(`model: {control: reinit, control_seed: SEED}`), features are those of a sparse dictionary trained on that network (or
its raw coordinates), only the members that a grade rests on are asked (`conj`, `code`, `gate`; no causal member), and
there are 2,000 flips. Text for the dictionaries is written by the trained model, once. Every seed ends in rows of
OUT/FEATURES/grades.csv; seeds that are there already are not run again. Prints the table of grades.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import neurosae as ns
from neurosae.spec.files import write_atomic

MEMBERS = ["conj", "code", "gate"]
TEXT_TOKENS, TRAINING = 40_000, {"d_sae": 512, "k": 32, "n_tokens": 30_000}
FLIPS = 2000  # enough to say whether p is below .05
SETTLED = 2  # the grade that a random network should not reach


def control_of(analysis: dict[str, Any], seed: int, *, features: str, texts: Path | None) -> dict[str, Any]:
    """The analysis on random weights, with features of its own and the members of the grade alone."""
    changed = {**analysis, "name": f"{analysis['name']}_random_{seed}"}
    changed["model"] = {**analysis["model"], "control": "reinit", "control_seed": seed}
    trained = {"train": {**TRAINING, "seed": seed, "texts": [str(texts)]}}
    own = {"neurons": True} if features == "coordinates" else trained
    changed["sites"] = {name: {**site, "dictionary": deepcopy(own)} for name, site in analysis["sites"].items()}
    batteries = {name for name, test in analysis["tests"].items() if test["test"] == "integration"}
    needed = {name for test in batteries for name in _sources(analysis["tests"][test])}
    tests = {name: dict(analysis["tests"][name]) for name in analysis["tests"] if name in batteries | needed}
    for name in batteries:
        tests[name] = {key: value for key, value in tests[name].items() if key not in ("target", "causal")}
        tests[name]["members"] = MEMBERS
    changed["tests"] = tests
    changed["inference"] = {**analysis.get("inference", {}), "n_permutations": FLIPS}
    return changed


def _sources(battery: dict[str, Any]) -> list[str]:
    chosen = battery.get("features", {}).values()
    return [choice["from"] for choice in chosen if isinstance(choice, dict) and "from" in choice]


def grades_of(path: Path, seed: int, *, features: str, texts: Path | None, out: Path) -> pd.DataFrame:
    """Grade, p of code and gate, and whether the sets answer to their parts, at every place of one random network."""
    analysis = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = control_of(analysis, seed, features=features, texts=texts)
    design = path.parent / analysis["design"]
    changed["design"] = design.name
    write_atomic(out / design.name, design.read_text(encoding="utf-8"))  # a study may not point outside its folder
    file = out / f"{changed['name']}.yaml"
    write_atomic(file, yaml.safe_dump(changed, sort_keys=False))
    rows = ns.test_study(ns.prepare_study(file, out))
    rows = rows[rows["kind"] == "integration"]
    made = []
    for (test, site, region), part in rows.groupby(["test", "site", "region"], sort=False, observed=True):
        by = part.set_index("effect")
        one = {"seed": seed, "test": test, "site": site, "region": region, "grade": int(by.loc["grade", "x_grade"])}
        one |= {f"p_{name}": by["p_corr"].get(name) for name in MEMBERS}
        answers = by[by["x_role"].eq("premise")]
        one["answer"] = int((answers["value"].gt(0) & answers["p_unc"].le(0.05)).sum())
        made.append(one)
    return pd.DataFrame(made)


def table_of_grades(grades: pd.DataFrame) -> pd.DataFrame:
    """Seeds by grade at every place, and by the highest grade of any place; smallest corrected p of code and gate.

    `above` is the share of seeds at grade 2 or more.
    """
    named = grades.assign(place=grades["region"].astype(str) + " at " + grades["site"].astype(str))
    places = {str(name): part for name, part in named.groupby("place", sort=False)}
    best = grades.groupby("seed", as_index=False).agg({"grade": "max", "p_code": "min", "p_gate": "min"})
    rows = []
    for name, part in {**places, "any place": best}.items():
        counts = {f"grade {g}": int((part["grade"] == g).sum()) for g in range(3)}
        least = {f"smallest p {k}": part[f"p_{k}"].min() for k in ("code", "gate")}
        tested = {"gate tested": int(part["p_gate"].notna().sum())}
        rows.append({"place": name, "seeds": len(part), **counts, **tested, **least,
                     "above": float((part["grade"] >= SETTLED).mean())})  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Run the seeds that are not there yet, and print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("analysis", type=Path)
    ask.add_argument("--seeds", type=int, default=20)
    ask.add_argument("--features", choices=("dictionary", "coordinates"), default="dictionary")
    ask.add_argument("--out", type=Path, default=Path("results/random"))
    given = ask.parse_args()
    out = (given.out / given.features).resolve()
    out.mkdir(parents=True, exist_ok=True)
    texts, file = out / "texts.txt", out / "grades.csv"
    if given.features == "dictionary" and not texts.exists():
        made = ns.sample_texts(ns.load_model("embedded"), TEXT_TOKENS, seed=0, purpose="text for the dictionaries")
        write_atomic(texts, "\n\n".join(" ".join(text.split()) for text in made) + "\n")
    grades = pd.read_csv(file) if file.exists() else pd.DataFrame({"seed": []})
    for seed in sorted(set(range(given.seeds)) - set(grades["seed"])):
        found = grades_of(given.analysis, seed, features=given.features, texts=texts, out=out)
        grades = pd.concat([grades, found], ignore_index=True) if len(grades) else found
        write_atomic(file, grades.to_csv(index=False))
    print(table_of_grades(grades).to_string(index=False))


if __name__ == "__main__":
    main()
