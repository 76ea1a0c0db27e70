"""Cards: hostile texts are text, shades follow activation, everything comes from the stored tables."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# (matplotlib annotates all that an artist may be)

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from neurosae.report.cards import _tuning_words, draw_cards, examined, feature_cards, shown
from neurosae.report.figures_cards import PANELS, ROWS, feature_card, label_deciles, tuning_levels
from neurosae.report.html import write_report
from neurosae.report.stored import read_study
from tests.report.examined import write_examined
from tests.report.synthetic import write_study
from tests.report.test_html import EVIL, Page


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A study whose examined texts, labels, rules and names are all hostile."""
    folder = write_study(tmp_path_factory.mktemp("cards") / "study", tests=("interference",))
    write_examined(folder, text=EVIL, link="javascript:alert(1)//https://x")
    return folder, write_report(folder).read_text(encoding="utf-8")


def test_cards_escape_whatever_they_show(evil):
    """One script, no picture, no handler; the hostile words are read as words; direction marks are written out."""
    page = Page(evil[1])
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not {"img", "iframe"} & {tag for tag, _ in page.tags}
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert "".join(page.words).count(EVIL) > 30
    assert "\u202e" not in evil[1]
    assert "‹202e›b⏎" in evil[1]
    assert "javascript" not in evil[1]


def test_cards_have_everything_that_is_stored(evil):
    """Both features, every kind of example, tokens, rules, labels with their controls, counterparts, a figure each."""
    text = " ".join("".join(Page(evil[1]).words).split())
    for words in ("late/3", "late/40", "Strongest of every level", "At quantiles", "Random active", "other text",
                  "AUROC 0.900 on held-out texts", "the label of another feature gets 1.00", "excess kurtosis 7.00",
                  "2 texts begin alike", "restates the choice", "nearest decoders", "late/9 (0.400)",
                  "17 bits per token, strong examples 6 (median of 5); does not count: its rule does not predict it",
                  "counterparts at other sites"):  # fmt: skip
        assert words in text, words
    assert sorted(p.name for p in (evil[0] / "figures").glob("*card.svg")) == ["late-3-card.svg", "late-40-card.svg"]
    assert '<a href="#features">' in evil[1]


def test_shades_follow_activation(evil):
    """Nine shades of the largest activation: 8 of 8 is the ninth, 2 the third, nothing none."""
    cards = feature_cards(read_study(evil[0]), [])["cards"]
    first, second = cards[0]["examples"][0]["lines"]
    assert [p["shade"] for p in first["pieces"]] == [0, 9, 1]
    assert [p["shade"] for p in second["pieces"]] == [0, 3, 1]
    assert [p["here"] for p in first["pieces"]] == [False, True, False]


