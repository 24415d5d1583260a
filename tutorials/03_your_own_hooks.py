# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hooks of your own
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# You have TransformerLens code: caches, hooks, patching. This notebook puts steering into it: a method is fitted on two
# caches of `run_with_cache`, acts as a plain hook at any layer, and is taken apart by activation patching.
#
# **Which tokens are steered?** With `ot.steering`, the last token of the prompt and every token that is written after
# it, at the method's layer, and no other (`positions="decoding"`, the default; with or without the KV cache). A hook of
# `ot.steering_hook` steers the last column of what it gets. Which ones *were* steered is asked of the report:
# `report.tokens_steered` counts them, and after `ot.steering(..., record=True)` `report.records` lists them and
# `report.show()` draws them. All of this is below, under "What fired". It ends in seven claims that a cell asserts.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py

# %%
import warnings

import torch

import odesteer_tl as ot

torch.manual_seed(0)
torch.set_grad_enabled(False)
warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
demo = ot.load_demo(None if MODEL is None else ot.load_model(MODEL))
model = demo.model
n_layers = model.cfg.n_layers
queries, praise, scorn = ([pair[key] for pair in demo.pairs] for key in ("query", "desired", "undesired"))

# %% [markdown]
# ## From two caches to a method
#
# The layer is chosen by how far steering moves held-out pairs at 0.1 nats of KL, not by eye.

# %%
choice = ot.choose_layer(model, praise, scorn, method=ot.ODESteer, queries=queries, positions="last")
print(choice)
LAYER = choice.layer
ot.plots.layers(choice)

# %% [markdown]
# Now the same by hand. A cache has no mask and rows are padded on the right, so the number of real tokens per row goes
# with it. (If you forget it, an error says so: index −1 of a shorter row would be a pad.)


