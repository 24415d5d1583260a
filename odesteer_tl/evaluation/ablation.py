"""The paper's Table 3: h linear or nonlinear, climbed in one step or in ten, and all else alike.

Linear means φ(a) = a/‖a‖ with the same fit, field and steps. Its field turns along the sphere by no more than the way
itself, so that one step and ten differ in second order of T/‖a‖ alone.
"""

from odesteer_tl.evaluation.entries import Entry
from odesteer_tl.flows.features import Linear, Polynomial, Recipe
from odesteer_tl.methods import ODESteer, StepODESteer

STEPS = {"one step": StepODESteer, "ten steps": ODESteer}
FEATURES: dict[str, Recipe] = {"linear": Linear(), "nonlinear": Polynomial()}
"""At the paper's values."""


def climbing(steps: str, features: Recipe, C: float = 1.0) -> Entry:
    """The entry that climbs h on these features, in `steps`."""
    kind = STEPS[steps]
    return Entry(lambda acts, seed: kind.fit(acts, features=features, C=C))
