"""The integration battery on arrays: what it finds, what it leaves alone, and what each of its guards is for."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.stats.battery import (
    Causal,
    activations_interaction,
    crossover,
    evidence,
    grade_of,
    superadditive,
)
from neurosae.stats.conjunctions import context_drives
from neurosae.stats.dperp import flip_weights, interaction, list_control, out_of_plane
from neurosae.stats.gate import coupling, fisher_differences, slope_differences
from neurosae.stats.information import broja_synergy, check_measure, interaction_information, joint, synergy
from neurosae.stats.integration_worlds import TASKS, _rows, expected, integration_worlds
from neurosae.stats.ladder import delta_r2, isotonic, ladder
from neurosae.stats.relabel import flips, labels, permutations, signs
from neurosae.stats.scores import coupling as coupling_world
from neurosae.stats.scores import groups, information


def world(name, n=48, seed=0, *, contexts=False):
    """Pre-activations (contexts, 4, n, m) minus their value at x = 0, activations and gain."""
    parts = context_drives(np.random.default_rng(seed), name, n, contexts=contexts)
    z = np.stack([p.pre - p.origin for p in parts])
    return z, np.stack([p.post for p in parts]), np.stack([p.gain for p in parts])


def flipped(n, seed=0, n_flips=499):
    return signs(flips(np.arange(n), n_flips, seed=seed))


def most(n, rate=0.05):
    """Rejections that a true rate exceeds in one of a thousand runs."""
    return stats.binom.ppf(0.999, n, rate)


# ------------------------------------------------------------------ code


def double_loop(x, y):
    n = len(x)
    return sum(x[i] @ y[k] for i in range(n) for k in range(n) if i != k) / (n * (n - 1))


def test_out_of_plane_agrees_with_a_double_loop():
    """Statistic, coefficients and share are those of the definition, written with explicit pairs of items."""
    Z = np.random.default_rng(1).standard_normal((4, 9, 7)) + np.random.default_rng(2).standard_normal((4, 1, 7))
    d = Z[3] - Z[1] - Z[2] + Z[0]
    w = np.sqrt(1 / ((d**2).mean(axis=0) + np.median((d**2).mean(axis=0))))
    parts = [Z.mean(axis=0), (Z[1] + Z[3] - Z[0] - Z[2]) / 2, (Z[2] + Z[3] - Z[0] - Z[1]) / 2]
    parts, d = [p * w for p in parts], d * w
    PP = np.array([[(double_loop(a, b) + double_loop(b, a)) / 2 for b in parts] for a in parts])
    Pd = np.array([(double_loop(a, d) + double_loop(d, a)) / 2 for a in parts])
    c = np.linalg.solve(PP + 1e-3 * np.trace(PP) / 3 * np.eye(3), Pd)
    r = d - sum(ci * p for ci, p in zip(c, parts, strict=True))
    S = flipped(9, n_flips=50)
    found = out_of_plane(Z, S)
    assert_allclose(found.coefficients, c, rtol=1e-9)
    assert_allclose(found.value, double_loop(r, r), rtol=1e-9, atol=1e-12)
    assert_allclose(found.share, double_loop(r, r) / (PP[1, 1] + PP[2, 2]), rtol=1e-9)
    assert_allclose(found.null[7], double_loop(S[7][:, None] * r, S[7][:, None] * r), rtol=1e-9, atol=1e-12)


def test_out_of_plane_controls_gains_and_recovers_conjunctions():
    """Additive, thresholded and divisively normalized worlds are left alone; conjunction and crossover are found."""
    n, R = 48, 30
    S = flipped(n)
    for name in ("C0", "C2", "C3"):
        rejected = sum(out_of_plane(world(name, n, seed)[0][0], S).p <= 0.05 for seed in range(R))
        assert rejected <= most(R)
    for name in ("I1", "I4"):
        assert sum(out_of_plane(world(name, n, seed)[0][0], S).p <= 0.05 for seed in range(8)) == 8


def test_out_of_plane_needs_the_origin():
    """A gain is in the plane when measured from x = 0, and out of it from elsewhere: the origin is not a detail."""
    S, rejected = flipped(32), np.zeros(2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mu, a, b, elsewhere = rng.standard_normal((4, 80))
        gain = np.array([1.0, 0.6, 0.6, 1.0])[:, None, None]
        Z = gain * np.array([mu, mu + a, mu + b, mu + a + b])[:, None] + rng.standard_normal((4, 32, 80))
        rejected += [out_of_plane(Z, S).p <= 0.05, out_of_plane(Z + 2 * elsewhere, S).p <= 0.05]
    assert rejected[0] <= most(20)
    assert rejected[1] >= 18


def test_interaction_outside_activations_is_no_code():
    """The same test on activations rejects a threshold: it is for pre-activations alone."""
    S = flipped(48)
    for name in ("C2", "C3"):
        assert sum(out_of_plane(world(name, 48, s)[1][0], S).p <= 0.05 for s in range(6)) >= 5


def test_out_of_plane_invariant_to_order_and_scale():
    """Order of features and items and the unit of the pre-activations change no p."""
    Z, S = world("I2", 24)[0][0], flipped(24)
    found, rng = out_of_plane(Z, S), np.random.default_rng(3)
    order, items = rng.permutation(Z.shape[2]), rng.permutation(24)
    again = out_of_plane(7.3 * Z[:, items][:, :, order], S[:, items])
    assert again.p == found.p
    assert_allclose([again.share, again.low, again.high], [found.share, found.low, found.high], rtol=1e-6)


def test_one_dominating_item_shows_in_the_range():
    """Without the one item that carries the interaction the share falls; its number is given."""
    Z = np.random.default_rng(0).standard_normal((4, 20, 40)) + np.random.default_rng(1).standard_normal((4, 1, 40))
    Z[3] = Z[1] + Z[2] - Z[0] + 0.3 * np.random.default_rng(2).standard_normal((20, 40))
    Z[3, 13] += 12.0
    found = out_of_plane(Z, flipped(20))
    assert found.item == 13 or found.high - found.low > 0
    assert found.low <= found.share <= found.high


def test_rounding_is_no_interaction():
    """Texts that are equal up to the region give equal numbers; what rounding leaves of them is not weighted up."""
    base = np.random.default_rng(0).standard_normal((1, 10, 5)).astype(np.float32)
    Z = np.repeat(base, 4, axis=0).astype(float) * (1 + 1e-7 * np.arange(4)[:, None, None])
    assert not interaction(Z).any()
    with pytest.raises(DataError, match="no feature has an interaction"):
        out_of_plane(Z, flipped(10))


def test_list_control_tells_composition_from_word_pairs():
    """A conjunction in both contexts is no composition; one in the phrase alone is; swapped contexts give p = 1."""
    S = flipped(48)
    both = [world("word_pair", 48, s, contexts=True)[0] for s in range(12)]
    assert sum(list_control(z[1], z[0], S).p <= 0.05 for z in both) <= most(12)
    assert all(out_of_plane(z[1], S).p <= 0.05 for z in both)
    alone = world("I1", 48, 1, contexts=True)[0]
    found = list_control(alone[1], alone[0], S)
    assert found.p <= 0.01
    assert found.difference > 0.02
    assert list_control(alone[0], alone[1], S).p == 1.0


def test_list_control_is_not_fooled_by_a_gain_of_the_phrase():
    """A word-pair detector whose phrase is louder has a longer interaction there, in the same units no other one."""
    S = flipped(48)
    made = [world("word_pair", 48, s, contexts=True)[0] for s in range(8)]
    assert sum(list_control(1.5 * z[1], z[0], S).p <= 0.05 for z in made) <= most(8)
    assert all(list_control(1.5 * z[1], z[0], S).phrase > list_control(1.5 * z[1], z[0], S).list_ for z in made[:2])


def test_list_control_asks_length_and_share():
    """A phrase whose interaction is longer, but the smaller share of longer main effects, has no more of it."""
    S, z = flipped(48), world("I1", 48, 1, contexts=True)[0][1]
    louder = 1.1 * z
    louder[[1, 3]] += 3 * np.random.default_rng(0).standard_normal(z.shape[-1])  # the same part a in all items
    found = list_control(louder, z, S)
    assert found.phrase > found.list_
    assert (found.difference < 0, found.p) == (True, 1.0)


def test_weights_are_those_of_no_flip():
    """Flipping items leaves the weights of the features as they are."""
    d = np.random.default_rng(0).standard_normal((12, 6))
    assert_allclose(flip_weights(d * flipped(12)[5][:, None]), flip_weights(d))


def test_out_of_plane_refuses_other_shapes_and_infinity():
    """The message names the shape that is wanted."""
    with pytest.raises(DataError, match=r"shape \(3, 9, 7\); give \(4 cells"):
        out_of_plane(np.ones((3, 9, 7)), flipped(9))
    with pytest.raises(DataError, match="not all finite"):
        out_of_plane(np.full((4, 9, 7), np.nan), flipped(9))


# ------------------------------------------------------------------ gate


def test_coupling_agrees_with_correlations():
    """r are Pearson's partial correlations, T their Fisher difference, the null that of literal swaps."""
    made, S = coupling_world("P3", n_items=20, seed=1), flipped(20, n_flips=40)
    found = coupling(made.seed, made.target, S, gain=made.gain)
    for c in range(2):
        g = np.column_stack([np.ones(20), made.gain[c]])
        left = [x[c] - g @ np.linalg.lstsq(g, x[c], rcond=None)[0] for x in (made.seed, made.target)]
        assert_allclose(found.r[c, 0], np.corrcoef(*left)[0, 1])
    literal = []
    for s in S:
        a, b = (np.where(s > 0, x[..., 0], x[::-1, :, 0]) for x in (found.seed, found.target))
        r = [np.corrcoef(a[c], b[c])[0, 1] for c in range(2)]
        literal.append(np.arctanh(r[1]) - np.arctanh(r[0]))
    assert_allclose(fisher_differences(found.seed, found.target, S)[:, 0], literal, atol=1e-9)


