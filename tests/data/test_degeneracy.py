"""Fits that can mean nothing are refused, doubtful ones are remarked on, and planted data pass without a word."""

import warnings
from dataclasses import replace

import pytest
import torch
from instances import Own, activations, planted, planted_at_z, with_queries, without_shape_checks

import odesteer_tl as ot
from odesteer_tl.data.degeneracy import share_repeated, spread
from odesteer_tl.methods.registry import registered

FITS = {
    **{entry.method.__name__: entry.method.fit for entry in registered() if entry.fits_activations},
    "ITI by heads": lambda acts: ot.ITI.fit_heads([replace(acts, hook_name="blocks.3.attn.hook_z")], 4, top_k=2),
    "HPR": lambda acts: ot.HPR.fit(replace(acts, paired=True), epochs=2),
    "REControl": lambda acts: ot.REControl.fit(acts, epochs=2),
    "TruthFlow": lambda acts: ot.TruthFlow.fit(
        replace(acts, paired=True, queries=activations(len(acts.desired), dtype=torch.float32)), epochs=2, rank=2
    ),
    "log ratio": lambda acts: ot.LogRatioBarrier.fit(acts, ot.Linear()),
    "tune": lambda acts: ot.tune(acts, Cs=[1], features=[ot.Linear()], folds=2),
}
del FITS["RandomDirection"]  # which does not look at the sides


def on_both_sides(noise=0.0):
    """The same activations on both sides, in another order, as other batches give them."""
    side = planted(40, 40).desired
    other = side.flip(0)
    return ot.ContrastiveActivations(side, other * (1 + noise * torch.randn(other.shape)), layer=3)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_sides_that_are_the_same_are_refused_by_every_fit(name, noise):
    with pytest.raises(ValueError, match="40 desired and 40 undesired activations are the same ones, so nothing tells"):
        FITS[name](on_both_sides(noise))


