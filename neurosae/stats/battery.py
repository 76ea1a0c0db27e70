"""The integration battery on arrays: from one 2 x 2 x {list, phrase} experiment to p-values and a grade.

Integration is the rejection of co-activation, z - z0 = g (mu + a alpha + b beta) before the nonlinearity, with any
gain g > 0 of the stimulus. Members: `conj` (superadditive activations), `code` (D-perp and its list control, the larger
p), `gate` (coupling that depends on the context). Holm's method over {code, gate}; the causal read-out is handed in.

| grade | name | evidence |
|---|---|---|
| 0 | co-activation | nothing below |
| 1 | conjunctive selectivity | superadditive activations, which a threshold or a normalization produces too |
| 2 | representational integration | code or gate, Holm |
| 3 | functional integration | grade 2 and the causal read-out, p = max |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.dperp import ListControl, OutOfPlane, interaction, list_control, out_of_plane
from neurosae.stats.flips import flip_columns, maxima
from neurosae.stats.gate import Coupling, coupling
from neurosae.stats.moderation import fit_prior
from neurosae.stats.multiplicity import holm
from neurosae.stats.relabel import Relabelling, signs
from neurosae.stats.tails import flip_p

GRADES = ("co-activation", "conjunctive selectivity", "representational integration", "functional integration")
CROSSED = 2  # crossings that are looked for, of a and of b; the two directions of one exclude each other


class Causal(NamedTuple):
    """The causal read-out: p over items and among matched control pairs, with the normalization frozen.

    It is made by interventions (joint against single clamps) and handed in; grade 3 is never given without it.

    Attributes
    ----------
    p_items, p_controls : the largest of either kind, free and frozen, in the directions that can be judged
    frozen : whether every normalization behind the edit was held; if not, joint effects differ by themselves
    reason : why it cannot count, whatever its p; empty where it can
    p_corr : p of this place, corrected over all places of the joint clamp; nan where it was one place
    value : I in logits, normalization frozen, of the direction in which it is smaller;  n_units : items behind it
    directions : those that could be judged;  silent : why the others could not;  n_places : of the correction
    """

    p_items: float
    p_controls: float
    frozen: bool
    reason: str = ""
    p_corr: float = np.nan
    value: float = np.nan
    n_units: int = 0
    directions: tuple[str, ...] = ()
    silent: str = ""
    n_places: int = 1

    @property
    def unusable(self) -> str:
        """Why it cannot count; empty where it can."""
        return self.reason or ("" if self.frozen else "normalizations behind the edit were not frozen")

    @property
    def p(self) -> float:
        """All must hold; 1 where it cannot count."""
        return 1.0 if self.unusable else float(np.nanmax([self.p_items, self.p_controls, self.p_corr]))


DIRECTIONS = ("clamp", "ablate")


def causal_of(table: pd.DataFrame) -> dict[tuple[str, str], Causal]:
    """The causal read-out of every site and region, from the rows of a joint clamp.

    A conjunction that the model uses appears where its parts are clamped into a text that has neither, and disappears
    where they are ablated from one that has both. Both directions must be run, and each that can be judged must hold,
    with I of one sign: p is the larger (intersection-union, which needs no correction), then Holm over places. A
    direction without matched controls is no evidence for or against; which one counted is said. Ablating one part of a
    pure AND takes all of it away, and no other feature does that, so there the clamp is often the only one that counts.

    Examples
    --------
    >>> rows = {"site": "late", "region": "probe", "x_role": "claim", "status": "ok", "x_mode": ["clamp", "ablate"],
    ...     "x_freeze": "downstream", "x_p_items": [0.001, 0.004], "x_p_items_free": 0.001, "x_p_controls": 0.01,
    ...     "x_p_controls_free": [0.01, 0.02], "x_estimate": 0.3, "x_estimate_free": 0.4, "n_units": 48, "note": ""}
    >>> causal_of(pd.DataFrame(rows))["late", "probe"].p
    0.02
    """
    claims = table[table["x_role"] == "claim"]
    places = claims.groupby(["site", "region"], sort=False, observed=True)
    found = {(str(site), str(region)): _of_directions(rows) for (site, region), rows in places}
    corrected = holm(np.array([one.p for one in found.values()])) if found else []
    return {
        place: one._replace(p_corr=float(p), n_places=len(found))
        for (place, one), p in zip(found.items(), corrected, strict=True)
    }


def _of_directions(rows: pd.DataFrame) -> Causal:
    """The largest p of the directions that can be judged, or why none counts."""
    by = {str(row["x_mode"]): row for _, row in rows.iterrows()}
    if missing := [direction for direction in DIRECTIONS if direction not in by]:
        return Causal(1.0, 1.0, True, f"the direction {missing[0]} was not run")
    silent = [f"{d}: {by[d]['note']}" for d in DIRECTIONS if by[d]["status"] != "ok"]
    if len(silent) == len(DIRECTIONS):
        return Causal(1.0, 1.0, True, f"no direction can be judged; {'; '.join(silent)}")
    used = rows[rows["x_mode"].isin(DIRECTIONS) & rows["status"].eq("ok")]
    size = used[["x_estimate", "x_estimate_free"]].to_numpy(dtype=float)
    items, controls = (
        float(used[[f"x_p_{name}", f"x_p_{name}_free"]].to_numpy(dtype=float).max()) for name in ("items", "controls")
    )
    one_sign = (size > 0).all() or (size < 0).all()
    reason = "" if one_sign else "I has not one sign in both directions, free and frozen"
    value = size[np.abs(size[:, 0]).argmin(), 0]
    return Causal(
        items, controls, frozen=bool((used["x_freeze"] == "downstream").all()), reason=reason, value=float(value),
        n_units=int(used["n_units"].min()), directions=tuple(used["x_mode"].astype(str)), silent="; ".join(silent),
    )  # fmt: skip


class Superadditive(NamedTuple):
    """Interaction of activations, feature by feature: z equivalents and max-T p of the tested ones, and their columns.

    null : maximum per relabelling
    """

    z: np.ndarray
    p_corr: np.ndarray
    columns: np.ndarray
    null: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What the members say, before the design is looked at.

    Attributes
    ----------
    conj : smallest corrected p of the superadditive activations; nan where it was not asked
    plane, control, gate : the results; None where they were not asked or there is no list
    p : uncorrected p of `code` and `gate`, those that exist
    holm : the same, corrected by Holm's method
    grade : 0 to 2
    """

    conj: float
    plane: OutOfPlane | None
    control: ListControl | None
    gate: Coupling | None
    p: Mapping[str, float]
    holm: Mapping[str, float]
    grade: int


