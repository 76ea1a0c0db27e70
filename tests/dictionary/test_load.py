"""Dictionaries that a study names, and the refusals of what does not fit."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from neurosae.dictionary.load import DICTIONARIES, load_dictionary
from neurosae.dictionary.record import read_folder, write_folder
from neurosae.dictionary.train import train_dictionary
from neurosae.errors import ModelError
from neurosae.extraction.model import load_model
from tests.dictionary.conftest import HOOK, TOY

SMALL = {"d_sae": 64, "k": 4, "n_tokens": 20_000, "batch": 100}


@pytest.fixture(scope="module")
def trained(toy, toy_texts, tmp_path_factory):
    """A dictionary that fits the toy."""
    folder = tmp_path_factory.mktemp("trained") / "d"
    train_dictionary(toy, toy_texts, hook=HOOK, out=folder, settings=SMALL)
    return folder


def site(folder, hook=HOOK):
    """A site as an analysis writes it."""
    return {"hook": hook, "dictionary": {"path": str(folder)}}


def rewrite(folder, target, **changes):
    """A changed copy of a stored dictionary."""
    made = read_folder(folder)
    facts = {n: v for n, v in made.metadata.items() if v is not None} | changes.pop("metadata", {})
    write_folder(target, replace(made, **changes, metadata=facts))
    return target


def test_load_recovers_the_fit(trained, toy, toy_texts):
    """Measured on the texts given, beside what the card says."""
    made = load_dictionary(site(trained), toy, texts=toy_texts)
    assert made.fit["fvu_here"] == pytest.approx(made.fit["fvu_card"], abs=0.05)
    assert made.fit["l0_here"] == pytest.approx(4, abs=0.1)
    assert made.fit["warnings"] == ()
    assert made.fit["n_tokens"] >= 2000


def test_load_measures_on_own_samples(trained, toy):
    """Without text the model writes what the check needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bytes that an untrained toy writes are no English
        made = load_dictionary(site(trained), toy)
    assert made.fit["n_tokens"] >= 2000


def test_load_measures_at_the_positions_that_were_learned(toy, toy_texts, tmp_path):
    """A dictionary of short contexts is measured on short ones: later positions are no evidence against it."""
    short = SMALL | {"context": 8}
    train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=short)
    made = load_dictionary(site(tmp_path / "d"), toy, texts=toy_texts)
    longer = rewrite(tmp_path / "d", tmp_path / "longer", metadata={"context_size": 64})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert load_dictionary(site(longer), toy, texts=toy_texts).fit["fvu_here"] > 2 * made.fit["fvu_here"]


def test_load_accepts_an_alias_of_the_hook(trained, toy, toy_texts, *, tmp_path):
    """Two names of one hook point are one place."""
    made = rewrite(trained, tmp_path / "d", metadata={"hook_name": "blocks.1.hook_out"})
    assert load_dictionary(site(made), toy, texts=toy_texts).hook == HOOK


def test_load_refuses_another_hook(trained, toy, toy_texts):
    """The message has both hook points and the site."""
    wanted = "sites.late: the dictionary was trained at blocks.1.hook_resid_post, but the site's hook is blocks.0"
    with pytest.raises(ModelError, match=wanted):
        load_dictionary(site(trained, "blocks.0.hook_resid_post"), toy, texts=toy_texts, where="late")


def test_reference_text_is_made_only_when_all_else_fits(trained, toy, toy_texts):
    """A text that takes minutes to write is asked for last, and not at all for the raw stream."""
    asked = []

    def texts():
        asked.append(1)
        return toy_texts

    with pytest.raises(ModelError, match=r"trained at blocks\.1"):
        load_dictionary(site(trained, "blocks.0.hook_resid_post"), toy, texts=texts)
    load_dictionary({"hook": HOOK, "dictionary": {"neurons": True}}, toy, texts=texts)
    assert not asked
    assert load_dictionary(site(trained), toy, texts=texts).fit["fvu_here"] < 1
    assert asked == [1]


def test_load_refuses_another_width(trained, toy_texts):
    """A model of another size gives both widths."""
    wide = load_model(TOY | {"d_model": 32, "d_head": 16})
    with pytest.raises(ModelError, match=r"width 16, but blocks\.1\.hook_resid_post of toy gives 32"):
        load_dictionary(site(trained), wide, texts=toy_texts)


def test_load_refuses_other_weights(trained, toy_texts):
    """The same architecture with other weights is another model."""
    with pytest.raises(ModelError, match="trained on other weights"):
        load_dictionary(site(trained), load_model(TOY | {"seed": 1}), texts=toy_texts)


def test_load_refuses_another_weights_mode(trained, toy, toy_texts, *, tmp_path):
    """Raw and folded weights are not interchangeable."""
    folded = rewrite(trained, tmp_path / "d", metadata={"weights_mode": "compat"})
    with pytest.raises(ModelError, match="weights: compat, but the model is loaded with weights: raw"):
        load_dictionary(site(folded), toy, texts=toy_texts)


