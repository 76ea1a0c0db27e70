"""Every world holds what it plants, and nothing of what only seems to be there."""

from __future__ import annotations

import numpy as np
import pytest

from neurosae.errors import DataError
from neurosae.extraction.responses import check_responses
from neurosae.stats.contrast import contrast
from neurosae.stats.scores import toy_output, toy_scale
from neurosae.stats.simulate import Firing
from neurosae.stats.worlds import WORLDS, world

INTERACTION = {"a": {"yes": 1, "no": -1}, "b": {"yes": 1, "no": -1}}


def by_cell(adata, values, context="phrase"):
    """(4, n_items, m) in the order 00, 10, 01, 11."""
    if "context" in adata.obs:
        inside = (adata.obs["context"] == context).to_numpy()
        adata, values = adata[inside], values[inside]
    a, b = ((adata.obs[f] == "yes").to_numpy().astype(int) for f in ("a", "b"))
    item = adata.obs["item"].str.removeprefix("item").astype(int).to_numpy()
    out = np.empty((4, item.max() + 1, values.shape[1]))
    out[a + 2 * b, item] = values
    return out


def interaction_z(adata, values, context="phrase"):
    """Mean interaction of every feature in units of its standard error."""
    y = by_cell(adata, values, context)
    d = y[3] - y[1] - y[2] + y[0]
    sd = d.std(axis=0, ddof=1)
    return d.mean(axis=0) / np.where(sd > 0, sd / np.sqrt(len(d)), 1)


def normalized(adata):
    return (adata.obsm["x"] - adata.var["origin"].to_numpy()) * adata.obs["norm"].to_numpy()[:, None]


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_world_invariant_to_nothing_but_the_seed(name):
    """Same seed, same numbers; another seed, others."""

    def numbers(seed):
        made = world(name, n_items=12, seed=seed)
        if hasattr(made, "obs"):
            check_responses(made)
            return made.X.toarray()
        return np.asarray(made if isinstance(made, np.ndarray) else made[0])

    assert np.array_equal(numbers(1), numbers(1))
    assert not np.array_equal(numbers(1), numbers(2))


@pytest.mark.parametrize("name", ["C0", "C1", "C2", "C3", "C4"])
def test_additive_worlds_hold_no_interaction_of_drives(name):
    """After the recorded norm no feature interacts; activations do in C2 and C3, their shares of the total in C4."""
    made = world(name, n_items=600, seed=3)
    assert np.abs(interaction_z(made, normalized(made))).max() < 4.5
    assert (np.abs(interaction_z(made, made.obsm["x"])).max() > 6) == (name == "C2")
    active = made.X.toarray()
    assert (np.abs(interaction_z(made, active)).max() > 6) == (name in ("C2", "C3"))
    share = np.abs(interaction_z(made, active / active.sum(axis=1, keepdims=True))).max()
    assert share > 6 or name != "C4"
    assert set(made.var["planted"]) == {"a", "b", "a b", ""}


@pytest.mark.parametrize("name", ["I1", "I2", "I4"])
def test_integrating_worlds_hold_their_interaction(name):
    """Exactly the features named a:b interact before the nonlinearity."""
    made = world(name, n_items=600, seed=3)
    z, planted = np.abs(interaction_z(made, made.obsm["x"])), (made.var["planted"] == "a:b").to_numpy()
    assert planted.sum() == 10
    assert z[planted].min() > 6
    assert z[~planted].max() < 4.5


def test_word_pairs_interact_in_lists_too():
    """The conjunction is in both contexts in `word_pair`, in the phrase alone in I1 with contexts."""
    for name, in_list in (("word_pair", True), ("I1", False)):
        options = {} if name == "word_pair" else {"contexts": True}
        made = world(name, n_items=300, seed=5, options=options)
        z = {c: np.abs(interaction_z(made, made.obsm["x"], c))[60:70].min() for c in ("list", "phrase")}
        assert z["phrase"] > 6
        assert (z["list"] > 6) == in_list


