"""The integration battery on a study: members, correction, grade.

Every site, region and position is one experiment of 2 x 2 cells (x context). Members write rows; Holm's method over
code and gate at all places gives the p on which the grade rests, and what the design lacks limits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from neurosae.design.expand import expand
from neurosae.design.requirements import parts_of, requirements
from neurosae.errors import DataError
from neurosae.extraction.responses import design_of, provenance_of
from neurosae.spec.blocks import Inference
from neurosae.spec.integration import IntegrationBlock, part_problem
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import features_from_earlier, positions_in, responses_by_site, settings_of
from neurosae.stats.battery import Causal, causal_of
from neurosae.stats.conj import superadditive_places
from neurosae.stats.dperp import interaction, list_control, out_of_plane
from neurosae.stats.gate import coupling
from neurosae.stats.information import synergy
from neurosae.stats.integration_rows import CodeLength, Found, Spot, rows_of_battery
from neurosae.stats.ladder import ladder
from neurosae.stats.multiplicity import holm
from neurosae.stats.pattern import contrast_length, reached_share
from neurosae.stats.preactivations import Experiment, columns_of, experiment
from neurosae.stats.relabel import flips, labels, permutations, signs
from neurosae.stats.tails import flip_p
from neurosae.stats.units import AnnData

LOGGED = ("norm", "ln_scale", "sum_active")


class Sets(NamedTuple):
    """Columns of the features of both parts at one site, the sign of each, and how they were chosen."""

    columns: tuple[np.ndarray, np.ndarray]
    signs: tuple[np.ndarray, np.ndarray]
    note: str


class Ask(NamedTuple):
    """What the battery is asked: block, effects as written, sets and dictionaries by site, and a causal result."""

    test: str
    block: IntegrationBlock
    effects: Mapping[str, Mapping[str, Any]]
    sets: Mapping[str, Sets]
    dictionaries: Mapping[str, Any]
    settings: Inference
    causal: Causal | Mapping[Any, Causal] | None


def integration(
    responses: AnnData | Mapping[str, AnnData],
    parts: Mapping[str, Mapping[str, Any]],
    *,
    region: str | Sequence[str],
    features: Mapping[str, Any] | None = None,
    dictionaries: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Ask whether a conjunction is integrated or its parts merely co-activate; tests, effect sizes and a grade.

    Co-activation is z - z0 = g (mu + a alpha + b beta) before the nonlinearity, with any gain g > 0 of the stimulus;
    integration is its rejection: a code outside the plane of the parts (D-perp and its list control), or a coupling of
    the parts that depends on the context beyond the gain (gate).

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}, with the raw stream (`keep_x: true`)
    parts : {name: effect}, two effects of one two-level factor each: {"noun": {"noun": {"present": 1, "absent": -1}}}
    region : name or names
    features : {part: indices}, or {site: {part: indices}}, chosen on other items; gate, synergy and read need them
    dictionaries : {site: dictionary}; simulated responses need none
    options : keys of the block `test: integration` (`context`, `members`, `over`, `gain`, `target`, `measures`,
        `n_surrogates`), `inference` (its keys) and `causal` (a `Causal`, or one by site or (site, region), made by
        interventions)
    seed : int

    Returns
    -------
    DataFrame
        The results schema. Rows by `effect`: `conj`, `code: D_AxB`, `code: D-perp`, `code: list control`, `code`,
        `gate`, `synergy: …`, `read: …`, `grade`; `x_role` says what a row counts for, `x_grade` what was reached.

    Raises
    ------
    DataError, SpecError
        No raw stream, parts that are no two-level factors within items, too few items.

    Notes
    -----
    H0 and exchanged units are in every row. The grade holds for this model and dictionary, over items like these.

    References
    ----------
    Bemis & Pylkkänen (2011), J. Neurosci. 31:2801 (list control). Allefeld & Haynes (2014), NeuroImage 89:345.

    Examples
    --------
    >>> from neurosae.stats.worlds import world
    >>> made = world("I1", n_items=24, seed=1, options={"contexts": True})
    >>> parts = {name: {name: {"yes": 1, "no": -1}} for name in ("a", "b")}
    >>> context = {"factor": "context", "composed": "phrase", "control": "list"}
    >>> asked = {"context": context, "inference": {"n_permutations": 500}}
    >>> found = integration(made, parts, region="probe", options=asked, seed=1)
    >>> rows = found.set_index("effect")
    >>> round(float(rows.loc["code", "p_corr"]), 3), rows.loc["grade", "note"][:43]
    (0.002, 'grade 1 of 3, conjunctive selectivity; the ')
    """
    asked, sites = dict(options or {}), responses_by_site(responses)
    settings, causal = settings_of(asked.pop("inference", None)), asked.pop("causal", None)
    block = IntegrationBlock.model_validate({"test": "integration", "parts": list(parts), "region": region} | asked)
    for name, effect in parts.items():
        if (problem := part_problem(effect, design_of(next(iter(sites.values()))))) is not None:
            raise DataError(f"part '{name}' {problem}")
    chosen = {}
    for site, adata in sites.items():
        own = None if features is None else features.get(site, features)
        if own is not None:
            columns = [columns_of(adata, np.asarray(own[name], dtype=int)) for name in parts]
            chosen[site] = _sets(columns, [np.ones(len(c)) for c in columns], note="features given by the caller")
    ask = Ask("integration", block, dict(parts), chosen, dictionaries or {}, settings, causal)
    return _run(sites, ask, seed=seed).table


