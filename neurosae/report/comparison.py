"""`comparison.html`: a study on several dictionaries as one self-contained page, from stored tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from neurosae.errors import StoreError
from neurosae.report.figures_comparison import agreement, hits
from neurosae.report.style import svg_text
from neurosae.report.wording import digits
from neurosae.spec.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "comparison", "What each dictionary is worth",
        "Measured on the same held-out text. Recovered: share of what the model loses by ablation to the mean that the "
        "dictionary brings back. Pathology: divergence over that of a random error of the same length (published: 2 to "
        "4.5). Dead: never active on these tokens, so less dense than the bound beside it (95 %, 3 over the tokens "
        "read). Dense: active on more than a tenth. Low, high: 95 % interval of FVU over documents; the other scores "
        "have theirs in the file. Comparisons hold only at equal sparsity: “no” marks an L0 over 20 % from that of "
        "the first.",
        {"site": "dictionary", "n_features": "features", "l0": "L0", "l0_matched": "L0 matched", "fvu": "FVU",
         "fvu_low": "low", "fvu_high": "high", "ce_recovered_mean": "CE recovered", "kl_recovered_mean": "KL recovered",
         "pathology": "pathology", "shrinkage": "shrinkage", "dead": "dead", "density_bound": "bound",
         "share_dense": "dense", "absorbed": "absorbed pairs"},
    ),
    (
        "contrasts", "What each contrast finds",
        "Features found at the study's corrected level, out of those tested. A larger dictionary tests more, so read "
        "shares, and the corrected p of the strongest.",
        {"test": "test", "effect": "effect", "region": "region", "site": "dictionary", "split": "items",
         "tested": "tested", "found": "found", "share": "share", "effsize": "effect size", "p_corr": "smallest p"},
    ),
    (
        "levels", "How well single features tell levels apart",
        "AUROC of the best feature (below .5: less active at that level), with a 95 % interval over items (the choice "
        "is not repeated: optimistic); limit: what the best of all features exceeds in 5 % of relabellings; selective: "
        "features beyond it.",
        {"site": "dictionary", "region": "region", "factor": "factor", "level": "level", "auroc": "best AUROC",
         "auroc_low": "low", "auroc_high": "high", "d_prime": "d′", "auroc_limit": "limit",
         "n_selective": "selective", "n_alive": "of"},
    ),
    (
        "probes", "Would raw activations do as well?",
        "Held-out AUROC of an L1 logistic regression on the k features that separate a level best in the other items: "
        "every dictionary, and raw neurons where a site reads them, at equal numbers of features.",
        {"site": "dictionary", "region": "region", "factor": "factor", "level": "level"},
    ),
    (
        "pairs", "What every two dictionaries share",
        "Decoder > .7: share of alive features matched one to one with a cosine above .7, at one hook point. r: median "
        "correlation of features matched by what the design leaves unexplained. ρ: rank correlation of the distances "
        "between stimuli, with a 95 % interval over items; p by permuting items, Holm over the table.",
        {"one": "dictionary", "other": "and", "region": "region", "overlap_70": "decoder > .7",
         "cosine_median": "median cosine", "n_matched": "matched", "r_median": "r", "r_70": "r > .7", "rho": "ρ",
         "rho_low": "low", "rho_high": "high", "p_holm": "p"},
    ),
    (
        "sets", "Are the same sets found?",
        "Matched pairs whose features were found on both sides, beside the number expected by chance. H0: which tested "
        "features of the second dictionary were found is exchangeable among features with equally good matches; Holm "
        "over the table.",
        {"one": "dictionary", "other": "and", "region": "region", "effect": "effect", "found_one": "found",
         "found_other": "found in the other", "n_both": "matched and found", "n_expected": "expected", "p_holm": "p"},
    ),
)  # fmt: skip


def write_comparison(folder: str | Path) -> Path:
    """Write `comparison/comparison.html` of a study from its stored tables.

    Parameters
    ----------
    folder : folder of a study on which `compare_dictionaries` was run

    Raises
    ------
    StoreError
        If there are no tables of a comparison.
    """
    place = Path(folder) / "comparison"
    tables = {name: _read(place / f"{name}.csv") for name, *_ in SECTIONS}
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page = env.get_template("comparison.html").render(
        name=Path(folder).name,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        headline=_headline(tables),
        cautions=_cautions(tables),
        sections=[_section(tables, *about) for about in SECTIONS],
    )
    path = place / "comparison.html"
    write_atomic(path, page)
    return path


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise StoreError(f"{path}: is missing; run `neurosae compare-dictionaries` on the analysis first.")
    return pd.read_csv(path)


def _section(tables: Mapping[str, pd.DataFrame], *about: Any) -> dict[str, Any]:
    name, title, words, columns = about
    table = tables[name]
    if name == "probes" and "auroc" in table:
        table, columns = _by_size(table, dict(columns))
    shown = {column: label for column, label in columns.items() if column in table}
    return {
        "id": name, "title": title, "words": words, "figure": _figure(name, tables), "labels": list(shown.values()),
        "numeric": [pd.api.types.is_numeric_dtype(table[column]) for column in shown],
        "rows": [[_cell(value) for value in row] for row in table[list(shown)].itertuples(index=False, name=None)],
        "notes": _notes(table),
    }  # fmt: skip


def _by_size(probes: pd.DataFrame, columns: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row per dictionary, place and level, a column per number of features."""
    keys = ["site", "region", "position", "factor", "level"]
    wide = probes.pivot_table(index=keys, columns="k", values="auroc", sort=False).reset_index()
    sizes = [name for name in wide.columns if name not in keys]
    shown = {str(k): f"AUROC, k = {int(k)}" for k in sizes}
    return wide.rename(columns={k: str(k) for k in sizes}), columns | shown


