"""Laws of the diagnostics of closed loops: what is watched is what the model shows, similarities and errors of known
matrices and blocks, and the bound, which holds in real forward passes and can fail without its last term."""

from dataclasses import replace

import pytest
import torch
from instances import without_shape_checks
from models import BACKENDS, load
from oracle import TOLERANCE

import odesteer_tl as ot
from odesteer_tl.backends.jacobians import BlockMap, block_maps, mean_jacobians
from odesteer_tl.control import Tracking, local_linearity, set_point_tracking, similarity, tracking_bound
from odesteer_tl.control.diagnostics.bound import bound_of, jacobians_of
from odesteer_tl.control.diagnostics.linearity import _errors
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

RANDOM = ["llama", "gpt2"]
FIT = {"q": 1.0, "r": 0.1, "q_f": 1.0, "n_jacobians": 2, "keep_gains": True, "progress": False}


@pytest.fixture(scope="module", params=[(kind, family) for kind in BACKENDS for family in RANDOM], ids="-".join)
def loaded(request):
    return *request.param, load(*request.param)


@pytest.fixture(scope="module", params=RANDOM)
def fitted(request):
    model = load("bridge", request.param)
    return model, ot.ALQR.fit(model, *oracle.texts(), **FIT)


@pytest.mark.parametrize("name", ["A-LQR", "S-PID"])
def test_what_is_watched_is_what_the_model_shows(loaded, name):
    """Open and closed, at what enters blocks and at what the loop wrote, texts of unequal lengths in one batch: as each
    alone, and as TransformerLens's own cache shows it. The rules in turn: every two of library, model, loop and rule
    meet."""
    kind, family, model = loaded
    rule = ("decoding", "all")[(BACKENDS.index(kind) + RANDOM.index(family) + (name == "S-PID")) % 2]
    method = parity_rows()[name](family)
    sites = [ot.Site(0, "resid_pre"), ot.Site(2, "resid_pre"), ot.Site(1), ot.Site(2)]
    texts = ["the film is good", "a plot", "it was never slow"]
    for T in (None, 1.7):
        steered = () if T is None else (method, T)
        found = recorded(model, texts, sites, *steered, positions=rule)
        assert found.shape == (4, 3, 32)
        torch.testing.assert_close(found[1], found[2])  # what leaves a block enters the next
        alone = torch.cat([recorded(model, text, sites, *steered, positions=rule) for text in texts], dim=1)
        torch.testing.assert_close(found, alone, atol=TOLERANCE, rtol=1e-4)
        if kind != "nnsight":
            names = [site.hook_name for site in sites]
            for n, text in enumerate(texts):
                tokens = model.to_tokens(text)
                if T is None:
                    cached = model.run_with_cache(tokens, names_filter=names)[1]
                else:
                    with ot.steering(model, method, T, positions=rule):
                        cached = model.run_with_cache(tokens, names_filter=names)[1]
                expected = torch.stack([cached[each][0, -1] for each in names])
                torch.testing.assert_close(found[:, n], expected, atol=TOLERANCE, rtol=1e-4)
    assert (found - recorded(model, texts, sites)).abs()[1:].max() > 0.1


def test_tracking_is_the_projection_of_what_enters_each_block(fitted):
    model, method = fitted
    _, undesired = oracle.texts()
    found = set_point_tracking(model, method, undesired[:9], 2.0)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 1, 2)]
    plain = model.run_with_cache(undesired[:9], names_filter=names)[1]
    for n, name in enumerate(names):
        expected = plain[name][:, -1] @ method.directions[n].T
        torch.testing.assert_close(found.open[n], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.goals, 2 * method.set_points)
    torch.testing.assert_close(found.closed[0], found.open[0])  # nobody has touched what enters the first block
    before, after = found.errors
    assert (after[1:] < before[1:]).all()
    gap = (found.closed[1] - 2 * method.set_points[1]).abs()
    assert float(after[1, 0]) == pytest.approx(float(gap.mean()))
    none = set_point_tracking(model, replace(method, answers=0 * method.answers), undesired[:9], 2.0)
    torch.testing.assert_close(none.closed, none.open)
    lines = found.table().splitlines()
    assert len(lines) == 4 and [float(x) for x in lines[2].split()[:2]] == [1, 0]


