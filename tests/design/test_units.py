"""Items, carriers of factors, and forms that items share."""

from __future__ import annotations

import pytest

from neurosae.design.units import all_forms, carriers, form_at, items_of, shared_forms
from neurosae.errors import SpecError


def test_items_recover_levels_labels_and_forms(designs):
    """What an item carries is told apart from what fills its slots."""
    good = items_of(designs["mixed"]((2, 2)))["key"]
    assert good.levels == {"valence": "good"}
    assert set(good.forms) == {"adj", "neg"}
    text = items_of(designs["lists"](2))["won.going.2"]
    assert text.labels == {"topic": "work"}
    assert text.forms == {"text": "won going number 1."}


def test_items_refuse_names_that_collide(designs):
    """Two cells of a list may not give two items one name."""
    factors = {
        name: {"levels": levels, "varies": "between"} for name, levels in (("a", ["x", "x.y"]), ("b", ["y.z", "z"]))
    }
    texts = {a: {b: [f"{a} and {b}"] for b in ("y.z", "z")} for a in ("x", "x.y")}
    with pytest.raises(SpecError, match=r"two items are called 'x\.y\.z\.1'; rename a level"):
        items_of(designs["make"](factors=factors, lists=texts))


def test_carriers_recover_the_slots_of_a_factor(designs):
    """Within items: slots that name it, but not the target. Between items: slots no form of which has two levels."""
    design = designs["agreement"]()
    assert carriers(design, ["subject"]) == ("head",)
    assert carriers(design, ["attractor"]) == ("local", "rel")
    items = {f"{name}_{adj}": {"valence": level, "name": name, "adj": adj} for name in ("Ann", "Tom")
             for adj, level in (("glad", "good"), ("sad", "bad"))}  # fmt: skip
    factors = {"valence": {"levels": ["good", "bad"], "varies": "between"}}
    names = designs["make"](factors=factors, frames={"f": "{name} was {adj}"}, items=items)
    assert carriers(names, ["valence"]) == ("adj",)


def test_shared_forms_recover_who_uses_them(designs):
    """Forms are counted once per item, whatever the number of levels that use them."""
    items = {name: {"adj": {"no": "some", "yes": yes}} for name, yes in (("a", "red"), ("b", "red"), ("c", "some"))}
    design = designs["make"](factors={"k": ["no", "yes"]}, frames={"f": "It is {adj:k}"}, items=items)
    table = shared_forms(design).set_index("form")["items"].to_dict()
    assert table == {"some": ("a", "b", "c"), "red": ("a", "b")}


def test_form_at_agrees_with_all_forms():
    """Every combination of levels gives a form that is listed."""
    form = {"x": {"l": "1", "r": "2"}, "y": {"l": "3", "r": "4"}}
    found = [form_at(form, ["a", "b"], {"a": a, "b": b}) for a in "xy" for b in "lr"]
    assert found == all_forms(form) == ["1", "2", "3", "4"]
