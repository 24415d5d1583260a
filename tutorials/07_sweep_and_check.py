# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Check the data, then sweep
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
#
# Two questions stand before a paper's table. Do the texts show what they are meant to, or something on their surface?
# And where, how strongly, and within which bounds is steered? `ot.check_data` looks at the first; this notebook plants
# faults and sees each of them found, and then looks at real texts. `ot.sweep` answers the second: a plan that can be
# printed before anything runs, and a run that stops by itself and goes on where it was killed. It ends in seven claims
# that a cell asserts.

# %% tags=["parameters"]
MODEL = None  # the embedded model; or a Hugging Face name or a folder, such as "smollm2" of scripts/get_smollm2.py

# %%
import random
import warnings
from types import SimpleNamespace

import odesteer_tl as ot
from odesteer_tl.evaluation.judge import Judge

warnings.filterwarnings("ignore", message="At blocks")  # that attention sinks are left out of means
demo = ot.load_demo(None if MODEL is None else ot.load_model(MODEL))
model = demo.model
LAYER = 2 if MODEL is None else model.cfg.n_layers // 2

# %% [markdown]
# ## Planted: texts that no surface tells apart
#
# Both sides say the same two words as often, *good* and *bad*; only their order differs. Length, words, first and last
# token are the same by construction, and the fillers are dealt by chance. Behind both words a model can know which
# verdict stood first; that is where it is read, five tokens from the end.

# %%
WORDS = [("good", "bad"), ("great", "awful"), ("funny", "boring"), ("brilliant", "terrible")]
SIDE, WHERE = 40, -5
chance = random.Random(0)
fillers = [" ".join(review.split()[20:26]) for review in [*demo.desired, *demo.undesired]]
chance.shuffle(fillers)


def planted():
    sides = ([], [])
    for number in range(2 * SIDE):
        first, second = chance.choice(WORDS)[:: 1 if number % 2 == 0 else -1]
        sides[number % 2].append(f"{fillers[number]}. The film is {first}, it is never {second}, so I say.")
    return sides


def check(desired, undesired, **options):
    usual = {"method": ot.ITI, "layers": LAYER, "positions": WHERE, "progress": False}
    return ot.check_data(model, desired, undesired, **usual | options)


good, bad = planted()
print(good[0], bad[0], sep="\n")
clean = check(good, bad)
print(clean)

# %% [markdown]
# Nothing is found. The table below the items is what convinces: length, words, first and last token and the embeddings
# do not tell the sides apart, and h does. (An AUC below ½ is no knowledge either: where two sides have equally many of
# everything, what is held out leans away from what was fitted on.)

# %%
ot.plots.areas(clean)

# %% [markdown]
# ## Planted: faults
#
# Each fault is put into these texts alone. A fault is found if its item, and no other, stops being a pass. A text that
# stands on both sides has a wrong label on one of them, so that two items find it.

# %%
both = random.Random(1).sample(good + bad, 2 * SIDE)
FAULTS = {
    "six texts twice": ((good + good[:6], bad), ["duplicates"]),
    "four texts on both sides": ((good, bad + good[:4]), ["across", "labels"]),
    "every second desired text longer": (
        ([f"{fillers[-row - 1]} {text}" if row % 2 == 0 else text for row, text in enumerate(good)], bad), ["length"],
    ),
    "every second desired text begins with But": (
        ([f"But {text}" if row % 2 else text for row, text in enumerate(good)], bad), ["first token"],
    ),
    "every second desired text ends with !": (
        ([f"{text[:-1]}!" if row % 2 else text for row, text in enumerate(good)], bad), ["last token"],
    ),
    "desired texts say This film": (([text.replace("The film", "This film") for text in good], bad), ["surface"]),
    "labels by chance": ((both[:SIDE], both[SIDE:]), ["surface"]),
    "six labels of a side wrong": ((good[:-6] + bad[-6:], bad[:-6] + good[-6:]), ["labels"]),
}  # fmt: skip
found = {}
for name, (sides, _) in FAULTS.items():
    found[name] = check(*sides)
    told = {item.name: item.verdict for item in found[name].items if item.verdict != "pass"}
    print(f"{name:<42} {told}")

# %% [markdown]
# Wrong labels are the hardest of them: the fit has seen them too. Held-out texts are counted that lie deep on the other
# side, where a text with a wrong label is a usual one. Which ones they are stands in `check.texts`, worst first:

# %%
flipped = found["six labels of a side wrong"]
worst = [(odd.side, odd.row) for odd in flipped.texts]
print(worst)
right = sum(row >= SIDE - 6 for _, row in worst)
print(f"{right} of the {len(worst)} texts to read first have a wrong label")

