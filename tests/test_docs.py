"""What the documentation shows is run: the tour, the commands of the README, the links to files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tour_runs():
    """Every cell of the ten-minute tour, as a script."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "tour.py")], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "results.parquet" in done.stdout


def test_yaml_of_the_readme_loads(tmp_path):
    """The two files that the README explains are valid as printed."""
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    designs = [b for b in blocks if b.startswith("schema: neurosae/design")]
    analyses = [b for b in blocks if b.startswith("schema: neurosae/analysis")]
    assert designs
    assert analyses
    for name in ("stimuli", "analyses"):
        (tmp_path / name).mkdir()
    (tmp_path / "stimuli" / "number_agreement.yaml").write_text((ROOT / "stimuli/number_agreement.yaml").read_text())
    design = designs[0].replace("partition: {localizer: 24, seed: 7}", "")
    (tmp_path / "design.yaml").write_text(design)
    (tmp_path / "analyses" / "analysis.yaml").write_text(analyses[0])
    assert load_design(tmp_path / "design.yaml").name == "number_agreement"
    assert load_analysis(tmp_path / "analyses" / "analysis.yaml").tests


def test_the_list_of_modules_is_up_to_date():
    """docs/modules.md holds every module with its own first sentence."""
    command = [sys.executable, str(ROOT / "tools" / "list_modules.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run `python tools/list_modules.py`"


def test_files_named_in_the_readme_exist():
    """Pictures and files that the README points to are in the tree."""
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert name.startswith("http") or (ROOT / name).exists(), name
    for name in re.findall(r"`((?:docs|stimuli|analyses|tools|benchmarks)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_no_word_of_a_machine_in_the_documents():
    """Documents speak of the project alone."""
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"(^|[\s(`])/(home|tmp|work|root)/", path.read_text(encoding="utf-8")), path
