"""The interaction term on true codes, and in worlds with and without planted products.

Rows are sums of 5 of 80 features in 64 dimensions. In the planted world each of 16 pairs, where both features are
active, adds its product along a direction of its own; in the additive world pairs are as often active together and add
nothing. Every arm is trained separately by one recipe; FVU is measured on other rows. `--full` trains three times as
long (minutes): the table of docs/models.md, and the floor of the dropped term, to which a short training has hardly
adapted.
"""

from __future__ import annotations

from common import Floors, header  # isort: skip  (sets one thread)

import sys

import torch
from torch.nn import functional

from neurosae.dictionary.interaction_study import interaction_gain, interaction_study
from neurosae.dictionary.products import pair_sums

N_FEATURES, WIDTH, ACTIVE, N_PAIRS = 80, 64, 5, 16
ROWS, HELD_OUT = 40_000, 4_000
PAIRED = 0.5  # share of the rows in which a planted pair is active
QUICK = 50_000  # tokens of training without --full
SETTINGS = {"d_sae": 160, "k": ACTIVE, "rank": 16, "n_tokens": 150_000, "batch": 256, "lr": 2e-3}


def world(n: int, *, products: float, seed: int) -> torch.Tensor:
    """Rows of a world whose features and pairs do not depend on the seed."""
    fixed, g = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    features = functional.normalize(torch.randn(N_FEATURES, WIDTH, generator=fixed), dim=1)
    directions = functional.normalize(torch.randn(N_PAIRS, WIDTH, generator=fixed), dim=1)
    pairs = torch.arange(2 * N_PAIRS).reshape(N_PAIRS, 2)
    wish = torch.rand(n, N_FEATURES, generator=g)
    chosen = pairs[torch.randint(N_PAIRS, (n,), generator=g)]
    paired = (torch.rand(n, generator=g) < PAIRED).float()
    wish.scatter_add_(1, chosen, paired[:, None].expand(-1, 2))
    active = wish.topk(ACTIVE, dim=1).indices
    codes = torch.zeros(n, N_FEATURES).scatter(1, active, 0.5 + torch.rand(n, ACTIVE, generator=g))
    both = codes[:, pairs[:, 0]] * codes[:, pairs[:, 1]]
    return codes @ features + products * both @ directions


def r2_of_term(rank: int) -> float:
    """R2 of the term on true codes: 64 features in 64 dimensions, 5 active, 32 planted products."""
    g = torch.Generator().manual_seed(1)
    n, m, n_pairs, start = 20_000, 64, 32, 0.05
    active = torch.rand(n, m, generator=g).topk(5, dim=1).indices
    values = 0.5 + torch.rand(n, 5, generator=g)
    codes = torch.zeros(n, m).scatter(1, active, values)
    target = (codes[:, 0::2] * codes[:, 1::2]) @ functional.normalize(torch.randn(n_pairs, 64, generator=g), dim=1)
    V = torch.nn.Parameter(start * torch.randn(m, rank, generator=g))
    M = torch.nn.Parameter(start * torch.randn(rank, 64, generator=g))
    optimizer = torch.optim.Adam([V, M], lr=0.01)
    for step in range(3_000):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 3_000) + 1e-5
        rows = torch.randint(n, (512,), generator=g)
        loss = (pair_sums(active[rows], values[rows], V) @ M - target[rows]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = (pair_sums(active, values, V) @ M - target).square().mean()
    return 1 - float(error / target.var(0, unbiased=False).mean())


def main() -> int:
    """The oracle on true codes, and the tables of both worlds."""
    header("torch")
    floors, full = Floors(), "--full" in sys.argv
    for rank, bound in ((16, None), (32, 0.99), (64, 0.99)):
        floors.add("IXD-4", f"R2 of the term on true codes, rank {rank}", r2_of_term(rank), floor=bound)
    for name, products in (("planted", 1.0), ("additive", 0.0)):
        x, other = world(ROWS, products=products, seed=1), world(HELD_OUT, products=products, seed=2)
        table = interaction_study(x, other, settings=SETTINGS if full else SETTINGS | {"n_tokens": QUICK})
        shown = table.groupby("arm", sort=False)[["n_parameters", "l0", "fvu", "dead"]].agg(["min", "max"])
        print(name, shown.to_string(), interaction_gain(table).to_string(), sep="\n")
        by_arm = table.groupby("arm")["fvu"].mean()
        floors.add("IXD-3", f"{name}: FVU with the term dropped over FVU of base",
                   float(by_arm["term_dropped"] / by_arm["base"]), floor=1.0 if full else None)  # fmt: skip
        floors.add("IXD-3", f"{name}: FVU permuted over base", float(by_arm["permuted"] / by_arm["base"]), floor=0.9)
    return floors.finish()


if __name__ == "__main__":
    raise SystemExit(main())
