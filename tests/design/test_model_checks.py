"""What `check` refuses about models and dictionaries from their folders alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from neurosae.design.checks import check
from neurosae.design.model_checks import Facts, length_problem, model_facts, model_problems
from neurosae.errors import SpecError
from neurosae.extraction.tokens import byte_tokenizer
from neurosae.spec.analysis import Analysis
from neurosae.spec.patching import PatchingBlock

STREAM = "blocks.1.hook_resid_post"


def analysis(*, model="embedded", hook=STREAM, **dictionary):
    sites = {"here": {"hook": hook, "dictionary": dictionary or {"neurons": True}}}
    return Analysis.model_validate(
        {"schema": "neurosae/analysis/1", "name": "a", "model": {"name": str(model)}, "sites": sites}
    )


def problems(**parts):
    return [(".".join(map(str, where)), text) for where, text in model_problems(analysis(**parts))]


def checkpoint(folder, **config):
    """A model folder that holds a config and a file of weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def dictionary(folder, *, width=256, hook=STREAM):
    """A dictionary folder with the two files that are asked for."""
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps({"d_in": width, "metadata": {"hook_name": hook}}))
    (folder / "sae_weights.safetensors").write_bytes(b"")
    return folder


def test_problems_recover_the_layers_that_the_model_has():
    """A layer too many, in the embedded model: the message lists what there is."""
    (found,) = problems(hook="blocks.4.hook_resid_post")
    assert found == (
        "sites.here.hook",
        "'blocks.4.hook_resid_post' is not there: the embedded model has blocks.0 … blocks.3.",
    )
    assert not problems(hook="blocks.3.hook_resid_post")
    assert not problems(hook="blocks.*.hook_resid_post")


def test_problems_recover_the_heads_that_the_model_has():
    """The embedded model has eight heads, counted from 0."""
    (found,) = problems(hook="blocks.1.attn.hook_z.h8")
    assert found == ("sites.here.hook", "'blocks.1.attn.hook_z.h8' is not there: the embedded model has heads h0 … h7.")
    assert not problems(hook="blocks.1.attn.hook_z.h7")


def test_problems_recover_patched_places_that_are_not_there():
    """Layers and heads that a test of patching names; patterns are left to the model."""
    patching = {"test": "patching", "between": {"number": ["pl", "sg"]}, "region": "noun"}
    hooks = ["blocks.*.attn.hook_z.h*", "blocks.1.attn.hook_z.h9", "blocks.7.hook_resid_post"]
    spec = SimpleNamespace(
        model=SimpleNamespace(name="embedded"), sites={},
        tests={"heads": PatchingBlock.model_validate(patching | {"hooks": hooks}), "other": object()},
    )  # fmt: skip
    found = [(".".join(where), text.partition(":")[0]) for where, text in model_problems(spec)]
    assert found == [
        ("tests.heads.hooks", "'blocks.1.attn.hook_z.h9' is not there"),
        ("tests.heads.hooks", "'blocks.7.hook_resid_post' is not there"),
    ]


def test_problems_recover_sizes_that_the_width_rules_out():
    """More principal components than dimensions, more active features than there are."""
    (found,) = problems(fit={"kind": "pca", "n": 257})
    assert found[0] == "sites.here.dictionary.fit.n"
    assert found[1].startswith("is 257, but pca has at most as many directions as dimensions")
    assert not problems(fit={"kind": "pca", "n": 256})
    assert not problems(fit={"kind": "ksvd", "n": 512})
    (found,) = problems(train={"n_tokens": 20_000, "k": 2560})
    assert found == ("sites.here.dictionary.train.k", "is 2560, but there are 2560 features; k must be below d_sae.")


@pytest.mark.parametrize("key", ["n_layer", "num_hidden_layers", "num_layers", "n_layers"])
def test_problems_agree_over_families_of_models(tmp_path, key):
    """Every family names its layers in its own way; a config that says nothing refuses nothing."""
    folder = checkpoint(tmp_path / "lm", **{key: 2})
    assert "blocks.0 … blocks.1" in problems(model=folder, hook="blocks.2.hook_resid_post")[0][1]
    assert not problems(model=checkpoint(tmp_path / "other", model_type="odd"), hook="blocks.99.hook_resid_post")