def test_coupling_controls_and_recovers():
    """No rejections beyond chance where a recorded gain is all there is; a coupling of the phrase is found."""
    S = flipped(48)
    for name, least, largest in (
        ("P0", 0, most(60)),
        ("P5", 0, most(60)),
        ("P6", 0, most(60, 0.11)),
        ("I3_scores", 25, 60),
    ):
        made = [coupling_world(name, n_items=48, seed=s) for s in range(60)]
        n = sum(coupling(m.seed, m.target, S, gain=m.gain).p_unc[0] <= 0.05 for m in made)
        assert least <= n <= largest, name


def test_naive_coupling_fails_as_documented():
    """Slopes answer to a variance that doubles (P5), correlations without the gain to a shared gain (P6)."""
    S, limit = flipped(48), stats.t.isf(0.025, 92)
    five = [coupling_world("P5", n_items=48, seed=s) for s in range(40)]
    assert sum(abs(slope_differences(m.seed, m.target)[0]) >= limit for m in five) >= 8
    six = [coupling_world("P6", n_items=48, seed=s) for s in range(40)]
    assert sum(coupling(m.seed, m.target, S).p_unc[0] <= 0.05 for m in six) >= 16


def test_coupling_corrects_over_pairs_of_sets():
    """The corrected p of several pairs is that of their maximum."""
    rng, S = np.random.default_rng(0), flipped(30)
    s, t = rng.standard_normal((2, 2, 30, 5))
    found = coupling(s, t, S)
    size = np.abs(fisher_differences(found.seed, found.target, S))
    assert_allclose(found.p_corr, [(size.max(axis=1) >= v - 1e-9).mean() for v in size[0]])
    assert (found.p_corr >= found.p_unc).all()


