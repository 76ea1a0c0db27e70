"""Rules that choose features: a world where one rule must win, one where none can, foreign software, folds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.errors import DataError, SpecError
from neurosae.stats.choosing import choosing
from neurosae.stats.logistic import fit_logistic, predict_many
from neurosae.stats.paired import flip_t
from neurosae.stats.rules import Training, best_features, rule_scores
from neurosae.stats.simulate import example_design, responses_of, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}
FEW = {"k": [2, 4], "repeats": 2, "n_null": 40}


def loud_and_telling(n_items, *, between, seed, n_telling=6):
    """The first features answer to number; the next are twenty times as large and answer to nothing."""
    design = example_design(n_items, between=between)
    planted = {"number": n_telling} if n_telling else {}
    fake = simulate(design, n_features=60, effects=planted, density=0.3, shift=4.0, seed=seed)
    X = fake.X.toarray()
    X[:, 6:20] *= 20
    return responses_of(
        sp.csr_matrix(X), fake.obs.reset_index(drop=True), fake.var, design=design, provenance={"simulated": True}
    )


@pytest.mark.parametrize("between", [False, True])
def test_choosing_recovers_the_rule_that_finds_what_is_planted(between):
    """Contrast predicts, maximum takes loud features and does not; the difference is found, with its sign."""
    fake = loud_and_telling(40, between=between, seed=1)
    found = choosing(
        fake, NUMBER, region="noun", settings={"rules": ["contrast", "maximum", "random"], **FEW}, seed=1
    ).set_index("set")
    assert found.loc["contrast", "value"] > 0.8
    assert found.loc["contrast", "p_corr"] <= 0.05
    assert abs(found.loc["maximum", "value"] - 0.5) < 0.15
    assert found.loc["maximum", "p_corr"] > 0.05
    assert found.loc["contrast - maximum", "estimate"] > 0.2
    assert found.loc["contrast - maximum", "p_corr"] <= 0.05


def test_choosing_controls_where_nothing_is_planted():
    """No rule beats chance, and rules differ, in at most the binomial share of data sets; accuracy is 1/2."""
    chance, differ, accuracy = [], [], []
    for seed in range(12):
        fake = loud_and_telling(24, between=True, seed=seed, n_telling=0)
        ask = {"rules": ["contrast", "maximum", "random"], "k": [3], "repeats": 1, "n_null": 40, "folds": 4}
        found = choosing(fake, NUMBER, region="noun", settings=ask, seed=seed)
        rules = found["stat"] == "accuracy"
        chance.append(found["p_corr"][rules].min() <= 0.05)
        differ.append(found["p_corr"][~rules].min() <= 0.05)
        accuracy.append(found["value"][rules].mean())
    assert sum(chance) <= 3
    assert sum(differ) <= 3
    assert abs(np.mean(accuracy) - 0.5) < 0.06


def test_choosing_on_all_items_would_predict_noise():
    """The choice inside folds is what keeps noise at chance: made on all items, the same classifier 'predicts' it."""
    rng = np.random.default_rng(0)
    right = {"inside": [], "outside": []}
    for _ in range(10):
        X, y = rng.standard_normal((30, 400)), np.where(np.arange(30) % 2, 1.0, -1.0)
        fold = rng.permutation(30) % 5
        for where, value in right.items():
            score = np.zeros(30)
            for q in range(5):
                rows = fold != q if where == "inside" else np.ones(30, dtype=bool)
                train = Training(X[rows], np.flatnonzero(rows), False, None)
                best = best_features(rule_scores("contrast", train, y[None, rows], seed=(0,)), 4)
                choice = (y[None, fold != q].copy(), best, np.array([4]))
                score[fold == q] = predict_many((X[fold != q], X[fold == q]), choice, 1.0)[0, 0]
            value.append((np.sign(score) == y).mean())
    assert abs(np.mean(right["inside"]) - 0.5) < 0.08
    assert np.mean(right["outside"]) > 0.65


def test_logistic_agrees_with_sklearn():
    """Coefficients and intercept of saga, l1, C = 1 / penalty."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 5))
    y = np.where(X[:, 0] - X[:, 1] + rng.standard_normal(40) > 0.3, 1.0, -1.0)
    for penalty in (0.3, 2.0):
        peer = LogisticRegression(
            l1_ratio=1, C=1 / penalty, solver="saga", class_weight="balanced", tol=1e-9, max_iter=100_000
        ).fit(X, y)
        assert_allclose(fit_logistic(X, y, penalty), [*peer.coef_[0], peer.intercept_[0]], atol=2e-4)


