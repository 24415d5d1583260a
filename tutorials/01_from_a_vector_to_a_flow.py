# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a vector to a flow
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# A steering vector is added to activations. This notebook shows that it is one step of an ordinary differential
# equation, whose field is the gradient of a function h. A better h, and more steps, make ODESteer of it.
#
# The three questions, and their answers in short:
#
# - **What is h?** A number for every activation a, in nats: log p₊(a)/p₋(a), how much likelier a is among desired texts
#   than among others.
# - **What is T?** How far an activation is moved, 0 being not at all. For ODESteer, ITI and RepE T is the length of the
#   way, and `relative_T` is the same as a part of the activation's own norm: 0.1 moves every one by a tenth of ‖a‖. For
#   CAA T counts differences of means: T = 1 moves as far as the two sides are apart. (`odesteer-tl methods` says it for
#   each.) No T is right for all models and layers, so below you name a cost, 0.1 nats of KL, and `ot.calibrate` finds
#   T.
# - **What do the paths look like?** Nearly straight where h is nearly linear.
#
# It ends in four claims that a cell asserts.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py

# %%
import warnings

import torch

import odesteer_tl as ot
from odesteer_tl.evaluation.judge import Judge

torch.manual_seed(0)
warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
demo = ot.load_demo(None if MODEL is None else ot.load_model(MODEL))
model = demo.model
queries, praise, scorn = ([pair[key] for pair in demo.pairs] for key in ("query", "desired", "undesired"))
print(queries[0], "|", praise[0], "|", scorn[0])

# %% [markdown]
# ## Where to read and steer
#
# 200 pairs answer the same opening, once with praise (desired) and once with scorn. `ot.choose_layer` fits a method at
# several layers and reading positions, steers held-out pairs everywhere at the same cost, 0.1 nats of KL, and takes the
# place where praise gains most on scorn, or the middle layer of those that cannot be told from it.

# %%
choice = ot.choose_layer(model, praise, scorn, method=ot.CAA, queries=queries)
print(choice)
ot.plots.layers(choice)

# %% [markdown]
# Read the columns so: AUC says how well h tells held-out praise from scorn, shift how far steering moves the model
# between them, and strength is the T that this took. The best AUC is no guide to the largest shift: on the embedded
# model the place that was chosen is not the one with the highest AUC, and on SmolLM2 places whose AUC is 1.00 to two
# digits have shifts from 1.7 to 6.0 nats. Tutorial 2 is about that.
#
# ## A vector is one Euler step
#
# CAA adds T·(μ₊ − μ₋), the difference of the two means. The differential equation ȧ = μ₊ − μ₋ has a constant field, so
# one Euler step from t = 0 to T is exact, and so are ten.

# %%
acts = choice.acts
fit, held_out = acts.split(seed=0)
caa = ot.CAA.fit(fit)
a = held_out.undesired
difference = fit.desired.mean(0) - fit.undesired.mean(0)
by_hand = a + 0.5 * difference
one_step, ten_steps = (ot.Flow(ot.Constant(difference), ot.Euler(), steps)(a, 0.5) for steps in (1, 10))
off = max(float((one - by_hand).abs().max() / a.abs().max()) for one in (one_step, ten_steps, caa.steer(a, T=0.5)))
print(f"{len(a)} activations of {a.shape[1]} numbers at layer {choice.layer}; largest relative deviation {off:.0e}")

# %% [markdown]
# ## The field is the gradient of a barrier
#
# Where do we go when we add μ₊ − μ₋? Uphill on h(a) = (μ₊ − μ₋)ᵀa + const, and that is the log density ratio
#
#     h(a) = log p₊(a)/p₋(a)
#
# of two Gaussians with these means and covariance 1. h > 0 says: this activation is likelier among desired ones. No
# cloud of activations has covariance 1, and so CAA's h has the right sign more often than the right size. ODESteer fits
# the log density ratio itself, by logistic regression on nonlinear features of a/‖a‖. If its h is what it claims to be,
# then among held-out activations with h = 1 there are e times as many desired ones as undesired ones.
#
# The paper's penalty, C = 1, holds w so short on unit vectors that h hardly leaves 0. `ot.tune` finds the C that
# separates best by cross-validation.

# %%
paper = ot.ODESteer.fit(fit)
tuned = ot.tune(fit, features=[ot.Polynomial()], Cs=(1, 10, 100, 1000))
odesteer = ot.ODESteer.fit(fit, features=tuned.features, C=tuned.C)
gradient = caa.barrier.grad(a)
assert torch.allclose(gradient, difference.expand_as(gradient), atol=1e-5)
fitted = {"CAA": caa, "ODESteer, C = 1": paper, f"ODESteer, C = {tuned.C:g}": odesteer}
ot.plots.log_odds(fitted, held_out, bins=5)


# %% [markdown]
# Points on the dotted line say what they mean (those beyond ±6 nats are drawn at the edge, and a bin of few
# activations cannot count odds above its size). In numbers: the log loss of σ(h) on held-out activations, where 0.69
# (log 2) is what one gets for knowing nothing, and being sure and wrong costs more.


# %%
def log_loss(barrier, rows):
    """Mean −log σ(±h) in nats, both sides counted alike."""
    wrong = torch.nn.functional.softplus
    return float(wrong(-barrier.value(rows.desired)).mean() + wrong(barrier.value(rows.undesired)).mean()) / 2


losses = {name: log_loss(method.barrier, held_out) for name, method in fitted.items()}
print({name: round(loss, 3) for name, loss in losses.items()}, "against 0.693")

