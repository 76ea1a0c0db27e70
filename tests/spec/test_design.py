# ruff: noqa: E501  (messages are compared whole)
"""Designs: the examples load, and every gap or contradiction is one line with its place and a remedy."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError
from neurosae.spec.design import Design, load_design, n_items, region_names
from neurosae.spec.frames import Slot, form_problems, frame_texts, list_cells, pieces, slots_of


@pytest.fixture
def refused(edited):
    """A function that edits an example file and returns the one-line refusal."""

    def refuse(name, old, new):
        with pytest.raises(SpecError) as caught:
            edited(name, old, new)
        return str(caught.value)

    return refuse


# ------------------------------------------------------------------ recovers


def test_load_design_recovers_within_example(study):
    """Factors, slots, regions, target and partition of the example with factors within items."""
    design = load_design("stimuli/number_agreement.yaml")
    assert design.factors["subject"].levels == ("sg", "pl")
    assert design.factors["subject"].varies == "within"
    assert slots_of(design)["rel"] == ("attractor",)
    assert region_names(design) == ("head", "prep", "local", "verb", "rel", "pre_verb")
    assert (design.regions["pre_verb"].before, design.target.slot, design.target.foil) == (
        "verb",
        "verb",
        "other_level",
    )
    assert (design.partition.localizer, design.partition.seed, n_items(design)) == (2, 7, 4)
    assert design.items["driver"]["verb"] == {"sg": "is", "pl": "are"}


def test_load_design_recovers_lists_example(study):
    """Texts with their cells and labels, in the order of the file; regions by words."""
    design = load_design("stimuli/achievement.yaml")
    cells = list(list_cells(design.lists))
    assert cells[0][0] == ("achievement", "continuation")
    assert cells[0][1]["topic"] == "sport"
    assert (n_items(design), design.strata, design.regions["whole"].words) == (8, "topic", (0, -1))


def test_load_design_recovers_composition_example(study):
    """Frames that depend on a factor, shared forms and spans."""
    design = load_design("stimuli/composition.yaml")
    factor, texts = frame_texts(design.frames["noun_last"])
    assert (factor, list(texts)) == ("context", ["phrase", "list"])
    assert slots_of(design) == {"first": ("adjective",), "second": ("noun",), "probe": ()}
    assert design.regions["both"].span == ("first", "second")


def test_design_recovers_itself_from_json(study_files, study):
    """What is stored beside responses gives the same design again, orders included."""
    for path in (path for path in study_files if path.startswith("stimuli")):
        design = load_design(path)
        again = Design.from_json(design.to_json())
        assert again == design
        assert [list(part) for part in (again.factors, again.items)] == [
            list(p) for p in (design.factors, design.items)
        ]


def test_list_entries_recover_from_plain_texts(edited):
    """A list may hold plain texts where items carry nothing."""
    text = """lists:
  achievement: {continuation: [One went.], ending: [Two went.]}
  failure: {continuation: [Three went.], ending: [Four went.]}
