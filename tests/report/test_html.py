"""The page: complete, self-contained, escaped, the same for the same files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from neurosae.errors import StoreError
from neurosae.report.figures import FIGURES
from neurosae.report.html import render, write_report
from neurosae.spec.results import as_results, read_results, write_results
from tests.report.synthetic import WORDS, contrast_test, design_text, item_names, stimuli_table, write_study

EVIL = '<script>alert("1")</script> & "quote" \'s $x_1$ $'
LOADS = {"src", "srcset", "data", "poster", "action", "background", "ping", "xlink:href", "formaction"}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_page_loads_nothing_from_outside(page):
    """No script, style, picture or frame from elsewhere; links to references only."""
    for tag, attrs in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert not [v for k, v in attrs.items() if k in LOADS and not v.startswith(("#", "data:image/png;base64,"))]
        to = attrs.get("href", "#")  # the viewer lies beside the page
        assert tag in ("a", "use", "image") or "href" not in attrs
        assert to.startswith(("#", "https://")) or (tag, to) == ("a", "examine/viewer.html")
        assert not [k for k in attrs if k.startswith("on")]
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_only_script_is_the_one_that_the_policy_names(page):
    """The hash in the Content-Security-Policy is that of the inline script; nothing else may run."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_page_has_every_section_and_a_text_for_every_figure(page):
    """A reader with a screen reader finds the same parts."""
    tags = Page(page).tags
    ids = [a["id"] for t, a in tags if "id" in a]
    wanted = {"summary", "design", "stimuli", "models", "tested", "results", "methods", "limits", "provenance"}
    assert wanted <= set(ids)
    assert len(ids) == len(set(ids))
    labels = [a.get("aria-label") for t, a in tags if t == "svg"]
    assert len(labels) == sum(t == "figure" for t, _ in tags) == page.count('role="img"')
    assert all(labels)


def test_every_result_is_counted(study, page):
    """The counts of features, and the rows of each table, add up to the results table."""
    for test, rows in study.results.groupby("test"):
        assert f"({len(rows):,} rows of this test)" in page, test
    assert f"{len(study.results):,} rows" in page


def test_draw_study_uses_every_registered_figure(study_folder):
    """Safe names; every kind of figure is drawn for a study that has everything, as SVG and as PNG."""
    names = sorted(p.stem for p in (study_folder / "figures").glob("*.svg"))
    assert names == sorted(p.stem for p in (study_folder / "figures").glob("*.png"))
    assert {n.rsplit("-")[-1] for n in names} == set(FIGURES)
    assert all(re.fullmatch(r"[\w.-]+", n) for n in names)


def test_page_holds_the_grid_of_patching(study_folder, page):
    """The stored study is written as one page with the figure and the methods."""
    assert "Activation patching (patch; logit_diff)" in page
    assert (study_folder / "figures" / "patch-patching.svg").is_file()


def test_page_is_made_again_from_stored_files_alone(tmp_path):
    """A copy of the files without page and figures gives the same bytes, figures included."""
    folder, copy = write_study(tmp_path / "one" / "study", tests=("interference",)), tmp_path / "two" / "study"
    page = write_report(folder).read_text(encoding="utf-8")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("figures", "report.html"))
    assert write_report(copy).read_text(encoding="utf-8") == page
    names = sorted(p.name for p in (folder / "figures").iterdir())
    assert len(names) > 4
    assert names == sorted(p.name for p in (copy / "figures").iterdir())
    assert all((copy / "figures" / n).read_bytes() == (folder / "figures" / n).read_bytes() for n in names)


@pytest.mark.parametrize("missing", ["results.parquet", "provenance.json", "stimuli.parquet", "design.yaml"])
def test_write_report_refuses_an_unfinished_study(stored, tmp_path, missing):
    """The message names the file that is missing, and nothing is written."""
    copy = tmp_path / "study"
    shutil.copytree(stored, copy, ignore=shutil.ignore_patterns("figures", "report.html", missing))
    with pytest.raises(StoreError, match=missing):
        write_report(copy)
    assert not (copy / "report.html").exists()


def test_write_report_refuses_what_is_no_folder(tmp_path):
    """A mistyped path is one sentence."""
    with pytest.raises(StoreError, match="no such folder"):
        write_report(tmp_path / "nothing")


def evil_study(folder):
    """Every word that a user or a model can give is hostile: items, forms, notes, H0, model names, warnings."""
    words = [EVIL.replace("/", "⁄") + "/שלום$a$", "مفتاح/汉字<b>", 'x"y/<img src=x onerror=alert(1)>', *WORDS[3:16]]
    write_study(folder, words=words, tests=("interference",))
    table = read_results(folder)
    for column in ("note", "h0", "family"):
        table[column] = table[column].where(table[column].isna(), EVIL)
    write_results(folder, table)
    record = json.loads((folder / "provenance.json").read_text())
    record |= {"warnings": [EVIL], "check_text": EVIL, "command": EVIL, "model": {"name": EVIL, "</dd><script>": EVIL}}
    (folder / "provenance.json").write_text(json.dumps(record))
    text = (
        (folder / "analysis.yaml")
        .read_text()
        .replace("Number agreement in the embedded model", f"'{EVIL.replace(chr(39), chr(39) * 2)}'")
    )
    (folder / "analysis.yaml").write_text(text)
    return folder


