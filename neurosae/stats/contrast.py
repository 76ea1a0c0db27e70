"""One effect, every feature: which features respond to a contrast of the design, corrected over the whole family.

Flow: responses -> one number per item and feature (`units`) -> statistic (`statistics`) -> the same statistic under
relabellings of whole items (`flips`) -> corrected p (`family`) -> one row per feature (`rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import ContrastBlock, Inference
from neurosae.spec.results import Tested, check_results
from neurosae.stats.adjusted import explained
from neurosae.stats.asked import (
    Asked,
    features_from_earlier,
    named_effects,
    place_data,
    positions_in,
    read_block,
    responses_by_site,
    settings_of,
)
from neurosae.stats.family import Cell, Place, infer, relabelled
from neurosae.stats.relabel import flips, labels, levels, permutations, signs, within
from neurosae.stats.rows import feature_rows, inactive_rows, join_rows, top_features
from neurosae.stats.statistics import STATISTICS
from neurosae.stats.units import AnnData, ItemData

__all__ = ["STATISTICS", "contrast", "null_rate", "run"]


def contrast(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    split: str = "test",
    inference: Mapping[str, Any] | Inference | None = None,
    features: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test every feature for a contrast between cells of the design.

    With y_ic the mean response of item i in cell c (frames averaged inside the item) and w the effect's weights,

        d_i = sum_c w_c y_ic,   t = mean(d) / sqrt(v~ / n),   v~ = (d0 s0^2 + (n - 1) v) / (d0 + n - 1),

    and p is the share of sign flips of whole items (of label permutations, where a factor varies between items) whose
    statistic, or whose maximum over the family, reaches the observed one.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several, which then form one family; `{factor: all}`
        compares all levels at once by F, `{"slope": covariate}` asks for the slope on a number that items carry
    region : name or names
    split : "test" or "localizer"
    inference : keys of the `inference:` section, e.g. {"correction": "fdr_bh"}; the rest has its defaults
    features : indices to test, chosen without looking at this contrast on these items; all by default
    seed : int

    Returns
    -------
    DataFrame
        The results schema (`neurosae.spec.results`), one row per feature active in the tested rows, site, region,
        position and effect; dead features share a row. A positive value means larger responses in the + cells.
        Extras: `x_z` the statistic as a normal deviate; `x_weights`; `x_g`; `x_density_plus`, `_minus`, `_diff`;
        `x_odds_ratio`; `x_log_ratio`; `x_auc`; `x_sign_prob`; `x_rank_agrees`; `x_p_low`, `x_p_high` the Monte-Carlo
        interval of p_corr; `x_df1` of F, whose `dof` are those of its denominator; `x_z_fire`, `x_z_mag`, `x_p_fire`,
        `x_p_mag` (Holm over the two) of the hurdle; `x_p_by` beside fdr_bh; `x_p_family` and `x_selected` of the site
        beside bb; `x_d0` prior degrees of freedom; `x_ci_method` and `x_ci_dof` of the interval, which are not those of
        a moderated statistic. `p_min` is the smallest `p_unc` that the row could have; `n_perm` counts the relabellings
        of the maximum, and of `p_unc` where `p_method` is flips or permutations. Beside nuisance
        `x_estimate_unadjusted`, `x_se_unadjusted`, and `x_vif` the variance inflation of the effect.

    Raises
    ------
    DataError, SpecError
        If too few items are left, or the design admits no relabelling for the effect.

    Notes
    -----
    H0: the two labels are exchangeable inside every item (between items: over items of a stratum), jointly for all
    features. Of several levels, or weights that no exchange of two levels turns into their negative, all levels are
    exchangeable inside every item. Features are kept by the number of items with a difference, which no relabelling
    changes, so the test of the kept ones is exact. Where relabellings are not, `p_method` says approximate and the note
    why. Not for effects of prompts or tokens: the unit is the item.

    References
    ----------
    Westfall & Young (1993), Resampling-Based Multiple Testing. Smyth (2004), Stat. Appl. Genet. Mol. Biol. 3:3.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=40, effects={"number": 3}, density=0.4, shift=5.0, seed=1)
    >>> found = contrast(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", seed=1)
    >>> found[found.p_corr <= 0.05].feature.tolist()
    [0, 1, 2]
    """
    sites = responses_by_site(responses)
    effects = named_effects(effect)
    chosen = features if isinstance(features, Mapping) or features is None else dict.fromkeys(sites, features)
    wanted = None if chosen is None else {site: np.unique(np.asarray(f, dtype=int)) for site, f in chosen.items()}
    regions = (region,) if isinstance(region, str) else tuple(region)
    asked = Asked("contrast", effects, regions, split, wanted, None if wanted is None else "chosen features")
    return run_family(sites, asked, settings_of(inference), seed=seed, top=0).table


