"""Named effects -> weights over the cells of a design, and the null hypothesis in words.

The weight of a cell is the product over the named factors of the level's weight (an unlisted level has 0), times the
mean over the unnamed factors. One rule gives main effects, interactions (two factors named) and simple effects (a
factor named with one level). Weights are used as written. Cell means count equally (type III on cell means).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from neurosae.errors import SpecError
from neurosae.spec.design import Design
from neurosae.spec.effects import ALL, SLOPE, TRENDS, effect_problems, omnibus, shape_problems, sloped
from neurosae.spec.frames import between, list_cells
from neurosae.spec.words import place


@dataclass(frozen=True)
class Effect:
    """Weights over all cells of a design.

    Attributes
    ----------
    cells : the cells as tuples of levels over all factors, in the order of the design
    weights : array of shape (n_cells,), sum 0; of an effect of all levels, those of the trend over their order, which
        tells all cells apart
    factors : the factors that the effect names
    h0 : the null hypothesis in words, one sentence without its full stop
    words : the effect in words
    contrasts : array of shape (n_levels - 1, n_cells), every level against the first, of an effect of all levels of a
        factor; None for a single contrast
    omnibus, others : the factor of which all levels are compared at once, and the weights of the cells (n_cells,) but
        for that factor
    slope : the covariate on which the items' weighted sums are regressed; weights of a slope alone sum to 1
    """

    cells: tuple[tuple[str, ...], ...]
    weights: np.ndarray
    factors: tuple[str, ...]
    h0: str
    words: str
    contrasts: np.ndarray | None = None
    omnibus: str | None = None
    others: np.ndarray | None = None
    slope: str | None = None

    @property
    def rows(self) -> np.ndarray:
        """The contrasts, of shape (n_contrasts, n_cells); H0 is that all of them are 0."""
        return self.weights[None] if self.contrasts is None else self.contrasts

    @property
    def vector(self) -> str:
        """The weights that are not 0, cell by cell: `-0.5 sg/sg, +0.5 pl/sg`; `;` sets several contrasts apart."""
        parts = []
        for row in self.rows:
            pairs = zip(row, self.cells, strict=True)
            parts.append(", ".join(f"{weight:+.4g} {'/'.join(cell)}" for weight, cell in pairs if weight != 0))
        return "; ".join(parts)


def compile_effect(design: Design, effect: Mapping[str, Any]) -> Effect:
    """Turn an effect as it is written into weights over cells.

    With k named factors of level weights a, and n_u levels of each unnamed factor u,

        w_cell = a_1[level] ... a_k[level] / prod_u n_u.

    `linear` stands for a = (v - mean v) / sum (v - mean v)^2 over the factor's values v, so the contrast is the
    least-squares slope per unit of the value; `quadratic` (`cubic`) for the same with the part of v^2 (v^3) that is
    orthogonal to lower powers, so the contrast is the coefficient of v^2 (v^3). `all` compares every level of a factor
    with its first: K - 1 contrasts at once.

    Parameters
    ----------
    design : Design
    effect : `{factor: {level: weight}}`, `{factor: linear}` or another trend, `{factor: all}`,
        `{slope: covariate}` alone or beside factors, or `{cells: {"pl/sg": weight}}`

    Returns
    -------
    Effect

    Raises
    ------
    SpecError
        An unknown name, weights that do not sum to 0, or a weighted cell without items: the effect cannot be
        estimated.

    Examples
    --------
    >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "agreement", "factors": {"subject":
    ...     ["sg", "pl"], "attractor": ["sg", "pl"]}, "frames": {"f": "The {head:subject} by the {local:attractor}"},
    ...     "items": {"key": {"head": {"sg": "key", "pl": "keys"}, "local": {"sg": "box", "pl": "boxes"}}}}''')
    >>> number = compile_effect(design, {"subject": {"pl": 1, "sg": -1}})
    >>> number.cells
    (('sg', 'sg'), ('sg', 'pl'), ('pl', 'sg'), ('pl', 'pl'))
    >>> number.weights.tolist()
    [-0.5, -0.5, 0.5, 0.5]
    >>> number.h0
    'no difference between subject pl and sg, averaged over attractor'
    >>> compile_effect(design, {"subject": {"pl": 1, "sg": -1}, "attractor": {"pl": 1, "sg": -1}}).weights.tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    problems = list(shape_problems(effect)) or list(effect_problems(effect, design))
    if problems:
        where, text = problems[0]
        raise SpecError(f"{place(where)}: {text}" if where else text)
    cells = tuple(product(*(factor.levels for factor in design.factors.values())))
    if (name := omnibus(effect)) is not None:
        return _all_levels(design, effect, cells, name=name)
    if (name := sloped(effect)) is not None:
        return _slope_of(design, {n: written for n, written in effect.items() if n != SLOPE}, cells, covariate=name)
    if "cells" in effect:
        named = dict(effect["cells"])
        weights = np.array([float(named.get("/".join(cell), 0)) for cell in cells])
        factors = tuple(design.factors)
    else:
        parts = {name: level_weights(design, name, written) for name, written in effect.items()}
        factors = tuple(name for name in design.factors if name in parts)
        weights = np.array([_weight(cell, design, parts) for cell in cells])
    _refuse_flat(weights, effect)
    _refuse_empty(design, cells, weights)
    words = _effect_words(design, effect)
    return Effect(cells, weights, factors, _null(design, effect), words)


def _all_levels(design: Design, effect: Mapping[str, Any], cells: tuple, *, name: str) -> Effect:
    """Every level of a factor against its first, at the weights of the other factors."""
    parts = {n: level_weights(design, n, written) for n, written in effect.items() if n != name}
    levels, axis = design.factors[name].levels, list(design.factors).index(name)
    parts[name] = np.ones(len(levels))
    others = np.array([_weight(cell, design, parts) for cell in cells])
    level = np.array([levels.index(cell[axis]) for cell in cells])
    rows = [others * ((level == k).astype(float) - (level == 0)) for k in range(1, len(levels))]
    _refuse_flat(others, effect)
    _refuse_empty(design, cells, others)
    return Effect(
        cells,
        others * (level - level.max() / 2),
        tuple(n for n in design.factors if n in effect),
        _null(design, effect),
        _effect_words(design, effect),
        contrasts=np.array(rows),
        omnibus=name,
        others=others,
    )


def _slope_of(design: Design, rest: Mapping[str, Any], cells: tuple, *, covariate: str) -> Effect:
    """The slope on a covariate of what items are compared by: a difference inside them, or else their mean."""
    if not rest:
        h0 = f"an item's mean response does not depend on its {covariate} (slope 0)"
        return Effect(cells, np.full(len(cells), 1 / len(cells)), (), h0, f"slope on {covariate}", slope=covariate)
    made = compile_effect(design, rest)
    h0 = f"an item's contrast {made.words} does not depend on its {covariate} (slope 0)"
    return replace(made, h0=h0, words=f"slope on {covariate} of {made.words}", slope=covariate)


def level_weights(design: Design, factor: str, written: str | Mapping[str, float]) -> np.ndarray:
    """Weights of the levels of one factor, array of shape (n_levels,), from weights by level or from a trend.

    Examples
    --------
    >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "load", "factors": {"load": {"levels":
    ...     ["none", "low", "high"], "values": {"none": 0, "low": 1, "high": 5}}}, "frames": {"f": "It {verb:load}"},
    ...     "items": {"run": {"verb": {"none": "ran", "low": "runs", "high": "will run"}}}}''')
    >>> level_weights(design, "load", "linear").round(3).tolist()
    [-0.143, -0.071, 0.214]
    """
    levels = design.factors[factor].levels
    if not isinstance(written, str):
        return np.array([float(written.get(level, 0)) for level in levels])
    values = np.array(list((design.factors[factor].values or {}).values()), dtype=float)
    degree = list(TRENDS).index(written) + 1
    base = np.vander(values - values.mean(), degree, increasing=True)
    power = (values - values.mean()) ** degree
    rest = power - base @ np.linalg.lstsq(base, power, rcond=None)[0]
    return rest / (rest @ rest)


def _weight(cell: tuple[str, ...], design: Design, parts: Mapping[str, np.ndarray]) -> float:
    weight = 1.0
    for (name, factor), level in zip(design.factors.items(), cell, strict=True):
        weight *= parts[name][factor.levels.index(level)] if name in parts else 1 / len(factor.levels)
    return float(weight)


def _refuse_flat(weights: np.ndarray, effect: Mapping[str, Any]) -> None:
    if not weights.any():
        raise SpecError(f"{dict(effect)} gives every cell the weight 0; give at least two cells a weight.")


def _refuse_empty(design: Design, cells: tuple[tuple[str, ...], ...], weights: np.ndarray) -> None:
    """An effect that weighs a cell without items cannot be estimated."""
    own = [list(design.factors).index(name) for name in between(design)]
    if design.lists is not None:
        there = {cell for cell, _ in list_cells(design.lists)}
    else:
        there = {tuple(str(forms[name]) for name in between(design)) for forms in design.items.values()}
    for cell, weight in zip(cells, weights, strict=True):
        if weight and tuple(cell[i] for i in own) not in there:
            raise SpecError(
                f"cell '{'/'.join(cell)}' has no items, so the effect cannot be estimated; "
                "add items to it, or write an effect that leaves it out, {cells: …}."
            )


# ------------------------------------------------------------------ in words


def _sides(weights: Mapping[str, float]) -> tuple[str, str]:
    """The + and - names; weights other than equal ones are written out."""

    def side(sign: int) -> str:
        found = {name: abs(weight) for name, weight in weights.items() if weight * sign > 0}
        plain = len(set(found.values())) <= 1
        return " and ".join(name if plain else f"{weight:g} {name}" for name, weight in found.items())

    return side(1), side(-1)


def _parts(design: Design, effect: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Named factors whose weights sum to 0 (or trends), and the levels at which the other named ones are held."""
    order = [name for name in design.factors if name in effect and effect[name] != ALL]
    zero = {n: effect[n] for n in order if isinstance(effect[n], str) or abs(sum(effect[n].values())) < 1e-9}
    held = {n: " and ".join(level for level, w in effect[n].items() if w) for n in order if n not in zero}
    return zero, held


