"""Seeds as subjects in a study: prevalence, flips of whole subjects, what is refused, and what shared items do."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.stats.across_subjects import across_subjects
from neurosae.stats.contrast import contrast
from neurosae.stats.factorial import factorial
from neurosae.stats.relabel import flips, signs
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.subjects import prevalence

NUMBER = {"number": {"pl": 1, "sg": -1}}
FEW = {"n_permutations": 400}


def seeds(n=6, planted=range(6), **kwargs):
    """Dictionaries with features of their own on the same items; some of them show the effect."""
    made = {"n_features": 30, "density": 0.4, "shift": 4.0} | kwargs
    design = example_design(16)
    return {
        f"s{k}": simulate(design, effects={"number": 5} if k in planted else None, seed=k, **made) for k in range(n)
    }


@pytest.fixture(scope="module")
def everyone():
    return seeds()


def asked(sites, statistic, effects=NUMBER, **settings):
    return across_subjects(sites, effects, region="noun", statistic=statistic, inference=FEW, settings=settings, seed=1)


def test_prevalence_recovers_an_effect_of_every_seed(everyone):
    """The majority has it; each subject's own length is that of a factorial test."""
    table = asked(everyone, "prevalence")
    whole, each = table[table["site"] == "all"], table[table["site"] != "all"]
    assert (whole["p_corr"] <= 0.05).all()
    assert 0.5 <= whole["x_gamma_low"].item() < 1
    assert list(each["site"]) == list(everyone)
    assert each["p_corr"].isna().all()
    assert whole["value"].item() == each["x_z"].min()
    known = [factorial(one, NUMBER, region="noun", inference=FEW, seed=1).iloc[0] for one in everyone.values()]
    assert_allclose(each["value"], [row["value"] for row in known])
    assert_allclose(each["p_unc"], [row["p_unc"] for row in known])


def test_prevalence_controls_an_effect_of_half_the_seeds():
    """Three seeds of six show it: not the majority. None shows it: not any."""
    assert asked(seeds(planted=range(3)), "prevalence")["p_corr"].iloc[0] > 0.05
    none = asked(seeds(planted=()), "prevalence", gamma0=0.0).iloc[0]
    assert none["p_corr"] > 0.05
    assert none["p_corr"] == none["x_p_global"]


def nulls(rng, *, loading, n_subjects=6, n_items=12, n=200, seed=0):
    """|sum of flipped item contrasts| of subjects that share what the items do, (n_subjects, n)."""
    shared = rng.standard_normal(n_items)
    d = loading * shared + np.sqrt(1 - loading**2) * rng.standard_normal((n_subjects, n_items))
    return np.abs(d @ signs(flips(np.arange(n_items), n, seed=seed, enumerate_all=False)).T)


def test_shared_relabellings_control_subjects_with_the_same_items():
    """Relabelled alike, seeds that share their items reject at .05; paired at random they would reject a third."""
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for seed in range(100):
        a = nulls(rng, loading=0.95, n=100, seed=seed)[:, :, None]
        for k, n in enumerate((None, 100)):
            hits[k] += prevalence(a, gamma0=0.0, n_permutations=n, seed=seed)["p_unc"].iloc[0] <= 0.05
    low, high = stats.binom.interval(0.99, 100, 0.05)
    assert low <= hits[0] <= high
    assert hits[1] > 20


def test_shared_prevalence_controls_a_majority():
    """Half of the population has a huge effect, the rest none, on shared items: more than half is rarely claimed."""
    rng, hits = np.random.default_rng(1), 0
    for seed in range(100):
        a = nulls(rng, loading=0.9, n=80, seed=seed)
        a[:, 0] += 1e3 * (rng.random(6) < 0.5)
        hits += prevalence(a[:, :, None], n_permutations=None, seed=0)["p_unc"].iloc[0] <= 0.05
    assert hits <= stats.binom.ppf(0.995, 100, 0.05)


