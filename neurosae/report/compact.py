r"""A smaller SVG that draws the same: what matplotlib writes, without what no browser needs.

Coordinates keep two decimals (a hundredth of a point), ids that nothing refers to and groups that carry nothing go,
`style` attributes that recur become classes, one rule per distinct style, ids are short, and white space goes where it
means nothing.
No element that draws is dropped or changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
NUMBERS = ("d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "points", "viewBox")
"""Attributes whose numbers are lengths in points."""


def compact(svg: str, *, prefix: str) -> str:
    r"""The same drawing in fewer characters.

    Parameters
    ----------
    svg : one `<svg>` element, well-formed
    prefix : of the names of classes, which live in the page and not in the drawing alone

    Examples
    --------
    >>> line = '<g id="a"><path id="b" d="M 1.23456 2 \nL 3.0 4 \n" style="fill: none"/></g>'
    >>> compact(f'<svg viewBox="0 0 9 9">{line}</svg>', prefix="f0")
    '<svg viewBox="0 0 9 9"><path d="M1.23 2L3 4" style="fill:none"/></svg>'
    """
    spaces = f'<svg xmlns="{SVG[1:-1]}" xmlns:xlink="{XLINK[1:-1]}"'
    root = ElementTree.fromstring(svg.replace("<svg", spaces, 1))
    named = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    for element in root.iter():
        _tidy(element, named)
    _rename(root, prefix)
    styles = Counter(element.get("style", "") for element in root.iter())
    often = [style for style, n in styles.items() if style and n > 1 and "max-width" not in style]
    classes = {style: f"{prefix}{_letters(k)}" for k, style in enumerate(sorted(often))}
    for element in root.iter():
        if (known := classes.get(element.get("style", ""))) is not None:
            del element.attrib["style"]
            element.set("class", " ".join(filter(None, (element.get("class"), known))))
    for element in root.iter(f"{SVG}g"):
        _hoist(element, {name: style for style, name in classes.items()})
    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    return _written(root, f"<style>{rules}</style>" if rules else "")


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Ids of one or two letters in the place of hashes, in every reference too; prefixed ids keep their prefix."""
    ids = [found for element in root.iter() if (found := element.get("id")) is not None]
    short = {name: f"{prefix}-{_letters(k)}" for k, name in enumerate(ids)}
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, short[value])
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{short.get(value[1:], value[1:])}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{short.get(m[1], m[1])})", value))


def _hoist(group: ElementTree.Element, rules: Mapping[str, str]) -> None:
    """A class that all markers of a group share moves to the group, from which they inherit it."""
    shared = {child.get("class", "") for child in group}
    if len(group) < 2 or len(shared) > 1 or any(child.tag != f"{SVG}use" for child in group):
        return
    name = shared.pop()
    if name in rules and not re.search(r"(^|;)(opacity|clip-path|filter|mask|display|transform)", rules[name]):
        for child in group:
            del child.attrib["class"]
        group.set("class", " ".join(filter(None, (group.get("class"), name))))


def _tidy(element: ElementTree.Element, named: set[str]) -> None:
    """Shorter attributes of one element, and no white space around its children."""
    if element.get("id") is not None and element.get("id") not in named:
        del element.attrib["id"]
    if re.fullmatch(r"rotate\(-?0(?:\.0*)?[ ,].*\)", element.get("transform", "")):
        del element.attrib["transform"]
    for name in NUMBERS:
        if name in element.attrib:
            element.set(name, NUMBER.sub(_rounded, element.get(name, "")))
    if "d" in element.attrib:
        element.set("d", re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(element.get("d", "").split())))
    if "transform" in element.attrib:
        element.set("transform", NUMBER.sub(_finer, element.get("transform", "")))
    if "clip-path" in element.attrib:
        element.set("style", f"{element.get('style', '')};clip-path:{element.attrib.pop('clip-path')}")
    if "style" in element.attrib:
        parts = (part.split(":", 1) for part in element.get("style", "").split(";") if part.strip())
        element.set("style", ";".join(f"{name.strip()}:{value.strip()}" for name, value in parts))


def _rounded(number: re.Match[str]) -> str:
    """Two decimals; none that are zero."""
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _finer(number: re.Match[str]) -> str:
    """Factors of a transformation keep six significant digits."""
    return f"{float(number[0]):.6g}"


def _letters(k: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letters(k // 26 - 1) if k >= 26 else "") + chr(ord("a") + k % 26)


def _written(element: ElementTree.Element, rules: str = "") -> str:
    """An element as text; a group without attributes is its children alone."""
    name = element.tag.removeprefix(SVG)
    if name == "text" or name == "title" or name == "tspan":
        inside = escape(element.text or "") + "".join(_written(child) + escape(child.tail or "") for child in element)
    else:
        inside = (element.text or "").strip() and escape(element.text or "")
        inside += "".join(_written(child) for child in element)
    if name == "g" and (not element.attrib or not inside):
        return inside
    link = "xlink:" if name == "image" else ""  # data in the page; inside of it, `use` needs no prefix
    attributes = "".join(f" {key.replace(XLINK, link)}={quoteattr(value)}" for key, value in element.attrib.items())
    return f"<{name}{attributes}>{rules}{inside}</{name}>" if rules or inside else f"<{name}{attributes}/>"