# %%
def cached(texts):
    """The cache of one layer, and the number of tokens of each text."""
    rows = [model.to_tokens(text)[0] for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    _, cache = model.run_with_cache(tokens, names_filter=f"blocks.{LAYER}.hook_resid_post")
    return cache, [len(row) for row in rows]


(high, high_lengths), (low, low_lengths) = (
    cached([query + answer for query, answer in zip(queries, side, strict=True)]) for side in (praise, scorn)
)
acts = ot.ContrastiveActivations.from_caches(
    high, low, layer=LAYER, desired_lengths=high_lengths, undesired_lengths=low_lengths, paired=True
)
same = ot.collect(model, praise, scorn, layer=LAYER, queries=queries)  # reads them in batches of its own
read_alike = float((acts.desired - same.desired).abs().max() / same.desired.abs().max())
method = ot.ODESteer.fit(acts)
print(f"{len(acts.desired)} + {len(acts.undesired)} activations; from_caches and ot.collect differ by {read_alike:.0e}")

# %% [markdown]
# ## A plain hook, at any layer
#
# `ot.steering_hook(method, …)` is a function (value, hook) → value. How far? `ot.calibrate` finds the strength that
# spends 0.1 nats on the model's own continuations.

# %%
calibrated = ot.calibrate(model, method, demo.validation_prompts).method
strength = ot.Strength(T=calibrated.T, relative_T=calibrated.relative_T)
prompt = "The film was" if MODEL is None else "I saw it yesterday. The film was"
tokens = model.to_tokens(prompt)
labels = [model.to_string(token) for token in tokens[0]]


def steer_at(layer, positions="last"):
    """A pair for fwd_hooks."""
    return f"blocks.{layer}.hook_resid_post", ot.steering_hook(method, strength, positions=positions)


clean = model(tokens)
hooked = model.run_with_hooks(tokens, fwd_hooks=[steer_at(LAYER, "all")])
with ot.steering(model, method, strength, positions="all") as report:
    inside = model(tokens)
print(f"hook and block differ by {float((hooked - inside).abs().max()):.0e} in logits, "
      f"both from the unsteered model by {float((hooked - clean).abs().max()):.2f}")  # fmt: skip
print("tokens steered, by layer:", report.tokens_steered, "of", tokens.shape[1])

# %% [markdown]
# What does it do? One number to follow: how much likelier words of praise become than words of scorn as the next token.

# %%
good, bad = (
    sorted({int(model.to_tokens(f" {word}", prepend_bos=False)[0, 0]) for word in words})
    for words in (("great", "good", "excellent", "wonderful", "best"), ("bad", "terrible", "awful", "boring", "worst"))
)


def praise_over_scorn(logits):
    """log p(words of praise) − log p(words of scorn) of the next token, in nats."""
    log_p = logits[0, -1].log_softmax(-1)
    return float(log_p[good].logsumexp(0) - log_p[bad].logsumexp(0))


before = praise_over_scorn(clean)
hooked_at = [model.run_with_hooks(tokens, fwd_hooks=[steer_at(layer)]) for layer in range(n_layers)]
by_layer = [praise_over_scorn(logits) - before for logits in hooked_at]
for layer, gain in enumerate(by_layer):
    print(f"the method of layer {LAYER}, hooked at layer {layer}: {gain:+.2f} nats" + "   <" * (layer == LAYER))

# %% [markdown]
# A method acts wherever you hook it. Its directions were read at one layer, and its strength spends the budget there;
# what the same length costs at another layer was not measured. (On SmolLM2 a direction that was read at block 26 does
# next to nothing in the lower third.)
#
# ## What fired
#
# With `ot.steering`, rules decide which tokens are steered: by default the last of the prompt and all that are
# generated, with the KV cache on or off. The report counts them, and with `record=True` it knows each one: its place in
# the text, what h said of it before and after, and by which part of its norm it was moved.

# %%
with ot.steering(model, calibrated, record=True) as report:
    out = model.generate(tokens, max_new_tokens=6, do_sample=False, verbose=False, return_type="tokens")
text = [model.to_string(token) for token in out[0]]
print("".join(text))
print("steered:", report.tokens_steered, "= the last of the prompt and those that were generated and read again")
for one in report.records:
    origin = "generated" if one.generated else "prompt"
    print(f"layer {one.layer}, token {one.position} {one.token!r:>12} {origin:>10}: "
          f"h {one.h_before:+.2f} → {one.h_after:+.2f}, moved by {one.displacement:.2f}‖a‖")  # fmt: skip
report.show()

# %% [markdown]
# On this page steered tokens are underlined, and the mouse shows the numbers of one. (`ot.token_map(model, method,
# texts)` sets the unsteered text beside it.) The token that was generated last is not there: no pass has read it.
#
# The same is seen from outside. Two caches of the same tokens, unsteered and steered, show ‖a′ − a‖/‖a‖ at every layer
# and token.

# %%
_, cache_before = model.run_with_cache(out)
with ot.steering(model, calibrated, prompt_lengths=[tokens.shape[1]]):
    _, cache_after = model.run_with_cache(out)
moved = ot.plots.displacements(cache_before, cache_after)
ot.plots.by_token(moved, text)

# %% [markdown]
# Nothing moves below the layer that is steered, nor to the left of the first token that is. Above it, what moves on
# unsteered tokens would be attention's doing.
#
# The other rules, on the same tokens; those that are steered stand in brackets. Slices and masks of your own are rules
# too. (Not to be confused with the position at which `ot.choose_layer` and `ot.collect` read, such as "last".)

# %%
n, fired = tokens.shape[1], {}
for rule in ("decoding", "generated", "prompt", "all", slice(1, 3)):
    with ot.steering(model, calibrated, positions=rule, prompt_lengths=[n]):
        _, after = model.run_with_cache(out)
    fired[str(rule)] = (ot.plots.displacements(cache_before, after)[LAYER] > 1e-3).tolist()
    shown = "".join(f"[{one}]" if moves else one for one, moves in zip(text, fired[str(rule)], strict=True))
    print(f"{rule!s:>18}: {shown}")

# %% [markdown]
# ## Patching and steering together
#
# Which later computations carry the effect on the next word? Run the model steered, but put back the unsteered output
# of one attention or MLP block. What is lost of the gain went through it. With all of them put back, what is left is
# the direct path: the steered activation itself, read by the unembedding.

# %%
_, unsteered = model.run_with_cache(tokens)


def put_back(name):
    """A pair for fwd_hooks that restores what the unsteered model has at a place."""
    return name, lambda value, hook: unsteered[name]


gain = by_layer[LAYER]
later = [f"blocks.{layer}.hook_{part}" for layer in range(LAYER + 1, n_layers) for part in ("attn_out", "mlp_out")]
through = {}
for name in later:
    logits = model.run_with_hooks(tokens, fwd_hooks=[steer_at(LAYER), put_back(name)])
    through[name] = gain - (praise_over_scorn(logits) - before)
    print(f"through {name.removeprefix('blocks.'):<18} {through[name]:+.2f} of {gain:+.2f} nats")
logits = model.run_with_hooks(tokens, fwd_hooks=[steer_at(LAYER), *map(put_back, later)])
direct = praise_over_scorn(logits) - before
print(f"the direct path:            {direct:+.2f}")

# %% [markdown]
# The other way round: take an unsteered run, and put in the steered residual stream at one layer and token. On the
# steered token this carries everything from the steered layer on; elsewhere it carries nothing, as only the last token
# is steered.

# %%
with ot.steering(model, calibrated):
    _, steered = model.run_with_cache(tokens)
restored = torch.zeros(n_layers, tokens.shape[1])
for layer in range(n_layers):
    name = f"blocks.{layer}.hook_resid_post"
    for column in range(tokens.shape[1]):

        def put_in(value, hook, name=name, column=column):
            value = value.clone()
            value[:, column] = steered[name][:, column]
            return value

        restored[layer, column] = praise_over_scorn(model.run_with_hooks(tokens, fwd_hooks=[(name, put_in)])) - before
ot.plots.by_token(restored, labels, label="gain of praise over scorn, nats", signed=True)

# %% [markdown]
# ## The claims

# %%
every = torch.arange(len(text))
listed = [one.position for one in report.records]
masks = (every >= n - 1, every >= n, every < n, every >= 0, (every >= 1) & (every < 3))
below, left_of = moved[:LAYER], moved[:, : tokens.shape[1] - 1]
claims = {
    "from_caches reads what ot.collect reads": read_alike < 1e-3,
    "the hook is the steering block": float((hooked - inside).abs().max()) < 1e-3 * float((hooked - clean).abs().max()),
    "the report lists the tokens that two caches show to have moved at the layer": listed
    == [column for column in every[:-1].tolist() if float(moved[LAYER, column]) > 1e-3],
    "only the last prompt token and what follows moves, from the layer on": float(below.max()) < 1e-5
    and float(left_of.max()) < 1e-5
    and float(moved[LAYER, tokens.shape[1] - 1 :].min()) > 0.05,
    "each rule steers the tokens that it names": list(fired.values()) == [[bool(one) for one in row] for row in masks],
    "steering makes praise likelier than scorn": gain > 0,
    "patching the steered stream in is all of it, from its layer on": bool(
        ((restored[LAYER:, -1] - gain).abs() < 1e-2 * gain + 1e-4).all()
    )
    and float(restored[:, :-1].abs().max()) < 1e-3,
}
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)
assert all(claims.values())

# %% [markdown]
# Next: [the same in nnsight, here and on a server](04_nnsight_and_ndif.ipynb).
