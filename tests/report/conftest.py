"""Finished studies, made up once per session."""

from __future__ import annotations

import pytest

from tests.report.synthetic import write_study


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """The files of a study with planted effects, before any report."""
    return write_study(tmp_path_factory.mktemp("study") / "number_agreement")


@pytest.fixture(scope="session")
def study(stored):
    """That study, as it is stored."""
    from neurosae.report.stored import read_study

    return read_study(stored)


@pytest.fixture(scope="session")
def study_folder(stored):
    """Its folder with the report; all figures are drawn, so tests that need it stand in one file, test_html."""
    from neurosae.report.html import write_report

    write_report(stored)
    return stored


@pytest.fixture(scope="session")
def page(study_folder):
    """The text of its page."""
    return (study_folder / "report.html").read_text(encoding="utf-8")
