"""Seeds as subjects in an analysis file: what is refused before a model is loaded, and what `check` prints."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError
from neurosae.spec.subjects import subject_notes

ANCHOR = "  geometry:"
SITE = "  late_2: {"


@pytest.fixture
def seeds(study, edited):
    """A function that puts n trained sites and a block over them into the example analysis and reads it."""

    def read(block, n=8, first=10):
        train = "train: {d_sae: 2048, n_tokens: 1000000, seed: "
        hook = "hook: blocks.3.hook_resid_post"
        sites = "".join(f"  s{k}: {{{hook}, dictionary: {{{train}{max(k, first)}}}}}}}\n" for k in range(n))
        path = study / "analyses/number_agreement.yaml"
        path.write_text(path.read_text().replace(SITE, sites + SITE, 1))
        named = ", ".join(f"s{k}" for k in range(n))
        line = f"  seeds: {{test: subjects, effect: subject, region: head, sites: [{named}], {block}}}\n{ANCHOR}"
        return edited("analyses/number_agreement", ANCHOR, line)

    return read


CASES = [
    ("statistic: length", 8, r"tests.seeds.statistic: .*prevalence"),
    ("statistic: mean", 5, r"tests.seeds.sites: 5 subjects allow 32 flips; the smallest two-sided p is 0.0625"),
    ("statistic: prevalence", 4, r"tests.seeds.sites: 4 subjects cannot show .* p is 0.0625, above .* at least 5"),
    ("gamma0: 0.8", 8, r"tests.seeds.sites: 8 subjects cannot show an effect in more than 0.8"),
    ("statistic: mean, gamma0: 0.5", 8, r"tests.seeds.gamma0: belongs to prevalence"),
    ("statistic: prevalence, alternative: greater", 8, r"tests.seeds.alternative: has no meaning with prevalence"),
    ("statistic: difference", 8, r"tests.seeds.effect: has 1, but a difference is that of two"),
]


@pytest.mark.parametrize("case", CASES)
def test_subjects_block_refuses(seeds, case):
    """Each refusal names the line, the field and what would do."""
    block, n, text = case
    with pytest.raises(SpecError, match=rf"analyses/number_agreement.yaml:\d+: .*{text}"):
        seeds(block, n, first=0)


def test_one_dictionary_under_two_names_is_refused(seeds):
    """The seeds 0 to 5 are all 5 here: one subject counted six times."""
    with pytest.raises(SpecError, match=r"'s0' and 's1' are the same dictionary; a subject counts once"):
        seeds("statistic: mean", 6, first=5)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("statistic: mean", "whole subjects are sign-flipped: 2^8 = 256 relabellings, smallest two-sided p 0.0078"),
        ("statistic: prevalence", "smallest p for more than 0.5 of the subjects about 0.0039"),
    ],
)
def test_check_prints_what_is_exchanged(seeds, block, said):
    """Number of relabellings and smallest p of whole subjects, and what p speaks of."""
    (note,) = subject_notes(seeds(block, 8, first=0))
    assert said in note
    assert "on these items and this model" in note