def test_errors_of_tracking_are_means_of_distances():
    goals = torch.tensor([[1.0, -1.0]])
    beta = torch.tensor([[[0.0, 0.0], [3.0, -1.0]]])
    found = Tracking((4,), goals, beta, goals.expand(1, 2, 2))
    assert found.errors[0].tolist() == [[1.5, 0.5]] and found.errors[1].tolist() == [[0.0, 0.0]]
    assert [line.split()[:2] for line in found.table().splitlines()[1:]] == [["4", "0"], ["4", "1"]]


def test_similarity_of_known_matrices():
    generator = torch.Generator().manual_seed(0)
    W, X, G = torch.randn(3, 40, 40, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(G)[0]
    for modes in (None, 1, 7, 40):
        assert similarity(W, W, modes) == pytest.approx(1, abs=1e-12)
        assert similarity(W, -3 * W, modes) == pytest.approx(1, abs=1e-12)  # neither size nor sign
        assert similarity(W, W @ Q, modes) == pytest.approx(1, abs=1e-12)  # what comes out, whatever came in
        between = similarity(W, X, modes)
        assert 0 <= between < 0.95
        assert between == pytest.approx(similarity(X, W, modes), abs=1e-12)
        assert between == pytest.approx(similarity(Q @ W, Q @ X, modes), abs=1e-12)
    left, right = torch.diag(torch.tensor([1.0] * 20 + [0.0] * 20)), torch.diag(torch.tensor([0.0] * 20 + [1.0] * 20))
    assert similarity(left, right, 5) == pytest.approx(0, abs=1e-12) and similarity(left, 0 * left) == 0.0
    by_hand = torch.diag(torch.tensor([2.0, 1.0, 0.0])), torch.diag(torch.tensor([2.0, 0.0, 1.0]))
    assert similarity(*by_hand, 2) == pytest.approx(4 / 5)  # 2·2 over √5·√5
    for wrong in (0, 41):
        with pytest.raises(ValueError, match="from 1 to d_model, 40"):
            similarity(W, X, wrong)


def test_linearity_of_a_model_is_that_of_its_jacobians(loaded):
    _, _, model = loaded
    prompts = torch.tensor([[1, 5, 6, 7], [1, 8, 4, 9], [3, 9, 9, 2]])
    found = local_linearity(model, prompts, [2, 0], modes=5, radii=(1e-3, 1.0), chunk=7)
    assert found.layers == (2, 0)
    for n, layer in enumerate(found.layers):
        J = [next(mean_jacobians(model, [row.unsqueeze(0)], [layer])) for row in prompts]
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected = sum(similarity(J[a], J[b], 5) for a, b in pairs) / 3
        own = sum(similarity(J[a] - torch.eye(32), J[b] - torch.eye(32), 5) for a, b in pairs) / 3
        assert float(found.similarity[n]) == pytest.approx(expected, abs=1e-4)
        assert float(found.own_similarity[n]) == pytest.approx(own, abs=1e-4)
    assert (found.own_error[:, 0] < 0.05).all() and (found.own_error[:, 0] < found.own_error[:, 1]).all()
    assert (found.own_error[:, 0] < found.mean_error[:, 0]).all()
    assert len(found.table().splitlines()) == 3


def test_the_error_of_a_linear_map_is_none_and_of_a_square_as_by_hand():
    class Square(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states + hidden_states**2

    x = torch.full((1, 2, 4), 1.0, dtype=torch.float64)
    block = BlockMap(Square(), ((x,), {}))
    J, unit = block.vjp(torch.eye(4, dtype=torch.float64)), torch.eye(4, dtype=torch.float64)[:2]
    found = _errors(block, unit, (0.01, 0.5), J)
    # with ‖z‖ = 2 and one coordinate moved by s: (1 + s) + (1 + s)² − 2 = 3s + s², of which s² is not linear
    assert found == pytest.approx([s / (3 + s) for s in (0.02, 1.0)])
    straight = torch.nn.Linear(4, 4).double()
    flat = BlockMap(straight, ((x,), {}))
    assert max(_errors(flat, unit, (0.01, 10.0), straight.weight)) < 1e-12


def test_the_jacobians_of_a_fit_are_found_again_from_its_gains(fitted):
    model, method = fitted
    desired, _ = oracle.texts()
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:2].sort()[0]
    expected = torch.stack(list(mean_jacobians(model, [desired[i : i + 1] for i in chosen.tolist()], [0, 1, 2])))
    torch.testing.assert_close(jacobians_of(method), expected.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("T", [1.0, 3.0, -2.0])
def test_the_bound_holds_in_real_forward_passes_and_without_its_last_term_it_fails(fitted, T):
    model, method = fitted
    _, undesired = oracle.texts()
    found = tracking_bound(model, method, undesired[:12], T)
    assert found.layers == (0, 1, 2) and found.errors.shape == (3, 12)
    assert (found.errors <= found.bound * (1 + 1e-5)).all()
    torch.testing.assert_close(found.bound[0], found.errors[0])  # at the start there is nothing to bound
    if T < 0:  # with other T it depends on the model
        assert (found.errors > found.published * 1.01).any()
    assert (found.drift[1:] > 0).all() and (found.curvature[1:] > 0).all()
    assert f"{int((found.errors[2] > found.published[2] * (1 + 1e-5)).sum())} of 12" in found.table().splitlines()[-1]


def test_the_parts_of_the_error_are_those_of_the_pass(fitted):
    """δz_{k+1} = Â δz_k + r_k + d_k, with the states that hooks show, and z_{k+1} = φ_k(z_k) + u_k."""
    model, method = fitted
    _, undesired = oracle.texts()
    one = undesired[:1]
    names = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 1, 2)]
    with ot.steering(model, method, 2.0):
        cached = model.run_with_cache(one, names_filter=names)[1]
    z = torch.stack([cached[name][0, -1] for name in names])
    v, w = method.directions[:, 0], method.answers[:, 0]
    alpha = 2.0 * method.set_points[:, 0] - (z * v).sum(1)
    maps, A = block_maps(model, one, [0, 1]), jacobians_of(method).float()
    aims = z + alpha.unsqueeze(1) * v
    errors, residuals, drifts = z - aims, [], []
    for k, block in enumerate(maps):
        with torch.no_grad():
            here, there = block(torch.stack([z[k], aims[k]]))
        torch.testing.assert_close(z[k + 1], here + alpha[k] * w[k], atol=1e-4, rtol=1e-4)
        residuals.append(here - there - A[k] @ errors[k])
        drifts.append(there - aims[k + 1])
        closed = A[k] - method.gains[k]
        torch.testing.assert_close(errors[k + 1], closed @ errors[k] + residuals[k] + drifts[k], atol=1e-3, rtol=1e-3)
    parts = [torch.stack(each).unsqueeze(1).double() for each in (residuals, drifts)]
    expected = bound_of((A - method.gains)[:-1].double(), errors.unsqueeze(1).double(), *parts)
    found = tracking_bound(model, method, one, 2.0)
    for mine, theirs in zip((found.errors, found.start, found.curvature, found.drift), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-2)


