"""Laws of the regulator's gains: those of the released code, those of a scalar by hand, and best under any change.

`data/reference_lqr.npz`: A [6, 24, 24], K of the released code for q, r, q_f = `weights`, all in float64.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from instances import without_shape_checks

from odesteer_tl.control.conjugate_gradient import answers
from odesteer_tl.control.riccati import gains

with np.load(Path(__file__).parents[1] / "fixtures" / "reference_lqr.npz") as stored:
    A, K, WEIGHTS = (torch.from_numpy(stored[name]) for name in ("A", "K", "weights"))
Q, R, Q_F = WEIGHTS.tolist()


def solved(A, q, r, q_f, controlled=None):
    """Gains and costs-to-go, first layer first; a gain of 0 where there is no control."""
    flags = None if controlled is None else controlled[::-1]
    pairs = list(gains(A.flip(0), q, r, q_f, flags))[::-1]
    return [torch.zeros_like(A[0]) if K is None else K for K, _ in pairs], [S for _, S in pairs]


def cost(A, z, controls, q, r, q_f):
    """The sum as it is defined, over a path that is walked."""
    total = 0.0
    for step, u in zip(A, controls, strict=True):
        total += q * z @ z + r * u @ u
        z = step @ z + u
    return total + q_f * z @ z


def planned(A, z, found):
    """The controls that the gains give along their own path."""
    controls = []
    for step, gain in zip(A, found, strict=True):
        controls.append(-gain @ z)
        z = step @ z + controls[-1]
    return controls


def test_the_gains_are_those_of_the_released_code():
    found, _ = solved(A, Q, R, Q_F)
    assert max(float((mine - theirs).abs().max()) for mine, theirs in zip(found, K, strict=True)) <= 1e-10
    assert float(K.abs().max()) > 1e-2


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e4])
def test_only_the_ratios_of_the_weights_matter(scale):
    one, costs = solved(A, Q, R, Q_F)
    other, scaled = solved(A, scale * Q, scale * R, scale * Q_F)
    for a, b in zip([*one, *(scale * S for S in costs)], [*other, *scaled], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("controlled", [[True] * 6, [True, False, False, True, True, False]], ids=str)
def test_no_other_controls_cost_less(controlled):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(24, generator=generator, dtype=torch.float64)
    found, costs = solved(A, Q, R, Q_F, controlled)
    controls = planned(A, z, found)
    best = cost(A, z, controls, Q, R, Q_F)
    assert float(best) == pytest.approx(float(z @ costs[0] @ z), rel=1e-10)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            moved = [
                u + acts * size * torch.randn(24, generator=generator, dtype=torch.float64)
                for u, acts in zip(controls, controlled, strict=True)
            ]
            assert cost(A, z, moved, Q, R, Q_F) > best
    nothing = cost(A, z, [torch.zeros_like(z)] * 6, Q, R, Q_F)
    assert best < 0.999 * nothing


def test_of_a_scalar_by_hand():
    """One step from the end: k = q_f a/(q_f + r). Far from it: s = q + a²rs/(s + r), a quadratic equation in s."""
    a, q, r, q_f = 1.3, 0.4, 2.0, 0.7
    found, costs = solved(torch.full((300, 1, 1), a, dtype=torch.float64), q, r, q_f)
    assert float(found[-1]) == pytest.approx(q_f * a / (q_f + r), rel=1e-14)
    assert float(costs[-1]) == pytest.approx(q + a * a * q_f * r / (q_f + r), rel=1e-14)
    b = r * (1 - a * a) - q
    s = (-b + (b * b + 4 * q * r) ** 0.5) / 2
    assert float(costs[0]) == pytest.approx(s, rel=1e-12)
    assert float(found[0]) == pytest.approx(s * a / (s + r), rel=1e-12)


def test_the_error_of_linear_blocks_is_carried_by_the_closed_loop():
    """Blocks A_k, a reference that they carry, u = −K(z − z'): δz_k = Φ(k, 0) δz_0, and it shrinks."""
    generator = torch.Generator().manual_seed(1)
    z, reference = torch.randn(2, 24, generator=generator, dtype=torch.float64)
    found, _ = solved(A, 10.0, 1.0, 10.0)
    start, transition = z - reference, torch.eye(24, dtype=torch.float64)
    for step, gain in zip(A, found, strict=True):
        z, reference = step @ z - gain @ (z - reference), step @ reference
        transition = (step - gain) @ transition
        torch.testing.assert_close(z - reference, transition @ start, rtol=1e-10, atol=1e-12)
    assert (z - reference).norm() < 0.01 * start.norm()


def test_costs_to_go_are_symmetric_and_in_float64_whatever_is_given():
    found, costs = solved(A.float(), Q, R, Q_F)
    assert all(torch.equal(S, S.T) and S.dtype == torch.float64 for S in costs)
    assert all(gain.dtype == torch.float64 for gain in found)


def test_each_jacobian_is_asked_for_in_its_turn():
    asked = []

    def one_by_one():
        for number in range(3):
            asked.append(number)
            yield A[number]

    solving = gains(one_by_one(), Q, R, Q_F)
    for number in range(3):
        next(solving)
        assert asked == list(range(number + 1))


@pytest.mark.parametrize("at", [[0, 1, 2, 3, 4, 5], [0, 2, 3], [0]], ids=str)
@pytest.mark.parametrize("features", [1, 3])
def test_conjugate_gradients_find_the_same_answers(at, features):
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(len(at), features, 24, generator=generator, dtype=torch.float64)
    v[0, 0] = 0  # as where the means do not differ
    calls = []

    def product(matrices):
        def of(number, rows):
            calls.append(len(rows))
            return rows @ matrices[number].T

        return of

    mine = answers(product(A), product(A.mT), v, at, 6, Q, R, 7 * Q_F, tol=1e-8)
    found, _ = solved(A, Q, R, 7 * Q_F, [number in at for number in range(6)])
    for number, layer in enumerate(at):
        expected = v[number] @ found[layer].T
        assert (mine[number] - expected).norm() <= 1e-6 * max(float(expected.norm()), 1e-300)
    assert not mine[0, 0].any() and min(calls) >= 1


def test_too_few_steps_are_told_of():
    v = torch.ones(1, 1, 24, dtype=torch.float64)
    with pytest.warns(UserWarning, match="pass a larger r"):
        answers(lambda n, x: x @ A[n].T, lambda n, x: x @ A[n], v, [0], 6, 100.0, 1e-3, 1.0, max_iter=2)


@pytest.mark.parametrize("weights", [(0.0, 1, 1), (1, -1, 1), (1, 1, float("inf")), (1, 1, float("nan")), (True, 1, 1)])
def test_weights_that_are_not_positive_are_refused(weights):
    with without_shape_checks(), pytest.raises(ValueError, match="a weight of the cost, a positive number"):
        list(gains(A, *weights))
