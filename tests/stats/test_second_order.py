"""Second-order geometry: CKA by its definition, planted likeness, intervals, and refusals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError, SpecError
from neurosae.stats.rdm_compare import compare_rdms, condensed_to_square
from neurosae.stats.relabel_conditions import orders
from neurosae.stats.rsa import rdms
from neurosae.stats.second_order import cka, second_order
from neurosae.stats.simulate import simulate
from tests.stats.test_rsa import crossed, nested

FAST = {"n_permutations": 300}
FEW = {"n_bootstrap": 60}


def normal(n: int, m: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, m))


def test_cka_agrees_with_its_definition():
    """Plain: HSIC of centred features; debiased: Song's unbiased estimator, written out."""
    X, Y = normal(14, 6, 1), normal(14, 9, 2)
    a, b = X - X.mean(0), Y - Y.mean(0)
    plain = ((a.T @ b) ** 2).sum() / np.sqrt(((a.T @ a) ** 2).sum() * ((b.T @ b) ** 2).sum())
    assert_allclose(cka(X @ X.T, Y @ Y.T), plain)

    def hsic(G, H):
        n = len(G)
        K, L = G - np.diag(np.diag(G)), H - np.diag(np.diag(H))
        one = np.ones(n)
        rest = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one
        return (np.trace(K @ L) + rest) / (n * (n - 3))

    G, H = X @ X.T, Y @ Y.T
    assert_allclose(cka(G, H, debiased=True), hsic(G, H) / np.sqrt(hsic(G, G) * hsic(H, H)))


def test_debiased_cka_of_unrelated_patterns_is_zero_on_average():
    """Where plain CKA grows with the number of features, the debiased one stays at 0 within 4 s.e."""
    pairs = [(normal(12, 200, 2 * s), normal(12, 200, 2 * s + 1)) for s in range(100)]
    plain = [cka(X @ X.T, Y @ Y.T) for X, Y in pairs]
    free = [cka(X @ X.T, Y @ Y.T, debiased=True) for X, Y in pairs]
    assert np.mean(plain) > 0.8
    assert abs(np.mean(free)) < 4 * np.std(free) / 10


@pytest.fixture(scope="module")
def sites():
    """Two sites with the same planted factor and other features, and one where the other factor is planted."""
    design = crossed()
    common = {"n_features": 150, "density": 0.4, "regions": ("everything",)}
    return {
        "one": simulate(design, effects={"a": 40}, seed=1, **common),
        "two": simulate(design, effects={"a": 40}, seed=2, **common),
        "other": simulate(design, effects={"b": 40}, seed=3, **common),
    }


def test_second_order_recovers_which_sites_are_alike(sites):
    """Sites that share a factor agree, others do not; the interval tells the two apart."""
    found = second_order(sites, conditions=["a", "b"], region="everything", inference=FAST, settings=FEW, seed=1)
    table = found.set_index(["effect", "stat"])
    alike, unlike = table.loc["one ~ two"], table.loc["one ~ other"]
    assert alike.value["cosine_cov"] > 0.8 > unlike.value["cosine_cov"]
    assert alike.ci_low["cosine_cov"] > unlike.ci_high["cosine_cov"]
    assert (found.ci_low.dropna() <= found.value[found.ci_low.notna()]).all()
    assert found.p_unc.isna().eq(~found.stat.str.startswith("cka")).all()
    without = found[found.p_unc.isna()]
    assert without.note.str.contains("No p: 4 labels have too few permutations; at least 8").all()
    assert (without.p_method == "none").all()
    assert len(found) == 3 * 4


def test_second_order_finds_shared_items_and_only_those(sites):
    """CKA: items shared between two sites are found; items shuffled at one of them are not."""
    one = sites["one"]
    copy = one.copy()
    names = [f"i{k}" for k in np.random.default_rng(0).permutation(16)]
    rename = dict(zip([f"i{k}" for k in range(16)], names, strict=True))
    copy.obs["item"] = copy.obs["item"].astype(str).map(rename)
    both = {"one": one, "same": one, "moved": copy}
    ask = {"conditions": ["a", "b"], "region": "everything", "inference": FAST, "seed": 2}
    found = second_order(both, settings={**FEW, "measures": ["cka_debiased"]}, **ask).set_index("effect")
    assert found.p_corr["one ~ same"] <= 0.01
    assert found.p_corr["one ~ moved"] > 0.05


