# ruff: noqa: E501  (messages are compared whole)
"""Analyses: the example loads, and every reference that leads nowhere is one line with its place and a remedy."""

from __future__ import annotations

from typing import Literal

import pytest

from neurosae.errors import SpecError
from neurosae.spec.analysis import Analysis, load_analysis
from neurosae.spec.block import Block
from neurosae.spec.blocks import TESTS, ContrastBlock, Inference
from neurosae.spec.fields import Count
from neurosae.spec.geometry import RsaBlock


@pytest.fixture
def refused(edited):
    """A function that edits the example analysis and returns the one-line refusal."""

    def refuse(old, new):
        with pytest.raises(SpecError) as caught:
            edited("analyses/number_agreement", old, new)
        return str(caught.value)

    return refuse


@pytest.fixture
def changed(edited):
    """A function that edits the example analysis and reads it."""
    return lambda old, new: edited("analyses/number_agreement", old, new)


# ------------------------------------------------------------------ recovers


def test_load_analysis_recovers_example(study):
    """Every section of the example arrives as written; one word and a list of words are both tuples."""
    found = load_analysis("analyses/number_agreement.yaml")
    assert (found.name, found.seed, found.model.name) == ("number_agreement", 20260401, "embedded")
    assert found.design.samefile(study / "stimuli" / "number_agreement.yaml")
    assert [site.dictionary.source for site in found.sites.values()] == ["embedded", "embedded", "train"]
    assert found.positions.regions == ("head", "local", "pre_verb")
    assert found.inference.families == {"agreement": ("number", "interference")}
    assert found.effects["subject_given_pl"] == {"subject": {"pl": 1, "sg": -1}, "attractor": {"pl": 1}}
    assert list(found.tests) == [
        "find_number",
        "find_attractor",
        "number",
        "interference",
        "screen",
        "chosen",
        "geometry",
    ]
    assert found.tests["screen"].effect == ("subject", "attractor")
    assert (found.tests["chosen"].features.from_, found.tests["chosen"].features.top) == ("find_number", 10)
    assert found.tests["geometry"].models["length"].column == "n_tokens"


def test_load_analysis_recovers_minimum(study):
    """Name, model and sites are enough for training; everything else has its default."""
    text = "schema: neurosae/analysis/1\nname: tiny\nmodel: {name: ../lm}\n"
    sites = "sites: {raw: {hook: blocks.*.hook_resid_post, dictionary: {neurons: true}}}\n"
    (study / "analyses" / "tiny.yaml").write_text(text + sites)
    found = load_analysis("analyses/tiny.yaml")
    assert (found.design, found.tests, found.inference, found.seed) == (None, {}, Inference(), 0)
    assert found.model.name == str(study / "lm")


def test_load_analysis_recovers_regions_of_tests(changed):
    """Left-out regions are those that the tests name, each once, in their order."""
    assert changed("regions: [head, local, pre_verb],", "").positions.regions == ("head", "local", "pre_verb")


def test_load_analysis_recovers_pairs_of_locks(changed):
    """With start- and end-locked positions a region of a test means both."""
    found = changed(
        "align: region,\n            tokens: last,", "align: end, window: [-1, 2],\n            tokens: all,"
    )
    assert found.tests["find_number"].region == ("head@start", "head@end")
    assert found.positions.window == (-1, 2)
    assert found.positions.regions == ("head", "local", "pre_verb")


def test_load_analysis_recovers_sites_of_patterns(changed):
    """A site with * gives one site per layer; tests may name the pattern or a layer."""
    late = "late:   {hook: blocks.*.hook_resid_post, dictionary: {neurons: true}}"
    old = "late:   {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}"
    assert changed(old, late).sites["late"].hook == "blocks.*.hook_resid_post"
    found = changed("congruence, region: pre_verb", "congruence, sites: [late, late.2], region: pre_verb")
    assert found.tests["interference"].sites == ("late", "late.2")


