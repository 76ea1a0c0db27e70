"""Map blocks: their defaults, and what is refused with file and line before a model is loaded."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError
from neurosae.spec.blocks import MapBlock

ANCHOR = "  geometry:"


@pytest.fixture
def mapped(edited):
    """A function that puts a map block into the example analysis and reads it."""

    def read(block):
        return edited(
            "analyses/number_agreement", ANCHOR, f"  where: {{test: map, effect: subject, {block}}}\n{ANCHOR}"
        )

    return read


def test_map_block_recovers_defaults(mapped):
    """Both axes, max-T, all sites, the strongest feature."""
    found = mapped("region: [head, local]").tests["where"]
    assert isinstance(found, MapBlock)
    assert (found.over, found.statistic, found.sites, found.features) == (("site", "position"), "maxT", None, None)
    assert found.effect == ("subject",)


def test_map_block_recovers_the_example_of_the_design(mapped):
    """Regions x two sites, by TFCE, of features that a localizer chose."""
    found = mapped(
        "region: [head, local, pre_verb], statistic: tfce, sites: [early, late], features: {from: find_number, top: 5}"
    )
    assert (found.tests["where"].statistic, found.tests["where"].features.top) == ("tfce", 5)


CASES = [
    ("region: head, over: [site, layer]", r"tests.where.over: unknown axis of a map 'layer'. Known: site, position."),
    ("region: head, statistic: tcfe", r"tests.where.statistic: .*tfce"),
    (
        "region: head, correction: fdr_bh",
        r"tests.where.correction: a map is corrected by the maximum over itself.* leave this out",
    ),
    ("region: head, sites: late", r"tests.where: has one cell; a map needs at least 2: name more sites or regions"),
    ("region: [head, local], sites: late, over: site", r"tests.where.over: goes over sites, but there is one"),
    (
        "region: [head, local], sites: late, statistic: tfce",
        r"tests.where.statistic: no two cells are neighbours, so tfce has nothing to join; use statistic: maxT",
    ),
    ("region: [head, local], over: position, statistic: cluster", r"so cluster has nothing to join"),
    ("region: head, features: {from: number, top: 5}", r"would choose features and test them on the same items"),
]


@pytest.mark.parametrize(("block", "text"), CASES)
def test_map_block_refuses(mapped, block, text):
    """One line with file, line, field, what is wrong and what would be right."""
    with pytest.raises(SpecError, match=r"^\S*analyses/number_agreement.yaml:\d+: .*" + text):
        mapped(block)


def test_families_refuse_maps_without_a_common_scale(mapped, edited):
    """Cluster mass and TFCE share no maximum with contrasts; max-T maps do."""
    where = "analyses/number_agreement"
    mapped("region: [head, local], statistic: tfce")
    with pytest.raises(SpecError, match=r"'where' is corrected by tfce, but a family .*; set `statistic: maxT` on it"):
        edited(where, "[number, interference]", "[number, interference, where]")
    found = edited(where, "statistic: tfce", "statistic: maxT")
    assert found.inference.families["agreement"] == ("number", "interference", "where")


def test_maps_refuse_means(mapped, edited):
    """Means of different sites are in different units."""
    mapped("region: [head, local]")
    with pytest.raises(
        SpecError, match=r"tests.where: compares cells, but inference.statistic: mean is in each site's"
    ):
        edited("analyses/number_agreement", "statistic: moderated_t", "statistic: mean")
