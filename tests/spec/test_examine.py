"""What `examine:` may say, and what is refused with its line."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError

OLD = "report: {title"


def given(block):
    return f"examine: {block}\n{OLD}"


def test_examine_loads(edited):
    """Everything left out has its default; nothing is sent anywhere."""
    ask = edited("analyses/number_agreement", OLD, given("{features: {from: number, top: 5}}")).examine
    assert (ask.features.from_, ask.top, ask.endpoint, ask.texts, ask.n_tokens) == ("number", 5, None, (), None)
    endpoint = "endpoint: {base_url: 'http://localhost:1/v1', model: m}"
    text = f"{{features: {{ids: {{late: [3]}}}}, by: [subject], track: late, {endpoint}}}"
    made = edited("analyses/number_agreement", "{features: {from: number, top: 5}}", text).examine
    assert (made.track, made.endpoint.key, made.endpoint.judge) == (("late",), None, True)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{top: 5}", "features: is missing"),
        ("{features: {from: nmber, top: 5}}", "unknown test 'nmber'. Did you mean 'number'"),
        ("{features: {from: number}}", "belongs to `from`"),
        ("{features: {ids: [3]}}", "several sites"),
        ("{features: {ids: {lat: [3]}}}", "unknown site 'lat'"),
        ("{features: {ids: {late: [3]}}, by: [colour]}", "unknown factor 'colour'"),
        ("{features: {ids: {late: [3]}}, track: [lat]}", "unknown site 'lat'"),
        ("{features: {ids: {late: [3]}}, quantiles: [1.5]}", "must be below 1"),
        ("{features: {ids: {late: [3]}}, rules: {patterns: {x: '('}}}", "no regular expression"),
        ("{features: {ids: {late: [3]}}, endpoint: {model: m}}", "base_url: is missing"),
        ("{features: {ids: {late: [3]}}, endpoint: {base_url: 'x.y', model: m}}", "is no address"),
        ("{features: {ids: {late: [3]}}, endpoint: {base_url: 'https://x/v1', model: m, key: sk-1}}", "never a key"),
        ("{features: {ids: {late: [3]}}, endpoint: {base_url: 'http://x.y/v1', model: m, key: K}}", "unencrypted"),
        ("{features: {ids: {late: [3]}}, exampels: 3}", "unknown key"),
    ],
)  # fmt: skip
def test_examine_refuses(edited, block, said):
    """In one line, with the place."""
    with pytest.raises(SpecError, match=rf"examine.*{said}"):
        edited("analyses/number_agreement", OLD, given(block))


def test_a_refused_key_is_not_repeated(edited):
    """What looks like a key does not reach a log by way of a message."""
    secret = "sk-not-a-real-key-0123456789"
    with pytest.raises(SpecError) as told:
        edited("analyses/number_agreement", OLD, given(
            f"{{features: {{ids: {{late: [3]}}}}, endpoint: {{base_url: 'https://x/v1', model: m, key: {secret}}}}}"
        ))  # fmt: skip
    assert secret not in str(told.value)