# %% [markdown]
# ## Real texts
#
# Film reviews by whole-text mean at two layers. The bag of words is the rival: praise has words of its own.

# %%
reviews = check(demo.desired[:60], demo.undesired[:60], layers=[LAYER, LAYER + 1], positions=["last", "mean"])
print(reviews)

# %% [markdown]
# `reviews.to_html("check.html")` writes this as a page, and in a notebook `reviews` alone shows it. On the command
# line, `odesteer-tl check good.txt bad.txt` ends with exit code 3 where an item says stop.
#
# ## Plan
#
# A dry run reads no text and generates nothing. It says what will be run, at most, and by which rule it stops. The
# judge is that of the demo; the primary metric is the share of continuations that it calls praise. Guardrails bound
# what steering may cost; a random direction is the control.

# %%
judge = Judge.load_embedded().positive_probability  # any function of texts: the probability that each is as desired
data = SimpleNamespace(desired=demo.desired[:150], undesired=demo.undesired[:150], prompts=demo.prompts[:8])
asked = {
    "layers": [LAYER - 1, LAYER, LAYER + 1], "positions": ("last", "mean"), "strengths": (0.1, 0.3, 0.9),
    "judge": judge, "keep": 1, "seeds": (0, 1), "samples": 4, "max_new_tokens": 16,
    "guardrails": {"kl": (None, 1.0), "repetition": (None, 0.5), "informativeness": (0.5, None)},
}  # fmt: skip
methods = {"CAA": ot.CAA, "ODESteer": ot.ODESteer, "random direction": ot.RandomDirection}
plan = ot.sweep(model, data, methods, **asked, dry_run=True)
print(plan)

# %% [markdown]
# ## Run, and run again
#
# Every finished cell is a line in the folder. The second call finds all of them there, says nothing but that it
# screens, and gives the same table; so does a call after a kill.

# %%
said = []
swept = ot.sweep(model, data, methods, **asked, out="study", progress=said.append)
print(said[1], said[-1], sep="\n")
heard = []
again = ot.sweep(model, data, methods, **asked, out="study", progress=heard.append)
print(heard)
print(swept.screening_table())

# %%
print(swept.table())
print(swept.conclusion())
ot.plots.sweep(swept)

# %% [markdown]
# A folder of another plan is refused, and the difference is shown:

# %%
refused = ""
try:
    ot.sweep(model, data, methods, **asked | {"seeds": (0, 2)}, out="study")
except ValueError as error:
    refused = str(error)
print(refused)

# %% [markdown]
# The best row was chosen by the number that it is praised for. Before it goes into a table, run it once more on prompts
# that the sweep has not seen.
#
# ## The claims

# %%
steered = [row for row in swept.rows if row.method in methods]
ends = [row for row in steered if row.stop]
within = [row for row in steered if not row.broken]
claims = {
    "texts that differ in the order of two words pass, and h knows more than their surface": clean.verdict == "pass"
    and clean["surface"].numbers["more"] > 2 * clean["surface"].numbers["error"],
    "each planted fault is found, by its item alone": all(
        [item.name for item in found[name].items if item.verdict != "pass"] == items
        for name, (_, items) in FAULTS.items()
    ),
    "of the ten texts to read first nine at least have a wrong label": len(worst) == 10 and right >= 9,
    "on reviews the activations are not shown to beat the bag of words (claimed of the embedded model alone)": (
        reviews["surface"].verdict != "pass"
    )
    if MODEL is None
    else None,
    "the sweep runs no more cells than its plan says, and a second call runs none": len(said) - 1 <= plan.cells
    and not any(": cell " in line for line in heard)
    and again.to_json() == swept.to_json(),
    "every walk ends by the rule, or at the largest strength": all(
        "guardrail" in row.stop or "no improvement" in row.stop or row.strength == max(asked["strengths"])
        for row in ends
    )
    and len(ends) == len(methods),
    "the best row within the guardrails is no random direction, and another plan is refused": swept.best() in within
    and swept.best().primary == max(row.primary for row in within)
    and swept.best().method != "random direction"
    and "seeds: [0, 1] in the folder, [0, 2] now" in refused,
}
for claim, holds in claims.items():
    print("not claimed here " if holds is None else "holds " if holds else "FAILS ", claim)
assert all(holds is None or holds for holds in claims.values())

# %% [markdown]
# Back to the first: [from a vector to a flow](01_from_a_vector_to_a_flow.ipynb).
