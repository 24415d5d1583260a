"""Laws of what travels to a server: it is the method, in few bytes, of numbers and functions that a server can have."""

import ast
from pathlib import Path

import pytest
import torch
from cloudpickle import list_registry_pickle_by_value
from instances import (
    ALL_METHODS,
    D_MODEL,
    Own,
    activations,
    fitted,
    planted,
    strengths,
    taken,
    without_shape_checks,
)

import odesteer_tl as ot
from odesteer_tl.flows.features import Polynomial, PolynomialSketch
from odesteer_tl.flows.fields import UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.methods import GradientFlow, ODESteer, PointwiseMethod, StepODESteer
from odesteer_tl.portable.edits import State
from odesteer_tl.portable.gradients import GradientFunction, to_device
from odesteer_tl.remote.payloads import moved, packed, tensor_bytes

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def close(got, expected, dtype):
    assert got.dtype == dtype and got.shape == expected.shape
    # float32: 40 evaluations in other coordinates. Half floats: the same number, cast, but for a tie.
    relative = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 2 * torch.finfo(dtype).eps)
    gap = (got.double() - expected.double()).norm(dim=-1)
    assert (gap <= relative * expected.double().norm(dim=-1)).all()


def at_home(name, dtype) -> PointwiseMethod:
    """The method whose numbers have the precision that the law asks for."""
    return moved(fitted(name), dtype=torch.float64) if dtype == torch.float64 else fitted(name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL_METHODS)
def test_what_travels_steers_as_the_method_at_home(name, dtype):
    method = at_home(name, dtype)
    portable = method.portable()
    rows = torch.tensor([0.5, -1.0, 0.0])
    for a in (activations(3, 2, dtype=dtype), activations(3, dtype=dtype), activations(3, 1, 2, dtype=dtype)):
        given = ({"T": 0.7}, {"T": -2}, {"T": rows}, {"relative_T": 0.3}, {"relative_T": rows})
        for strength in strengths(name, *given):
            close(portable.steer(a, **strength), method.steer(a, **strength), dtype)
    one = activations(dtype=dtype)
    T = taken(name, 1.0)
    close(portable.steer(one, T), method.steer(one, T), dtype)
    assert portable.steer(one, T=0) is one


@pytest.mark.parametrize("name", ALL_METHODS)
def test_its_edits_are_those_of_the_method(name):
    method, chosen = fitted(name), activations(4, dtype=torch.float32)
    rows = torch.tensor([1, 0, 0, 1])
    given = ({"T": 0.7}, {"T": torch.tensor([0.3, -1.0])}, {"relative_T": torch.tensor([0.3, 0.1])})
    for strength in strengths(name, *given):
        (edit,), (expected,) = method.portable().edits(**strength), method.edits(**strength)
        for site, known in ((edit.read, expected.read), (edit.write, expected.write)):
            assert (site.layer, site.name) == (known.layer, known.name)
        state = State(rows)
        read, given = (e.of_query(chosen) if e.of_query is not None else chosen for e in (edit, expected))
        close(read, given, torch.float32)
        close(edit.apply(read, chosen, state), expected.apply(given, chosen, state), torch.float32)
    assert method.portable().edits(T=1.0, layer=5)[0].write.layer == 5


def test_it_raises_what_the_method_raises():
    method = ODESteer.fit(planted(layer=None))
    a = activations(2, dtype=torch.float32)
    wrong = [
        lambda m: m.steer(a),
        lambda m: m.steer(a, T=1.0, relative_T=1.0),
        lambda m: m.steer(a, T="1"),
        lambda m: m.steer(a, T=float("nan")),
        lambda m: m.steer(a, relative_T=torch.tensor([1.0, float("inf")])),
        lambda m: m.steer(a, T=torch.ones(3)),
        lambda m: m.steer(a[:, 1:], T=1.0),
        lambda m: m.edits(T=1.0),
        lambda m: m.edits(T=1.0, layer=-1),
        lambda m: m.edits(layer=2),
    ]
    with without_shape_checks():
        for act in wrong:
            messages = []
            for m in (method, method.portable()):
                with pytest.raises(ValueError) as error:
                    act(m)
                messages.append(str(error.value))
            assert messages[0] == messages[1]


def test_the_form_with_fewer_bytes_travels():
    """Kernel, m = 105 landmarks in 24 dimensions: the reduced one. Degree 3 with m < d: the direct one, m(m+1) less."""
    wide, narrow = fitted("odesteer"), ODESteer.fit(planted(d_model=64), features=Polynomial(3, rank=30))
    step = StepODESteer.fit(planted())  # which is integrated directly at home
    for method, reduced in ((wide, True), (step, True), (narrow, False), (fitted("odesteer-sketch"), False)):
        parts = method.portable().parts
        assert (parts[3] is not None) == reduced
        direct = packed(Flow(method.flow.field, coordinates="direct").parts())
        assert tensor_bytes(parts) <= 1.1 * tensor_bytes(direct)
    assert tensor_bytes(wide.portable().parts) < 0.5 * tensor_bytes(Flow(wide.flow.field, coordinates="direct").parts())