def test_coupled_features_are_coupled_in_the_phrase_alone():
    """I3: b features follow a features in cell 11 of the phrase, and no mean interaction comes with it."""
    made = world("I3", n_items=600, seed=2)
    r = []
    for context in ("list", "phrase"):
        z = by_cell(made, made.obsm["x"], context)[3]
        r.append(np.corrcoef(z[:, :20].mean(axis=1), z[:, 20:40].mean(axis=1))[0, 1])
    assert abs(r[0]) < 0.15
    assert r[1] > 0.4
    assert np.abs(interaction_z(made, made.obsm["x"])).max() < 4.5


def test_shuffled_labels_leave_the_other_factor():
    """`item_shuffled`: a is there, b and a x b are not."""
    made = world("item_shuffled", n_items=600, seed=4)
    y = by_cell(made, made.obsm["x"])
    effects = {"a": y[1] + y[3] - y[0] - y[2], "b": y[2] + y[3] - y[0] - y[1]}
    z = {k: np.abs(d.mean(axis=0) / (d.std(axis=0, ddof=1) / np.sqrt(600))) for k, d in effects.items()}
    assert z["a"][:20].min() > 6
    assert z["b"].max() < 4.5
    assert np.abs(interaction_z(made, made.obsm["x"])).max() < 4.5


def test_geometry_worlds_differ_in_the_direction_of_a():
    """The a axis at b = 0 and at b = 1 is parallel in `additive`, unrelated in `random_geometry`."""
    for name, parallel in (("additive", True), ("random_geometry", False)):
        made = world(name, n_items=400, seed=1)
        z = by_cell(made, made.obsm["x"]).mean(axis=1)
        cosine = np.corrcoef(z[1] - z[0], z[3] - z[2])[0, 1]
        assert (cosine > 0.9) == parallel
        assert abs(cosine) < 0.3 or parallel


@pytest.mark.parametrize("name", sorted(n for n, f in WORLDS.items() if f.__name__ == "coupling"))
def test_coupling_worlds_change_the_correlation_only_where_they_say(name):
    """The correlation differs between contexts in I3 and, by a gain that is recorded, in P6."""
    made = world(name, n_items=20_000, seed=1)
    residual = [[x - g * (x @ g) / (g @ g) for x, g in zip(part, made.gain, strict=True)] for part in made[:2]]
    raw, partial = (
        [np.corrcoef(s, t)[0, 1] for s, t in zip(*parts, strict=True)] for parts in ((made.seed, made.target), residual)
    )
    if name != "P7":
        assert (abs(raw[1] - raw[0]) > 0.2) == (name == "P6" or name.startswith("I3"))
    assert (abs(partial[1] - partial[0]) > 0.2) == name.startswith("I3")


@pytest.mark.parametrize("name", sorted(n for n, f in WORLDS.items() if f.__name__ == "information"))
def test_information_worlds_hold_a_product_only_where_they_say(name):
    """The product of the sources predicts the target beyond their monotone sum in I5, I6 and I7 alone."""
    a, b, t = world(name, n_items=20_000, seed=1)
    X = np.column_stack([np.ones_like(a), a, b, a * b])
    product = np.linalg.lstsq(X, t, rcond=None)[0][3]
    gated = np.corrcoef(np.sign(a) * b, t)[0, 1]
    additive = name in ("W0", "W1", "W3", "W4")
    assert not additive or max(abs(product), abs(gated) if name == "W0" else 0) < 0.05
    assert (abs(product) > 0.3) == (name in ("I5", "I6", "I7"))
    if name == "W2":  # a thresholded sum: rising in each source at every level of the other
        high, low = t[(a > 0) & (b > 0)].mean(), t[(a < 0) & (b < 0)].mean()
        assert low < t[(a > 0) & (b < 0)].mean() < high