class Mine(Block):
    """A user's own test."""

    test: Literal["mine"]
    """mine"""
    top: Count = 3
    """How many."""


def test_load_analysis_recovers_own_tests(study):
    """A registry with one more entry is all that a user's own test needs, references included."""
    path = study / "analyses" / "number_agreement.yaml"
    text = path.read_text().replace("{test: contrast, effect: congruence,", "{test: mine, top: 2,")
    path.write_text(text.replace("[number, interference]", "[number]"))
    found = load_analysis(path, {**TESTS, "mine": (Mine, "my_package.mine")})
    assert found.tests["interference"] == Mine(test="mine", top=2, region=("pre_verb",))
    assert '"top":2' in found.model_dump_json()
    with pytest.raises(SpecError, match=r":28: tests.interference.test: unknown test 'mine'. Known: contrast, rsa, "):
        load_analysis(path)


def test_analysis_agrees_with_record_in_memory(study):
    """The same record arises from the file and from its own values."""
    found = load_analysis("analyses/number_agreement.yaml")
    assert Analysis.model_validate(found.model_dump(by_alias=True)) == found


def test_blocks_invariant_to_one_or_more():
    """One region as a word or as a list of one is the same block."""
    plain = {"test": "contrast", "effect": "e", "region": "r"}
    assert ContrastBlock.model_validate(plain) == ContrastBlock.model_validate(
        plain | {"effect": ["e"], "region": ["r"]}
    )


def test_registry_agrees_with_schemas():
    """The key of every registered test is the one word that its schema accepts."""
    for kind, (schema, module) in TESTS.items():
        assert schema.model_fields["test"].annotation == Literal[kind]
        assert module.startswith(("neurosae.stats.", "neurosae.causal.", "neurosae.examine."))


# ------------------------------------------------------------------ refuses

