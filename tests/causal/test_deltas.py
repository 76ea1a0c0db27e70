"""The delta form against decoding by hand, for every kind of decoder and shape of hook point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurosae.causal.deltas import Cells, edited
from neurosae.causal.edits import Edit
from neurosae.dictionary.kinds import Dictionary, neuron_dictionary

D, M = 12, 40


def dictionary(kind):
    draw = torch.Generator().manual_seed(5)
    W = torch.nn.functional.normalize(torch.randn(M, D, generator=draw), dim=1)
    threshold = torch.full((M,), 0.2)
    parts = {"V": torch.randn(M, 3, generator=draw), "M": 0.2 * torch.randn(3, D, generator=draw)}
    bias = 0.1 * torch.randn(M, generator=draw), 0.3 * torch.randn(D, generator=draw)
    return Dictionary(
        "blocks.0.hook_resid_post", kind, W, bias[0], W * 1.5, bias[1], threshold, k=6,
        parts=parts if kind == "interaction" else {},
    )  # fmt: skip


def cells(made, mode, features, *, dose, rows=(0, 1), cols=(2, 0), head=None):
    rows, cols = np.array(rows), np.array(cols)
    values = np.broadcast_to(np.float32(dose), (len(rows), len(features)))
    return Cells(Edit("x", mode, "all", made, features, dose), head, rows, cols, values)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "interaction", "omp"])
@pytest.mark.parametrize(("mode", "dose"), [("ablate", 0.0), ("clamp", 2.0), ("scale", 3.0), ("steer", 0.5)])
def test_delta_agrees_with_decoding_and_the_error_term(kind, mode, dose):
    """decode(f') + (x - decode(f)), with nothing spliced in, for two edits of one row and one of another."""
    made = dictionary(kind)
    x = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(2))
    active = made.encode(x[0, 2][None]).indices[:2]
    features = tuple(int(j) for j in {*active, 7})
    size = np.zeros(3)
    got = edited(x, [cells(made, mode, features, dose=dose)], np.arange(3), size=size)
    change = {
        "ablate": lambda f: 0 * f,
        "clamp": lambda f: 0 * f + dose,
        "scale": lambda f: dose * f,
        "steer": lambda f: f + dose,
    }
    for row, col in ((0, 2), (1, 0)):
        codes = made.encode(x[row, col][None])
        f = torch.as_tensor(codes.toarray())
        new = f.clone()
        new[:, list(features)] = change[mode](f[:, list(features)])
        wanted = made.decode(new) + (x[row, col] - made.decode(f))
        torch.testing.assert_close(got[row, col], wanted[0], atol=2e-6, rtol=1e-5)
        assert (size[row] > 0) == bool((new != f).any())
    untouched = torch.ones(3, 4, dtype=torch.bool)
    untouched[[0, 1], [2, 0]] = False
    assert torch.equal(got[untouched], x[untouched])


def test_rows_read_the_features_of_their_origin():
    """A row that nothing has touched shares the encoding of a row with the same vectors; a touched one does not."""
    made = dictionary("topk")
    x = torch.randn(1, 4, D, generator=torch.Generator().manual_seed(3)).repeat(3, 1, 1)
    x[2] += 1
    job = cells(made, "ablate", (0, 1, 2, 3, 4, 5, 6, 7, 8), dose=0.0, rows=(1, 2), cols=(3, 3))
    got = edited(x, [job], np.array([0, 0, 2]), size=np.zeros(3))
    alone = edited(x, [job], np.arange(3), size=np.zeros(3))
    assert torch.equal(got, alone)


def test_heads_are_edited_alone_or_side_by_side():
    """One head of four, and all of them as one vector."""
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(4))
    at = np.array([0, 1]), np.array([1, 2])
    one = Cells(Edit("x", "replace", "all", vector=np.zeros(5)), 2, *at, np.zeros((2, 5), dtype=np.float32))
    got = edited(z, [one], np.arange(2), size=np.zeros(2))
    assert (got[at[0], at[1], 2] == 0).all()
    assert torch.equal(got[:, :, [0, 1, 3]], z[:, :, [0, 1, 3]])
    raw = neuron_dictionary("x", 20)
    job = cells(
        raw, "clamp", (13, 33), dose=0.0, rows=(0, 1), cols=(1, 2)
    )  # both signs of coordinate 13: head 2, dimension 3
    got = edited(z, [job], np.arange(2), size=np.zeros(2))
    assert torch.allclose(got[at[0], at[1], 2, 3], torch.zeros(2), atol=1e-7)
    got[at[0], at[1], 2, 3] = z[at[0], at[1], 2, 3]
    torch.testing.assert_close(got, z)


def test_edits_of_one_hook_point_add_up():
    """Two features, a vector, and a replacement elsewhere see the same vectors; their changes are summed."""
    made = dictionary("standard")
    x = torch.randn(1, 2, D, generator=torch.Generator().manual_seed(6))
    v = np.arange(D, dtype=np.float32)
    add = Cells(Edit("x", "add", "all", vector=v), None, np.array([0]), np.array([0]), v[None])
    jobs = [
        cells(made, "steer", (3,), dose=2.0, rows=(0,), cols=(0,)),
        cells(made, "steer", (9,), dose=1.0, rows=(0,), cols=(0,)),
        add,
    ]
    got = edited(x, jobs, np.arange(1), size=np.zeros(1))
    wanted = x[0, 0] + 2 * made.W_dec[3] + made.W_dec[9] + torch.as_tensor(v)
    torch.testing.assert_close(got[0, 0], wanted)
    assert torch.equal(got[0, 1], x[0, 1])
