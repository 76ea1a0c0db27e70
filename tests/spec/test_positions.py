"""What the positions block refuses."""

from __future__ import annotations

from neurosae.spec.positions import Positions, score_problems


def test_score_problems_names_the_part_that_needs_a_score():
    """Without surprisal and logit_diff nothing may ask for them; with them, or without such a part, all is well."""
    parts = {"test 'a'": {"nuisance": ["n_tokens", "surprisal"]}, "inference": {"nuisance": []}}
    found = list(score_problems(Positions(scores=False), parts))
    assert found == [
        (("positions", "scores"), "is false, but test 'a' uses surprisal; leave it out, or set it to true.")
    ]
    assert not list(score_problems(Positions(), parts))
    assert not list(score_problems(Positions(scores=False), {"test 'a'": {"nuisance": ["n_tokens"]}}))
