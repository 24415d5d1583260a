# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A barrier of your own
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# A barrier h says how much an activation is where you want it, and steering walks uphill on it. Any object with
# `value(a)` is one: a probe, a reward model, a distance. This notebook plants one whose flow is known in closed form,
# to see that the gradient, the solvers and T are what they should be. Then it steers a model by one that no method of
# this package has, by neighbours, saves it, and sends it to a process that does not have this package. It ends in
# seven claims that a cell asserts.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py

# %%
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from nnsight.intervention import serialization

import odesteer_tl as ot
from odesteer_tl.remote.checks import check_travels, payload_bytes

torch.manual_seed(0)
warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
warnings.filterwarnings("ignore", message="The shift")  # where even the best is within two errors of 0: we look

# %% [markdown]
# ## Planted: a shell
#
# h(a) = −½(‖a − c‖ − r)² is 0 on the shell of radius r around c, and below 0 on both sides of it. Its gradient
# points straight to the shell, −(ρ − r)n with ρ = ‖a − c‖ and n = (a − c)/ρ. So ȧ = ∇h has the solution
#
#     ρ(T) = r + (ρ(0) − r) e^(−T)
#
# in the direction n, which stays. Nothing of this is told to the flow but `value`.

# %%
WIDTH, RADIUS = 16, 4.0
centre = torch.zeros(WIDTH, dtype=torch.float64)
centre[:2] = torch.tensor([3.0, -1.0])


class Shell:
    """h(a) = −½(‖a − c‖ − r)²."""

    def __init__(self, centre, radius):
        self.centre, self.radius = centre, radius

    def value(self, a):
        return -0.5 * ((a - self.centre.to(a)).norm(dim=-1) - self.radius) ** 2


shell = Shell(centre, RADIUS)
angles = torch.rand(60, dtype=torch.float64) * 2 * torch.pi
rho = 0.5 + 7 * torch.rand(60, dtype=torch.float64)
start = centre.repeat(60, 1)
start[:, 0] += rho * angles.cos()
start[:, 1] += rho * angles.sin()
normal = (start - centre) / rho[:, None]

# %% [markdown]
# First the gradient. `ot.GradientFlow` takes it by autograd where the barrier has no `grad`. Two independent answers:
# the formula, and central differences along random directions, h(a + εu) − h(a − εu) over 2ε.


# %%
def off_differences(barrier, a, epsilon=1e-5):
    """The largest difference of uᵀ∇h and central differences, over the largest slope, in float64."""
    u = torch.randn_like(a)
    slopes = (barrier.grad(a) * u).sum(-1)
    counted = (barrier.value(a + epsilon * u) - barrier.value(a - epsilon * u)) / (2 * epsilon)
    return float((slopes - counted).abs().max() / counted.abs().max())


by_autograd = ot.GradientFlow(shell, layer=0).barrier
off_formula = float((by_autograd.grad(start) + (rho - RADIUS)[:, None] * normal).abs().max())
off_counted = off_differences(by_autograd, start)
print(f"autograd differs from the formula by {off_formula:.0e}, from finite differences by {off_counted:.0e}")

# %% [markdown]
# ## Euler or RK4, and how many steps?
#
# `unit_speed=False` follows ∇h itself, whose time is that of the formula. The error of a(T) against the number of
# steps: Euler's halves where steps double, RK4's falls to a sixteenth, at four evaluations of ∇h a step.

# %%
TIME = 1.5
truth = centre + (RADIUS + (rho - RADIUS) * torch.exp(torch.tensor(-TIME)))[:, None] * normal
errors = {}
for solver in ("euler", "midpoint", "rk4"):
    for steps in (4, 8, 16):
        own = ot.GradientFlow(shell, steps=steps, solver=solver, layer=0, unit_speed=False)
        errors[solver, steps] = float((own.steer(start, T=TIME) - truth).norm(dim=-1).max())
    print(f"{solver:>8}: " + ", ".join(f"{steps} steps {errors[solver, steps]:.1e}" for steps in (4, 8, 16)))
order = {
    solver: float(torch.log2(torch.tensor(errors[solver, 8] / errors[solver, 16])))
    for solver in ("euler", "midpoint", "rk4")
}
print("measured orders:", {solver: round(one, 2) for solver, one in order.items()})

# %% [markdown]
# Evaluations are what costs, so RK4 in 4 steps is compared with Euler in 16. RK4 wins by far, where h is smooth. Ten
# Euler steps are the usual choice in steering, as nobody needs more digits than h has.
#
# ## At unit speed T is a length
#
# By default ȧ = ∇h/‖∇h‖, and T is how far an activation walks: here it is at its shell after exactly |ρ − r|. Who walks
# on passes the top and steps to and fro. `trajectory(…).chatters` finds those paths.

