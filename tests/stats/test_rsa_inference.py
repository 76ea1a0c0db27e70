"""RSA beyond flips: items as conditions, labels, bootstraps, fitted models, models of all kinds, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.stats.rdm_compare import compare_rdms
from neurosae.stats.rdm_fit import cross_validate, fit_weights
from neurosae.stats.rsa import model_rdms, rdms, rsa
from neurosae.stats.simulate import simulate
from tests.stats.test_rsa import A, B, crossed

FAST = {"n_permutations": 400, "min_informative": 3}
PLAIN = {"distance": "euclidean", "compare": "corr_cov", "p_from": "condition_labels"}


def lists(n_items: int = 8, name: str = "words") -> Design:
    """Words of two categories, each with a frequency: items are conditions."""
    rows = {c: [{"text": f"{c} {'long ' * (k % 3)}word{k}", "freq": float(k)} for k in range(n_items)] for c in "xy"}
    return Design.model_validate({
        "schema": "neurosae/design/1", "name": name, "factors": {"cat": {"levels": ["x", "y"], "varies": "between"}},
        "covariates": ["freq"], "lists": rows, "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip


@pytest.fixture(scope="module")
def words():
    """16 words; 30 of 150 features respond to the category, and their strength grows with frequency."""
    data = simulate(lists(), n_features=150, effects={"cat": 30}, density=0.6, seed=1)
    return data


def answer(data, models, **changes) -> pd.DataFrame:
    given = {"conditions": ["item"], "region": "everything", "inference": FAST, "settings": PLAIN, "seed": 3}
    return rsa(data, models=models, **{**given, **changes}).set_index("effect")


def test_items_as_conditions_recover_the_category(words):
    """16 words are 16 conditions; the category's model is found by permuting words, frequency is not."""
    models = {"cat": {"cat": {"x": -1, "y": 1}}, "freq": {"column": "freq"}}
    found = answer(words, models)
    assert found.p_corr["cat"] <= 0.01 < 0.05 < found.p_corr["freq"]
    assert (found.unit == "item").all()
    assert (found.n_units == 16).all()
    assert found.note.str.contains("Items are conditions").all()
    rdm = rdms(words, conditions=["item"], region="everything", settings={**PLAIN}, inference=FAST)
    (one,) = rdm.values()
    assert one.pattern_descriptors["condition"][:2] == ["x.1", "x.2"]


def test_labels_stay_inside_blocks(words):
    """Inside categories every permutation leaves the category's model as it is, so p = 1; frequency has its p."""
    models = {"freq": {"column": "freq"}}
    found = answer(words, models, settings={**PLAIN, "blocks": "cat"})
    assert found.p_unc["freq"] <= 1
    same = answer(words, {"cat": {"cat": {"x": -1, "y": 1}}}, settings={**PLAIN, "blocks": "cat"})
    assert same.p_unc["cat"] == 1  # every admissible permutation gives the same fit


def test_label_permutation_controls_its_error_over_sites():
    """Words without geometry at 3 sites, 40 data sets: rejections stay inside the 99.9 % band."""
    rejected = 0
    for seed in range(40):
        data = {str(k): simulate(lists(5), n_features=25, density=0.7, seed=100 * seed + k) for k in range(2)}
        found = answer(data, {"freq": {"column": "freq"}}, seed=seed,
                       inference={"n_permutations": 99, "min_informative": 2})  # fmt: skip
        rejected += found.p_corr.min() <= 0.05
    assert rejected <= 7


def test_nuisance_is_regressed_out_of_labels(words):
    """A model that is the nuisance again has nothing left; the test says that it is approximate."""
    cat = {"cat": {"x": -1, "y": 1}}
    models = {"cat": cat, "freq": {"column": "freq"}, "length": {"column": "n_tokens", "nuisance": True}}
    found = answer(words, models)
    assert "approximate" in found.p_method["cat"]
    assert found.p_unc.isna()["length"]
    assert np.isfinite(found.x_partial["cat"])
    again = answer(words, {"f": {"column": "freq"}, "again": {"column": "freq", "nuisance": True}})
    assert "nothing is left" in again.note["f"]


