"""TruthFlow by its own formulas: the U-Net, the flow, the projection, and what a fit recovers of what was planted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from instances import activations, planted, with_queries, without_shape_checks
from torchdiffeq import odeint

import odesteer_tl as ot
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.networks import train
from odesteer_tl.methods import truth_flow
from odesteer_tl.methods.truth_flow import TruthFlow
from odesteer_tl.portable.unet import sampled, time_features, unet, velocity
from odesteer_tl.remote.payloads import tensor_bytes

D = 32


def asked(queries: torch.Tensor, corrections: torch.Tensor, seed: int = 4) -> ContrastiveActivations:
    """Pairs that differ by the corrections: undesired answers are noise."""
    undesired = activations(len(queries), d_model=queries.shape[1], seed=seed, dtype=torch.float32)
    return ContrastiveActivations(undesired + corrections, undesired, layer=2, paired=True, queries=queries)


def two_kinds(n: int = 300, seed: int = 0, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries about two centres, of norm about 200; each kind has a correction of its own, of norm about 6."""
    centre, other, right, wrong = activations(4, d_model=D, seed=30, dtype=torch.float32)
    kind = (torch.arange(n) % 3 == 0).float().unsqueeze(1)
    spread = activations(n, d_model=D, seed=100 + seed, dtype=torch.float32)
    queries = 30 * centre + 15 * kind * other + 5 * spread
    extra = noise * activations(n, d_model=D, seed=200 + seed, dtype=torch.float32)
    return queries, kind * right + (1 - kind) * wrong + extra


