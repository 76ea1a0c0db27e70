"""Other formats as designs: what they become, what is refused and where, and the sets that are there."""

from __future__ import annotations

import gzip
import json

import pytest

from neurosae.design.checks import check
from neurosae.design.expand import expand
from neurosae.design.importers import import_design, write_design
from neurosae.design.units import items_of
from neurosae.errors import SpecError
from neurosae.spec.design import load_design

FOUR = {f"{a}_{b}": [f"{a} {b} {k} here." for k in range(3)] for a in ("win", "fail") for b in ("end", "run")}


@pytest.fixture
def write(tmp_path):
    """A function that writes text to a file of a name."""

    def make(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text, indent=1), encoding="utf-8")
        return path

    return make


def test_lists_become_items_that_are_nested_in_their_condition(write):
    """Two crossed factors between items: twelve items, and a paired test has nothing to pair."""
    design = import_design(write("four.json", FOUR), factors=["outcome", "course"])
    assert {n: (f.levels, f.varies) for n, f in design.factors.items()} == {
        "outcome": (("win", "fail"), "between"),
        "course": (("end", "run"), "between"),
    }
    stimuli = expand(design)
    assert len(stimuli) == len(items_of(design)) == 12
    assert "labels are permuted over items" in check(design).text()
    nested = {"win": {"end": FOUR["win_end"], "run": FOUR["win_run"]}, "fail": {"end": ["a b"], "run": ["c d"]}}
    assert set(import_design(write("nested.json", nested), n_items=1).factors) == {"factor_1", "factor_2"}


def test_conditions_that_are_not_crossed_are_one_factor(write):
    """Names that share no grid of parts stay whole."""
    design = import_design(write("two.json", {"records": ["a b.", "c d."], "news_items": ["e f.", "g h."]}))
    assert design.factors["condition"].levels == ("records", "news_items")


def test_tables_tell_within_from_between(write):
    """An item at both levels varies within; a column that is the same inside items is a label or a covariate."""
    rows = [f"{k},{n},w{k} {n},fruit,{k}.5" for k in ("apple", "pear", "plum") for n in ("sg", "pl")]
    design = import_design(write("t.csv", "item,number,text,kind,weight\n" + "\n".join(rows).replace("apple.5", "1.5")
                                 .replace("pear.5", "2.5").replace("plum.5", "3")))  # fmt: skip
    assert design.factors["number"].varies == "within"
    assert (design.labels, design.covariates) == (("kind",), ("weight",))
    stimuli = expand(design)
    assert stimuli.loc["apple/text/pl", "text"] == "wapple pl"
    assert stimuli.loc["plum/text/sg", "weight"] == 3.0
    lines = [json.dumps({"item": f"i{k}", "mood": "sad" if k % 2 else "glad", "text": f"text {k}"}) for k in range(6)]
    assert import_design(write("t.jsonl", "\n".join(lines))).factors["mood"].varies == "between"


def test_pairs_keep_the_good_sentence_apart(write, tmp_path):
    """JSON lines and lines in turn, the second of a pair good; punctuation is closed, the first letter large."""
    line = json.dumps({"sentence_good": "The dogs bark.", "sentence_bad": "The dogs barks."})
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(f"{line}\n".encode()))
    stimuli = expand(import_design(packed))
    assert stimuli.loc["pair1/text/good", "text"] == "The dogs bark."
    turns = import_design(write("z.txt", "the cats runs .\nthe cats run .\n"), "minimal_pairs")
    assert expand(turns)["text"].tolist() == ["The cats runs.", "The cats run."]


def test_an_imported_design_can_be_written_and_read(write, tmp_path):
    """What is written is a design file."""
    design = import_design(write("four.json", FOUR), factors=["outcome", "course"])
    write_design(tmp_path / "made.yaml", design)
    assert load_design(tmp_path / "made.yaml") == design


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{"x": ["a"],\n "y": ["b", "b"]}', r"a.json:2: 'y' holds a text twice"),
        ("a.json", '{"x": ["a"], "y": []}', r"a.json:1: condition 'y' holds no list"),
        ("a.json", '{"x": ["a"]', r"a.json:1: is no JSON"),
        ("a.json", '{"x": ["a"]}', r"factor 'condition' needs two levels"),
        ("a.csv", "item,text,n\na,one,sg\na,two,sg\n", r"a.csv:1: no column has a few levels"),
        ("a.csv", "item,text,n\na,one,sg\na,two\n", r"a.csv:3: the row has not as many fields"),
        ("a.csv", "item,text,n\na,x,s\na,y,s\nb,z,p\nb,w,p\n", r"a.csv:3: item 'a' is at s twice, first on line 2"),
        ("a.csv", "item,text,n\na,x,s\na,y,p\nb,z,s\nc,z,p\nc,q,s\n", r"a.csv:4: item 'b' has 1 of 2 cells"),
        ("a.jsonl", '{"item": "a", "text": "x", "n": "s"}\n{"item": 1\n', r"a.jsonl:2: is no JSON"),
        ("a.jsonl", '{"sentence_good": "a"}\n', r"a.jsonl:1: has no 'sentence_bad'"),
        ("a.bin", "x", r"its format cannot be told"),
    ],
)
def test_importers_refuse_with_file_and_line(write, name, text, said):  # noqa: PLR0917
    """One sentence: where, what is wrong, what would be right."""
    with pytest.raises(SpecError, match=said):
        import_design(write(name, text))


def test_factors_that_do_not_fit_are_refused(write):
    """Three conditions are no crossing of two factors."""
    path = write("a.json", {"x_a": ["1 a"], "x_b": ["2 a"], "y_a": ["3 a"]})
    with pytest.raises(SpecError, match="no crossing of 2 factors"):
        import_design(path, factors=["one", "two"])


def test_the_achievement_lists_are_read_as_nested_items(shared_data):
    """Four conditions of 50 sentences, two factors between items, 200 items."""
    path = shared_data("stimuli/achievements/bifactorial_achievements_continuations.json")
    design = import_design(path, factors=["outcome", "course"])
    assert [len(f.levels) for f in design.factors.values()] == [2, 2]
    assert all(f.varies == "between" for f in design.factors.values())
    assert len(items_of(design)) == 200


def test_blimp_is_read_as_pairs(shared_data):
    """A paradigm of 1,000 pairs; the first twenty are 20 items."""
    path = next(shared_data("stimuli/blimp/pairs").glob("*.jsonl.gz"))
    assert len(items_of(import_design(path, n_items=20))) == 20
