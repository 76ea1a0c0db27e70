r"""Control features for interventions: alike in all that makes an edit large, chosen without looking at the outcome.

A change of the output says little while any edit of this size in this direction gives it. Controls are matched on

* `density`: log share of reference tokens on which the feature is active;
* `size`: log of decoder norm x dose, the length of what the edit adds to the stream;
* `cosine`: root mean square cosine of the decoder row with the directions of target minus foil.

Left out as controls: features that answer to the contrast themselves, and those whose decoder row points like a
target's (|cosine| > .7). How well the matching went is the standardized mean difference, (mean of the targets - mean of
the controls) / sd over all candidates: below .1 is wanted, above .25 no claim is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from neurosae.errors import DataError

ALIKE = 0.7  # |cosine| of decoder rows from which a feature is no control
WANTED, REFUSED = 0.1, 0.25  # standardized mean differences
NEAREST = 30  # candidates for the place of one target
DRAWN = 12  # sets drawn for every set that is kept
FAR = 1e6  # squared distance of sets that make no pair
SWEEPS = 400  # exchanges tried to balance the kept sets


class Controls(NamedTuple):
    """Matched control sets.

    sets : (n, k) feature indices, place by place those of the targets
    balance : one row per covariate: `covariate target control sd smd`, and whether it was to be `matched`
    note : how they were chosen, in words
    """

    sets: np.ndarray
    balance: pd.DataFrame
    note: str

    @property
    def worst(self) -> float:
        """The largest absolute standardized mean difference of the covariates that were to be matched."""
        own = self.balance.loc[self.balance["matched"], "smd"]
        return float(own.abs().max()) if own.notna().any() else 0.0

    @property
    def unmatched(self) -> str:
        """Covariates that were not matched, and by how much they differ."""
        rest = self.balance[~self.balance["matched"] & self.balance["smd"].notna()]
        said = ", ".join(f"{row.covariate} differs by {row.smd:.2f} sd" for row in rest.itertuples())
        return f"not matched: {said}" if said else ""


def matched_controls(
    table: pd.DataFrame,
    targets: Sequence[int] | np.ndarray,
    *,
    n: int = 99,
    match: Sequence[str] | None = None,
    excluded: Sequence[int] | np.ndarray = (),
    W_dec: np.ndarray | None = None,
    seed: int,
) -> Controls:
    """Choose n control sets for a set of features, one for one, nearest in the covariates.

    Parameters
    ----------
    table : DataFrame, index feature, one column per covariate; a feature with a missing covariate is no candidate
    match : the covariates that are matched; left out, all. The others are in the balance all the same
    targets : the k features that are edited together
    n : how many sets; a specificity p can reach 1 / (n + 1)
    excluded : features that are no controls, such as all that answer to the contrast
    W_dec : array of shape (n_features, d); features with |cosine| > .7 to a target are left out
    seed : of the draw of sets, where k > 1

    Returns
    -------
    Controls
        For k = 1 without replacement. Larger sets hold no feature twice and no two sets are alike, but sets may share
        features; the note says how often one recurs.

    Raises
    ------
    DataError
        A target without covariates, or too few candidates.

    Notes
    -----
    Nearest candidates first, then members are exchanged as long as the mean over the sets comes closer to the targets.
    Outcomes are never looked at.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame(rng.standard_normal((2000, 2)), columns=["density", "size"])
    >>> found = matched_controls(table, [3], n=99, seed=0)
    >>> found.sets.shape, found.worst < 0.1
    ((99, 1), True)
    """
    own = np.asarray(targets, dtype=int)
    every, table = table, table if match is None else table[list(match)]
    lost = [int(j) for j in own if j not in table.index or bool(table.loc[j].isna().to_numpy().any())]
    if lost:
        raise DataError(
            f"feature {lost[0]} has no {', '.join(table.columns)} to match controls on: it is never active on the "
            "reference text, or not at the edited tokens. Choose other features."
        )
    usable = table[every.notna().all(axis=1)]
    away = set(own.tolist()) | set(np.asarray(excluded, dtype=int).tolist())
    away |= set(_alike(W_dec, own).tolist()) if W_dec is not None else set()
    pool = usable.index.to_numpy()
    free = pool[~np.isin(pool, list(away))]
    if len(free) < max(n if len(own) == 1 else 0, 2 * len(own), 20):
        raise DataError(
            f"{len(free)} features are left as controls for {len(own)}, and {n} sets are asked for; use fewer "
            "features or fewer controls, or a dictionary with more features."
        )
    rng = np.random.default_rng([seed, len(own), n])
    free = free if len(table.columns) else rng.permutation(free)
    spread = _spread(usable).to_numpy()
    scale = np.where(spread > 0, spread, 1.0)
    Z = usable.loc[free].to_numpy() / scale
    goal = usable.loc[own].to_numpy() / scale
    drawn = _singles(Z, goal, n) if len(own) == 1 else _sets(Z, goal, n * DRAWN, rng=rng)
    kept = _balanced(Z[drawn].mean(axis=1) - goal.mean(axis=0), min(n, len(drawn)))
    if len(kept) < n:
        raise DataError(f"only {len(kept)} different control sets could be drawn for {n}; use fewer features.")
    sets = free[drawn[kept]]
    balance = balance_of(every, own, sets)
    balance["matched"] = balance["covariate"].isin(list(table.columns))
    return Controls(sets, balance, _words(sets, n_away=len(away) - len(own)))


def balance_of(table: pd.DataFrame, targets: Sequence[int] | np.ndarray, sets: np.ndarray) -> pd.DataFrame:
    """Standardized mean difference of every covariate between targets and controls."""
    table = table.replace([np.inf, -np.inf], np.nan)
    spread = _spread(table)
    target, control = table.loc[np.asarray(targets)].mean(axis=0), table.loc[np.asarray(sets).ravel()].mean(axis=0)
    smd = (target - control) / spread.where(spread > 0, 1.0)
    found = {"covariate": table.columns, "target": target, "control": control, "sd": spread, "smd": smd}
    return pd.DataFrame(found).reset_index(drop=True)


def _spread(table: pd.DataFrame) -> pd.Series:
    """Standard deviations, 0 where values differ by rounding alone."""
    spread = table.std(axis=0, ddof=1)
    return spread.where(spread > 1e-6 * (1 + table.abs().mean(axis=0)), 0.0)


def badly_matched(balance: pd.DataFrame) -> str:
    """Why no claim is made from these controls; empty where they are matched.

    Examples
    --------
    >>> badly_matched(pd.DataFrame({"covariate": ["density", "size"], "smd": [0.02, -0.4]}))
    'controls are badly matched: size differs by -0.40 sd, above 0.25'
    """
    bad = balance[(balance["smd"].abs() > REFUSED) & balance.get("matched", True)]
    said = ", ".join(f"{row.covariate} differs by {row.smd:.2f} sd" for row in bad.itertuples())
    return f"controls are badly matched: {said}, above {REFUSED:g}" if said else ""


def remedy_for(balance: pd.DataFrame) -> str:
    """What would help where `badly_matched` says that no claim is made, for tests that take `controls` and `match`.

    Examples
    --------
    >>> remedy_for(pd.DataFrame({"covariate": ["density", "size"], "smd": [0.02, -0.4]}))
    'controls: directions is as long as the edit at each token, which matches size exactly'
    """
    bad = balance[(balance["smd"].abs() > REFUSED) & balance.get("matched", True)]["covariate"].tolist()
    lengthy = [name for name in bad if name == "size"]
    rest = list(dict.fromkeys("effect" if "effect" in name else name.split(" ")[0] for name in bad if name != "size"))
    said = ["controls: directions is as long as the edit at each token, which matches size exactly"] * bool(lengthy)
    if rest:
        also = "with controls: directions, " if not lengthy else ""
        said.append(f"{also}{' and '.join(rest)} may be left out of match, and the difference is shown all the same")
    return "; ".join(said)


def _alike(W_dec: np.ndarray, targets: np.ndarray) -> np.ndarray:
    unit = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)
    return np.flatnonzero((np.abs(unit @ unit[targets].T) > ALIKE).any(axis=1))


def _singles(Z: np.ndarray, goal: np.ndarray, n: int) -> np.ndarray:
    """The nearest three times n candidates, each a set of its own."""
    order = np.argsort(((Z - goal[0]) ** 2).sum(axis=1), kind="stable")
    return order[: 3 * n][:, None]


def _sets(Z: np.ndarray, goal: np.ndarray, n: int, *, rng: np.random.Generator) -> np.ndarray:
    """Different random sets; each place is taken by one of its nearest candidates that the set does not hold yet."""
    near = np.argsort(((Z[None] - goal[:, None]) ** 2).sum(axis=2), axis=1, kind="stable")
    found: dict[tuple[int, ...], list[int]] = {}
    for _ in range(3 * n):
        members = np.full(len(goal), -1)
        for place in rng.permutation(len(goal)):
            free = [int(c) for c in near[place][: NEAREST + len(goal)] if c not in members]
            members[place] = free[int(rng.integers(min(NEAREST, len(free))))]
        found.setdefault(tuple(sorted(members.tolist())), members.tolist())
        if len(found) >= n:
            break
    return np.array(list(found.values()))


def _balanced(gap: np.ndarray, n: int) -> np.ndarray:
    """The n rows of smallest distance, then members exchanged while the length of their mean gap falls."""
    order = np.argsort((gap**2).sum(axis=1), kind="stable")
    inside, outside = order[:n].copy(), order[n:].copy()
    total = gap[inside].sum(axis=0)
    for _ in range(SWEEPS if len(outside) else 0):
        moved = total[None, None] - gap[inside][:, None] + gap[outside][None]
        length = (moved**2).sum(axis=2)
        a, b = np.unravel_index(length.argmin(), length.shape)
        if length[a, b] >= (total**2).sum() - 1e-9 or (total**2).sum() <= (0.02 * n) ** 2:
            break
        total = moved[a, b]
        inside[a], outside[b] = outside[b], inside[a]
    return np.sort(inside)


def _words(sets: np.ndarray, *, n_away: int) -> str:
    uses = np.unique(sets, return_counts=True)[1]
    again = "" if uses.max() == 1 else f", which share features: one recurs {uses.mean():.1f} times on average"
    left = f"; no candidates, for answering to the contrast or pointing like a target: {n_away}" * (n_away > 0)
    return f"{len(sets)} matched control sets of {sets.shape[1]}{again}{left}"


def matched_pairs(
    target: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    cosine: tuple[float, np.ndarray],
    n: int,
    match: Sequence[str] = ("effect", "cosine"),
    spread: Sequence[float] | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Pair control sets of two parts so that their single effects and their cosine are those of the target pair.

    Parameters
    ----------
    target : array of shape (2,), mean single effects of the two target sets, normalization frozen
    first, second : arrays of shape (M,), those of control sets of either part
    cosine : that of the target pair, and an array of shape (M, M) for all pairs of control sets; nan for sets that
        share a feature, which make no pair
    n : how many pairs; each control set is in one pair at most
    match : `effect`, `cosine` or both; what is left out is in the balance all the same
    spread : standard deviations of both effects and of the cosine over sets that were not matched yet, the yardstick of
        the differences; left out, those of the given sets

    Returns
    -------
    pairs : int array of shape (n, 2)
    balance : DataFrame as in `Controls.balance`, for both single effects and the cosine

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b, cos = rng.standard_normal(60), rng.standard_normal(60), rng.uniform(-0.2, 0.2, (60, 60))
    >>> pairs, balance = matched_pairs(np.array([0.2, -0.1]), a, b, cosine=(0.0, cos), n=20)
    >>> pairs.shape, len(set(pairs[:, 0].tolist()))
    ((20, 2), 20)
    """
    own, all_ = cosine
    if min(len(first), len(second)) < n:
        raise DataError(f"{min(len(first), len(second))} control sets make fewer than {n} pairs; use fewer features.")
    given = [float(np.nanstd(v)) for v in (first, second, all_)] if spread is None else list(spread)
    spread = [max(value, 1e-12) for value in given]
    of_effect, of_cosine = float("effect" in match), float("cosine" in match)
    gap = ((first - target[0]) / spread[0])[:, None] ** 2 + ((second - target[1]) / spread[1])[None] ** 2
    gap = of_effect * gap + of_cosine * ((all_ - own) / spread[2]) ** 2 + np.where(np.isfinite(all_), 0.0, np.nan)
    rows, columns = linear_sum_assignment(np.where(np.isfinite(gap), gap, FAR))
    apart = np.isfinite(gap[rows, columns])
    rows, columns = rows[apart], columns[apart]
    if len(rows) < n:
        raise DataError(
            f"{len(rows)} pairs of control sets share no feature, and {n} are asked for; use fewer features."
        )
    signed = np.stack(
        [(first[rows] - target[0]) / spread[0], (second[columns] - target[1]) / spread[1],
         (all_[rows, columns] - own) / spread[2]], axis=1,
    )  # fmt: skip
    kept = _balanced(signed * np.array([of_effect, of_effect, of_cosine]), n)
    pairs = np.stack([rows[kept], columns[kept]], axis=1)
    names = ["single effect of the first", "single effect of the second", "cosine of the pair"]
    values = np.stack([first[pairs[:, 0]], second[pairs[:, 1]], all_[pairs[:, 0], pairs[:, 1]]])
    wanted = np.array([*target, own])
    found = {"covariate": names, "target": wanted, "control": values.mean(axis=1), "sd": spread}
    smd = (wanted - values.mean(axis=1)) / np.array(spread)
    return pairs, pd.DataFrame(found | {"smd": smd, "matched": [of_effect > 0, of_effect > 0, of_cosine > 0]})
