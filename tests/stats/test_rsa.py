"""RSA end to end: rsatoolbox's numbers, planted geometry, statuses and refusals."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, SpecError
from neurosae.extraction.responses import item_cells
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.geometry import KINDS, RsaBlock
from neurosae.stats.geometry import MODELS
from neurosae.stats.rdm import DISTANCES
from neurosae.stats.rdm_compare import COMPARATORS
from neurosae.stats.rsa import model_rdms, rdms, rsa, run
from neurosae.stats.simulate import simulate

A, B = {"a": {"x": -1, "y": 1}}, {"b": {"x": -1, "y": 1}}
EFFECTS = {"a": A, "b": B, "both": {**A, **B}}
FAST = {"n_permutations": 500}


def crossed(n_items: int = 16) -> Design:
    """Two factors within items and two frames; a region that is longer where b is y in frame g."""
    items = {
        f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k} t{k}"}} for k in range(n_items)
    }
    return Design.model_validate({
        "schema": "neurosae/design/1", "name": "crossed", "factors": {"a": ["x", "y"], "b": ["x", "y"]},
        "frames": {"f": "{u:a} {w:b}", "g": "the {u:a} and {w:b}"}, "items": items,
        "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip


def nested(n_items: int = 10) -> Design:
    """The same factors between items, as lists."""
    lists = {a: {b: [{"text": f"{a} {b} {k}"} for k in range(n_items)] for b in "xy"} for a in "xy"}
    factor = {"levels": ["x", "y"], "varies": "between"}
    return Design.model_validate({
        "schema": "neurosae/design/1", "name": "nested", "factors": {"a": factor, "b": factor}, "lists": lists,
        "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip


@pytest.fixture(scope="module")
def fake():
    return simulate(crossed(), n_features=300, effects={"a": 40}, density=0.3, seed=1, regions=("everything",))


@pytest.fixture(scope="module")
def lists():
    return simulate(nested(), n_features=300, effects={"a": 40}, density=0.3, seed=2)


def answer(data, **changes) -> pd.DataFrame:
    given = {"models": EFFECTS, "conditions": ["a", "b"], "region": "everything", "inference": FAST, "seed": 3}
    return rsa(data, **{**given, **changes})


def test_registries_equal_the_schema():
    """What the schema admits is what is computed."""
    fields = RsaBlock.model_fields
    assert set(fields["distance"].annotation.__args__) == set(DISTANCES)
    assert set(fields["compare"].annotation.__args__) == set(COMPARATORS)
    assert set(MODELS) | {"weighted", "select"} == set(KINDS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("compare", [c for c in COMPARATORS if c != "spearman"])
def test_fits_agree_with_rsatoolbox(fake, compare):
    """Crossnobis with items as folds and its fit to each model, both computed by rsatoolbox from the same patterns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox
    cells = item_cells(fake, crossed(), region="everything", factors=["a", "b"])
    ours = answer(fake, settings={"compare": compare}).set_index("effect")
    dense = cells.X.toarray()
    spread = np.ptp(dense.reshape(16, 4, -1), axis=1)
    data = rsatoolbox.data.Dataset(
        dense[:, (spread > 0).sum(axis=0) >= 6], obs_descriptors={"cell": cells.row_cell, "item": cells.row_item}
    )
    theirs = rsatoolbox.rdm.calc_rdm(data, method="crossnobis", descriptor="cell", cv_descriptor="item")
    where = ("simulated", "everything", 0)
    mine = rdms(fake, conditions=["a", "b"], region="everything")[where]
    assert_allclose(mine.dissimilarities, theirs.dissimilarities, atol=1e-10)
    assert mine.pattern_descriptors["condition"] == ["x/x", "x/y", "y/x", "y/y"]
    for model in model_rdms(fake, models=EFFECTS, conditions=["a", "b"], region="everything")[where]:
        fit = rsatoolbox.rdm.compare(theirs, model.predict_rdm(), method=compare)[0, 0]
        assert (abs(ours.value[model.name] - fit) < 1e-10) or (np.isnan(ours.value[model.name]) and fit == 0)


@pytest.mark.parametrize("data", ["fake", "lists"])
def test_rsa_recovers_the_planted_factor(data, request):
    """Only the planted factor has length, its model fits best and takes the weight; items crossed or nested."""
    found = answer(request.getfixturevalue(data)).set_index("effect")
    assert (found.p_corr < 0.05).to_dict() == {"a": True, "b": False, "both": False}
    assert found.value.idxmax() == found.x_weight.idxmax() == found.x_unique.idxmax() == "a"
    assert found.value["a"] > 0.8
    assert found.x_ceiling["a"] > 0.8
    assert (found.status == "ok").all()
    assert found[["h0", "unit", "n_units", "n_perm", "p_min", "family", "n_family", "p_method"]].notna().all(axis=None)