# %% [markdown]
# ## Following the gradient
#
# ODESteer walks along ȧ = ∇h/‖∇h‖: at unit speed, so that T is the length of the way. `relative_T=0.3` is three tenths
# of each activation's norm. As h is nonlinear, its gradient is another one at every point: each activation can take its
# own way. Below are both kinds of paths, as they look on a plane through the mean start. Contours are h on that plane,
# dots are the ends of the paths in the colour of their true h. Three tenths is a long way, so that the paths can be
# seen; the T to take is found further below.

# %%
LENGTH = 0.3
same_length = LENGTH * float(a.norm(dim=1).mean()) / caa.speed  # CAA's T counts differences of means
paths = {"CAA": caa.trajectory(a, same_length), "ODESteer": odesteer.trajectory(a, relative_T=LENGTH)}
ot.plots.level_sets(odesteer, {name: paths[name] for name in ("ODESteer", "CAA")}, held_out, many=25)

# %% [markdown]
# CAA's paths are parallel. ODESteer's h depends on the direction a/‖a‖ alone, so its paths follow the sphere: over a
# length of 0.3‖a‖ the velocity turns by 0.3 radians, 17°, and by more only where h itself is curved. How different are
# the ways of different activations? Half a degree on the embedded model, one degree on SmolLM2: there, h is nearly
# linear where the activations are, and the flow is nearly a vector, though another one than CAA's (by 35° and by 7°).

# %%
path = paths["ODESteer"]
velocity = [odesteer.vector_field(path.activations[k]) for k in (0, -1)]


def degrees(u, v):
    """Median angle between rows."""
    return float(torch.nn.functional.cosine_similarity(u, v, dim=-1).clamp(-1, 1).arccos().rad2deg().median())


print(f"the velocity turns by {degrees(*velocity):.0f}° on the way (median)")
print(f"activations set out {degrees(velocity[0], velocity[0].mean(0)[None]):.1f}° from their mean direction (median)")
print(f"and that is {degrees(velocity[0].mean(0)[None], difference[None]):.0f}° from CAA's")

# %% [markdown]
# ## What h says on the way
#
# h along the paths, on ODESteer's barrier for all: its own path in ten steps, the same length in one step, and CAA's
# vector. More steps climb more for the same length, because the gradient is followed and not extrapolated.

# %%
one_step = ot.StepODESteer(odesteer.barrier, odesteer.origin).trajectory(a, relative_T=LENGTH)
along_caa = ot.Trajectory(paths["CAA"].activations, odesteer.barrier.value(paths["CAA"].activations))
ot.plots.along_path({"ODESteer, 10 steps": path, "one step of that length": one_step, "CAA, that length": along_caa})

# %% [markdown]
# ## What T to take
#
# h can be driven as high as one likes, and the model pays for it. `ot.calibrate` finds the strength at which the
# next-token distribution moves by 0.1 nats on the model's own continuations of some prompts: KL(unsteered ‖ steered).

# %%
found = {
    name: ot.calibrate(model, method, demo.validation_prompts)
    for name, method in (("CAA", caa), ("ODESteer", odesteer))
}
for name, one in found.items():
    moved = min(one.curve, key=lambda tried: abs(tried.value - one.strength.value)).displacement
    print(f"{name}: {one.sought} = {one.strength.value:.3g} spends {one.spent:.3f} nats; it moves a typical activation "
          f"by {moved:.0%} of its norm")  # fmt: skip
ot.plots.calibration(found["ODESteer"])

# %% [markdown]
# At this cost, sampled continuations of other prompts are read by a judge of film reviews that has seen neither the
# model nor the pairs.

# %%
judge, prompts, times = Judge.load_embedded(), demo.prompts[:20], 3
read = {}
for name, method in {"unsteered": None, **{name: one.method for name, one in found.items()}}.items():
    out = ot.generate(model, prompts * times, method, max_new_tokens=30, do_sample=True, top_p=0.9, seed=0)
    read[name] = judge.positive_probability(out.texts).double()
    share = float((read[name] > 0.5).double().mean())
    print(f"{name:>10}: {share:.0%} of {len(read[name])} read as praise. {out.texts[0]!r}")


def gained(name):
    """By how much the judge's probability of praise rises, and its standard error, over the prompts."""
    by_prompt = (read[name] - read["unsteered"]).reshape(times, len(prompts)).mean(0)
    return float(by_prompt.mean()), float(by_prompt.std()) / len(prompts) ** 0.5


for name in found:
    print("{}: {:+.2f} ± {:.2f}".format(name, *gained(name)))

# %% [markdown]
# The embedded model writes little but reviews, and 0.1 nats show in them. SmolLM2 writes of everything, and three of
# four of its unsteered openings read as praise already: there the same budget gains half as much. If 20 prompts show
# nothing on your model, spend more, or judge by pairs, as `ot.choose_layer` does.
#
# ## The claims

# %%
rise = path.h[-1] - path.h[0]
claims = {
    "CAA is one Euler step of a constant field": off < 1e-5,
    "a tuned h is closer to the log odds than CAA's and the paper's": losses[f"ODESteer, C = {tuned.C:g}"]
    == min(losses.values()),
    "h rises on every path, and ten steps climb higher than one": bool((rise > 0).all())
    and float(path.h[-1].mean()) > float(one_step.h[-1].mean()),
    "at 0.1 nats both make more praise, by two standard errors (claimed of the embedded model alone)": all(
        gain > 2 * error for gain, error in map(gained, found)
    )
    if MODEL is None
    else None,
}
for claim, holds in claims.items():
    print("not claimed here " if holds is None else "holds " if holds else "FAILS ", claim)
assert all(holds is None or holds for holds in claims.values())

# %% [markdown]
# Next: [is a nonlinear barrier worth it?](02_linear_or_nonlinear_barrier.ipynb)
