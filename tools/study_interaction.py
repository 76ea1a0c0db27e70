"""What an interaction term is worth at a hook point of the embedded model: `python tools/study_interaction.py`.

Prints FVU, cross-entropy, KL and the pathology ratio of every arm, trained separately on text that the model writes.
"""

from __future__ import annotations

import numpy as np

import neurosae as ns
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts

HOOK = "blocks.3.hook_resid_post"
TOKENS = 20_000
SETTINGS = {"d_sae": 512, "k": 8, "rank": 16, "n_tokens": 40_000, "batch": 128, "lr": 2e-3}


def main() -> None:
    """Sample, read the hook point, train all arms, print both tables."""
    model = ns.load_model("embedded")
    texts = ns.sample_texts(model, TOKENS, seed=0, purpose="text to learn from")
    n_held = len(texts) // 10
    parts = []
    for some in (texts[n_held:], texts[:n_held]):
        contexts = make_contexts(model.tokens, some, length=min(256, model.n_ctx))
        parts.append(context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[HOOK])[HOOK])
    table = ns.interaction_study(*parts, settings=SETTINGS, model=model, hook=HOOK, texts=texts[:n_held])
    columns = ["n_parameters", "l0", "fvu", "ce_base", "ce_sae", "kl_sae", "kl_random", "pathology"]
    print(table.groupby("arm", sort=False)[columns].mean().round(4).to_string())
    print(table.groupby("arm", sort=False)["fvu"].agg(["min", "max"]).round(4).to_string())
    print(ns.interaction_gain(table).round(4).to_string())


if __name__ == "__main__":
    main()
