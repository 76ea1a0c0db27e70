"""What an exact test owes its reader: reachable p, even counts, no dependence on what is tested beside it."""

from __future__ import annotations

import json
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from neurosae.extraction.responses import build_responses
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.stats.contrast import contrast
from neurosae.stats.family import Cell, Place, infer, relabelled
from neurosae.stats.flips import group_columns, maxima
from neurosae.stats.relabel import permutations
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.tails import flip_p
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
PLACE = Place("t", "number", "s", "noun", 0, "test", None)


def responses(n=12, between=False, n_features=80):
    design = example_design(n, between=between)
    return simulate(design, n_features=n_features, effects={"number": 5}, density=(0.2, 0.9), shift=5.0, seed=3)


def data_of(n=9, between=False):
    fake = responses(n, between)
    data = item_data(fake, example_design(n, between=between), NUMBER, region="noun")
    return data, np.flatnonzero(data.informative >= 5)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("statistic", ["mean", "moderated_t", "signed_rank", "hurdle"])
@pytest.mark.parametrize("correction", ["maxT", "fdr_bh", "none"])
def test_no_p_is_below_what_its_row_can_reach(between, statistic, correction):
    """p_min belongs to p_unc: all flips of the informative items, or the relabellings that were counted."""
    asked = {"statistic": statistic, "correction": correction, "n_permutations": 200}
    table = contrast(responses(between=between), NUMBER, region="noun", inference=asked, seed=1)
    tested = table[table["status"] == "ok"]
    assert len(tested) > 40
    assert (tested["p_unc"] >= tested["p_min"] * (1 - 1e-9)).all()
    counted = tested["p_method"].isin(["flips", "permutations"])
    assert (tested.loc[counted, "p_min"] >= 1 / tested.loc[counted, "n_perm"]).all()
    assert counted.all() == between
    if not between:
        assert_allclose(tested["p_min"], 2.0 ** (1 - tested["n_informative"].astype(float)))


@pytest.mark.parametrize("statistic", ["mean", "t", "moderated_t", "signed_rank", "hurdle"])
def test_uncorrected_p_agrees_with_all_flips(statistic):
    """Each of the 128 flips analysed as if it had been observed; two-sided counts are even."""
    data, kept = data_of(7)
    settings = Inference(statistic=statistic, correction="none")
    outcome = infer([Cell(PLACE, data, kept)], settings, seed=1, split="test")[0][0]
    signs = np.array(list(product([1.0, -1.0], repeat=7)))
    value = np.abs(
        [infer([Cell(PLACE, relabelled(data, s, None), kept)], settings, seed=1, split="test")[0][0].z for s in signs]
    )
    expected = (value >= value[0] - 1e-7).mean(axis=0)
    assert_allclose(outcome.p_unc, expected, rtol=1e-12)
    assert_array_equal(np.round(outcome.p_unc * 128) % 2, 0)


@pytest.mark.parametrize("statistic", ["t", "moderated_t"])
def test_all_statistics_of_one_sum_have_one_p(statistic):
    """They are monotone in |sum s d|, so that mean, t and moderated t agree feature by feature."""
    data, kept = data_of()
    p = [
        infer([Cell(PLACE, data, kept)], Inference(statistic=s, correction="none"), seed=1, split="test")[0][0].p_unc
        for s in ("mean", statistic)
    ]
    assert_array_equal(*p)


def test_another_effect_changes_no_uncorrected_p():
    """Testing the mirrored effect beside an effect joins the family and leaves its p as they are."""
    fake = responses(20)
    asked = {"statistic": "t", "n_permutations": 500}
    alone = contrast(fake, {"a": NUMBER}, region="noun", inference=asked, seed=1)
    mirrored = {"number": {"pl": -2, "sg": 2}}
    both = contrast(fake, {"a": NUMBER, "b": mirrored}, region="noun", inference=asked, seed=1)
    first, second = both[both["effect"] == "a"].reset_index(drop=True), both[both["effect"] == "b"]
    for name in ("value", "p_unc", "p_corr", "p_min"):
        assert_array_equal(first[name], alone[name])
        assert_allclose(np.abs(second[name]), np.abs(alone[name]), rtol=1e-9)
    assert (first["n_family"] == 2 * alone["n_family"]).all()


def test_approximate_relabellings_do_not_call_their_p_exact():
    """An interaction between items permutes the labels of all cells; the method and the note say so."""
    levels = {"outcome": ["lost", "won"], "course": ["ending", "going"]}
    lists = {
        o: {c: [{"text": f"{o} {c} number {i}."} for i in range(3)] for c in levels["course"]}
        for o in levels["outcome"]
    }
    factors = {name: {"levels": names, "varies": "between"} for name, names in levels.items()}
    parts = {"factors": factors, "lists": lists, "regions": {"last": {"words": [-1, -1]}}}
    design = Design.model_validate({"schema": "neurosae/design/1", "name": "stories", **parts})
    fake = simulate(design, n_features=20, density=0.8, seed=1)
    effect = {"outcome": {"won": 1, "lost": -1}, "course": {"going": 1, "ending": -1}}
    asked = {"n_permutations": 500, "correction": "none"}
    table = contrast(fake, effect, region="last", inference=asked, seed=1)
    tested = table[table["status"] == "ok"]
    assert set(tested["p_method"]) == {"permutations (approximate)"}
    assert tested["note"].str.contains("approximate: labels of all cells are permuted").all()


