"""Attribution of the logit difference: one backward pass for all features, against ablating each of them exactly.

The model and the dictionaries are those of the package, the stimuli those of number agreement. Exact ablation is the
batched one (many rows in a pass, lower layers run once per text), over every feature that is active anywhere at the
region; an approximation that says nothing would be fast too, so its correlation with the exact changes is asserted
first, over all pairs of stimulus and feature, and over feature means.

    python benchmarks/bench_attribution.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch

import neurosae as ns
from neurosae.causal.attribution import attributed
from neurosae.causal.scored import score_stimuli
from neurosae.causal.screened import Spot, ablate_each
from neurosae.dictionary.record import read_folder

ROOT = Path(__file__).resolve().parent.parent
N_STIMULI = 32


def stimuli() -> pd.DataFrame:
    """Texts of the first items, all cells and frames."""
    design = ns.load_design(ROOT / "stimuli" / "number_agreement.yaml")
    table = ns.expand(design).head(N_STIMULI)
    table.attrs["design"] = design.to_json()
    return table


def main() -> int:
    """Compare both at two sites; 1 if a floor is not reached."""
    common.header("torch", "transformers")
    torch.set_num_threads(1)
    floors, table, model = common.Floors(), stimuli(), ns.load_model("embedded", device="cpu")
    # at the last layer exact ablation runs the head alone, so there is least to gain
    for site, region, least, floor in (("early", "pre_verb", 0.8, 20.0), ("late", "target", 0.9, None)):
        d = {site: read_folder(ROOT / "neurosae" / "embedded" / site)}

        def screen(method: str = "act_x_grad", *, site: str = site, region: str = region, d: Any = d) -> Spot:
            scored = score_stimuli(table, model, dictionaries=d, regions=(region,))
            made = attributed(table, scored, d, region=region, method=method)[site]
            return Spot(site, d[site], region, "test", table, scored, made)

        spot = screen()
        active = np.unique(spot.made.activations.indices)
        exact, approximate = ablate_each(spot, active), spot.made.effects[:, active].toarray()
        used = spot.made.activations[:, active].toarray() > 0
        pairs = float(np.corrcoef(exact[used], approximate[used])[0, 1])
        means = float(np.corrcoef(exact.mean(0), approximate.mean(0))[0, 1])
        what = f"{site}/{region}, {len(active)} active features x {len(table)} texts"
        floors.add("ATR-1", f"act x grad with exact ablation, r over feature means: {what}", means, floor=least)
        floors.add("ATR-1", f"the same over pairs of text and feature: {what}", pairs, floor=None)
        floors.ratio(
            "ATR-1", f"exact batched ablation / act x grad: {what}", floor=floor,
            peer=lambda spot=spot, active=active: common.cpu(lambda: ablate_each(spot, active), 1),
            ours=lambda screen=screen: common.cpu(screen),
        )  # fmt: skip
        line = screen("integrated_gradients")
        r = float(np.corrcoef(exact.mean(0), line.made.effects[:, active].toarray().mean(0))[0, 1])
        note = f"largest completeness error {np.abs(line.made.completeness).max():.2g} logits"
        floors.add("ATR-2", f"integrated gradients (8 points), r: {what}", r, floor=None, note=note)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
