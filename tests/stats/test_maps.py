"""Maps over sites and positions: planted bumps, MNE, contrasts, error rates, invariances, missing cells, refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from neurosae.errors import DataError, NeurosaeError
from neurosae.spec.blocks import ContrastBlock, Inference, MapBlock
from neurosae.spec.design import Design
from neurosae.spec.results import stack
from neurosae.stats.contrast import contrast
from neurosae.stats.contrast import run as run_contrast
from neurosae.stats.family import Cell, Place
from neurosae.stats.heights import MAPS, Nodes, infer_map
from neurosae.stats.maps import effect_map, run, set_mean
from neurosae.stats.relabel import flips, signs
from neurosae.stats.simulate import example_design, features_table, responses_of, simulate
from neurosae.stats.tfce import clusters, grid, tfce
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
FEW = {"n_permutations": 600}


def responses(D, *, design=None, region="noun"):
    """Sites whose item contrasts are D (n_items, n_sites, n_positions, n_features); nan: the position is missing."""
    D = np.asarray(D, dtype=float)
    n, n_sites, n_positions, m = D.shape
    design = example_design(n) if design is None else design
    first = simulate(design, n_features=1, density=0.5, seed=0)
    first = first[(first.obs["region"] == "noun").to_numpy()]
    items = {name: k for k, name in enumerate(dict.fromkeys(first.obs["item"]))}
    item = first.obs["item"].map(items).to_numpy()
    plus = (first.obs["number"] == "pl").to_numpy()
    made = {}
    for site in range(n_sites):
        tables, values = [], []
        for p in range(n_positions):
            x = D[item, site, p]
            kept = ~np.isnan(x).any(axis=1)
            values.append(np.where(plus[:, None], np.maximum(x, 0), np.maximum(-x, 0))[kept])
            table = first.obs.reset_index(drop=True)[kept]
            tables.append(table.assign(position=np.int32(p), token_index=np.int32(p), region=region))
        var = features_table(np.full(m, 0.5), np.array([""] * m, dtype=object))
        X = sp.csr_matrix(np.concatenate(values).astype(np.float32))
        made[f"s{site}"] = responses_of(X, pd.concat(tables), var, design=design, provenance={})
    return made


def bump(n=16, sites=5, positions=6, *, m=1, shift=1.6, seed=0):
    """Noise, with a shift in 2 x 3 cells of the first feature."""
    D = np.random.default_rng(seed).standard_normal((n, sites, positions, m))
    D[:, 1:3, 2:5, 0] += shift
    return D


INSIDE = np.zeros((5, 6), dtype=bool)
INSIDE[1:3, 2:5] = True


def cells_of(table):
    return table[table["stat"].ne("cluster_mass").fillna(True).to_numpy(dtype=bool)]


def found_in(table):
    """Cells with p <= .05, of cluster maps the cells of such clusters."""
    p = table["p_corr"].to_numpy(dtype=float)
    if (table["p_adjust"] == "cluster").all():
        good = set(table.loc[(table["stat"] == "cluster_mass") & (p <= 0.05), "x_cluster"])
        held = cells_of(table)["x_cluster"].fillna("").str.split(", ")
        return held.map(lambda numbers: bool(good & set(numbers))).to_numpy()
    return p[: len(cells_of(table))] <= 0.05


# ------------------------------------------------------------------ recovers


@pytest.mark.parametrize("statistic", list(MAPS))
@pytest.mark.parametrize("m", [1, 8])
def test_map_recovers_a_planted_bump(statistic, m):
    """Most of its cells are found, with its sign, alone or as the strongest of eight features; little else is."""
    table = effect_map(responses(bump(m=m, shift=2.2)), NUMBER, statistic=statistic, inference=FEW, seed=1)
    found = found_in(table)
    assert found[INSIDE.ravel()].sum() >= 5
    assert found[~INSIDE.ravel()].sum() <= 3
    hits = cells_of(table)[found & INSIDE.ravel()]
    assert (hits["x_height"] > 0).all()
    assert (hits["x_feature"] == 0).all()
    assert set(table["x_scale"]) == {"t" if m == 1 and statistic != "maxT" else "z"} or statistic == "maxT"


def test_cluster_row_recovers_peak_and_extent():
    """A cluster's row names its cells and its highest one, carries no place, and says what it does not license."""
    table = effect_map(responses(bump(shift=2.2)), NUMBER, statistic="cluster", inference=FEW, seed=1)
    row = table[table["stat"] == "cluster_mass"].iloc[0]
    inside = cells_of(table)[cells_of(table)["x_cluster"].fillna("").str.split(", ").map(lambda k: "1" in k)]
    assert (row["x_cluster"], row["x_n_cells"]) == ("1", len(inside))
    assert_allclose(row["value"], inside["x_height"].sum())
    peak = inside.loc[inside["x_height"].idxmax()]
    assert row["x_peak"] == f"{peak['site']}/{peak['region']}/{peak['position']}"
    assert row[["site", "region", "position"]].isna().all()
    assert "onset at" in row["note"]
    assert cells_of(table)["p_corr"].isna().all()


