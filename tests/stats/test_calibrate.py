"""The calibration: the tested methods hold their level, the demonstrations fail, and a killed run continues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from scipy import stats

from neurosae.errors import DataError
from neurosae.report.calibration import calibration_page
from neurosae.stats.calibrate import CELL, calibrate, judged, run_cells
from neurosae.stats.level_trials import compiled, filled
from neurosae.stats.trials import TRIALS, Score, Trial, grid, template_of

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "calibration.csv"
NAMES = {
    "max-T t": "maxT t",
    "max-T moderated_t": "maxT modt-trend",
    "max-T signed_rank": "maxT rank",
    "relabelling p + BH": "flip p + BH",
    "t table + Bonferroni": "t + Bonferroni",
    "t table + BH": "t + BH",
    "prompts as n + BH": "naive + BH",
}


def rates(table):
    return table.set_index("method")["rate"]


def test_one_cell_controls_its_error_rates():
    """200 data sets, within items: nothing above the 99.9 % band, and the moderated t inside it."""
    table = run_cells([Trial("no effect", "within", "complete", 0.5, 0.3)], None, n_sets=200, seed=1)
    tested = table[table["role"] == "tested"]
    assert set(tested["verdict"]) <= {"inside", "below", "high"}
    assert table.set_index("method").loc["max-T moderated_t", "verdict"] in {"inside", "high"}
    assert len(tested) >= 4


def test_demonstrations_fail():
    """Plain means of unequal frames reject too often; prompts as n between items nearly always."""
    plain = Trial("no effect", "within", "plain means", 0.05, 0.3, n_features=100)
    between = Trial("no effect", "between", "8/24", 0.2, 0.6, n_features=100)
    table = run_cells([plain, between], None, n_sets=40, seed=1)
    first, second = (table[table["design"] == design].set_index("method") for design in ("within", "between"))
    assert first.loc["max-T t", "verdict"] == "fails, as it must"
    assert first.loc["max-T t", "role"] == "demonstration"
    assert second.loc["prompts as n + BH", "rate"] > 0.8
    assert (second.loc[second["role"] == "tested", "rate"] <= stats.binom.ppf(0.999, 40, 0.05) / 40).all()


def test_false_discoveries_are_controlled_under_effects():
    """5 % true: the mean share of false discoveries stays low, and more items find more."""
    cells = [Trial("effects", "within", "complete", 0.0, 0.69, n_items=n, n_features=200) for n in (16, 64)]
    table = run_cells(cells, None, n_sets=25, seed=2)
    bh = table[table["method"] == "relabelling p + BH"].pivot_table(index="n_items", columns="measure", values="rate")
    assert (bh["discovery"] <= 0.05 + 2 * np.sqrt(0.0475 / 25)).all()
    assert bh.loc[64, "power"] > bh.loc[16, "power"] + 0.1


def test_intervals_cover_the_true_difference():
    """Marginal intervals cover 92 % at least, simultaneous ones all features in most data sets."""
    trial = Trial("intervals", "within", "complete", 0.2, 0.69, n_features=50)
    covered = rates(run_cells([trial], None, n_sets=25, seed=3))
    assert covered["marginal t interval"] >= 0.92
    assert covered["flip_t interval"] >= 0.91
    assert covered["simultaneous interval"] >= 0.84


def test_min_f_holds_where_items_and_frames_vary():
    """Prompts as n reject far too often; min-F' does not."""
    found = rates(run_cells([Trial("items x frames", "within", "8", 0.5, 1.0, n_items=24)], None, n_sets=100, seed=4))
    assert found["min-F'"] <= stats.binom.ppf(0.999, 100, 0.05) / 100
    assert found["prompts as n"] > 0.3


