"""Published reports: complete, self-contained, small, silent about the machine; and the tool that refuses others."""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "reports"
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("causal", "examine", "attribution", "integration")]
NAMED = sorted(
    {name for page in PAGES for name in re.findall(r"analyses/(\w+)\.yaml", page.read_text(encoding="utf-8"))}
)


@pytest.fixture(scope="module")
def tool():
    """The tool as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("publish_reports")
    sys.path.remove(str(ROOT / "tools"))


def test_every_study_of_the_docs_has_its_report():
    """Whatever analysis the pages on interventions, examination, attribution and integration name."""
    assert set(NAMED) - {path.stem for path in REPORTS.glob("*.html")} == set()


@pytest.mark.parametrize("name", sorted(path.stem for path in REPORTS.glob("*.html")))
def test_published_reports_are_complete_and_say_nothing_of_a_machine(tool, name):
    """A page, a picture, a part of the gallery; nothing loaded, nothing about a machine, below the limits."""
    assert (ROOT / "analyses" / f"{name}.yaml").is_file()
    assert tool.faults((REPORTS / f"{name}.html").read_text(encoding="utf-8")) == []
    assert (REPORTS / f"{name}.png").stat().st_size <= tool.PICTURE
    part = tool.published()[name]
    assert f"neurosae run analyses/{name}.yaml" in part
    assert re.search(r"- (not )?found, `", part)


def test_links_of_the_documents_resolve():
    """Links between documents lead to files, with the folder of the document as their start."""
    for page in [*ROOT.glob("docs/*.md"), REPORTS / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ('<img src="https://a.b/c.png">', "loads https://a.b/c.png"),
        ('<script src="//a.b/c.js"></script>', "loads //a.b/c.js"),
        ("<style>p{background:url(https://a.b/c)}</style>", "https://a.b/c"),
        ("<style>@import 'x.css';</style>", "x.css"),
        ("<p>--out /home/anna/results</p>", "path /home/anna/results"),
        ("<p>written on lab-7 by us</p>", "'lab-7' of this machine"),
        ("<p>" + "x" * 2_100_000, "bytes are more than"),
    ],
)
def test_pages_are_refused_that_load_or_tell(tool, page, said):
    """Whatever comes from elsewhere, and whatever only this machine knows."""
    assert any(said in fault for fault in tool.faults(page, private=("lab-7", "root")))


def test_pages_are_taken_that_only_link(tool):
    """Links to follow, data in the page, references inside of it, and the word root."""
    page = (
        '<a href="https://doi.org/1">1</a><img src="data:image/png;base64,AA"><use href="#m"/><g clip-path="url(#p)"/>'
        "root mean square; …/embedded/lm; 3/4"
    )
    assert tool.faults(page, private=("root", "lab-7")) == []


def test_thumbnails_keep_to_their_size(tool, tmp_path):
    """A noisy, tall figure becomes a small picture of it."""
    noise = np.random.default_rng(0).integers(0, 255, (1600, 900, 3), dtype=np.uint8)
    Image.fromarray(np.repeat(np.repeat(noise[::16, ::16], 16, 0), 16, 1)).save(tmp_path / "a.png")
    made = tool.thumbnail(tmp_path / "a.png")
    assert len(made) <= tool.PICTURE
    assert Image.open(io.BytesIO(made)).size[0] >= 300
