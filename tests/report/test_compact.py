"""Smaller drawings that draw the same."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from neurosae.report.compact import compact
from neurosae.report.style import _render, canvas, drawn, svg_text

DRAWS = ("path", "use", "text", "image", "rect", "polygon", "circle")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@drawn
def scene():
    """Lines, many markers, an image, a legend, turned text and a clip."""
    figure = canvas(4, 3)
    one, two = figure.subplots(1, 2)
    rng = np.random.default_rng(0)
    one.scatter(*rng.normal(size=(2, 80)), s=9, c="#c8500a", label="a & <b>")
    one.plot(rng.normal(size=50).cumsum(), color="#0b6fae")
    one.set_ylabel("turned")
    one.legend()
    two.imshow(rng.random((5, 5)), cmap="Greys")
    return figure


def shapes(svg):
    """Name, numbers and text of everything that draws, in order; clip paths and markers included."""
    spaces = '<svg xmlns:xlink="http://www.w3.org/1999/xlink"'
    found = []
    for element in ElementTree.fromstring(svg.replace("<svg", spaces, 1)).iter():
        name = element.tag.rpartition("}")[2]
        if name in DRAWS:
            numbers = [
                float(x)
                for key in ("d", "x", "y", "width", "height", "points")
                for x in NUMBER.findall(element.get(key, ""))
            ]
            found.append((name, numbers, element.text if name == "text" else ""))
    return found


def test_compact_drawings_keep_every_shape_in_its_place():
    """Everything that draws is still there, in order, with its text, within a hundredth of a point."""
    raw = _render(scene(), "none")
    raw = re.sub(r"<metadata>.*?</metadata>", "", raw[raw.index("<svg") :], flags=re.DOTALL)
    raw = re.sub(r' xmlns(:xlink)?="[^"]+"', "", raw)
    raw = raw.replace("xlink:href", "href")
    small = compact(raw, prefix="f0")
    before, after = shapes(raw), shapes(small)
    assert [(n, t) for n, _, t in before] == [(n, t) for n, _, t in after]
    for (_, a, _), (_, b, _) in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=0.0051)
    assert len(small) < 0.55 * len(raw)


def test_compact_drawings_refer_to_what_is_there():
    """Every clip, marker and class that is used is defined, once, under the name of the figure."""
    svg = svg_text(scene(), "f3", "a scene")
    ids = re.findall(r' id="([^"]+)"', svg)
    used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
    assert set(used) == set(ids)
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("f3-") for name in ids)
    rules = re.findall(r"\.(\w+)\{", svg)
    classes = {name for found in re.findall(r'class="([^"]+)"', svg) for name in found.split()} - {"tip"}
    assert classes == set(rules)
    assert len(set(rules)) == len(rules)
    assert all(name.startswith("f3") for name in rules)
    assert "a &amp; &lt;b&gt;" in svg
    assert "rotate(-90" in svg


@pytest.mark.parametrize(("long", "short"), [("1.005000", "1"), ("-0.001", "0"), ("2.345e-05", "0"), ("-3.999", "-4")])
def test_numbers_are_rounded_to_a_hundredth(long, short):
    """No negative zero, no exponent, no decimals that say nothing."""
    assert f'd="M{short} 7"' in compact(f'<svg><path d="M {long} 7"/></svg>', prefix="f")