def test_every_pair_of_places_has_its_own_cka():
    """Two sites by two regions: pairs of one name (near ~ far at both sites) are different pairs."""
    design = crossed()
    places = {
        name: simulate(design, n_features=60, density=0.4, regions=("u", "w"), seed=seed)
        for seed, name in enumerate(("one", "two"), 4)
    }
    asked = {"conditions": ["a", "b"], "region": ["u", "w"], "seed": 1, "inference": FAST}
    rows = second_order(places, **asked, settings={**FEW, "measures": ["cka"]})
    assert len(rows) == rows["n_family"].iloc[0] == 6
    assert not rows.duplicated(["effect", "site", "region"]).any()
    for _, row in rows.iterrows():
        alone = [names.split()[:2] for names in (row["x_first"], row["x_second"])]
        if alone[0][0] != alone[1][0]:
            continue
        one = second_order({row["site"]: places[row["site"]]}, **asked, settings={**FEW, "measures": ["cka"]})
        assert_allclose(row["value"], one["value"].iloc[0])


def test_second_order_controls_its_error_over_pairs():
    """Unrelated items at three sites, 25 data sets: the corrected p of CKA rejects in its 99.9 % band."""
    rejected = 0
    for seed in range(25):
        data = {
            str(k): simulate(crossed(8), n_features=30, density=0.6, seed=10 * seed + k, regions=("everything",))
            for k in range(3)
        }
        ask = {"inference": {"n_permutations": 60, "min_informative": 2}, "settings": {"measures": ["cka"]}}
        found = second_order(data, conditions=["a", "b"], region="everything", seed=seed, **ask)
        rejected += found.p_corr.min() <= 0.05
    assert rejected <= 5


def test_second_order_takes_nested_items_and_sites_that_lack_items(sites):
    """Items are permuted inside their conditions; what both sites have is compared, and the row says so."""
    lists = {n: simulate(nested(), n_features=150, effects={"a": 40}, density=0.3, seed=k) for k, n in enumerate("pq")}
    found = second_order(lists, conditions=["a", "b"], region="everything", inference=FAST, settings=FEW, seed=1)
    assert (found.status == "ok").all()
    few = sites["two"][~sites["two"].obs["item"].isin(["i0", "i5"]).to_numpy()].copy()
    part = second_order({"one": sites["one"], "few": few}, conditions=["a", "b"], region="everything",
                        inference=FAST, settings=FEW, seed=1)  # fmt: skip
    assert (part.n_units == 14).all()
    assert part.note.str.contains("14 items that both places have").all()


# ------------------------------------------------------------------ permuted conditions


def lists(seed: int, **changes):
    """16 words in lists; sites of other seeds share the planted categories of a and nothing else."""
    given = {"n_features": 60, "density": 0.5, "seed": seed, "regions": ("everything",), **changes}
    return simulate(nested(4), **given)


WORDS = {"conditions": ["item"], "region": "everything", "inference": {"n_permutations": 99}}
ONE = {"distance": "euclidean", "measures": ["corr_cov"]}


def test_permuted_conditions_agree_with_a_loop():
    """p is the share of permuted second RDMs that agree as much with the first; x_z is in its standard deviations."""
    sites = {"one": lists(1, effects={"a": 6}), "two": lists(2, effects={"a": 6})}
    asked = {"distance": "euclidean", "measures": ["rho-a", "cosine_cov", "corr"]}
    found = second_order(sites, **WORDS, settings=asked, seed=5).set_index("stat")
    first, second = (
        rdms(one, conditions=["item"], region="everything", settings={"distance": "euclidean",
             "p_from": "condition_labels"})["simulated", "everything", 0].dissimilarities[0]
        for one in sites.values()
    )  # fmt: skip
    drawn, square = orders(16, 0, 99, blocks=np.zeros(16, dtype=int), seed=5), condensed_to_square(second)
    upper = np.triu_indices(16, 1)
    for measure in asked["measures"]:
        null = np.array([compare_rdms(first, square[np.ix_(o, o)][upper], measure) for o in drawn])
        assert_allclose(found.value[measure], null[0], rtol=1e-6)
        assert_allclose(found.p_unc[measure], (null >= null[0] - 1e-7).mean())
        assert_allclose(found.x_z[measure], (null[0] - null.mean()) / null.std(), rtol=1e-3)
        assert found.p_min[measure] == 1 / 99
        assert found.n_units[measure] == 16
        assert found.unit[measure] == "item"
        assert "labels of 16 items are permuted, at the second place" in found.note[measure]