def test_course_rules_are_the_double_loop():
    """Discriminative and categorical similarity: mean correlations of token courses over pairs of texts."""
    rng = np.random.default_rng(2)
    courses = rng.standard_normal((9, 5, 3)).clip(0)
    courses[4, :, 1] = 0.0  # a text in which the feature never moves has no correlation
    y = np.array([1.0, 1, 1, 1, -1, -1, -1, -1, -1])
    train = Training(courses.mean(axis=1), np.arange(9), False, courses)
    pairs = [(i, k) for i in range(9) for k in range(i)]
    for j in range(3):
        r = {
            p: np.corrcoef(courses[p[0], :, j], courses[p[1], :, j])[0, 1]
            for p in pairs
            if all(np.ptp(courses[i, :, j]) > 0 for i in p)
        }
        inside, across = (np.mean([v for (i, k), v in r.items() if (y[i] == y[k]) == same]) for same in (True, False))
        plus, minus = (np.mean([v for (i, k), v in r.items() if y[i] == y[k] == side]) for side in (1, -1))
        assert_allclose(rule_scores("discriminative_rsa", train, y[None], seed=(0,))[0, j], inside - across)
        assert_allclose(rule_scores("categorical_rsa", train, y[None], seed=(0,))[0, j], plus - minus)


def test_single_values_are_compared_by_squared_differences():
    """One value per text: minus the squared difference over the variance, pair by pair."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((8, 2)), np.array([1.0, -1, 1, -1, 1, -1, 1, 1])
    found = rule_scores("discriminative_rsa", Training(X, np.arange(8), False, None), y[None], seed=(0,))[0]
    pairs = [(i, k) for i in range(8) for k in range(i)]
    for j in range(2):
        like = {p: -((X[p[0], j] - X[p[1], j]) ** 2) / X[:, j].var() for p in pairs}
        inside = np.mean([v for (i, k), v in like.items() if y[i] == y[k]])
        across = np.mean([v for (i, k), v in like.items() if y[i] != y[k]])
        assert_allclose(found[j], inside - across)


def test_rules_under_relabelling_are_those_of_relabelled_data():
    """Many labellings at once give what each gives alone; paired differences turn with their items."""
    rng = np.random.default_rng(4)
    X, unit = rng.standard_normal((12, 6)), np.repeat(np.arange(6), 2)
    y = np.tile([1.0, -1.0], 6)
    Y = np.stack([y, np.where(np.isin(unit, [0, 3]), -y, y)])
    train = Training(X, unit, True, None)
    for rule in ("contrast", "discriminative_rsa", "categorical_rsa"):
        both = rule_scores(rule, train, Y, seed=(0,))
        assert_allclose(both[1], rule_scores(rule, train, Y[1:], seed=(0,))[0])


def test_selectivity_prefers_rare_and_strong_features():
    """A feature weakly on everywhere and strong once, one strong once and else silent, one always on."""
    X = np.full((20, 3), 0.1)
    X[:, 1], X[:, 2] = 0.0, 5.0 + 0.1 * np.arange(20)
    X[0, :2] = 6.0
    scores = rule_scores("selectivity", Training(X, np.arange(20), False, None), np.ones((1, 20)), seed=(0,))[0]
    assert scores.argsort().tolist() == [2, 0, 1]


def test_flip_t_agrees_with_scipy():
    """Student's t of every column."""
    from scipy import stats

    D = np.random.default_rng(5).standard_normal((15, 4)) + 0.3
    assert_allclose(flip_t(D, np.ones((1, 15)))[0], stats.ttest_1samp(D, 0).statistic, rtol=1e-9)


