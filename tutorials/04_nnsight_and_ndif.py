# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # nnsight and NDIF
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# You have nnsight code: graphs with reads, edits and gradients, on this machine or on a server. `ot.intervene` steers
# inside such a graph. This notebook puts several strengths into one trace, takes gradients through a steered pass, and
# sends the same graph to a server, which has torch and nnsight but not this package. It ends in six claims that a cell
# asserts.
#
# The server here is a small one in NDIF's place, from the tests of the repository, so you need a checkout of it
# (`pip install -e .`). With an account at NDIF change one line: `SERVER = True`, with your key in `NDIF_API_KEY` and
# a model that NDIF serves as `MODEL`.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py
SERVER = None  # a server on this machine, of the repository's tests; or True for NDIF, or "https://…"

# %%
import atexit
import json
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path

import nnsight
import torch

import odesteer_tl as ot
from odesteer_tl.assets import model_folder
from odesteer_tl.portable.nnsight.blocks import blocks_of
from odesteer_tl.remote.checks import payload_bytes

torch.manual_seed(0)
warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
nnsight.CONFIG.APP.REMOTE_LOGGING = False
NAME = MODEL or model_folder()
demo = ot.load_demo(ot.load_model(NAME, library="nnsight"))
model = demo.model  # or any nnsight.TransformersModel
blocks = blocks_of(model)  # model.model.layers, in a Llama
queries, praise, scorn = ([pair[key] for pair in demo.pairs] for key in ("query", "desired", "undesired"))

# %% [markdown]
# ## The method
#
# All verbs take an nnsight model. The layer is chosen on held-out pairs, of four, and the strength is what 0.1 nats of
# KL buy.

# %%
LAYERS = sorted({round(len(blocks) * part) - 1 for part in (0.3, 0.5, 0.7, 0.85)})
choice = ot.choose_layer(model, praise, scorn, method=ot.ODESteer, queries=queries, layers=LAYERS, positions="last")
found = ot.calibrate(model, choice.method, demo.validation_prompts)
LAYER, flow, method = choice.layer, choice.method, found.method  # the method; the same, with its strength
print(f"layer {LAYER} of {len(blocks)}, relative_T = {found.strength.value:.3f}: {found.spent:.3f} nats")
ot.plots.calibration(found)

# %% [markdown]
# ## A graph of your own
#
# Call `ot.intervene` where the layer's turn comes, before anything that this layer computes is read. It returns how
# many tokens were steered, by layer. `ot.steering`, around a trace that knows nothing of it, does the same.

# %%
PROMPT = "I saw it yesterday. The film was"
tokenizer = model.tokenizer
labels = [tokenizer.decode(token) for token in tokenizer(PROMPT)["input_ids"]]


def traced(method=None, model=model, remote=False):
    """What every block puts out, the logits, and how many tokens were steered."""
    blocks = blocks_of(model)
    with model.trace(PROMPT, remote=remote):
        fired, states = nnsight.save({}), nnsight.save([])
        for number, block in enumerate(blocks):
            if number == LAYER and method is not None:
                fired.update(ot.intervene(model, method))
            states.append(block.output.detach())
        logits = nnsight.save(model.lm_head.output.detach())
    return states, logits, fired


clean, clean_logits, _ = traced()
states, logits, fired = traced(method)
with ot.steering(model, method):
    _, around, _ = traced()
as_around = float((logits - around).abs().max())
print(f"tokens steered, by layer: {fired} of {len(labels)}; ot.steering differs by {as_around:.0e} in logits, the "
      f"unsteered model by {float((logits - clean_logits).abs().max()):.2f}")  # fmt: skip


# %%
def cache(states):
    """As TransformerLens would hold them."""
    return {f"blocks.{number}.hook_resid_post": state for number, state in enumerate(states)}


ot.plots.by_token(ot.plots.displacements(cache(clean), cache(states)), labels)

# %% [markdown]
# Only the prompt's last token moves, from the layer on: the default rule, `positions="decoding"`.
#
# ## Several strengths in one trace
#
# An invoke is a row of the batch with a graph of its own. Below, one forward pass holds five strengths, each of which
# steers its own row. Do they mix? Every one is compared with a trace that holds it alone.

# %%
good, bad = (
    sorted({tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words})
    for words in (("great", "good", "excellent", "wonderful", "best"), ("bad", "terrible", "awful", "boring", "worst"))
)


def praise_over_scorn(logits):
    """log p(words of praise) − log p(words of scorn) of the next token, in nats."""
    log_p = logits[0, -1].float().log_softmax(-1)
    return log_p[good].logsumexp(0) - log_p[bad].logsumexp(0)


STRENGTHS = [part * found.strength.value for part in (0.0, 0.5, 1.0, 1.5, 2.0)]


