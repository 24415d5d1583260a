# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Linear or nonlinear barrier?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# A barrier h may be linear in the activation, as those of CAA and ITI, or curved, as that of ODESteer. When does the
# curvature pay? Two planted problems, where the truth is known, show that it can decide everything and that it can be
# worthless. Then real activations: how well do four barriers separate held-out texts, by layer and reading position,
# and how far does each of them steer at the same cost? These are two different questions. It ends in a rule, and in
# five claims that a cell asserts.
#
# **When is a nonlinear barrier better? In short:**
#
# - It is needed where desired activations lie on *several sides* of the others, as in the planted XOR below: no line
#   separates them, and no vector takes most activations where they should go.
# - It gains nothing where *one direction* tells the two apart: two planted Gaussians, and praise against scorn on the
#   embedded model. Much of what a curved barrier seems to gain there is a weaker penalty, which a line can have too.
# - A barrier that separates better need not steer better. So the rule at the end asks two questions: does curvature
#   separate better on held-out rows than a line that is tuned as well, and does it then move the model further at the
#   same cost? Unless both answers are yes, take the difference of means, which has nothing to tune.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py
DATA = None  # the embedded pairs of praise and scorn; or a folder with truthfulqa/TruthfulQA.csv

# %%
import csv
import random
import warnings
from pathlib import Path

import torch

import odesteer_tl as ot
from odesteer_tl.evaluation.separation import separations

torch.manual_seed(0)
warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
warnings.filterwarnings("ignore", message="lbfgs failed to converge")  # of candidates with a large C, when tuning
warnings.filterwarnings("ignore", message="The best shift")  # where even the best is within two errors of 0: we look


def tuned(features, Cs=(1, 100)):
    """acts → ODESteer with the features and the C that separate best by cross-validation within these activations."""

    def fit(acts):
        best = ot.tune(acts, features=features, Cs=Cs, folds=3)
        return ot.ODESteer.fit(acts, features=best.features, C=best.C)

    return fit


MEANS, LINE, PAPER, CURVE = "difference of means", "linear, tuned", "polynomial, paper's", "polynomial, tuned"
BARRIERS = {
    MEANS: ot.CAA.fit,
    LINE: tuned([ot.Linear()], Cs=(1, 100, 10_000)),
    PAPER: ot.ODESteer.fit,  # degree 2, γ = 0.1, C = 1
    CURVE: tuned([ot.Polynomial(gamma=1.0), ot.Polynomial(gamma=10.0)]),
}

# %% [markdown]
# ## Planted: where no line helps
#
# XOR in a plane of 16 dimensions: desired clouds in quadrants I and III, undesired ones in II and IV, and a constant
# component as real activations have. Both sides have the same mean.

# %%
WIDTH, AWAY = 16, 3.0
frame = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q


def planted(centres, n):
    """n activations around centres of the plane, with a constant 5 in the last direction."""
    z = torch.randn(n, WIDTH)
    z[:, :2] += AWAY * torch.tensor(centres)[torch.randint(len(centres), (n,))]
    z[:, -1] += 5
    return z @ frame.T


def sides(desired, undesired, n=600):
    """Activations of both sides, and as many undesired ones to steer."""
    return ot.ContrastiveActivations(planted(desired, n), planted(undesired, n), layer=0), planted(undesired, n)


xor, start = sides([(1.0, 1.0), (-1.0, -1.0)], [(1.0, -1.0), (-1.0, 1.0)])
of_xor = separations(xor, BARRIERS)
for one in of_xor:
    print(f"{one.name:>20}: held-out AUC {one.auc:.3f}, 95 % from {one.interval[0]:.3f} to {one.interval[1]:.3f}")


# %% [markdown]
# Steering is judged by the truth: which share of undesired activations ends inside one of the desired clouds, in the
# plane within the radius that holds 95 % of a cloud? Every method tries 20 lengths on one half of the activations, and
# the best one is judged on the other half.


# %%
def inside(a):
    """Within 2.45 of a desired centre."""
    x = (a @ frame)[:, :2]
    return torch.stack([(x - AWAY * torch.tensor(c)).norm(dim=1) < 2.45 for c in ((1.0, 1.0), (-1.0, -1.0))]).any(0)