CASES = [
    ("design: ../stimuli/number_agreement.yaml", "design: ../stimuli/number_agrement.yaml",
     "3: design: there is no file stimuli/number_agrement.yaml. Did you mean stimuli/number_agreement.yaml?"),
    ("design: ../stimuli/number_agreement.yaml", "design: /etc/passwd",
     "3: design: '/etc/passwd' leaves the study; write a path relative to this file, inside "),
    ("design: ../stimuli/number_agreement.yaml", "design: ../../x.yaml",
     "3: design: '../../x.yaml' leaves the study; write a path relative to this file, inside "),
    ("design: ../stimuli/number_agreement.yaml", "design: ~/x.yaml", "3: design: '~/x.yaml' leaves the study;"),
    ("design: ../stimuli/number_agreement.yaml", "design: 5",
     "3: design: is read as the number 5, not as a word; put it in quotes."),
    ("design: ../stimuli/number_agreement.yaml", "",
     "24: tests: need a design; name its file, `design: ../stimuli/….yaml`."),
    ("schema: neurosae/analysis/1", "schema: neurosae/design/1",
     "1: schema: is the word 'neurosae/design/1'; an analysis begins with `schema: neurosae/analysis/1`."),
    ("seed: 20260401", "seed: 1e3", "4: seed: is the number 1000.0; write a whole number."),
    ("dtype: float32", "dtype: float23", "5: model.dtype: unknown dtype 'float23'. Did you mean 'float32'? Known: float32, bfloat16, float16."),
    ("dtype: float32", "bos: yes", "5: model.bos: must be auto, true or false."),
    ("dtype: float32", "device: gpu", "5: model.device: unknown device 'gpu'."),
    ("late:   {hook: blocks.3.hook_resid_post,", "late:   {hook: blocks.3.hook_resid_past,",
     "8: sites.late.hook: unknown hook point 'hook_resid_past'. Did you mean 'hook_resid_post'?"),
    ("late:   {hook: blocks.3.hook_resid_post,", "late:   {hook: layer 3,",
     "8: sites.late.hook: 'layer 3' is no hook point; write blocks.3.hook_resid_post, or blocks.*.… for every layer."),
    ("late:   {hook: blocks.3.hook_resid_post,", "late:   {hook: blocks.*.hook_resid_post,",
     "8: sites.late.hook: 'blocks.*.hook_resid_post' names every layer, but embedded gives a dictionary of one; name it."),
    ("{embedded: late}", "{embedded: late, path: x}",
     "8: sites.late.dictionary: has embedded and path; give exactly one of embedded, path, release, train, fit, neurons, vectors."),
    ("{embedded: late}", "{}",
     "8: sites.late.dictionary: names no dictionary; give exactly one of embedded, path, release, train, fit, neurons, vectors."),
    ("{embedded: late}", "{release: gpt2-small-res-jb}",
     "8: sites.late.dictionary: a published dictionary needs both: {release: gpt2-small-res-jb, id: blocks.6.hook_resid_pre}."),
    ("{embedded: late}", "{fit: {kind: pc}}", "8: sites.late.dictionary.fit.kind: unknown kind 'pc'. Did you mean 'pca'?"),
    ("{embedded: late}", "{neurons: false}", "8: sites.late.dictionary.neurons: is false; write true."),
    ("k: 32,", "k: 4096,",
     "9: sites.late_2.dictionary.train.k: is 4096, but there are only 2048 features; use fewer, or raise d_sae."),
    ("n_tokens: 4000000,", "", "9: sites.late_2.dictionary.train.n_tokens: is missing; tokens seen in training."),
    ("architecture: topk,", "architecture: gatted,",
     "9: sites.late_2.dictionary.train.architecture: unknown architecture 'gatted'. Did you mean 'gated'? Known: topk, abstopk,"),
    ("  early:", "  a/b:", "7: sites.a/b: 'a/b' becomes a file name; use up to 100 letters, digits, _ and -, a letter or digit first."),
    ("regions: [head, local, pre_verb]", "regions: [head, locl, pre_verb]",
     "10: positions.regions: unknown region 'locl'. Did you mean 'local'? Known: head, prep, local, verb, rel, pre_verb."),
    ("regions: [head, local, pre_verb]", "regions: [head, head]", "10: positions.regions.1: names 'head' twice; name it once."),
    ("regions: [head, local, pre_verb]", "regions: []", "10: positions.regions: is an empty list; write one entry at least."),
    ("align: region", "align: xcor",
     "11: positions.align: unknown align 'xcor'. Did you mean 'xcorr'? Known: region, start, end, middle_out, xcorr, "
     "reference, dtw."),
    ("align: region", "align: xcorr",
     "10: positions.window: align: xcorr compares courses; give the positions around the region's end, at least 3: "
     "window: [-6, 2], say."),
    ("align: region,\n            tokens: last,", "align: dtw, window: [-6, 2], tokens: all,\n           ",
     "11: positions.align: dtw warps positions, for figures only; no test is valid on them, use region, start or end for "
     "tests."),
    ("align: region", "align: reference, window: [-6, 2]",
     "10: positions.reference: is missing; name features that no test uses, reference: {late: [12, 80]}, say."),
    ("align: region", "align: region, reference: {late: [12]}",
     "11: positions.reference: has no meaning with align: region; use align: reference."),
    ("align: region,\n            tokens: last,", "align: reference, window: [-6, 2], reference: {lat: [12]}, tokens: all,\n           ",
     "11: positions.reference: unknown site 'lat'. Did you mean 'late'? Known: early, late, late_2."),
    ("tokens: last", "tokens: mean, length_match: true",
     "12: positions.length_match: has no meaning with tokens: mean; use tokens: max or sum."),
    ("align: region", "align: region, window: [-1, 1]",
     "11: positions.window: has no meaning with align: region; use align: start or end."),
    ("align: region", "align: start, window: [2, -2]",
     "11: positions.window: [2, -2] ends before it begins; write [first, last]."),
    ("align: region", "align: start, window: 2",
     "11: positions.window: is the number 2; write two, in brackets: [first, last]."),
    ("align: region", "align: middle_out",
     "25: tests.find_number.region: with positions.align: middle_out there is one region, all; write it instead of head."),
    ("align: region,\n            tokens: last,", "align: middle_out,\n           ",
     "10: positions: asks for several positions; say what becomes of them: `tokens: all` keeps them apart."),
    ("region: head, split", "region: head@start, split",
     "25: tests.find_number.region: 'head@start' exists only with positions.align: start or end; write head."),
    ("statistic: moderated_t", "statistic: moderatedt",
     "14: inference.statistic: unknown statistic 'moderatedt'. Did you mean 'moderated_t'?"),
    ("n_permutations: 10000", "n_permutation: 10000",
     "16: inference.n_permutation: unknown key. Did you mean 'n_permutations'?"),
    ("n_permutations: 10000", "n_permutations: 10",
     "16: inference.n_permutations: 10 relabellings cannot reach alpha 0.05; use at least 20."),
    ("alpha: 0.05", "alpha: 5", "16: inference.alpha: is 5; it must be below 1.0."),
    ("alpha: 0.05", "alpha: .nan", "16: inference.alpha: is nan; write a finite number."),
    ("nuisance: []", "nuisance: [n_token]",
     "17: inference.nuisance.0: unknown column 'n_token'. Did you mean 'n_tokens'? Known: n_tokens, token_index, stimulus_tokens, position, norm, surprisal, logit_diff."),
    ("nuisance: []", "nuisance: [n_tokens, n_tokens]", "17: inference.nuisance: names a column twice; write each once."),
    ("[number, interference]", "[number, interferense]",
     "18: inference.families.agreement: unknown test 'interferense'. Did you mean 'interference'?"),
    ("[number, interference]", "[number, screen]",
     "18: inference.families.agreement: test 'screen' is corrected by fdr_bh, but a family shares one maximum; "
     "set `correction: maxT` on it, or take it out."),
    ("[number, interference]", "[number, find_number]",
     "18: inference.families.agreement: 'number' (test) and 'find_number' (localizer) use different items; "
     "a family needs the same split."),
    ("{agreement: [number, interference]}", "{agreement: [number], other: [number]}",
     "18: inference.families.other: test 'number' is also in family 'agreement'; a test belongs to one family."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subjekt: {pl: 1, sg: -1}}",
     "20: effects.subject.subjekt: unknown factor 'subjekt'. Did you mean 'subject'? Known: subject, attractor."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: {plural: 1, sg: -1}}",
     "20: effects.subject.subject.plural: unknown level 'plural' of factor 'subject'. Known: sg, pl."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: {pl: 1}}",
     "20: effects.subject: the weights of {'subject': {'pl': 1}} sum to 1, not 0: this would test whether features are "
     "active at all, not a difference. Give one factor weights that sum to 0, e.g. {pl: 1, sg: -1}."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: {pl: one, sg: -1}}",
     "20: effects.subject.subject.pl: is the word 'one'; a weight is a number."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: {pl: 0, sg: 0}}",
     "20: effects.subject.subject: has only weights of 0, which select nothing; give at least one another weight."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    subject",
     "20: effects.subject: is the word 'subject'; write {factor: {level: weight, level: weight}}."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: linear}",
     "20: effects.subject.subject: a linear trend needs numbers; give 'subject' in the design `values: {sg: 0, pl: 1}`."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: quadratic}",
     "20: effects.subject.subject: a quadratic trend needs 3 levels; 'subject' has 2."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {subject: ramp}",
     "20: effects.subject.subject: unknown trend 'ramp'. Known: linear, quadratic, cubic, all."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {cells: {pl/sg: 1, sg: -1}}",
     "20: effects.subject.cells.sg: 'sg' is no cell; write subject/attractor, for example sg/sg."),
    ("  subject:    {subject: {pl: 1, sg: -1}}", "  subject:    {cells: {pl/sg: 1, sg/pl: -2}}",
     "20: effects.subject.cells: the weights of the cells sum to -1, not 0: this would test whether features are "
     "active at all, not a difference. Make them sum to 0."),
    ("effect: congruence", "effect: congruency",
     "28: tests.interference: uses effect 'congruency', which is not under `effects:`. Did you mean 'congruence'? "
     "Known: subject, attractor, congruence, subject_given_pl."),
    ("{test: contrast, effect: congruence, region", "{test: contrast, effect: congruence, regions",
     "28: tests.interference.regions: unknown key. Did you mean 'region'?"),
    ("{test: contrast, effect: congruence, region: pre_verb}", "{test: contrast, effect: congruence}",
     "28: tests.interference.region: is missing; region or regions of the design."),
    ("{test: contrast, effect: congruence,", "{test: mop, effect: congruence,",
     "28: tests.interference.test: unknown test 'mop'. Did you mean 'map'? Known: contrast, rsa, "),
    ("{test: contrast, effect: congruence,", "{effect: congruence,",
     "28: tests.interference.test: is missing; write one of contrast, rsa, "),
    ("  interference:   {", "  inter/ference:   {", "28: tests.inter/ference: 'inter/ference' becomes a file name;"),
    ("congruence, region: pre_verb}", "congruence, region: pre_verbs}",
     "28: tests.interference.region: unknown region 'pre_verbs'. Did you mean 'pre_verb'?"),
    ("congruence, region: pre_verb}", "congruence, region: verb}",
     "28: tests.interference.region: region 'verb' is not under positions.regions, so it never leaves the model; add it there."),
    ("congruence, region: pre_verb}", "congruence, region: pre_verb, sites: lat}",
     "28: tests.interference.sites: unknown site 'lat'. Did you mean 'late'? Known: early, late, late_2."),
    ("congruence, region: pre_verb}", "congruence, region: pre_verb, sites: late.0}",
     "28: tests.interference.sites: unknown site 'late.0'. Did you mean 'late'?"),
    ("congruence, region: pre_verb}", "congruence, region: pre_verb, split: dev}",
     "28: tests.interference.split: unknown split 'dev'. Known: test, localizer."),
    ("from: find_number,", "from: find_numbers,",
     "30: tests.chosen.features: unknown contrast test 'find_numbers'. Did you mean 'find_number'?"),
    ("from: find_number,", "from: geometry,",
     "30: tests.chosen.features: 'geometry' is no earlier test; tests run in the order of the file, so put it above 'chosen'."),
    ("from: find_number,", "from: chosen,", "30: tests.chosen.features: 'chosen' is no earlier test;"),
    ("from: find_number,", "from: number,",
     "30: tests.chosen.features: would choose features and test them on the same items (split: test). "
     "Set `split: localizer` on 'number'."),
    ("region: pre_verb, features", "region: pre_verb, split: localizer, features",
     "30: tests.chosen.features: would choose features and test them on the same items (split: localizer). "
     "Set `split: test` on 'chosen'."),
    ("region: head, split", "region: head, sites: early, split",
     "30: tests.chosen.features: 'find_number' chooses no features at site 'late'; name sites in both tests: {sites: [late]}."),
    ("top: 10", "top: 0", "30: tests.chosen.features.top: is 0; it must be at least 1."),
    ("conditions: [subject, attractor, frame]", "conditions: [subject, attracter]",
     "31: tests.geometry.conditions: unknown factor 'attracter'. Did you mean 'attractor'? Known: subject, attractor, frame, item."),
    ("conditions: [subject, attractor, frame]", "conditions: [subject]",
     "31: tests.geometry.conditions: give 2 conditions, that is 1 distance; add a factor, or use a contrast."),
    ("conditions: [subject, attractor, frame]", "conditions: [subject, frame]",
     "33: tests.geometry.models.attractor: the effect 'attractor' needs attractor among the conditions; add it there."),
    ("{effect: attractor}, length", "{effect: atractor}, length",
     "33: tests.geometry.models.attractor: uses effect 'atractor', which is not under `effects:`. Did you mean 'attractor'?"),
    ("column: n_tokens", "column: n_token",
     "33: tests.geometry.models.length: unknown column 'n_token'. Did you mean 'n_tokens'?"),
    ("column: n_tokens", "column: n_tokens, effect: subject",
     "33: tests.geometry.models.length: is made of effect and column; give exactly one of"),
    ("distance: crossnobis", "distance: jaccard",
     "31: tests.geometry.distance: unknown distance 'jaccard'. Known: crossnobis, euclidean, correlation, mahalanobis, poisson."),
    ("report:", "poser: {n_items: [16]}\nreport:", "34: poser: unknown key. Did you mean 'power'?"),
    ("top_features: 20", "top_features: many", "34: report.top_features: is the word 'many'; write a whole number."),
    ("title: Number agreement in the embedded model", "title: 1812",
     "34: report.title: is read as the number 1812, not as a word; put it in quotes."),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2][:60])
