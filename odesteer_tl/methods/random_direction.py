"""RandomDirection, the control: it moves activations as far as other methods, in a random direction.

No barrier; v is a unit vector drawn by `seed`, constant, in one step: a + T v. Its effects are those of any
displacement of that length.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from odesteer_tl._shapes import Direction
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.fields import Constant
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import View


@dataclass(frozen=True, eq=False)
class RandomDirection(FlowMethod):
    """a + T v, v uniform on the unit sphere."""

    view: ClassVar[View] = View("random direction", "none", "a unit vector", "1", "any", "one side", "control")

    direction: Direction
    origin: Origin

    @classmethod
    def fit(cls, acts: ContrastiveActivations, *, seed: int = 0) -> "RandomDirection":
        """Draw v on the CPU by `seed`. Only the width and the site of the activations are used."""
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(acts.desired.shape[1], generator=generator, device="cpu")
        return cls(direction / direction.norm(), acts.origin)

    @property
    def barrier(self) -> None:
        """None: a random direction has no desired region."""
        return None

    @cached_property
    def flow(self) -> Flow:
        return Flow(Constant(self.direction), steps=1)


register(RandomDirection, example=lambda acts: RandomDirection.fit(acts, seed=5))
