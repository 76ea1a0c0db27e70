"""Rows about dictionaries: against sae-lens' own evaluation, on planted pairs, and where nothing can be measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from neurosae.dictionary.evaluate import evaluate_dictionary, reconstruction, reference_contexts
from neurosae.dictionary.overlap import absorption, decoder_overlap
from neurosae.dictionary.record import read_folder, write_folder
from neurosae.dictionary.scorecard import evaluate_dictionaries, overlap_table
from neurosae.errors import DataError


class Store:
    """As much of sae-lens' ActivationsStore as its evaluation asks for: fixed batches of tokens."""

    def __init__(self, ids):
        self.ids, self.context_size, self.store_batch_size_prompts = ids, ids.shape[1], len(ids)

    def reset_input_dataset(self):
        """Nothing to reset."""

    def get_batch_tokens(self, size=None, **_):
        """Always the same tokens."""
        return self.ids[:size]


def test_evaluation_agrees_with_sae_lens(toy, make_dictionary, *, lens, tmp_path):
    """CE, KL, L0 and explained variance of `run_evals` on the same tokens, to 1e-4."""
    from sae_lens.evals import get_eval_everything_config, get_recons_loss, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    made = make_dictionary("topk")
    write_folder(tmp_path / "d", made)
    sae = lens.SAE.load_from_disk(tmp_path / "d")
    text = "the dog saw a red box near old trees and ran home"[:40]
    ours = evaluate_dictionary(made, toy, [text]).iloc[0]
    contexts = reference_contexts(toy, [text], n_tokens=20_000, seed=0)
    ids = torch.from_numpy(contexts.ids[0].astype(np.int64))[None]
    config = get_eval_everything_config(batch_size_prompts=1, n_eval_reconstruction_batches=1)
    specials = [int(i) for i in ids[0, : contexts.n_prefix]]
    theirs, _ = run_evals(sae, Store(ids), toy.bridge, ActivationScaler(), config, exclude_special_tokens=specials)
    assert ours.l0 == pytest.approx(theirs["sparsity"]["l0"], abs=1e-4)
    assert ours.explained_variance == pytest.approx(theirs["reconstruction_quality"]["explained_variance"], abs=1e-4)
    first, settings = max(contexts.n_prefix - 1, 0), {"ignore_tokens": specials, "compute_kl": True}
    each = get_recons_loss(sae, toy.bridge, ActivationScaler(), ids, compute_ce_loss=True, **settings)
    wanted = {name: float(value[0, first : ids.shape[1] - 1].mean()) for name, value in each.items()}
    assert ours.ce_base == pytest.approx(wanted["ce_loss_without_sae"], abs=1e-4)
    assert ours.ce_sae == pytest.approx(wanted["ce_loss_with_sae"], abs=1e-4)
    assert ours.kl_sae == pytest.approx(wanted["kl_div_with_sae"], abs=1e-4)
    if not specials:  # sae-lens ablates BOS too, we never do
        assert ours.ce_zero == pytest.approx(wanted["ce_loss_with_ablation"], abs=1e-4)


def test_overlap_recovers_a_permutation(make_dictionary):
    """The same features under other indices match wholly; unrelated ones do not."""
    made = make_dictionary("topk")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    shuffled = replace(made, W_dec=made.W_dec[order], W_enc=made.W_enc[order])
    other = replace(made, W_dec=torch.randn(64, 16, generator=torch.Generator().manual_seed(9)))
    same, different = decoder_overlap(made, shuffled).iloc[0], decoder_overlap(made, other).iloc[0]
    assert same.overlap_90 == 1
    assert same.cosine_median == pytest.approx(1)
    assert different.overlap_90 < 0.2
    some = np.arange(64) < 10
    assert decoder_overlap(made, shuffled, alive=(some, some)).iloc[0].n_matched == 10
    table = overlap_table({"a": made, "b": shuffled, "c": replace(other, hook="elsewhere")})
    assert table[["one", "other"]].to_numpy().tolist() == [["a", "b"]]


def test_overlap_refuses_other_widths(make_dictionary):
    """Directions of different spaces have no cosine."""
    with pytest.raises(DataError, match="width 16 and 8"):
        decoder_overlap(make_dictionary("topk"), make_dictionary("topk", d=8))


def test_absorption_recovers_a_planted_pair():
    """A broad feature that leaves one token to a narrow one is named; co-active or unrelated ones are not."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 400)
    active = np.zeros((400, 4))
    active[tokens == 1, 0] = 1
    active[np.flatnonzero(tokens == 1)[:40], 0] = 0
    active[np.flatnonzero(tokens == 1)[:40], 1] = 1  # taken from feature 0
    active[tokens == 2, 2] = active[tokens == 2, 3] = 1  # together, so not absorbed
    decoder = torch.tensor([[1.0, 0.1, 0], [1, 0, 0], [0, 0, 1], [0, 0.1, 1]])
    found = absorption(sparse.csr_matrix(active), tokens, decoder)
    assert [0, 1] in found[["broad", "narrow"]].to_numpy().tolist()
    assert not {2, 3} & set(found["narrow"])
    apart = absorption(sparse.csr_matrix(active), tokens, torch.eye(4))
    assert not len(apart)


@pytest.mark.parametrize(("n", "pairs"), [(9, 0), (10, 2)])
def test_absorption_says_nothing_of_rare_features(n, pairs):
    """Of a few active tokens no share is known: below ten, features are left out."""
    active = np.zeros((60, 2))
    active[:n, 0], active[20 : 20 + n, 1] = 1, 1
    decoder = torch.tensor([[1.0, 0.2], [1.0, 0.0]])
    assert len(absorption(sparse.csr_matrix(active), np.full(60, 7), decoder)) == pairs


def test_scaled_inputs_are_scored_in_any_number(lens, tmp_path):
    """sae-lens decodes with the scale of its last call: fails if more rows are decoded than were encoded at once."""
    sae = lens.StandardSAE(lens.StandardSAEConfig(d_in=4, d_sae=8192, normalize_activations="layer_norm"))
    sae.save_model(tmp_path / "d")
    made, x = read_folder(tmp_path / "d"), torch.randn(2100, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hat = sae(x).double()
    wanted = float((x - hat).square().sum() / (x - x.mean(0)).square().sum())
    assert reconstruction(made, x)[0]["fvu"] == pytest.approx(wanted, rel=1e-4)


def test_rows_flag_unequal_l0(toy, toy_texts, make_dictionary):
    """A comparison at unequal L0 is marked on the row."""
    made = {f"k{k}": make_dictionary("topk", k=k) for k in (10, 11, 4)}
    table = evaluate_dictionaries(made, toy, toy_texts[:20], n_tokens=400).set_index("site")
    assert table["l0_matched"].to_dict() == {"k10": True, "k11": True, "k4": False}
    assert table["pathology"].gt(0).all()
    assert sum(table["log10_density"].iloc[0]) == 64 - table["n_dead"].iloc[0]
