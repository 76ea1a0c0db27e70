"""Rules: a planted one is found and its score counted by hand, chance is not taken for a rule, items are not split."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# (groups are given as an array)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.examine.rules import _words, detect_rule, rules_of, token_table
from neurosae.examine.seen import Seen, cut_text
from neurosae.extraction.tokens import byte_tokenizer, encode

TOKENS = byte_tokenizer()


def planted(texts, where):
    """A feature that is active where `where(text, index)` says so; tokens are bytes."""
    text, index, ids, active = [], [], [], []
    for number, words in enumerate(texts):
        own = encode(TOKENS, [words])[0].ids[1:]
        text += [number] * len(own)
        index += range(len(own))
        ids += own.tolist()
        active += [float(where(words, i)) for i in range(len(own))]
    codes = sp.csc_matrix(np.array(active, dtype=np.float32)[:, None])
    return Seen("s", np.array([7]), codes, *(np.array(x) for x in (text, index, [0] * len(text), ids)))


@pytest.fixture(scope="module")
def texts():
    draw = np.random.default_rng(0)
    parts = "cat dogs ran red boats saw 12 Tim, the".split()
    return [" ".join(draw.choice(parts, 5)) for _ in range(60)]


def test_rules_recover_a_planted_token(texts):
    """A feature of the letter o: AUROC 1, at the smallest p; hard negatives cannot exist."""
    found = rules_of(planted(texts, lambda t, i: t[i] == "o"), texts, TOKENS)
    best = found.iloc[0]
    assert (best["rule"], best["auroc"]) == ("the token is 'o'", 1.0)
    assert best["p_corr"] < 0.01
    assert np.isnan(best["auroc_hard"])


def test_rules_recover_context_where_the_token_does_not_help(texts):
    """An s after a t is no matter of the token s: the rule of the token before it wins, also on hard negatives."""
    where = lambda t, i: i > 0 and t[i - 1] == "d"  # noqa: E731
    found = rules_of(planted(texts, where), texts, TOKENS)
    assert found.iloc[0]["rule"] == "the token before it is 'd'"
    assert_allclose(found.iloc[0][["auroc", "auroc_hard"]].astype(float), 1.0)


def test_rules_recover_users_words_patterns_and_levels(texts):
    """Lists and expressions of one's own, and levels of the design, compete with the proposed rules."""
    levels = pd.DataFrame({"half": ["x" if i % 3 else "y" for i in range(len(texts))]})
    number = {text: i for i, text in enumerate(texts)}
    seen = planted(texts, lambda t, i: number[t] % 3 == 0)
    assert rules_of(seen, texts, TOKENS, levels=levels).iloc[0]["rule"] == "the text is half: y"
    animals = planted(texts, lambda t, i: words_at(t)[i] in ("cat", "dogs"))
    settings = {"words": {"animals": ["Cat", "dogs"]}, "patterns": {"plural": "[a-z]+s"}}
    found = rules_of(animals, texts, TOKENS, settings=settings).iloc[0]
    assert (found["kind"], found["auroc"]) == ("your words", 1.0)
    plural = planted(texts, lambda t, i: words_at(t)[i] in ("dogs", "boats"))
    found = rules_of(plural, texts, TOKENS, settings=settings)
    assert found[found["kind"] == "your pattern"]["auroc"].item() == 1.0


def words_at(text):
    return _words(cut_text(TOKENS, text))


def test_scores_agree_with_scipy(texts):
    """AUROC of a binary rule is that of Mann and Whitney on the held-out half."""
    seen = planted(texts, lambda t, i: (t[i] == "o") != (i % 7 == 0))
    found = rules_of(seen, texts, TOKENS)
    row = found[found["rule"] == "the token is 'o'"].iloc[0]
    order = np.random.default_rng([0, 1]).permutation(np.arange(60))
    held = np.isin(seen.text, order[30:])
    active = seen.codes.toarray()[held, 0] > 0
    true = np.array([t == "o" for t in token_table(seen, texts, TOKENS)["token"]])[held]
    u = stats.mannwhitneyu(true[active], true[~active]).statistic
    assert_allclose(row["auroc"], u / (active.sum() * (~active).sum()))
    assert (row["n_true"], row["n_active"], row["n_tokens"]) == (true.sum(), active.sum(), held.sum())


def test_rules_control_false_rules():
    """Activity that has nothing to do with tokens, in 80 worlds: some rule at .05 in few of them."""
    hits = 0
    for seed in range(80):
        draw = np.random.default_rng(seed)
        texts = [" ".join(draw.choice(["cat", "dogs", "ran", "Tim", "12"], 4)) for _ in range(60)]
        noise = planted(texts, lambda t, i, draw=draw: draw.random() < 0.1)
        hits += rules_of(noise, texts, TOKENS, settings={"n_permutations": 200})["p_corr"].min() <= 0.05
    assert hits <= stats.binom.ppf(0.999, 80, 0.05)


def test_groups_are_never_split(texts):
    """Repeats of an item count once: p with every text five times, grouped, is that of the texts alone."""
    where = lambda t, i: t[i] == "o" and hash_of(t) % 4 == 0  # noqa: E731
    few = texts[:16]
    one = rules_of(planted(few, where), few, TOKENS)
    many = [t for t in few for _ in range(5)]
    five = rules_of(planted(many, where), many, TOKENS, groups=np.repeat(np.arange(16), 5))
    both = [t.set_index("rule")["p_corr"] for t in (one, five)]
    assert_allclose(both[0].loc["the token is 'o'"], both[1].loc["the token is 'o'"])
    loose = rules_of(planted(many, where), many, TOKENS).set_index("rule")["p_corr"]
    assert loose.loc["the token is 'o'"] <= both[0].loc["the token is 'o'"]


def hash_of(text):
    return sum(map(ord, text))


def test_words_are_put_together():
    """Pieces of a word share it; punctuation stands apart."""
    assert _words([" run", "ning", ",", " 12", "!"]) == ["running", "running", ",", "12", "!"]


def test_rules_say_when_there_is_nothing_to_score(texts):
    """Silent features have a row with the reason; bad expressions and sizes are refused."""
    found = rules_of(planted(texts, lambda t, i: False), texts, TOKENS)
    assert "no rule can be scored" in found["note"].item()
    with pytest.raises(DataError, match="no regular expression"):
        rules_of(planted(texts, lambda t, i: True), texts, TOKENS, settings={"patterns": {"x": "("}})
    with pytest.raises(DataError, match="one group"):
        rules_of(planted(texts, lambda t, i: True), texts, TOKENS, groups=[1])


def test_detect_rule_agrees_with_rules_of(toy, words, made_dictionary):
    """The public function runs the model and asks the same."""
    found = detect_rule(toy, made_dictionary(1), words, feature=13)
    assert found["auroc"].between(0, 1).all()
    assert found["feature"].eq(13).all()