def test_several_tokens_become_courses():
    """With all tokens kept, a row's value is the mean over the tokens that all texts have, and its course is kept."""
    import pandas as pd

    from neurosae.spec.blocks import Inference
    from neurosae.stats.choosing import ChoosingBlock, Question, rows_to_predict

    fake = simulate(example_design(16, between=True), n_features=12, density=0.5, seed=1)
    obs, X, parts = fake.obs.reset_index(drop=True), fake.X.toarray(), []
    for position in (-3, -2, -1, 0):
        there = obs if position > -3 else obs.iloc[:5]  # some texts are too short
        parts.append(there.assign(position=np.int32(position), token_index=there["token_index"] + position + 10))
    long = pd.concat(parts, ignore_index=True)
    values = np.concatenate([X[:5] * 9, X * 3, X * 2, X])
    several = responses_of(
        sp.csr_matrix(values), long, fake.var, design=example_design(16, between=True), provenance={}
    )
    ask = ChoosingBlock.model_validate({"test": "choosing", "region": "noun", "effect": "number"})
    rows = rows_to_predict(Question("c", ask, "number", NUMBER, Inference(), 1), several, "noun")
    assert rows.courses.shape == (16, 3, 12)
    assert_allclose(rows.X, rows.courses.mean(axis=1))
    assert_allclose(rows.courses[:, 0], 3 * rows.courses[:, 2], rtol=1e-5)  # tokens in the order of the text
    found = choosing(several, NUMBER, region="noun", settings={"rules": ["contrast"], "k": [2], **FEW}, seed=1)
    assert set(found["x_n_tokens"]) == {3}


def test_choosing_is_the_same_twice_and_for_other_units():
    """Same seed, same numbers; a site in other units predicts as well."""
    fake = loud_and_telling(24, between=True, seed=3)
    other = fake.copy()
    other.X = fake.X * np.float32(8.0)
    ask = {"rules": ["contrast", "maximum"], **FEW}
    one, two = (choosing({"s": f}, NUMBER, region="noun", settings=ask, seed=2) for f in (fake, other))
    assert_allclose(one["value"], two["value"])
    assert one.equals(choosing({"s": fake}, NUMBER, region="noun", settings=ask, seed=2))


def test_choosing_refuses_interactions_and_too_few_items():
    """The message says what would do."""
    fake = loud_and_telling(8, between=True, seed=0)
    with pytest.raises(DataError, match="use fewer folds"):
        choosing(fake, NUMBER, region="noun", settings=FEW, seed=1)
    with pytest.raises(SpecError, match="n_null"):
        choosing(fake, NUMBER, region="noun", settings={"n_null": 3}, seed=1)


def test_a_difference_must_exceed_those_of_relabelled_effects():
    """Items that all differ alike convince flips; where relabelled effects give larger differences, p says so."""
    from neurosae.spec.blocks import Inference
    from neurosae.stats.choosing import ChoosingBlock, Question, Scored, _comparisons, rows_to_predict

    fake = loud_and_telling(24, between=True, seed=1)
    ask = ChoosingBlock.model_validate(
        {"test": "choosing", "region": "noun", "effect": "number", "rules": ["contrast", "random"]}
    )
    asked = Question("c", ask, "number", NUMBER, Inference(n_permutations=500), 1)
    rows = rows_to_predict(asked, fake, "noun")
    rng = np.random.default_rng(0)
    accuracy = {
        "contrast": 0.7 + 0.01 * rng.standard_normal((24, 1)),
        "random": 0.5 + 0.01 * rng.standard_normal((24, 1)),
    }
    for size, found in ((0.5, False), (0.01, True)):
        nulls = {"contrast": size * rng.standard_normal(100), "random": np.zeros(100)}
        nulls["contrast"][0] = 0.2
        made = {("s", "noun", r): Scored(a, np.zeros(1), np.zeros(60), nulls[r]) for r, a in accuracy.items()}
        (row,) = _comparisons(asked, made, {("s", "noun"): rows})
        assert (row["p_corr"] <= 0.05) == found
        assert (row["p_unc"] <= 0.05) == found