def test_rsa_of_noise_finds_nothing_and_ranks_nothing():
    """No effect anywhere: no corrected p, and rows that say that models are not ranked."""
    noise = simulate(crossed(), n_features=200, density=0.3, seed=4, regions=("everything",))
    found = answer(noise)
    assert (found.p_corr > 0.05).all()
    assert found.note.str.contains("models are not ranked").all()


def test_rsa_invariant_to_threads_other_sites_and_other_models(fake):
    """The same bits on 1 and 2 threads; a second site or model changes nothing but the correction."""
    frames = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            frames.append(answer(fake))
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    both = answer({"one": fake, "two": fake}, models={"a": A})
    columns = ["value", "estimate", "p_unc", "x_z", "x_reliability"]
    assert np.array_equal(both[columns].to_numpy()[0], frames[0][columns].to_numpy()[0])


def test_rsa_invariant_to_feature_order_and_scale(fake):
    """Features in another order and in other units: the same fits and p."""
    order = np.random.default_rng(0).permutation(300)
    other = fake[:, order].copy()
    other.X = other.X * np.float32(4)
    first, second = answer(fake), answer(other)
    assert_allclose(second[["value", "x_z"]], first[["value", "x_z"]], rtol=1e-9)
    assert (second.p_unc == first.p_unc).all()


def test_rsa_frames_as_conditions(fake):
    """With frames beside two factors there are 8 conditions, and the effects are tested as without them."""
    found = answer(fake, conditions=["a", "b", "frame"]).set_index("effect")
    labels = rdms(fake, conditions=["a", "b", "frame"], region="everything")["simulated", "everything", 0]
    assert len(labels.pattern_descriptors["condition"]) == 8
    assert labels.pattern_descriptors["condition"][0] == "x/x/f"
    assert_allclose(found.estimate, answer(fake).set_index("effect").estimate, rtol=1e-9)


def test_columns_and_nuisance_are_fitted_and_not_tested(fake):
    """A column has a fit and no p, a nuisance effect too; each row says why; aliased models too."""
    models = {**EFFECTS, "length": {"column": "n_tokens"}, "b": {**B, "nuisance": True}, "bos": {"column": "position"}}
    found = answer(fake, models=models).set_index("effect")
    assert found.p_unc.notna().to_dict() == {"a": True, "b": False, "both": True, "length": False, "bos": False}
    assert (found.p_method[["b", "length"]] == "none").all()
    assert "Nuisance" in found.note["b"]
    assert "no p" in found.note["length"]
    assert np.isfinite(found.value["length"])
    twice = answer(fake, models={"one": A, "two": A})
    assert twice.note.str.contains("linearly dependent").all()
    assert twice.x_weight.isna().all()


def test_undefined_fits_are_degenerate_and_say_why(fake):
    """A column that does not differ between conditions gives nothing to fit."""
    fake = fake.copy()
    fake.obs["same"] = 1.0
    row = answer(fake, models={"same": {"column": "same"}}).iloc[0]
    assert (row.status, np.isnan(row.value)) == ("degenerate", True)
    assert "no variation" in row.note


def test_run_hands_over_rdms_fits_and_the_null(fake):
    """An analysis block: named by its place in the analysis, with long tables and the maxima per relabelling."""
    models = {"a": {"effect": "number"}, "length": {"column": "n_tokens", "nuisance": True}}
    ask = RsaBlock(test="rsa", region="everything", conditions=["a", "b"], models=models)
    spec = SimpleNamespace(tests={"geometry": ask}, effects={"number": A}, inference=Inference(**FAST), seed=3)
    rng = np.random.default_rng([3, 1])
    tested = run({"late": fake}, ask, study=SimpleNamespace(spec=spec), earlier={}, rng=rng)
    assert list(tested.table.test) == ["geometry"] * 2
    assert tested.null_max.shape == (500,)
    assert tested.null_max.dtype == np.float32
    long = tested.extras["rdm"]
    assert list(long.columns) == ["site", "region", "position", "name", "kind", "row", "column", "value"]
    assert set(zip(long.name, long.kind, strict=True)) == {("data", "data"), ("a", "model"), ("length", "model")}
    assert len(long) == 3 * 16
    assert {"reliability", "ceiling_low", "ceiling_high"} <= set(tested.extras["fits"])


def test_places_that_cannot_be_computed_keep_a_row(fake):
    """A position with too few items is untestable with the reason; the other positions are tested."""
    late = fake[fake.obs["item"].isin(["i1", "i2", "i3"]).to_numpy()].copy()
    late.obs["position"] = np.int32(-1)
    late.obs_names = late.obs_names + "late"
    import anndata

    both = anndata.concat([fake, late], merge="same", uns_merge="first")
    found = answer(both).set_index(["position", "effect"])
    assert found.status.to_dict()[-1, "a"] == "untestable"
    assert "at least 6 items" in found.note[-1, "a"]
    assert found.status[0, "a"] == "ok"