def test_at_the_last_block_alone_the_error_is_its_own_bound_and_inference_mode_changes_nothing(fitted):
    model, _ = fitted
    texts = oracle.texts()
    last = ot.ALQR.fit(model, *texts, layers=[2], **FIT)
    with torch.inference_mode():
        again = ot.ALQR.fit(model, *texts, layers=[2], **FIT)
        found = tracking_bound(model, again, texts[1][:2])
        assert local_linearity(model, texts[1][:2], [0], radii=(0.1,)).own_error.isfinite().all()
    assert torch.equal(again.answers, last.answers)
    assert found.errors.shape == (1, 2) and torch.equal(found.bound, found.errors)


def test_the_bound_of_linear_blocks():
    """A reference that obeys the dynamics has no drift, and the first term alone bounds; one that does not has
    d = A z' − z'₊, and only with it the bound holds."""
    generator = torch.Generator().manual_seed(3)
    A = 0.3 * torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    K = 0.5 * A
    z, aim = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(4, 1, 6, dtype=torch.float64)
    states, aims = [z], [aim]
    for step, gain in zip(A, K, strict=True):
        states.append(step @ states[-1] - gain @ (states[-1] - aims[-1]))
        aims.append(step @ aims[-1])
    errors = torch.stack([a - b for a, b in zip(states, aims, strict=True)]).unsqueeze(1)
    sizes, start, curvature, drift = bound_of(A - K, errors, nothing, nothing)
    assert (sizes <= start * (1 + 1e-12)).all() and not curvature.any() and not drift.any()
    weights = torch.eye(6, dtype=torch.float64)
    for step in reversed(A - K):
        weights = step.T @ weights @ step + torch.eye(6, dtype=torch.float64)
    assert float(sizes[0]) == pytest.approx(float((errors[0, 0] @ weights @ errors[0, 0]).sqrt()))
    states, aims = [z], [aim]
    for step, gain in zip(A, K, strict=True):
        states.append(step @ states[-1] - gain @ (states[-1] - aims[-1]))
        aims.append(states[-1] + 2.0)  # taken anew
    errors = torch.stack([a - b for a, b in zip(states, aims, strict=True)]).unsqueeze(1)
    drifts = torch.stack([step @ aims[k] - aims[k + 1] for k, step in enumerate(A)]).unsqueeze(1)
    sizes, start, curvature, drift = bound_of(A - K, errors, nothing, drifts)
    assert (sizes <= (start + curvature + drift) * (1 + 1e-12)).all() and (sizes > start + curvature)[1:].any()


