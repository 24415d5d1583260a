"""RE-Control by its own formulas: the value that is fitted, its gradient, and the ascent."""

import math
from dataclasses import replace

import pytest
import torch
from instances import activations, fitted, planted, without_shape_checks

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import auc
from odesteer_tl.methods import REControl

D = 12


def reward(a: torch.Tensor) -> torch.Tensor:
    """A planted quadratic one, in units of its own."""
    return 100 + 20 * (a[:, 0] - 0.5 * a[:, 1].square() + 0.3 * a[:, 2] * a[:, 3])


def scored(n: int = 800, seed: int = 0) -> ContrastiveActivations:
    """The half of the rows with the larger rewards, and the other half."""
    a = activations(2 * n, d_model=D, seed=seed, dtype=torch.float32)
    order = reward(a).argsort(descending=True)
    a = a[order]
    return ContrastiveActivations(a[:n], a[n:], layer=2, rewards=(reward(a[:n]), reward(a[n:])))


@pytest.fixture(scope="module")
def of_rewards() -> REControl:
    return REControl.fit(scored(), width=64, epochs=150, batch=64)


@pytest.fixture(scope="module")
def of_labels() -> REControl:
    return REControl.fit(replace(scored(), rewards=None), width=64, epochs=60, batch=64)


def test_a_planted_reward_is_recovered_in_its_units(of_rewards):
    unseen = activations(500, d_model=D, seed=5, dtype=torch.float32)
    value, truth = of_rewards.barrier.network.value(unseen), reward(unseen)
    assert of_rewards.trained_on == "rewards" and "trained_on='rewards'" in repr(of_rewards)
    assert float(torch.corrcoef(torch.stack([value, truth]))[0, 1]) >= 0.9
    assert float(1 - (value - truth).square().mean() / truth.var()) >= 0.8  # R²
    h = of_rewards.barrier.value(unseen)
    border = float(scored().rewards[0].min())  # ε parts the two sides there
    right = ((h > 0) == (truth > border)).double().mean()
    assert right > 0.85


def test_without_rewards_the_labels_are_fitted_and_it_says_so(of_labels):
    assert of_labels.trained_on == "labels" and "trained_on='labels'" in repr(of_labels)
    unseen = scored(seed=9)
    assert auc(of_labels.barrier, unseen.desired, unseen.undesired) > 0.9
    assert of_labels.barrier.threshold == 0.0


def test_with_labels_the_constant_is_that_of_a_log_ratio():
    method = REControl.fit(planted(90, 30), epochs=5)
    assert method.barrier.threshold == pytest.approx(math.log(3))


def test_ascent_raises_the_true_reward(of_rewards, of_labels):
    a = activations(100, d_model=D, seed=6, dtype=torch.float32)
    for method in (of_rewards, of_labels):
        way = method.vector_field(a).norm(dim=-1).median()
        gain = reward(method.steer(a, T=float(1 / way))) - reward(a)
        assert float((gain > 0).double().mean()) > 0.95


def test_the_field_is_the_gradient_by_autograd(of_rewards):
    method, a = of_rewards.to(dtype=torch.float64), activations(20, d_model=D)
    expected = torch.func.grad(lambda x: method.barrier.value(x).sum())(a)
    torch.testing.assert_close(method.vector_field(a), expected, rtol=1e-12, atol=1e-12)


def test_steering_is_n_steps_of_plain_gradient_ascent(of_rewards):
    method, a, eta = of_rewards.to(dtype=torch.float64), activations(20, d_model=D), 1e-3
    now = a
    for _ in range(method.steps):
        now = now + eta * torch.func.grad(lambda x: method.barrier.value(x).sum())(now)
    assert method.steps == 30
    torch.testing.assert_close(method.steer(a, T=30 * eta), now, rtol=0, atol=1e-10)
    assert (now - a).norm(dim=-1).min() > 1e-3


def test_the_value_rises_along_a_way_of_small_steps(of_rewards):
    trajectory = of_rewards.trajectory(activations(50, d_model=D), T=0.01)
    assert (trajectory.h.diff(dim=0) > 0).all() and not trajectory.chatters.any()


def test_training_stops_early():
    acts = planted(60, 60)
    noise = ContrastiveActivations(acts.undesired[:30], acts.undesired[30:])  # nothing to be learned
    short, long = (REControl.fit(noise, epochs=n, patience=3) for n in (60, 600))
    assert all(
        torch.equal(x, y) for x, y in zip(short.barrier.network.weights, long.barrier.network.weights, strict=True)
    )


def test_one_seed_gives_identical_bytes_and_another_does_not():
    first, again, other = (REControl.fit(planted(), epochs=3, seed=s).barrier.network.weights for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_rewards_in_other_units_scale_the_value_and_the_time():
    acts = scored(60)
    high, low = acts.rewards
    other = replace(acts, rewards=(8 * high - 3, 8 * low - 3))
    a = activations(5, d_model=D)
    one, two = (REControl.fit(x, epochs=3) for x in (acts, other))
    torch.testing.assert_close(two.vector_field(a), 8 * one.vector_field(a), rtol=1e-4, atol=1e-4)
    assert two.barrier.threshold == pytest.approx(8 * one.barrier.threshold - 3, rel=1e-4)


def test_width_and_number_of_steps_are_what_was_asked_for():
    assert [tuple(w.shape) for w in fitted("recontrol").barrier.network.weights] == [(24, 24), (24, 24), (1, 24)]
    wide = REControl.fit(planted(), width=40, epochs=1, steps=7)
    assert [tuple(w.shape) for w in wide.barrier.network.weights] == [(40, 24), (40, 40), (1, 40)]
    assert wide.steps == 7 and wide.trajectory(activations(2), T=1.0).h.shape == (8, 2)


def test_what_cannot_be_fitted_says_what_to_do():
    acts = planted(30, 30)
    with pytest.raises(ValueError, match=r"REControl needs rows to fit .* 1 desired and 1 undesired"):
        REControl.fit(planted(1, 1))
    rounded = torch.full((30,), 100.1)
    rounded[::3] = torch.nextafter(rounded[0], torch.tensor(torch.inf))  # the same score, computed in two ways
    for bad in (torch.full((30,), 0.7), torch.full((30,), float("nan")), rounded, torch.full((30,), 3)):
        with pytest.raises(ValueError, match=r"finite numbers that are not all the same; pass rewards=None"):
            REControl.fit(replace(acts, rewards=(bad, bad)))
    with pytest.raises(ValueError, match="width of at least 1"):
        REControl.fit(acts, width=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        REControl.fit(acts, steps=0, epochs=1)
    with without_shape_checks(), pytest.raises(ValueError, match="fitted at d_model 24"):
        fitted("recontrol").steer(activations(2, d_model=23), T=1.0)
    with without_shape_checks(), pytest.raises(ValueError, match='trained on "rewards" or "labels"'):
        replace(fitted("recontrol"), trained_on="guesses")
