"""Many interventions in few forward passes, against one forward pass per intervention, at equal outcomes.

Single features of an early and of a late dictionary are clamped, or a head's output is replaced, at the token that
predicts the verb, in texts of number agreement; the outcome is the logit difference. The peer is a plain loop over
(text, condition): one pass of the same bridge with one hook that adds (f' - f) W_dec, the features of a text encoded
once. Equality first; CPU seconds of one thread.
"""

from __future__ import annotations

from pathlib import Path

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.prompts import read_prompts
from neurosae.design.expand import expand
from neurosae.dictionary.record import read_folder
from neurosae.extraction.model import load_model
from neurosae.extraction.source import EMBEDDED
from neurosae.spec.design import load_design

ROOT = Path(__file__).resolve().parent.parent
N_TEXTS, N_FEATURES, DOSE, FLOOR = 12, 40, 6.0, 8.0


def one_by_one(model, prompts, *, points, changes) -> np.ndarray:
    """Logit difference of every text under every condition, one pass each."""
    out = np.empty((len(prompts.ids), len(changes)))
    with torch.inference_mode():
        for s, ids in enumerate(prompts.ids):
            tokens = torch.as_tensor(ids[: prompts.at[s] + 1])[None]
            mask = torch.ones_like(tokens)
            for c, (point, change) in enumerate(zip(points, changes, strict=True)):

                def hook(x, hook, *, s=s, change=change):
                    new = x.clone()
                    change(new, s)
                    return new

                logits = model.bridge.run_with_hooks(
                    tokens, fwd_hooks=[(point, hook)], return_type="logits", attention_mask=mask
                )[0, -1]
                out[s, c] = float(logits[prompts.target[s]] - logits[prompts.foil[s]])
    return out


def clamps(model, prompts, *, dictionary, features):
    """The hooks of the loop: features of each text are encoded once, at its last token."""
    x = []
    with torch.inference_mode():
        for s, ids in enumerate(prompts.ids):
            tokens = torch.as_tensor(ids[: prompts.at[s] + 1])[None]
            got: list[torch.Tensor] = []
            model.bridge.run_with_hooks(
                tokens, fwd_hooks=[(dictionary.hook, lambda t, hook, got=got: got.append(t[0, -1].clone()))],
                return_type=None, attention_mask=torch.ones_like(tokens),
            )  # fmt: skip
            x.append(got[0])
    f = torch.as_tensor(dictionary.encode(torch.stack(x)).toarray())

    def clamp(j):
        def change(new, s):
            new[0, -1] += (DOSE - f[s, j]) * dictionary.W_dec[j]

        return change

    return [clamp(j) for j in features]


def zero(head):
    """The hook of the loop that sets a head to zero at the last token."""

    def change(new, s):
        new[0, -1, head] = 0

    return change


def compare(floors: Floors, what: str, *, stimuli, model, edits, points, changes) -> None:
    """Equality of all outcomes, then both clocks."""
    prompts = read_prompts(stimuli, model)
    conditions = [(edit,) for edit in edits]
    ours = edited_outcomes(stimuli, model, conditions)
    theirs = one_by_one(model, prompts, points=points, changes=changes)
    worst = float(np.abs(ours.values["logit_diff"] - theirs).max())
    assert worst < 5e-5, f"{what}: outcomes differ by {worst}"
    assert (np.abs(theirs - ours.clean["logit_diff"][:, None]).max(axis=0) > 1e-3).all(), f"{what}: nothing changes"
    print(f"  {what}: largest difference of a logit difference {worst:.1e}, {ours.record['passes']} passes")
    n = theirs.size
    floors.ratio(
        "batched interventions",
        f"{what}, {n} interventions",
        peer=lambda: cpu(lambda: one_by_one(model, prompts, points=points, changes=changes), 1),
        ours=lambda: cpu(lambda: edited_outcomes(stimuli, model, conditions), 2),
        floor=FLOOR,
    )


def main() -> int:
    """Early and late clamps, and heads."""
    header("torch", "transformer-lens")
    floors, model = Floors(), load_model("embedded", device="cpu")
    design = load_design(ROOT / "stimuli" / "number_agreement.yaml")
    stimuli = expand(design).iloc[:: 384 // N_TEXTS]
    stimuli.attrs["design"] = design.to_json()
    prompts = read_prompts(stimuli, model)
    rng = np.random.default_rng(0)
    for name in ("early", "late"):
        dictionary = read_folder(EMBEDDED.parent / name)
        features = rng.choice(dictionary.n_features, N_FEATURES, replace=False).tolist()
        edits = [Edit(dictionary.hook, "clamp", "target", dictionary, (j,), DOSE) for j in features]
        changes = clamps(model, prompts, dictionary=dictionary, features=features)
        compare(floors, f"clamps of {name} features", stimuli=stimuli, model=model, edits=edits,
                points=[dictionary.hook] * len(edits), changes=changes)  # fmt: skip
    heads = [(layer, head) for layer in (1, 2, 3) for head in range(8)]
    edits = [Edit(f"blocks.{k}.attn.hook_z.h{h}", "replace", "target", vector=np.zeros(32)) for k, h in heads]
    compare(floors, "heads set to zero", stimuli=stimuli, model=model, edits=edits,
            points=[f"blocks.{k}.attn.hook_z" for k, _ in heads], changes=[zero(h) for _, h in heads])  # fmt: skip
    return floors.finish()


if __name__ == "__main__":
    raise SystemExit(main())