def superadditive(
    D: np.ndarray, activity: np.ndarray, relabelling: Relabelling, *, min_informative: int = 6
) -> Superadditive:
    """Max-T of the moderated t of every feature's interaction of activations.

    Parameters
    ----------
    D : array of shape (n_items, m), interaction of activations
    activity : array of shape (m,), mean activation, the covariate of the variances' trend
    relabelling : flips of these items

    Notes
    -----
    Never evidence of integration: thresholds, normalization and competition make additive drives superadditive (it
    rejects in 87 to 100 % of such worlds).
    """
    columns = np.flatnonzero((D != 0).sum(axis=0) >= min_informative)
    if not len(columns):
        raise DataError(f"no feature has an interaction in {min_informative} items or more; nothing can be tested.")
    n, V = len(D), sp.csc_matrix(D[:, columns])
    q = (D[:, columns] ** 2).sum(axis=0)
    d0, s02 = fit_prior(q / n, n, np.log(np.maximum(activity[columns], 1e-300)))
    wide = np.isinf(d0)
    scale = np.sqrt(n * s02) if wide else np.sqrt(n * (q + d0 * s02))
    made = flip_columns(V, scale=scale, df=np.inf if wide else n - 1 + d0)
    null = made.how.to_z(maxima(made, relabelling)[0], made.df)
    size = np.abs(made.z)
    p = np.array([(null >= z - 1e-5 * (1 + z)).mean() for z in size])
    return Superadditive(made.z, p, columns, null)


