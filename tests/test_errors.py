"""Bad input is refused by a message that says what came, what was expected, and what to type instead.

The shape checks of the tests are off here, as they are for users. Errors of reading and of files have their laws in
test_activations.py and test_artefacts.py.
"""

import pytest
import torch
from instances import ALL_METHODS, D_MODEL, Own, activations, fitted, log_ratio, planted, without_shape_checks

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.flows.barriers import with_grad
from odesteer_tl.flows.features import Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.flows.fields import Constant, UnitGradient
from odesteer_tl.flows.flow import Flow
from odesteer_tl.flows.solvers import Euler, integrate, solver_named
from odesteer_tl.methods import CAA, GradientFlow, ODESteer
from odesteer_tl.portable.sites import Site


@pytest.fixture(autouse=True)
def as_users_run_it():
    with without_shape_checks():
        yield


NAN, INF = float("nan"), float("inf")


UNCLEAR = [
    ({}, r"Give either T or relative_T, got T=None, relative_T=None"),
    ({"T": 1.0, "relative_T": 0.1}, r"Give either T or relative_T, got T=1\.0, relative_T=0\.1"),
    ({"T": 0, "relative_T": 0}, r"Give either T or relative_T"),
    ({"T": NAN}, r"T and relative_T must be finite, got nan"),
    ({"T": INF}, r"T and relative_T must be finite, got inf"),
    ({"relative_T": -INF}, r"must be finite, got -inf"),
    ({"T": 10**400}, r"must be finite, got 1000"),
    ({"T": torch.tensor([1.0, NAN])}, r"must be finite, got tensor\(\[1\., nan\]\)"),
]


@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_strength_that_says_nothing_or_two_things_is_refused(name):
    for verb in ("steer", "trajectory", "edits"):
        arguments = () if verb == "edits" else (activations(2),)
        for strength, message in UNCLEAR:
            with pytest.raises(ValueError, match=message):
                getattr(fitted(name), verb)(*arguments, **strength)


@pytest.mark.parametrize("name", ["odesteer", "caa", "randomdirection"])
@pytest.mark.parametrize("strength", ["T", "relative_T"])
@pytest.mark.parametrize(("batch", "shape"), [((4, 3), (3,)), ((4, 3), (4, 3, 1)), ((4,), (1,)), ((), (1,))])
def test_a_tensor_T_that_fits_no_row_is_refused(name, strength, batch, shape):
    with pytest.raises(ValueError, match=r"T has shape .*, activations .*: a tensor T needs one value per row, shape"):
        fitted(name).steer(activations(*batch), **{strength: torch.ones(shape)})


@pytest.mark.parametrize("name", [n for n in ALL_METHODS if not n.startswith("gradientflow")])
@pytest.mark.parametrize("verb", ["steer", "trajectory", "vector_field"])
def test_a_method_at_another_width_is_refused(name, verb):
    strength = {} if verb == "vector_field" else {"T": 1.0}
    with pytest.raises(ValueError, match=rf"fitted at d_model {D_MODEL}, got \(3, 25\)"):
        getattr(fitted(name), verb)(activations(3, d_model=25), **strength)
    if verb == "steer":
        with pytest.raises(ValueError, match=rf"fitted at d_model {D_MODEL}"):
            fitted(name).steer(activations(3, d_model=25), T=0)  # also where nothing would be done


def test_edits_without_a_layer_say_what_to_pass():
    nowhere = ContrastiveActivations(planted().desired, planted().undesired)
    for method in (CAA.fit(nowhere), GradientFlow(Own())):
        with pytest.raises(ValueError, match=r"fitted without a layer: pass layer=, for example layer=6"):
            method.edits(T=1.0)
        assert method.edits(T=1.0, layer=6)[0].write == Site(6)


def test_layers_are_counted_from_zero():
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        Site(-1)
    with pytest.raises(ValueError, match="counted from 0, got -2"):
        fitted("caa").edits(T=1.0, layer=-2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Polynomial(degree=4), r"degree must be 1, 2 or 3, got 4"),
        (lambda: PolynomialSketch(degree=0), r"degree must be 1, 2 or 3, got 0"),
        (lambda: Polynomial(gamma=0.0), r"needs gamma > 0 and coef0 >= 0, got gamma=0\.0, coef0=1\.0"),
        (lambda: Polynomial(gamma=NAN), r"needs gamma > 0"),
        (lambda: PolynomialSketch(coef0=-1.0), r"needs gamma > 0 and coef0 >= 0, got gamma=0\.1, coef0=-1\.0"),
        (lambda: Polynomial(rank=0), r"rank must be at least 1, got 0"),
        (lambda: PolynomialSketch(n_components=0), r"n_components must be at least 1, got 0"),
        (lambda: RandomFourier(n_components=0), r"n_components must be at least 1, got 0"),
        (lambda: RandomFourier(sigma=0.0), r'sigma must be positive or "median", got 0\.0'),
        (lambda: RandomFourier(sigma=-1.0), r'sigma must be positive or "median", got -1\.0'),
        (lambda: PolynomialSketch(signs=torch.ones(2, 3).long()), r"Pass both hashes and signs, or neither"),
        (lambda: PolynomialSketch(hashes=torch.ones(2, 3).long()), r"Pass both hashes and signs, or neither"),
        (lambda: RandomFourier().fit(torch.ones(5, 3)), r"needs samples that differ; pass sigma as a number"),
        (lambda: RandomFourier().fit(torch.ones(1, 3)), r"needs samples that differ; pass sigma as a number"),
        (lambda: solver_named("heun"), r'solver must be "euler", "midpoint" or "rk4", got \'heun\''),
        (lambda: GradientFlow(Own(), solver="Euler"), r'solver must be "euler", "midpoint" or "rk4", got \'Euler\''),
        (lambda: GradientFlow(Own(), steps=0), r"steps must be at least 1, got 0\. For no steering use T=0"),
        (lambda: Flow(Constant(torch.ones(3)), steps=-1), r"steps must be at least 1, got -1"),
        (lambda: integrate(Constant(torch.ones(3)), torch.ones(3), 1.0, steps=0, solver=Euler()), r"at least 1, got 0"),
        (lambda: GradientFlow(object()), r"A barrier needs a method value\(a\) -> h; object has none"),
        (lambda: with_grad(lambda a: a.sum(-1)), r"A barrier needs a method value\(a\) -> h; function has none"),
        (
            lambda: Flow(Constant(torch.ones(3)), coordinates="reduced")(torch.ones(3), 1.0),
            r"no reduced form: pass coordinates='direct'",
        ),
        (
            lambda: Flow(UnitGradient(log_ratio("sketch-2-unit")), coordinates="reduced")(activations(2), 1.0),
            r"no reduced form: pass coordinates='direct'",
        ),
    ],
)
def test_what_defines_nothing_is_refused_where_it_is_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("name", "shape"), [("hashes", (2, 24)), ("signs", (3, 25))])
def test_an_injected_draw_of_another_shape_is_refused(name, shape):
    draw = {"hashes": torch.zeros(2, 25).long(), "signs": torch.ones(2, 25).long(), name: torch.ones(shape).long()}
    with pytest.raises(ValueError, match=rf"{name} must be \(2, 25\) for these activations, got"):
        PolynomialSketch(50, **draw).fit(activations(4))


def test_fitting_where_one_of_the_steps_is_wrong_fails_before_steering():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        ODESteer.fit(planted(), steps=0)
    with pytest.raises(ValueError, match="solver must be"):
        ODESteer.fit(planted(), solver="rk5")