def reached(method, a):
    """The share, its standard error and the length."""
    first, second = a.chunk(2)
    lengths = [0.8 * k / method.speed for k in range(1, 21)]
    best = max(lengths, key=lambda T: float(inside(method.steer(first, T=T)).double().mean()))
    share = float(inside(method.steer(second, T=best)).double().mean())
    return share, (share * (1 - share) / len(second)) ** 0.5, best


methods = {
    "difference of means": ot.CAA.fit(xor),
    "linear, 10 steps": BARRIERS[LINE](xor),
    "polynomial, one step": ot.StepODESteer.fit(xor),
    "polynomial, 10 steps": ot.ODESteer.fit(xor),
}
arrived = {name: reached(method, start) for name, method in methods.items()}
for name, (share, error, _) in arrived.items():
    print(f"{name:>20}: {share:.0%} ± {error:.0%} reach a desired cloud")
curved = methods["polynomial, 10 steps"]
ot.plots.level_sets(
    curved,
    {
        name: methods[name].trajectory(start, T=arrived[name][2])
        for name in ("difference of means", "polynomial, 10 steps")
    },
    xor,
    plane=frame[:, :2].T,
)

# %% [markdown]
# ## Planted: where the line is the truth
#
# Two Gaussians with the same covariance: the log density ratio is linear, exactly. Curvature can only cost.

# %%
shifted, _ = sides([(0.3, 0.0)], [(-0.3, 0.0)])
of_shifted = separations(shifted, BARRIERS)
for one in of_shifted:
    print(f"{one.name:>20}: held-out AUC {one.auc:.3f}, 95 % from {one.interval[0]:.3f} to {one.interval[1]:.3f}")
gain, error = of_shifted[3].minus(of_shifted[1])
print(f"curvature gains {gain:+.3f} ± {error:.3f}")

# %% [markdown]
# ## Real activations
#
# Pairs of answers to one query. The four barriers at four layers and two reading positions, each judged on folds that
# it was not fitted on; the tuned ones are tuned anew within every fold. The fair question about curvature is polynomial
# against linear with C tuned for both: much of what a nonlinear barrier seems to gain is only a weaker penalty.

# %%
demo = ot.load_demo(None if MODEL is None else ot.load_model(MODEL))
model = demo.model
if DATA is None:
    queries, desired, undesired = ([pair[key] for pair in demo.pairs] for key in ("query", "desired", "undesired"))
