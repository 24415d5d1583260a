"""Laws of networks: their gradient, their units, and the loop that trains them."""

import math

import pytest
import torch
from instances import activations, without_shape_checks

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.networks import LEAST_STEPS, Network, NetworkBarrier, centred, held_out, random_parameters, train
from odesteer_tl.portable.networks import angle_between, network
from odesteer_tl.remote.payloads import moved
from odesteer_tl.save_load import _built, _plain

D = 24


def made(kind="relu", widths=(D, 16, 8, 1), seed=0, dtype=torch.float64) -> Network:
    parameters = random_parameters(widths, torch.Generator().manual_seed(seed))
    return moved(Network.of(parameters, kind), dtype=dtype)


@pytest.mark.parametrize("kind", ["relu", "gelu"])
@pytest.mark.parametrize("widths", [(D, 1), (D, 16, 1), (D, 16, 8, 4, 1)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_the_gradient_by_hand_is_that_of_autograd(kind, widths, batch):
    net, a = made(kind, widths), activations(*batch)
    expected = torch.func.grad(lambda x: net.value(x).sum())(a)
    assert net.value(a).shape == batch and net.grad(a).shape == a.shape
    assert (net.grad(a) - expected).abs().max() < 1e-14  # float64
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_the_value_is_that_of_the_modules_of_torch(kind):
    net, a = made(kind), activations(7)
    layers = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, torch.nn.ReLU() if kind == "relu" else torch.nn.GELU()]
    expected = torch.nn.Sequential(*layers[:-1])(a).squeeze(-1)
    assert (net.value(a) - expected).abs().max() < 1e-14


def test_units_go_into_the_first_and_the_last_layer():
    net, a, mean = made(), activations(9), activations(seed=3)
    torch.testing.assert_close(net.of_scaled(mean, 2.5).value(a), net.value((a - mean) / 2.5), rtol=0, atol=1e-13)
    torch.testing.assert_close(net.times(-3.0, 0.7).value(a), -3 * net.value(a) + 0.7, rtol=0, atol=1e-13)


def test_a_barrier_is_the_network_less_its_threshold():
    net, a = made(), activations(4)
    barrier = NetworkBarrier(net, 0.3)
    assert torch.equal(barrier.value(a), net.value(a) - 0.3) and torch.equal(barrier.grad(a), net.grad(a))


def test_layers_are_drawn_as_wide_as_torch_draws_them():
    first = random_parameters((400, 300, 1), torch.Generator().manual_seed(0))[0]
    # U(−1/20, 1/20): 120,000 draws, variance 1/1200 with a relative error of about 0.3 %.
    assert first.abs().max() <= 0.05
    assert float(first.var()) == pytest.approx(1 / 1200, rel=0.02)


@pytest.mark.parametrize(
    ("weights", "biases", "kind"),
    [
        ([(4, 3), (1, 5)], [(4,), (1,)], "relu"),
        ([(4, 3), (2, 4)], [(4,), (2,)], "relu"),
        ([(4, 3), (1, 4)], [(3,), (1,)], "relu"),
        ([(4, 3), (1, 4)], [(4,)], "relu"),
        ([(1, 3)], [(1,)], "tanh"),
        ([], [], "relu"),
    ],
)
def test_layers_that_do_not_fit_are_refused(weights, biases, kind):
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match="needs layers of matching shapes that end in one number"),
    ):
        Network(tuple(torch.zeros(s) for s in weights), tuple(torch.zeros(s) for s in biases), kind)


def test_a_network_moves_and_is_kept_with_its_layers():
    net = made(dtype=torch.float32)
    assert all(w.dtype == torch.float64 for w in (*made().weights, *made().biases))
    again = _built(_plain(net), "here")
    assert isinstance(again, Network) and isinstance(again.weights, tuple) and again.kind == net.kind
    assert all(torch.equal(x, y) for x, y in zip(again.weights, net.weights, strict=True))


def test_the_angle_between_is_exact_for_small_and_large_angles():
    for angle in (0.0, 1e-6, 0.3, math.pi / 2, 3.0, math.pi - 1e-6, math.pi):
        a = torch.tensor([2.0, 0.0], dtype=torch.float64)
        b = 5 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert float(angle_between(a, b)) == pytest.approx(angle, abs=1e-15, rel=1e-9)


