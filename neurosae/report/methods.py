"""Sentences for the methods of a paper, their numbers read from the stored study; citations as keys of REFERENCES."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from neurosae.report.claims import CORRECTIONS, STATISTICS, mixed_families
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, first_known, rows_tested
from neurosae.report.wording import digits, listed, plural


def material(study: Study) -> Iterator[str]:
    """Items, frames, factors and the partition."""
    design, stimuli = study.design, study.stimuli
    factors = listed(f"{n} ({', '.join(f.levels)}; {f.varies} items)" for n, f in design.factors.items())
    n_items, n_frames = stimuli["item"].nunique(), len(design.frames)
    frames = f" in {plural(n_frames, 'sentence frame')}" if n_frames else ""
    yield (
        f"The material consisted of {plural(n_items, 'item')}{frames} "
        f"({plural(len(stimuli), 'stimulus', 'stimuli')}) that crossed {factors}."
    )
    if "split" in stimuli and stimuli["split"].nunique() > 1:
        sizes = stimuli.groupby("split", observed=True)["item"].nunique()
        seed = f" (seed {design.partition.seed})" if design.partition else ""
        yield (
            f"Items were divided at random{seed} into "
            f"{listed(f'{n} {s} items' for s, n in sizes.items())}; the former serve to choose "
            "features, the latter to test them."
        )
    yield (
        "The item was the unit of replication [clark1973]; stimuli of one item were averaged over "
        "frames that were present in all of its cells."
    )


def model(study: Study) -> Iterator[str]:
    """The language model, its sites, and where responses were taken."""
    record, analysis = section(study.provenance, "model"), section(study.analysis, "model")
    name = record.get("source") or record.get("name") or analysis.get("name", "a language model")
    dtype = study.provenance.get("dtype") or record.get("dtype") or analysis.get("dtype", "float32")
    yield f"The stimuli were presented to the language model {name} ({dtype})."
    invariance = record.get("batch_invariance")
    if isinstance(invariance, int | float):
        yield f"Batched and single presentation agreed to a relative error of {digits(invariance)}."
    packing = section(section(study.provenance, "extraction"), "packing")
    if packing.get("used") == "trie" and isinstance(packing.get("error"), int | float):
        yield (
            f"Tokens of common beginnings were computed once ({packing['saving']:.0%} fewer tokens; relative error "
            f"against single presentation {digits(packing['error'])})."
        )
    sites = section(study.provenance, "dictionaries")
    words = []
    for site, card in sites.items():
        card = section(sites, site)
        size = f"{digits(int(card['n_features']))} features" if isinstance(card.get("n_features"), int) else "features"
        fit = [
            f"{label} {digits(card[key])}"
            for key, label in (("l0_here", "L0"), ("fvu_here", "fraction of variance unexplained"))
            if isinstance(card.get(key), int | float)
        ]
        words.append(f"{site} ({card.get('hook', 'hook unknown')}, {size}{', ' + ', '.join(fit) if fit else ''})")
    if words:
        yield (
            "Activations were decomposed into the features of dictionaries [huben2024] at "
            f"{plural(len(words), 'site')}: {listed(words)}."
        )
    positions = section(study.analysis, "positions")
    collapse = {"first": "first token", "last": "last token", "all": "every token"}.get(
        str(positions.get("tokens", "last")), f"{positions.get('tokens')} over tokens"
    )
    regions = distinct(study.results["region"])
    if regions:
        cut = ", each region cut to its shortest length" if positions.get("length_match") else ""
        places = f"{plural(len(regions), 'region')} ({', '.join(regions)})"
        yield f"Responses were taken at {places}, {collapse} of each{cut}."
    yield from _alignment(positions)


def _alignment(positions: Mapping[str, Any]) -> Iterator[str]:
    """What position 0 is, where a study says more than the default."""
    rule, window = str(positions.get("align", "region")), positions.get("window")
    span = f", positions {window[0]} to {window[1]}" if isinstance(window, list | tuple) else ""
    if rule in ("start", "end"):
        yield f"Positions count from the first and from the last token of each region{span}; both are reported."
    elif rule == "middle_out":
        yield "Positions count from the middle token of each text, an index that depends on whether its length is odd."
    elif rule in ("xcorr", "reference"):
        each = "item, all of its stimuli alike," if positions.get("shift_unit") == "item" else "stimulus"
        named = section(positions, "reference")
        features = "; ".join(f"{', '.join(map(str, f))} of {site}" for site, f in named.items())
        course = f"the features {features}, which were left out of every test" if named else "all features"
        yield (
            f"Positions count from the last token of each region{span}. Each {each} was moved by at most "
            f"{positions.get('max_shift', 3)} tokens, to the largest cross-correlation of the summed activation of "
            f"{course} with one template, its mean over all stimuli of all conditions; the shifts do not look at "
            "conditions."
        )


def contrast_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Statistic, relabelling, filter and correction of all contrasts."""
    asked, rows = rows, rows_tested(rows)
    if not len(rows):
        return
    alpha, inference = alpha_of(study), section(study.analysis, "inference")
    names = [s for s in distinct(rows["stat"])]
    statistics = listed(
        STATISTICS.get(s, s.replace("_", " ")) + (" [smyth2004]" if s == "moderated_t" else "") for s in names
    )
    yield (
        f"Every feature was tested with {statistics}, where an item's contrast is the sum of its "
        "cell means with the weights of the effect as written."
    )
    yield from _prior(rows)
    yield from _adjusted(study, rows)
    yield from _relabelling(study, rows)
    yield (
        f"Features with fewer than {inference.get('min_informative', 6)} informative items were "
        f"not tested; this filter does not change under relabelling. {_kept(asked)}"
    )
    for adjust in distinct(rows["p_adjust"]):
        tests = distinct(rows.loc[rows["p_adjust"] == adjust, "test"])
        sizes = rows.loc[rows["p_adjust"] == adjust, "n_family"].dropna()
        size = (
            (
                " over "
                f"{digits(int(sizes.min()))}{f' to {digits(int(sizes.max()))}' if sizes.max() != sizes.min() else ''} "
                "tests"
            )
            if len(sizes)
            else ""
        )
        yield (
            f"For {listed(tests)}, {CORRECTIONS.get(adjust, adjust)}{size} {CITED.get(adjust, '')} (level {alpha:g})."
        ).replace(" ()", "")
    yield from mixed_families(rows)