def test_nichols_and_holmes_agree_with_the_paper(oracles):
    """Six scans, three under each condition: 1 of 20 relabellings reaches the observed difference."""
    known = json.loads(oracles("signflip.json").read_text())["nichols_holmes_2002"]
    codes = np.array([label == "A" for label in known["label"]]).astype(int)
    Y = sp.csc_matrix(np.array(known["y"])[:, None])
    columns = group_columns(Y, codes, weights=np.array([-1.0, 1.0]), mode=0, shrink=np.zeros((1, 2)), df=np.inf)
    how = permutations(np.arange(6), codes, 100, seed=0)
    assert_allclose(columns.u, known["diff"], rtol=1e-9)
    reached = maxima(columns, how, two_sided=False)[1]
    assert (how.n, reached[0]) == (known["n_relabel"], round(known["p_one_sided"] * known["n_relabel"]))


def test_saddlepoint_p_is_at_least_the_smallest():
    """One sign throughout beyond 24 items: 2^(1-k), and never below it."""
    rng = np.random.default_rng(0)
    D = np.abs(rng.normal(size=(40, 30))) * np.where(rng.random((40, 30)) < 0.03, -1, 1)
    p, exact = flip_p(sp.csc_matrix(D))
    assert not exact.any()
    assert (p >= 2.0**-39 * (1 - 1e-9)).all()


@pytest.mark.parametrize("between", [False, True])
def test_ties_of_decimals_survive_float32(between):
    """Multiples of .1 and averages of them, stored as float32: p, ranks and informative items as in exact arithmetic.

    Rounding to float32 takes ties apart (.1 + .2 is not .3), which makes p too small where few values occur.
    """
    rng, design = np.random.default_rng(4), example_design(10, between=between, n_frames=1 if between else 2)
    fake = simulate(design, n_features=12, density=0.5, seed=0)
    whole = rng.integers(0, 4, (fake.n_obs, 12)) * (rng.random((fake.n_obs, 12)) < 0.8)
    X = sp.csr_matrix((0.1 * whole * np.arange(1, 13)).astype(np.float32))
    fake = build_responses(X, fake.obs, fake.var, design=design, provenance={})
    obs, plus = fake.obs, (fake.obs["number"] == "pl").to_numpy()
    items = pd.factorize(obs["item"])[0]
    how = {"n_permutations": 10_000, "min_informative": 5, "alpha": 0.1}
    found = {
        name: contrast(fake, NUMBER, region="noun", inference=how | {"statistic": name}, seed=1).set_index("feature")
        for name in ("mean", "signed_rank")
    }
    for j in found["mean"].index[found["mean"]["status"] == "ok"]:
        y = whole[:, j]  # integers: exact
        if between:
            parts = y[plus], y[~plus]
            ranks = stats.rankdata(y)
            for name, values in (("mean", y), ("signed_rank", ranks)):
                total = [abs(values[list(c)].sum() - values.sum() / 2) for c in combinations(range(10), 5)]
                here = abs(values[plus].sum() - values.sum() / 2)
                assert found[name].loc[j, "p_unc"] == pytest.approx(np.mean(np.array(total) >= here - 1e-9))
            assert found["mean"].loc[j, "x_auc"] == pytest.approx(stats.mannwhitneyu(*parts).statistic / 25)
            continue
        d = np.bincount(items, np.where(plus, y, -y))
        assert found["mean"].loc[j, "n_informative"] == np.count_nonzero(d)
        rank = np.sign(d[d != 0]) * stats.rankdata(np.abs(d[d != 0]))
        for name, values in (("mean", d[d != 0]), ("signed_rank", rank)):
            signs = np.array(list(product([1, -1], repeat=len(values))))
            p = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9)
            assert found[name].loc[j, "p_unc"] == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("statistic", ["mean", "t", "moderated_t", "signed_rank", "hurdle"])
@pytest.mark.parametrize("between", [False, True])
def test_invariant_to_the_order_of_rows_and_features(between, statistic):
    """Rows in any order, features in any order: the same items meet the same labels, with and without drawing them."""
    fake = responses(14, between=between, n_features=20)
    rng = np.random.default_rng(0)
    shuffled = fake[rng.permutation(fake.n_obs)].copy()
    shuffled = shuffled[:, rng.permutation(fake.n_vars)].copy()
    for n, intervals in ((300, "bca"), (20_000, "simultaneous")):
        how = {"statistic": statistic, "n_permutations": n, "intervals": intervals}
        one, two = (
            contrast(x, NUMBER, region="noun", inference=how, seed=1).sort_values("feature") for x in (fake, shuffled)
        )
        for column in ("value", "p_unc", "p_corr", "ci_low", "ci_high"):
            assert_allclose(one[column].astype(float), two[column].astype(float), rtol=1e-6, err_msg=column)
    if between and statistic == "mean":
        obs = shuffled.obs
        plus, X = (obs["number"] == "pl").to_numpy(), shuffled.X.toarray()
        for column, feature in enumerate(shuffled.var["feature"]):
            row = two[two["feature"] == feature].iloc[0]
            if row["status"] == "ok":
                y = X[:, column].astype(float)
                known = stats.permutation_test(
                    (y[plus], y[~plus]), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=np.inf,
                    vectorized=True,
                )  # fmt: skip
                assert row["p_unc"] == pytest.approx(
                    np.mean(np.abs(known.null_distribution) >= abs(known.statistic) - 1e-9)
                )