def evidence(
    z: np.ndarray,
    relabelling: Relabelling,
    *,
    sets: tuple[np.ndarray, np.ndarray] | None = None,
    gain: np.ndarray | None = None,
    conj: float = np.nan,
    alpha: float = 0.05,
    min_informative: int = 6,
) -> Evidence:
    """Code, gate and grade of one experiment.

    Parameters
    ----------
    z : array of shape (2, 4, n_items, m) or (1, 4, n_items, m)
        Pre-activations minus their value at x = 0; contexts list, phrase (or the phrase alone), cells 00, 10, 01, 11.
    relabelling : flips of these items
    sets : column numbers of the features of a and of b, chosen on other items; needed for the gate
    gain : array of shape (2, n_items, q), what was recorded of the gain in cell 11 of both contexts
    conj : corrected p of the superadditive activations
    alpha : float

    Examples
    --------
    >>> from neurosae.stats.relabel import flips
    >>> rng = np.random.default_rng(3)
    >>> mu, a, b, joint = rng.standard_normal((4, 60))
    >>> z = rng.standard_normal((2, 4, 24, 60)) + np.array([mu, mu + a, mu + b, mu + a + b])[:, None]
    >>> how = flips(np.arange(24), 500, seed=1)
    >>> before = evidence(z, how).grade
    >>> z[1, 3] += 2 * joint
    >>> before, evidence(z, how).grade
    (0, 2)
    """
    S = signs(relabelling)
    plane = out_of_plane(z[-1], S, min_informative=min_informative)
    control = list_control(z[1], z[0], S, min_informative=min_informative) if len(z) == 2 else None
    p = {"code": plane.p if control is None else max(plane.p, control.p)}
    gate = None
    if sets is not None and len(z) == 2:
        scores = [z[:, 3][:, :, columns].mean(axis=2) for columns in sets]
        gate = coupling(scores[0], scores[1], S, gain=gain)
        p["gate"] = float(gate.p_corr[0])
    adjusted = dict(zip(p, holm(np.array(list(p.values()))).tolist(), strict=True))
    return Evidence(conj, plane, control, gate, p, adjusted, grade_of(adjusted, conj=conj, alpha=alpha))


def grade_of(
    adjusted: Mapping[str, float], *, conj: float = np.nan, causal: Causal | None = None, alpha: float = 0.05
) -> int:
    """The grade that the evidence reaches, whatever the design is worth.

    Parameters
    ----------
    adjusted : Holm p of `code` and `gate`
    conj : corrected p of the superadditive activations
    causal : the causal read-out, where there is one

    Examples
    --------
    >>> grade_of({"code": 0.01, "gate": 0.4}), grade_of({"code": 0.2}, conj=0.001), grade_of({})
    (2, 1, 0)
    >>> read = Causal(0.001, 0.02, frozen=True)
    >>> grade_of({"code": 0.01}, causal=read), grade_of({}, causal=read)
    (3, 0)
    """
    best = min(adjusted.values(), default=1.0)
    if best <= alpha:
        return 3 if causal is not None and max(best, causal.p) <= alpha else 2
    return 1 if conj <= alpha else 0


def crossover(Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether an interaction of activations could be removed by a monotone rescaling of the feature.

    Parameters
    ----------
    Y : array of shape (4, n_items, m), activations of the features that interact

    Returns
    -------
    removable : array of str: `no` (crossover: the effect of one factor is reversed by the other), `cusp` (only cell 11
        differs), `yes` (any other shape)
    p : array of shape (m,), p of the crossover: the larger of two one-sided p (intersection-union), times the two
        factors

    References
    ----------
    Loftus (1978), Memory & Cognition 6:312. Wagenmakers et al. (2012), Memory & Cognition 40:145.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.random((4, 20, 2)) / 9 + np.array([[0, 0], [1, 0], [1, 0], [0, 1]])[:, None]
    >>> crossover(Y)[0].tolist()
    ['no', 'cusp']
    """
    of_a, of_b = (Y[1] - Y[0], Y[3] - Y[2]), (Y[2] - Y[0], Y[3] - Y[1])
    found = np.ones(Y.shape[2])
    for low, high in (of_a, of_b):
        for sign in (1, -1):
            both = [_one_sided(sign * low), _one_sided(-sign * high)]
            found = np.minimum(found, np.maximum(*both))
    p = np.minimum(1, CROSSED * found)
    alone = [np.minimum(_one_sided(d), _one_sided(-d)) * 2 > 0.05 for d in (of_a[0], of_b[0])]
    shape = np.where(alone[0] & alone[1], "cusp", "yes")
    return np.where(p <= 0.05, "no", shape), p


def _one_sided(D: np.ndarray) -> np.ndarray:
    """Flip p of a positive sum, 1 for features without any difference."""
    p = flip_p(sp.csc_matrix(D), alternative="greater")[0]
    return np.where(np.isnan(p), 1.0, p)


def activations_interaction(post: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interaction of activations (n_items, m) and mean activation (m,) from (4, n_items, m)."""
    return interaction(post), post.mean(axis=(0, 1))