def _prior(rows: pd.DataFrame) -> Iterator[str]:
    """Prior degrees of freedom of the moderated t, where they were recorded."""
    rows = rows[(rows["stat"] == "moderated_t").to_numpy(dtype=bool)]
    d0 = sorted(set(rows["x_d0"].dropna())) if "x_d0" in rows else []
    if d0:
        span = digits(d0[0]) if len(d0) == 1 else f"{digits(d0[0])} to {digits(d0[-1])}"
        yield (
            "Variances were shrunk towards a trend over mean activity, which does not change under relabelling "
            f"(prior degrees of freedom {span})."
        )


def _adjusted(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was regressed out, and why it was not centred."""
    names = [str(name) for name in section(study.analysis, "inference").get("nuisance") or []]
    vif = rows["x_vif"].dropna() if "x_vif" in rows else []
    if not names or not len(vif):
        return
    within = bool((rows.loc[vif.index, "eftype"] == "d_z").any())
    centred = (
        " Within items its differences between conditions were not centred: centring would give the mean difference in "
        "nuisance back to the effect, whose test would then reject for it; the effect is the one at equal nuisance."
    )
    yield (
        f"Nuisance ({listed(names)}) was regressed out by the method of Freedman and Lane [freedman1983; winkler2014]: "
        "residuals of the reduced model were relabelled and the full model was fitted again (variance inflation up to "
        f"{digits(float(vif.max()))}).{centred if within else ''} Unadjusted estimates are in the results beside the "
        "adjusted ones."
    )


def _relabelling(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    said = list(
        dict.fromkeys(str(v).strip().rstrip(".") for v in section(study.provenance, "exchangeability").values())
    )
    if said:
        yield f"Null distributions came from relabellings: {'; '.join(said)}."
    n_perm, seed = rows["n_perm"].dropna(), study.provenance.get("seed", study.analysis.get("seed"))
    if len(n_perm):
        many = listed(dict.fromkeys(digits(int(n)) for n in sorted(set(n_perm))))
        yield (
            f"{many} relabellings were used, the identity included, the same for all features, "
            f"positions and sites (seed {seed}); p is the share of relabellings that reach the "
            "observed value [phipson2010], with Clopper–Pearson intervals for counted values "
            "[clopper1934]."
        )
    methods = set(rows["p_method"].dropna())
    if {"exact", "saddlepoint"} & methods:
        words = (
            "exact enumeration"
            if methods == {"exact"}
            else "exact enumeration or a saddlepoint approximation [lugannani1980]"
        )
        yield f"Uncorrected p-values came from {words}."


def _kept(rows: pd.DataFrame) -> str:
    rows = rows[rows["feature"].notna() | (rows["status"] == "dead")]
    n = rows["n_features"].astype(float).fillna(1)
    by = {
        s: int(n[(rows["status"] == s).to_numpy()].sum()) for s in ("ok", "degenerate", "untestable", "dead", "failed")
    }
    kept = by["ok"] + by["degenerate"]
    extra = f", {digits(by['failed'])} failed" if by["failed"] else ""
    return (
        f"Of {digits(int(n.sum()))} feature × place × effect combinations, {digits(kept)} were "
        f"tested, {digits(by['untestable'])} were untestable and {digits(by['dead'])} were never "
        f"active{extra}."
    )


def pattern_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Distances, models and inference of every RSA test."""
    for test in distinct(rows["test"]):
        ask = section(study.analysis, "tests", test)
        part = rows[rows["test"] == test]
        distance = str(ask.get("distance", "crossnobis"))
        how = {
            "crossnobis": ("cross-validated (crossnobis) distances with items as folds [walther2016; diedrichsen2017]"),
        }.get(distance, f"{distance} distances")
        yield (
            f"Representational geometry ({test}): dissimilarities between "
            f"{listed(distinct(part['effect'])) and 'conditions'} were {how}, compared with the models "
            f"{listed(distinct(part['effect']))} by "
            f"{first_known(part['stat'], str(ask.get('compare', ''))).replace('_', ' ')} [schutt2023]."
        )
        if part["p_unc"].notna().any():
            unit, n = first_known(part["unit"], "item"), part["n_perm"].dropna()
            yield (
                "Inference was by relabelling whole units "
                f"({unit}{f'; {digits(int(n.max()))} relabellings' if len(n) else ''})."
            )
        if any(c.startswith("x_ceiling") for c in part.columns if part[c].notna().any()):
            yield "The noise ceiling was estimated by splitting items [nili2014]."


def other_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What any results table says about how it was made."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        unit, adjust = first_known(part["unit"], "item"), first_known(part["p_adjust"], "none")
        names = listed(s.replace("_", " ") for s in distinct(part["stat"]))
        yield f"{test}: {names or 'no statistic'}, unit of replication {unit}, {CORRECTIONS.get(adjust, adjust)}."


def computing(study: Study) -> Iterator[str]:
    """Versions."""
    versions = section(study.provenance, "versions")
    shown = [
        f"{name} {versions[name]}" for name in ("neurosae", "python", "torch", "numpy", "scipy") if name in versions
    ]
    if shown:
        yield f"Computed with {listed(shown)}."