def test_models_of_every_kind_are_built(words, tmp_path):
    """Edit distance of texts, another site, a matrix and norms agree with their parts; labels are checked."""
    labels = [f"{c}.{k}" for c in "xy" for k in range(1, 9)]
    rng = np.random.default_rng(0)
    square = pd.DataFrame(np.zeros((16, 16)), index=labels, columns=labels)
    i, j = np.triu_indices(16, 1)
    values = rng.random(120)
    square.values[i, j] = square.values[j, i] = values
    square.to_csv(tmp_path / "m.csv")
    pd.DataFrame({"item": labels, "valence": np.arange(16.0)}).to_csv(tmp_path / "n.csv", index=False)
    models = {"matrix": {"matrix": str(tmp_path / "m.csv")}, "norms": {"norms": str(tmp_path / "n.csv")},
              "texts": {"edit": "all"}, "other": {"site": "second"}}  # fmt: skip
    other = simulate(lists(), n_features=80, density=0.6, seed=9)
    both = {"first": words, "second": other}
    made = model_rdms(
        both, models=models, conditions=["item"], region="everything", settings={**PLAIN, "sites": ["first"]}
    )
    (found,) = ({m.name: m.rdm for m in row} for row in made.values())
    assert_allclose(found["matrix"], values)
    assert_allclose(found["norms"], j - i)
    assert found["texts"][0] > 0
    theirs = rdms(both, conditions=["item"], region="everything", settings=PLAIN)
    assert_allclose(found["other"], theirs["second", "everything", 0].dissimilarities[0])
    square.rename(index={"x.1": "x.one"}).to_csv(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"no row for condition 'x.1'"):
        answer(words, {"matrix": {"matrix": str(tmp_path / "m.csv")}})


def test_edit_models_compare_texts_within_items():
    """Crossed: 'p3 r3' against 'q3 r3' differ by one character in both frames; the other factor adds a word."""
    data = simulate(crossed(8), n_features=60, density=0.5, seed=0, regions=("everything",))
    made = model_rdms(data, models={"t": {"edit": "all"}}, conditions=["a", "b"], region="everything")
    ((model,),) = made.values()
    assert_allclose(model.rdm, [4, 1, 5, 5, 1, 4])


def test_fitted_models_are_evaluated_on_other_items():
    """A mixture of both planted factors beats each on other items; selection picks the right one; rsatoolbox agrees."""
    data = simulate(crossed(24), n_features=200, effects={"a": 30, "b": 30}, density=0.4, seed=5,
                    regions=("everything",))  # fmt: skip
    models = {"a": A, "b": B, "mix": {"weighted": ["a", "b"]}, "best": {"select": ["a", "b"]}}
    found = answer(data, models, conditions=["a", "b"], settings={}, inference={"n_permutations": 200})
    assert found.x_cv["mix"] > max(found.x_cv["a"], found.x_cv["b"])
    assert found.value["mix"] >= found.value[["a", "b"]].max()
    assert found.p_unc[["mix", "best"]].isna().all()
    assert found.note["mix"].startswith("Fitted from a, b")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["weighted", "select"])
def test_cross_validation_agrees_with_rsatoolbox(kind):
    """Weights from one half of the conditions and RDMs, fits on the other: rsatoolbox's on the same sets."""
    from rsatoolbox.inference import crossval
    from rsatoolbox.model import ModelSelect, ModelWeighted
    from rsatoolbox.model.fitter import fit_regress_nn, fit_select
    from rsatoolbox.rdm import RDMs

    rng = np.random.default_rng(0)
    models, base = rng.random((3, 66)), rng.random(66)
    data = base + 0.3 * rng.random((2, 66)) + models[1]
    groups = [np.arange(0, 12, 2), np.arange(1, 12, 2)]
    ours = cross_validate(data[:1], data[1:], models, compare="cosine", kind=kind, groups=groups)
    object_, fitter = (ModelWeighted, fit_regress_nn) if kind == "weighted" else (ModelSelect, fit_select)
    known = RDMs(data)
    train = [[known.subset("index", [0]).subset_pattern("index", g), g] for g in groups[::-1]]
    test = [[known.subset("index", [1]).subset_pattern("index", g), g] for g in groups]
    theirs = crossval([object_("m", models)], known, train, test, method="cosine", fitter=fitter, calc_noise_ceil=False)
    assert_allclose(ours, theirs.evaluations.mean(), rtol=1e-9)
    w = fit_weights(data, models, "cosine", kind=kind)
    assert (w >= 0).all()