def test_set_mean_recovers_a_set_by_its_weights():
    """Two features of opposite sign cancel in a plain mean and add up in a weighted one."""
    D = np.random.default_rng(3).standard_normal((16, 2, 2, 4))
    D[..., 0] += 1.5
    D[..., 1] -= 1.5
    fake = responses(D)
    plain = effect_map(set_mean(fake, [0, 1]), NUMBER, inference=FEW, seed=1)
    signed = effect_map(set_mean(fake, {0: 1, 1: -1}, name="both"), NUMBER, inference=FEW, seed=1)
    assert (plain["p_corr"] > 0.05).all()
    assert (signed["p_corr"] <= 0.05).all()
    assert set(signed["set"]) == {"mean of both"}
    assert set(signed["n_features"]) == {2}
    assert signed["x_feature"].isna().all()
    assert_allclose(signed["estimate"], (D[..., 0] - D[..., 1]).mean(axis=0).ravel() / 2, rtol=1e-5)


# ------------------------------------------------------------------ agrees


def test_maps_agree_with_mne(oracles):
    """12 items x 8 x 6 lattice, all flips: t, cluster masses and their p, TFCE; the threshold is t of p = .05."""
    want = json.loads(oracles("mne_nilearn.json").read_text())["maps"]
    D = np.loadtxt(oracles("inputs/map_X.csv"), delimiter=",").reshape(12, 8, 6, 1)
    fake, settings = responses(D), {"statistic": "t", "min_informative": 2}
    table = effect_map(fake, NUMBER, statistic="cluster", inference=settings, seed=1)
    assert_allclose(cells_of(table)["value"], want["t"], rtol=2e-6, atol=2e-6)
    rows = table[table["stat"] == "cluster_mass"].sort_values("value", key=np.abs)
    theirs = sorted(want["clusters"], key=lambda c: c["sum_abs_t"])
    assert_allclose(rows["value"], [c["sum_abs_t"] * c["sign"] for c in theirs], rtol=1e-5)
    assert rows["x_n_cells"].tolist() == [c["size"] for c in theirs]
    assert_allclose(rows["p_corr"].astype(float), [c["p"] for c in theirs], atol=2e-3)
    assert set(table["p_method"]) == {"exact"}
    enhanced = effect_map(fake, NUMBER, statistic="tfce", inference=settings, seed=1)
    scores = np.array(want["tfce_E0p5_H2_step0p002"])
    assert_allclose(enhanced["value"].abs(), scores, atol=0.005 * scores.max())


