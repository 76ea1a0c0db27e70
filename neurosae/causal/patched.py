"""Patching, tested: which places carry the difference between two texts, corrected over the whole grid.

grid of outcomes -> change per item and place -> flips of whole items, one flip for all places -> maximum over the grid
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.entries import check_pattern, check_shape, is_pattern
from neurosae.causal.inference import ItemTests, item_tests, without_rounding
from neurosae.causal.items import UnitData, item_outcomes, unit_data
from neurosae.causal.patching import NOISING, Grid, Patching, long_table, moved, patch_grid
from neurosae.causal.replacements import Thing
from neurosae.errors import DataError, ModelError
from neurosae.extraction.firing import firing_order
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.sites import check_hook, expand_hook
from neurosae.spec.design import Design
from neurosae.spec.patching import PLACES, PatchingBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.asked import features_from_earlier
from neurosae.stats.multiplicity import holm

H0 = "patching this place moves the outcome in no direction: patched and unpatched are exchangeable within items"
FAMILY = "all places of test {test}: what is patched x regions x directions"
N_BOOTSTRAP = 1000
FEWEST = 6  # informative items


class Asked(NamedTuple):
    """What the rows of a grid share."""

    test: str
    between: dict[str, tuple[str, str]]
    settings: Patching
    correction: str
    n_permutations: int
    seed: int


def patching_results(
    grid: Grid,
    stimuli: pd.DataFrame,
    *,
    between: Mapping[str, tuple[str, str]],
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Test every place of a grid over items.

    With D_i the change that a patch makes in item i, averaged over its frames and cells, H0 is that D is symmetric
    about 0; whole items are flipped, all places at once, and p_corr is that of the largest |t| over the grid.

    Parameters
    ----------
    grid : of `patch_grid`
    stimuli : that it was made from, with their design
    between : as given to `patch_grid`
    options : `correction` (`maxT`, `holm`, `none`), `n_permutations`, `seed`, `test` (its name), `settings` of the grid

    Returns
    -------
    DataFrame
        The results schema, one row per place and direction. `estimate` is the mean change in units of the outcome,
        `x_share` its share of the difference between the two texts (ratio of sums over items, bootstrap interval),
        missing where the texts do not differ. Places that nothing leads from, or where both texts have the same, are
        `untestable`.
    """
    given = {"test": "patching", "correction": "maxT", "n_permutations": 10_000, "seed": 0, "settings": Patching()}
    given |= dict(options or {})
    if "design" not in stimuli.attrs:
        raise DataError("stimuli carry no design, which says what an item is; make them with expand.")
    design = Design.from_json(stimuli.attrs["design"])
    return _rows(grid, stimuli, design, asked=Asked(between=dict(between), **given))