def test_problems_recover_missing_folders(tmp_path):
    """Models, dictionaries and training texts; a hub id is left to the loader."""
    assert problems(model=tmp_path / "no")[0][0] == "model.name"
    assert "has no config.json" in problems(model=tmp_path)[0][1]
    assert problems(path=str(tmp_path / "sae"))[0] == (
        "sites.here.dictionary.path",
        f"there is no folder {tmp_path / 'sae'}; give a dictionary in sae-lens format.",
    )
    assert "has no cfg.json" in problems(path=str(tmp_path))[0][1]
    assert "there is no" in problems(train={"n_tokens": 20_000, "texts": [str(tmp_path / "a.txt")]})[0][1]
    assert not problems(model="gpt2", hook="blocks.99.hook_resid_post")


def test_problems_recover_an_unknown_embedded_dictionary():
    """The names that the package has."""
    (found,) = problems(embedded="lat")
    assert found[0] == "sites.here.dictionary.embedded"
    assert "'lat'" in found[1]
    assert "late" in found[1]


def test_problems_recover_a_dictionary_for_another_place(tmp_path):
    """Another hook point, another width; the stream before a block is the one after the block below."""
    assert (
        "trained at blocks.1.hook_resid_post, not at blocks.2"
        in problems(hook="blocks.2.hook_resid_post", embedded="early")[0][1]
    )
    wide = dictionary(tmp_path / "wide", width=768)
    assert "width 768, but the embedded model has width 256" in problems(path=str(wide))[0][1]
    inner = dictionary(tmp_path / "inner", width=768, hook="blocks.1.mlp.hook_post")
    assert not problems(path=str(inner), hook="blocks.1.mlp.hook_post")
    same = dictionary(tmp_path / "same")
    assert not problems(path=str(same))
    assert not problems(path=str(same), hook="blocks.2.hook_resid_pre")


def test_length_recovers_the_longest_text():
    """Specials count; a text that just fits is fine."""
    stimuli = pd.DataFrame({"item": ["a", "b"], "text": ["cat", "a longer cat"]}, index=["a/x", "b/x"])
    facts = Facts("toy", 1, 8, 13)
    assert length_problem(stimuli, byte_tokenizer(), facts) is None
    item, text = length_problem(stimuli, byte_tokenizer(), facts._replace(n_ctx=12))
    assert (item, text) == (
        "b",
        "stimulus 'b/x' has 13 tokens with specials, toy takes at most 12; shorten the text.",
    )


def test_facts_of_a_nested_config(tmp_path):
    """Models of several modalities nest what reads text."""
    folder = checkpoint(tmp_path / "lm", text_config={"num_hidden_layers": 3, "hidden_size": 8})
    assert model_facts(folder) == Facts("model lm", 3, 8, None)


def test_check_refuses_with_file_and_line(tmp_path, designs):
    """The site's line in the analysis, the item's line in the design."""
    path = tmp_path / "a.yaml"
    path.write_text("schema: neurosae/analysis/1\nsites:\n  here:\n    hook: blocks.9.hook_resid_post\n")
    with pytest.raises(SpecError, match=r"a\.yaml:4: sites\.here\.hook: 'blocks\.9\.hook_resid_post' is not there"):
        check(designs["agreement"](6), analysis(hook="blocks.9.hook_resid_post"), path=path)
    folder = checkpoint(tmp_path / "lm", n_ctx=4)
    byte_tokenizer().backend.save(str(folder / "tokenizer.json"))
    design = tmp_path / "d.yaml"
    design.write_text("items:\n  key: {}\n")
    with pytest.raises(SpecError, match=r"d\.yaml:\d: items.*tokens with specials, model lm takes at most 4 "):
        check(designs["agreement"](6), tokenizer=folder, path=design)