@pytest.mark.parametrize("statistic", ["cluster", "tfce"])
def test_maps_agree_with_enumeration(statistic):
    """Nine items, all 256 flips by dense algebra: the same maxima, and p counted with ties."""
    D = np.round(np.random.default_rng(5).standard_normal((9, 3, 4, 1)) + 0.7, 1)
    table = effect_map(responses(D), NUMBER, statistic=statistic, inference={"statistic": "t"}, seed=1)
    flat, graph = D.reshape(9, 12), grid(3, 4)
    S = signs(flips(np.arange(9), 512, seed=1))
    mean = S @ flat / 9
    t = mean / np.sqrt(((flat**2).sum(axis=0) - 9 * mean**2) / (9 * 8))
    limit = stats.t.isf(0.025, 8)
    if statistic == "tfce":
        null = np.array([np.abs(tfce(x, graph)).max() for x in t])
        ours = table
        want = tfce(t[0], graph)
    else:
        null = np.array([np.abs(clusters(x, graph, limit).mass).max(initial=0) for x in t])
        ours = table[table["stat"] == "cluster_mass"]
        want = clusters(t[0], graph, limit).mass
        assert len(want)
    assert_allclose(ours["value"], want, rtol=1e-5, atol=1e-6)
    assert_allclose(ours["p_corr"], [(null >= abs(w) * (1 - 1e-9)).mean() for w in want])


@pytest.mark.parametrize("inference", [{}, {"statistic": "signed_rank"}, {"alternative": "less"}])
def test_max_t_map_agrees_with_a_contrast(inference):
    """p of a cell is that of its strongest feature in a contrast over the same family, under the same relabellings."""
    fake = {f"s{k}": simulate(example_design(14), n_features=25, density=0.4, seed=k) for k in range(3)}
    mapped = effect_map(fake, NUMBER, inference=inference, seed=3)
    single = contrast(fake, NUMBER, region="noun", inference=inference, seed=3)
    single = single[single["status"] == "ok"]
    for row in mapped.itertuples():
        part = single[single["site"] == row.site]
        best = part[part["feature"] == row.x_feature].iloc[0]
        assert_allclose(row.p_corr, part["p_corr"].min())
        assert_allclose([row.value, row.x_z, row.p_corr], best[["value", "x_z", "p_corr"]].astype(float))
    assert set(mapped["n_family"]) == {len(single)}


def test_heights_agree_with_sidak():
    """The strongest of m features enters clusters and TFCE by Sidak's p for having been the strongest."""
    table = effect_map(responses(bump(m=6)), NUMBER, statistic="tfce", inference=FEW, seed=1)
    p = 1 - (1 - stats.norm.sf(table["x_z"].abs())) ** 6
    want = np.sign(table["x_z"]) * np.maximum(stats.norm.isf(p), 0)
    assert_allclose(table["x_height"].abs(), want.abs(), rtol=1e-6, atol=1e-9)
    assert (want != 0).sum() > 10


def test_max_t_map_joins_a_family():
    """A map and a contrast as one declared family equal each other's cells."""
    fake = {f"s{k}": simulate(example_design(14), n_features=20, density=0.4, seed=k) for k in range(2)}
    spec = SimpleNamespace(
        tests={
            "a": MapBlock(test="map", effect="number", region="noun"),
            "b": ContrastBlock(test="contrast", effect="number", region="noun"),
        },
        effects={"number": NUMBER},
        inference=Inference(families={"all": ["a", "b"]}),
        seed=2,
        report=SimpleNamespace(top_features=3),
    )
    study = SimpleNamespace(spec=spec)
    done = {
        "a": run(fake, spec.tests["a"], study=study, earlier={}, rng=None),
        "b": run_contrast(fake, spec.tests["b"], study=study, earlier={}, rng=None),
    }
    joined = stack(done, spec.inference)
    assert_allclose(
        joined.loc[joined["test"] == "a", "p_corr"].min(), joined.loc[joined["test"] == "b", "p_corr"].min()
    )
    assert_allclose(joined["p_corr"].min(), done["b"].table["p_corr"].min())