else:
    with (Path(DATA) / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = random.Random(0).sample(list(csv.DictReader(file)), 379)
    queries = [f"Q: {row['Question']}\nA:" for row in rows]
    desired = [f" {row['Best Answer']}" for row in rows]
    undesired = [f" {row['Incorrect Answers'].split(';')[0].strip()}" for row in rows]
depth = model.cfg.n_layers
LAYERS = sorted({round(depth * part) - 1 for part in (0.3, 0.5, 0.7, 0.85)})
print(f"{len(queries)} pairs, layers {LAYERS} of {depth}: {queries[0]!r} {desired[0]!r} | {undesired[0]!r}")
by_position = {
    position: ot.collect_layers(model, desired, undesired, LAYERS, queries=queries, position=position)
    for position in ("last", "mean")
}
found = [one for acts in by_position.values() for one in separations(acts, BARRIERS)]
ot.plots.separation(found)

# %% [markdown]
# The intervals overlap more than the differences deserve, because all barriers see the same pairs. Pair by pair:

# %%
at = {(one.name, one.layer, one.position): one for one in found}
gains = {}
for position in by_position:
    for layer in LAYERS:
        gain, error = gains[layer, position] = at[CURVE, layer, position].minus(at[LINE, layer, position])
        print(f"layer {layer}, {position}: curvature gains {gain:+.3f} ± {error:.3f}" + "   clear" * (gain > 2 * error))

# %% [markdown]
# ## Separating is not steering
#
# Now all four steer, everywhere, at the same cost: `ot.choose_layer` finds at each place the strength that spends 0.1
# nats of KL, and measures on held-out pairs by how much the desired answer gains on the undesired one. That takes many
# passes, so on a model that is not small two of the four layers have to do, and below, by cost, two of the barriers.

# %%
SMALL = depth * model.cfg.d_model <= 4096
STEERED_AT = LAYERS if SMALL else LAYERS[1::2]
choices = {
    name: ot.choose_layer(model, desired, undesired, method=fit, queries=queries, layers=STEERED_AT)
    for name, fit in BARRIERS.items()
}
for name, choice in choices.items():
    best = choice.best
    print(f"{name:>20}: layer {best.layer}, {best.position}: AUC {best.auc:.2f}, "
          f"shift {best.shift:+.2f} ± {best.shift_error:.2f} nats")  # fmt: skip
ot.plots.shift_by_auc(choices)

# %% [markdown]
# On the embedded model both tuned barriers separate perfectly, at every layer: what the paper's polynomial lacks is no
# curvature but a weaker penalty. And yet they do not steer further, at the same cost, than the difference of means and
# the paper's polynomial read at the last token, with AUCs from .85 to .91. What tells texts apart need not be what the
# model goes on.
#
# And by cost, at the place that was chosen for the tuned polynomial. T is nowhere to be seen: only what it costs.

# %%
place = choices[CURVE].best
by_cost = {
    name: [
        ot.choose_layer(
            model, desired, undesired, method=BARRIERS[name], queries=queries, layers=place.layer,
            positions=place.position, kl=kl,
        )
        for kl in (0.03, 0.1, 0.3)
    ]
    for name in (BARRIERS if SMALL else (MEANS, CURVE))
}  # fmt: skip
ot.plots.shift(by_cost)

# %% [markdown]
# ## A rule
#
# 1. Compare a polynomial and a line, both tuned, on held-out rows at the place where you steer. If the difference is
#    within two standard errors, take the difference of means: it has nothing to tune.
# 2. If curvature separates better, that is a licence to try it and no proof: compare how far it and the difference of
#    means steer at equal KL.
#    Take the curved one only if it is ahead by two standard errors.


# %%
def decide(separates, steers):
    """Which barrier, from (gain of the curved one, standard error) in separation and in steering."""
    for what, (gain, error) in (("separates", separates), ("steers", steers)):
        if gain <= 2 * error:
            return f"linear: curvature {what} no better ({gain:+.3f} ± {error:.3f})"
    return "nonlinear: it separates better, and steers further"


(low, low_error, _), (high, high_error, _) = (arrived[name] for name in (MEANS, "polynomial, 10 steps"))
for_xor = decide(of_xor[3].minus(of_xor[1]), (high - low, (high_error**2 + low_error**2) ** 0.5))
for_shifted = decide(of_shifted[3].minus(of_shifted[1]), (0.0, 0.0))  # the second question is not reached
one, other = (by_cost[name][1].best for name in (CURVE, MEANS))
for_model = decide(
    gains[place.layer, place.position], (one.shift - other.shift, (one.shift_error**2 + other.shift_error**2) ** 0.5)
)
print(f"XOR:        {for_xor}\nGaussians:  {for_shifted}\nthis model: {for_model}")

# %% [markdown]
# ## The claims

# %%
best = {name: choice.best for name, choice in choices.items()}
ahead = best[CURVE].shift - best[MEANS].shift
error = (best[CURVE].shift_error ** 2 + best[MEANS].shift_error ** 2) ** 0.5
print(f"AUC {best[CURVE].auc:.2f} against {best[MEANS].auc:.2f}: {ahead:+.2f} ± {error:.2f} nats of shift")
curvature, its_error = of_shifted[3].minus(of_shifted[1])
claims = {
    "XOR: no line separates": all(one.auc < 0.5 + 3 * one.error for one in of_xor[:2]),
    "XOR: the curved barrier does, and ten steps reach the truth where a vector does not": of_xor[2].auc > 0.95
    and high > low + 0.3,
    "Gaussians: curvature gains nothing": curvature < 2 * its_error,
    "the rule finds both": for_xor.startswith("nonlinear") and for_shifted.startswith("linear"),
    "what separates better steers no further (claimed of the embedded model alone)": (
        best[CURVE].auc > best[MEANS].auc + 0.05 and ahead < 2 * error
    )
    if MODEL is None
    else None,
}
for claim, holds in claims.items():
    print("not claimed here " if holds is None else "holds " if holds else "FAILS ", claim)
assert all(holds is None or holds for holds in claims.values())

# %% [markdown]
# Next: [hooks of your own](03_your_own_hooks.ipynb).
