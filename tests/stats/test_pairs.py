"""Pairs of features: against contrasts of dense products, one maximum over all of them, and nobody dropped."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of
from neurosae.spec.design import Design
from neurosae.stats import pairs as pairs_module
from neurosae.stats.contrast import contrast
from neurosae.stats.pairs import SCREEN, pairs
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.tails import flip_p

NUMBER = {"number": {"pl": 1, "sg": -1}}


def two_by_two(n_items: int = 20) -> Design:
    words = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(n_items)}
    return Design.model_validate({
        "schema": "neurosae/design/1", "name": "two", "factors": {"a": ["x", "y"], "b": ["x", "y"]},
        "frames": {"f": "{u:a} {w:b} here", "g": "so {u:a} {w:b} there"},
        "regions": {"end": {"words": [-1, -1]}}, "items": words,
    })  # fmt: skip


def fake(n_items: int = 20, *, seed: int = 0, m: int = 25, **options):
    return simulate(two_by_two(n_items), n_features=m, density=0.4, regions=("end",), seed=seed, **options)


INTERACTION = {"a": {"x": -1, "y": 1}, "b": {"x": -1, "y": 1}}


def dense(adata, pair: tuple[int, int]) -> np.ndarray:
    """Difference of differences of the product, item by item, frames averaged, from a plain loop."""
    obs, X = adata.obs, adata.X.toarray().astype(float)
    product = X[:, pair[0]] * X[:, pair[1]]
    out = []
    for item in dict.fromkeys(obs["item"]):
        rows = (obs["item"] == item).to_numpy()
        cell = {c: product[rows & (obs["a"] == c[0]).to_numpy() & (obs["b"] == c[1]).to_numpy()].mean()
                for c in ("xx", "xy", "yx", "yy")}  # fmt: skip
        out.append(cell["xx"] - cell["xy"] - cell["yx"] + cell["yy"])
    return np.array(out)


def test_pairs_agree_with_dense_products():
    """Estimate, t, exact p and the maximum over all pairs, from dense columns; each pair is there exactly once."""
    adata = fake()
    how = {"statistic": "t", "n_permutations": 999}
    found = pairs(adata, INTERACTION, region="end", inference=how, seed=1)
    rows = found[found["x_first"].notna()]
    fires = adata.X.toarray() > 0
    together = np.triu(fires.T.astype(int) @ fires, 1)
    D = {(f, g): dense(adata, (f, g)) for f, g in np.argwhere(together >= 6).tolist()}
    D = {pair: d for pair, d in D.items() if (np.abs(d) > 1e-9).sum() >= 6}
    assert {(int(f), int(g)) for f, g in zip(rows["x_first"], rows["x_second"], strict=True)} == set(D)
    import scipy.sparse as sp

    stacked = np.column_stack([D[f, g] for f, g in zip(rows["x_first"], rows["x_second"], strict=True)])
    stacked[np.abs(stacked) < 1e-9] = 0
    assert_allclose(rows["estimate"], stacked.mean(axis=0), rtol=1e-5, atol=1e-9)
    assert_allclose(rows["value"], scipy.stats.ttest_1samp(stacked, 0).statistic, rtol=1e-5, atol=1e-6)
    assert_allclose(rows["p_unc"], flip_p(sp.csc_matrix(stacked))[0], rtol=1e-3)
    # the same flips, one maximum over all pairs
    from neurosae.stats.relabel import flips, signs

    S = signs(flips(np.arange(20), 999, seed=1))
    n, q = 20, (stacked**2).sum(axis=0)
    r = np.abs(S @ stacked) / np.sqrt(n * q)
    expected = (r.max(axis=1)[:, None] >= r[0] - 1e-6).mean(axis=0)
    assert_allclose(rows["p_corr"], expected, atol=0.0025)


def test_pairs_speak_for_every_pair(monkeypatch):
    """Found, shown, counted, untestable and silent pairs add up to m (m - 1) / 2; the rest row bounds what it hides."""
    adata = fake(m=40, seed=3)
    full = pairs(adata, INTERACTION, region="end", seed=1)
    monkeypatch.setattr(pairs_module, "SHOWN", 30)
    short = pairs(adata, INTERACTION, region="end", seed=1)
    for table in (full, short):
        assert table["n_features"].sum() == 40 * 39 // 2
        assert table["note"].str.contains(SCREEN, regex=False).all()
    rest = short[short["set"] == "other tested pairs"].iloc[0]
    hidden = full[full["x_first"].notna() & ~full["set"].isin(short["set"])]
    assert rest["n_features"] == len(hidden)
    assert rest["status"] == "ok"
    assert_allclose([abs(rest["value"]), rest["p_corr"]], [hidden["value"].abs().max(), hidden["p_corr"].min()])
    assert (short["x_first"].notna().sum()) == 30 + (full["p_corr"] <= 0.05).sum()


def test_pairs_filters_are_invariant_under_relabelling():
    """Swapping the cells inside items moves no pair in or out of the tested ones."""
    adata = simulate(example_design(16), n_features=30, density=0.3, seed=2)
    swapped = adata.copy()
    rows = np.arange(adata.n_obs).reshape(-1, 2)
    rows[::2] = rows[::2, ::-1]
    moved = build_responses(adata.X[rows.ravel()], adata.obs, adata.var, design=design_of(adata), provenance={})
    one, two = (pairs(a, NUMBER, region="noun", seed=1) for a in (swapped, moved))
    assert set(one["set"]) == set(two["set"])
    assert one["n_family"].iloc[0] == two["n_family"].iloc[0]


def test_pairs_share_their_flips_with_single_features():
    """A feature that is 1 wherever its partner fires: the pair's p is the partner's own p, from the same flips."""
    adata = simulate(example_design(20), n_features=6, density=0.5, seed=5)
    X = adata.X.toarray()
    X[:, 0] = 1.0
    made = build_responses(X, adata.obs, adata.var, design=design_of(adata), provenance={})
    how = {"statistic": "t", "correction": "none"}
    alone = contrast(made, NUMBER, region="noun", inference=how, seed=3).set_index("feature")
    both = pairs(made, NUMBER, region="noun", inference=how, seed=3).set_index("set")
    assert_allclose([both.loc[f"0 x {g}", "value"] for g in range(1, 6)], alone.loc[1:5, "value"], rtol=1e-6)
    assert_allclose([both.loc[f"0 x {g}", "p_unc"] for g in range(1, 6)], alone.loc[1:5, "p_unc"], rtol=1e-9)


def test_pairs_control_familywise_error():
    """Nothing there, 40 sets: any pair found in at most as many sets as the binomial 99.9 % bound allows."""
    any_found = 0
    for seed in range(40):
        found = pairs(
            fake(16, m=15, seed=seed), INTERACTION, region="end", inference={"n_permutations": 200}, seed=seed
        )
        any_found += bool((found["p_corr"] <= 0.05).any())
    assert any_found <= scipy.stats.binom.ppf(0.9995, 40, 0.05)


def test_pairs_recover_planted_pairs():
    """Two features that both follow a factor fire together more often in its + cells."""
    found = pairs(fake(24, effects={"a": 3}, shift=4.0, seed=1), {"a": {"x": -1, "y": 1}}, region="end", seed=1)
    assert {"0 x 1", "0 x 2", "1 x 2"} <= set(found[found["p_corr"] <= 0.05]["set"])


def test_pairs_refuse_a_single_shared_stimulus():
    """One stimulus is no pair that fires together."""
    with pytest.raises(DataError, match="at least 2 stimuli"):
        pairs(fake(), INTERACTION, region="end", least=1, seed=0)


def test_pairs_of_levels_that_change_places_agree_with_the_dense_products():
    """A contrast without mirror image and all levels: the p of each pair is that of its product as a single feature.

    A pair whose contrast is 0 in the data but not under relabelling is tested: the filter counts items whose levels
    differ, which no exchange of levels changes.
    """
    levels = ["low", "mid", "high"]
    words = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(10)}
    factors, frames = {"dose": {"levels": levels, "values": {"low": 0, "mid": 1, "high": 2}}}, {"f": "It {w:dose} was"}
    parts = {"schema": "neurosae/design/1", "name": "dose", "factors": factors, "frames": frames, "items": words}
    adata = simulate(Design.model_validate(parts), n_features=5, density=0.8, seed=3)
    X = adata.X.toarray()
    level = adata.obs["dose"].astype(str).to_numpy()
    X[:, 0] = 1.0
    X[:, 1] = np.select([level == "low", level == "mid"], [2.0, 2.0], 2.0) + (level == "low") - (level == "high")
    adata.X = sp.csr_matrix(X)
    first, second = np.triu_indices(5, 1)
    products = build_responses(
        sp.csr_matrix(X[:, first] * X[:, second]), adata.obs,
        adata.var.iloc[np.zeros(10, int)].assign(feature=np.arange(10)).set_index(np.arange(10).astype(str)),
        design=design_of(adata), provenance={},
    )  # fmt: skip
    region, how = str(adata.obs["region"].iloc[0]), {"statistic": "t", "n_permutations": 500}
    for effect in ({"dose": {"low": -1, "mid": 2, "high": -1}}, {"dose": "all"}):
        found = pairs(adata, effect, region=region, inference=how, seed=1)
        single = contrast({"s": products}, effect, region=region, inference=how, seed=1)
        assert set(found["p_method"].dropna()) == {"permutations"}
        rows = found[found["x_first"].notna()]
        names = [f"{a} x {b}" for a, b in zip(first, second, strict=True)]
        known = single[single["feature"].notna()].set_index("feature")["p_corr"].rename(index=dict(enumerate(names)))
        assert len(rows) == 10
        assert_allclose(rows.set_index("set")["p_corr"], known.loc[rows["set"]], rtol=1e-12)
