"""Error rates and power of the joint clamp on toy networks whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from neurosae.causal.controls import REFUSED, matched_pairs
from neurosae.causal.inference import rank_p
from neurosae.causal.joint_effects import interaction_of, joint_tests
from neurosae.causal.pairs import four
from neurosae.stats.scores import toy_output, toy_scale
from neurosae.stats.worlds import world

DOSE, N_ITEMS, N_CONTROLS = 4.0, 32, 39


def clamps(net, a, b, *, frozen):
    """Outcomes (n_items, 4) of two directions added alone and together."""
    scale = toy_scale(net, net.X) if frozen else None
    edits = (0 * a, DOSE * a, DOSE * b, DOSE * (a + b))
    return np.stack([toy_output(net, net.X + edit, scale=scale) for edit in edits], axis=1)


def one_network(name, seed):
    """The joint clamp of directions 0 and 1, its controls matched on single effects and cosine."""
    net = world(name, n_items=N_ITEMS, seed=seed)
    U, free = net.directions, np.arange(20, 400)
    L0, scale = toy_output(net, net.X), toy_scale(net, net.X)
    single = np.array([(toy_output(net, net.X + DOSE * U[j], scale=scale) - L0).mean() for j in [0, 1, *free]])
    half = len(free) // 2
    first, second = free[:half], free[half:]
    cosine = (float(U[0] @ U[1]), U[first] @ U[second].T)
    pairs, _ = matched_pairs(single[:2], single[2 : 2 + half], single[2 + half :], cosine=cosine, n=N_CONTROLS)
    made = [clamps(net, U[0], U[1], frozen=frozen) for frozen in (False, True)]
    controls = tuple(
        np.array([
            interaction_of(clamps(net, U[first[i]], U[second[j]], frozen=frozen)).mean() for i, j in pairs
        ])
        for frozen in (False, True)
    )  # fmt: skip
    return joint_tests(*made, np.arange(N_ITEMS), controls=controls, n_permutations=500, seed=seed)


def rates(name, n_sets=40):
    """Share of networks in which each criterion rejects: items free, items frozen, controls free, frozen, all."""
    found = [one_network(name, seed) for seed in range(n_sets)]
    p = [[1.0 if f.informative[0] == 0 else f.p[0] for f in (r.free, r.frozen)] for r in found]
    more = [[r.p_controls_free, r.p_controls, r.p] for r in found]
    return (np.column_stack([p, more]) <= 0.05).mean(axis=0), np.mean([r.share_free for r in found])


def below(n_sets):
    """Largest rate that a true rate of .05 has in 99.9 % of runs."""
    return stats.binom.ppf(0.999, n_sets, 0.05) / n_sets


def test_the_and_neuron_is_found():
    """Every criterion holds in the planted network, with the sign and the size that were planted."""
    found, share = rates("toy_and", 20)
    assert found[-1] >= 0.95
    assert 0.38 < share < 0.52


@pytest.mark.parametrize("name", ["toy_linear", "toy_norm"])
def test_linear_networks_do_not_integrate(name):
    """Behind a normalization items alone reject always; frozen, I is exactly 0 and nothing is claimed."""
    found, share = rates(name, 20)
    assert abs(share) < 0.1
    assert found[0] == (1.0 if name == "toy_norm" else 0.0)
    assert found[1] == 0
    assert found[-1] == 0


def test_random_neurons_stay_within_the_band():
    """Random neurons behind a normalization: items reject far too often, all criteria together do not."""
    found, _ = rates("toy_mlp", 40)
    assert found[0] > 0.9
    assert found[-1] <= below(40)


def bare(name, seed):
    """A network whose readout is as far from directions 0 and 1 as from any other; they are there in all items."""
    net = world(name, n_items=N_ITEMS, seed=seed)
    a, b = net.directions[:2]
    v = net.v - 0.5 * a - 0.5 * b
    if name == "toy_and":  # its neuron alone reads them, so that either does nothing without the other
        v = v - np.linalg.lstsq(np.stack([a, b]), np.stack([a, b]) @ v, rcond=None)[0]
        net = net._replace(W2=np.column_stack([net.W2[:, :-1], 1.5 * v / (v @ v)]))
    return net._replace(v=v, X=net.X + DOSE * (a + b))


def ablated(name, seed, *, behind=True):
    """Directions 0 and 1 ablated, each control in the text that its target meets; p, and the worst difference.

    behind : whether single effects are read with the other part gone, as they must be; or in the text that has it
    """
    net = bare(name, seed)
    U, half, scale = net.directions, 190, toy_scale(net, net.X)

    def left(*gone, frozen=True):
        X = net.X - DOSE * np.sum(gone, axis=0) if gone else net.X
        return toy_output(net, X, scale=scale if frozen else None)

    a, b = U[:2]
    gone = [(b,), (a,)] if behind else [(), ()]
    single = [left(own, *other).mean() - left(*other).mean() for own, other in zip((a, b), gone, strict=True)]
    first, second = U[20 : 20 + half], U[20 + half :]
    effects = [
        np.array([left(u, *other).mean() for u in some]) - left(*other).mean()
        for some, other in zip((first, second), gone, strict=True)
    ]
    cosine = (float(a @ b), first @ second.T)
    pairs, balance = matched_pairs(np.array(single), *effects, cosine=cosine, n=N_CONTROLS)
    runs = [
        [four("ablate", *(left(*e, frozen=f) for e in ((), (u,), (w,), (u, w)))) for u, w in
         [(a, b), *((first[i], second[j]) for i, j in pairs)]]
        for f in (False, True)
    ]  # fmt: skip
    controls = tuple(np.array([interaction_of(L).mean() for L in some[1:]]) for some in runs)
    made = joint_tests(
        runs[0][0], runs[1][0], np.arange(N_ITEMS), controls=controls, n_permutations=500, seed=seed
    )  # fmt: skip
    return made.p, balance["smd"].abs().max()


def test_ablating_a_pure_conjunction_is_judged_and_found():
    """Read with the other part there, the neuron's single effect is like no control's, and nothing could be claimed."""
    found = np.array([ablated("toy_and", seed) for seed in range(20)])
    assert ((found[:, 0] <= 0.05) & (found[:, 1] <= REFUSED)).mean() >= 0.9
    before = np.array([ablated("toy_and", seed, behind=False) for seed in range(5)])
    assert (before[:, 1] > REFUSED).all()


@pytest.mark.parametrize("name", ["toy_norm", "toy_mlp"])
def test_ablation_stays_within_the_band(name):
    """Without a conjunction: random neurons and a normalization, directions like any other."""
    found = np.array([ablated(name, seed) for seed in range(20)])
    assert (found[:, 0] <= 0.05).mean() <= below(20)


def test_a_probability_is_fooled_by_everything():
    """Why probabilities are refused as outcome of interaction claims: every criterion rejects without integration."""
    found, _ = rates("toy_probability", 10)
    assert found[1] > 0.9


def test_rank_among_controls_is_exact():
    """Exchangeable targets: the rate of p <= .05 is the nominal one, centred or not."""
    rng = np.random.default_rng(0)
    for center in (False, True):
        p = np.array([rank_p(x[0], x[1:], center=center) for x in rng.standard_normal((2000, 40)) + 0.7])
        low, high = stats.binom.interval(0.999, 2000, 0.05)
        assert low <= (p <= 0.05).sum() <= high
