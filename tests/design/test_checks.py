"""What `check` says and refuses before a model is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from neurosae.design.check_report import reach_words
from neurosae.design.checks import check, default_effects
from neurosae.errors import SpecError
from neurosae.spec.analysis import Analysis
from neurosae.spec.design import Design

NUMBER, NEAR = {"subject": {"pl": 1, "sg": -1}}, {"attractor": {"pl": 1, "sg": -1}}


def analysis(effects, **tests):
    parts = {"schema": "neurosae/analysis/1", "name": "a", "design": "d.yaml", "model": {"name": "embedded"}}
    sites = {"late": {"hook": "blocks.3.hook_resid_post", "dictionary": {"embedded": "late"}}}
    return Analysis.model_validate(parts | {"sites": sites, "effects": effects, "tests": tests})


def contrast(effect="e", region="pre_verb", **more):
    return {"test": "contrast", "effect": effect, "region": region} | more


def test_check_recovers_the_printed_report(designs):
    """Cells, exchangeability, reach and words for the agreement design, as the specification prints them."""
    text = check(designs["agreement"](12, partition={"localizer": 4})).text()
    assert "balanced: every cell has the same items and frames" in text
    assert "subject, attractor vary within item: whole items are sign-flipped, one flip for all features" in text
    assert "8 test items: 2^8 = 256 relabellings; smallest two-sided p 0.0078,\n" in text
    assert "so max-T can reach .05 over any number of features, Holm or a first fdr_bh discovery over 6.\n" in text
    assert "pre_verb     0/24      24/24                 0/24" in text
    assert "!!" not in text


def test_check_agrees_with_the_analysis(designs):
    """Only what the tests ask is listed, by test and effect, with the items of its split."""
    spec = analysis({"e": NUMBER, "other": NEAR}, find=contrast(split="localizer"), main=contrast(["e", "other"]))
    report = check(designs["agreement"](12, partition={"localizer": 4}), spec)
    assert list(report.exchangeability) == ["find/e", "main/e", "main/other"]
    assert report.exchange["n_units"].tolist() == [4, 8, 8]
    assert any("'e' has 4 localizer items" in warning for warning in report.warnings)


def test_check_refuses_too_few_items(designs, tmp_path):
    """The message has the numbers, the remedy, and the line of the test."""
    spec = analysis({"e": NUMBER}, main=contrast())
    message = (
        r"tests\.main: 5 items in split 'test' allow 32 sign flips; the smallest two-sided p is 0\.062, "
        r"above alpha 0\.05\. Use at least 6 items\."
    )
    with pytest.raises(SpecError, match=f"^{message}"):
        check(designs["agreement"](5), spec)
    path = tmp_path / "a.yaml"
    path.write_text("tests:\n  main: {test: contrast}\n")
    with pytest.raises(SpecError, match=rf"a\.yaml:2: {message}"):
        check(designs["agreement"](5), spec, path=path)
    check(designs["agreement"](6), spec)
    check(designs["agreement"](5), analysis({"e": NUMBER}, main=contrast(alternative="greater")))


def test_check_refuses_an_interaction_with_one_text_for_all(designs):
    """One filler for all items makes a cell one text, counted once per item; main effects only warn."""
    words = "hot wet big old new red".split()
    items = {w: {"a": {"no": "some", "yes": w}, "b": {"no": "thing", "yes": f"{w}er"}} for w in words}
    factors = {"adj": ["no", "yes"], "noun": ["no", "yes"]}
    parts = {"frames": {"f": "One {a:adj} {b:noun} {probe}"}, "shared": {"probe": "here"}, "items": items}
    design = designs["make"](factors=factors, **parts)
    cross = {"adj": {"yes": 1, "no": -1}, "noun": {"yes": 1, "no": -1}}
    with pytest.raises(
        SpecError, match=r"tests\.t: effect 'e' cannot be tested: cell 'no/no' is the same text in all 6"
    ):
        check(design, analysis({"e": cross}, t=contrast(region="probe")))
    report = check(design, analysis({"e": {"adj": {"yes": 1, "no": -1}}}, t=contrast(region="probe")))
    assert any("cell 'no/no' is the same text in all 6 items" in warning for warning in report.warnings)


def test_one_word_per_level_is_no_replication(designs):
    """Names as items and one adjective per level: loud, with its grade; the target's few words are no such case."""
    names = "Ann Bea Cat Dan Eve Flo".split()
    items = {name: {"name": name, "adj": {"good": "happy", "bad": "sad"}} for name in names}
    design = designs["make"](
        factors={"mood": ["good", "bad"]}, frames={"f": "{name} was {adj:mood} today"}, items=items
    )
    report = check(design)
    assert report.warnings[0].startswith(
        "NO REPLICATION of 'mood': in all 6 items slot 'adj' has one word per level (happy"
    )
    assert "Grade: a test of these words, not of the factor" in report.warnings[0]
    assert not check(designs["agreement"](6)).warnings