def test_page_escapes_stimuli_model_and_notes(tmp_path):
    """Hostile, right-to-left and Chinese words are shown as text, in the page and in its figures; nothing crashes."""
    page = write_report(evil_study(tmp_path / "evil")).read_text(encoding="utf-8")
    parsed = Page(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert "img" not in {tag for tag, _ in parsed.tags}
    text = "".join(parsed.words)
    assert EVIL in text
    assert "汉字" in text
    assert "مفتاح" in text


def test_page_escapes_names_of_levels(study):
    """A level called <i>pl is a word in tables, sentences and directions, not a tag."""
    hostile = {"sg": "<i>sg", "pl": "<i>pl"}
    factors = {n: f.model_copy(update={"levels": ("<i>sg", "<i>pl")}) for n, f in study.design.factors.items()}
    stimuli = study.stimuli.copy()
    for name in factors:
        stimuli[name] = stimuli[name].cat.rename_categories(hostile)
    effects = {"subject": {"subject": {"<i>pl": 1, "<i>sg": -1}}}
    page = render(
        dataclasses.replace(
            study, stimuli=stimuli, design=study.design.model_copy(update={"factors": factors}),
            analysis={**study.analysis, "effects": effects},
        ),
        [],
    )  # fmt: skip
    assert "i" not in {tag for tag, _ in Page(page).tags}
    assert "more active for <i>pl than for <i>sg" in "".join(Page(page).words)


def test_page_says_plainly_that_nothing_was_found(tmp_path):
    """No discovery: the summary says none of how many, and that this proves nothing."""
    page = write_report(write_study(tmp_path / "null", strength=0.0, tests=("interference",))).read_text(
        encoding="utf-8"
    )
    assert re.search(r"None of [\d,]+ tested features is found to respond to congruence", page)
    assert "does not show that there is no effect" in page
    assert "nothing found" in page


def test_page_of_rsa_alone(tmp_path):
    """Without any contrast there are matrices and fits, and no volcano."""
    folder = write_study(tmp_path / "rsa", tests=("geometry",))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "The geometry carries subject (2 of 2 places)" in page
    assert {"geometry-rdms.svg", "geometry-fits.png"} <= {p.name for p in (folder / "figures").iterdir()}
    assert "volcano" not in page.split("</style>")[1]


def bare_study(folder, table):
    write_study(folder, tests=())
    write_results(folder, table)
    (folder / "provenance.json").write_text("{}")
    return folder


SHARED = {"test": "number", "kind": "contrast", "effect": "subject", "site": "late", "region": "head", "split": "test"}


@pytest.mark.parametrize("status", ["dead", "failed", "untestable"])
def test_page_of_a_test_without_any_number(tmp_path, status):
    """Only dead, untestable or failed features: the page gives the reason, and needs no provenance."""
    note = "never active in the tested rows"
    table = as_results({**SHARED, "n_features": 1920, "status": status, "note": note}, n_rows=1)
    page = write_report(bare_study(tmp_path / "bare", table)).read_text(encoding="utf-8")
    assert "No feature could be tested for subject at head in late" in page
    assert f"1,920 {status}: {note}" in page


def test_page_of_no_test_at_all(tmp_path):
    """An empty results table still gives a page with design and stimuli."""
    page = write_report(bare_study(tmp_path / "empty", as_results({}, n_rows=0))).read_text(encoding="utf-8")
    assert "Nothing was tested" in page
    assert "keys" in page


def test_page_of_a_screen_without_null_and_extras(tmp_path):
    """A test that left a table alone has its volcano and table; correction and warning are named."""
    items = item_names()[::2]
    table, _, _ = contrast_test(
        np.random.default_rng(1), "screen", "subject", regions=["head"], items=items, strength=1.4
    )
    table = table.assign(p_adjust=table["p_adjust"].where(table["p_adjust"].isna(), "fdr_bh")).drop(columns="x_z")
    folder = bare_study(tmp_path / "screen", table)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "false discovery rate" in page
    assert "positive dependence" in page
    assert sorted(p.stem for p in (folder / "figures").glob("*.svg")) == [
        "design-weights",
        "screen-strip",
        "screen-volcano",
    ]


def test_long_tables_are_cut_with_a_note(study, page):
    """At most 200 rows of a test are inline; the note says how many there are and where."""
    number = page[page.index('id="test-number"') : page.index('id="test-interference"')]
    assert number.count("<tr") <= 202
    assert "The 200 most extreme rows are shown here." in number
    assert "results.csv" in number


def test_stimuli_mark_their_regions(page):
    """The first stimulus shows its head and the word before the verb."""
    assert (
        'The <mark class="c0" title="head">key</mark> near the <mark class="c1" title="pre_verb">cabinet</mark> is'
        in page
    )


def test_synthetic_design_agrees_with_its_stimuli():
    """The made-up stimuli are what their design says: forms and spans."""
    table = stimuli_table(WORDS[:4])
    row = table.loc["key/pp/pl/sg"]
    assert row["text"][row["head_start"] : row["head_end"]] == "keys"
    assert '"key"' in design_text(WORDS[:4])
    assert table["subject"].cat.categories.tolist() == ["sg", "pl"]
    assert isinstance(table, pd.DataFrame)
