"""Models, sites and dictionaries: what a name means, and where a path leads."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from neurosae.spec.hooks import HOOKS
from neurosae.spec.positions import Positions
from neurosae.spec.sites import DictionaryBlock, FitBlock, ModelBlock, Site, StudyPath, TrainBlock


def named(name, folder):
    return ModelBlock.model_validate({"name": name}, context={"folder": folder}).name


def test_model_name_recovers_folders_and_hub_ids(tmp_path):
    """A path leads on from the file that names it; `embedded` and hub ids stay names."""
    (tmp_path / "study" / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "study" / "embedded").mkdir()
    folder = tmp_path / "study"
    assert named("models/tiny", folder) == named("./models/tiny", folder) == str(folder / "models" / "tiny")
    assert named("../lm", folder) == str(tmp_path / "lm")
    assert named("/models/lm", folder) == "/models/lm"
    assert named("~/lm", folder) == str(Path("~/lm").expanduser())
    assert [named(name, folder) for name in ("embedded", "gpt2", "EleutherAI/pythia-70m")] == [
        "embedded", "gpt2", "EleutherAI/pythia-70m",
    ]  # fmt: skip


def test_dictionary_paths_recover_from_anywhere(tmp_path):
    """Checkpoints and corpora may lie outside the study; relative paths begin at the file."""
    block = {"train": {"n_tokens": 20_000, "texts": ["corpus.txt", "/corpora/big"]}}
    made = DictionaryBlock.model_validate(block, context={"folder": tmp_path})
    assert made.train.texts == (str(tmp_path / "corpus.txt"), "/corpora/big")
    assert DictionaryBlock.model_validate({"path": "../sae"}, context={"folder": tmp_path / "a"}).path == str(
        tmp_path / "sae"
    )
    assert DictionaryBlock(path="sae").path == "sae"


OTHERS = [
    "hook_embed",
    "ln_final.hook_normalized",
    "blocks.2.attn.hook_q",
    "blocks.*.attn.hook_z.h3",
    "blocks.1.hook_out",
]
OTHERS += ["blocks.0.mlp.experts.hook_router_scores"]


@pytest.mark.parametrize("point", [*OTHERS, *(f"blocks.11.{hook}" for hook in HOOKS)])
def test_site_recovers_readable_hook_points(point):
    """Every hook point that gives one vector per token can be a site."""
    assert Site.model_validate({"hook": point, "dictionary": {"neurons": True}}).hook == point


@pytest.mark.parametrize(
    "point",
    [
        *("blocks.x.hook_resid_post", "blocks.1.attn.hook_pattern", "", "unembed", 3, None, "blocks.*"),
        *("blocks.1.atn.hook_z", "blocks.1.attn.hook_zz", "blocks.1.attn.hook_resid_post", "ln_finl.hook_normalized"),
        *("blocks.1.hook_resid_post.h3", "hook_embd", "blocks.1.hook_resid", "blocks.hook_resid_post"),
    ],
)
def test_site_refuses_other_hook_points(point):
    """Names that no model reads a vector at are refused without a model."""
    with pytest.raises(ValidationError):
        Site.model_validate({"hook": point, "dictionary": {"neurons": True}})


def test_train_block_agrees_with_trainer():
    """Architectures and settings of the schema are those that the trainer knows."""
    ours = pytest.importorskip("neurosae.dictionary.settings")
    assert set(TrainBlock.model_fields["architecture"].annotation.__args__) == set(ours.ARCHITECTURES)
    fields = ours.Settings.__dataclass_fields__
    assert set(TrainBlock.model_fields) - {"texts"} == set(fields) - {"dtype"}
    for name, field in TrainBlock.model_fields.items():
        if name not in ("texts", "n_tokens", "context") and field.default is not None:  # None: filled in later
            assert field.default == fields[name].default


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k0": 4}, "falls from k0 to k"),
        ({"widths": (16, 64)}, "belong to matryoshka"),
        ({"architecture": "matryoshka", "d_sae": 64, "widths": (64, 32)}, "must rise"),
        ({"architecture": "gated", "scale": False}, "assumes scaled rows"),
        ({"warm_up": 0.9}, "more than all steps"),
        ({"anneal": 1.5}, "less than or equal to 1"),
    ],
)
def test_train_block_refuses(changes, message):
    """What would parse and then do something else is refused where it is written."""
    with pytest.raises(ValidationError, match=message):
        TrainBlock.model_validate({"n_tokens": 20_000, **changes})


def test_study_path_refuses_an_absolute_path_inside_the_study(tmp_path):
    """It does not leave the study, so the message says what is wrong with it: the relative path to write."""
    path, context = TypeAdapter(StudyPath), {"folder": tmp_path / "analyses"}
    message = r"is an absolute path, which no other machine has; write \.\./stimuli/d\.yaml\."
    with pytest.raises(ValidationError, match=message):
        path.validate_python(str(tmp_path / "stimuli" / "d.yaml"), context=context)
    with pytest.raises(ValidationError, match="leaves the study"):
        path.validate_python("/etc/passwd", context=context)
    assert path.validate_python("../stimuli/d.yaml", context=context) == tmp_path / "stimuli" / "d.yaml"


WITHOUT_EFFECT = [
    (ModelBlock, {"name": "gpt2", "control_seed": 3}, "control_seed: is the seed of a control; name one"),
    (TrainBlock, {"n_tokens": 9000}, "n_tokens: is 9,000, fewer than 20 batches of 512"),
    (TrainBlock, {"n_tokens": 1999, "batch": 100}, "n_tokens: is 1,999, fewer than 20 batches of 100"),
    (TrainBlock, {"n_tokens": 9, "interaction": "sequential"}, "interaction: belongs to interaction"),
    (TrainBlock, {"n_tokens": 9, "head": "mlp"}, "head: belongs to interaction"),
    (TrainBlock, {"n_tokens": 9, "dropout": 0.1}, "dropout: belongs to interaction"),
    (FitBlock, {"kind": "ksvd", "n": 16, "k": 20}, "k: is 20, but there are only 16 atoms"),
    (Positions, {"max_shift": 2}, "max_shift: has no meaning with align: region"),
    (Positions, {"shift_unit": "item"}, "shift_unit: has no meaning with align: region"),
]


@pytest.mark.parametrize(("block", "asked", "message"), WITHOUT_EFFECT)
def test_what_would_have_no_effect_is_refused(block, asked, message):
    """A key that nothing would read is an error, not a silence."""
    with pytest.raises(ValidationError) as caught:
        block.model_validate(asked)
    key, text = message.split(": ", 1)
    assert text in str(caught.value)
    assert key in str(caught.value.errors()[0]["ctx"])


def test_what_has_an_effect_is_accepted():
    """The same keys where they are read."""
    assert ModelBlock(name="gpt2", control="shuffle", control_seed=3).control_seed == 3
    block = {
        "architecture": "interaction",
        "n_tokens": 20_000,
        "head": "mlp",
        "dropout": 0.1,
        "interaction": "sequential",
    }
    assert TrainBlock.model_validate(block).head == "mlp"
    assert FitBlock(kind="ksvd", n=16, k=16).k == 16
    shifted = {"align": "xcorr", "window": [-2, 2], "max_shift": 2, "shift_unit": "item"}
    assert Positions.model_validate(shifted).max_shift == 2