def _tail(design: Design, effect: Mapping[str, Any], held: Mapping[str, str]) -> str:
    unnamed = [name for name in design.factors if name not in effect]
    at = "".join(f", at {name} {levels}" for name, levels in held.items())
    return at + (f", averaged over {' and '.join(unnamed)}" if unnamed else "")


def _difference(name: str, written: Any) -> str:
    if isinstance(written, str):
        return f"{written} trend over {name}"
    plus, minus = _sides(written)
    return f"difference between {name} {plus} and {minus}"


def _effect_words(design: Design, effect: Mapping[str, Any]) -> str:
    if "cells" in effect:
        plus, minus = _sides(effect["cells"])
        return f"cells {plus} minus {minus}"
    zero, held = _parts(design, effect)
    if (name := omnibus(effect)) is not None:
        zero |= {name: "all levels"}
    short = {n: w if isinstance(w, str) else " minus ".join(_sides(w)) for n, w in zero.items()}
    return " x ".join(f"{name} ({text})" for name, text in short.items()) + _tail(design, effect, held)


def _null_of_all(design: Design, name: str, zero: Mapping[str, Any]) -> str:
    if not zero:
        return f"no difference between the levels of {name} ({', '.join(design.factors[name].levels)})"
    if len(zero) == 1:
        return f"the {_difference(*next(iter(zero.items())))} is the same at all levels of {name}"
    return f"the interaction of {' and '.join(zero)} is the same at all levels of {name}"


def _null(design: Design, effect: Mapping[str, Any]) -> str:
    if "cells" in effect:
        plus, minus = _sides(effect["cells"])
        return f"no difference between the cells {plus} and {minus}"
    zero, held = _parts(design, effect)
    tail = _tail(design, effect, held)
    if (every := omnibus(effect)) is not None:
        return _null_of_all(design, every, zero) + tail
    (name, written), *others = zero.items()
    if not others:
        return f"no {_difference(name, written)}{tail}"
    *more, (last, weights) = others
    what = f"interaction of {' and '.join([name, *(n for n, _ in more)])}" if more else _difference(name, written)
    if isinstance(weights, str):
        return f"the {what} has no {weights} trend over {last}{tail}"
    plus, minus = _sides(weights)
    return f"the {what} is the same at {last} {plus} as at {minus}{tail}"