def test_run_agrees_with_the_mean_of_chosen_features():
    """A map of features that a localizer chose is the map of their mean, with the signs they had there."""
    fake = {"late": simulate(crossed(), n_features=30, effects={"number": 4}, density=0.4, shift=4.0, seed=4)}
    tests = {
        "find": ContrastBlock(test="contrast", effect="number", region="head", split="localizer"),
        "where": MapBlock.model_validate(
            {"test": "map", "effect": "number", "region": ["head", "tail"], "features": {"from": "find", "top": 3}}
        ),
    }
    report = SimpleNamespace(top_features=3)
    spec = SimpleNamespace(tests=tests, effects={"number": NUMBER}, inference=Inference(), seed=2, report=report)
    study = SimpleNamespace(spec=spec)
    find = run_contrast(fake, tests["find"], study=study, earlier={}, rng=None)
    table = run(fake, tests["where"], study=study, earlier={"find": find}, rng=None).table
    best = find.table.query("status == 'ok'").sort_values("value", key=lambda v: -v.abs()).head(3)
    chosen = dict(zip(best["feature"].astype(int), np.sign(best["value"]), strict=True))
    want = effect_map(set_mean(fake, {"late": chosen}), NUMBER, region=["head", "tail"], seed=2)
    assert_allclose(table["value"], want["value"])
    assert_array_equal(table["region"], ["head", "tail"])
    assert set(table["set"]) == {"mean of find top 3"}
    with pytest.raises(DataError, match="same items"):
        run(
            fake,
            tests["where"].model_copy(update={"split": "localizer"}),
            study=study,
            earlier={"find": find},
            rng=None,
        )


def crossed():
    """Two regions, and items set apart for a localizer."""
    made = example_design(24).model_dump(by_alias=True, exclude_unset=True)
    made["frames"] = {"plain": "The {head:number} near the {tail:number}"}
    forms = {part: {"sg": part + "{0}", "pl": part + "s{0}"} for part in ("head", "tail")}
    made["items"] = {
        f"item{i}": {p: {v: w.format(i) for v, w in f.items()} for p, f in forms.items()} for i in range(24)
    }
    made["partition"] = {"localizer": 10, "seed": 3}
    return type(example_design(4)).model_validate(made)


# ------------------------------------------------------------------ controls


@pytest.mark.parametrize("statistic", list(MAPS))
def test_maps_control_familywise_error(statistic):
    """No effect, 150 maps of 3 x 4 cells with five sparse features each: inside the binomial 99.9 % band around .05."""
    design = example_design(24)
    fake = simulate(design, n_features=9000, density=(0.2, 0.5), seed=21)
    data = item_data(fake, design, NUMBER, region="noun")
    place = Place("map", "number", "s", "noun", 0, "test", None)
    settings, rejecting = Inference(n_permutations=300), 0
    for k, part in enumerate(np.array_split(np.arange(9000), 150)):
        kept = [c[np.diff(data.D.indptr)[c] >= 6] for c in np.array_split(part, 12)]
        nodes = Nodes([Cell(place, data, c) for c in kept], np.arange(12), grid(3, 4))
        field = infer_map(nodes, statistic, settings, seed=k, split="test")
        p = [c.p for c in field.clusters] if statistic == "cluster" else field.p_corr
        rejecting += min(p, default=1.0) <= 0.05
    low, high = stats.binom.interval(0.999, 150, 0.05)
    assert low <= rejecting <= high


def test_p_of_single_cells_is_uniform_under_the_null():
    """p_unc of a cell of several features is that of their maximum, not of the chosen feature."""
    D = np.random.default_rng(8).standard_normal((12, 10, 20, 3))
    p = effect_map(responses(D), NUMBER, inference={"n_permutations": 500}, seed=1)["p_unc"]
    assert 200 * 0.05 - 12 <= (p <= 0.05).sum() <= 200 * 0.05 + 12
    assert abs(p.mean() - 0.5) < 0.08


# ------------------------------------------------------------------ invariant


