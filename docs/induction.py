# %% [markdown]
# # Does the embedded model have an induction head?
# An induction head looks for the earlier occurrence of the present token and attends to what came next, so that a
# sequence which repeats is predicted better the second time. Three things are asked of a head before it is called one:
# more attention to that place than the same offset gets without repetition, a second copy that is predicted better,
# and a loss that rises when the head is replaced, by more than for heads that write as much.
#
# First a circuit whose weights are set by hand, where the answer is known; then the model. Everything runs offline:
# `python docs/induction.py`.

# %%
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import neurosae as ns

# %% [markdown]
# ## 1. A positive control, set by hand
# Two layers of attention, no MLP. The stream has a part for the token (one dimension per word), one for its position,
# and one for the word before. Head 0 of layer 0 attends to position t - 1 and copies that word into the third part.
# Head 0 of layer 1 looks with the present word for a third part that equals it, and writes the word it finds there. The
# other heads attend evenly and write noise; they are the controls.

# %%
N_WORDS, N_PLACES = 24, 28
WIDTH = 2 * N_WORDS + N_PLACES
WORD, PLACE, BEFORE = slice(0, N_WORDS), slice(N_WORDS, N_WORDS + N_PLACES), slice(N_WORDS + N_PLACES, WIDTH)


def hand_set(induces: bool = True, sharp: float = 200.0) -> GPT2LMHeadModel:
    """The circuit; without `induces` the second layer looks for nothing, and attends evenly."""
    config = GPT2Config(vocab_size=N_WORDS, n_positions=N_PLACES, n_embd=2 * WIDTH, n_layer=2, n_head=2,
                        n_inner=4, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    generator, eye = torch.Generator().manual_seed(0), torch.eye
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        gpt = model.transformer
        for norm in (*(n for block in gpt.h for n in (block.ln_1, block.ln_2)), gpt.ln_f):
            norm.weight.fill_(1.0)
        # the stream and its negative side by side: its mean is 0, so that LayerNorm takes nothing away
        gpt.wte.weight[:, WORD] = eye(N_WORDS)
        gpt.wpe.weight[:, PLACE] = eye(N_PLACES)
        for table in (gpt.wte, gpt.wpe):
            table.weight[:, WIDTH:] = -table.weight[:, :WIDTH]
        before, finds = gpt.h[0].attn, gpt.h[1].attn
        d = 2 * WIDTH  # queries, keys and values stand side by side in c_attn
        before.c_attn.weight[PLACE, 0:N_PLACES] = sharp * eye(N_PLACES).roll(-1, 1)  # place t asks for place t - 1
        before.c_attn.weight[PLACE, d : d + N_PLACES] = eye(N_PLACES)
        before.c_attn.weight[WORD, 2 * d : 2 * d + N_WORDS] = eye(N_WORDS)
        before.c_proj.weight[0:N_WORDS, BEFORE] = eye(N_WORDS)
        finds.c_attn.weight[WORD, 0:N_WORDS] = sharp * induces * eye(N_WORDS)  # the present word asks ...
        finds.c_attn.weight[BEFORE, d : d + N_WORDS] = eye(N_WORDS)  # ... for the place whose word before it was
        finds.c_attn.weight[WORD, 2 * d : 2 * d + N_WORDS] = eye(N_WORDS)
        finds.c_proj.weight[0:N_WORDS, WORD] = 4 * eye(N_WORDS)
        for attn in (before, finds):  # the second head of each layer attends evenly and writes noise
            half = WIDTH
            attn.c_attn.weight[WORD, 2 * d + half : 2 * d + half + N_WORDS] = eye(N_WORDS)
            attn.c_proj.weight[half : half + N_WORDS, :WIDTH] = torch.randn(N_WORDS, WIDTH, generator=generator) / 40
            attn.c_proj.weight[:, WIDTH:] = -attn.c_proj.weight[:, :WIDTH]
        model.lm_head.weight[:, WORD] = 2 * eye(N_WORDS)
    return model


def scores(model, **settings):
    """The rows that matter of `ns.head_scores`."""
    found = ns.head_scores(model, seed=1, **settings)
    heads = found[found["effect"] == "induction"].set_index("x_head")
    heads["rise"] = found[found["effect"] == "ablation"].set_index("x_head")["x_rise"]
    return heads, found[found["effect"] == "copy"].iloc[0]


# %%
if __name__ == "__main__":
    for induces in (True, False):
        circuit = ns.load_model((hand_set(induces), None), device="cpu")
        heads, copy = scores(circuit, n_sequences=12, lengths=(8, 12), n_controls=1)
        print(f"by hand, {'with' if induces else 'without'} induction: loss {copy.x_first:.2f} and {copy.x_second:.2f}")
        print(heads[["x_repeated", "x_control", "rise", "x_verdict"]].round(3).to_string())

# %% [markdown]
# ## 2. The embedded model
# The same call. Read the size, not the p alone: random tokens of a vocabulary of 8,192 are far from anything that the
# model was trained on.

# %%
if __name__ == "__main__":
    model = ns.load_model("embedded", device="cpu")
    heads, copy = scores(model, n_sequences=16)
    print(f"embedded: loss {copy.x_first:.2f} nats in the first copy, {copy.x_second:.2f} in the second")
    best = heads.sort_values("x_repeated", ascending=False).head(6)
    print(best[["x_repeated", "x_control", "p_corr", "rise", "x_verdict"]].round(4).to_string())