def test_analysis_refuses(refused, case):
    """Each mistake is one line with the analysis' line number and a remedy."""
    old, new, message = case
    found = refused(old, new)
    assert found.startswith(f"analyses/number_agreement.yaml:{message}")
    assert found.count("\n") == 0


@pytest.mark.parametrize(
    "case",
    [
        ("statistic: moderated_t", "statistic: mean", "inference.nuisance: is regressed out of t and moderated_t, not of mean"),
        ("correction: fdr_bh", "statistic: signed_rank", "tests.screen.statistic: signed_rank: nuisance is regressed out of t"),
        ("correction: fdr_bh", "statistic: slope", "tests.screen.effect: 'subject' is no slope on a covariate"),
        ("nuisance: [n_tokens]", "nuisance: [n_tokens], intervals: bca", "inference.intervals: bca are not made beside nuisance"),
        ("screen:         {test: contrast,", "screen:         {test: pairs,", "tests.screen: regresses no nuisance out"),
        ("screen:         {test: contrast,", "screen:         {test: equivalence, smallest: 0.5,", "tests.screen: regresses no nuisance out"),
        ("subject:    {subject: {pl: 1, sg: -1}}", "subject:    {slope: frequency}", "effects.subject.slope: unknown covariate 'frequency'"),
    ],
)  # fmt: skip
def test_analysis_refuses_beside_nuisance(study, refused, case):
    """What has no linear model takes no nuisance column, and a slope needs a covariate."""
    old, new, message = case
    path = study / "analyses" / "number_agreement.yaml"
    path.write_text(path.read_text().replace("nuisance: []", "nuisance: [n_tokens]"))
    assert message in refused(old, new)