def run(
    responses: Mapping[str, Any], ask: PatchingBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: patching`. Extra: `patched`, one row per pair of texts and place."""
    spec = study.spec
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    model, dictionaries = study.live()
    hooks = every_hook(ask.hooks, model)
    things = [Thing(hook, keys=key) for key in (ask.keys or ("",)) for hook in hooks]
    if ask.features is not None:
        sites = {site: responses[site] for site in ask.sites or responses}
        chosen, _ = features_from_earlier(ask, sites, earlier)
        for site, features in chosen.items():
            things += _of_features(site, dictionaries[site], features.tolist(), per=ask.per)
    stimuli = _with_regions(study.stimuli, ask, study.design)
    settings = Patching(ask.replace, ask.outcome, ask.n_draws, float(ask.sigma), ask.freeze)
    grid = patch_grid(
        stimuli,
        model,
        things,
        between=ask.between,
        regions=ask.region,
        settings=settings,
        seed=int(rng.integers(2**31)),
    )
    asked = Asked(test, dict(ask.between), settings, ask.correction, spec.inference.n_permutations, spec.seed)
    return Tested(_rows(grid, stimuli, study.design, asked=asked), None, {"patched": long_table(grid)})


def every_hook(hooks: Sequence[str], model: LanguageModel) -> list[str]:
    """Hook points with `*` written out: one per layer, and `.h*` one per head."""
    out: list[str] = []
    for pattern in hooks:
        for hook in expand_hook("", pattern.removesuffix(".h*"), model.n_layers).values():
            n = _n_heads(model, hook) if pattern.endswith(".h*") else 0
            out += [f"{hook}.h{h}" for h in range(n)] if n else [hook]
    return list(dict.fromkeys(out))


def _n_heads(model: LanguageModel, hook: str) -> int:
    if is_pattern(hook):
        check_pattern(f"{hook}.h0", model)
    else:
        check_hook(hook, model.hooks)
    shapes = [firing.shape for firing in firing_order(model, [hook])]
    if is_pattern(hook) and len(shapes) == 1:
        check_shape(hook, shapes[0])
        return shapes[0][1]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ModelError(f"hook point '{hook}' gives no vector per head and token; use attn.hook_z.h*.")
    return shapes[0][2]


def _of_features(site: str, dictionary: Any, features: Sequence[int], *, per: str) -> list[Thing]:
    """A feature that is one sign of a value is patched together with the other sign."""
    sets = [features] if per == "set" else [[j] for j in features]
    partner = dictionary.partner
    both = [tuple(dict.fromkeys([*one, *(int(partner[j]) for j in one)])) if partner is not None else tuple(one)
            for one in sets]  # fmt: skip
    return [Thing(dictionary.hook, dictionary, one, site) for one in both]


def _with_regions(stimuli: pd.DataFrame, ask: PatchingBlock, design: Design) -> pd.DataFrame:
    """Texts of the asked split that have every region."""
    kept = np.ones(len(stimuli), dtype=bool)
    if "split" in stimuli and design.partition is not None:
        kept &= (stimuli["split"].astype(str) == ask.split).to_numpy()
    for region in (*ask.region, *ask.keys):
        if region not in PLACES:
            kept &= stimuli[f"{region}_start"].notna().to_numpy()
    if not kept.any():
        raise DataError(f"no text has all of the regions {', '.join(ask.region)}; patch them in tests of their own.")
    found = stimuli[kept]
    found.attrs["design"] = stimuli.attrs.get("design", design.to_json())
    return found


# --- rows -----------------------------------------------------------------------------------------------------------


class Changes(NamedTuple):
    """Changes by unit: D (n_units, n_cells), the difference of the two texts (n_units,), what was left out."""

    D: np.ndarray
    whole: np.ndarray | None
    clean: np.ndarray
    data: UnitData
    dropped: str


def _rows(grid: Grid, stimuli: pd.DataFrame, design: Design, *, asked: Asked) -> pd.DataFrame:
    seen = _changes(grid, stimuli, design, asked=asked)
    tests = item_tests(seen.D, seen.data.numbers, n_permutations=asked.n_permutations, seed=asked.seed)
    ok = np.flatnonzero(~grid.idle & (tests.informative >= FEWEST))
    p_corr = np.full(len(grid.cells), np.nan)
    if asked.correction == "maxT":
        p_corr[ok] = tests.p_corr[ok]
    elif asked.correction == "holm" and len(ok):
        p_corr[ok] = holm(tests.p[ok])
    rows = []
    for k, cell in enumerate(grid.cells.itertuples()):
        row = _where(grid.things[str(cell.thing)], str(cell.direction), asked) | {
            "region": cell.region,
            "n_units": len(seen.D),
        }
        notes = [str(cell.note), seen.data.note, seen.dropped]
        if k in ok:
            row |= _numbers(tests, k) | _share(seen, k, asked=asked, notes=notes)
            if not np.isnan(p_corr[k]):
                row |= {"p_corr": p_corr[k], "p_adjust": asked.correction, "n_family": len(ok)}
                row |= {"family": FAMILY.format(test=asked.test)}
            row["status"] = "ok"
        else:
            row |= {"status": "untestable", "n_informative": int(tests.informative[k])}
            notes.insert(0, _why_not(bool(grid.idle[k]), int(tests.informative[k])))
        rows.append(row | {"note": "; ".join(filter(None, notes)) or None, "unit": seen.data.unit})
    names = list(dict.fromkeys(key for row in rows for key in row))
    return check_results(as_results({name: [row.get(name) for row in rows] for name in names}, n_rows=len(rows)))


def _why_not(idle: bool, informative: int) -> str:
    if idle:
        return "nothing leads from here to the token that predicts the target"
    if not informative:
        return "both texts have the same here, or it moves no logit"
    return f"the outcome moves in {informative} items; {FEWEST} are needed"


def _changes(grid: Grid, stimuli: pd.DataFrame, design: Design, *, asked: Asked) -> Changes:
    """Changes of every place by item: frames and cells averaged, what is rounding set to 0."""
    table = stimuli.set_axis(stimuli.index.astype(str), axis=0).loc[grid.pairs["clean"]]
    (factor, (clean, _)), *_ = asked.between.items()
    change = without_rounding(moved(grid), grid.clean[:, None])
    paired = np.isfinite(grid.other).all()
    columns = [change, grid.clean[:, None]] + ([(grid.clean - grid.other)[:, None]] if paired else [])
    at = list(design.factors).index(factor)
    present = table[list(design.factors)].astype(str).drop_duplicates().itertuples(index=False, name=None)
    cells = [cell for cell in present if cell[at] == clean]
    by_item = item_outcomes(np.hstack(columns), table, design, split=None, cells=cells)
    made = unit_data(by_item, design)
    n = change.shape[1]
    return Changes(made.D[:, :n], made.D[:, n + 1] if paired else None, made.D[:, n], made, by_item.dropped)


def _where(thing: Thing, direction: str, asked: Asked) -> dict[str, Any]:
    """Columns that say which place a row speaks of."""
    (_, (clean, other)), *_ = asked.between.items()
    source = other if asked.settings.replace in ("paired", "random") else asked.settings.replace
    effect = f"{source} into {clean}" if direction == NOISING else f"{clean} into {other}"
    row: dict[str, Any] = {
        "test": asked.test, "kind": "patching", "effect": effect, "position": 0, "split": "test", "h0": H0,
        "site": thing.site or thing.hook, "x_direction": direction, "x_replace": asked.settings.replace,
        "x_outcome": asked.settings.outcome, "x_freeze": asked.settings.freeze,
    }  # fmt: skip
    if thing.keys:
        return row | {"set": f"attention to {thing.keys}", "x_keys": thing.keys}
    if thing.dictionary is None:
        return row | {"set": "whole vector"}
    one = len(thing.features) == 1 or (thing.dictionary.partner is not None and len(thing.features) == 2)
    if one:
        return row | {"feature": thing.features[0], "n_features": 1, "set": "feature"}
    return row | {"n_features": len(thing.features), "set": "features together"}


def _numbers(tests: ItemTests, k: int) -> dict[str, Any]:
    n = len(tests.p)
    assert k < n
    return {
        "stat": "t of the change", "value": float(tests.t[k]), "estimate": float(tests.estimate[k]),
        "se": float(tests.se[k]), "effsize": float(tests.d_z[k]), "eftype": "d_z", "ci_low": float(tests.low[k]),
        "ci_high": float(tests.high[k]), "ci_level": 0.95, "p_unc": float(tests.p[k]),
        "p_method": "exact" if tests.exact[k] else "saddlepoint", "n_informative": int(tests.informative[k]),
        "n_perm": tests.n_permutations, "alternative": "two-sided",
    }  # fmt: skip


def _share(seen: Changes, k: int, *, asked: Asked, notes: list[str]) -> dict[str, Any]:
    """The share of the difference between the texts that a place carries; none where they do not differ."""
    n = len(seen.D)
    out: dict[str, Any] = {"p_min": 2.0 ** (1 - n), "x_clean": float(seen.clean.mean())}
    if seen.whole is None:
        return out
    out["x_whole"] = float(seen.whole.mean())
    draws = np.random.default_rng(asked.seed).integers(n, size=(N_BOOTSTRAP, n))
    below = seen.whole[draws].sum(axis=1)
    low, high = np.percentile(below, [2.5, 97.5])
    if low <= 0 <= high:
        notes.append("the outcome does not differ between the two texts, so that no share of it is carried anywhere")
        return out
    ends = np.percentile(seen.D[draws, k].sum(axis=1) / below, [2.5, 97.5])
    share = float(seen.D[:, k].sum() / seen.whole.sum())
    return out | {"x_share": share, "x_share_low": float(ends[0]), "x_share_high": float(ends[1])}