@pytest.mark.parametrize("name", sorted(n for n, f in WORLDS.items() if f.__name__ == "groups"))
def test_ladder_worlds_hold_a_product_only_where_they_say(name):
    """Divided by the gain and unlinked, the product of the groups predicts in I5, I6 and I7 alone."""
    made = world(name, n_items=5000, seed=1)
    a, b = (x.sum(axis=1) / made.gain for x in made[:2])
    a, b, t = (a - a.mean()) / a.std(), (b - b.mean()) / b.std(), made.target / made.gain
    t = np.log(t) if name == "D1e" else t
    X = np.column_stack([np.ones_like(a), a, b, a * a, b * b, a * b])
    slope = np.linalg.lstsq(X, t, rcond=None)[0][5]
    assert (abs(slope) > 0.25) == name.startswith("I") or name == "D1"
    assert abs(slope) < 0.05 or name.startswith("I") or name == "D1"
    assert (np.bincount(made.item) == 4).all()


def test_alignment_world_has_one_bump_at_moving_places():
    """Both conditions peak equally high, unless a gain is planted, and the mean is flat where single rows peak."""
    same, more = (world("alignment", n_items=400, seed=1, options={"gain": g}).responses for g in (0.0, 0.5))
    peaks = same.max(axis=2).mean(axis=1)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)
    assert more[1].max(axis=1).mean() > 1.2 * more[0].max(axis=1).mean()
    assert same.mean(axis=(0, 1)).max() < 0.6 * same.max(axis=2).mean()


@pytest.mark.parametrize("name", ["toy_linear", "toy_norm", "toy_probability", "toy_mlp", "toy_and"])
def test_toy_networks_join_two_directions_only_in_toy_and(name):
    """With a frozen scale the joint effect is the sum of the single ones in linear worlds; in toy_and it is more."""
    net = world(name, n_items=32, seed=1)
    scale, (a, b) = toy_scale(net, net.X), 4 * net.directions[:2]
    L = [toy_output(net, net.X + move, scale=scale) for move in (0, a, b, a + b)]
    joint = (L[3] - L[1] - L[2] + L[0]).mean() / np.mean(np.abs(L[1] - L[0]) + np.abs(L[2] - L[0]))
    if name in ("toy_linear", "toy_norm"):
        assert abs(joint) < 1e-12
    assert (joint > 0.3) == (name == "toy_and")


def test_grid_world_drops_frames_that_one_cell_lacks():
    """Unbalanced, the paired rule keeps one frame; between items a quarter is in the + group."""
    number = {"number": {"pl": 1, "sg": -1}}
    firing = Firing(0.5, item=0.3, cell=0.2)
    options = {"balanced": False, "firing": firing, "n_features": 20}
    within = contrast(
        world("grid", n_items=16, seed=1, options=options),
        number,
        region="noun",
        inference={"n_permutations": 200},
        seed=1,
    )
    assert within["note"].str.contains("48 item x frame dropped").any()
    made = world("grid", n_items=16, seed=1, options={**options, "between": True})
    assert made.obs.groupby("number", observed=True)["item"].nunique().to_dict() == {"sg": 12, "pl": 4}


def test_paired_sparse_recovers_its_planted_features():
    """Planted features come first, and the rest of the family is quiet."""
    made = world("paired_sparse", n_items=64, seed=1, options={"n_features": 100, "n_planted": 10, "density": 0.3})
    found = contrast(made, {"number": {"pl": 1, "sg": -1}}, region="noun", inference={"n_permutations": 500}, seed=1)
    hits = set(found.loc[found["p_corr"] <= 0.05, "feature"])
    assert len(hits & set(range(10))) >= 5
    assert len(hits - set(range(10))) <= 1


def test_item_frame_world_has_the_variances_it_says():
    """Variance between items 1, between frames .25, rest .49."""
    d = world("item_frame", n_items=2000, seed=1, options={"n_frames": 50, "sd_frame": 0.5})
    assert d.mean(axis=1).var() == pytest.approx(1 + 0.49 / 50, rel=0.1)
    assert d.mean(axis=0).var() == pytest.approx(0.25, rel=0.5)


def test_world_refuses_unknown_names_and_options():
    """The nearest name is offered."""
    with pytest.raises(DataError, match=r"unknown world 'C9'"):
        world("C9", n_items=8, seed=0)
    with pytest.raises(DataError, match=r"unknown option of world 'grid' 'densty'"):
        world("grid", n_items=8, seed=0, options={"densty": 0.2})
    with pytest.raises(DataError, match="n_items is 1"):
        world("C0", n_items=1, seed=0)
