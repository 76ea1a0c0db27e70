"""Screened codes: equal to torch's dense top-k and thresholds, whatever the screen, the batch and the numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from neurosae.dictionary import encode
from neurosae.dictionary.encode import codes_threshold, codes_topk
from neurosae.dictionary.screen import exact_int8, fast_products, fine_enough, prepare_screen, room_for, screen_rows
from neurosae.errors import ModelError

slow = pytest.mark.skipif("int8" not in fast_products(96), reason="exact int8 products need AVX512-VNNI")
KINDS = [pytest.param("int8", marks=slow), "bfloat16", "float32"]
FAST = (*fast_products(96), "float32")


def planted(n: int = 64, d: int = 96, m: int = 1500, *, offset: float = 0.0, seed: int = 0):
    """Rows that are sums of a few features, and an encoder (m no multiple of 64)."""
    draws = torch.Generator().manual_seed(seed)
    weights = torch.nn.functional.normalize(torch.randn(m, d, generator=draws), dim=1)
    active = torch.relu(torch.randn(n, m, generator=draws) - 2.5)
    x = torch.randn(n, d, generator=draws) + 3 * active @ weights + offset
    return x, weights, 0.05 * torch.randn(m, generator=draws)


def active(codes):
    """The features of each row."""
    return [set(part.tolist()) for part in np.split(codes.indices, codes.indptr[1:-1])]


def dense_topk(x, weights, bias, *, k):
    """Reference by torch, in float64: the sets, and the gap between rank k and k + 1."""
    z = x.double() @ weights.double().t() + bias.double()
    values, kept = z.topk(min(k + 1, z.shape[1]), dim=1)
    return [set(row[:k][v[:k] > 0].tolist()) for row, v in zip(kept, values, strict=True)], values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, 5.0, -40.0])
def test_topk_agrees_with_torch(kind, offset):
    """The same features in every row, values to float32 rounding; also where one direction dwarfs the rest."""
    x, weights, bias = planted(offset=offset)
    codes = codes_topk(x, prepare_screen(weights, bias, kinds=(kind,)), 12)
    sets, values = dense_topk(x, weights, bias, k=12)
    assert (values[:, 11] - values[:, 12]).min() > 1e-5  # no ties in these data
    assert active(codes) == sets
    z = x @ weights.t() + bias
    rows = np.repeat(np.arange(len(x)), np.diff(codes.indptr))
    assert np.abs(codes.data - z.numpy()[rows, codes.indices]).max() < 3e-6 * max(1.0, float(z.abs().max()))
    assert codes.has_sorted_indices


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_agrees_with_torch(kind):
    """JumpReLU with a threshold per feature, some below zero."""
    x, weights, bias = planted(seed=1)
    limits = torch.linspace(-1, 3, len(weights))
    codes = codes_threshold(x, prepare_screen(weights, bias, kinds=(kind,)), limits)
    z = (x.double() @ weights.double().t() + bias.double()).numpy()
    margin = np.abs(z - np.maximum(limits.numpy(), 0))
    assert margin.min() > 1e-7
    wanted = (z > limits.numpy()) & (z > 0)
    assert np.array_equal(codes.toarray() > 0, wanted)
    assert np.abs(codes.toarray() - np.where(wanted, z, 0)).max() < 3e-6 * np.abs(z).max()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_invariant_to_screen_batch_and_order(kind):
    """Bit for bit the same with any screen, one row at a time, or backwards."""
    x, weights, bias = planted(n=20)
    fine, rough = (prepare_screen(weights, bias, kinds=(k,)) for k in ("float32", kind))
    whole = codes_topk(x, fine, 9)
    assert (whole != codes_topk(x, rough, 9)).nnz == 0
    assert (whole != codes_topk(x.flip(0), rough, 9)[::-1]).nnz == 0
    for r in range(20):
        assert (whole[r] != codes_topk(x[r : r + 1], rough, 9)).nnz == 0
    limits = torch.full((len(weights),), 0.7)
    assert (codes_threshold(x, fine, limits) != codes_threshold(x, rough, limits)).nnz == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (70, 33, 9), (5, 1, 130), (2, 1024, 17), (200, 8, 256)])
def test_codes_of_odd_shapes_agree_with_torch(kind, shape):
    """One row, one feature, one dimension; widths that no vector divides."""
    n, d, m = shape
    if kind == "int8" and not exact_int8(d):
        pytest.skip("int8 is not used for rows this narrow")
    x, weights, bias = planted(n, d, m, seed=3)
    codes = codes_topk(x, prepare_screen(weights, bias, kinds=(kind,)), 3)
    z = x @ weights.t() + bias
    wanted = torch.zeros_like(z).scatter(1, z.topk(min(3, m), dim=1).indices, 1.0) * z.clamp(min=0)
    np.testing.assert_allclose(codes.toarray(), wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_screen_stays_within_its_bound(kind):
    """|p - z| <= e for every feature of rows with and without an outlying coordinate, near the bound for none."""
    x, weights, bias = planted(n=12)
    x[::3, 4] += 200
    rough = prepare_screen(weights, bias, kinds=(kind,)).roughs[0]
    got = screen_rows(x, rough, room_for(rough, len(x)))
    raw = got.raw if kind != "bfloat16" else (got.raw.astype(np.uint32) << 16).view(np.float32)
    p = raw.astype(np.float64) * got.step[:, None] * rough.step
    e = np.outer(got.size, rough.lost) + np.outer(got.lost, rough.length) + got.relative * np.abs(p)
    z = (x.double() @ weights.double().t()).numpy()
    assert (np.abs(p - z) <= e).all()
    assert (got.size >= x.double().norm(dim=1).numpy()).all()
    assert (e < 0.1 * np.linalg.norm(x, axis=1)[:, None]).all()


def test_int8_is_used_only_where_its_products_are_exact():
    """Without VNNI the processor cuts sums of products at 16 bits: noticed, and another screen taken."""
    code = (
        "import torch\n"
        "from neurosae.dictionary import screen\n"
        "weights = torch.randn(40, 96)\n"
        "kinds = [str(r.weights.dtype) for r in screen.prepare_screen(weights, torch.zeros(40)).roughs]\n"
        "a, b = torch.full((4, 96), 127, dtype=torch.int8), torch.full((4, 96), 127, dtype=torch.int8)\n"
        "print(bool((torch._int_mm(a, b.t()) == 96 * 127**2).all()), 'torch.int8' in kinds)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() in (["False", "False"], ["True", "True"], ["True", "False"])
    assert not exact_int8(1)
    assert not exact_int8(1025)


@pytest.mark.parametrize("doubt", [-60.0, 0.0, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_invariant_to_where_the_list_is_cut(kind, doubt, monkeypatch):
    """A limit set too high is noticed and lowered; one too low costs time only."""
    x, weights, bias = planted(n=30, seed=5)
    whole = codes_topk(x, prepare_screen(weights, bias, kinds=("float32",)), 9)
    monkeypatch.setattr(encode, "DOUBT", doubt)
    assert (whole != codes_topk(x, prepare_screen(weights, bias, kinds=(kind,)), 9)).nnz == 0


@pytest.mark.parametrize("noticed", [True, False])
def test_codes_invariant_to_a_change_of_screen(monkeypatch, noticed):
    """Rows that int8 rounds to nearly nothing go to the finer product: at once, or after a block of long lists."""
    x, weights, bias = planted(n=200, d=1000 if noticed else 96, seed=6)
    assert fine_enough(x, prepare_screen(weights, bias, kinds=FAST))[0].weights.dtype == getattr(torch, FAST[0])
    x[:, 7] += 60 if noticed else 500
    if not noticed:
        weights[:, 7] = 0
    used = []
    monkeypatch.setattr(encode, "screen_rows", lambda *args: used.append(args[1].weights.dtype) or screen_rows(*args))
    monkeypatch.setattr(encode, "ROWS", 100)
    codes = codes_topk(x, prepare_screen(weights, bias, kinds=FAST), 9)
    first, second = used
    assert (codes != codes_topk(x, prepare_screen(weights, bias, kinds=("float32",)), 9)).nnz == 0
    if "int8" in FAST:
        assert (first == torch.int8) == (not noticed)
        assert second != torch.int8


def test_topk_keeps_only_what_is_positive():
    """Fewer than k above zero: the others stay out, and a row without any is empty."""
    weights = torch.eye(8).repeat(10, 1)
    bias = torch.full((80,), -1.0)
    x = torch.zeros(3, 8)
    x[1, 2], x[2] = 3.0, -5.0
    codes = codes_topk(x, prepare_screen(weights, bias), 20)
    assert np.diff(codes.indptr).tolist() == [0, 10, 0]
    assert codes.data.tolist() == [2.0] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_first(kind):
    """Equal pre-activations at rank k: the smaller index is kept, whatever the screen made of them."""
    weights = torch.ones(100, 3) / 3
    weights[57] = 1.0
    codes = codes_topk(torch.full((2, 3), 1.7), prepare_screen(weights, torch.zeros(100), kinds=(kind,)), 4)
    assert codes.indices.reshape(2, -1).tolist() == [[0, 1, 2, 57]] * 2


def test_screen_survives_extreme_scales():
    """Rows of very different length in one batch, a zero row, and k as large as the dictionary."""
    x, weights, _ = planted(n=6)
    x = x * torch.tensor([1e-6, 1.0, 1e6, 0.0, 1e3, 1e-3])[:, None]
    screen = prepare_screen(weights, torch.zeros(len(weights)), kinds=FAST)
    sets, _ = dense_topk(x, weights, torch.zeros(len(weights)), k=8)
    assert active(codes_topk(x, screen, 8)) == sets
    everything = codes_topk(x[:2], screen, len(weights))
    assert everything.nnz == int((x[:2].double() @ weights.double().t() > 0).sum())
    assert codes_topk(x[:0], screen, 3).shape == (0, len(weights))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_codes_agree_with_torch_where_squares_leave_float32(size, kind):
    """A bound that underflows to 0 or becomes nan lists more features and loses none."""
    x, weights, _ = planted()
    screen = prepare_screen(weights, torch.zeros(len(weights)), kinds=(kind,))
    assert active(codes_topk(x * size, screen, 12)) == dense_topk(x, weights, screen.bias, k=12)[0]
    above = codes_threshold(x * size, screen, torch.full((len(weights),), 2.0 * size))
    assert active(above) == [set(row.nonzero()[:, 0].tolist()) for row in x.double() @ weights.double().t() > 2.0]


def test_encode_refuses_what_is_not_finite():
    """An overflow of the model is named, not encoded; so is a broken encoder."""
    x, weights, bias = planted(n=2)
    screen = prepare_screen(weights, bias)
    with pytest.raises(ModelError, match="activations are not finite"):
        codes_topk(x / 0, screen, 3)
    with pytest.raises(ModelError, match="activations are not finite"):
        codes_threshold(torch.full_like(x, torch.nan), screen, bias)
    with pytest.raises(ModelError, match="encoder holds values that are not finite"):
        prepare_screen(weights / 0, bias)


def hidden_differences(case: str):
    """Features that bfloat16 puts in another order: by rounding the result, the weights, or x."""
    draws = torch.Generator().manual_seed(0)
    steps, one = torch.rand(640, 2, generator=draws), torch.ones(640)
    if case == "result":
        return torch.tensor([[1000.0, 1.0]]), torch.stack([one, (256 * steps[:, 0]).round() / 256], 1)
    if case == "weights":  # bfloat16 has nothing between 1 and 1 + 2^-7: rounding up and down decides the screened rank
        return torch.tensor([[1000.0, -1000.0] * 4]), 1 + torch.rand(640, 8, generator=draws) / 128
    if case == "steps":  # int8 has 127 steps of 1: the middle of two decides the screened rank
        half = torch.randint(0, 100, (640, 8), generator=draws) + 0.45 + 0.1 * torch.rand(640, 8, generator=draws)
        return torch.tensor([[127.0, -127.0] * 4 + [1.0]]), torch.cat([half, torch.full((640, 1), 127.0)], 1)
    exact = 1 + torch.randint(0, 128, (640, 8), generator=draws) / 128
    return torch.tensor([[1001.9, -998.1] * 4]), exact  # rounded to +/- 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["result", "weights", "input", "steps"])
def test_screen_errors_are_bounded(case, kind):
    """What the screen rounds away is still found: fails without the matching part of the bound."""
    x, weights = hidden_differences(case)
    screen, z = prepare_screen(weights, torch.zeros(640), kinds=(kind,)), x.double() @ weights.double().t()
    kept = codes_topk(x, screen, 16).indices
    assert z[0, kept].min() >= z[0].topk(16).values.min() - 1e-3
    level = z.quantile(0.9).float()
    found = codes_threshold(x, screen, level.expand(640)).indices
    clear = (z[0] - level).abs() > 2e-3  # the rest is lost in float32
    assert set(clear.nonzero()[:, 0].tolist()) & set(found.tolist()) == set(
        ((z[0] > level) & clear).nonzero()[:, 0].tolist()
    )