def test_what_cannot_be_diagnosed_is_refused(fitted):
    model, method = fitted
    texts = oracle.texts()[1][:2]
    two = replace(
        method,
        **{name: torch.cat([getattr(method, name)] * 2, 1) for name in ("directions", "answers", "set_points")},
    )
    some = replace(
        method,
        layers=(0, 1),
        **{name: getattr(method, name)[:2] for name in ("directions", "answers", "set_points", "gains")},
    )
    for wrong, said in ((replace(method, gains=None), "keep_gains=True"), (two, "one feature"), (some, "every block")):
        with pytest.raises(ValueError, match=said):
            tracking_bound(model, wrong, texts)
    with without_shape_checks():
        with pytest.raises(ValueError, match="takes one number T for all texts; got a Tensor"):
            set_point_tracking(model, method, texts, torch.tensor([1.0, 2.0]))
        with pytest.raises(ValueError, match=r"such as \[2\], or None"):
            local_linearity(model, texts, 2)
        with pytest.raises(ValueError, match="for A-LQR only; got a SPID"):
            tracking_bound(model, parity_rows()["S-PID"]("gpt2"), texts)
        with pytest.raises(ValueError, match="takes closed loops, ALQR or SPID; got a CAA"):
            set_point_tracking(model, parity_rows()["CAA"]("gpt2"), texts)
        with pytest.raises(ValueError, match='positions="decoding" or "all", got slice'):
            set_point_tracking(model, method, texts, positions=slice(0, 2))
        with pytest.raises(ValueError, match="one shape"):
            similarity(torch.eye(4), torch.eye(5))
        for options, said in (
            ({"radii": ()}, "positive radii"),
            ({"radii": (0.0,)}, "positive"),
            ({"radii": (float("nan"),)}, "positive"),
            ({"layers": [-1]}, "does not exist"),
            ({"layers": [9]}, "does not exist"),
            ({"layers": []}, "layers must be at least 1"),
            ({"directions": 0}, "directions must be at least 1"),
            ({"chunk": 0}, "chunk must be at least 1"),
            ({"context": 0}, "context must be at least 1"),
            ({"modes": 33}, "from 1 to d_model, 32"),
            ({}, "at least 2"),
        ):
            with pytest.raises(ValueError, match=said):
                local_linearity(model, texts if options else texts[:1], **options)