def test_analysis_takes_nuisance(changed):
    """Columns of the responses are read as written."""
    found = changed("nuisance: []", "nuisance: [n_tokens, surprisal]")
    assert found.inference.nuisance == ("n_tokens", "surprisal")


def test_analysis_refuses_one_of_a_pair(changed, refused):
    """Using only the start or only the end of a region has to be asked for."""
    locked = "align: start, window: [0, 1],\n            tokens: all,"
    changed("align: region,\n            tokens: last,", locked)
    message = "25: tests.find_number.region: uses only 'head@start' of a pair; name head (both), or set positions.single_lock: true."
    assert refused("region: head, split", "region: head@start, split").endswith(message)
    assert changed("align: start,", "align: start, single_lock: true,").tests["find_number"].region == ("head@start",)
    assert changed("region: head@start", "region: [head@start, head@end]").tests["find_number"].region[1] == "head@end"


def test_analysis_refuses_localizer_without_partition(study):
    """Features cannot be chosen on items that nobody set apart."""
    path = study / "stimuli" / "number_agreement.yaml"
    path.write_text("\n".join(line for line in path.read_text().split("\n") if not line.startswith("partition")))
    with pytest.raises(SpecError, match=r"yaml:25: tests.find_number.split: the design sets no items apart; give it a"):
        load_analysis("analyses/number_agreement.yaml")