def run(
    responses: Mapping[str, AnnData], ask: IntegrationBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: integration`.

    Extras: `scores` (set scores of every item and cell), `coupling` (scores behind the gate), `conj` (features whose
    activations are superadditive), `requirements` (what the design has and lacks).
    """
    spec = study.spec
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    sites = {site: responses[site] for site in ask.sites or responses}
    dictionaries = {} if _simulated(sites) else study.live()[1]
    effects = {part: spec.effects[part] for part in ask.parts}
    sets = {site: from_localizer(ask, site, adata, earlier=earlier) for site, adata in sites.items() if ask.features}
    read = None if ask.causal is None else causal_of(earlier[ask.causal].table)
    asked = Ask(test, ask, effects, sets, dictionaries, spec.inference, read)
    return _run(sites, asked, seed=spec.seed)


def _simulated(sites: Mapping[str, AnnData]) -> bool:
    return all(bool(provenance_of(adata).get("simulated")) for adata in sites.values())


def from_localizer(ask: IntegrationBlock, site: str, adata: AnnData, *, earlier: Mapping[str, Tested]) -> Sets:
    """The features of both parts that localizer tests chose at a site, each with the sign it had there."""
    columns, signs_, notes = [], [], []
    for part in ask.parts:
        one = SimpleNamespace(features=ask.features[part], split=ask.split)
        features, name = features_from_earlier(one, {site: adata}, earlier)
        if one.features.from_ is None:  # named features stand for the + cells, as whoever named them meant
            columns.append(columns_of(adata, features[site]))
            signs_.append(np.ones(len(columns[-1])))
            notes.append(f"{part}: {name}, each counted as larger in the + cells")
            continue
        table = earlier[str(one.features.from_)].table
        value = table[(table["site"] == site) & table["status"].eq("ok")]
        strongest = np.argsort(-value["value"].abs().to_numpy(dtype=float), kind="stable")  # the row that chose it
        value = value.iloc[strongest].drop_duplicates("feature").set_index("feature")["value"].astype(float)
        columns.append(columns_of(adata, features[site]))
        signs_.append(np.where(value.loc[features[site]].to_numpy() < 0, -1.0, 1.0))
        notes.append(f"{part}: {name}")
    return _sets(columns, signs_, note="; ".join(notes))


def _sets(columns: Sequence[np.ndarray], directions: Sequence[np.ndarray], *, note: str) -> Sets:
    """Both sets without the features that they share, which would couple them by themselves."""
    shared = np.intersect1d(columns[0], columns[1])
    kept = [~np.isin(c, shared) for c in columns]
    if not all(k.any() for k in kept):
        raise DataError(f"both parts chose the same {len(shared)} features; choose more, or by other contrasts.")
    left = f"; {len(shared)} features chosen for both parts left out" if len(shared) else ""
    a, b = ((c[k], s[k]) for c, s, k in zip(columns, directions, kept, strict=True))
    return Sets((a[0], b[0]), (a[1], b[1]), note + left)


# ------------------------------------------------------------------ every place


def _run(sites: Mapping[str, AnnData], ask: Ask, *, seed: int) -> Tested:
    block = ask.block
    parts = parts_of(block, ask.effects)
    conj = (
        superadditive_places(sites, block, parts, settings=ask.settings, seed=seed) if "conj" in block.members else {}
    )
    spots = []
    for site, adata in sites.items():
        stimuli = expand(design_of(adata))
        for region in block.region:
            for position in positions_in(adata, region):
                where = Spot(ask.test, site, region, position, block.split)
                dictionary = ask.dictionaries.get(site)
                exp = experiment(
                    adata, parts, region=region, position=position, split=block.split, dictionary=dictionary
                )
                made = _place(exp, ask, where, seed=seed)
                index = _token_index(adata, region, position)
                lacks = requirements(
                    design_of(adata), stimuli, parts, region=region, chosen=site in ask.sets, index=index
                )
                spots.append(made._replace(conj=conj.get((site, region, position)), lacks=tuple(lacks)))
    adjusted = _holm(spots)
    tables, extras = rows_of_battery(spots, adjusted, block=block, alpha=ask.settings.alpha, causal=ask.causal)
    return Tested(check_results(tables), None, extras)


def _holm(spots: Sequence[Found]) -> dict[tuple[Spot, str], float]:
    """Corrected p of code and gate over all places."""
    single = {(s.where, name): p for s in spots for name, p in s.p.items()}
    return dict(zip(single, holm(np.array(list(single.values()))).tolist(), strict=True)) if single else {}


def _token_index(adata: AnnData, region: str, position: int) -> pd.Series:
    here = (adata.obs["region"] == region).to_numpy() & (adata.obs["position"] == position).to_numpy()
    obs = adata.obs[here]
    return pd.Series(obs["token_index"].to_numpy(dtype=float), index=obs["stimulus"].astype(str))


def _tried(compute: Callable[[], Any]) -> Any:
    """A result, or the reason why there is none."""
    try:
        return compute()
    except DataError as error:
        return str(error)


def _place(exp: Experiment, ask: Ask, where: Spot, *, seed: int) -> Found:
    block, least = ask.block, ask.settings.min_informative
    how = flips(exp.numbers, ask.settings.n_permutations, seed=seed, split=block.split)
    S, sets = signs(how), ask.sets.get(where.site)
    found = Found(where, exp.n, how.n, exp.items, sets.note if sets else "", exp.dropped, {}, {}, None, (), {})
    results, p = {}, {}
    if "code" in block.members:
        results |= _code(exp, S, sets if block.over == "sets" else None, least=least)
        parts = [results[name].p for name in ("plane", "control") if name in results and not _said(results[name])]
        if not _said(results["plane"]) and (exp.n_contexts == 1 or len(parts) == 2):
            p["code"] = max(parts)
    scores = _scores(exp, sets) if sets is not None else None
    why = None if scores is not None else "needs the features of both parts; name them under `features:`."
    if scores is not None:
        results["responds"] = _responds(scores)
    if "gate" in block.members:
        lame = why or _unresponsive(results["responds"], block.parts, alpha=ask.settings.alpha)
        results["gate"] = lame or _tried(lambda: _gate(exp, scores, S, gain=block.gain))
        gate: Any = results["gate"]
        if not _said(gate):
            p["gate"] = float(gate.p_corr[0])
    results |= {name: why or result for name, result in _readers(exp, ask, scores, sets=sets, seed=seed).items()}
    return found._replace(results=results, p=p, scores={} if scores is None else {"z": scores}, sizes=_sizes(sets, exp))


def _said(result: Any) -> bool:
    return isinstance(result, str)


def _sizes(sets: Sets | None, exp: Experiment) -> tuple[int, ...]:
    return (exp.adata.n_vars,) if sets is None else (exp.adata.n_vars, *(len(c) for c in sets.columns))


# ------------------------------------------------------------------ members


def _code(exp: Experiment, S: np.ndarray, sets: Sets | None, *, least: int) -> dict[str, Any]:
    """D-perp and its list control; beside them the plain length of the interaction, in the norms that there are."""
    columns = None if sets is None else np.unique(np.concatenate(sets.columns))
    z = exp.z(columns)
    by: Any = (
        np.stack([exp.z(columns, frame=k) for k in range(len(exp.by_frame))], axis=1) if exp.by_frame else [None, None]
    )
    out: dict[str, Any] = {"plane": _tried(lambda: out_of_plane(z[-1], S, frames=by[-1], min_informative=least))}
    if exp.n_contexts == 2:
        both = None if by[0] is None else (by[1], by[0])
        out["control"] = _tried(lambda: list_control(z[1], z[0], S, frames=both, min_informative=least))
    # simulated pre-activations are normalized and their norm was recorded; a raw stream has its own length
    scales = ("times",) if provenance_of(exp.adata).get("simulated") else (None, "over")
    out["lengths"] = [
        _tried(lambda scale=scale: _length(exp, columns, S, scale=scale, least=least)) for scale in scales
    ]
    return out


def _length(exp: Experiment, columns: Any, S: np.ndarray, *, scale: str | None, least: int) -> CodeLength:
    D = interaction(exp.z(columns, scale=scale)[-1])
    kept = (D != 0).sum(axis=0) >= least
    if not kept.any():
        raise DataError(f"no feature has an interaction in {least} items or more; nothing can be tested.")
    null = contrast_length(D[:, kept], S)
    return CodeLength(
        {None: "", "over": ", unit length", "times": ", norm-corrected"}[scale], null, reached_share(null)
    )


def _scores(exp: Experiment, sets: Sets) -> np.ndarray:
    """Mean z - z0 of both sets, each feature in its localizer direction, (2 parts, n_contexts, 4, n_items)."""
    return np.stack([(exp.z(c) * s).mean(axis=-1) for c, s in zip(sets.columns, sets.signs, strict=True)])


def _responds(scores: np.ndarray) -> list[tuple[float, float]]:
    """Whether each set answers to its own part on the test items: d_z and flip p."""
    out = []
    for score, (high, low) in zip(scores, (([1, 3], [0, 2]), ([2, 3], [0, 1])), strict=True):
        d = (score[:, high].mean(axis=1) - score[:, low].mean(axis=1)).mean(axis=0)
        p = flip_p(sparse.csc_matrix(d[:, None]))[0][0]
        out.append((float(d.mean() / d.std(ddof=1)), float(p)))
    return out


def _unresponsive(responds: Sequence[tuple[float, float]], parts: Sequence[str], *, alpha: float) -> str:
    """Why coupling says nothing: a set that does not answer to its part, in its localizer direction; else nothing."""
    for part, (d_z, p) in zip(parts, responds, strict=True):
        if d_z <= 0 or p > alpha:
            size = f"d_z {d_z:.2f}, p {p:.2g}"
            return f"is about sets that answer to their parts, and that of {part} does not on the test items ({size})."
    return ""


def _gate(exp: Experiment, scores: Any, S: np.ndarray, *, gain: Sequence[str]) -> Any:
    if exp.n_contexts == 1:
        raise DataError("needs a phrase and a list; name `context:`.")
    measured = []
    for name in gain:
        g = exp.column(name)[:, 3]
        if not np.isfinite(g).all():
            raise DataError(f"gain '{name}' was not recorded at this site; leave it out of `gain:`.")
        measured.append(np.log(np.maximum(g, 1e-12)) if name in LOGGED else g)
    return coupling(scores[0][:, 3], scores[1][:, 3], S, gain=np.stack(measured, axis=2))


def _readers(exp: Experiment, ask: Ask, scores: Any, *, sets: Sets | None, seed: int) -> dict[str, Any]:
    """Synergy and the predictive ladder, where a target is named."""
    wanted = [name for name in ("synergy", "read") if name in ask.block.members]
    if not wanted:
        return {}
    if ask.block.target is None:
        return dict.fromkeys(wanted, "needs a quantity that is read out; name `target:`, {column: surprisal}.")
    if scores is None or sets is None:
        return dict.fromkeys(wanted, "")
    target = _tried(lambda: _target(exp, ask))
    if _said(target):
        return dict.fromkeys(wanted, target)
    a, b, y = (np.moveaxis(v, 0, 1).reshape(-1) for v in (scores[0][-1], scores[1][-1], target))  # by item, then cell
    out = {}
    if "synergy" in wanted:
        made = _tried(lambda: synergy(a, b, y, n_surrogates=ask.block.n_surrogates, seed=seed))
        out["synergy"] = made if _said(made) else [one for one in made if one.measure in ask.block.measures]
    if "read" in wanted:
        out["read"] = _tried(lambda: _ladder(exp, ask, y, sets=sets, seed=seed))
    return out


def _target(exp: Experiment, ask: Ask) -> np.ndarray:
    """The target in the composed context, (4, n_items)."""
    asked, where = ask.block.target, exp
    assert asked is not None
    if asked.region is not None:
        parts, adata = parts_of(ask.block, ask.effects), exp.adata
        where = experiment(adata, parts, region=asked.region, split=ask.block.split, need_x=False)
        if where.items != exp.items:
            raise DataError(f"region '{asked.region}' of the target is not there in all of the tested items.")
    y = where.column(asked.column)[-1]
    if not np.isfinite(y).all():
        raise DataError(f"target '{asked.column}' was not recorded for every stimulus; set positions.scores: true.")
    return y


def _ladder(exp: Experiment, ask: Ask, y: np.ndarray, *, sets: Sets, seed: int) -> Any:
    """The ladder on the first components of either set, two where there are enough stimuli for their products."""
    groups = [_components(exp.z(c)[-1], 2 if len(y) >= 100 else 1) for c in sets.columns]
    gain = np.log(np.maximum(np.moveaxis(exp.column("norm")[-1], 0, 1).reshape(-1), 1e-12))
    how = permutations(exp.numbers, np.arange(exp.n), ask.settings.n_permutations, seed=seed, split=ask.block.split)
    orders = labels(how).astype(np.int64)
    return ladder(groups[0], groups[1], y, orders=orders, gain=gain if np.ptp(gain) > 0 else None)


def _components(z: np.ndarray, k: int) -> np.ndarray:
    """First principal components of standardized features over the stimuli, rows by item, then cell."""
    X = np.moveaxis(z, 0, 1).reshape(-1, z.shape[-1])
    X = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9)
    u, s, _ = np.linalg.svd(X, full_matrices=False)
    return u[:, :k] * s[:k]
