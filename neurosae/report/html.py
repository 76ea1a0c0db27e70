"""A stored study as one self-contained page: no network, one inline script named by its hash, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from neurosae.report.cards import ON_CARDS, draw_cards, feature_cards
from neurosae.report.claims import other_cautions
from neurosae.report.limits import limits
from neurosae.report.page import (
    confounds,
    design_tables,
    dictionary_cards,
    example_stimuli,
    flat,
    provenance_lines,
)
from neurosae.report.parts import Drawing
from neurosae.report.prose import headline
from neurosae.report.result_tables import count_rows, families, result_table, smallest_holm
from neurosae.report.sections import draw_study, methods_text, statements
from neurosae.report.stored import Study, alpha_of, read_study, section
from neurosae.report.style import file_bytes, svg_text
from neurosae.report.tables import distinct
from neurosae.report.wording import digits, listed, slug
from neurosae.report.written import content_warning, steered_texts
from neurosae.spec.files import atomic_path, write_atomic

TEMPLATES = Path(__file__).parent / "templates"
MODEL = (
    *("source", "n_layers", "d_model", "n_ctx", "n_vocab", "dtype", "device", "weights", "bos", "batch_invariance"),
    "weights_hash",
)
"""What the card of the language model shows at once; the rest is folded away."""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/` of a study from its stored files alone; the same files give the same bytes.

    Parameters
    ----------
    folder : path
        A study folder: `results.parquet provenance.json stimuli.parquet design.yaml analysis.yaml` and, where a test
        left them, `tests/<test>.{items,cells,rdm,fits}.parquet` and `tests/<test>.null.npy`.

    Returns
    -------
    Path of the page.

    Raises
    ------
    StoreError
        If the folder holds no finished study.
    """
    study = read_study(folder)
    drawings = [*draw_study(study), *draw_cards(study)]
    page = render(study, drawings)
    _write_figures(study.folder / "figures", drawings)
    path = study.folder / "report.html"
    write_atomic(path, page)
    return path


def _write_figures(folder: Path, drawings: Iterable[Drawing]) -> None:
    """All figures or none: a folder of an older report is replaced as a whole."""
    with atomic_path(folder) as part:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for drawing in drawings:
            svg, png = file_bytes(drawing.figure)
            (part / f"{drawing.name}.svg").write_bytes(svg)
            (part / f"{drawing.name}.png").write_bytes(png)


def render(study: Study, drawings: Iterable[Drawing]) -> str:
    """The page as text.

    Parameters
    ----------
    study : Study
    drawings : the figures of the page, already drawn
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    env.filters["digits"] = digits
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return env.get_template("report.html").render(
        **_context(study, list(drawings)),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
    )


def _context(study: Study, drawings: list[Drawing]) -> dict[str, Any]:
    model = section(study.provenance, "model")
    analysis, design = study.analysis, study.design
    name = str(analysis.get("name", study.folder.name))
    report = section(analysis, "report")
    paragraphs, references = methods_text(study)
    tests, said = distinct(study.results["test"]), statements(study)
    figures = [
        {"test": d.test, "name": d.name, "kind": d.kind, "title": d.title, "caption": d.caption,
         "shape": "wide" if d.wide else "tall" if d.kind == "volcano" else "",
         "svg": svg_text(d.figure, f"f{i}", f"{d.test} {d.title}. {d.caption}".strip())}
        for i, d in enumerate(drawings)
    ]  # fmt: skip
    elsewhere = ("weights", "training", *ON_CARDS)
    return {
        "name": name,
        "title": str(report.get("title") or name.replace("_", " ")),
        "question": str(design.description or ""),
        "headline": headline(study),
        "statements": said,
        "cautions": other_cautions(study, said),
        "alpha": alpha_of(study),
        "design": design_tables(study),
        "confounds": confounds(study),
        "stimuli": example_stimuli(study),
        "model": flat({name: model[name] for name in MODEL if name in model}),
        "model_more": flat(model, skip=MODEL),
        "model_name": _model_name(study),
        "dictionaries": dictionary_cards(study),
        "families": families(study),
        "holm": smallest_holm(study),
        "counts": count_rows(study),
        "n_rows": len(study.results),
        "tests": [_test(study, test, figures) for test in tests],
        "test_ids": {test: slug(test) for test in tests},
        "design_figures": [f for f in figures if f["kind"] == "weights"],
        "dictionary_figures": [f for f in figures if f["kind"] == "training"],
        "overview_figures": [f for f in figures if not f["test"] and f["kind"] not in elsewhere],
        "features": feature_cards(study, figures),
        "warning": content_warning(study),
        "methods": paragraphs,
        "references": references,
        "limits": limits(study),
        "provenance": provenance_lines(study),
        "seed": study.provenance.get("seed", analysis.get("seed", "")),
        "version": section(study.provenance, "versions").get("neurosae", ""),
    }


def _model_name(study: Study) -> str:
    record = section(study.provenance, "model")
    return str(record.get("name") or record.get("source") or section(study.analysis, "model").get("name", "model"))


def _about(rows: pd.DataFrame) -> str:
    effects, regions, sites = distinct(rows["effect"]), distinct(rows["region"]), distinct(rows["site"])
    of = f" of {listed(effects)}" if 0 < len(effects) <= 6 else ""
    where = f" at {listed(regions)}" if regions else ""
    inside = f" in {listed(sites)}" if 0 < len(sites) <= 6 else ""
    split = f", on the {listed(distinct(rows['split']))} items" if rows["split"].notna().any() else ""
    return f"{listed(distinct(rows['kind']))}{of}{where}{inside}{split}."


def _test(study: Study, test: str, figures: list[dict[str, Any]]) -> dict[str, Any]:
    rows = study.results[study.results["test"] == test]
    return {
        "name": test,
        "about": _about(rows),
        "h0": distinct(rows["h0"])[:6],
        "family": distinct(rows["family"])[:3],
        "table": result_table(study, test),
        "figures": [f for f in figures if f["test"] == test],
        "texts": steered_texts(study, test),
    }
