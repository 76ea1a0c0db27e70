"""Steered texts side by side, against one text at a time with a hook through transformers' own `generate`.

Texts of the sentiment study are continued plainly and with features of the early dictionary pushed, condition by
condition. The peer is the loop that a newcomer writes: for every condition, prompt and sample one call of `generate` of
the Hugging Face model, with a forward hook that adds the steering vector to the output of the block, its own key-value
cache on. At temperature 0 the tokens are asserted to be equal; CPU seconds of one thread.
"""

from __future__ import annotations

from pathlib import Path

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.generation import Sampling, continue_conditions
from neurosae.causal.prompted import prompts_of
from neurosae.design.expand import expand
from neurosae.dictionary.record import read_folder
from neurosae.dictionary.texts import special_ids
from neurosae.extraction.model import load_model
from neurosae.extraction.source import EMBEDDED
from neurosae.extraction.tokens import token_ids
from neurosae.spec.design import load_design

ROOT = Path(__file__).resolve().parent.parent
N_PROMPTS, N_CONDITIONS, N_NEW, DOSE, FLOOR = 12, 10, 16, 4.0, 4.0


def peer_model():
    """The plain Hugging Face model, without bridge or hook points."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


def one_by_one(network, coded, vectors, *, block: int, first: int, ends: set[int]) -> list[list[int]]:
    """New ids of every condition and prompt, one call of `generate` each."""
    out = []
    with torch.inference_mode():
        for vector in vectors:

            def hook(module, args, output, *, vector=vector, seen=[0]):  # noqa: B006
                hidden = output[0] if isinstance(output, tuple) else output
                hidden[:, max(first - seen[0], 0) :] += vector
                seen[0] += hidden.shape[1]
                return output

            for ids in coded:
                hook.__kwdefaults__["seen"][0] = 0
                handle = network.transformer.h[block].register_forward_hook(hook)
                try:
                    made = network.generate(
                        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                        max_new_tokens=N_NEW, do_sample=False, pad_token_id=0, eos_token_id=sorted(ends),
                    )[0, len(ids) :].tolist()  # fmt: skip
                finally:
                    handle.remove()
                stop = next((k for k, i in enumerate(made) if i in ends), len(made))
                out.append(made[:stop])
    return out


def main() -> int:
    """Equality of all tokens, then both clocks."""
    header("torch", "transformers")
    floors, model = Floors(), load_model("embedded", device="cpu")
    stimuli = expand(load_design(ROOT / "stimuli" / "sentiment.yaml"))
    prompts = prompts_of(stimuli, "word")["prompt"].tolist()[:N_PROMPTS]
    dictionary = read_folder(EMBEDDED.parent / "early")
    rng = np.random.default_rng(0)
    sets = [rng.choice(dictionary.n_features, 10, replace=False).tolist() for _ in range(N_CONDITIONS)]
    edits = [(Edit(dictionary.hook, "steer", "all", dictionary, tuple(s), DOSE),) for s in sets]
    vectors = [DOSE * dictionary.W_dec[s].sum(0) for s in sets]
    coded, network, sampling = token_ids(model.tokens, prompts), peer_model(), Sampling(N_NEW, 1, 0)
    assert model.tokens is not None
    given = {"block": int(dictionary.hook.split(".")[1]), "first": model.tokens.first, "ends": special_ids(model)}

    def ours():
        return continue_conditions(model, prompts, edits, sampling=sampling, seed=0)

    written = [ids[n:].tolist() for w in ours() for ids, n in zip(w.ids, w.start, strict=True)]
    theirs = one_by_one(network, coded, vectors, **given)
    assert written == theirs, f"{sum(a != b for a, b in zip(written, theirs, strict=True))} texts differ"
    assert len({tuple(ids) for ids in written}) > len(prompts), "no condition changes any text"
    print(f"  {len(written)} texts, {sum(map(len, written)):,} new tokens, all equal at temperature 0")
    floors.ratio(
        "generation",
        f"{len(written)} steered texts of {N_NEW} tokens",
        peer=lambda: cpu(lambda: one_by_one(network, coded, vectors, **given), 1),
        ours=lambda: cpu(ours, 2),
        floor=FLOOR,
    )
    return floors.finish()


if __name__ == "__main__":
    raise SystemExit(main())