def test_a_killed_run_continues(tmp_path):
    """Finished cells are read back with the same numbers; other settings start anew."""
    cells = grid(full=False)[:3]
    run_cells(cells[:2], tmp_path, n_sets=2, seed=0)
    bar_free = run_cells(cells, None, n_sets=2, seed=0)
    calls = []
    original = TRIALS["no effect"]
    patched = pytest.MonkeyPatch()
    patched.setitem(TRIALS, "no effect", lambda *a, **k: calls.append(a[0]) or original(*a, **k))
    continued = run_cells(cells, tmp_path, n_sets=2, seed=0)
    patched.undo()
    assert set(calls) == {cells[2]}
    assert_frame_equal(continued.reset_index(drop=True), bar_free, check_dtype=False)
    assert not run_cells(cells[:1], tmp_path, n_sets=2, seed=1).equals(bar_free.head(len(bar_free) // 3))


def test_a_stop_costs_no_cell_that_was_finished(tmp_path, monkeypatch):
    """Cells before and behind the one that was running stay in the file."""
    cells, original = grid(full=False)[:3], TRIALS["no effect"]
    run_cells(cells[2:], tmp_path, n_sets=2, seed=0)

    def stop(trial, *args, **kwargs):
        if trial == cells[1]:
            raise KeyboardInterrupt
        return original(trial, *args, **kwargs)

    monkeypatch.setitem(TRIALS, "no effect", stop)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, n_sets=2, seed=0)
    kept = pd.read_csv(tmp_path / "calibration.csv")
    assert set(zip(kept["balance"], kept["density"], strict=True)) == {
        (cells[k].balance, cells[k].density) for k in (0, 2)
    }


def test_verdicts_follow_the_bands():
    """Bands of statistics.md: 200 data sets .015-.095 (.105); a demonstration must be above."""
    tested = Score("x", "tested", "familywise")
    made = judged(tested, 0.05, 200)
    assert (made["low"], made["high"], made["limit"]) == pytest.approx((0.015, 0.095, 0.105))
    expected = {0.0: "below", 0.05: "inside", 0.1: "high", 0.11: "above"}
    assert {rate: judged(tested, rate, 200)["verdict"] for rate in expected} == expected
    assert judged(Score("x", "tested", "coverage"), 0.9, 200)["verdict"] == "below"


def test_grid_is_the_declared_one():
    """44 cells without an effect, as in the reference run, and the small version of ten."""
    null = [trial for trial in grid(full=True) if trial.kind == "no effect"]
    assert len(null) == len(set(null)) == 44
    assert len(grid(full=False)) == 10


def test_page_agrees_with_its_table():
    """Every group of cells is a row, its mean and maximum are printed, and demonstrations are labelled."""
    table = calibrate(n_sets=2, seed=0)
    page = calibration_page(table, command="neurosae calibrate")
    assert "within, plain means (must fail)" in page
    assert "*prompts as n + BH*" in page
    rows = table[
        (table["design"] == "between") & (table["balance"] == "8/24") & (table["method"] == "prompts as n + BH")
    ]
    line = next(line for line in page.splitlines() if line.startswith("| between, 8/24"))
    assert f"{rows['rate'].mean():.3f}".removeprefix("0") in line


def test_committed_table_agrees_with_the_reference(oracles):
    """Same grid, other generator: rates of every design and method differ by no more than chance and .03."""
    ours = pd.read_csv(COMMITTED, dtype={"balance": str})
    ours = ours[ours["kind"] == "no effect"].assign(method=lambda t: t["method"].map(NAMES))
    ours["balance"] = ours["balance"].replace(
        {"complete": "balanced", "plain means": "cell means", "16/16": "balanced", "8/24": "unbalanced"}
    )
    theirs = pd.read_csv(oracles("calibration_reference.csv"))
    theirs["method"] = theirs["method"].replace({"maxT rank-sum": "maxT rank", "perm p + BH": "flip p + BH"})
    welch = (theirs["balance"] == "unbalanced") & (theirs["method"] == "maxT Welch")
    theirs = theirs[~((theirs["balance"] == "unbalanced") & (theirs["method"] == "maxT t"))]
    theirs.loc[welch, "method"] = "maxT t"
    keys = ["design", "balance", "method"]
    both = (
        ours.groupby(keys)["rate"].mean().to_frame("ours").join(theirs.groupby(keys)["error_rate"].mean(), how="inner")
    )
    assert len(both) >= 30
    tested = both[~both.index.get_level_values("balance").isin(["cell means"])]
    tested = tested[~tested.index.get_level_values("method").isin(["naive + BH"])]
    assert (tested["ours"] - tested["error_rate"]).abs().max() < 0.03
    assert both.loc[("within", "cell means", "maxT t"), "ours"] > 0.1


def test_committed_page_agrees_with_its_table():
    """docs/calibration.md is made from docs/calibration.csv, and no tested cell is above the 99.9 % band."""
    table = pd.read_csv(COMMITTED, keep_default_na=False, na_values=["nan"], dtype={"balance": str, "version": str})
    page = COMMITTED.with_suffix(".md").read_text(encoding="utf-8")
    command = next(line.strip() for line in page.splitlines() if line.startswith("    neurosae"))
    assert page == calibration_page(table, command=command)
    assert not (table["verdict"].eq("above") & table["role"].eq("tested")).any()


def test_calibrate_refuses_no_data_sets():
    """The number of data sets is at least one."""
    with pytest.raises(DataError, match="n_sets is 0"):
        calibrate(n_sets=0)


def test_trials_invariant_to_nothing_but_seed_and_number():
    """A data set is a pure function of its cell, seed and number."""
    trial = grid(full=True)[5]
    template = template_of(trial)
    one, two = (TRIALS[trial.kind](trial, template, seed=0, number=3) for _ in range(2))
    assert one == two
    assert set(CELL) == set(trial._fields)


@pytest.mark.parametrize("balance", ["3 levels", "6/8/18", "slope"])
def test_levels_and_slopes_control_their_error_rates(balance):
    """60 null data sets of a cell: no statistic rejects above the 99.9 % band."""
    cell = Trial("levels", "any", balance, 0.4, 0.3, n_features=40, n_items=24, n_permutations=200)
    table = run_cells([cell], None, n_sets=60, seed=5)
    assert len(table) == {"3 levels": 4, "6/8/18": 5, "slope": 2}[balance]
    assert not table["verdict"].eq("above").any()
    assert table["rate"].sum() > 0


def test_maps_agree_with_the_responses():
    """What the maps make of a data set is what the engine makes of its responses."""
    maps = compiled("3 levels", 8)
    Y = np.random.default_rng(0).gamma(2.0, 1.0, (24, 5))
    cell = filled(maps, sp.csr_matrix(Y))["2 / -1 / -1"]
    by_item = Y.reshape(8, 3, 5)
    assert_allclose(cell.data.D.toarray(), 2 * by_item[:, 1] - by_item[:, 0] - by_item[:, 2])