# %%
walk = ot.GradientFlow(shell, steps=10, layer=0)
LENGTH = 2.0
path = walk.trajectory(start, T=LENGTH)
distance = (rho - RADIUS).abs()
far = distance > LENGTH
ends = (path.activations[-1] - centre).norm(dim=1)
off_ends = float((ends - (rho - LENGTH * (rho - RADIUS).sign()))[far].abs().max())
passed = distance < LENGTH - LENGTH / 10  # by a step or more
print(f"{int(far.sum())} paths end on the way, {off_ends:.0e} from where they should; of the {int(passed.sum())} that "
      f"arrive a step too early, {int(path.chatters[passed].sum())} are found")  # fmt: skip
ot.plots.level_sets(walk, path, plane=torch.eye(WIDTH)[:2], label="h, squares of the unit of a")

# %%
ot.plots.along_path(
    {
        "∇h, Euler, 4 steps": ot.GradientFlow(shell, steps=4, layer=0, unit_speed=False).trajectory(start, T=TIME),
        "∇h, RK4, 4 steps": ot.GradientFlow(shell, steps=4, solver="rk4", layer=0, unit_speed=False).trajectory(
            start, T=TIME
        ),
        f"unit speed, length {LENGTH:g}": path,
    },
    label="h, squares of the unit of a",
)

# %% [markdown]
# ## A model
#
# No method of this package asks the neighbours: which activations of the fit does this one resemble, those of praise
# or those of scorn? With u = a/‖a‖ and x_i the activations of the fit, at length 1 too,
#
#     h(a) = log Σ_{i∈+} exp(u·xᵢ/s²) − log Σ_{i∈−} exp(u·xᵢ/s²) + const,
#
# the log ratio of two mixtures with a bump of width s at every activation (of von Mises and Fisher, on the sphere). It
# is a plain class, imports nothing but torch, and takes tensors to where `a` is: all that it needs to be sent later.


# %%
class Neighbours:
    """log p₊/p₋ of two mixtures of bumps on the sphere, of this width."""

    def __init__(self, acts, width):
        unit = torch.nn.functional.normalize
        self.desired, self.undesired = unit(acts.desired, dim=-1), unit(acts.undesired, dim=-1)
        self.width = width

    def value(self, a):
        u = a / a.norm(dim=-1, keepdim=True)
        high, low = ((u @ side.to(a).T) / self.width**2 for side in (self.desired, self.undesired))
        return high.logsumexp(-1) - low.logsumexp(-1)


def asked_neighbours(acts, width=None):
    """acts → the flow. The width, if none is given: the median distance of an activation's direction to its nearest."""
    if width is None:
        both = torch.nn.functional.normalize(torch.cat([acts.desired, acts.undesired]), dim=-1)
        width = float(torch.cdist(both, both).fill_diagonal_(torch.inf).amin(1).median())
    return ot.GradientFlow(Neighbours(acts, width), origin=acts.origin)


demo = ot.load_demo(None if MODEL is None else ot.load_model(MODEL))
model = demo.model
queries, praise, scorn = ([pair[key] for pair in demo.pairs] for key in ("query", "desired", "undesired"))
LAYERS = sorted({round(model.cfg.n_layers * part) - 1 for part in (0.3, 0.5, 0.7, 0.85)})
choice = ot.choose_layer(
    model, praise, scorn, method=asked_neighbours, queries=queries, layers=LAYERS, positions="last"
)
print(choice)
ot.plots.layers(choice)

# %% [markdown]
# `ot.choose_layer`, `ot.calibrate`, `ot.steering` and all others take it like any method. Is it better than what there
# is? At its own place, at the same 0.1 nats:

# %%
place = {"queries": queries, "layers": choice.layer, "positions": choice.position}
shifts = {"neighbours": choice.best}
for name, cls in (("CAA", ot.CAA), ("ODESteer", ot.ODESteer)):
    shifts[name] = ot.choose_layer(model, praise, scorn, method=cls, **place).best
for name, one in shifts.items():
    print(f"{name:>10}: AUC {one.auc:.2f}, shift {one.shift:+.2f} ± {one.shift_error:.2f} nats")

# %% [markdown]
# On the embedded model the neighbours separate held-out texts far better than the others there, and steer less far:
# once more, separating is not steering ([tutorial 2](02_linear_or_nonlinear_barrier.ipynb)). On SmolLM2 all three
# separate almost perfectly, and their shifts cannot be told apart. A barrier of your own is worth it where it says what
# others cannot, not because its AUC is high.

# %%
fit, held_out = choice.acts.split(seed=0)
own = asked_neighbours(fit)
off_model = off_differences(own.barrier, held_out.undesired.double(), 1e-4)
calibrated = ot.calibrate(model, asked_neighbours(choice.acts), demo.validation_prompts)
strength = calibrated.strength
way = own.trajectory(held_out.undesired, strength)
rises = float((way.h[-1] > way.h[0]).double().mean())
print(f"∇h is off by {off_model:.0e} from finite differences; relative_T = {strength.value:.3f} spends "
      f"{calibrated.spent:.3f} nats; h rises on {rises:.0%} of held-out paths")  # fmt: skip
out = ot.generate(model, demo.prompts[:2], calibrated.method, max_new_tokens=20)
print(out.texts)
ot.plots.along_path({"neighbours": way})