def test_bootstrap_finds_the_category_over_item_groups():
    """8 conditions and 8 groups of items: the planted factor fits, another does not, pairs are compared."""
    three = {"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "y"]}
    items = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"},
                       "v": {"x": f"t{k}", "y": f"z{k}"}} for k in range(24)}  # fmt: skip
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "three", "factors": three, "items": items,
        "frames": {"f": "{u:a} {w:b} {v:c}"}, "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip
    data = simulate(design, n_features=150, effects={"a": 40}, density=0.4, seed=2, regions=("everything",))
    models = {name: {name: {"x": -1, "y": 1}} for name in three}
    ask = {
        "p_from": "bootstrap",
        "compare": "corr_cov",
        "n_bootstrap": 200,
        "differences": True,
        "margin": 0.2,
        "folds": 8,
    }
    found = answer(data, models, conditions=["a", "b", "c"], settings=ask)
    assert found.p_corr["a"] < 0.05 < found.p_corr["b"]
    assert found.p_corr["a - b"] < 0.05
    assert found.x_p_equivalent["b - c"] < found.x_p_equivalent["a - b"]
    assert (found.ci_low.dropna() < found.value[found.ci_low.notna()]).all()


def test_differences_over_items_tell_models_apart_and_refuse_unreliable_ranks():
    """The planted factor fits better than the other; without any effect nothing is ranked."""
    models = {"a": A, "b": B}
    ask = {"differences": True, "margin": 0.3, "n_bootstrap": 200}
    given = {"n_features": 200, "density": 0.3, "regions": ("everything",)}
    good = answer(simulate(crossed(), effects={"a": 40}, seed=1, **given), models, conditions=["a", "b"], settings=ask)
    pair = good.loc["a - b"]
    assert pair.p_corr < 0.01 < 0.05 < pair.x_p_equivalent
    assert_allclose(pair.value, good.value["a"] - good.value["b"])
    none = answer(simulate(crossed(), seed=4, **given), models, conditions=["a", "b"], settings=ask)
    assert none.status["a - b"] == "untestable"
    assert "not ranked" in none.note["a - b"]


def test_undefined_correlation_distances_have_a_status_of_their_own(words):
    """A word that activates nothing has no pattern to correlate: undefined, with the reason, and no number."""
    silent = words.copy()
    X = silent.X.toarray()
    X[(silent.obs["item"] == "x.1").to_numpy()] = 0
    import scipy.sparse as sp

    silent.X = sp.csr_matrix(X)
    row = answer(silent, {"freq": {"column": "freq"}}, settings={**PLAIN, "distance": "correlation"}).iloc[0]
    assert row.status == "undefined"
    assert "no variance over features" in row.note
    assert np.isnan(row.value)


def test_whitened_rows_show_the_plain_fit(words):
    """With a noise metric the fit without it stands beside it as sensitivity."""
    data = simulate(crossed(), n_features=150, effects={"a": 40}, density=0.4, seed=1, regions=("everything",))
    models = {"a": A}
    white = answer(data, models, conditions=["a", "b"], settings={"noise": "shrinkage_diag"})
    plain = answer(data, models, conditions=["a", "b"], settings={})
    assert_allclose(white.x_plain["a"], plain.value["a"], rtol=1e-9)
    assert white.value["a"] != plain.value["a"]


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        ({"a": A}, {"settings": {"p_from": "condition_labels"}}, "at least 8 conditions, not 4"),
        ({"a": A}, {"settings": {"p_from": "bootstrap"}}, "at least 8 conditions, not 4"),
        ({"a": A}, {"settings": {"compare": "spearman"}}, "spearman ranks 6 distances only"),
        ({"a": A}, {"settings": {"noise": "shrinkage_diag", "distance": "poisson"}}, "not of poisson"),
        ({"a": A, "m": {"weighted": ["a", "c"]}}, {}, "unknown fixed model of this test 'c'"),
        ({"a": A, "m": {"weighted": ["a"]}}, {}, "a fitted model needs two"),
        ({"a": {"column": "n_tokens", "by": "words"}}, {}, "has no meaning with column"),
        ({"a": {"column": "n_tokens", "edit": "all"}}, {}, "made of column and edit"),
        ({"a": A}, {"conditions": ["item"], "settings": {}}, "items are conditions; use condition_labels"),
        ({"a": A}, {"settings": {"margin": 0.1}}, "set differences: true"),
    ],
)
def test_rsa_refuses_what_cannot_be_answered(models, changes, message):
    """Few conditions, ranks of few distances, settings that contradict each other: each with the remedy."""
    data = simulate(crossed(8), n_features=60, density=0.5, seed=0, regions=("everything",))
    with pytest.raises((DataError, SpecError), match=message):
        answer(data, models, **{"conditions": ["a", "b"], "settings": {}, **changes})