def test_shared_prevalence_agrees_with_all_subsets():
    """Sum over which subjects have no effect of gamma^(with) (1 - gamma)^(without) P(min over those without >= m)."""
    a = np.random.default_rng(2).random((5, 30))
    a[:, 0] += 0.3
    low, known = a[:, 0].min(), 0.0
    for k in range(6):
        for without in combinations(range(5), k):
            reached = (a[list(without)].min(axis=0) >= low).mean() if k else 1.0
            known += 0.4 ** (5 - k) * 0.6**k * reached
    row = prevalence(a[:, :, None], gamma0=0.4, alpha=0.5, n_permutations=None, seed=0).iloc[0]
    assert_allclose(row["p_unc"], known)
    gamma = prevalence(a[:, :, None], gamma0=row["x_gamma_low"], alpha=0.5, n_permutations=None, seed=0).iloc[0]
    assert_allclose(gamma["p_corr"], 0.5, rtol=1e-6)


def test_mean_agrees_with_flips_of_standardized_contrasts(everyone):
    """Each subject's number by hand; p and t are those of `over_subjects`."""
    table = asked(everyone, "mean")
    known = []
    for one in everyone.values():
        rows = contrast(one, NUMBER, region="noun", inference={"statistic": "mean", **FEW}, seed=1)
        rows = rows[rows["status"] == "ok"]
        q = (rows["n_units"] - 1) / rows["n_units"] * (rows["estimate"] / rows["effsize"]).astype(float) ** 2
        q = q + rows["estimate"] ** 2
        known.append(float((rows["estimate"] / np.sqrt(q + q.median())).mean()))
    whole = table.iloc[0]
    assert_allclose(table["value"].iloc[1:], known, rtol=1e-6)
    assert_allclose(whole["value"], stats.ttest_1samp(known, 0).statistic, rtol=1e-6)
    assert (whole["p_unc"], whole["n_perm"], whole["p_min"]) == (2 / 64, 32, 2 / 64)


def test_difference_is_signed(everyone):
    """The effect that is there minus one that is not; turned round it is the other tail."""
    one, other = NUMBER, {"number": {"pl": -1, "sg": 1}}
    same = asked(everyone, "difference", {"a": one, "b": other}).iloc[0]
    assert (same["effect"], same["status"]) == ("a - b", "degenerate")
    assert np.isnan(same["p_unc"])


def test_holm_over_effects_is_recorded(everyone):
    """Two effects: the bound of prevalence and the corrected p pay for both."""
    one = asked(everyone, "prevalence")
    two = asked(everyone, "prevalence", {"a": NUMBER, "b": NUMBER})
    whole = two[two["site"] == "all"]
    assert set(whole["p_adjust"]) == {"maxT+holm"}
    assert_allclose(whole["p_corr"], 2 * one["p_corr"].iloc[0])
    assert (whole["x_gamma_low"] < one["x_gamma_low"].iloc[0]).all()


def test_effects_between_items_are_tested():
    """Labels are permuted alike in all subjects; the mean is that of the groups' difference."""
    design = example_design(24, between=True)
    sites = {
        f"s{k}": simulate(design, n_features=20, density=0.6, effects={"number": 8}, shift=4.0, seed=k)
        for k in range(6)
    }
    assert asked(sites, "prevalence")["p_corr"].iloc[0] <= 0.05
    plus = asked(sites, "mean")
    minus = asked(sites, "mean", {"number": {"pl": -1, "sg": 1}})
    assert_allclose(plus["value"], -minus["value"])


def test_few_subjects_are_refused(everyone):
    """Five seeds cannot be flipped to .05, four cannot show a majority; a mean needs a direction."""
    five = dict(list(everyone.items())[:5])
    with pytest.raises(
        DataError, match=r"5 subjects allow 32 flips; the smallest two-sided p is 0.0625. Use at least 6"
    ):
        asked(five, "mean")
    with pytest.raises(DataError, match=r"4 subjects cannot show an effect in more than 0.5 .* Use at least 5"):
        asked(dict(list(everyone.items())[:4]), "prevalence")
    with pytest.raises(DataError, match="has no direction"):
        asked(everyone, "mean", {"number": "all"})


def test_a_silent_dictionary_is_named(everyone):
    """A subject without a number is no subject with 0."""
    silent = everyone["s2"].copy()
    silent.X = silent.X * 0
    silent.X.eliminate_zeros()
    with pytest.raises(DataError, match=r"subjects test 'subjects': s2: no feature whose contrast"):
        asked(everyone | {"s2": silent}, "prevalence")
