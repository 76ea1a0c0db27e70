"""The words: counts from the tables, nothing found as plainly as something, numbered references."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd
import pytest

from neurosae.report.claims import other_cautions
from neurosae.report.limits import limits
from neurosae.report.prose import headline
from neurosae.report.references import REFERENCES
from neurosae.report.sections import methods_text, statements
from neurosae.report.stored import effect_ends
from neurosae.report.tables import counts, rows_found, rows_tested
from neurosae.spec.results import MIXED


def test_statements_count_what_the_table_holds(study):
    """One statement per test; it counts features, and tests where they are more."""
    said = {s.test: s for s in statements(study)}
    rows = study.results[study.results["test"] == "number"]
    assert list(said)[:3] == ["number", "interference", "geometry"]
    found, tested = (part[["site", "feature"]].drop_duplicates() for part in (rows_found(rows), rows_tested(rows)))
    assert said["number"].text.startswith(f"{len(found)} of {len(tested):,} tested features respond to subject")
    assert f"in {len(rows_found(rows))} of {len(rows_tested(rows)):,} tests" in said["number"].text
    assert said["geometry"].number == "2/3"


def test_statements_name_the_direction_by_levels(study):
    """A two-level effect is told by its levels, an interaction by its cells."""
    found = rows_found(study.results[study.results["test"] == "number"])
    text = statements(study)[0].text
    assert f"{(found['value'] > 0).sum()} more active for pl than for sg" in text
    assert "with a larger difference pl − sg at attractor pl than at sg" in statements(study)[1].text
    assert effect_ends(study)["congruence"] == ("− cells", "+ cells")


def test_statements_warn_where_the_words_themselves_differ(study):
    """At the head the plural word itself is there; before the verb, congruence is free of words."""
    number, interference = statements(study)[:2]
    assert any("At head the words themselves differ" in caution for caution in number.cautions)
    assert not any("words themselves differ" in caution for caution in interference.cautions)


def changed(study, warnings=(), **columns):
    """The study with other columns in the rows of the strongest feature of `number`, and other warnings."""
    best = rows_found(study.results[study.results["test"] == "number"]).index[0]
    table = study.results.copy()
    for name, value in columns.items():
        table.loc[best, name] = value
    return dataclasses.replace(study, results=table, provenance={**study.provenance, "warnings": list(warnings)})


def test_degenerate_rows_are_said_and_not_counted(study):
    """A p of .0005 without any variance is no discovery; the sentence says that it is there."""
    other = changed(study, status="degenerate", note="the differences are all equal, so their variance is 0")
    before, after = statements(study)[0], statements(other)[0]
    assert len(rows_found(other.results)) == len(rows_found(study.results)) - 1
    assert "1 more test reached p ≤ 0.05 with the same difference in every item" in after.detail
    assert "same difference in every item" not in before.detail
    assert totals_of(other)["degenerate"].sum() == 1


def totals_of(study):
    return counts(study.results[study.results["kind"] == "contrast"])


def test_an_unreliable_interval_is_said_beside_its_numbers(study):
    """The strongest feature has an interval across 0 and a small p: its note stands beside both."""
    note = "interval unreliable: 7 informative items"
    said = statements(changed(study, note=note, ci_low=-1.0))[0]
    assert f"; {note})" in said.detail
    assert not any(note in caution for caution in said.cautions)


def test_cautions_stand_beside_the_claim_that_they_are_about(study):
    """A warning about a factor beside its effect, an approximate relabelling beside its rows, the rest once for all."""
    replication = "NO REPLICATION of 'subject': in all 48 items slot 'head' has one word per level."
    texts = "the same text in several items (2 texts; 'A' in 3): it is counted 3 times."
    forms = "'key' carries subject in 2 items: these items are not independent."
    other = changed(study, [replication, texts, forms], note="approximate: labels of all cells are permuted")
    said = statements(other)
    assert {replication, forms} <= set(said[0].cautions)
    assert "approximate: labels of all cells are permuted." in said[0].cautions
    assert other_cautions(other, said) == [texts]


def test_a_family_of_several_relabellings_is_a_caution(study):
    """What the family sentence says about mixed relabelling stands beside the claim, and in the methods."""
    words = f"family all: of a, b, {MIXED} (a: whole items are sign-flipped; b: labels are permuted over items)"
    other = changed(study, family=words)
    assert any("labels are permuted over items" in caution for caution in statements(other)[0].cautions)
    assert f"The tests of this family are {MIXED}" in " ".join(methods_text(other)[0])


def test_a_failed_position_is_named(study):
    """One row stands for all features of a place that could not be tested: the summary gives place and reason."""
    row = study.results[study.results["test"] == "number"].head(1).assign(position=3, feature=pd.NA, status="failed")
    row = row.assign(note="no item has this position in all of its cells", value=float("nan"), p_corr=float("nan"))
    other = dataclasses.replace(study, results=pd.concat([study.results, row.dropna(axis=1)], ignore_index=True))
    assert "Failed at head · position 3: no item has this position" in statements(other)[0].detail


def test_statements_of_a_localizer_say_so(study):
    """Features chosen on localizer items are no claim of the study."""
    other = dataclasses.replace(study, results=study.results.assign(split="localizer").astype({"split": "string"}))
    never = {"patch", "necessity", "together", "steer", "remove"}  # interventions refuse localizer items
    assert all(s.localizer for s in statements(other) if s.test not in never)
    assert ("0", "features tested") not in headline(other)


def test_uncorrected_results_are_called_exploratory(study):
    """Without correction the verdict is exploratory, whatever was found."""
    table = study.results[study.results["kind"] == "contrast"]
    table = table.assign(p_adjust=table["p_adjust"].where(table["p_adjust"].isna(), "none"))
    verdicts = {s.verdict for s in statements(dataclasses.replace(study, results=table))}
    assert verdicts == {"exploratory"}
    assert any("exploratory" in line for line in limits(dataclasses.replace(study, results=table)))


def test_methods_carry_the_numbers_of_the_study(study):
    """Sizes, counts, relabellings, seed, level, versions and the prior are those of the stored files."""
    text = " ".join(methods_text(study)[0])
    n = sum(len(rows_tested(study.results[study.results["test"] == t])) for t in ("number", "interference"))
    for words in (
        "48 items",
        "2 sentence frames",
        "2,000 relabellings",
        "seed 20260401",
        "level 0.05",
        "neurosae 0.1.0",
        "degrees of freedom 5.30",
        f"{n:,} were tested",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"align": "end", "window": [-2, 2]},
            "from the first and from the last token of each region, positions -2 to 2",
        ),
        ({"align": "middle_out"}, "depends on whether its length is odd"),
        ({"align": "xcorr", "window": [-4, 1], "max_shift": 2}, "Each stimulus was moved by at most 2 tokens"),
        ({"align": "xcorr", "window": [-4, 1], "shift_unit": "item"}, "Each item, all of its stimuli alike, was moved"),
        (
            {"align": "reference", "reference": {"late": [3, 8]}},
            "the features 3, 8 of late, which were left out of every",
        ),
        ({"tokens": "sum", "length_match": True}, "each region cut to its shortest length"),
    ],
)
def test_methods_say_how_positions_were_made(study, asked, words):
    """Every rule of alignment is in the methods; what is exploratory is among the limits."""
    changed = dataclasses.replace(study, analysis={**study.analysis, "positions": asked})
    assert words in " ".join(methods_text(changed)[0])
    said = any("the height, latency and shape of a peak are exploratory" in line for line in limits(changed))
    assert said == (asked.get("align") in ("xcorr", "reference"))


def test_methods_number_references_in_order(study):
    """Citations count up from 1, every reference is cited, and each link is a plain one."""
    paragraphs, references = methods_text(study)
    cited = [int(n) for group in re.findall(r"\[([\d, ]+)\]", " ".join(paragraphs)) for n in group.split(",")]
    assert sorted(set(cited)) == list(range(1, len(references) + 1))
    assert list(dict.fromkeys(cited)) == sorted(set(cited))
    assert all(link == "" or link.startswith("https://") for _, link in REFERENCES.values())


@pytest.mark.parametrize("words", ["for this model and dictionary", "Frames fixed", "at least one"])
def test_limits_hold_the_sentences_that_must_appear(study, words):
    """The reach of every claim is stated."""
    assert any(words in line for line in limits(study))


def test_limits_without_localizer_are_optimistic(study):
    """No partition: the same items choose and estimate."""
    design = study.design.model_copy(update={"partition": None})
    assert any("optimistic" in line for line in limits(dataclasses.replace(study, design=design)))
    assert not any("optimistic" in line for line in limits(study))
