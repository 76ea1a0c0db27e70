"""The words: counts from the tables, nothing found as plainly as something, numbered references."""

from __future__ import annotations

import dataclasses
import re

import pytest

from neurosae.report.limits import limits
from neurosae.report.prose import headline
from neurosae.report.references import REFERENCES
from neurosae.report.sections import methods_text, statements
from neurosae.report.stored import effect_ends
from neurosae.report.tables import rows_found, rows_tested


def test_statements_count_what_the_table_holds(study):
    """One statement per test; it counts features, and tests where they are more."""
    said = {s.test: s for s in statements(study)}
    rows = study.results[study.results["test"] == "number"]
    assert list(said) == ["number", "interference", "geometry"]
    found, tested = (part[["site", "feature"]].drop_duplicates() for part in (rows_found(rows), rows_tested(rows)))
    assert said["number"].text.startswith(f"{len(found)} of {len(tested):,} tested features respond to subject")
    assert f"in {len(rows_found(rows))} of {len(rows_tested(rows)):,} tests" in said["number"].text
    assert said["geometry"].number == "2/3"


def test_statements_name_the_direction_by_levels(study):
    """A two-level effect is told by its levels, an interaction by its cells."""
    found = rows_found(study.results[study.results["test"] == "number"])
    text = statements(study)[0].text
    assert f"{(found['value'] > 0).sum()} more active for pl" in text
    assert effect_ends(study)["congruence"] == ("− cells", "+ cells")


def test_statements_warn_where_the_words_themselves_differ(study):
    """At the head the plural word itself is there; before the verb, congruence is free of words."""
    number, interference = statements(study)[:2]
    assert "At head the words themselves differ" in number.detail
    assert "words themselves differ" not in interference.detail


def test_statements_of_a_localizer_say_so(study):
    """Features chosen on localizer items are no claim of the study."""
    other = dataclasses.replace(study, results=study.results.assign(split="localizer").astype({"split": "string"}))
    assert all(s.localizer for s in statements(other))
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