def test_recurring_forms_are_named_until_merged(designs):
    """'red' in three items: a warning, then units, then too few of them."""
    words = [
        ("red", "boat"),
        ("red", "box"),
        ("red", "hat"),
        ("wet", "dog"),
        ("old", "man"),
        ("hot", "tea"),
        ("dry", "leaf"),
    ]
    items = {f"{a}_{b}": {"adj": {"no": f"un{a}{b}", "yes": a}, "noun": b} for a, b in words}
    parts = {
        "factors": {"adjective": ["no", "yes"]},
        "frames": {"f": "One {adj:adjective} {noun} here"},
        "items": items,
    }
    report = check(designs["make"](**parts))
    assert any("'red' carries adjective in 3 items: these items are not independent" in w for w in report.warnings)
    merged = check(designs["make"](**parts, unit="shared_forms"))
    assert merged.exchange["n_units"].tolist() == [5]
    assert "7 items make 5 units" in merged.text()
    spec = analysis({"e": {"adjective": {"yes": 1, "no": -1}}}, t=contrast(region="noun"))
    with pytest.raises(SpecError, match=r"5 items? in split 'test' allow 32 sign flips|5 groups of items"):
        check(designs["make"](**parts, unit="shared_forms"), spec)


def test_regions_where_nothing_differs_yet_are_named(designs):
    """The attractor cannot show at the subject; an effect that is never free of its words is named too."""
    spec = analysis({"e": NEAR}, t=contrast(region="head"))
    warnings = check(designs["agreement"](6), spec).warnings
    assert any(w.startswith("t: the + and - cells of e have the same text up to the end of 'head'") for w in warnings)
    items = {w: {"n": {"sg": w, "pl": f"{w}s"}} for w in "cat dog cow pig hen fox".split()}
    bare = designs["make"](factors={"k": ["sg", "pl"]}, frames={"f": "The {n:k}"}, items=items)
    assert any(w.startswith("'k' has no region where its words are the same") for w in check(bare).warnings)


def test_between_items_report(designs):
    """Lists: permutations inside strata in words, no matching of words, punctuation named."""
    text = check(designs["lists"](6)).text()
    assert "labels are permuted over items, inside each topic x course" in text
    assert "approximate: labels of all cells are permuted" in text
    assert "region 'last' ends in a punctuation mark in 24 of 24 stimuli" in text


def test_selection_and_overlap_are_named(designs):
    """Non-orthogonal effects, and features chosen by another effect."""
    effects = {"e": NUMBER, "simple": NUMBER | {"attractor": {"pl": 1}}, "near": NEAR}
    tests = {"find": contrast("near", split="localizer"), "t": contrast(features={"from": "find", "top": 3})}
    notes = check(designs["agreement"](12, partition={"localizer": 6}), analysis(effects, **tests)).notes
    assert "not orthogonal, so they share their evidence: e and simple." in notes
    assert any(note.startswith("t: features are chosen by near and tested for e") for note in notes)


def test_frames_that_ignore_a_factor_are_named(designs):
    """A frame without the slot of a factor adds zeros to its contrast."""
    design = designs["agreement"](6)
    frames = {**design.frames, "short": "The {head:subject} {verb:subject}"}
    notes = check(design.model_copy(update={"frames": frames})).notes
    assert "frame 'short' does not change with 'attractor': its difference there is 0 by construction." in notes


