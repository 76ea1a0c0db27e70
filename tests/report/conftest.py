"""Finished studies, made up once per session."""

from __future__ import annotations

import pytest

from tests.report.synthetic import write_study


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory):
    """A study with planted effects and its report."""
    from neurosae.report.html import write_report

    folder = write_study(tmp_path_factory.mktemp("study") / "number_agreement")
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def study(study_folder):
    """The stored files of that study."""
    from neurosae.report.stored import read_study

    return read_study(study_folder)


@pytest.fixture(scope="session")
def page(study_folder):
    """The text of its page."""
    return (study_folder / "report.html").read_text(encoding="utf-8")