def test_places_with_other_items_share_their_flips(fake):
    """A site that lacks items is tested on its own, and the items it has are flipped as at the other site."""
    few = fake[~fake.obs["item"].isin(["i0", "i5"]).to_numpy()].copy()
    found = answer({"all": fake, "few": few}).set_index(["site", "effect"])
    alone = answer(few).set_index("effect")
    assert (found.n_units["all", "a"], found.n_units["few", "a"]) == (16, 14)
    assert_allclose(found.x_z["few"], alone.x_z, rtol=1e-9)
    assert (found.p_unc["few"] == alone.p_unc).all()


def test_effect_models_are_squared_differences_of_weights():
    """By hand: a linear trend over three levels, weights -1/2, 0, 1/2 per cell, halved again by the two frames."""
    items = {f"i{k}": {"u": {"l": f"p{k}", "m": f"q{k}", "h": f"r{k}"}} for k in range(8)}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "load", "frames": {"f": "{u:load} now", "g": "so {u:load}"},
        "factors": {"load": {"levels": ["l", "m", "h"], "values": {"l": 0, "m": 1, "h": 2}}}, "items": items,
        "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip
    data, trend = simulate(design, n_features=60, density=0.5, seed=0, regions=("everything",)), {"load": "linear"}
    for conditions, weights in ((["load"], [-0.5, 0, 0.5]), (["load", "frame"], [-0.25, -0.25, 0, 0, 0.25, 0.25])):
        (made,) = model_rdms(data, models={"m": trend}, conditions=conditions, region="everything").values()
        i, j = np.triu_indices(len(weights), 1)
        assert_allclose(made[0].rdm, (np.array(weights)[i] - np.array(weights)[j]) ** 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"m": {"column": "n_token"}}}, r"unknown column .*'n_token'. Did you mean 'n_tokens'"),
        ({"conditions": ["a", "c"]}, "unknown condition 'c'"),
        ({"conditions": ["a", "frame"]}, r"compares levels of b, .* Add b to `conditions`"),
        ({"conditions": ["a"]}, "at least 3 conditions, not 2"),
        ({"conditions": ["frame"]}, "name no factor"),
        ({"region": "nothing"}, "unknown region"),
        ({"settings": {"sites": ["late"]}}, "unknown site 'late'"),
        ({"inference": {"min_informative": 50}}, "no feature differs between conditions in at least 50 items"),
    ],
)
def test_rsa_refuses(fake, changes, message):
    """Each refusal names what is wrong and the remedy."""
    with pytest.raises(DataError, match=message):
        answer(fake, **changes)


def test_rsa_refuses_what_the_schema_refuses(fake):
    """Settings are checked by the schema of the analysis file."""
    with pytest.raises(SpecError, match="distanc"):
        answer(fake, settings={"distanc": "euclidean"})
    with pytest.raises(SpecError, match="distance"):
        answer(fake, settings={"distance": "manhattan"})


def test_rsa_refuses_a_single_item():
    """One item cannot be cross-validated."""
    one = simulate(crossed(1), n_features=20, density=0.5, seed=0, regions=("everything",))
    with pytest.raises(DataError, match="1 complete items"):
        answer(one)


def test_rsa_agrees_with_models_given_as_rsatoolbox_objects(fake):
    """What `model_rdms` hands out comes back as the same model, whatever the order of its conditions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rsatoolbox.model import ModelFixed
        from rsatoolbox.rdm import RDMs
    ask = {"conditions": ["a", "b"], "region": "everything"}
    (made,) = model_rdms(fake, models=EFFECTS, **ask).values()
    theirs = {model.name: model for model in made}
    known = answer(fake).set_index("effect")
    found = rsa(fake, models=theirs, **ask, inference={"n_permutations": 200}, seed=1).set_index("effect")
    assert_allclose(found.value[list(theirs)], known.value[list(theirs)], rtol=1e-12)
    names, order = ["x/x", "x/y", "y/x", "y/y"], [2, 0, 3, 1]
    square = made[0].rdm_obj.get_matrices()[0][np.ix_(order, order)]
    turned = RDMs(square[None], pattern_descriptors={"condition": [names[k] for k in order]})
    for model in (turned, ModelFixed("turned", turned)):
        again = rsa(fake, models={"turned": model}, **ask, inference={"n_permutations": 200}, seed=1)
        assert_allclose(again.value[0], known.value[made[0].name], rtol=1e-12)
    for model, why in (
        (np.zeros(6), "model 'm' is ndarray; give a mapping, rsatoolbox RDMs or a ModelFixed"),
        (RDMs(np.ones((2, 6))), "model 'm' holds 2 RDMs; give one"),
        (RDMs(np.ones((1, 3))), "model 'm' has 3 conditions, but the data has 4"),
        (RDMs(np.ones((1, 6)), pattern_descriptors={"condition": list("abcd")}), "model 'm' has no condition 'x/x'"),
    ):
        with pytest.raises(DataError, match=why):
            rsa(fake, models={"m": model}, **ask, seed=1)
