"""From responses to one number per unit: weights, groups, what cancels, what is merged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import firing, item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}


def mixed_design():
    """Number within items, list between them; 10 items of one kind, 6 of the other."""
    items = {f"i{k}": {"noun": {"sg": f"n{k}", "pl": f"n{k}s"}, "kind": "a" if k < 10 else "b"} for k in range(16)}
    factors = {"number": ["sg", "pl"], "kind": {"levels": ["a", "b"], "varies": "between"}}
    made = {"schema": "neurosae/design/1", "name": "mixed", "factors": factors, "items": items}
    return Design.model_validate(made | {"frames": {"f": "The {noun:number} here"}})


def test_item_data_agrees_with_pandas():
    """d_i = mean(pl) - mean(sg) of each item, in the order of the units."""
    fake = simulate(example_design(12), n_features=30, density=0.5, seed=0)
    data = item_data(fake, example_design(12), NUMBER, region="noun")
    table = pd.DataFrame(fake.X.toarray().astype(float))
    y = table.groupby([fake.obs["item"].to_numpy(), fake.obs["number"].astype(str).to_numpy()]).mean()
    expected = y.xs("pl", level=1) - y.xs("sg", level=1)
    assert_allclose(data.D.toarray(), expected.loc[list(data.names)].to_numpy(), atol=1e-12)
    plus, minus, *_ = firing(data, np.arange(30))
    assert_allclose(plus - minus, data.D.toarray(), atol=1e-12)


def test_mixed_main_effect_weighs_groups_equally():
    """The mean over units is the mean of the two group means, although the groups have 10 and 6 items."""
    design = mixed_design()
    fake = simulate(design, n_features=20, density=0.6, seed=0)
    data = item_data(fake, design, NUMBER, region="noun")
    kind = np.array([design.items[name]["kind"] for name in data.names])
    y = pd.DataFrame(fake.X.toarray().astype(float))
    y = y.groupby([fake.obs["item"].to_numpy(), fake.obs["number"].astype(str).to_numpy()]).mean()
    d = (y.xs("pl", level=1) - y.xs("sg", level=1)).loc[list(data.names)].to_numpy()
    assert data.codes is None
    assert_allclose(data.D.toarray().mean(axis=0), (d[kind == "a"].mean(axis=0) + d[kind == "b"].mean(axis=0)) / 2)


def test_mixed_interaction_permutes_labels_of_differences():
    """The datum is the within-item difference, the label the group; items keep their design numbers."""
    design = mixed_design()
    fake = simulate(design, n_features=20, density=0.6, seed=0)
    effect = NUMBER | {"kind": {"a": 1, "b": -1}}
    data = item_data(fake, design, effect, region="noun")
    assert data.exchange.kind == "permute_labels"
    assert sorted(np.bincount(data.codes)) == [6, 10]
    assert_array_equal(data.numbers, [list(design.items).index(name) for name in data.names])


def test_what_cancels_is_not_informative():
    """0.1 + 0.2 - 0.3 is not zero in floating point, but the item carries no difference."""
    fake = simulate(example_design(6), n_features=3, density=1 - 1e-9, seed=0)
    fake.X.data[:] = 0.3
    assert item_data(fake, example_design(6), NUMBER, region="noun").D.nnz == 0


def test_item_data_refuses_a_contrast_of_which_a_cell_is_missing():
    """Rows of one level alone are no contrast: their mean would differ from 0 in every active feature."""
    design = mixed_design()
    fake = simulate(design, n_features=20, density=0.6, seed=0)
    half = fake[(fake.obs["number"] == "sg").to_numpy()]
    with pytest.raises(DataError, match="position 0: no item has a row in cell pl/a, pl/b, which the effect compares"):
        item_data(half, design, NUMBER, region="noun")
    kinds = {"kind": {"a": 1, "b": -1}}
    with pytest.raises(DataError, match="no item has a row in cell sg/b, pl/b"):
        item_data(fake[(fake.obs["kind"] == "a").to_numpy()], design, kinds, region="noun")


def test_item_data_refuses_a_group_of_one():
    """A variance between items needs two of them."""
    design = example_design(8, between=True)
    fake = simulate(design, n_features=5, density=0.5, seed=0)
    some = fake[~fake.obs["item"].isin(["pl.2", "pl.3", "pl.4"]).to_numpy()].copy()
    with pytest.raises(DataError, match="has 1 item; a variance needs at least 2"):
        item_data(some, design, NUMBER, region="noun")
