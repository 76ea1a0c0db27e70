"""The sparse TopK step against autograd and sae-lens."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from neurosae.dictionary.topk import TopKStep, auxiliary_loss, strongest, threshold_codes, topk_codes


def parameters(d=16, m=96, dtype=torch.float64):
    """Decoder rows of different length, encoder near their transpose, all with gradients."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(m, d, generator=draws, dtype=dtype) * (0.5 + torch.rand(m, 1, generator=draws, dtype=dtype))
    parts = rows * 0.8, 0.1 * torch.randn(m, generator=draws, dtype=dtype), rows
    parts += (0.3 * torch.randn(d, generator=draws, dtype=dtype),)
    return [part.clone().requires_grad_() for part in parts]


def by_autograd(x, given, k):
    """The same reconstruction in dense operations."""
    encoder, bias, decoder, center = given
    z = ((x - center) @ encoder.t() + bias) * decoder.norm(dim=1)
    values, kept = z.topk(k, dim=1)
    active = torch.zeros_like(z).scatter(1, kept, values.relu())
    return (active / decoder.norm(dim=1)) @ decoder + center


def loss_and_gradients(decoded, x, given):
    """Mean squared error summed over the width, and its gradients."""
    loss = (decoded - x).square().sum(1).mean()
    return loss, torch.autograd.grad(loss, given)


@pytest.mark.parametrize("dense", [False, True])
def test_step_agrees_with_autograd(dense):
    """Loss and all five gradients equal those of the dense form, in both ways of multiplying."""
    given = parameters()
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    ours = loss_and_gradients(TopKStep.apply(x, *given, 8, dense)[0], x, [x, *given])
    theirs = loss_and_gradients(by_autograd(x, given, 8), x, [x, *given])
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_dead", [0, 5, 40])
def test_step_agrees_with_sae_lens(lens, n_dead):
    """Same loss and gradients as TopKTrainingSAE, its auxiliary loss included."""
    config = lens.TopKTrainingSAEConfig(d_in=16, d_sae=96, k=8, aux_loss_coefficient=1 / 32, dtype="float64")
    sae, given = lens.TopKTrainingSAE(config), parameters()
    for theirs, ours in zip((sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), given, strict=True):
        theirs.data.copy_(ours.detach().t() if theirs is sae.W_enc else ours.detach())
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    dead = torch.arange(n_dead)
    mask = torch.zeros(96, dtype=torch.bool)
    mask[dead] = True
    step = lens.saes.sae.TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=mask, n_training_steps=0, is_logging_step=False
    )
    reference = sae.training_forward_pass(step).loss
    reference.backward()
    decoded = TopKStep.apply(x, *given, 8, False)[0]
    loss = (decoded - x).square().sum(1).mean()
    if n_dead:
        loss = loss + auxiliary_loss(tuple(given), x, decoded, dead=dead) / 32
    loss.backward()
    assert_close(loss, reference, rtol=1e-10, atol=0)
    assert_close(given[0].grad, sae.W_enc.grad.t(), rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(given[1:], (sae.b_enc, sae.W_dec, sae.b_dec), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)


def test_step_invariant_to_how_it_multiplies():
    """Sparse and dense products keep the same features and give the same reconstruction."""
    given = parameters(dtype=torch.float32)
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(4))
    sparse, dense = (TopKStep.apply(x, *given, 8, way) for way in (False, True))
    assert torch.equal(sparse[1], dense[1])
    assert_close(sparse[0], dense[0], rtol=1e-5, atol=1e-5)


def test_codes_agree_with_a_dense_selection():
    """Sorted CSR rows hold the k largest positive entries, or those above a threshold."""
    z = torch.randn(50, 40, generator=torch.Generator().manual_seed(5))
    kept = torch.zeros_like(z).scatter(1, z.topk(6).indices, z.topk(6).values.relu())
    codes = topk_codes(z, 6)
    assert codes.has_sorted_indices
    assert_close(torch.from_numpy(codes.toarray()), kept)
    level = torch.rand(40, generator=torch.Generator().manual_seed(6)) - 0.5
    wanted = torch.where((z > level) & (z > 0), z, 0)
    assert_close(torch.from_numpy(threshold_codes(z, level).toarray()), wanted)


@pytest.mark.parametrize(("m", "k"), [(1024, 16), (1030, 16), (4096, 32), (100, 8), (64, 63)])
def test_strongest_agrees_with_topk(m, k):
    """Groups and candidates find the same entries as a full selection, with columns left over and without."""
    z = torch.randn(300, m, generator=torch.Generator().manual_seed(7))
    values, kept = strongest(z, k)
    assert torch.equal(kept.sort(1).values, z.topk(k, dim=1).indices.sort(1).values)
    assert torch.equal(values, z.gather(1, kept))


def test_chunks_change_nothing():
    """Rows beyond one chunk are selected like the first ones, also by a wide dictionary."""
    encoder, bias, decoder, center = parameters(d=8, m=4096, dtype=torch.float32)
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(8))
    together = TopKStep.apply(x, encoder, bias, decoder, center, 4, False)
    alone = [TopKStep.apply(x[i : i + 100], encoder, bias, decoder, center, 4, False)[0] for i in range(0, 600, 100)]
    assert_close(together[0], torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_autocast_is_the_same_step_in_less_precision():
    """In bfloat16 the products change by its rounding; gradients keep the precision of the parameters."""
    given = parameters(d=32, m=96, dtype=torch.float32)
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(9))
    exact = torch.autograd.grad((TopKStep.apply(x, *given, 8, True)[0] - x).square().sum(1).mean(), given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = TopKStep.apply(x, *given, 8, True)[0]
    rough = torch.autograd.grad((decoded - x).square().sum(1).mean(), given)
    assert {g.dtype for g in (decoded, *rough)} == {torch.float32}
    for one, other in zip(rough, exact, strict=True):
        assert not torch.equal(one, other)
        assert float((one - other).norm() / other.norm()) < 0.1