@pytest.mark.parametrize("statistic", list(MAPS))
def test_maps_invariant_to_sign_order_and_scale(statistic):
    """The opposite contrast turns signs and changes no p; neither do units or the order of features."""
    D = bump(m=5, shift=1.2)
    base = effect_map(responses(D), NUMBER, statistic=statistic, inference=FEW, seed=1)
    opposite = effect_map(responses(D), {"number": {"pl": -1, "sg": 1}}, statistic=statistic, inference=FEW, seed=1)
    assert_allclose(opposite["p_corr"].astype(float), base["p_corr"].astype(float))
    assert_allclose(opposite["value"], -base["value"], rtol=1e-5)
    assert_array_equal(opposite["x_cluster"].fillna(""), base["x_cluster"].fillna(""))
    other = effect_map(responses(4 * D[..., ::-1]), NUMBER, statistic=statistic, inference=FEW, seed=1)
    assert_allclose(other["p_corr"].astype(float), base["p_corr"].astype(float))
    assert_allclose(other["p_unc"].astype(float), base["p_unc"].astype(float))


@pytest.mark.parametrize("statistic", list(MAPS))
def test_flips_are_the_same_for_every_cell(statistic):
    """A map and its copy beside it, unconnected, have the maximum of one: p does not pay for the copy."""
    D = bump(positions=3, shift=0.6, seed=1)
    twice = np.full((16, 5, 7, 1), np.nan)
    twice[:, :, :3], twice[:, :, 4:] = D, D  # a missing position parts them
    one = effect_map(responses(D), NUMBER, statistic=statistic, inference=FEW, seed=1)
    two = effect_map(responses(twice), NUMBER, statistic=statistic, inference=FEW, seed=1)
    if statistic == "cluster":
        one, two = (t[t["stat"] == "cluster_mass"] for t in (one, two))
        assert_allclose(two["p_corr"].astype(float), np.repeat(one["p_corr"].astype(float), 2))
    else:
        two = two[two["status"] == "ok"]
        p = one["p_corr"].to_numpy(dtype=float).reshape(5, 3)
        assert_allclose(two["p_corr"].astype(float), np.concatenate([p, p], axis=1).ravel())
    assert len(one)


def test_maps_invariant_to_threads_and_other_effects():
    """Bit for bit the same on one thread and on all; p of single cells does not depend on what else is mapped."""
    fake = responses(bump(m=4))
    results, before = [], numba.get_num_threads()
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append(effect_map(fake, NUMBER, statistic="tfce", inference={"n_permutations": 1500}, seed=1))
    numba.set_num_threads(before)
    pd.testing.assert_frame_equal(*results)
    more = effect_map(
        fake,
        {"a": NUMBER, "b": {"number": {"pl": -1, "sg": 1}}},
        statistic="tfce",
        inference={"n_permutations": 1500},
        seed=1,
    )
    assert_allclose(more.loc[more["effect"] == "a", "p_unc"], results[0]["p_unc"])
    assert_allclose(more.loc[more["effect"] == "a", "p_corr"].astype(float), results[0]["p_corr"].astype(float))


def test_ties_count():
    """Items that are all alike: half of the flips of six items tie with 0, and every p is an exact count."""
    D = np.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0]).reshape(6, 1, 1, 1) * np.ones((6, 2, 1, 1))
    table = effect_map(responses(D), NUMBER, inference={"statistic": "t"}, seed=1)
    sums = signs(flips(np.arange(6), 64, seed=1)).sum(axis=1)
    assert_allclose(table[["p_unc", "p_corr"]], (np.abs(sums) >= 2).mean())
    flat = effect_map(responses(np.abs(D)), NUMBER, statistic="tfce", inference={"statistic": "t"}, seed=1)
    assert_allclose(flat["p_corr"], 1 / 32)
    assert set(flat["status"]) == {"degenerate"}


# ------------------------------------------------------------------ missing cells, labels, refusals


