"""What the page says of patching: how many places carry the difference, and the one that carries most."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import by_effect, held
from neurosae.report.figures_patching import MOST_ROWS, patching, thing_name
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, first_known, has_numbers, is_found
from neurosae.report.wording import digits, plural, slug

ASKS = {
    "noising": "put into the clean text, what the other has there takes the outcome away (necessary)",
    "denoising": "put into the other text, what the clean one has there brings the outcome back (sufficient)",
}
SUM = "Shares of different places do not add up to one: later places hold what earlier ones passed on."
SINGLE = "Only noising was run: {replace} has no other text to be put into, so nothing is said about sufficiency."
WEIGHTS = "Single attention weights were patched; with those that stay they need not add up to 1."
FORCED = {
    "zero": "Zero is a vector that the model never meets; an effect may be damage and not loss of the information.",
    "noise": "Noise leaves the vectors that the model is used to; an effect may be damage, not loss of information.",
}


def patching_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One sentence per direction: how many places, and the strongest."""
    alpha = alpha_of(study)
    for effect, part in by_effect(rows):
        tested = part[has_numbers(part)]
        if not len(tested):
            text = f"No place could be tested for {effect}: {first_known(part['note'])}."
            yield Statement(test, effect, "untested", "–", text, "", False)
            continue
        found = tested[is_found(tested, alpha)]
        direction, replace = first_known(part["x_direction"]), first_known(part["x_replace"])
        carry = "carries" if len(found) == 1 else "carry"
        text = (
            f"{len(found) or 'None'} of {plural(len(tested), 'tested place')} {carry} the difference: "
            f"{ASKS[direction] if replace in ('paired', 'random') else f'{replace} there moves it'}."
        )
        cautions = [FORCED[replace]] if replace in FORCED else []
        cautions += [SUM] if replace in ("paired", "random") else [SINGLE.format(replace=replace)]
        frozen = first_known(part["x_freeze"], "none")
        if part["set"].astype("string").str.startswith("attention to").any():
            cautions.append(WEIGHTS)
        cautions += [f"Scales of normalizations were held at the run without edits ({frozen})."] * (frozen != "none")
        aligned = [n for n in distinct(part["note"]) if "aligned at the last token" in n or "another token" in n]
        detail = f"{held(tested, alpha)} {_strongest(tested)}"
        verdict, number = ("found" if len(found) else "nothing"), f"{len(found):,}"
        yield Statement(test, effect, verdict, number, text, detail, False, (*cautions, *aligned[:2]))


def _strongest(tested: pd.DataFrame) -> str:
    has = "x_share" in tested and tested["x_share"].notna().any()
    row = tested.loc[tested["x_share" if has else "estimate"].abs().astype(float).idxmax()]
    change = f"{digits(row['estimate'])} in units of {row['x_outcome']}, d_z = {digits(row['effsize'])}"
    if has:
        low, high = digits(row["x_share_low"]), digits(row["x_share_high"])
        change = f"{digits(row['x_share'])} [{low}, {high}] of the difference; {change}"
    p = row["p_corr"] if pd.notna(row["p_corr"]) else row["p_unc"]
    return f"The strongest is {thing_name(row)} at {row['region']} ({change}; p {digits(p)})."


def patching_drawings(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """The grid of one test."""
    if not len(rows[has_numbers(rows)]):
        return
    alpha, n = alpha_of(study), int(rows["n_units"].max())
    unit = first_known(rows["unit"], "item")
    words = (
        "Rows: what is patched; columns: where. Colour and number: the share of the difference between the two texts "
        "(ratio of sums over items), or the change of the outcome where there is no other text; framed: corrected p ≤ "
        f"{alpha:g}; hatched: nothing leads from there to what is scored, or both texts hold the same. Drawn from "
        f"{n:,} test {unit if n == 1 else unit.removesuffix('s') + 's'}."
    )
    things = rows.groupby(["site", "feature", "set"], dropna=False).ngroups
    if things > MOST_ROWS:
        words += f" The {MOST_ROWS} rows with the largest effects of {things:,}."
    figure = patching(rows, alpha=alpha)
    yield Drawing(f"{slug(test)}-patching", "patching", test, "What carries the difference", words, figure, wide=True)


def patching_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was put where, what is tested and how it was corrected."""
    del study
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        adjust, replace = first_known(part["p_adjust"], "none"), first_known(part["x_replace"])
        source = {
            "paired": "what the text of the same item at the other level has there", "zero": "zeros",
            "random": "what texts of other items at the other level have there (averaged over draws)",
            "mean": "the mean of the same place over the texts of other items", "noise": "noise added to what is there",
        }.get(replace, replace)  # fmt: skip
        cited = CITED.get(adjust, "")
        yield (
            f"Activation patching ({test}; {first_known(part['x_outcome'])}): vectors, or features in delta form with "
            f"the dictionary's error kept, were replaced by {source} [meng2022; heimersheim2024]. The change per item "
            "(frames and cells averaged) was tested by flips of whole items, the same flip for all places; corrected: "
            f"{adjust}{f' {cited}' if cited else ''}. Null hypothesis: {first_known(part['h0'])}."
        )


PATCHING = Section(patching_statements, patching_drawings, patching_methods)