def test_analysis_refuses_with_line_of_design(study):
    """A mistake in the design carries the design's name and line, not the analysis'."""
    path = study / "stimuli" / "number_agreement.yaml"
    path.write_text(path.read_text().replace("before: verb", "befor: verb"))
    with pytest.raises(
        SpecError, match=r"^stimuli/number_agreement.yaml:7: regions.pre_verb.befor: unknown key. Did you"
    ):
        load_analysis("analyses/number_agreement.yaml")


def test_rsa_takes_conditions_between_items(study):
    """Where factors vary between items, item_flips permutes labels of whole items; blocks must be among the conditions."""
    path = study / "analyses" / "lists.yaml"
    text = (
        "schema: neurosae/analysis/1\nname: lists\ndesign: ../stimuli/achievement.yaml\nmodel: {name: embedded}\n"
        "sites: {late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}}\n"
        "effects: {outcome: {outcome: {achievement: 1, failure: -1}}}\n"
        "tests: {rdm: {test: rsa, region: whole, conditions: [outcome, course], models: {o: {effect: outcome}}},\n"
        "  two: {test: second_order, region: [whole, last_word], conditions: [outcome, course]}}\n"
    )
    path.write_text(text)
    assert load_analysis(path).tests["rdm"].p_from == "item_flips"
    path.write_text(text.replace("[whole, last_word], ", "[whole, last_word], blocks: [other], "))
    with pytest.raises(SpecError, match=r":8: tests.two.blocks: unknown factor or label 'other'"):
        load_analysis(path)
    inside = text.replace("[whole, last_word], ", "[whole, last_word], blocks: [topic], ")
    path.write_text(inside)
    with pytest.raises(SpecError, match=r":8: tests.two.blocks: 'topic' is averaged over by the conditions outcome"):
        load_analysis(path)
    path.write_text(inside.replace("[topic], conditions: [outcome, course]", "[topic], conditions: [item]"))
    assert load_analysis(path).tests["two"].blocks == ("topic",)