@pytest.mark.parametrize("spoil", [0.0, 0.2])
def test_load_refuses_a_poor_reconstruction(trained, toy, toy_texts, *, tmp_path, spoil):
    """FVU near 1, or far from its card: the numbers are in the message."""
    made = read_folder(trained)
    other = rewrite(trained, tmp_path / "d", W_dec=made.W_dec * spoil, card=dict(made.card))
    with pytest.raises(ModelError, match=r"of the variance .* unexplained \(its card says"):
        load_dictionary(site(other), toy, texts=toy_texts)


def test_load_announces_a_middling_fit(trained, toy, toy_texts, *, tmp_path):
    """Neither good nor refused: a warning that the record keeps."""
    made = read_folder(trained)
    other = rewrite(trained, tmp_path / "d", W_dec=made.W_dec * 0.3, card={"l0": 4.0}, metadata={"fvu": 0.6})
    with pytest.warns(UserWarning, match="of the variance unexplained here"):
        loaded = load_dictionary(site(other), toy, texts=toy_texts)
    assert len(loaded.fit["warnings"]) == 1


def test_load_refuses_an_l0_far_from_its_card(trained, toy, toy_texts, *, tmp_path):
    """Thousands of active features where tens were promised."""
    other = rewrite(trained, tmp_path / "d", card={"l0": 0.5, "fvu": 0.3})
    with pytest.raises(ModelError, match=r"features are active per token here, but 0\.5"):
        load_dictionary(site(other), toy, texts=toy_texts)


def test_load_trains_once(toy, tmp_path):
    """A `train:` block is trained on first use and found again afterwards."""
    ask = {"hook": HOOK, "dictionary": {"train": SMALL | {"n_tokens": 4000}}}
    texts = tmp_path / "a.txt"
    documents = [f"The dog number {i} ran home {i * i} times." for i in range(150)]
    texts.write_text("\n\n".join(documents))
    ask["dictionary"]["train"]["texts"] = [texts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        first, again = (load_dictionary(ask, toy, store=tmp_path / "out", texts=documents) for _ in range(2))
    folders = list((tmp_path / "out" / "_store" / "dictionaries").iterdir())
    assert first.hash == again.hash
    assert [f.name for f in folders] == [first.metadata["key"][:12]]


def test_load_refuses_unknown_kinds(toy, toy_texts):
    """The message lists what can be named."""
    with pytest.raises(ModelError, match=r"unknown dictionary 'pth'\. Did you mean 'path'"):
        load_dictionary({"hook": HOOK, "dictionary": {"pth": "x"}}, toy, texts=toy_texts)
    with pytest.raises(ModelError, match="unknown embedded dictionary 'nowhere'"):
        load_dictionary({"hook": HOOK, "dictionary": {"embedded": "nowhere"}}, toy, texts=toy_texts)
    with pytest.raises(ModelError, match="needs a folder to be kept in"):
        load_dictionary({"hook": HOOK, "dictionary": {"train": SMALL}}, toy, texts=toy_texts)
    with pytest.raises(ModelError, match="does not exist; give a folder"):
        load_dictionary(site("/nowhere/d"), toy, texts=toy_texts)


def test_load_refuses_an_unreachable_release(toy, toy_texts):
    """Offline, a release that does not exist is one sentence without a wait."""
    ask = {"hook": HOOK, "dictionary": {"release": "no-such-release", "id": "x"}}
    with pytest.raises(ModelError, match="'x' of release 'no-such-release' cannot be had"):
        load_dictionary(ask, toy, texts=toy_texts)


def test_release_is_loaded_through_sae_lens(trained, toy, toy_texts, *, lens, monkeypatch):
    """A published dictionary goes through `SAE.from_pretrained`; what sae-lens warned of stays in the record."""
    asked = {}

    def published(release, sae_id, **settings):
        asked.update(settings, release=release, id=sae_id)
        warnings.warn("an old release", UserWarning, stacklevel=1)
        return lens.SAE.load_from_disk(trained)

    monkeypatch.setattr(lens.SAE, "from_pretrained", published)
    ask = {"hook": HOOK, "dictionary": {"release": "some-release", "id": "blocks.1"}}
    with pytest.warns(UserWarning, match="an old release"):
        made = load_dictionary(ask, toy, texts=toy_texts)
    assert (asked["release"], asked["id"]) == ("some-release", "blocks.1")
    assert made.fit["l0_here"] == pytest.approx(4, abs=0.1)
    assert made.kind == "topk"  # one of ours, so encoded fast
    assert "an old release" in made.fit["warnings"]


def test_neurons_fit_every_hook(toy, toy_texts):
    """Raw coordinates of any hook point, two signs each."""
    made = load_dictionary({"hook": "blocks.0.mlp.hook_post", "dictionary": {"neurons": True}}, toy, texts=toy_texts)
    assert made.n_features == 64
    assert made.fit["fvu_here"] == 0
    assert torch.equal(made.W_enc, made.W_dec)
    assert set(DICTIONARIES) >= {"embedded", "path", "release", "train"}
