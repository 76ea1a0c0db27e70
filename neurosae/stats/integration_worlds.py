"""The control worlds of the integration battery: how often every member errs, and how often it finds what is there.

Worlds without integration (C0-C4, word pairs, P0-P7, W0-W4, D0-D3) and with it (I1-I7) are made anew `n_sets` times,
and the members run on them as they run on a study. Rows whose role is `demonstration` are variants that must not be
used; they are in the table because they fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from neurosae.errors import DataError
from neurosae.spec.files import write_atomic
from neurosae.stats import scores
from neurosae.stats.battery import Superadditive, activations_interaction, evidence, superadditive
from neurosae.stats.conjunctions import Drives, context_drives
from neurosae.stats.dperp import interaction, out_of_plane
from neurosae.stats.gate import coupling, slope_differences
from neurosae.stats.information import shuffled_synergy, synergy
from neurosae.stats.ladder import ladder
from neurosae.stats.pattern import contrast_length, reached_share
from neurosae.stats.relabel import flips, labels, permutations, signs

ALPHA, N_FLIPS, N_SURROGATES = 0.05, 499, 199
LOCALIZER, TOP = 12, 20  # items that choose features in the whole battery, and how many they choose
UNLIMITED = (0.0, 1.0)


class Task(NamedTuple):
    """Worlds that the same members run on: group, names, numbers of items, and one data set -> {test: found or not}."""

    group: str
    worlds: tuple[str, ...]
    sizes: tuple[int, ...]
    trial: Callable[[str, int, int], Mapping[str, float]]


def integration_worlds(
    out: str | Path | None = None, *, n_sets: int = 200, quick: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Rates of every member of the battery, and of its naive variants, on worlds whose truth is known.

    Parameters
    ----------
    out : folder, optional
        Where `integration_worlds.csv` is written.
    n_sets : int
        Data sets per world and size; the whole battery, which is the slowest, gets two fifths of them.
    quick : bool
        The larger size of every group alone.
    seed : int

    Returns
    -------
    DataFrame
        One row per group, world, size and test: `rate` over `n_sets`, the binomial 99 % band `low`, `high` of .05, the
        `role` (null, power, demonstration, described), the `bound` on the true rate, and a `verdict`: `as expected`,
        or `outside` beyond what `n_sets` data sets may stray from the bound in one of a thousand runs.

    Notes
    -----
    For tests of single features the rate is the share of data sets with any false feature and, in worlds with
    integration, the mean share of planted features that are found.

    Examples
    --------
    >>> table = integration_worlds(n_sets=2, quick=True, seed=0)
    >>> sorted(set(table["group"]))
    ['battery', 'coupling', 'features', 'information', 'ladder']
    """
    if n_sets < 1:
        raise DataError(f"n_sets is {n_sets}; give the number of data sets per world, 200 say.")
    rows: list[dict[str, object]] = []
    tasks = [(task, world, n) for task in TASKS for world in task.worlds for n in task.sizes[-1 if quick else 0 :]]
    for task, world, n in tqdm(tasks, unit="world", desc="worlds", disable=None, mininterval=1):
        wanted = max(2, 2 * n_sets // 5) if task.group == "battery" else n_sets
        rows += _rows(task, world, n, n_sets=wanted, seed=seed)
    table = pd.DataFrame(rows)
    if out is not None:
        write_atomic(Path(out) / "integration_worlds.csv", table.to_csv(index=False).encode())
    return table


def _rows(task: Task, world: str, n: int, *, n_sets: int, seed: int) -> Iterator[dict[str, object]]:
    found = pd.DataFrame([task.trial(world, n, 1_000_003 * seed + k) for k in range(n_sets)])
    low, high = stats.binom.interval(0.99, n_sets, ALPHA)
    for test in found:
        rate, (role, bounds) = float(found[test].mean()), expected(task.group, world, str(test))
        first, last = stats.binom.ppf(0.001, n_sets, bounds[0]) / n_sets, stats.binom.ppf(0.999, n_sets, bounds[1])
        inside = first - 1e-9 <= rate <= last / n_sets + 1e-9
        yield {
            "group": task.group, "world": world, "n_items": n, "test": test, "role": role, "rate": rate,
            "n_sets": n_sets, "low": low / n_sets, "high": high / n_sets, "at_least": bounds[0], "at_most": bounds[1],
            "verdict": "as expected" if inside else "outside", "seed": seed,
        }  # fmt: skip


def worlds_text(table: pd.DataFrame) -> str:
    """The table as aligned text: one block per group, worlds as rows, tests as columns, a star where outside.

    Examples
    --------
    >>> row = {"group": "g", "world": "C0", "n_items": 24, "test": "D-perp", "rate": 0.04, "verdict": "as expected"}
    >>> print(worlds_text(pd.DataFrame([row | {"role": "null", "n_sets": 50, "low": 0.0, "high": 0.14}])))
    g: 50 data sets per world; a true rate of .05 gives .00 to .14 in 99 % of runs
    world  items  D-perp
    C0        24     .04
    """
    blocks = []
    for group, rows in table.groupby("group", sort=False):
        tests = list(dict.fromkeys(rows["test"]))
        demos = set(rows.loc[(rows["role"] == "demonstration").to_numpy(), "test"])
        lines = [["world", "items", *(f"({t})" if t in demos else str(t) for t in tests)]]
        for (world, n), part in rows.groupby(["world", "n_items"], sort=False):
            said = zip(part["test"], part["rate"], part["verdict"], strict=True)
            by = {str(test): _short(float(rate), str(verdict)) for test, rate, verdict in said}
            cells = [by.get(str(t), "-") for t in tests]
            lines.append([str(world), str(n), *cells])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        one = rows.iloc[0]
        band = f"{_short(one['low'])} to {_short(one['high'])}"
        head = f"{group}: {one['n_sets']} data sets per world; a true rate of .05 gives {band} in 99 % of runs"
        body = [
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        blocks.append("\n".join([head, *body]))
    notes = "in parentheses: shown because it fails, never used" if (table["role"] == "demonstration").any() else ""
    outside = "*: outside its bound" if (table["verdict"] == "outside").any() else ""
    return "\n\n".join([*blocks, *(n for n in [notes, outside] if n)])


def _short(rate: float, verdict: str = "") -> str:
    text = f"{rate:.2f}"
    return (text.removeprefix("0") if rate < 1 else "1") + ("*" if verdict == "outside" else "")


# ------------------------------------------------------------------ one data set


def _features(world: str, n: int, seed: int) -> Mapping[str, float]:
    """One context: single features and patterns, on activations, pre-activations and gain-corrected ones."""
    made = context_drives(np.random.default_rng(seed), world, n)[0]
    how, Z = flips(np.arange(n), N_FLIPS, seed=seed), made.pre - made.origin
    S = signs(how)
    total = made.post.sum(axis=2, keepdims=True)
    datas = {
        "activations": made.post, "activations / total": made.post / np.maximum(total, 1e-9), "z": Z,
        "(z-z0)*norm": Z / made.gain,
    }  # fmt: skip
    out: dict[str, float] = {}
    for name, Y in datas.items():
        D, activity = activations_interaction(Y)
        out[f"max-T {name}"] = _any_or_power(superadditive(D, np.abs(activity), how), made)
    for name in ("activations", "z", "(z-z0)*norm"):
        D = interaction(datas[name])
        kept = (D != 0).sum(axis=0) >= 6
        out[f"D_AxB {name}"] = reached_share(contrast_length(D[:, kept], S)) <= ALPHA
    return out | {"D-perp z": out_of_plane(Z, S).p <= ALPHA}


def _any_or_power(found: Superadditive, made: Drives) -> float:
    """Any false feature in worlds without integration, the share of planted features found in the others."""
    hits = np.zeros(len(made.planted), dtype=bool)
    hits[found.columns[found.p_corr <= ALPHA]] = True
    return float(hits[made.planted].mean()) if made.planted.any() else float(hits.any())


def _battery(world: str, n: int, seed: int) -> Mapping[str, float]:
    """The whole battery, from the localizer to the grade, without its causal member."""
    parts = context_drives(np.random.default_rng(seed), world, n, contexts=True)
    z, post, gain = (np.stack([getattr(p, key) for p in parts]) for key in ("pre", "post", "gain"))
    z = z - parts[0].origin
    sets, test = _localized(z[:, :, :LOCALIZER].mean(axis=0)), slice(LOCALIZER, None)
    how = flips(np.arange(n - LOCALIZER), N_FLIPS, seed=seed)
    conj = superadditive(*activations_interaction(post[1][:, test]), how).p_corr.min()
    measured = np.log(gain[:, 3, test]) if np.ptp(gain) > 0 else None
    found = evidence(z[:, :, test], how, sets=sets, gain=measured, conj=float(conj))
    assert found.plane is not None
    assert found.control is not None
    single = {"conj": conj, "D-perp": found.plane.p, "list control": found.control.p} | dict(found.p)
    return {name: float(p <= ALPHA) for name, p in single.items()} | {"grade 2": float(found.grade == 2)}


def _localized(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features that answer most to a, and the others that answer most to b."""
    a, b = (z[1] - z[0] + z[3] - z[2]) / 2, (z[2] - z[0] + z[3] - z[1]) / 2
    first, second = (np.argsort(-np.abs(d.mean(axis=0) / (d.std(axis=0, ddof=1) + 0.3))) for d in (a, b))
    return first[:TOP], second[~np.isin(second, first[:TOP])][:TOP]


def _coupling(world: str, n: int, seed: int) -> Mapping[str, float]:
    made = scores.coupling(world, n_items=n, seed=seed)
    S = signs(flips(np.arange(n), N_FLIPS, seed=seed))
    plain, covered = (coupling(made.seed, made.target, S, gain=g).p_unc[0] for g in (None, made.gain[:, :, None]))
    t = float(slope_differences(made.seed, made.target)[0])
    slope = 2 * stats.t.sf(abs(t), 2 * (n - 2))
    names = {"OLS slope": slope, "Fisher z": plain, "Fisher z, gain covariate": covered}
    return {name: float(p <= ALPHA) for name, p in names.items()}


def _information(world: str, n: int, seed: int) -> Mapping[str, float]:
    made = scores.information(world, n_items=n, seed=seed)
    broja, interacting = synergy(*made, n_surrogates=N_SURROGATES, seed=seed)
    shuffled = shuffled_synergy(*made, n=N_SURROGATES, seed=seed)
    names = {"shuffled target": shuffled, "additive surrogate, BROJA": broja.p, "additive surrogate, II": interacting.p}
    return {name: float(p <= ALPHA) for name, p in names.items()}


def _ladder(world: str, n: int, seed: int) -> Mapping[str, float]:
    order = labels(permutations(np.arange(n), np.arange(n), N_FLIPS, seed=seed)).astype(np.int64)
    out: dict[str, float] = {}
    for name, sparse in (("dense", False), ("sparse", True)):
        made = scores.groups(world, n_items=n, seed=seed, sparse=sparse)
        found = ladder(made.first, made.second, made.target, orders=order)
        out |= {f"{rung}, {name}": float(p <= ALPHA) for rung, p in found.p.items()}
    return out


C = ("C0", "C1", "C2", "C3", "C4")
TASKS = (
    Task("features", (*C, "I1", "I2", "I4"), (24, 48), _features),
    Task("battery", (*C, "word_pair", "I1", "I2", "I3"), (60,), _battery),
    Task("coupling", (*(f"P{k}" for k in range(8)), "I3_scores", "I3_scores_sparse"), (32, 48), _coupling),
    Task("information", (*(f"W{k}" for k in range(5)), "I5", "I6", "I7"), (96, 192), _information),
    Task("ladder", ("D0", "D2", "D1e", "D1", "D3", "I5_groups", "I6_groups", "I7_groups"), (24, 48), _ladder),
)


# ------------------------------------------------------------------ what is expected

# (group, world, test): least and largest true rate; what is not named is null in worlds without integration
DOCUMENTED: dict[tuple[str, str, str], tuple[float, float]] = {
    ("features", "C4", "max-T activations"): (0, 0.25),
    ("features", "C2", "max-T z"): (0, 0.25),
    ("coupling", "P6", "Fisher z, gain covariate"): (0, 0.11),
    ("coupling", "P7", "Fisher z, gain covariate"): (0, 0.12),
    ("coupling", "P7", "Fisher z"): (0, 0.12),
    ("information", "W2", "additive surrogate, BROJA"): (0, 0.3),
    ("information", "W2", "additive surrogate, II"): (0, 0.55),
    **{("ladder", "D1e", f"link, {d}"): (0, 0.13) for d in ("dense", "sparse")},
    **{("ladder", "D1", f"link, {d}"): (0, 0.6) for d in ("dense", "sparse")},
    **{("ladder", "D3", f"link, {d}"): (0, 0.3) for d in ("dense", "sparse")},
}
FAILING: dict[tuple[str, str, str], float] = {
    ("features", "C2", "max-T activations"): 0.8, ("features", "C3", "max-T activations"): 0.8,
    ("features", "C4", "max-T activations / total"): 0.75, ("features", "C3", "max-T activations / total"): 0.75,
    ("features", "C2", "D_AxB activations"): 0.9, ("features", "C3", "D_AxB activations"): 0.9,
    ("features", "C2", "D_AxB z"): 0.65,
    ("battery", "C2", "conj"): 0.8, ("battery", "C3", "conj"): 0.8, ("battery", "word_pair", "D-perp"): 0.95,
    ("coupling", "P5", "OLS slope"): 0.25, ("coupling", "P6", "OLS slope"): 0.45, ("coupling", "P6", "Fisher z"): 0.45,
    ("information", "W1", "shuffled target"): 0.9, ("information", "W2", "shuffled target"): 0.65,
    ("ladder", "D2", "linear, dense"): 0.7, ("ladder", "D2", "linear, sparse"): 0.7,
    ("ladder", "D1e", "linear, dense"): 0.7, ("ladder", "D1", "linear, dense"): 0.7,
    ("ladder", "D1e", "quadratic, dense"): 0.7, ("ladder", "D1", "quadratic, dense"): 0.7,
}  # fmt: skip
POWER: dict[tuple[str, str, str], float] = {
    **{("features", w, "D-perp z"): 0.9 for w in ("I1", "I4")},
    ("features", "I1", "D_AxB (z-z0)*norm"): 0.95, ("features", "I2", "D_AxB (z-z0)*norm"): 0.65,
    ("battery", "I1", "grade 2"): 0.9, ("battery", "I3", "grade 2"): 0.9,
    ("coupling", "I3_scores", "Fisher z, gain covariate"): 0.45,
    ("coupling", "I3_scores_sparse", "Fisher z, gain covariate"): 0.4,
    **{("information", w, "additive surrogate, BROJA"): 0.9 for w in ("I5", "I7")},
    **{("ladder", w, f"link, {d}"): 0.7 for w in ("I5_groups", "I7_groups") for d in ("dense", "sparse")},
}  # fmt: skip
NAIVE = ("OLS slope", "shuffled target", "max-T activations", "D_AxB activations", "D_AxB z", "conj", "linear")
"""Beginnings of the names of tests that are no evidence, whatever they give."""


def expected(group: str, world: str, test: str) -> tuple[str, tuple[float, float]]:
    """Role of a row, and bounds on its true rate.

    Examples
    --------
    >>> expected("features", "C2", "D-perp z"), expected("features", "C2", "D_AxB z")
    (('null', (0.0, 0.05)), ('demonstration', (0.65, 1.0)))
    """
    key = (group, world, test)
    if key in FAILING:
        return "demonstration", (FAILING[key], 1.0)
    if key in DOCUMENTED:
        return "documented", DOCUMENTED[key]
    if key in POWER:
        return "power", (POWER[key], 1.0)
    if world[0] == "I":
        return "power", UNLIMITED
    alone = (group == "ladder" and world != "D0" and not (world == "D2" and "linear" not in test)) or (
        group == "battery" and world == "word_pair" and test in ("conj",)
    )
    if alone or test.startswith(NAIVE):
        return "described", UNLIMITED
    return "null", (0.0, ALPHA)