def linear(n: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x₁ = A x₀ + b: queries with 5 latent numbers in a noise of 0.3, and A that reads those numbers, of rank 5."""
    latent = activations(n, d_model=5, seed=300 + seed, dtype=torch.float32)
    noise = 0.3 * activations(n, d_model=D, seed=400 + seed, dtype=torch.float32)
    into, out = activations(2, 5, d_model=D, seed=31, dtype=torch.float32)
    queries = latent @ into + noise
    return 10 * queries, queries @ torch.linalg.pinv(into) @ out / 5**0.5 + activations(d_model=D, seed=32).float()


def gap(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got - truth).norm() / truth.norm())


@pytest.fixture(scope="module")
def kinds() -> TruthFlow:
    return TruthFlow.fit(asked(*two_kinds()))


@pytest.fixture(scope="module")
def brief() -> TruthFlow:
    """Trained for little: enough for what holds of any numbers."""
    return TruthFlow.fit(asked(*two_kinds(60, noise=0.5)), rank=4, epochs=30, lr=3e-3)


def in_float64(method: TruthFlow) -> TruthFlow:
    return method.to(dtype=torch.float64)


def test_two_kinds_of_queries_get_their_two_corrections(kinds):
    unseen, truth = two_kinds(seed=1)
    mean = two_kinds()[1].mean(0)
    assert gap(kinds.vector(unseen), truth) < 0.03 < 0.5 < gap(mean, truth)
    assert kinds.vector(unseen[0]).shape == (D,)
    assert gap(kinds.vector(unseen[:6].reshape(2, 3, D)), truth[:6].reshape(2, 3, D)) < 0.03


def test_a_linear_map_of_the_query_is_recovered():
    method = TruthFlow.fit(asked(*linear()), rank=6)
    unseen, truth = linear(seed=1)
    assert gap(method.vector(unseen), truth) < 0.15 < 0.5 < gap(linear()[1].mean(0), truth)


def test_what_corrections_do_not_share_with_their_queries_stays_small():
    """Noise as long as the signal: a rectified flow does not average it away, and is still nearer than the mean."""
    method = TruthFlow.fit(asked(*two_kinds(noise=0.7)), rank=2)
    unseen, truth = two_kinds(seed=1)
    assert gap(method.vector(unseen), truth) < 0.3 < 0.5 < gap(two_kinds()[1].mean(0), truth)


def test_one_correction_for_all_is_recovered_at_rank_1():
    queries = two_kinds(40)[0]
    constant = torch.arange(1.0, D + 1).repeat(40, 1)
    exact = asked(torch.zeros_like(queries), constant)
    exact = replace(exact, desired=constant, undesired=torch.zeros_like(constant), queries=queries)
    rounded = asked(queries, constant + 1e-3)
    for acts in (exact, rounded):
        method = TruthFlow.fit(acts, rank=1, epochs=2)
        assert gap(method.vector(two_kinds(seed=1)[0]), constant[:1] + 1e-3 * (acts is rounded)) < 1e-4
    assert TruthFlow.fit(exact, rank=1, epochs=2).unit == 0.0


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_vectors_lie_in_the_span_of_the_first_right_singular_vectors(rank):
    queries, corrections = two_kinds(50, noise=1.0)
    acts = asked(queries, corrections)
    method = in_float64(TruthFlow.fit(acts, rank=rank, epochs=2))
    stacked = (acts.desired - acts.undesired).double().numpy()
    top = torch.from_numpy(np.linalg.svd(stacked)[2][:rank])  # not centred
    queries = two_kinds(seed=1)[0].double()
    assert gap(method.basis @ method.basis.T, top.T @ top) < 1e-6  # the basis is kept in float32
    assert (method.basis.T @ method.basis - torch.eye(rank)).abs().max() < 1e-6
    numbers = method._params[:-1]
    assert gap(method.vector(queries), sampled(queries, *numbers) @ top.T @ top) < 1e-6
    if rank < 20:
        assert gap(method.vector(queries), sampled(queries, *numbers)) > 0.01


@pytest.mark.parametrize(("pairs", "width", "expected"), [(40, D, 20), (12, D, 12), (40, 9, 9), (6, 9, 6)])
def test_the_rank_is_20_or_as_many_as_the_corrections_can_have(pairs, width, expected):
    queries, corrections = (side[:, :width] for side in two_kinds(pairs, noise=1.0))
    basis = TruthFlow.fit(asked(queries, corrections), epochs=1).basis
    assert basis.shape == (width, expected)
    assert (basis.T @ basis - torch.eye(expected)).abs().max() < 1e-5


class Block(torch.nn.Module):
    """A linear layer and a residual block behind it, which hears of the time."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.into = torch.nn.Linear(inputs, outputs)
        self.time = torch.nn.Linear(128, outputs, bias=False)
        self.inner = torch.nn.Linear(outputs, outputs)

    def forward(self, x, tau, skip=0):
        y = self.into(x) + skip
        return y + self.inner(torch.nn.SiLU()(y + self.time(tau)))


class Reference(torch.nn.Module):
    """The U-Net as modules; `parameters()` come in the order of the flat layers."""

    def __init__(self, d):
        super().__init__()
        w = [d] + [max(16, d // 2**k) for k in (1, 2, 3, 4)]
        self.embed = torch.nn.Linear(128, 128)
        self.down = torch.nn.ModuleList([Block(w[k], w[k + 1]) for k in range(4)])
        self.up = torch.nn.ModuleList([Block(w[k + 1], w[k]) for k in (3, 2, 1)])
        self.out, self.gate = torch.nn.Linear(w[1], d), torch.nn.Linear(128, d)

    def forward(self, z, t):
        waves = torch.outer(t, torch.from_numpy(np.geomspace(1, 100, 64)))
        tau = torch.nn.SiLU()(self.embed(torch.hstack([waves.sin(), waves.cos()])))
        one = self.down[0](z, tau)
        two = self.down[1](one, tau)
        three = self.down[2](two, tau)
        x = self.up[0](self.down[3](three, tau), tau, three)
        x = self.up[2](self.up[1](x, tau, two), tau, one)
        return self.out(x) + self.gate(tau) * z


@pytest.mark.parametrize("d", [24, 400])
def test_the_unet_is_that_of_the_modules_of_torch(d):
    reference = Reference(d).double()
    for i, p in enumerate(reference.parameters()):
        p.data = 0.3 * activations(*p.shape[:-1], d_model=p.shape[-1], seed=i) / p.shape[-1] ** 0.5
    layers = tuple(p.detach() for p in reference.parameters())
    z, t = activations(7, d_model=d), torch.linspace(0, 1, 7, dtype=torch.float64)
    expected = reference(z, t)
    assert (unet(z, t, layers) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (unet(z, 1 - t, layers) - expected).abs().max() > 1e-4  # the time is heard of
    assert (unet(z.reshape(7, 1, d), t.reshape(7, 1), layers).squeeze(1) - expected).abs().max() < 1e-12
    assert time_features(t, 128).shape == (7, 128)


def test_the_fitted_layers_are_those_of_the_modules_in_two_bytes_a_number(brief):
    shapes = [tuple(p.shape) for p in brief.layers]
    assert shapes == [tuple(p.shape) for p in Reference(D).parameters()]
    assert len({p.dtype for p in brief.layers}) == 1 and brief.layers[0].dtype == torch.bfloat16
    assert tensor_bytes(brief.portable().parts) < 2.2 * sum(p.numel() for p in brief.layers)


def test_sampling_is_the_midpoint_rule_on_sixteen_points(brief):
    method, queries = in_float64(brief), two_kinds(20, seed=1)[0].double()
    z = (queries - method.source) / method.scale
    points = torch.linspace(0, 1, 16, dtype=torch.float64)

    def field(t, now):
        return unet(now, t.expand(len(now)), method.layers)

    ends: Any = odeint(field, z, points, method="midpoint", options={"step_size": 1 / 15})
    expected = method.target + method.unit * ends[-1]
    got = sampled(queries, *method._params[:-1])
    assert gap(got, expected) < 1e-10  # float64
    coarse: Any = odeint(field, z, points[[0, -1]], method="midpoint", options={"step_size": 1 / 14})
    assert gap(got, method.target + method.unit * coarse[-1]) > 1e-7
    assert gap(method.vector(queries), expected @ method.basis @ method.basis.T) < 1e-10
    now = velocity(torch.cat([z, torch.full((20, 1), 0.25)], 1), method.layers)
    assert torch.equal(now[:, -1], torch.ones(20, dtype=torch.float64))
    assert gap(now[:, :-1], unet(z, torch.full((20,), 0.25, dtype=torch.float64), method.layers)) < 1e-12


def test_the_flow_is_better_than_none_on_unseen_pairs(kinds):
    """The loss of the training, with times of this test, against that of the start, u = 0."""
    method, (queries, corrections) = in_float64(kinds), two_kinds(seed=1)
    z0 = (queries.double() - method.source) / method.scale
    z1 = (corrections.double() - method.target) / method.unit
    t = torch.rand(len(z0), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    way = z1 - z0
    loss = (unet(z0 + t.unsqueeze(1) * way, t, method.layers) - way).square().mean()
    assert float(loss) < 0.05 < 1.5 < float(way.square().mean())


def test_one_seed_gives_identical_bytes_and_another_does_not():
    acts, state = asked(*two_kinds(40)), torch.get_rng_state()
    first, again, other = (TruthFlow.fit(acts, rank=4, epochs=3, seed=s).layers for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_the_times_are_drawn_anew_for_every_batch_and_the_rate_falls_along_a_cosine():
    """Adam's first steps on a slope of 1 are the learning rate; the start moves by their sum."""
    seen: list[torch.Tensor] = []

    def slope(parameters, x, t):
        if torch.is_grad_enabled():
            seen.append(t)
        return x[:, 0] * -parameters[0] + 0 * t

    start, rows = (torch.zeros(1),), (torch.ones(4, 1),)
    held_rows = (torch.ones(4, 1), torch.full((4,), 0.5))
    settings = {"lr": 0.1, "epochs": 3, "batch": 2, "warmup": 1 / 3, "ending": 0.7, "timed": True}
    found = train(start, slope, rows, held_rows, **settings)
    rates = [0.05, 0.1, *(0.1 * (0.85 + 0.15 * math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4))]
    assert float(found.parameters[0]) == pytest.approx(sum(rates), rel=1e-5)
    times = torch.cat(seen)
    assert len(times) == len(times.unique()) == 12 and 0 <= times.min() and times.max() < 1
    train(start, slope, rows, held_rows, **settings)
    assert torch.equal(torch.cat(seen[6:]), times)


def test_a_held_out_pair_is_looked_at_four_times_over_the_whole_way(monkeypatch):
    seen: list[Any] = []

    def spy(start, loss, rows, held_rows, **settings):
        seen.extend((rows, held_rows))
        return train(start, loss, rows, held_rows, **settings)

    monkeypatch.setattr(truth_flow, "train", spy)
    TruthFlow.fit(asked(*two_kinds(40)), rank=4, epochs=1)
    (z0, z1), (held0, held1, t) = seen
    assert len(z0) == len(z1) == 36 and len(held0) == len(held1) == 16
    torch.testing.assert_close(t, (torch.arange(16) + 0.5) / 16)
    for i in range(4):
        assert torch.equal(held0[i::4], held0[i].repeat(4, 1)) and torch.equal(held1[i::4], held1[i].repeat(4, 1))
    for z in (z0, z1):  # of unit size about their mean
        assert z.mean(0).abs().max() < 1e-5 and float(z.square().mean()) == pytest.approx(1, rel=1e-5)


def test_steering_adds_the_vector_of_each_activation(brief):
    method, a = brief, two_kinds(6, seed=1)[0].double()
    vectors = method.vector(a)
    torch.testing.assert_close(method.steer(a, T=1.5), a + 1.5 * vectors, rtol=0, atol=1e-12)
    assert method.steer(a, T=0) is a and torch.equal(method.vector_field(a), vectors)
    T = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, 1.5])
    torch.testing.assert_close(method.steer(a, T=T), a + T.unsqueeze(1) * vectors, rtol=0, atol=1e-12)
    expected = a + 0.1 * a.norm(dim=1, keepdim=True) * vectors
    torch.testing.assert_close(method.steer(a, relative_T=0.1), expected, rtol=0, atol=1e-10)
    trajectory = method.trajectory(a, T=T)
    assert trajectory.h is None and torch.equal(trajectory.activations[0], a)
    torch.testing.assert_close(trajectory.activations[1], method.steer(a, T=T), rtol=0, atol=1e-12)
    assert method.barrier is None and method.speed is None and method.layer == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_an_activation_is_kept(brief, dtype):
    a = two_kinds(5, seed=1)[0].to(dtype)
    for got in (brief.vector(a), brief.steer(a, T=1.5)):
        assert got.dtype == dtype and got.shape == a.shape and bool(torch.isfinite(got).all())
    exact = brief.vector(a.double())
    assert gap(brief.vector(a).double(), exact) < max(2 * torch.finfo(dtype).eps, 1e-12)


def test_the_fit_takes_any_float_type_and_scale():
    queries, corrections = two_kinds(40)
    acts = asked(queries, corrections)
    sides = {name: 64 * getattr(acts, name).double() for name in ("desired", "undesired", "queries")}
    one, two = (TruthFlow.fit(x, rank=4, epochs=3) for x in (acts, replace(acts, **sides)))
    assert two.source.dtype == torch.float32 == two.basis.dtype
    # Other units, the same method: a power of two does not round, but for the sums of the spreads.
    assert gap(two.vector(64 * queries) / 64, one.vector(queries)) < 1e-3


def test_gradients_flow_through_the_query(brief):
    a, u, eps = two_kinds(3, seed=1)[0].double(), activations(3, d_model=D), 1e-5
    end, slope = torch.func.jvp(lambda x: brief.steer(x, T=1.5), (a,), (u,))[:2]
    expected = (brief.steer(a + eps * u, T=1.5) - brief.steer(a - eps * u, T=1.5)) / (2 * eps)
    assert torch.equal(end, brief.steer(a, T=1.5)) and gap(slope, expected) < 1e-7
    a.requires_grad_()
    brief.vector(a).sum().backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 0


def test_what_cannot_be_fitted_says_what_to_do():
    queries, corrections = two_kinds(40)
    acts = asked(queries, corrections)
    with pytest.raises(
        ValueError, match=r"fitted to pairs with their queries, and these are not paired: .* paired=True"
    ):
        TruthFlow.fit(planted(40, 40))
    with pytest.raises(ValueError, match=r"these carry no queries: .* queries=\[n_pairs, d_model\]"):
        TruthFlow.fit(replace(acts, queries=None))
    bad = queries.clone()
    bad[3, 0] = float("nan")
    with pytest.raises(ValueError, match="queries hold NaN or inf in 1 of 40 rows"):
        TruthFlow.fit(replace(acts, queries=bad))
    with pytest.raises(ValueError, match=r"TruthFlow needs rows to fit .* 3 desired and 3 undesired"):
        TruthFlow.fit(asked(*two_kinds(3)), rank=1)
    for rank, pairs, most in ((0, 40, D), (D + 1, 40, D), (20, 12, 12)):
        with pytest.raises(ValueError, match=rf"rank is from 1 to min\(pairs, d_model\) = {most}, got {rank}"):
            TruthFlow.fit(asked(*two_kinds(pairs)), rank=rank)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        replace(TruthFlow.fit(acts, epochs=1), steps=0)


def test_another_width_is_refused(brief):
    for act in (brief.vector, lambda a: brief.steer(a, T=1.0), lambda a: brief.trajectory(a, T=1.0)):
        with without_shape_checks(), pytest.raises(ValueError, match=f"fitted at d_model {D}"):
            act(activations(2, d_model=D - 1))


def test_a_reloaded_flow_steers_bit_for_bit(tmp_path):
    method = ot.TruthFlow.fit(with_queries(), epochs=2)
    ot.save(method, tmp_path / "flow")
    again, a = ot.load(tmp_path / "flow"), activations(4, dtype=torch.float32)
    assert again.basis.stride() == method.basis.stride()
    assert torch.equal(again.steer(a, T=1.0), method.steer(a, T=1.0))
