"""What contrasts and geometries found, in plain words; nothing found is said as plainly."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.design.confounds import lexical_table
from neurosae.report.claims import (
    by_effect,
    example,
    failures,
    flat_rows,
    held,
    named_cautions,
    shared_cautions,
    where,
    why_untested,
)
from neurosae.report.directions import direction_words
from neurosae.report.parts import Statement
from neurosae.report.stored import Study, alpha_of, compiled_effects, section, tested_stimuli
from neurosae.report.tables import distinct, first_known, is_found, of_activations, rows_found, rows_tested
from neurosae.report.wording import digits, listed, plural
from neurosae.spec.results import strongest

RANKED = 0.3  # reliability of an RDM below which models are not ranked


def contrast_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect of a contrast."""
    return (_contrast(study, part, name=(test, effect)) for effect, part in by_effect(rows))


def _contrast(study: Study, rows: pd.DataFrame, *, name: tuple[str, str]) -> Statement:
    (test, effect), alpha, tested = name, alpha_of(study), rows_tested(rows)
    localizer, place = distinct(rows["split"]) == ["localizer"], where(rows)
    if not len(tested):
        text = f"No feature could be tested for {effect}{place}."
        return Statement(test, effect, "untested", "–", text, why_untested(rows), localizer)
    found, how = rows_found(tested, alpha), held(tested, alpha)
    n_tested, n_found = _n_features(tested), _n_features(found)
    several, rest = n_tested < len(tested), flat_rows(tested, alpha) + failures(rows)
    if not len(found):
        of = f"{plural(n_tested, 'tested feature')}{f' ({len(tested):,} tests)' if several else ''}"
        detail = f"{how} The most extreme is {example(strongest(tested))}.{rest}"
        return Statement(
            test, effect, "nothing", "0", f"None of {of} is found to respond to {effect}{place}.", detail, localizer
        )
    exploratory = first_known(tested["p_adjust"], "none") == "none" or first_known(tested["p_method"]) == "parametric"
    more = int((signed_values(found) > 0).sum())
    ways = _directions(study, effect, (len(found) - more, more))
    tests = f", in {len(found):,} of {len(tested):,} tests" if several else ""
    verb = "responds" if n_found == 1 else "respond"
    text = f"{n_found:,} of {plural(n_tested, 'tested feature')} {verb} to {effect}{place}{tests}: {ways}."
    detail = f"{how} The strongest is {example(strongest(found))}.{rest}"
    cautions = (*_same_words(study, effect, found), *shared_cautions(found), *named_cautions(study, test, effect))
    verdict = "exploratory" if exploratory else "found"
    return Statement(test, effect, verdict, f"{n_found:,}", text, detail, localizer, cautions)


def signed_values(rows: pd.DataFrame) -> pd.Series:
    """Numbers whose sign is the direction: the statistic, or the estimate where the statistic has no sign.

    Examples
    --------
    >>> rows = pd.DataFrame({"stat": ["t", "hurdle"], "value": [-2.0, 9.0], "estimate": [-1.0, -0.5]})
    >>> signed_values(rows).tolist()
    [-2.0, -0.5]
    """
    return rows["value"].where(rows["stat"] != "hurdle", rows["estimate"])


def _same_words(study: Study, effect: str, found: pd.DataFrame) -> tuple[str, ...]:
    """A caution where features were found at a region whose own words differ between the + and - cells."""
    made = compiled_effects(study).get(effect)
    regions = tuple(r for r in distinct(found["region"]) if f"{r}_start" in study.stimuli)
    if made is None or not regions:
        return ()
    table = lexical_table(study.design, tested_stimuli(study), {effect: made}, regions=regions)
    there = [str(r) for r in table.loc[table["differ"] > 0, "region"]]
    return (f"At {listed(there)} the words themselves differ, and may be what is responded to.",) if there else ()


def _n_features(rows: pd.DataFrame) -> int:
    return len(rows[["site", "feature"]].drop_duplicates())


def _directions(study: Study, effect: str, counts: tuple[int, int]) -> str:
    """How many tests found go in either direction of the effect, in the words of its weights."""
    levels = {
        n: sorted(f.levels, key=f.values.__getitem__) if f.values else f.levels for n, f in study.design.factors.items()
    }
    words = direction_words(section(study.analysis, "effects").get(effect), levels)
    if words[0] == words[1]:
        return f"{sum(counts):,} {words[0]}"
    return listed(f"{n:,} {way}" for n, way in zip(reversed(counts), reversed(words), strict=True) if n)