_:"""
    with pytest.raises(SpecError, match="_: unknown key"):
        edited("achievement", "lists:", text)
    plain = {
        "schema": "neurosae/design/1", "name": "plain", "lists": {"a": ["One."], "b": ["Two."]},
        "factors": {"f": {"levels": ["a", "b"], "varies": "between"}},
    }  # fmt: skip
    assert Design.model_validate(plain).lists == {"a": [{"text": "One."}], "b": [{"text": "Two."}]}


def test_between_factor_recovers_in_frames():
    """An item names its level of a factor that varies between items; frames may depend on it."""
    data = {
        "schema": "neurosae/design/1",
        "name": "mixed",
        "factors": {"animacy": {"levels": ["thing", "animal"], "varies": "between"}, "number": ["sg", "pl"]},
        "frames": {"f": {"animacy": {"thing": "The {noun:number} fell", "animal": "The {noun:number} ran {how}"}}},
        "items": {
            "cup": {"animacy": "thing", "noun": {"sg": "cup", "pl": "cups"}},
            "cat": {"animacy": "animal", "noun": {"sg": "cat", "pl": "cats"}, "how": "home"},
        },
    }
    assert Design.model_validate(data).items["cup"]["animacy"] == "thing"


def test_pieces_recover_nested_factors():
    """A slot may vary by several factors, in the order of the nested forms."""
    assert pieces("{a}, {b:x,y}!") == (Slot("a", ()), ", ", Slot("b", ("x", "y")), "!")
    levels = {"x": ["p", "q"], "y": ["r", "s"]}
    forms = {"p": {"r": "1st", "s": "2nd"}, "q": {"r": "3rd"}}
    assert list(form_problems(forms, ("x", "y"), levels, where=("i",))) == [
        (("i", "q"), "no form for level 's' of factor 'y'; it has r.")
    ]


# ------------------------------------------------------------------ refuses

NUMBER = [
    ("local: {sg: child, pl: children}", "local: {sg: child}",
     "13: items.picture.local: no form for level 'pl' of factor 'attractor'; it has sg."),
    ("local: {sg: child, pl: children}", "local: {sg: child, pl: children, du: x}",
     "13: items.picture.local.du: unknown level 'du' of factor 'attractor'. Known: sg, pl."),
    ("local: {sg: child, pl: children}", "local: child",
     "13: items.picture.local: is the word 'child', but its slot varies by 'attractor'; "
     "write one form per level, {sg: …, pl: …}."),
    ("prep: of,", "prep: {sg: of, pl: of},",
     "13: items.picture.prep: is a mapping, but its slot names no factor; write one form, or {slot:factor} in the frame."),
    ("prep: of,", "", "13: items.picture: no form for slot 'prep'; write prep: …"),
    ("prep: of,", "prpe: of,",
     "13: items.picture.prpe: unknown slot 'prpe'. Did you mean 'prep'? Known: head, prep, local, verb, rel."),
    ("prep: of,", "prep: 1812,",
     "13: items.picture.prep: is read as the number 1812, not as a word; put it in quotes."),
    ("prep: of,", "prep: true,", "13: items.picture.prep: is read as true, not as a word; put it in quotes."),
    ("prep: of,", "prep: null,",
     "13: items.picture.prep: is empty; write a word (the word null itself needs quotes)."),
    ("prep: of,", "prep: [of],", "13: items.picture.prep: is a list; write one word or text."),
    ("prep: of,", "prep: '',", "13: items.picture.prep: is an empty text; write at least one word."),
    ("prep: of,", "prep: ' of',", "13: items.picture.prep: 'of' begins or ends with a blank; remove it."),
    ("prep: of,", "prep: '{of}',", "13: items.picture.prep: '{of}' holds a { or }; only frames have slots."),
    ("prep: of,", "prep: \"o\\x07f\",", "13: items.picture.prep: 'o\\x07f' holds the control character U+0007; remove it."),
    ("  key: ", "  his/her: ",
     "11: items.his/her: 'his/her' holds a /, which separates items, frames and levels; leave it out."),
    ("  author: ", "  key: ", "12: items.key: is written twice (first in line 11); keep one."),
    ("  author: ", "  1812: ", "12: items: the key 1812 is read as the number 1812; put it in quotes."),
    ("subject: [sg, pl]", "subject: [sg]", "3: factors.subject.levels: has 1 entry; write at least 2."),
    ("subject: [sg, pl]", "subject: [sg, pl, sg]", "3: factors.subject.levels.0: level 'sg' is listed 2 times; keep one."),
    ("subject: [sg, pl]", "subject: [1, 2]",
     "3: factors.subject.levels.0: is read as the number 1, not as a word; put it in quotes."),
    ("subject: [sg, pl]", "subject: sg",
     "3: factors.subject: is the word 'sg'; write [level, level] or {levels: [level, level], varies: between}."),
    ("subject: [sg, pl]", "subject: {levels: [sg, pl], varies: betwen}",
     "3: factors.subject.varies: unknown varies 'betwen'. Did you mean 'between'? Known: within, between."),
    ("subject: [sg, pl]", "subject: {levels: [sg, pl], values: {sg: 1}}",
     "3: factors.subject.values: must give one number per level, in their order: sg, pl."),
    ("subject: [sg, pl]", "subject: [sg, pl], item: [a, b]",
     "3: factors.item: changes no text; use it in a frame, as {slot:item}, or leave it out."),
    ("subject: [sg, pl]", "subject: {levels: [sg, pl], varies: between}",
     "5: frames.pp: slot 'head': 'subject' varies between items; write {head} here."),
    ("{prep} the", "{item} the",
     "5: frames.pp: the name 'item' is taken by a column or keyword of neurosae; choose another, e.g. 'item_1'."),
    ("{prep} the", "{prep:number} the",
     "5: frames.pp: slot 'prep': unknown factor 'number'. Known: subject, attractor."),
    ("{prep} the", "{prep the", "5: frames.pp: has a { or } without its partner; slots are written {slot} or {slot:factor}."),
    ("{prep} the", "{prep: subject} the",
     "5: frames.pp: '{prep: subject}' is no slot; write {slot}, {slot:factor} or {slot:factor,factor}, without blanks."),
    ("{prep} the", "{prep}  the", "5: frames.pp: 'The {head:subject} {prep} the {local:attractor} {verb:subje…' "
     "has two blanks in a row; write one."),
    ("{prep} the", "{head:subject} the",
     "5: frames.pp: uses slot 'head' twice; every slot is a region, so give the second a name of its own."),
    ("that the {local:attractor}", "that the {local}",
     "6: frames.rc: has {local}, but elsewhere the slot is {local:attractor}; "
     "write it the same everywhere, or name two slots."),
    ('  pp: "The', '  pp: {subject: {sg: "The thing"}}\n  qq: "The',
     "5: frames.pp.subject: no text for level 'pl' of factor 'subject'; it has sg."),
    ('  pp: "The', '  pp: {verb: {sg: "The thing"}}\n  qq: "The',
     "5: frames.pp.verb: unknown factor 'verb'. Known: subject, attractor."),
    ('  pp: "The', '  pp: {head:subject} goes\n  qq: "The', "5: YAML: "),
    ("regions: {pre_verb: {before: verb}}", "regions: {verb: {before: verb}}",
     "7: regions.verb: is a slot, and so a region already; choose another name."),
    ("regions: {pre_verb: {before: verb}}", "regions: {target: {before: verb}}",
     "7: regions.target: the name 'target' is taken by a column or keyword of neurosae; choose another, e.g. 'target_1'."),
    ("regions: {pre_verb: {before: verb}}", "regions: {pre verb: {before: verb}}",
     "7: regions.pre verb: 'pre verb' is no name; use letters, digits and _, a letter first."),
    ("{before: verb}", "{before: vreb}",
     "7: regions.pre_verb.before: unknown slot 'vreb'. Did you mean 'verb'? Known: head, prep, local, verb, rel."),
    ("{before: verb}", "{before: verb, after: verb}",
     "7: regions.pre_verb: has before and after; give exactly one of before, after, span and words."),
    ("{before: verb}", "{before: verb, n: 2}", "7: regions.pre_verb.n: counts the words after a slot; use it with `after:`."),
    ("{before: verb}", "{after: verb, n: 0}", "7: regions.pre_verb.n: is 0; it must be at least 1."),
    ("{before: verb}", "{span: [head]}", "7: regions.pre_verb.span: has 1 entry; write two, in brackets: [first, last]."),
    ("{before: verb}", "{span: [head, nothing]}",
     "7: regions.pre_verb.span: unknown slot 'nothing'. Known: head, prep, local, verb, rel."),
    ("{before: verb}", "{words: [-1, -3]}",
     "7: regions.pre_verb.words: [-1, -3] ends before it begins; write [first, last]."),
    ("{before: verb}", "{words: [a, b]}", "7: regions.pre_verb.words.0: is the word 'a'; write a whole number."),
    ("target: {slot: verb,", "target: {slot: vreb,",
     "8: target.slot: unknown slot 'vreb'. Did you mean 'verb'? Known: head, prep, local, verb, rel."),
    ("target: {slot: verb,", "target: {slot: rel,",
     "8: target.slot: frame 'pp' has no slot 'rel'; every frame needs the scored word."),
    ("target: {slot: verb, foil: other_level,", "target: {slot: verb, foil: verb,",
     "8: target.foil: is the target itself; name another slot, or write other_level."),
    ("target: {slot: verb, foil: other_level,", "target: {slot: verb, foil: rival,",
     "11: items.key: no form for the foil 'rival'; write rival: …"),
    ("single_token: true", "single_token: yes", "8: target.single_token: is the word 'yes'; write true or false."),
    ("localizer: 2", "localizer: 4",
     "9: partition.localizer: takes 4 of 4 items and leaves none to test; take at most 3."),
    ("localizer: 2", "localizer: two", "9: partition.localizer: is the word 'two'; write a whole number."),
    ("seed: 7", "seed: -7", "9: partition.seed: is -7; it must be at least 0."),
    ("partition:", "partitions:", "9: partitions: unknown key. Did you mean 'partition'?"),
    ("{localizer: 2, seed: 7}", "", "9: partition: is empty; fill it in, or leave the key out."),
    ("schema: neurosae/design/1", "schema: neurosae/analysis/1",
     "1: schema: is the word 'neurosae/analysis/1'; a design begins with `schema: neurosae/design/1`."),
    ("schema: neurosae/design/1\n", "", "1: schema: is missing; write `schema: neurosae/design/1`."),
    ("name: number_agreement", "name: ../elsewhere",
     "2: name: '../elsewhere' becomes a file name; use up to 100 letters, digits, _ and -, a letter or digit first."),
    ("name: number_agreement", "strata: topic\nname: number_agreement",
     "2: strata: unknown label 'topic'. Known: none."),
    ("name: number_agreement", "labels: [head]\nname: number_agreement",
     "6: frames.pp: slot 'head' is also what items carry under that name; rename one of them."),
    ("name: number_agreement", "labels: [subject]\nname: number_agreement",
     "2: labels.0: the column 'subject' belongs to the factor 'subject' already; rename one of them."),
    ("name: number_agreement", "labels: [topic]\nname: number_agreement",
     "12: items.key: no value of the label 'topic'; write topic: …"),
    ("name: number_agreement", "covariates: [frequency, frequency]\nname: number_agreement",
     "2: covariates.1: names 'frequency' twice; name it once."),
    ("name: number_agreement", "shared: {prep: of}\nname: number_agreement",
     "12: items.key.prep: is under `shared:` already; keep one of the two."),
    ("name: number_agreement", "shared: {head: key}\nname: number_agreement",
     "2: shared.head: carries subject; a form that all items share carries no factor."),
    ("name: number_agreement", "shared: {probe: and}\nname: number_agreement",
     "2: shared.probe: unknown slot 'probe'. Did you mean 'prep'? Known: head, prep, local, verb, rel."),
    ("name: number_agreement", "labels: [head_start]\nname: number_agreement",
     "6: frames.pp: the column 'head_start' belongs to the label 'head_start' already; rename one of them."),
]  # fmt: skip


@pytest.mark.parametrize("case", NUMBER, ids=lambda case: case[2][:50])
def test_design_refuses_within_example(refused, case):
    """Each mistake in a design with frames and items is one line with its line number and a remedy."""
    assert refused("stimuli/number_agreement", *case[:2]).startswith(f"stimuli/number_agreement.yaml:{case[2]}")


LISTS = [
    ("outcome: {levels: [failure, achievement], varies: between}", "outcome: [failure, achievement]",
     "3: factors.outcome: varies within items, but each text of a list is its own item; "
     "write {levels: [failure, achievement], varies: between}."),
    ("  failure:\n", "  failures:\n", "12: lists.failures: unknown level 'failures' of factor 'outcome'. "
     "Did you mean 'failure'? Known: failure, achievement."),
    ("    continuation: [{topic: sport, text: \"Mara", "    other: [{topic: sport, text: \"Mara",
     "10: lists.achievement.other: unknown level 'other' of factor 'course'. Known: ending, continuation."),
    ("failure, achievement]", "failure, neutral, achievement]",
     "8: lists: no texts for level 'neutral' of factor 'outcome'; it has achievement, failure."),
    ("topic: sport, text: \"Mara", "topic: 5, text: \"Mara",
     "10: lists.achievement.continuation.0.topic: is read as the number 5, not as a word; put it in quotes."),
    ("topic: sport, text: \"Mara", "text: \"Mara",
     "10: lists.achievement.continuation.0: no value of the label 'topic'; write topic: …"),
    ("topic: sport, text: \"Mara", "topic: sport, txt: \"Mara",
     "10: lists.achievement.continuation.0.txt: unknown key 'txt'. Did you mean 'text'? Known: text, topic."),
    ("The bakery opened on time and is baking again.", "Mara won the race and is training for another.",
     "10: lists.achievement.continuation.1.text: is the same text as lists.achievement.continuation.0; "
     "every item needs a text of its own."),
    ("{last_word: {words: [-1, -1]}", "{last_word: {before: verb}",
     "6: regions.last_word.before: names a slot, but lists have none; use words: [first, last]."),
    ("localizer: 4", "localizer: 8",
     "7: partition.localizer: takes 8 of 8 items and leaves none to test; take at most 7."),
    ("strata: topic", "strata: theme", "5: strata: unknown label 'theme'. Known: topic."),
    ("strata: topic", "target: {slot: verb}", "5: target: cannot be combined with `lists:`; leave out `target:` or `lists:`."),
]  # fmt: skip


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case[2][:50])
def test_design_refuses_list_example(refused, case):
    """Each mistake in a list design is one line with its line number and a remedy."""
    assert refused("stimuli/achievement", *case[:2]) == f"stimuli/achievement.yaml:{case[2]}"


def test_design_refuses_lists_nested_wrongly(study):
    """Lists are as deep as there are factors: one level too few and one too many are both named."""
    head = "schema: neurosae/design/1\nname: x\nfactors: {a: {levels: [p, q], varies: between}}\n"
    for lists, message in (
        ("lists: [One., Two.]", "x.yaml:4: lists: is a list; write a mapping, {name: value}."),
        ("lists: {p: {r: [One.]}, q: [Two.]}", "x.yaml:4: lists.p: is a mapping; write a list of texts here, "
         "nested by a."),
        ("lists: {p: [[One.]], q: [Two.]}", "x.yaml:4: lists.p.0: is a list; write one word or text."),
        ("lists:\n  p: []\n  q: [Two.]", "x.yaml:3: factors.a: level 'p' has no items; "
         "add texts under `lists:`, or leave it out."),
        ("lists:\n  p: [One., 2]\n  q: [Two.]", "x.yaml:5: lists.p.1: is read as the number 2, not as a word; "
         "put it in quotes."),
        ("description: nothing", "x.yaml:1: file: has neither `frames:` with `items:`, nor `lists:`; write one of the two."),
        ("frames: {f: \"Text {a}\"}", "x.yaml:1: items: has no items; write for each item the form of every slot."),
    ):  # fmt: skip
        (study / "x.yaml").write_text(head + lists)
        with pytest.raises(SpecError) as caught:
            load_design("x.yaml")
        assert str(caught.value) == message


def test_design_refuses_between_levels_without_items():
    """Every level of a factor between items needs an item, and every item a level."""
    data = {
        "schema": "neurosae/design/1", "name": "x", "frames": {"f": "The {noun}"},
        "factors": {"kind": {"levels": ["thing", "animal"], "varies": "between"}},
        "items": {"cup": {"kind": "thing", "noun": "cup"}},
    }  # fmt: skip
    with pytest.raises(ValueError, match="level 'animal' has no items"):
        Design.model_validate(data)
    with pytest.raises(ValueError, match="no level of the factor 'kind', which varies between items"):
        Design.model_validate(data | {"items": {"cup": {"noun": "cup"}}})
    with pytest.raises(ValueError, match="unknown level 'plant' of factor 'kind'"):
        Design.model_validate(data | {"items": {"cup": {"kind": "plant", "noun": "cup"}}})


def test_design_refuses_too_many_cells(study):
    """A design whose stimuli nobody could run ends in a refusal, not in a full memory."""
    factors = ", ".join(f"f{i}: [a, b]" for i in range(24))
    slots = " ".join(f"{{s{i}:f{i}}}" for i in range(24))
    forms = ", ".join(f"s{i}: {{a: x, b: y}}" for i in range(24))
    text = f"schema: neurosae/design/1\nname: x\nfactors: {{{factors}}}\nframes: {{f: '{slots}'}}\nitems: {{i: {{{forms}}}}}"
    (study / "x.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"x.yaml:3: factors: give 16,777,216 stimuli .* at most 1,000,000.$"):
        load_design("x.yaml")


def test_from_json_refuses_what_is_no_design():
    """Stored text that is damaged is refused by name."""
    with pytest.raises(SpecError, match="design: is no JSON"):
        Design.from_json("{")
    with pytest.raises(SpecError, match=r"design.schema: is missing; write `schema: neurosae/design/1`.$"):
        Design.from_json("{}")