def test_compare_of_a_rank_is_the_registered_one():
    """The comparator of a row is what compare_rdms computes (a guard against a silent swap)."""
    data = simulate(lists(), n_features=100, effects={"cat": 30}, density=0.6, seed=1)
    for compare in ("rho-a", "spearman"):
        ask = {**PLAIN, "compare": compare}
        found = answer(data, {"freq": {"column": "freq"}}, settings=ask)
        ((model,),) = model_rdms(data, models={"freq": {"column": "freq"}}, conditions=["item"], region="everything",
                                 settings=PLAIN).values()  # fmt: skip
        (rdm,) = rdms(data, conditions=["item"], region="everything", settings=PLAIN, inference=FAST).values()
        assert_allclose(found.value["freq"], compare_rdms(rdm.dissimilarities[0], model.rdm, compare))


# ------------------------------------------------------------------ items in some of the conditions


def grouped(n_first: int = 9, n_items: int = 16, **changes):
    """a within items, b between them, so that an item is in two of the four conditions."""
    items = {f"i{k}": {"u": {x: f"{x}{k}" for x in "xy"}, "b": "x" if k < n_first else "y"} for k in range(n_items)}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "mixed", "items": items, "frames": {"f": "{u:a} here"},
        "factors": {"a": ["x", "y"], "b": {"levels": ["x", "y"], "varies": "between"}},
        "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip
    return simulate(design, **{"n_features": 80, "density": 0.5, "regions": ("everything",), **changes})


EVERY = {"a": A, "b": B, "both": {**A, **B}}


def test_items_in_some_conditions_recover_each_effect_by_its_own_relabelling():
    """Flips inside items for a, labels of whole items for b, labels of differences for both; each says so."""
    fake = grouped(effects={"a": 20, "b": 20}, shift=5.0, seed=1)
    found = rsa(fake, models=EVERY, conditions=["a", "b"], region="everything", inference=FAST, seed=1)
    found = found.set_index("effect")
    assert (found.p_corr <= 0.05).to_dict() == {"a": True, "b": True, "both": False}
    assert found.p_method.to_dict() == {"a": "flips", "b": "permutations", "both": "permutations"}
    assert found.note.str.contains("nested in conditions").all()


def test_items_in_some_conditions_control_errors():
    """One factor is there, the other effects are not, groups have 5 and 9 items: 40 data sets stay in band."""
    wrong = {"a": 0, "b": 0, "both": 0}
    for seed in range(40):
        there = "ab"[seed % 2]
        fake = grouped(5, 14, n_features=30, effects={there: 12}, shift=4.0, seed=seed)
        found = rsa(fake, models=EVERY, conditions=["a", "b"], region="everything", seed=seed,
                    inference={"n_permutations": 99, "min_informative": 3}).set_index("effect")  # fmt: skip
        for name in wrong:
            wrong[name] += bool(found.p_unc[name] <= 0.05) and name != there
    assert wrong["both"] <= stats.binom.ppf(0.999, 40, 0.05)
    assert max(wrong["a"], wrong["b"]) <= stats.binom.ppf(0.999, 20, 0.05)


def test_labels_of_conditions_that_share_items_are_approximate_unless_blocks_hold_the_groups():
    """Conditions of one group share items; permuted over groups the row says so, inside groups it is exact."""
    factors = {"a": [f"a{k}" for k in range(5)], "b": {"levels": ["x", "y"], "varies": "between"}}
    items = {f"i{k}": {"u": {x: f"{x}{k}" for x in factors["a"]}, "b": "xy"[k % 2]} for k in range(12)}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "ten", "items": items, "frames": {"f": "{u:a} here"},
        "factors": factors, "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip
    fake = simulate(design, n_features=60, density=0.5, regions=("everything",), seed=1)
    asked = {"models": {"length": {"column": "n_tokens"}}, "conditions": ["a", "b"], "region": "everything", "seed": 1}
    fake.obs["n_tokens"] = np.arange(len(fake)) % 7
    settings = {"p_from": "condition_labels", "compare": "corr_cov"}
    free = rsa(fake, **asked, settings=settings, inference=FAST).iloc[0]
    assert free.p_method == "permutations (approximate)"
    assert "conditions of one group share items" in free.note
    inside = rsa(fake, **asked, settings={**settings, "blocks": ["b"]}, inference=FAST).iloc[0]
    assert inside.p_method == "permutations"
    assert "approximate" not in inside.note
