"""A reference dictionary of a small real model: training and every score against numbers made with other code."""

from __future__ import annotations

import numpy as np
import pytest

from neurosae.dictionary.evaluate import evaluate_dictionary
from neurosae.dictionary.pathology import pathology
from neurosae.dictionary.texts import read_texts
from neurosae.dictionary.train import train_dictionary
from neurosae.extraction.model import load_model

HOOK = "blocks.2.hook_resid_post"
FILES = ("text/tinystories_selfgen.train.txt.gz", "text/tinystories_head.train.txt.gz")


@pytest.mark.slow
def test_train_agrees_with_the_reference(shared_data, tmp_path):
    """128 features, k = 4, 1,500 steps: FVU, dead, CE, its recovered share, KL and pathology of the reference."""
    texts = [text for name in FILES for text in read_texts([shared_data(name)])]
    model = load_model(shared_data("models/stories260K"))
    settings = {"d_sae": 128, "k": 4, "n_tokens": 1_500 * 512, "batch": 512, "cache": "float32"}
    made = train_dictionary(model, texts, hook=HOOK, out=tmp_path / "d", settings=settings)
    assert made.card["gamma"] == pytest.approx(0.5, abs=0.02)
    assert made.card["dead"] <= 0.02
    backend = model.tokens.backend  # the reference reads the first 256 tokens of each text, BOS among them
    whole = read_texts([shared_data("text/tinystories_head.valid.txt.gz")])
    valid = [backend.decode(backend.encode(text, add_special_tokens=False).ids[:255]) for text in whole]
    row = evaluate_dictionary(made, model, valid, n_tokens=10**6).iloc[0]
    assert row.n_tokens == 4_481
    assert (row.ce_base, row.ce_zero, row.ce_mean) == pytest.approx((1.4102, 10.50, 5.32), abs=0.005)
    assert row.fvu == pytest.approx(0.231, abs=0.01)
    assert row.ce_sae == pytest.approx(2.22, abs=0.05)
    assert (row.ce_recovered_zero, row.ce_recovered_mean) == pytest.approx((0.911, 0.794), abs=0.015)
    assert row.kl_sae == pytest.approx(0.84, abs=0.05)
    found = pathology(made, model, valid, n_tokens=10**6).iloc[0]
    assert found.pathology == pytest.approx(2.06, abs=0.1)
    assert np.isclose(found.kl_sae, row.kl_sae)