def together(strengths, model=model, remote=False):
    """The logits of the last token, a row for each strength, out of one pass."""
    with model.trace(remote=remote) as tracer:
        rows = nnsight.save([])
        for strength in strengths:
            with tracer.invoke(PROMPT):
                ot.intervene(model, flow, relative_T=strength)
                rows.append(model.lm_head.output.detach())
    return rows


rows = together(STRENGTHS)
alone = [together([strength])[0] for strength in STRENGTHS]
mixed = max(float((row - own).abs().max()) for row, own in zip(rows, alone, strict=True))
off = float((rows[0] - clean_logits).abs().max())
for strength, row in zip(STRENGTHS, rows, strict=True):
    print(f"relative_T = {strength:.3f}: praise over scorn {float(praise_over_scorn(row)):+.2f} nats")
print(f"together and alone differ by {mixed:.0e} in logits, strength 0 and no steering by {off:.0e}")

# %% [markdown]
# ## Gradients through a steered pass
#
# By how much would praise over scorn rise if an activation moved? `backward` inside the trace gives the gradient at
# every block and token, through the steering: ∂m/∂a. Read it from the last block down, the way backward goes.


# %%
def gradients(method=None, model=model, remote=False):
    """∂m/∂a at what every block puts out, from the first block on."""
    blocks = blocks_of(model)
    with model.trace(PROMPT, remote=remote):
        outputs = []
        for number, block in enumerate(blocks):
            if number == LAYER and method is not None:
                ot.intervene(model, method)
            outputs.append(block.output)
        log_p = model.lm_head.output[0, -1].float().log_softmax(-1)
        with (log_p[good].logsumexp(0) - log_p[bad].logsumexp(0)).backward():
            slopes = nnsight.save([])
            for output in reversed(outputs):
                slopes.append(output.grad.detach())
    return slopes[::-1]


through = {"unsteered": gradients(), "steered": gradients(method)}
ot.plots.by_token(
    {name: torch.stack([one[0].norm(dim=-1) for one in found]) for name, found in through.items()},
    labels,
    label="‖∂m/∂a‖, nats per unit of a",
)

# %% [markdown]
# Are they right? First against a plain torch hook and autograd, on the model of transformers, in which neither nnsight
# nor this package's engine has a part. Then against finite differences: move what enters the steered layer by ±ε along
# the gradient, and look at m.

# %%
plain = ot.load_model(NAME, library="huggingface")
inner, outputs = next(one for one in plain.modules() if isinstance(one, torch.nn.ModuleList)), []


def hook(number):
    """Steers at the layer as one would by hand, and keeps what the block puts out."""

    def after(module, args, output):
        if number == LAYER:
            output = torch.cat([output[:, :-1], flow.steer(output[:, -1:], found.strength)], dim=1)
        output.retain_grad()
        outputs.append(output)
        return output

    return after


handles = [block.register_forward_hook(hook(number)) for number, block in enumerate(inner)]
praise_over_scorn(plain(**tokenizer(PROMPT, return_tensors="pt")).logits).backward()
for handle in handles:
    handle.remove()
by_hook = [output.grad for output in outputs]
scale = max(float(one.abs().max()) for one in by_hook)
off_hook = max(float((a - b).abs().max()) for a, b in zip(through["steered"], by_hook, strict=True)) / scale

slope = through["steered"][LAYER - 1][0, -1]
epsilon = 0.01 * float(clean[LAYER - 1][0, -1].norm())
ends = []
for sign in (1, -1):
    with model.trace(PROMPT):
        blocks[LAYER - 1].output[:, -1] += sign * epsilon * slope / slope.norm()
        ot.intervene(model, method)
        moved = nnsight.save(model.lm_head.output.detach())
    ends.append(float(praise_over_scorn(moved)))
difference = (ends[0] - ends[1]) / (2 * epsilon)
print(f"nnsight and a torch hook differ by {off_hook:.0e} of the largest gradient; along it, "
      f"{float(slope.norm()):.4f} by autograd, {difference:.4f} by finite differences")  # fmt: skip

# %% [markdown]
# ## The same graph on a server
#
# The server starts in a process of its own. It refuses the imports that NDIF is known to refuse, and cannot import
# this package: the method travels as plain numbers and functions. A trace sends what it names, as a whole: hence `flow`
# in the traces above, where `choice.method` would send all of `choice`, and is refused.


# %%
def started():
    """A loopback server that ends with this notebook, and its address."""
    for folder in (Path(ot.__file__).parents[1], *Path.cwd().parents):
        if (program := folder / "tests" / "loopback.py").is_file():
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([sys.executable, str(program)], **streams)
            atexit.register(process.stdin.close)
            ready = json.loads(process.stdout.readline())
            print("a server that has odesteer_tl:", ready["odesteer_tl"])
            return f"http://127.0.0.1:{ready['port']}"
    raise FileNotFoundError("tests/loopback.py is not here: open this notebook in a checkout, or set SERVER.")