def test_links_only_over_https(tmp_path):
    """A link that a folder names is one only if it leads to a page."""
    folder = write_study(tmp_path / "study", tests=("interference",))
    write_examined(folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert 'href="https://www.neuronpedia.org/x/3"' in page
    (folder / "examine" / "record.json").write_text("{}")
    assert 'id="features"' not in write_report(folder).read_text(encoding="utf-8")  # half written: not trusted


def test_cards_are_the_same_twice(evil):
    """From stored files alone: the same bytes."""
    assert write_report(evil[0]).read_text(encoding="utf-8") == evil[1]
    assert set(examined(read_study(evil[0]))) == set(
        json.loads((evil[0] / "examine/record.json").read_text())["tables"]
    )


def test_content_warning_folds_texts_away(tmp_path):
    """With `report.content_warning` no example is open before a reader wants it."""
    folder = write_study(tmp_path / "study", tests=("interference",))
    write_examined(folder)
    text = (folder / "analysis.yaml").read_text().replace("report: {", "report: {content_warning: Unkind words., ")
    (folder / "analysis.yaml").write_text(text)
    page = write_report(folder).read_text(encoding="utf-8")
    folds = re.findall(r'<details><summary dir="auto">Unkind words.</summary>\s*<details', page)
    assert len(folds) == 2


def test_feature_card_draws_what_the_table_says():
    """A step line per source; a row of points per cell, all texts in it, the bar at the mean."""
    row = {"factor": None, "level": None, "n_tokens": 100, "n_active": 5, "density": 0.05, "bins": [0.0, 0.5, 1.0]}
    spread = pd.DataFrame([{**row, "counts": [4, 1], "source": "study"}, {**row, "counts": [0, 0], "source": "text"}])
    pooled = pd.DataFrame({"site": "s", "feature": 1, "stimulus": list("abcd"), "value": [0.0, 4, 2, 2]})
    pooled["level"] = ["sg", "sg", "pl", "pl"]
    left, right = feature_card(spread, pooled).axes
    assert np.allclose(left.patches[0].get_data().values, [0.8, 0.2])
    assert [t.get_text() for t in right.get_yticklabels()] == ["sg", "pl"]
    assert sum(len(c.get_offsets()) for c in right.collections) == 4
    assert [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 2][:2] == [2.0, 2.0]
    assert [t.get_text().strip() for t in right.texts] == ["50.0 %", "100 %"]
    assert len(feature_card(spread, pooled.iloc[:0]).axes) == 1


def test_cards_are_limited_and_say_so(tmp_path):
    """`report.cards` cards, the first of every site in turn; how many are left out; the tables keep all."""
    folder = write_study(tmp_path / "study", tests=("interference",))
    write_examined(folder)
    place = folder / "examine" / "features.parquet"
    two = pd.read_parquet(place)
    early = two.assign(site="early", feature=[5, 6])
    pd.concat([two, early], ignore_index=True).to_parquet(place)
    assert len(feature_cards(read_study(folder), [])["cards"]) == 4
    text = (folder / "analysis.yaml").read_text()
    (folder / "analysis.yaml").write_text(text.replace("report: {", "report: {cards: 2, "))
    made = feature_cards(read_study(folder), [])
    assert [card["name"] for card in made["cards"]] == ["late/3", "early/5"]
    assert "2 of 4 examined features have no card" in made["notes"][1]
    assert [d.name for d in draw_cards(read_study(folder)) if d.kind == "card"] == [
        "late-3-card", "early-5-card"
    ]  # fmt: skip
    page = write_report(folder).read_text(encoding="utf-8")
    assert "2 of 4 examined features have no card" in page
    assert 'id="feature-early-5"' in page
    assert 'id="feature-early-6"' not in page
    assert len(examined(read_study(folder))["features"]) == 4


def test_levels_and_labels_are_drawn(evil):
    """Beside the card: tuning of both features, and the scores of the one label that was judged."""
    names = sorted(p.stem for p in (evil[0] / "figures").glob("late-*.svg"))
    assert names == ["late-3-card", "late-3-deciles", "late-3-tuning", "late-40-card", "late-40-tuning"]
    assert all(f'id="{name}"' in evil[1] for name in names)


def test_tuning_levels_draw_means_and_intervals():
    """A panel per factor, a point per level at its mean, its bar from low to high."""
    levels = pd.DataFrame({
        "factor": ["number", "number", "kind"], "level": ["sg", "pl", "x"], "n_items": 12, "mean": [1.0, 4.0, 2.0],
        "mean_low": [0.5, 3.0, 1.0], "mean_high": [1.5, 6.0, 2.5], "density": [0.1, 0.4, 0.2],
    })  # fmt: skip
    first, second = tuning_levels(levels).axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("number", "kind")
    bars, points = first.collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [3.0, 6.0]]
    assert points.get_offsets()[:, 1].tolist() == [1.0, 4.0]
    assert first.get_ylim()[0] == 0
    assert second.get_ylim()[1] == first.get_ylim()[1] > 6.0  # nothing is cut off, in any panel
    assert [t.get_text() for t in first.get_xticklabels()] == ["sg\n10.0 %\n12 items", "pl\n40.0 %\n12 items"]
    many = pd.concat([levels.assign(factor=f"f{k}") for k in range(8)], ignore_index=True)
    assert len(tuning_levels(many).axes) == PANELS
    long = pd.concat([levels.iloc[:1].assign(factor="f", level=str(k)) for k in range(15)], ignore_index=True)
    assert len(tuning_levels(long).axes[0].collections[1].get_offsets()) == ROWS
    assert "2 further factors" in _tuning_words(many)
    assert "3 levels of f" in _tuning_words(long)
    assert "Not drawn" not in _tuning_words(levels)


def test_label_deciles_draw_the_scores():
    """Its own label and the other one by tenth, silent tokens at the left, how many examples each mean is of."""
    own, other = [np.nan] * 7 + [1.0, 2.0, 3.0], [np.nan] * 7 + [0.5, 0.0, 1.0]
    label = pd.Series({"deciles": own, "deciles_other": other, "deciles_n": [0] * 7 + [2, 1, 3], "mean_silent": 0.25,
                       "n_silent": 9})  # fmt: skip
    axes = label_deciles(label).axes[0]
    lines = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines}
    assert lines == {
        "label of another feature": ([8, 9, 10], [0.5, 0.0, 1.0]), "its label": ([8, 9, 10], [1.0, 2.0, 3.0])
    }  # fmt: skip
    assert axes.collections[0].get_offsets().tolist() == [[0, 0.25]]
    assert [t.get_text() for t in axes.texts] == ["2", "1", "3", "9"]


def test_shown_writes_signs_out():
    """Controls, marks of direction, half surrogates; letters of any script stay."""
    assert shown("a\tb\u200f\x07\ud800汉 é") == "a⇥b‹200f›‹7›‹d800›汉 é"