def test_missing_cells_have_a_status_and_join_nothing():
    """A missing, a dead and a rarely active cell get rows with reasons; clusters end there."""
    D = bump(shift=2.5)
    D[:, 1, 3] = np.nan
    D[:, 2, 3] = 0.0
    D[2:, 4, 0] = 0.0
    table = cells_of(effect_map(responses(D), NUMBER, statistic="cluster", inference=FEW, seed=1))
    status = table["status"].to_numpy().reshape(5, 6)
    assert (status[1, 3], status[2, 3], status[4, 0]) == ("failed", "dead", "untestable")
    assert (status == "ok").sum() == 27
    silent = table[table["status"] != "ok"]
    assert silent["note"].notna().all()
    assert silent["x_cluster"].isna().all()
    labels = table["x_cluster"].to_numpy().reshape(5, 6)
    assert labels[1, 2] != labels[1, 4]


@pytest.mark.parametrize("statistic", list(MAPS))
def test_labels_between_items_are_permuted_alike(statistic):
    """A factor between items: a planted effect at one site is found, by permutations of labels."""
    design = example_design(24, between=True)
    sites = {
        "null": simulate(design, n_features=6, density=0.5, seed=1),
        "late": simulate(design, n_features=6, effects={"number": 3}, density=0.5, shift=9.0, seed=2),
        "later": simulate(design, n_features=6, effects={"number": 3}, density=0.5, shift=9.0, seed=3),
    }
    table = effect_map(sites, NUMBER, statistic=statistic, inference={"n_permutations": 500}, seed=1)
    assert found_in(table).tolist() == [False, True, True]
    assert set(table["p_method"]) == {"permutations"}


def test_over_decides_who_is_a_neighbour():
    """Along positions alone, two sites are two clusters; both axes join them."""
    fake = responses(np.abs(bump(sites=2, positions=2)) + 1)
    n = {
        over: int(
            (
                effect_map(fake, NUMBER, over=over, statistic="cluster", inference=FEW, seed=1)["stat"]
                == "cluster_mass"
            ).sum()
        )
        for over in ("site", "position", ("site", "position"))
    }
    assert n == {"site": 2, "position": 2, ("site", "position"): 1}


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        ({"over": "layer"}, "unknown axis of a map 'layer'.*site, position"),
        ({"statistic": "tcfe"}, "unknown map statistic 'tcfe'.*Did you mean 'tfce'"),
        ({"inference": {"statistic": "mean"}}, "own cell's units; use statistic t"),
        ({"over": "position", "statistic": "tfce"}, "no two cells are neighbours, so tfce has nothing to join"),
        ({"region": "verb"}, "unknown region of these responses 'verb'"),
    ],
)
def test_effect_map_refuses(ask, text):
    """The message names what is wrong and what would do."""
    fake = responses(bump(positions=1, sites=2)[:, :, :1])
    with pytest.raises(NeurosaeError, match=text):
        effect_map(fake, NUMBER, **ask, seed=1)


def test_effect_map_refuses_small_maps():
    """One cell is no map, and too few items are no test."""
    with pytest.raises(DataError, match="at least 2 cells and has 1"):
        effect_map(responses(np.ones((8, 1, 1, 1))), NUMBER, seed=1)
    with pytest.raises(DataError, match=r"no cell of the map can be tested: 4 items .* at least 6 items"):
        effect_map(responses(np.ones((4, 2, 2, 1))), NUMBER, seed=1)
    with pytest.raises(DataError, match="names none of them, or one that it lacks"):
        set_mean(responses(np.ones((8, 1, 1, 1))), [3])


def test_effect_map_refuses_effects_with_and_without_a_sign():
    """F of all levels has no direction, a contrast has one."""
    levels = ["low", "mid", "high"]
    items = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(8)}
    parts = {"factors": {"dose": levels}, "frames": {"f": "It {w:dose} was"}, "items": items}
    design = Design.model_validate({"schema": "neurosae/design/1", "name": "dose", **parts})
    sites = {name: simulate(design, n_features=4, density=0.7, seed=k) for k, name in enumerate("ab")}
    both = {"all": {"dose": "all"}, "peak": {"dose": {"low": -1, "mid": 2, "high": -1}}}
    with pytest.raises(DataError, match="with and without a sign"):
        effect_map(sites, both, seed=1)
