"""Counts, order and p-intervals that figures, words and page share."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from neurosae.report.page import flat, marked
from neurosae.report.result_tables import result_table
from neurosae.report.tables import counts, p_intervals, ranked, rows_tested
from neurosae.report.wording import count_interval, digits, slug
from neurosae.spec.results import as_results


def test_counts_speak_for_every_feature_and_row(study):
    """tested + untestable + dead + failed = size of the dictionary, and the rows are all rows."""
    table = counts(study.results)
    assert table["rows"].sum() == len(study.results)
    assert (table["size"] == table[["tested", "untestable", "dead", "failed", "other"]].sum(axis=1)).all()
    assert (table.loc[table["kind"] == "contrast", "size"] == 1920).all()


def test_counts_call_degenerate_features_tested():
    """A variance of 0 still has a p: such a feature is tested and counted apart, but never found."""
    row = {
        "test": "t",
        "kind": "contrast",
        "site": "late",
        "feature": [1, 2, 3],
        "n_features": 1,
        "value": [2.0, None, None],
    }
    table = as_results({**row, "p_corr": [0.5, 0.01, None], "status": ["ok", "degenerate", "untestable"]})
    one = counts(table).iloc[0]
    assert (one["tested"], one["untestable"], one["degenerate"], one["found"], one["other"]) == (2, 1, 1, 0, 0)


def test_count_interval_agrees_with_scipy():
    """Clopper-Pearson bounds are those of scipy's exact binomial interval."""
    for hits in (1, 17, 400, 2000):
        oracle = scipy.stats.binomtest(hits, 2000).proportion_ci(0.95, method="exact")
        assert_allclose(count_interval(hits / 2000, 2000), (oracle.low, oracle.high), rtol=1e-9)


def test_p_intervals_only_where_p_was_sampled():
    """Max-T over sampled flips has an interval; enumeration of all flips and BH have none; stored bounds win."""
    rows = as_results(
        {"n_units": [24, 10, 24], "n_perm": [2000, 1024, 2000], "p_adjust": ["maxT", "maxT", "fdr_bh"], "p_corr": 0.01}
    )
    assert p_intervals(rows)["low"].notna().tolist() == [True, False, False]
    stored = p_intervals(rows.assign(x_p_low=0.001, x_p_high=0.2))
    assert stored["high"].tolist() == [0.2, 0.2, 0.2]


def test_ranked_breaks_ties_by_evidence(study):
    """Among equal corrected p the smaller uncorrected p is first, then the larger statistic."""
    rows = ranked(rows_tested(study.results[study.results["test"] == "number"]))
    p, size = rows["p_corr"].to_numpy(), rows["value"].abs().to_numpy()
    assert (np.diff(p) >= 0).all()
    same = (np.diff(p) == 0) & (np.diff(rows["p_unc"].to_numpy()) == 0)
    assert (np.diff(size)[same] <= 0).all()


def test_result_table_keeps_full_precision_for_sorting(study):
    """Cells show three digits, and sort by the stored number."""
    table = result_table(study, "number")
    column = [h["label"] for h in table["heads"]].index("statistic")
    values = [float(row["cells"][column]["sort"]) for row in table["rows"]]
    best = ranked(rows_tested(study.results[study.results["test"] == "number"]))["value"].head(200)
    assert_allclose(values, best, rtol=0)


def test_marked_nests_regions(study):
    """A span inside another belongs to both, the shorter one first; the pieces give the text back."""
    row = study.stimuli.iloc[0].copy()
    row["whole_start"], row["whole_end"] = 0, len(row["text"])
    pieces = marked(row, {"whole": 1, "head": 0})
    assert "".join(p["text"] for p in pieces) == row["text"]
    assert ["head", "whole"] in [p["regions"] for p in pieces]


def test_flat_shortens_hashes_and_lists():
    """Hashes keep 16 characters; lists of many say how many."""
    assert flat({"hash": "a" * 64, "many": list(range(20))})[0] == ("hash", "a" * 16 + "…")
    assert flat({"many": list(range(20))})[0][1].endswith("… (20)")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.99999, "1.00"),
        (123456.0, "123,456"),
        (1.5e-5, "1.50 × 10⁻⁵"),
        (np.nan, "–"),
        (0.0, "0"),
        (9.999e-5, "0.000100"),
    ],
)
def test_digits_keep_three_significant(value, shown):
    """Rounding may add a digit in front; missing is a dash."""
    assert digits(value) == shown


def test_slugs_stay_apart_and_inside_their_folder():
    """Names that differ only in odd characters get different files; none leaves the folder."""
    names = ["a/b", "a b", "../a", "a", "A", "..", "", "é", "x" * 300, "con/../../etc"]
    made = [slug(n) for n in names]
    assert len(set(made)) == len(names)
    assert not [m for m in made if "/" in m or m.startswith(".") or len(m) > 80]


def test_result_table_says_shared_notes_once(study):
    """A part of the note that every row has is one remark; what differs stays in the row."""
    rows = study.results["test"] == "number"
    tested = rows & (study.results["status"] == "ok")
    note = (
        study.results["note"]
        .mask(tested, "items share a form")
        .mask(tested & (study.results["feature"] == 1), "few items; items share a form")
    )
    table = result_table(dataclasses.replace(study, results=study.results.assign(note=note)), "number")
    assert table["remarks"] == ["items share a form"]
    assert {row["cells"][-1]["text"] for row in table["rows"]} == {"", "few items"}