def test_coupling_refuses_a_score_that_does_not_vary():
    """A context without variance has no coupling; 0 would be a lie."""
    made = coupling_world("P0", n_items=20, seed=1)
    flat = made.seed.copy()
    flat[0] = 3.0
    with pytest.raises(DataError, match="the seed score does not vary over items in the list"):
        coupling(flat, made.target, flipped(20))


# ------------------------------------------------------------------ information


def test_broja_agrees_with_dit(oracles):
    """AND, XOR and copies of one source; bits of dit's numerical optimum."""
    known = json.loads(oracles("pid_dit.json").read_text())
    for gate in ("AND", "XOR", "RDN"):
        p = np.zeros((1, 2, 2, 2))
        for a, b, t in known["gates"][gate]:
            p[0, int(t), int(a), int(b)] += 1 / len(known["gates"][gate])
        assert broja_synergy(p)[0] == pytest.approx(known["pid"][f"{gate}/PID_BROJA"]["syn"], abs=2e-3)
    copied = joint(np.array([[0, 0, 1, 1]]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert broja_synergy(copied)[0] == pytest.approx(0, abs=2e-3)
    assert interaction_information(copied, 10**9)[0] == pytest.approx(0, abs=1e-6)


def test_synergy_controls_sums_that_shuffling_rejects():
    """An additive readout is not above its surrogates; shuffled targets, computed here, would reject nearly always."""
    R, p, naive = 30, [], []
    for seed in range(R):
        made = information("W1", n_items=96, seed=seed)
        p.append(synergy(*made, n_surrogates=99, seed=seed)[0].p)
        cut = [(x > np.median(x)).astype(int) for x in made]
        order = np.argsort(np.random.default_rng(seed).random((99, 96)), axis=1)
        bits = broja_synergy(joint(np.concatenate([cut[2][None], cut[2][order]]), cut[0], cut[1]))
        naive.append((bits >= bits[0] - 1e-12).mean())
    assert sum(x <= 0.05 for x in p) <= most(R)
    assert sum(x <= 0.05 for x in naive) >= 0.9 * R


def test_interaction_information_is_corrected_for_bias():
    """Every entropy gets (cells - 1) / 2n nats: by hand for a full table, and about 0 for independent coins."""
    p = np.full((1, 2, 2, 2), 0.125)
    assert interaction_information(p, 50)[0] == pytest.approx(-1 / (100 * np.log(2)))
    T, A, B = np.random.default_rng(0).integers(0, 2, (3, 400, 60))
    bits = [interaction_information(joint(t[None], a, b), 60)[0] for t, a, b in zip(T, A, B, strict=True)]
    assert abs(np.mean(bits)) < 4 * np.std(bits) / 20


def test_synergy_recovers_products():
    """A product and a gate of two sources are above the surrogates."""
    for name in ("I5", "I7"):
        found = [synergy(*information(name, n_items=192, seed=s), n_surrogates=99, seed=s) for s in range(5)]
        assert sum(one[0].p <= 0.05 for one in found) >= 4


@pytest.mark.parametrize("name", ["i_min", "mmi", "shuffled_target"])
def test_synergy_refuses_measures_that_mislead(name):
    """They are refused by name, with the reason."""
    with pytest.raises(DataError, match=f"{name} .*use broja or interaction_information"):
        check_measure(name)


def test_synergy_refuses_what_cannot_be_split():
    """A score that is mostly one value has no two halves."""
    x = np.r_[np.zeros(95), 1.0]
    with pytest.raises(DataError, match="the target score lies on one side of its median in 99%"):
        synergy(np.arange(96.0), np.arange(96.0)[::-1], x, seed=0)


# ------------------------------------------------------------------ ladder


def orders_of(n, n_perm=299, seed=0):
    return labels(permutations(np.arange(n), np.arange(n), n_perm, seed=seed)).astype(int)


def rates(name, R=20, n=24):
    made = [groups(name, n_items=n, seed=s) for s in range(R)]
    found = [ladder(m.first, m.second, m.target, orders=orders_of(n, seed=s)).p for s, m in enumerate(made)]
    return {rung: sum(p[rung] <= 0.05 for p in found) for rung in found[0]}


def test_ladder_controls_on_the_rung_that_models_the_world():
    """Sums nowhere; curvature falls on the first rung alone; an exponential link falls on all but the last."""
    assert max(rates("D0").values()) <= most(20)
    curved = rates("D2")
    assert curved["linear"] >= 14
    assert max(curved[r] for r in ("quadratic", "rank", "link")) <= most(20)
    linked = rates("D1e")
    assert linked["quadratic"] >= 14
    assert linked["link"] <= most(20, 0.13)


def test_the_link_rung_removes_what_ranks_leave():
    """An exponential link of sparse sums: normal scores of the target leave a product, a fitted link does not."""
    found = []
    for seed in range(12):
        made = groups("D1e", n_items=48, seed=seed, sparse=True)
        found.append(ladder(made.first, made.second, made.target, orders=orders_of(48, 199, seed)).p)
    assert sum(p["rank"] <= 0.05 for p in found) >= 4
    assert sum(p["link"] <= 0.05 for p in found) <= 2


def test_ladder_recovers_products_on_every_rung():
    """A product, and one group that gates the other."""
    for name in ("I5_groups", "I7_groups"):
        assert min(rates(name, R=8, n=48).values()) >= 6


def test_ladder_counts_the_observed_order_among_all():
    """The smallest p is one relabelling of all, never 0."""
    a, b = np.random.default_rng(0).standard_normal((2, 96, 1))
    assert set(ladder(a, b, (a * b)[:, 0], orders=orders_of(24)).p.values()) == {1 / len(orders_of(24))}


def test_ladder_needs_items_to_stay_together():
    """Stimuli of an item share what the base leaves; permuted singly, their products look like a find."""
    rng, n, R = np.random.default_rng(0), 24, 40
    wrong = right = 0
    for seed in range(R):
        item = np.repeat(np.arange(n), 4)
        a, b = (rng.standard_normal((n, 1))[item] for _ in range(2))
        y = rng.standard_normal(n)[item] + 0.2 * rng.standard_normal(4 * n)
        a, b = a + 0.2 * rng.standard_normal((96, 1)), b + 0.2 * rng.standard_normal((96, 1))
        right += ladder(a, b, y, orders=orders_of(n, seed=seed)).p["linear"] <= 0.05
        e = (
            y
            - np.column_stack([np.ones(96), a, b])
            @ np.linalg.lstsq(np.column_stack([np.ones(96), a, b]), y, rcond=None)[0]
        )
        null = [(e[rng.permutation(96)] @ (a * b)[:, 0]) ** 2 for _ in range(199)]
        wrong += np.mean(np.append(null, 0) >= (e @ (a * b)[:, 0]) ** 2) <= 0.05
    assert right <= most(R, 0.08)
    assert wrong > right + 5


def test_held_out_gain_is_that_of_the_product():
    """Delta R^2 on held-out items is about the share of variance that the product has; about 0 or less without one."""
    rng, fold = np.random.default_rng(0), np.repeat(np.arange(48) % 6, 4)
    a, b, e = rng.standard_normal((3, 192))
    base = np.column_stack([a, b])
    assert delta_r2(base, (a * b)[:, None], a * b + e, folds=fold) == pytest.approx(0.5, abs=0.12)
    assert delta_r2(base, (a * b)[:, None], a + b + e, folds=fold) < 0.02


def test_isotonic_agrees_with_scikit_learn():
    """Pooling adjacent violators, as the library does."""
    from sklearn.isotonic import IsotonicRegression

    x, y = np.random.default_rng(4).standard_normal((2, 60))
    assert_allclose(isotonic(x, y), IsotonicRegression().fit_transform(x, y))


def test_ladder_refuses_too_many_columns():
    """At most a tenth as many products as stimuli."""
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="9 products beside"):
        ladder(
            rng.standard_normal((48, 3)), rng.standard_normal((48, 3)), rng.standard_normal(48), orders=orders_of(12)
        )


# ------------------------------------------------------------------ activations, grades


def test_superadditive_activations_are_grade_1_at_most():
    """A threshold and a normalization reject among the activations in nearly every set, and never reach grade 2."""
    n, how = 48, flips(np.arange(48), 499, seed=0)
    for name in ("C2", "C3"):
        z, post, gain = world(name, n, 2, contexts=True)
        conj = superadditive(*activations_interaction(post[1]), how).p_corr.min()
        sets = np.arange(20), np.arange(20, 40)
        measured = np.log(gain[:, 3]) if name == "C2" else None
        found = evidence(z, how, sets=sets, gain=measured, conj=conj)
        assert conj <= 0.05
        assert found.grade == 1


def test_superadditive_agrees_with_the_engine_of_contrasts():
    """The same z and corrected p as a contrast of the same responses."""
    from neurosae.stats.contrast import contrast
    from neurosae.stats.worlds import world as named

    made = named("C3", n_items=16, seed=1)
    effect = {"a": {"yes": 1, "no": -1}, "b": {"yes": 1, "no": -1}}
    rows = contrast(made, effect, region="probe", inference={"n_permutations": 200}, seed=3)
    rows = rows[rows["status"].isin(["ok", "degenerate"])].sort_values("feature")
    post = np.zeros((4, 16, 400))
    a, b = ((made.obs[f] == "yes").to_numpy().astype(int) for f in ("a", "b"))
    post[a + 2 * b, made.obs["item"].str.removeprefix("item").astype(int)] = made.X.toarray()
    found = superadditive(*activations_interaction(post), flips(np.arange(16), 200, seed=3))
    assert found.columns.tolist() == rows["feature"].tolist()
    assert_allclose(found.z, rows["x_z"], atol=1e-5)
    assert_allclose(found.p_corr, rows["p_corr"], atol=1e-9)


def test_crossover_is_found_where_it_is_and_nowhere_else():
    """XOR units cannot be rescaled away; thresholds, additive drives and pure gating can."""
    shapes, p = crossover(world("I4", 32)[1][0][:, :, 70:80])
    assert (shapes == "no").mean() >= 0.6
    for name in ("C0", "C3"):
        assert (crossover(world(name, 32)[1][0])[0] == "no").mean() <= 0.02
    assert ((p > 0) & (p <= 1)).all()


def test_grades_need_their_evidence():
    """Holm over both members; the causal read-out counts only beside grade 2, and only if frozen."""
    read = Causal(0.001, 0.01, frozen=True)
    assert grade_of({"code": 0.2, "gate": 0.04}) == 2
    assert (grade_of({"code": 0.05}), grade_of({}, conj=0.05)) == (2, 1)  # p = alpha rejects
    assert (grade_of({"code": 0.0501}), grade_of({}, conj=0.0501)) == (0, 0)
    assert grade_of({"code": 0.2, "gate": 0.3}, conj=0.001, causal=read) == 1
    assert grade_of({"code": 0.01}, causal=read) == 3
    assert grade_of({"code": 0.01}, causal=read._replace(frozen=False)) == 2
    assert grade_of({"code": 0.01}, causal=read._replace(p_controls=0.3)) == 2


def test_battery_grades_what_is_planted():
    """Conjunction and coupling of the phrase reach grade 2, word pairs and additive worlds do not (8 sets each)."""
    n, how, sets = 48, flips(np.arange(48), 299, seed=0), (np.arange(20), np.arange(20, 40))
    grade = {
        name: [evidence(world(name, n, s, contexts=True)[0], how, sets=sets).grade for s in range(8)]
        for name in ("C0", "word_pair", "I1", "I3")
    }
    assert grade["C0"].count(2) <= 3
    assert grade["word_pair"].count(2) <= 3
    assert min(grade["I1"]) == 2
    assert grade["I3"].count(2) >= 7


def test_two_tests_are_corrected_by_holm():
    """The smaller of code and gate counts double."""
    z = world("C0", 24, 5, contexts=True)[0]
    found = evidence(z, flips(np.arange(24), 199, seed=0), sets=(np.arange(20), np.arange(20, 40)))
    low, high = sorted(found.p.values())
    assert_allclose(sorted(found.holm.values()), [min(1, 2 * low), max(min(1, 2 * low), high)])
    alone = evidence(z[1:], flips(np.arange(24), 199, seed=0))
    assert alone.holm == alone.p == {"code": alone.plane.p}


# ------------------------------------------------------------------ the table of worlds


def test_the_table_of_worlds_holds_what_is_expected():
    """A small run: every row has a role, nothing lies outside its bound, demonstrations fail."""
    table = integration_worlds(n_sets=4, quick=True, seed=1)
    assert not (table["verdict"] == "outside").any(), table[table["verdict"] == "outside"].to_string()
    assert set(table["role"]) == {"null", "power", "demonstration", "documented", "described"}
    c2 = table[(table["world"] == "C2") & (table["group"] == "features")].set_index("test")["rate"]
    assert c2["D_AxB activations"] == 1
    assert c2["D-perp z"] < 0.5
    rows = table[(table["world"] == "P5") & (table["n_items"] == 48)].reset_index(drop=True)
    assert pd.DataFrame(_rows(TASKS[2], "P5", 48, n_sets=4, seed=1)).equals(rows)


def test_bounds_are_those_of_their_world():
    """An additive world allows the nominal rate; the whole battery in I1 must find."""
    assert expected("battery", "C3", "grade 2") == ("null", (0.0, 0.05))
    assert expected("battery", "I1", "grade 2") == ("power", (0.9, 1.0))
    with pytest.raises(DataError, match="n_sets is 0"):
        integration_worlds(n_sets=0)


def test_a_gain_that_differs_between_frames_stays_in_the_plane():
    """Averaged over frames such a gain leaves the span of the averages; in the span of every frame's patterns it is."""
    S, rejected = flipped(32), np.zeros(2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        frames = []
        for gain in ([1.0, 0.5, 0.5, 1.0], [1.0, 1.5, 1.5, 1.0]):
            mu, a, b = 1.5 * rng.standard_normal((3, 80))
            pattern = np.array(gain)[:, None] * np.array([mu, mu + a, mu + b, mu + a + b])
            frames.append(pattern[:, None] + rng.standard_normal((4, 32, 80)))
        both = np.array(frames)
        Z = both.mean(axis=0)
        rejected += [out_of_plane(Z, S, frames=both).p <= 0.05, out_of_plane(Z, S).p <= 0.05]
    assert rejected[0] <= most(20)
    assert rejected[1] >= 15
