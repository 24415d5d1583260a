"""GradientFlow: any barrier of the user's."""

import pytest
import torch
from instances import (
    D_MODEL,
    Own,
    activations,
    planted,
)

from odesteer_tl.methods import GradientFlow

AT = {"headshift": "z"}
"""Methods that were not fitted at `resid_post`."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("unit_speed", [True, False])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_autograd_and_a_gradient_by_hand_give_the_same_flow(unit_speed, solver):
    class ByHand(Own):
        def grad(self, a):
            bell = 1 - torch.tanh(a[..., 0] - 0.5 * a[..., 1]).square()
            g = -0.1 * a * torch.cos(a[..., 2:3])
            push = torch.zeros_like(a)
            push[..., 0], push[..., 1] = bell, -0.5 * bell
            push[..., 2] = 0.05 * (a.square().sum(-1) - 20) * torch.sin(a[..., 2])
            return g + push

    a = activations(5)
    ends = [
        GradientFlow(barrier, steps=5, solver=solver, unit_speed=unit_speed).steer(a, T=0.5)
        for barrier in (Own(), ByHand())
    ]
    assert (ends[0] - ends[1]).abs().max() < 1e-12  # float64
    assert (ends[0] - a).norm(dim=-1).min() > 0.1


def test_a_module_is_a_barrier_and_stays_where_it_is():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.first = torch.nn.Parameter(0.3 * torch.randn(D_MODEL, 16, generator=generator))
            self.second = torch.nn.Parameter(torch.randn(16, generator=generator))

        def value(self, a):
            return torch.tanh(a @ self.first) @ self.second

    net = Net()
    method = GradientFlow(net, layer=2)
    a = activations(4)
    end = method.steer(a, T=1.0)
    assert net.first.dtype == torch.float32  # the float64 copy is the method's own
    assert (net.double().value(end) > net.value(a) + 0.1).all()


def test_a_gradient_flow_takes_its_layer_from_its_origin():
    acts = planted(layer=5)
    assert GradientFlow(Own(), origin=acts.origin).layer == 5
    assert GradientFlow(Own(), origin=acts.origin, layer=2).origin.layer == 2
    assert GradientFlow(Own()).layer is None
    assert GradientFlow(Own(), layer=4).to(dtype=torch.float64).layer == 4