def test_tokens_are_counted_by_level(designs):
    """Counts by level, borders that a token straddles, targets that are not one token."""
    vocab = {w: i for i, w in enumerate("The,keys,key,to,lid,lids,is,are,the,a,[U]".split(","))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    report = check(designs["agreement"](6), tokenizer=backend)
    words = report.tokens.set_index(["measure", "factor"])
    assert (words["spread"] == 0).all()
    assert "tokens of the text" in report.text()
    chars = Tokenizer(models.WordPiece({"[U]": 0, **{c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyzT")},
                                        **{f"##{c}": i + 60 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}},
                                       unk_token="[U]"))  # fmt: skip
    chars.pre_tokenizer = pre_tokenizers.Whitespace()
    report = check(designs["agreement"](6), tokenizer=chars)
    assert report.tokens.set_index(["measure", "factor"])["spread"]["tokens of head", "subject"] == 1
    assert any(w.startswith("not one token:") and "'is' is 2 tokens" in w for w in report.warnings)
    spec = analysis({"e": NUMBER}, t=contrast())
    for tokens, more in (("max", {}), ("sum", {}), ("mean", {}), ("max", {"length_match": True})):
        positions = spec.positions.model_copy(update={"tokens": tokens, "regions": ["head", "pre_verb"], **more})
        changed = spec.model_copy(update={"positions": positions})
        if tokens == "mean" or more:
            check(designs["agreement"](8), changed, tokenizer=chars)
        else:  # as the run would, after extraction: in a region that no test asks for, too
            with pytest.raises(SpecError, match=rf"{tokens} grows with span length, and region 'head' has different"):
                check(designs["agreement"](8), changed, tokenizer=chars)
            check(designs["agreement"](8), changed, tokenizer=backend)


def test_tokens_of_a_real_model(designs, shared_data):
    """A model folder is enough; regions of a small vocabulary never straddle."""
    report = check(designs["agreement"](6), tokenizer=shared_data("models/stories260K"))
    assert len(report.tokens)
    assert not any("straddles" in warning for warning in report.warnings)


def test_default_effects_are_main_effects_and_pairs(designs):
    """Pairs of factors of one kind only, last level against the first."""
    assert list(default_effects(designs["agreement"]())) == ["subject", "attractor", "subject x attractor"]
    assert list(default_effects(designs["mixed"]())) == ["valence", "polarity"]
    three = designs["make"](
        factors={"k": ["a", "b", "c"]}, frames={"f": "{w:k}"}, items={"i": {"w": {"a": "1", "b": "2", "c": "3"}}}
    )
    assert list(default_effects(three)) == ["k: b", "k: c"]


@pytest.mark.parametrize(("alpha", "n", "features"), [(0.05, 6, 1), (0.05, 12, 102), (0.05, 16, 1638), (0.01, 10, 5)])
def test_reach_agrees_with_the_rules(alpha, n, features):
    """One joint maximum needs p_min <= alpha; corrections by feature reach m = alpha / p_min, rounded down."""
    words = reach_words(alpha, 2.0 ** (1 - n))
    assert words.startswith("so max-T can reach ")
    assert "over any number of features" in words
    assert words.endswith(f" over {features:,}")
    assert reach_words(0.05, 0.5) == "NOT enough for alpha .05"
    assert "every correction" in reach_words(0.05, 2.0**-60)


def test_check_is_invariant_to_items_that_are_added_later(designs):
    """Six items or twelve: the same findings about words and lengths, other counts."""
    few, many = (check(designs["agreement"](n)) for n in (6, 12))
    assert (few.words_at["differ"] / few.words_at["n"]).tolist() == (
        many.words_at["differ"] / many.words_at["n"]
    ).tolist()
    assert few.exchange["h0"].tolist() == many.exchange["h0"].tolist()


def test_check_loads_no_model_library():
    """`check` pays for neither torch nor anndata, numba, scipy or transformers."""
    heavy = "torch anndata numba transformers scipy tokenizers transformer_lens"
    code = (
        "import sys; import neurosae.design.checks, neurosae.spec.analysis"
    )  # fmt: skip
    code += f"; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_agrees_with_what_each_kind_of_test_exchanges(designs):
    """A contrast without mirror image permutes levels in `test: contrast`; the lengths of an RSA are flipped."""
    corner = {"e": {"cells": {"sg/sg": -1, "sg/pl": -1, "pl/sg": -1, "pl/pl": 3}}}
    geometry = {"test": "rsa", "region": "pre_verb", "conditions": ["subject", "attractor"]}
    geometry["models"] = {"m": {"effect": "e"}}
    report = check(designs["agreement"](12), analysis(corner, one=contrast(), two=geometry))
    kinds = report.exchange.set_index("test")["kind"]
    assert kinds["two"] == "flip"
    assert kinds["one"] != "flip"
    assert "approximate" in report.exchangeability["two/e"]


def test_check_says_how_items_in_some_conditions_move_and_what_has_no_p():
    """Between beside within: which labels move, what is approximate, which shares and agreements are only described."""
    items = {f"i{k}": {"u": {x: f"{x}{k}" for x in "xy"}, "b": "xy"[k % 2]} for k in range(12)}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "mixed", "items": items, "frames": {"f": "{u:a} here"},
        "factors": {"a": ["x", "y"], "b": {"levels": ["x", "y"], "varies": "between"}},
    })  # fmt: skip
    a, b = ({name: {"x": -1, "y": 1}} for name in "ab")
    two = {"region": "u", "conditions": ["a", "b"]}
    tests = {
        "fit": {"test": "rsa", **two, "models": {"a": {"effect": "a"}}},
        "layers": {"test": "second_order", **two},
        "held": {"test": "second_order", **two, "blocks": ["b"], "measures": ["cka"]},
        "shares": {"test": "feature_geometry", **two, "effect": ["a", "both"]},
    }
    notes = check(design, analysis({"a": a, "both": {**a, **b}}, **tests)).notes
    said = {name: [note for note in notes if note.startswith(f"{name}: ")] for name in tests}
    assert len(said["fit"]) == 1
    assert "within items levels move inside the item's own conditions, between items whole items move" in said["fit"][0]
    assert "`blocks: [b]` permutes inside groups" in said["layers"][0]
    assert "4 conditions have too few permutations, so agreements of RDMs get an interval and no p" in said["layers"][1]
    assert said["held"] == [
        "held: items are in some of its conditions only, as b varies between them: conditions are permuted inside its "
        "groups of items."
    ]
    assert any("'both' compares levels within items between groups" in note for note in said["shares"])
    assert not any("'a' compares" in note for note in said["shares"])


def test_check_takes_an_analysis_that_asks_for_no_effect(designs):
    """A second-order test compares places and names no effect: nothing is exchanged by one."""
    spec = analysis({}, alike={"test": "second_order", "region": ["head", "pre_verb"], "conditions": ["item"]})
    report = check(designs["agreement"](12), spec)
    assert len(report.exchange) == 0
    assert report.text().startswith("design: 96 stimuli in 4 cells")