def problem(n=300, noise=0.0, seed=0):
    x = activations(n, d_model=6, seed=seed, dtype=torch.float32)
    y = x[:, 0] * 1.5 - x[:, 1].abs() + noise * activations(n, d_model=1, seed=seed + 1, dtype=torch.float32)[:, 0]
    return (x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])


def loss(parameters, x, y):
    return (network(x, parameters[::2], parameters[1::2], "relu") - y).square()


def run(noise=0.0, start_seed=0, rows=None, **settings):
    fit, held = rows or problem(noise=noise)
    start = random_parameters((6, 32, 1), torch.Generator().manual_seed(start_seed))
    return train(start, loss, fit, held, **{"lr": 1e-2, "epochs": 40, "batch": 32, **settings})


def test_training_finds_a_planted_function():
    found = run(epochs=100)
    assert found.losses[-1] < 0.1 < 2 < found.losses[0] and len(found.losses) <= 101  # the variance of y is 2.6


def test_training_stops_early_and_keeps_the_best_epoch():
    fit, held = problem(n=60, noise=3.0)
    found = run(rows=(fit, held), epochs=500, patience=7)
    best = min(range(len(found.losses)), key=found.losses.__getitem__)
    assert len(found.losses) == best + 7 + 1 < 501
    again = float(loss(found.parameters, *held).double().mean())
    assert again == pytest.approx(found.losses[best], rel=1e-6)  # float32
    assert found.losses[-1] > found.losses[best]


def test_a_start_that_is_best_is_kept():
    found = run(lr=50.0, epochs=3, patience=3)
    start = random_parameters((6, 32, 1), torch.Generator().manual_seed(0))
    assert min(found.losses) == found.losses[0]
    assert all(torch.equal(x, y) for x, y in zip(found.parameters, start, strict=True))


def test_one_seed_gives_identical_bytes_and_another_does_not():
    first, again, other = (run(seed=s, epochs=3).parameters for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_few_rows_are_seen_more_often():
    assert len(run(epochs=None, published=5, batch=150, lr=1e-5).losses) == LEAST_STEPS + 1
    assert len(run(epochs=None, published=1100, batch=150, lr=1e-6, patience=2000).losses) == 1101


def test_the_warm_up_is_linear():
    """Of the first two steps of Adam, each ±lr in every coordinate where the gradient does not turn."""
    start = (torch.zeros(1),)
    rows = (torch.ones(2, 1),)

    def slope(parameters, x):
        return -(x * parameters[0]).sum(-1)

    ends = [
        float(train(start, slope, rows, rows, lr=0.1, epochs=4, batch=2, warmup=share).parameters[0])
        for share in (0.0, 1.0)
    ]
    assert ends[0] == pytest.approx(0.4, rel=1e-5)
    assert ends[1] == pytest.approx(0.1 * (1 + 2 + 3 + 4) / 4, rel=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_in_every_mode_and_leaves_the_start_alone(mode):
    expected = run(epochs=2).parameters
    with mode():
        inside = run(epochs=2).parameters
    assert all(torch.equal(x, y) for x, y in zip(expected, inside, strict=True))
    assert not any(p.requires_grad or p.is_inference() for p in inside)


def test_wrong_settings_are_refused():
    for wrong in ({"epochs": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least one epoch and one row per batch"):
            run(**wrong)
    with pytest.raises(ValueError, match="the learning rate is too high"):
        run(lr=1e30, epochs=5)


def test_rows_are_held_out_by_pair_and_group_on_both_sides():
    rows = torch.arange(20.0).unsqueeze(1).repeat(1, 3)
    acts = ContrastiveActivations(rows, -rows, paired=True)
    fit, held = held_out(acts, 0.2, 0, "X")
    assert (len(fit.desired), len(held.desired)) == (16, 4)
    assert torch.equal(held.desired, -held.undesired)
    with pytest.raises(ValueError, match=r"X needs rows to fit .* 1 desired and 1 undesired .* Collect more"):
        held_out(ContrastiveActivations(rows[:1], rows[:1]), 0.2, 0, "X")
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            held_out(acts, share, 0, "X")


def test_the_units_of_samples_without_spread_are_one():
    mean, spread = centred(torch.full((4, 3), 2.0))
    assert torch.equal(mean, torch.full((3,), 2.0)) and spread == 1.0