REMOTE = started() if SERVER is None else SERVER

# %% [markdown]
# A server loads weights in the type of the checkpoint, 16 bits in the embedded model as in most; `ot.load_model` loads
# them in 32. What is rounded otherwise cannot be equal, so the local model below is loaded as the server loads its own.

# %%
as_served = nnsight.TransformersModel(str(NAME), task="text-generation", dispatch=True)
local, remote = (traced(method, as_served, where) for where in (False, REMOTE))


def apart(ones, others):
    """The largest difference, over the largest number."""
    pairs = list(zip(ones, others, strict=True))
    most = max(float(one.abs().max()) for one in ones)
    return max(float((one.float() - other.float()).abs().max()) for one, other in pairs) / most


differ = {
    "activations of all blocks": apart(local[0], remote[0]),
    "steered logits": apart([local[1]], [remote[1]]),
    "five invokes": apart(together(STRENGTHS, as_served), together(STRENGTHS, as_served, REMOTE)),
    "gradients": apart(gradients(method, as_served), gradients(method, as_served, REMOTE)),
}
for what, value in differ.items():
    print(f"{what}: local and remote differ by {value:.0e}, relative")
print(f"steered there, by layer: {remote[2]}; "
      f"{local[1].dtype} against float32 is {apart([logits], [local[1]]):.0e}")  # fmt: skip

# %% [markdown]
# Whole texts: `ot.generate(…, remote=)` reads the reply as plain data and compares it with what was asked, where a
# trace unpickles what the server sends, so that a server which you do not trust could run code here.

# %%
texts = [ot.generate(as_served, demo.prompts[:4], method, max_new_tokens=10, remote=where) for where in (False, REMOTE)]
same_texts = bool(torch.equal(texts[0].tokens, texts[1].tokens))
print(texts[1].texts[0], "|", texts[1].report.tokens_steered, "| the same tokens:", same_texts)

# %% [markdown]
# ## What is sent
#
# The graph's code, the values that it uses, and the method; the weights stay where they are. Bytes, compressed as
# nnsight sends them:

# %%
acts = choice.acts
sent = {
    "ot.intervene": ot.intervene,
    "a vector, CAA": ot.CAA.fit(acts),
    "ODESteer, the default": flow,
    "ODESteer, rank 64": ot.ODESteer.fit(acts, features=ot.Polynomial(rank=64)),
}
sizes = {name: payload_bytes(one) for name, one in sent.items()}
for name, size in sizes.items():
    print(f"{name:>22}: {size / 1000:7.1f} kB")
weights = sum(one.numel() * one.element_size() for one in as_served.parameters())
requests = {}
if SERVER is None:
    for name, one in (("unsteered", None), ("steered", method)):
        traced(one, as_served, REMOTE)
        requests[name] = json.load(urllib.request.urlopen(f"{REMOTE}/last"))["bytes"]
        print(f"the whole request, {name}: {requests[name] / 1000:.1f} kB")
print(f"the weights, which are not sent: {weights / 1000:.0f} kB")

# %% [markdown]
# What would not arrive is refused here, in words. `ot.steering` holds hooks of this machine, so a remote trace inside
# its block would run unsteered:

# %%
try:
    with ot.steering(as_served, method):
        traced(model=as_served, remote=REMOTE)
    refused = ""
except Exception as error:
    refused = str(error).splitlines()[-1]
print(refused)

# %% [markdown]
# ## The claims
#
# On a server with another kind of processor numbers differ by the rounding of 16 bits, so there the bound is 5 %.

# %%
bound = 1e-5 if SERVER is None else 0.05
claims = {
    "ot.intervene in a graph is ot.steering around it": as_around < 1e-5 and fired == {LAYER: 1},
    "invokes do not mix, and strength 0 is no steering": max(mixed, off) < 1e-3,
    "gradients through steering are those of a torch hook": off_hook < 1e-4,
    "and those of finite differences": abs(difference / float(slope.norm()) - 1) < 0.02,
    "remote is local: activations, logits, invokes, gradients, texts": max(differ.values()) <= bound
    and (same_texts or SERVER is not None)
    and remote[2] == {LAYER: 1},
    "what is sent is the method and not the model, and what would not arrive is refused": sizes["a vector, CAA"]
    < sizes["ODESteer, the default"] < weights / 2
    and "ot.intervene" in refused,
}  # fmt: skip
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)
assert all(claims.values())

# %% [markdown]
# Next: [closed loops over the layers](05_closed_loops.ipynb).