def test_the_maximum_runs_over_all_pairs():
    """p_corr is the share of largest standardised agreements over the three pairs, whose second places move alike."""
    sites = {name: lists(seed) for seed, name in enumerate(("one", "two", "three"), 11)}
    found = second_order(sites, **WORDS, settings=ONE, seed=2)
    asked = {"settings": {"distance": "euclidean", "p_from": "condition_labels"}}
    vectors = {
        name: next(iter(rdms({name: one}, conditions=["item"], region="everything", **asked).values()))
        .dissimilarities[0] for name, one in sites.items()
    }  # fmt: skip
    drawn, upper = orders(16, 0, 99, blocks=np.zeros(16, dtype=int), seed=2), np.triu_indices(16, 1)
    z = []
    for first, second in combinations(sites, 2):
        square = condensed_to_square(vectors[second])
        null = [compare_rdms(vectors[first], square[np.ix_(o, o)][upper], "corr_cov") for o in drawn]
        z.append((null - np.mean(null)) / np.std(null))
    top = np.max(z, axis=0)
    assert found.effect.tolist() == ["one ~ two", "one ~ three", "two ~ three"]
    assert_allclose(found.p_corr, [(top >= one[0] - 1e-5).mean() for one in z])
    assert (found.n_family == 3).all()


def test_permuted_conditions_recover_what_sites_share_and_blocks_take_it_out():
    """Shared categories are found; with the labels moving inside the categories they are what H0 keeps."""
    sites = {"one": lists(1, effects={"a": 40}), "two": lists(2, effects={"a": 40})}
    free = second_order(sites, **WORDS, settings=ONE, seed=1).iloc[0]
    assert free.p_corr <= 0.02
    inside = second_order(sites, **WORDS, settings={**ONE, "blocks": ["a"]}, seed=1).iloc[0]
    assert inside.value == free.value
    assert inside.p_corr > 0.05
    assert "inside equal a" in inside.note


def test_permuting_both_places_alike_changes_nothing():
    """Renaming the items of all sites in one way leaves every agreement as it is."""
    sites = {name: lists(seed, effects={"a": 40}) for seed, name in enumerate(("one", "two"))}
    names = sites["one"].obs["item"].astype(str).tolist()
    moved = dict(zip(names, np.random.default_rng(0).permutation(names), strict=True))
    other = {name: one.copy() for name, one in sites.items()}
    for one in other.values():
        one.obs["item"] = one.obs["item"].astype(str).map(moved)
    asked = {**ONE, "measures": ["rho-a", "cka"]}
    before, after = (second_order(s, **WORDS, settings=asked, seed=1).value for s in (sites, other))
    assert_allclose(before, after, rtol=1e-9)


@pytest.mark.parametrize("alike", [False, True])
def test_permuted_conditions_control_their_error_over_pairs(alike):
    """No pair is related, or the first two are copies: corrected p of the unrelated pairs stay in their 99.9 % band."""
    rejected = {"corr_cov": 0, "cka": 0}
    for seed in range(40):
        first = lists(3 * seed, n_features=30)
        second = first.copy() if alike else lists(3 * seed + 1, n_features=30)
        sites = {"one": first, "two": second, "three": lists(3 * seed + 2, n_features=30)}
        found = second_order(sites, **WORDS, settings={**ONE, "measures": list(rejected)}, seed=seed)
        unrelated = found[found.effect != "one ~ two"] if alike else found
        for measure, rows in unrelated.groupby("stat"):
            rejected[measure] += rows.p_corr.min() <= 0.05
        if alike:
            assert (found.p_corr[found.effect == "one ~ two"] <= 0.02).all()
    assert max(rejected.values()) <= stats.binom.ppf(0.999, 40, 0.05)


def test_a_pair_that_cannot_be_permuted_says_why():
    """tau-a has no fast permutations; blocks of two admit too few."""
    sites = {"one": lists(1), "two": lists(2)}
    rows = second_order(sites, **WORDS, settings={**ONE, "measures": ["tau-a"]}, seed=1)
    assert "use rho-a" in rows.note.iloc[0]
    small = {name: simulate(nested(2), n_features=60, density=0.9, seed=k, regions=("everything",))
             for k, name in enumerate(("one", "two"))}  # fmt: skip
    settings = {**ONE, "measures": ["corr_cov", "cka"], "blocks": ["a", "b"]}
    rows = second_order(small, **WORDS, settings=settings, seed=1).set_index("stat")
    assert rows.p_unc.isna().all()
    assert "the blocks admit 16 permutations" in rows.note["corr_cov"]
    assert "8 items allow 16 permutations" in rows.note["cka"]


def test_second_order_refuses(sites):
    """One place has nothing to be compared with; unknown measures and settings are named."""
    ask = {"conditions": ["a", "b"], "region": "everything", "seed": 1}
    with pytest.raises(DataError, match="there is one"):
        second_order(sites["one"], **ask)
    with pytest.raises(SpecError, match="unknown measure 'ckaa'"):
        second_order(sites, settings={"measures": ["ckaa"]}, **ask)
