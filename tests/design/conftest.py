"""Small designs of every kind."""

from __future__ import annotations

import pytest

from neurosae.spec.design import Design

NOUNS = "key box cup car map pen dog hat bell lamp ring door".split()
VERBS = "hide hit hold keep lift like lose make mend miss move need".split()
NEAR = "lid jar fork bus book desk cat coat drum bulb rope gate".split()


def make(**parts) -> Design:
    return Design.model_validate({"schema": "neurosae/design/1", "name": "design", **parts})


def plural(word: str) -> dict[str, str]:
    return {"sg": word, "pl": f"{word}s"}


def agreement(n_items: int = 8, **parts) -> Design:
    """Subject x attractor within items, two frames, a region before the verb."""
    be = [{"sg": "is", "pl": "are"}, {"sg": "was", "pl": "were"}]
    words = enumerate(zip(NOUNS[:n_items], NEAR, VERBS, strict=False))
    items = {
        a: {"head": plural(a), "prep": "near", "local": plural(b), "rel": {"sg": f"{c}s", "pl": c}, "verb": be[i % 2]}
        for i, (a, b, c) in words
    }
    frames = {
        "pp": "The {head:subject} {prep} the {local:attractor} {verb:subject}",
        "rc": "The {head:subject} that the {local:attractor} {rel:attractor} {verb:subject}",
    }
    base = {
        "factors": {"subject": ["sg", "pl"], "attractor": ["sg", "pl"]},
        "frames": frames,
        "regions": {"pre_verb": {"before": "verb"}},
        "target": {"slot": "verb"},
        "items": items,
    }
    return make(**(base | parts))


def lists(n: int = 4, **parts) -> Design:
    """Outcome x course between items, with a topic."""
    texts = {
        outcome: {
            course: [{"topic": ("sport", "work")[i % 2], "text": f"{outcome} {course} number {i}."} for i in range(n)]
            for course in ("ending", "going")
        }
        for outcome in ("lost", "won")
    }
    factors = {
        "outcome": {"levels": ["lost", "won"], "varies": "between"},
        "course": {"levels": ["ending", "going"], "varies": "between"},
    }
    regions = {"last": {"words": [-1, -1]}, "whole": {"words": [0, -1]}}
    return make(
        **({"factors": factors, "labels": ["topic"], "strata": "topic", "regions": regions, "lists": texts} | parts)
    )


def mixed(sizes=(5, 3), **parts) -> Design:
    """Valence between items, polarity within them; groups of different size."""
    items = {}
    for level, n, words in zip(("good", "bad"), sizes, (NOUNS, NEAR), strict=True):
        items |= {word: {"valence": level, "adj": word, "neg": {"yes": "so", "no": "not"}} for word in words[:n]}
    factors = {"valence": {"levels": ["bad", "good"], "varies": "between"}, "polarity": ["no", "yes"]}
    frames = {"f": "It was {neg:polarity} {adj} today"}
    return make(**({"factors": factors, "frames": frames, "items": items} | parts))


@pytest.fixture
def designs():
    """The makers of small designs, by name."""
    return {"make": make, "agreement": agreement, "lists": lists, "mixed": mixed, "plural": plural}