# %% [markdown]
# ## Save it
#
# `ot.save` keeps numbers and never code, so that whoever loads a folder runs nothing of its author's. Methods of this
# package are kept whole. A barrier of your own is refused: keep its numbers, here the activations, and build it again.


# %%
def refusal(call, *args):
    """What an error says, or nothing."""
    try:
        call(*args)
    except ValueError as error:
        return str(error)
    return ""


a = held_out.undesired
not_saved = refusal(ot.save, own, "own")
print(not_saved)
fit.save("activations")
again = asked_neighbours(ot.ContrastiveActivations.load("activations"))
odesteer = ot.ODESteer.fit(fit)
ot.save(odesteer, "odesteer")
same = [
    torch.equal(one.steer(a, strength), other.steer(a, strength))
    for one, other in ((own, again), (odesteer, ot.load("odesteer")))
]
print("built again and loaded, they steer to the same bits:", same)

# %% [markdown]
# A folder that was changed on its way is found, be it by one bit of its numbers or by a word of its text. (Were it also
# signed anew: classes that this package does not know are refused, and nothing in a folder is ever run.)

# %%
config = Path("odesteer") / "config.json"
kept = config.read_text()
tensors = next(Path("odesteer").glob("*.safetensors"))
whole = tensors.read_bytes()
tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
one_bit = refusal(ot.load, "odesteer")
tensors.write_bytes(whole)
config.write_text(kept.replace('"ODESteer"', '"os.system"'))
another_word = refusal(ot.load, "odesteer")
config.write_text(kept)
print(one_bit, another_word, sep="\n")

# %% [markdown]
# ## Send it
#
# A server has torch and nnsight, not this package and not your module. A plain class travels with its source and its
# tensors, if its functions import only what every server has. What would not arrive is refused before it is sent:


# %%
@dataclass
class AsDataclass:
    """The same shell, with an `__init__` that has no source."""

    centre: torch.Tensor
    radius: float

    def value(self, a):
        return -0.5 * ((a - self.centre.to(a)).norm(dim=-1) - self.radius) ** 2


class WithScipy:
    """A Gaussian around 0, by a library that servers do not have."""

    def value(self, a):
        from scipy.stats import norm

        return torch.as_tensor(norm.logpdf(a.norm(dim=-1)))


refused = {
    type(one).__name__: refusal(check_travels, ot.GradientFlow(one, layer=0))
    for one in (AsDataclass(centre, RADIUS), WithScipy())
}
for name, said in refused.items():
    print(f"{name}: {said[:200]}…")
check_travels(own)
print(f"Neighbours travels, in {payload_bytes(own) / 1000:.0f} kB")

# %% [markdown]
# Does it arrive? A new process, in which this package cannot be imported, reads what nnsight would send, and steers.
# ([Tutorial 4](04_nnsight_and_ndif.ipynb) does so on a server.)

# %%
there = """
import json, sys
sys.modules["odesteer_tl"] = None                       # whoever imports it fails
import torch
from nnsight.intervention.serialization import loads
method, a, relative_T = loads(open("sent", "rb").read())
print(json.dumps([type(method).__name__, method.steer(a, relative_T=relative_T).tolist()]))
"""
Path("sent").write_bytes(serialization.dumps((own, a, strength.value)))
said = subprocess.run([sys.executable, "-c", there], capture_output=True, text=True, check=True).stdout
kind, steered = json.loads(said)
here = own.steer(a, strength)
off_there = float((torch.tensor(steered) - here).abs().max() / here.abs().max())
print(f"there it is a {kind}; it steers to the same numbers within {off_there:.0e}")

# %% [markdown]
# ## The claims

# %%
claims = {
    "autograd gives the gradient of the formula, and of finite differences": off_formula < 1e-12
    and off_counted < 1e-6
    and off_model < 1e-4,
    "Euler is of order 1, midpoint of 2, RK4 of 4": all(
        abs(order[solver] - p) < 0.3 for solver, p in (("euler", 1), ("midpoint", 2), ("rk4", 4))
    ),
    "flows end where the formula says": errors["rk4", 16] < 1e-5 and off_ends < 1e-12,
    "a T that is too long is found": bool(path.chatters[passed].all()) and not bool(path.chatters[far].any()),
    "h of the neighbours separates held-out texts, and rises on nearly every path": choice.best.auc > 0.8
    and rises > 0.95,
    "methods are kept and code is not; a changed folder is refused": all(same)
    and "not code" in not_saved
    and "was changed" in one_bit
    and "was changed" in another_word,
    "a plain class arrives where this package is not; others are refused": off_there < 1e-5
    and "dataclass" in refused["AsDataclass"]
    and "scipy" in refused["WithScipy"],
}
for claim, holds in claims.items():
    print("holds " if holds else "FAILS ", claim)
assert all(claims.values())

# %% [markdown]
# Back to the first: [from a vector to a flow](01_from_a_vector_to_a_flow.ipynb).