def test_a_sketch_travels_in_four_bytes_a_hash_and_one_a_sign():
    method = ODESteer.fit(planted(), features=PolynomialSketch(n_components=300))
    w, hashes, signs, *_ = method.portable().parts[0].params
    assert (w.dtype, hashes.dtype, signs.dtype) == (torch.float32, torch.int32, torch.int8)
    there = to_device((hashes, signs), torch.device("cpu"), torch.float64)
    assert torch.equal(there[0], method.barrier.features.hashes) and there[0].dtype == torch.int64
    assert torch.equal(there[1], method.barrier.features.signs.double()) and there[1].dtype == torch.float64


@pytest.mark.parametrize(
    "numbers",
    [
        torch.arange(40).reshape(8, 5)[::2, 1:3],
        torch.tensor([2**31, -(2**31) - 1]),
        torch.tensor([-128.0, 127.0]),
        torch.tensor([-129.0, 128.0, 256.0]),
        torch.tensor([0.5, 1.0]),
        torch.tensor([]),
        torch.linspace(0, 1, 1000)[:3],
        torch.tensor([float("inf"), float("nan"), 1.0]),
    ],
)
def test_packing_loses_nothing_and_keeps_no_other_storage(numbers):
    small = packed(numbers)
    kind = numbers.dtype if numbers.is_floating_point() else torch.float32
    back = to_device(small, torch.device("cpu"), kind)
    assert back.dtype == numbers.dtype
    torch.testing.assert_close(back, numbers, rtol=0, atol=0, equal_nan=True)
    assert small.untyped_storage().nbytes() == small.numel() * small.element_size()


def test_the_numbers_move_once_and_in_every_mode():
    portable, a = fitted("odesteer").portable(), activations(2, dtype=torch.float32)
    with torch.inference_mode():
        inside = portable.steer(a, T=1.0)
    kept = dict(portable._copies.made)
    assert torch.equal(inside, portable.steer(a, T=1.0)) and len(kept) == 1
    double = activations(2).requires_grad_()
    portable.steer(double, T=1.0).sum().backward()
    assert torch.isfinite(double.grad).all() and double.grad.abs().sum() > 0
    portable.steer(a, T=1.0)
    made = portable._copies.made
    assert len(made) == 2 and all(made[place] is parts for place, parts in kept.items())
    assert portable.parts[3].dtype == torch.float32


class Network(torch.nn.Linear):
    def value(self, a):
        return torch.tanh(self(a)).squeeze(-1)


class Holding:
    def __init__(self):
        self.network = Network(D_MODEL, 1)

    def value(self, a):
        return self.network.value(a)


@pytest.mark.parametrize("make", [lambda: Network(D_MODEL, 1), Holding, Own])
def test_an_object_of_the_users_stays_as_it_is(make):
    own = make()
    before = dict(vars(own))
    weights = [p for p in own.modules()] if isinstance(own, torch.nn.Module) else []
    method = GradientFlow(own, layer=3)
    if not isinstance(own, Holding):  # at home, too, a plain object is not converted to float64
        method.portable().steer(activations(2), T=1.0)
    method.portable().steer(activations(2, dtype=torch.float32), T=1.0)
    assert dict(vars(own)) == before
    assert all(p.weight.dtype == torch.float32 for p in weights)


def test_a_solver_or_a_field_of_the_users_is_refused():
    class Half:
        order = 1

        def step(self, field, a, dt):
            return a + 0.5 * dt * field(a)

    barrier = fitted("odesteer").barrier
    with pytest.raises(ValueError, match=r'solver Half cannot be sent .*"euler", "midpoint" or "rk4"'):
        Flow(UnitGradient(barrier), Half()).parts()
    with pytest.raises(ValueError, match=r"field function cannot be sent .*GradientFlow"):
        Flow(lambda a: a).parts()

    class Silent(PointwiseMethod):
        def _move(self, x, T):
            return x

        def _velocity(self, x):
            return x

    with pytest.raises(ValueError, match="Silent cannot be sent to a remote server"):
        Silent().portable()


PORTABLE = Path(ot.__file__).parent / "portable"
SENT = [path for path in sorted(PORTABLE.rglob("*.py")) if path.name != "__init__.py"]


def module_of(path):
    return ".".join(("odesteer_tl", "portable", *path.relative_to(PORTABLE).with_suffix("").parts))


def test_one_registration_sends_the_folder_and_nothing_else():
    assert [name for name in list_registry_pickle_by_value() if name.startswith("odesteer_tl")] == [
        "odesteer_tl.portable"
    ]


@pytest.mark.parametrize("path", SENT, ids=module_of)
def test_what_is_sent_as_source_imports_what_a_server_has(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"torch", "math"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module in {"__future__", "torch", "math", "typing", "collections.abc", *map(module_of, SENT)}
            assert node in tree.body
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            allowed = {"staticmethod", "property"}
            assert {ast.unparse(each) for each in node.decorator_list} <= allowed
            inner = [f for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and f is not node]
            if isinstance(node, ast.FunctionDef):  # evaluated on the server, where the source has no __future__ import
                assert not any(f.returns or any(a.annotation for a in f.args.args) for f in inner)
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "super"
    assert any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)


def test_a_slope_is_a_field():
    barrier, a = fitted("odesteer").barrier, activations(3, dtype=torch.float32)
    assert isinstance(barrier.gradient_function, GradientFunction)
    assert torch.equal(barrier.gradient_function(a), barrier.grad(a))
    assert torch.equal(barrier.gradient_function.at_unit_speed()(a), UnitGradient(barrier)(a))