def _notes(table: pd.DataFrame) -> list[str]:
    """Each note once, after the names of the dictionaries that it is about."""
    if "note" not in table:
        return []
    rows = table[table["note"].notna() & table["note"].astype(str).ne("")]
    names = [name for name in ("site", "one", "other") if name in rows]
    about = [" and ".join(map(str, row)) for row in rows[names].itertuples(index=False, name=None)]
    return sorted({f"{who}: {note}" for who, note in zip(about, rows["note"], strict=True)})


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    return value if isinstance(value, str) else digits(value)


def _figure(name: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """The drawing of a section as SVG; empty where it has none."""
    table = tables[name]
    if name == "contrasts" and len(table):
        rows = table[table["split"] != "localizer"]
        return (
            svg_text(hits(rows), "hits", "Share of features found per effect, place and dictionary")
            if len(rows)
            else ""
        )
    if name == "pairs" and "rho" in table and table["rho"].notna().any():
        sites = [str(site) for site in tables["comparison"]["site"]]
        return svg_text(agreement(table, sites), "rho", "Agreement of the geometry between dictionaries")
    return ""


def _headline(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    found, pairs = tables["contrasts"], tables["pairs"]
    lines = [(digits(len(tables["comparison"])), "dictionaries")]
    if len(found):
        tested = found[(found["split"] != "localizer") & (found["tested"] > 0)]
        every = tested.groupby(["effect", "region"])["found"].min()
        lines.append((f"{int((every > 0).sum())} of {len(every)}", "contrasts found by all of them"))
    if "rho" in pairs and pairs["rho"].notna().any():
        lines.append((digits(pairs["rho"].median()), "median ρ of their geometries"))
    if pairs["overlap_70"].notna().any():
        share = pairs.drop_duplicates(["one", "other"])["overlap_70"].median()
        lines.append((f"{share:.0%}", "of decoder rows shared (cosine > .7), median"))
    return lines


def _cautions(tables: Mapping[str, pd.DataFrame]) -> Sequence[str]:
    rows = tables["comparison"]
    said = [
        "A feature index is never evidence across dictionaries: sets, contrasts and geometry are compared, not indices."
    ]
    odd = rows.loc[~rows["l0_matched"].astype(bool), "site"]
    if len(odd):
        said.append(
            f"L0 of {', '.join(map(str, odd))} is not within 20 % of that of {rows['site'].iloc[0]}: unequal sparsity."
        )
    if not rows["kind"].eq("standard").any():
        said.append(
            "No raw or linear baseline is among the sites; add `{dictionary: {neurons: true}}` to see what it does."
        )
    said.append(
        "A dictionary narrower than the true features merges correlated ones: a claim about a conjunction needs the "
        "same study at 1, 2 and 4 times the width, and text in which the parts are decorrelated."
    )
    return said
