"""Random flows: any method, feature, solver and coordinates, at any norm, strength and precision, end as promised.

python tests/fuzz_flows.py 300000        # prints what they ended as
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from instances import D_MODEL, RECIPES, fitted, log_ratio

from odesteer_tl.data.origin import Origin
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods import GradientFlow
from odesteer_tl.methods.flow_method import FlowMethod
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.feedback import Feedback, linear_quadratic, proportional_integral_derivative
from odesteer_tl.remote.payloads import moved

UNIT = ("odesteer", "odesteer-low-rank-rk4", "odesteer-sketch", "odesteer-fourier-midpoint", "stepodesteer", "iti")
UNIT += ("randomdirection", "repe", "gradientflow")
OTHER = ("caa", "headshift", "linearact", "mimic", "mimic-ungated", "mimic-few", "hpr", "recontrol", "truthflow")
OTHER += ("gradientflow-any-speed",)
"""Of tests/instances.py, those that move by T at most, and those whose T counts in something else."""

TOO_LARGE = 1e200

ROWS = 10
"""Flows of one case: the rows of a batch."""

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Chosen(FlowMethod):
    """∇h/‖∇h‖ on features by their name, with that solver and those coordinates."""

    barrier = None

    def __init__(self, flow: Flow) -> None:
        self.chosen, self.origin = flow, Origin(d_model=D_MODEL)

    @property
    def flow(self) -> Flow:
        return self.chosen

    def to(self, device=None, dtype=None):
        return Chosen(moved(self.chosen, device, dtype))


@cache
def chosen(recipe: str, solver: str, coordinates: str) -> Chosen | None:
    """None where these features have no such coordinates."""
    whole = GradientFlow(log_ratio(recipe), solver=solver).flow
    if coordinates == "reduced" and UnitGradient(log_ratio(recipe)).reduced() is None:
        return None
    return Chosen(replace(whole, coordinates=coordinates))


class LoopOnce:
    """The edit of a closed loop at one layer, as a `steer`."""

    def __init__(self, law: Callable[..., torch.Tensor], *numbers: Any) -> None:
        directions = torch.nn.functional.normalize(torch.arange(2.0 * D_MODEL).reshape(1, 2, -1).cos(), dim=-1)
        self.loop = Feedback(law, (directions, torch.tensor([[3.0, 1.0]]), *numbers), (0,), D_MODEL)

    def steer(self, a: torch.Tensor, T: float | torch.Tensor) -> torch.Tensor:
        return self.loop.edits(T)[0].apply(a, a, State(torch.arange(len(a))))


LOOPS = (
    LoopOnce(linear_quadratic, torch.arange(2.0 * D_MODEL).reshape(1, 2, -1).sin()),
    LoopOnce(proportional_integral_derivative, 0.9, 0.1, 0.01, False),
)


class Dice:
    """Numbers by a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def of(self, *sequence: Any) -> Any:
        """One of them."""
        return sequence[int(torch.randint(len(sequence), (), generator=self.generator))]

    def sizes(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """10^u in float64, u uniform from low to high."""
        u = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
        return 10 ** (low + (high - low) * u)

    def rows(self, dtype: torch.dtype) -> torch.Tensor:
        """Activations of all norms from 0 to 1e19, or to the largest of float16; one is within a few coordinates."""
        normal = torch.randn(ROWS, D_MODEL, generator=self.generator, dtype=torch.float64)
        normal[0, 3:] = 0
        high = 4.5 if dtype == torch.float16 else 19.0
        sizes = torch.where(torch.rand(ROWS, 1, generator=self.generator) < 0.5, self.sizes(-3, 3, ROWS, 1), 0)
        sizes = torch.where(sizes == 0, self.sizes(-30, high, ROWS, 1), sizes)
        sizes[int(torch.randint(ROWS, (), generator=self.generator))] = 0
        return (torch.nn.functional.normalize(normal, dim=-1) * sizes).to(dtype)

    def strength(self, largest: float) -> float | torch.Tensor:
        """A T, or one per row, of either sign; 0 too, and now and then one that nothing can take."""
        kind = self.of("number", "number", "rows", "rows", "zero", "too large")
        if kind == "zero":
            return 0.0
        if kind == "too large":
            return TOO_LARGE
        signs = torch.randint(2, (ROWS,), generator=self.generator) * 2 - 1
        sizes = signs * self.of(self.sizes(-12, largest, ROWS), self.sizes(-2, 2, ROWS))
        if kind == "number":
            return float(sizes[0])
        sizes[1] = 0
        return sizes


def method_of(dice: Dice) -> tuple[str, Any, bool]:
    """(name, method, whether it moves by T at most)."""
    kind = dice.of("unit", "other", "features", "features", "features", "loop")
    if kind == "loop":
        number = dice.of(0, 1)
        return f"loop {number}", LOOPS[number], False
    if kind != "features":
        name = dice.of(*(UNIT if kind == "unit" else OTHER))
        return name, fitted(name), kind == "unit"
    names = dice.of(*RECIPES), dice.of("euler", "midpoint", "rk4"), dice.of("direct", "reduced", "auto")
    return " ".join(names), chosen(*names) or chosen(*names[:2], "direct"), True


def case(seed: int) -> str:
    """What the flows of that seed end as: "finite" or "refused". AssertionError for anything that is not promised."""
    dice = Dice(seed)
    name, method, bounded = method_of(dice)
    dtype = dice.of(*DTYPES)
    limits = torch.finfo(dtype)
    a, largest = dice.rows(dtype), min(limits.max, torch.finfo(torch.promote_types(dtype, torch.float32)).max ** 0.5)
    T = dice.strength(4.5 if dtype == torch.float16 else 19.0 if bounded else 6.0)
    relative = name[:4] != "loop" and dice.of(False, False, True)
    if relative and isinstance(T, torch.Tensor):
        T = T.clamp(-100, 100)
    elif relative and T != TOO_LARGE:
        T = max(-100.0, min(100.0, T))
    by = {"relative_T" if relative else "T": T}
    said = f"seed {seed}: {name}, {str(dtype)[6:]}, {by}, norms {a.double().norm(dim=-1).tolist()}"
    try:
        out = method.steer(a, **by)
    except ValueError as error:
        assert not isinstance(T, torch.Tensor) and abs(T) > largest and "does not fit" in str(error), (said, error)
        return "refused"
    assert isinstance(T, torch.Tensor) or abs(T) <= largest, f"accepted, {said}"
    assert out.dtype == dtype and out.shape == a.shape and bool(torch.isfinite(out).all()), f"{out}, {said}"
    strength = torch.as_tensor(next(iter(by.values())), dtype=torch.float64).expand(ROWS)
    size = a.double().norm(dim=-1)
    if "relative_T" in by:
        strength = strength * size
    if name[:4] != "loop":
        assert torch.equal(out[strength == 0], a[strength == 0]), f"moved at T = 0, {said}"
    if bounded:
        way, rounding = (out.double() - a.double()).norm(dim=-1), 8 * limits.eps * (size + strength.abs())
        allowed = strength.abs() * (1 + 1e-4) + rounding + D_MODEL * limits.smallest_normal
        assert bool((way <= allowed).all()), f"moved by {way.tolist()}, {said}"
    keeps, others = seed % ROWS, dice.rows(dtype)
    others[keeps] = a[keeps]
    again = method.steer(others, **by)[keeps]
    assert torch.equal(again, out[keeps]), f"row {keeps} depends on the others, {said}"
    return "finite"


def flows(number: int, seed: int = 0) -> Counter[str]:
    """How many of that many random flows, and a few more, end as what. AssertionError with seed and case where one
    ends as nothing that is promised."""
    ends: Counter[str] = Counter()
    for each in range(seed, seed + -(-number // ROWS)):
        ends[case(each)] += ROWS
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(dict(flows(int(sys.argv[1]))))