def test_rsa_block_recovers_defaults():
    """What is left out of an rsa block is the recommended choice."""
    block = RsaBlock.model_validate(
        {"test": "rsa", "region": "r", "conditions": ["a"], "models": {"m": {"effect": "e"}}}
    )
    assert (block.distance, block.compare, block.p_from, block.split) == (
        "crossnobis",
        "cosine_cov",
        "item_flips",
        "test",
    )


@pytest.mark.parametrize(
    "case",
    [
        ("{test: equivalence,", None, "tests.screen.smallest: is missing"),
        ("{test: equivalence, smallest: 0,", None, "tests.screen.smallest"),
        ("{test: equivalence, smallest: 0.5, scale: sd,", None, "tests.screen.scale: unknown scale 'sd'"),
        ("{test: equivalence, smallest: 0.5, correction: maxT,", None, "tests.screen.correction"),
        ("{test: equivalence, smallest: 0.5,", "{subject: all}", "compares all levels; write weights of levels"),
    ],
)
def test_analysis_refuses_equivalence_without_a_bound(study, refused, case):
    """A bound above 0 on a known scale, p that are corrected one by one, and a single contrast."""
    block, effect, message = case
    path = study / "analyses" / "number_agreement.yaml"
    text = path.read_text().replace(", correction: fdr_bh}", "}")
    path.write_text(text.replace("subject:    {subject: {pl: 1, sg: -1}}", f"subject:    {effect}") if effect else text)
    assert message in refused("screen:         {test: contrast,", f"screen:         {block}")


@pytest.mark.parametrize("key", ["matrix", "norms"])
def test_rsa_refuses_a_table_that_is_not_there(study, refused, key):
    """A csv file of distances or ratings is looked for before a model is loaded."""
    text = refused("length: {column: n_tokens, metric: absolute, nuisance: true}", f"length: {{{key}: people.csv}}")
    assert f"tests.geometry.models.length.{key}: there is no file" in text