@pytest.mark.parametrize("name", FITS)
def test_planted_sides_are_fitted_without_a_word(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        FITS[name](replace(planted(40, 40), layer=3))


def test_sides_that_differ_by_little_more_than_rounding_are_fitted():
    side = planted(40, 40).desired
    moved = side + 1e-3 * side.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(torch.ones(24), dim=0)
    assert ot.CAA.fit(ot.ContrastiveActivations(moved, side)).speed > 0


def test_a_difference_of_means_that_is_none_is_refused():
    side = planted(40, 40).desired
    acts = ot.ContrastiveActivations(torch.cat([side, -side]), torch.cat([2 * side, -2 * side]))
    with pytest.raises(ValueError, match="The means of desired and undesired activations are the same"):
        ot.CAA.fit(acts)
    with pytest.raises(ValueError, match=r"features of the two sides \(Linear\) do not differ on average"):
        ot.ITI.fit(acts)
    raw = ot.ODESteer.fit(acts, features=ot.Polynomial(normalize=False))  # which sees that one side is wider
    assert float(raw.barrier.weight.norm()) > 0


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7])
def test_answers_to_one_question_are_refused_by_truth_flow(noise):
    """The fault that this mends: scale 3.5e-07, and activations moved by 4.4e6."""
    acts = with_queries(12)
    one = acts.queries[:1].expand(12, -1)
    one = one * (1 + noise * torch.randn(one.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"The 12 queries are all the same.*answers to different questions"):
        ot.TruthFlow.fit(replace(acts, queries=one), rank=4, epochs=2)
    few = torch.cat([acts.queries[:3]] * 4)  # several answers to each of three questions
    method = ot.TruthFlow.fit(replace(acts, queries=few), rank=4, epochs=2)
    assert method.scale > 0.1


DOUBTS = {
    "no spread": (lambda a: (a.desired[:1].expand(40, -1), a.undesired), "All 40 desired activations are the same"),
    "repeated": (lambda a: (a.desired, a.undesired[:10].repeat(4, 1)), "100% of the undesired activations occur more"),
    "shared": (lambda a: (a.desired, torch.cat([a.desired[:30], a.undesired[:10]])), "75% of the desired activations"),
    "norms": (lambda a: (a.desired, 30 * a.undesired), r"Desired activations have a median norm of .*, undesired ones"),
    "sinks": (lambda a: (torch.cat([a.desired, 90 * a.desired[:2]]), a.undesired), "2 of 82 activations have a norm"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_is_doubtful_is_said_once(name):
    make, message = DOUBTS[name]
    acts = ot.ContrastiveActivations(*make(planted(40, 40)))
    with pytest.warns(UserWarning, match=message) as said:
        ot.CAA.fit(acts)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.ODESteer.fit(acts)
        ot.CAA.fit(acts.split()[0])


def test_without_sinks_leaves_out_the_loud_rows_and_nothing_else():
    plain = planted(40, 40)
    loud = ot.ContrastiveActivations(torch.cat([plain.desired, 90 * plain.desired[:2]]), plain.undesired)
    with pytest.warns(UserWarning, match=r"2 of 82 activations have a norm of .* and are left out"):
        kept = loud.without_sinks()
    assert torch.equal(kept.desired, plain.desired) and torch.equal(kept.undesired, plain.undesired)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain.without_sinks() is plain
        ot.CAA.fit(loud.without_sinks(warn=False))
    rows = torch.cat([plain.undesired[:3] * 90, plain.undesired[3:]])
    pairs = ot.ContrastiveActivations(plain.desired, rows, paired=True, queries=plain.desired + 1)
    with pytest.warns(UserWarning, match="3 of 80"):
        kept = pairs.without_sinks()
    assert torch.equal(kept.desired, plain.desired[3:]) and torch.equal(kept.queries, plain.desired[3:] + 1)
    every = ot.ContrastiveActivations(plain.desired, 900 * plain.undesired[:3])
    assert every.without_sinks() is every  # a side would be empty


def test_shares_and_spreads_are_those_counted_by_hand():
    rows = planted(50, 50).desired
    assert share_repeated(rows[:20], rows[10:]) == 0.5  # rows 10 to 19
    assert share_repeated(rows) == 0 and share_repeated(torch.cat([rows, rows[:10]])) == pytest.approx(20 / 60)
    assert share_repeated(rows, rows + 1e-2) == 0
    many = torch.randn(5000, 24, generator=torch.Generator().manual_seed(0))
    assert share_repeated(many, many.flip(0)) == 1 and share_repeated(many) == 0
    assert spread(torch.tensor([[3.0, 4.0], [3.0, 4.0]])) == 0
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 1
    assert spread(torch.tensor([[2.0, 0.0], [4.0, 0.0]])) == pytest.approx(1 / 10**0.5)


RECIPES = (ot.Polynomial(), ot.PolynomialSketch(n_components=50), ot.RandomFourier(20))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_a_recipe_is_refused_where_a_fitted_map_is_wanted(recipe):
    name = type(recipe).__name__
    with without_shape_checks():
        with pytest.raises(ValueError, match=rf"{name} is a recipe, .* pass recipe\.fit\(samples\)"):
            ot.LogRatioBarrier(recipe, torch.ones(24), 0.0)
        for make in (ot.GradientFlow, ot.UnitGradient, ot.Gradient):
            with pytest.raises(
                ValueError, match=rf"A {name} is a recipe of features and no barrier: pass ot\.LogRatio"
            ):
                make(recipe)
    samples = planted().desired.double()
    fitted = recipe.fit(samples)
    weight = torch.ones(fitted(samples).shape[1], dtype=torch.float64)
    assert ot.LogRatioBarrier(fitted, weight, 0.0).value(samples).shape == (60,)


def test_classes_are_refused_where_objects_are_wanted():
    acts = planted()
    with without_shape_checks():
        for call, message in (
            (
                lambda: ot.LogRatioBarrier(ot.Polynomial, torch.ones(24), 0.0),
                r"class, and a fitted map .* Polynomial\(…\)\.fit",
            ),
            (lambda: ot.LogRatioBarrier(ot.Linear, torch.ones(24), 0.0), r"Linear is a class"),
            (lambda: ot.LogRatioBarrier("poly", torch.ones(24), 0.0), "Features are a FeatureMap.*got a str"),
            (lambda: ot.GradientFlow(Own), r"A barrier is an object; Own is a class: pass Own\(…\)"),
            (lambda: ot.UnitGradient(Own), "Own is a class"),
            (lambda: ot.Gradient(object()), r"A barrier needs a method value\(a\)"),
            (lambda: ot.Flow(ot.UnitGradient), "The field of a flow is an object; UnitGradient is a class"),
            (lambda: ot.Flow(ot.UnitGradient(Own()), ot.RK4), "The solver of a flow is an object; RK4 is a class"),
            (lambda: ot.Flow(3), r"A field is a function v\(a\), such as ot\.UnitGradient\(barrier\); got a int"),
            (lambda: ot.ODESteer.fit(acts, features=ot.Polynomial), r"Polynomial is a class: pass Polynomial\(\)"),
            (
                lambda: ot.ODESteer.fit(acts, features=ot.Polynomial().fit(acts.desired)),
                r"a Kernel has no fit\. Pass a fitted map to ot\.LogRatioBarrier",
            ),
            (lambda: ot.Layers(parts=(ot.CAA,)), "part 0 is the class CAA"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize("kind", ["bridge", "nnsight"])
def test_models_are_steered_by_fitted_methods_alone(kind):
    from models import load

    model = load(kind, "llama")
    acts = planted_at_z()
    for wrong, message in (
        (ot.CAA, r"CAA is a class, not a fitted method: fit one, CAA\.fit\(acts\)"),
        (ot.LogRatioBarrier.fit(acts, ot.Linear()), r"is no fitted method.*ot\.GradientFlow\(barrier, layer=…\)"),
        (ot.Polynomial(), "A Polynomial is no fitted method"),
        ([(ot.CAA, 1.0)], "CAA is a class"),
    ):
        T = None if isinstance(wrong, list) else 1.0
        with without_shape_checks(), pytest.raises(ValueError, match=message):
            with ot.steering(model, wrong, T=T):
                pass
        with without_shape_checks(), pytest.raises(ValueError, match=message):
            ot.generate(model, "the film", wrong, T=T, max_new_tokens=1)
