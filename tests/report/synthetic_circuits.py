"""Rows and long tables of attribution, the logit lens, attention and heads, made up from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurosae.spec.results import as_results

CELLS = ("sg/sg", "sg/pl", "pl/sg", "pl/pl")
HEADS = [f"L{layer}H{head}" for layer in range(2) for head in range(3)]


def _rows(test: str, kind: str, n: int, **columns: object) -> pd.DataFrame:
    """Tested rows of one effect and place; the first is found."""
    value = np.linspace(6, -1, n)
    base = {
        "test": test, "kind": kind, "position": 0, "split": "test", "feature": np.arange(n), "n_features": 1,
        "stat": "moderated_t", "value": value, "estimate": value / 10, "se": 0.1, "effsize": value / 5, "eftype": "d_z",
        "ci_low": value / 10 - 0.2, "ci_high": value / 10 + 0.2, "ci_level": 0.95, "p_unc": 0.5,
        "p_corr": np.where(np.arange(n) == 0, 0.001, 0.9), "p_adjust": "maxT", "p_method": "flips", "n_units": 24,
        "family": f"all of test {test}", "n_family": n, "unit": "item", "n_perm": 2000, "alternative": "two-sided",
        "h0": "nothing changes", "status": "ok",
    }  # fmt: skip
    return as_results(base | columns)


def circuit_tables(folder: Path) -> list[pd.DataFrame]:
    """Results rows of five tests; their long tables are written beside them."""
    rng = np.random.default_rng(8)
    kept = np.arange(8)
    missed = {"x_missed": 0.0, "x_missed_bound": 0.45, "x_agreement": 0.93, "x_p_others": 0.2}
    sets = np.where(kept < 3, "screened", "random others")
    used = _rows("used", "attribution", 8, effect="mean", site="late", region="pre_verb", set=sets, **missed)
    long = used[["site", "region", "feature", "set", "p_corr"]].assign(effect="mean", exact=used["estimate"])
    long["approximate"] = long["exact"] * 0.8 + rng.normal(size=8) * 0.01
    long.to_parquet(folder / "tests" / "used.screen.parquet")
    names = ["embedding", *HEADS, "MLP 0"]
    parts = _rows("parts", "attribution", 8, effect="subject", site="direct", region="target", x_component=names)
    where = {"effect": "congruence", "site": "logit_lens", "region": "target"}
    lens = _rows("lens", "logit_lens", 5, **where, x_measure="logit_diff")
    read = [{"cell": c, "layer": k, "n": 24, "logit_diff": k - 2.0, "log_prob": -3.0, "prob": 0.1, "rank": 9.0}
            for c in CELLS for k in range(5)]  # fmt: skip
    pd.DataFrame(read).to_parquet(folder / "tests" / "lens.lens.parquet")
    looks = [
        _rows("looks", "attention", 6, effect="congruence", site=f"attn->{key}", region="pre_verb", x_head=HEADS)
        for key in ("head", "local")
    ]
    means = [
        {"site": f"attn->{key}", "key": key, "region": "pre_verb", "cell": c, "feature": j, "layer": j // 3,
         "head": j % 3, "mean": 0.1 * j + 0.05 * (key == "head"), "n": 24}
        for key in ("head", "local") for c in CELLS for j in range(6)
    ]  # fmt: skip
    pd.DataFrame(means).to_parquet(folder / "tests" / "looks.attention.parquet")
    return [used, parts, lens, *looks, *head_rows()]


def head_rows(*, passes: bool = True) -> list[pd.DataFrame]:
    """Rows of `test: heads`; L0H0 passes all three tests of induction, or none does."""
    verdict = ["induction head: 40.0% of its attention" if passes else "not an induction head: x"]
    extra = {"x_repeated": 0.4, "x_control": 0.02, "x_uniform": 0.03, "unit": "sequence", "x_head": HEADS}
    tables = [
        _rows("copies", "heads", 6, effect=effect, site="heads", position=pd.NA, **extra)
        for effect in ("previous", "duplicate", "induction", "sink", "entropy")
    ]
    tables[2]["x_verdict"] = pd.array([*verdict, *["not an induction head: x"] * 5], dtype="string")
    rise = {"x_rise": 0.3, "x_head": HEADS, "unit": "sequence"}
    tables.append(_rows("copies", "heads", 6, effect="ablation", site="heads", position=pd.NA, **rise))
    copy = {"feature": [pd.NA], "estimate": [-0.5], "x_first": 9.0, "x_second": 8.5, "unit": "sequence"}
    tables.append(_rows("copies", "heads", 1, effect="copy", site="heads", position=pd.NA, **copy))
    return tables
