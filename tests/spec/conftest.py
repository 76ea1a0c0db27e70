"""The example files of the schemas, as text."""

from __future__ import annotations

import pytest

from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design

WITHIN = '''\
schema: neurosae/design/1
name: number_agreement                                # optional: description
factors: {subject: [sg, pl], attractor: [sg, pl]}     # short form: the factor varies within each item
frames:                                               # {slot} or {slot:factor}; every slot is a region
  pp: "The {head:subject} {prep} the {local:attractor} {verb:subject}"
  rc: "The {head:subject} that the {local:attractor} {rel:attractor} {verb:subject}"
regions: {pre_verb: {before: verb}}                   # the word before the verb: its last token predicts the verb
target: {slot: verb, foil: other_level, single_token: true}
partition: {localizer: 2, seed: 7}                    # items that may choose features
items:
  key:     {head: {sg: key, pl: keys}, prep: to, local: {sg: cabinet, pl: cabinets}, rel: {sg: protects, pl: protect}, verb: {sg: is, pl: are}}
  author:  {head: {sg: author, pl: authors}, prep: behind, local: {sg: report, pl: reports}, rel: {sg: mentions, pl: mention}, verb: {sg: was, pl: were}}
  picture: {head: {sg: picture, pl: pictures}, prep: of, local: {sg: child, pl: children}, rel: {sg: likes, pl: like}, verb: {sg: has, pl: have}}
  driver:  {head: {sg: driver, pl: drivers}, prep: near, local: {sg: truck, pl: trucks}, rel: {sg: passes, pl: pass}, verb: {sg: is, pl: are}}
'''  # fmt: skip  # noqa: E501

LISTS = """\
schema: neurosae/design/1
name: achievement
factors: {outcome: {levels: [failure, achievement], varies: between}, course: {levels: [ending, continuation], varies: between}}
labels: [topic]                 # strings carried by items; `covariates:` names numbers
strata: topic                   # labels are exchanged only inside a topic
regions: {last_word: {words: [-1, -1]}, whole: {words: [0, -1]}}
partition: {localizer: 4, seed: 7}
lists:                          # nested in the order of the factors; no `frames:` needed
  achievement:
    continuation: [{topic: sport, text: "Mara won the race and is training for another."}, {topic: work, text: "The bakery opened on time and is baking again."}]
    ending: [{topic: sport, text: "Jonas won the match and put his shoes away."}, {topic: work, text: "The bridge opened on time and the crew left."}]
  failure:
    continuation: [{topic: sport, text: "Ines lost the match but is practising every day."}, {topic: work, text: "The engine broke twice but they are still testing."}]
    ending: [{topic: sport, text: "Pavel lost the race and gave his bicycle away."}, {topic: work, text: "The shop failed last spring and its doors closed."}]
"""  # noqa: E501

COMPOSITION = """\
schema: neurosae/design/1
name: composition
factors: {adjective: [absent, present], noun: [absent, present], context: [list, phrase]}
frames:                         # a frame may depend on one factor
  noun_last:  {context: {phrase: "On the card there was one {first:adjective} {second:noun} {probe} nothing more", list: "On the card it said {first:adjective}, {second:noun} {probe} nothing more"}}
  noun_first: {context: {phrase: "The {second:noun} on the card was {first:adjective} {probe} nothing more", list: "The two words were {second:noun}, {first:adjective} {probe} nothing more"}}
shared: {probe: and}            # forms that all items share; never one that carries a factor
regions: {last_part: {before: probe}, both: {span: [first, second]}}
partition: {localizer: 1, seed: 7}
items:                          # fillers differ between items
  red_boat:  {first: {absent: certain, present: red}, second: {absent: thing, present: boat}}
  cold_soup: {first: {absent: usual, present: cold}, second: {absent: object, present: soup}}
"""  # noqa: E501

ANALYSIS = """\
schema: neurosae/analysis/1
name: number_agreement
design: ../stimuli/number_agreement.yaml   # every path is relative to the file that names it
seed: 20260401
model: {name: embedded, dtype: float32}    # or a checkpoint directory, or a hub id such as gpt2
sites:                                     # site = hook point + dictionary; its key here is its name everywhere
  early:  {hook: blocks.1.hook_resid_post, dictionary: {embedded: early}}
  late:   {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}
  late_2: {hook: blocks.3.hook_resid_post, dictionary: {train: {architecture: topk, d_sae: 2048, k: 32, n_tokens: 4000000, seed: 2}}}
positions: {regions: [head, local, pre_verb],   # only these positions leave the model
            align: region,
            tokens: last, frames: mean,
            keep_x: true}                  # also store the raw stream there
inference: {statistic: moderated_t,
            correction: maxT,
            n_permutations: 10000, alternative: two-sided, alpha: 0.05,     # every key is optional; defaults as shown
            min_informative: 6, nuisance: [],
            families: {agreement: [number, interference]}}   # one max over both
effects:
  subject:    {subject: {pl: 1, sg: -1}}
  attractor:  {attractor: {pl: 1, sg: -1}}
  congruence: {subject: {pl: 1, sg: -1}, attractor: {pl: 1, sg: -1}}
  subject_given_pl: {subject: {pl: 1, sg: -1}, attractor: {pl: 1}}
tests:                                     # run in this order; default split: test
  find_number:    {test: contrast, effect: subject, region: head, split: localizer}
  find_attractor: {test: contrast, effect: attractor, region: local, split: localizer}
  number:         {test: contrast, effect: subject, region: [head, pre_verb]}
  interference:   {test: contrast, effect: congruence, region: pre_verb}
  screen:         {test: contrast, effect: [subject, attractor], region: pre_verb, correction: fdr_bh}
  chosen:         {test: contrast, effect: subject, region: pre_verb, features: {from: find_number, top: 10}}
  geometry:       {test: rsa, region: pre_verb, conditions: [subject, attractor, frame], distance: crossnobis, compare: cosine_cov,
                   p_from: item_flips,
                   models: {subject: {effect: subject}, attractor: {effect: attractor}, length: {column: n_tokens, metric: absolute, nuisance: true}}}
report: {title: Number agreement in the embedded model, top_features: 20}
"""  # noqa: E501

FILES = {
    "stimuli/number_agreement.yaml": WITHIN,
    "stimuli/achievement.yaml": LISTS,
    "stimuli/composition.yaml": COMPOSITION,
    "analyses/number_agreement.yaml": ANALYSIS,
}


@pytest.fixture(scope="session")
def study_files():
    """Path inside a study -> text of the file."""
    return dict(FILES)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with all example files; the test runs inside it, so that messages begin with short paths."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edited(study):
    """A function that replaces a piece of an example file and reads the file again."""

    def edit(name, old, new):
        path = next(path for path in FILES if path.endswith(f"{name}.yaml"))
        text = (study / path).read_text()
        assert old in text, f"'{old}' is not in {path}"
        (study / path).write_text(text.replace(old, new, 1))
        return (load_design if path.startswith("stimuli") else load_analysis)(path)

    return edit