def run(
    responses: Mapping[str, AnnData], ask: ContrastBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: contrast`; all its effects, regions, positions and sites are one family."""
    asked, sites, settings = read_block(ask, study, responses)
    if ask.features is not None:
        features, name = features_from_earlier(ask, sites, earlier)
        asked = asked._replace(features=features, set_name=name)
    return run_family(sites, asked, settings, seed=study.spec.seed, top=study.spec.report.top_features)


def null_rate(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    split: str = "test",
    inference: Mapping[str, Any] | Inference | None = None,
    n_sets: int = 200,
    seed: int,
) -> pd.DataFrame:
    """Calibrate on one's own responses: shuffle labels, run the same pipeline, count the sets with any rejection.

    Each set relabels the items by one random admissible relabelling, so that H0 holds, and is then tested as if it
    had been observed.

    Returns
    -------
    DataFrame
        One row: `n_sets`, `n_rejecting` sets with at least one rejection, their share `rate`, its 95 % Clopper-Pearson
        interval `low`, `high`, the nominal `alpha`, `correction`, `n_items` and `n_tests`.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(12), n_features=30, density=0.4, seed=1)
    >>> row = null_rate(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", n_sets=20, seed=1).iloc[0]
    >>> int(row["n_sets"]), bool(row["low"] <= 0.05)
    (20, True)
    """
    sites = responses_by_site(responses)
    regions = (region,) if isinstance(region, str) else tuple(region)
    settings = settings_of(inference).model_copy(update={"intervals": "marginal"})
    cells, _ = cells_of(sites, Asked("null", named_effects(effect), regions, split), settings)
    if not cells:
        raise DataError("no feature can be tested here, so there is no error rate; choose another region or split.")
    rejecting = 0
    for number in tqdm(range(1, n_sets + 1), desc="null", unit="set", disable=None, mininterval=1):
        shuffled = [cell._replace(data=_shuffled(cell.data, number, seed=seed)) for cell in cells]
        outcomes, _ = infer(shuffled, settings, seed=seed + number, split=split)
        p = np.concatenate([o.p_unc if settings.correction == "none" else o.p_corr for o in outcomes])
        rejecting += bool((p <= settings.alpha).any())
    tail = stats.binomtest(rejecting, n_sets).proportion_ci()
    row = {"n_sets": n_sets, "n_rejecting": rejecting, "rate": rejecting / n_sets, "low": tail.low, "high": tail.high}
    row |= {"alpha": settings.alpha, "correction": settings.correction, "n_items": cells[0].data.n}
    return pd.DataFrame([row | {"n_tests": sum(len(c.kept) for c in cells)}])


def _shuffled(data: ItemData, number: int, *, seed: int) -> ItemData:
    """The data under relabelling `number` of a stream that no test uses."""
    if (inside := data.exchange.levels) is not None:
        part = (inside.number, inside.weights is None)
        moved = within(data.numbers, inside.n, number + 1, part=part, seed=seed, split="shuffled", enumerate_all=False)
        return relabelled(data, None, levels(moved, number, 1)[:, :, 0].astype(int))
    if data.codes is None:
        drawn = flips(data.numbers, number + 1, seed=seed, split="shuffled", enumerate_all=False)
        return relabelled(data, signs(drawn, number, 1)[0], None)
    codes = data.codes if data.beside is None else np.arange(data.n)
    drawn = permutations(
        data.numbers, codes, number + 1, blocks=data.strata, seed=seed, split="shuffled", enumerate_all=False
    )
    return relabelled(data, None, labels(drawn, number, 1)[0].astype(int))


def run_family(sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, seed: int, top: int) -> Tested:
    """Test all features of all effects, sites, regions and positions as one family."""
    cells, silent = cells_of(sites, asked, inference)
    outcomes, null = infer(cells, inference, seed=seed, split=asked.split)
    family = _family_words(asked, sites)
    n_family = sum(len(cell.kept) for cell in cells)
    tables = [feature_rows(c, o, inference=inference) for c, o in zip(cells, outcomes, strict=True)]
    table = join_rows([*tables, *silent], family=family, n_family=n_family, inference=inference)
    sizes = {} if asked.features is not None else {site: adata.n_vars for site, adata in sites.items()}
    return Tested(check_results(table, sizes), null, top_features(cells, outcomes, top=top))


def cells_of(sites: Mapping[str, AnnData], asked: Asked, inference: Inference) -> tuple[list[Cell], list[pd.DataFrame]]:
    """Everything to be tested, and the rows of what cannot be."""
    cells, silent = [], []
    for effect, weights in asked.effects.items():
        for site, adata in sites.items():
            design = design_of(adata)
            for region in asked.regions:
                for position in positions_in(adata, region):
                    place = Place(asked.test, effect, site, region, position, asked.split, asked.set_name)
                    wanted = _wanted(adata, asked, site)
                    data = place_data(adata, design, weights, place=place, inference=inference)
                    if isinstance(data, str):
                        silent.append(inactive_rows(place, n_features=len(wanted), reason=data))
                        continue
                    kept, rows = _sort_out(data, wanted, place, minimum=inference.min_informative)
                    silent += rows
                    if len(kept):
                        cells.append(Cell(place, data, kept))
    return cells, silent


def _wanted(adata: AnnData, asked: Asked, site: str) -> np.ndarray:
    """Columns to be tested at a site."""
    if asked.features is None:
        return np.arange(adata.n_vars)
    index = pd.Index(adata.var["feature"])
    columns = index.get_indexer(choose("site", site, asked.features))  # pyright: ignore[reportArgumentType]
    if (columns < 0).any():
        raise DataError(f"site '{site}' has {adata.n_vars} features and lacks one of those to be tested.")
    return columns


def _sort_out(
    data: ItemData, wanted: np.ndarray, place: Place, *, minimum: int
) -> tuple[np.ndarray, list[pd.DataFrame]]:
    """Columns that can be tested, and rows for those that cannot; only counts that no relabelling changes decide."""
    n_features = data.Y.shape[1]  # pyright: ignore[reportOptionalSubscript]
    active = np.bincount(data.Y.indices, minlength=n_features)[wanted] > 0
    informative = data.informative[wanted]
    enough = active & (informative >= minimum)
    gone = enough.copy()
    gone[enough] = explained(data, wanted[enough])
    kept, few = wanted[enough & ~gone], active & (informative < minimum)
    rows = []
    if gone.any():
        why = "explained by the nuisance altogether, so nothing is left to test"
        counts = informative[gone]
        rows.append(inactive_rows(place, features=wanted[gone], informative=counts, data=data, reason=why))
    if few.any():
        rows.append(inactive_rows(place, features=wanted[few], informative=informative[few], data=data))
    if (~active).any():
        rows.append(inactive_rows(place, n_features=int((~active).sum()), data=data))
    return kept, rows


def _family_words(asked: Asked, sites: Mapping[str, AnnData]) -> str:
    what = "all testable features" if asked.set_name is None else f"testable features of {asked.set_name}"
    where = f"regions {', '.join(asked.regions)}" + f"; sites {', '.join(sites)}"
    return f"{what} x positions of test {asked.test}: effects {', '.join(asked.effects)}; {where}"