def pattern_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement on all models of an RSA test."""
    yield _pattern(study, test, rows)


def _pattern(study: Study, test: str, rows: pd.DataFrame) -> Statement:
    alpha, place, localizer = alpha_of(study), where(rows), distinct(rows["split"]) == ["localizer"]
    known = rows[rows["value"].notna()]
    tested = known[known["p_corr"].notna()]
    if not len(known):
        return Statement(
            test, "", "untested", "–", f"No model could be compared{place}.", why_untested(rows), localizer
        )
    names, found = distinct(tested["effect"]), tested[is_found(tested, alpha)]
    seen = [n for n in names if (found["effect"] == n).any()]
    parts = []
    if seen:
        parts.append(f"The geometry carries {listed(_in_places(n, found, tested) for n in seen)}{place}")
    if missing := [n for n in names if n not in seen]:
        parts.append(
            f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} not found in it"
            if seen
            else f"The geometry{place} is not found to carry {listed(missing, last='or')}"
        )
    if other := [n for n in distinct(known["effect"]) if n not in names]:
        parts.append(f"{listed(other)} {'is' if len(other) == 1 else 'are'} described, not tested")
    best = known.iloc[int(known["value"].argmax())]
    kind = f"{str(best['stat']).replace('_', ' ')} = {digits(best['value'])}"
    fit = f"The best fit is {best['effect']} at {best['site']} · {best['region']}, {kind}{_ceiling(best)}"
    how = f"{held(tested, alpha)} " if len(tested) else ""
    verdict = "found" if seen else "nothing" if names else "exploratory"
    number = f"{len(seen)}/{len(names)}" if names else digits(best["value"], 2)
    cautions = dict.fromkeys(
        [*shared_cautions(found), *(w for name in seen for w in named_cautions(study, test, name))]
    )
    return Statement(test, "", verdict, number, "; ".join(parts) + ".", f"{how}{fit}.", localizer, tuple(cautions))


def _in_places(name: str, found: pd.DataFrame, tested: pd.DataFrame) -> str:
    n, of = int((found["effect"] == name).sum()), int((tested["effect"] == name).sum())
    return name if of == 1 else f"{name} ({n} of {of} places)"


def _ceiling(row: pd.Series) -> str:
    known = {c: row.get(f"x_{c}") for c in ("ceiling", "reliability")}
    known = {c: float(v) for c, v in known.items() if v is not None and pd.notna(v)}
    parts = [f"{c.replace('ceiling', 'noise ceiling')} {digits(v)}" for c, v in known.items()]
    low = "; too unreliable to rank models" if known.get("reliability", 1) < RANKED else ""
    return f" ({', '.join(parts)}{low})" if parts else ""


def other_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect of a kind of test that has no section of its own: how many of its rows were found."""
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    for effect, part in by_effect(rows):
        tested, name = part[part["value"].notna()], f"{effect}{where(part)}"
        found = tested[is_found(tested, alpha)]
        if not len(tested):
            text = f"Nothing could be tested for {name}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), localizer)
            continue
        text = f"{len(found):,} of {plural(len(tested), 'tested row')} found for {name}."
        detail = f"{held(tested, alpha)} The strongest is {example(strongest(tested))}."
        verdict = "found" if len(found) else "nothing"
        yield Statement(test, effect, verdict, f"{len(found):,}", text, detail, localizer)


def headline(study: Study) -> list[tuple[str, str]]:
    """Numbers for the head of the page: (number, what it counts)."""
    rows = of_activations(study.results[study.results["feature"].notna()])
    held_out = rows[(rows["split"] != "localizer").fillna(True)]
    out = [(f"{_n_items(study):,}", "test items")]
    sites = distinct(of_activations(study.results)["site"]) or list(section(study.analysis, "sites"))
    out.append((f"{len(sites):,}", "site" if len(sites) == 1 else "sites"))
    tested = rows_tested(held_out)
    if len(tested):
        features = tested[["site", "feature"]].drop_duplicates()
        found = rows_found(tested, alpha_of(study))[["site", "feature"]].drop_duplicates()
        out += [(f"{len(features):,}", "features tested"), (f"{len(found):,}", "features found")]
    patterns = study.results[study.results["kind"] == "rsa"]
    if len(patterns) and not len(tested):
        n = int(is_found(patterns, alpha_of(study)).sum())
        out += [(f"{len(patterns):,}", "model fits"), (f"{n:,}", "above chance")]
    return out


def _n_items(study: Study) -> int:
    stimuli = study.stimuli
    kept = stimuli[stimuli["split"].astype(str) == "test"] if "split" in stimuli else stimuli
    return int((kept if len(kept) else stimuli)["item"].nunique())
