"""Laws of ITI at its heads: the planted heads are chosen, θ and σ are theirs, and no other head is touched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import odesteer_tl as ot
from odesteer_tl.portable.sites import Site

N, HEADS, D_HEAD, SHIFT = 400, 4, 6, 3.0
SIGNAL = {(2, 1): 0, (5, 0): 1, (5, 3): 2}
"""Which heads of which layers tell the sides apart, each along a direction of its own."""


def direction(number):
    generator = torch.Generator().manual_seed(100 + number)
    return torch.nn.functional.normalize(torch.randn(D_HEAD, generator=generator, dtype=torch.float64), dim=0)


def planted(layer, n=N, **fields):
    """Unit noise in every head; in those of SIGNAL the desired side is moved by SHIFT along the head's direction."""
    generator = torch.Generator().manual_seed(layer)
    sides = torch.randn(2, n, HEADS, D_HEAD, generator=generator, dtype=torch.float64)
    for (at, head), number in SIGNAL.items():
        if at == layer:
            sides[0, :, head] += SHIFT * direction(number)
    desired, undesired = sides.flatten(2).float()
    return ot.ContrastiveActivations(
        desired, undesired, layer=layer, hook_name=Site(layer, "z").hook_name, processing="raw", **fields
    )


@pytest.fixture(scope="module")
def acts():
    return [planted(layer) for layer in (5, 2, 3)]


@pytest.mark.parametrize("along", ["mass_mean", "probe"])
def test_the_planted_heads_are_chosen_with_their_direction_and_spread(acts, along):
    method = ot.ITI.fit_heads(acts, HEADS, top_k=3, direction=along)
    assert isinstance(method, ot.Layers) and all(isinstance(part, ot.HeadShift) for part in method.parts)
    assert [(part.layer, part.heads) for part in method.parts] == [(2, (1,)), (5, (0, 3))]
    assert all(part.origin.hook_name == f"blocks.{part.layer}.attn.hook_z" for part in method.parts)
    for part in method.parts:
        shift = part.shift.double().unflatten(0, (HEADS, D_HEAD))
        for head, sigma, accuracy in zip(part.heads, part.sigma, part.accuracy, strict=True):
            own = direction(SIGNAL[part.layer, head])
            # The difference of means is off by sqrt(6 · 2/400)/3 = 0.06 rad, a probe's weight by some more.
            assert float(shift[head] @ own / shift[head].norm()) >= (0.99 if along == "mass_mean" else 0.95)
            # Unit noise on two means ±1.5: sqrt(1 + 1.5²); 800 rows tell it to 3 %, and θ is nearly right.
            assert float(sigma) == pytest.approx((1 + SHIFT**2 / 4) ** 0.5, rel=0.07)
            assert accuracy == pytest.approx(0.933, abs=0.06)  # Φ(1.5), by 160 rows
        assert part.shift.count_nonzero() == len(part.heads) * D_HEAD


@pytest.mark.parametrize("along", ["mass_mean", "probe"])
def test_each_number_is_that_of_numpy_and_scikit_learn(acts, along):
    (part,) = ot.ITI.fit_heads(acts[:1], HEADS, top_k=4, direction=along, seed=3, C=0.5).parts
    fit, rest = acts[0].split(3, 0.8)
    assert part.heads == (0, 1, 2, 3)
    for head in part.heads:
        own = slice(head * D_HEAD, (head + 1) * D_HEAD)
        high, low = (side[:, own].double().numpy() for side in (acts[0].desired, acts[0].undesired))
        rows, labels = (
            [np.concatenate([p.desired[:, own], p.undesired[:, own]]).astype(float) for p in (fit, rest)],
            [np.repeat([1, 0], [len(p.desired), len(p.undesired)]) for p in (fit, rest)],
        )
        probe = LogisticRegression(C=0.5, max_iter=1000).fit(rows[0], labels[0])
        theta = probe.coef_[0] if along == "probe" else high.mean(0) - low.mean(0)
        at_zero = probe.intercept_[0] if along == "probe" else -theta @ (high.mean(0) + low.mean(0)) / 2
        at_zero, theta = at_zero / np.linalg.norm(theta), theta / np.linalg.norm(theta)
        sigma = np.std(np.concatenate([high, low]) @ theta)
        np.testing.assert_allclose(part.shift[own].numpy(), sigma * theta, rtol=1e-5, atol=1e-6)
        assert part.accuracy[head] == pytest.approx(
            np.mean((rows[1] @ probe.coef_[0] + probe.intercept_ > 0) == labels[1])
        )
        z = acts[0].desired[:5]
        np.testing.assert_allclose(part.head_values(z)[:, head], z[:, own].numpy() @ theta + at_zero, atol=1e-5)


def test_steering_moves_the_chosen_heads_by_T_standard_deviations_and_no_other_bit(acts):
    part = ot.ITI.fit_heads(acts, HEADS, top_k=3).parts[1]
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        z = torch.randn(7, HEADS * D_HEAD, generator=torch.Generator().manual_seed(1)).to(dtype)
        for strength in ({"T": 15.0}, {"T": -2.0}, {"relative_T": 0.7}, {"T": torch.linspace(0, 3, 7)}):
            moved, before = (x.unflatten(1, (HEADS, D_HEAD)) for x in (part.steer(z, **strength), z))
            assert torch.equal(
                moved[:, [1, 2]].contiguous().view(torch.uint8), before[:, [1, 2]].contiguous().view(torch.uint8)
            )
    gain = (part.head_values(part.steer(z, T=15.0)) - part.head_values(z)) / part.sigma
    torch.testing.assert_close(gain, torch.full_like(gain, 15.0), rtol=1e-5, atol=1e-5)


def test_the_same_rows_are_held_out_in_every_layer():
    """Two layers with the same numbers: were other rows held out, their accuracies would differ."""
    one = planted(5, n=60)
    other = replace(one, layer=6, hook_name=Site(6, "z").hook_name)
    first, second = ot.ITI.fit_heads([one, other], HEADS, top_k=8).parts
    assert first.accuracy == second.accuracy and torch.equal(first.shift, second.shift)
    assert ot.ITI.fit_heads([one, other], HEADS, top_k=1).parts[0].layer == 5  # of equals the earlier


@pytest.mark.filterwarnings("ignore:.*occur more than once")
@pytest.mark.parametrize("paired", [True, False])
def test_pairs_and_groups_are_held_out_together(paired):
    """Rows that come 4 times over are known by heart to a probe that sees one of them, unless they go together."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(2, 15, 40, generator=generator)
    ids = torch.arange(15).repeat_interleave(4)
    acts = ot.ContrastiveActivations(
        high[ids], low[ids], layer=0, hook_name="blocks.0.attn.hook_z", paired=paired,
        groups=(ids, ids if paired else ids + 15),
    )  # fmt: skip
    together = ot.ITI.fit_heads([acts], 1, top_k=1).parts[0].accuracy[0]
    apart = ot.ITI.fit_heads([replace(acts, groups=None)], 1, top_k=1).parts[0].accuracy[0]
    assert apart == 1.0 and together < 0.9


def test_the_order_in_which_layers_are_given_does_not_matter(acts):
    one, other = (ot.ITI.fit_heads(each, HEADS, top_k=5) for each in (acts, acts[::-1]))
    assert [part.heads for part in one.parts] == [part.heads for part in other.parts]
    assert all(torch.equal(a.shift, b.shift) for a, b in zip(one.parts, other.parts, strict=True))


def test_a_dead_head_is_left_as_it_is():
    acts = planted(2, n=20)
    silent = [side.clone() for side in (acts.desired, acts.undesired)]
    for side in silent:
        side[:, :D_HEAD] = 0.5
    method = ot.ITI.fit_heads([replace(acts, desired=silent[0], undesired=silent[1])], HEADS, top_k=HEADS).parts[0]
    z = silent[0][:3]
    assert torch.equal(method.steer(z, T=15.0)[:, :D_HEAD], z[:, :D_HEAD])
    assert torch.isfinite(method.shift).all() and torch.isfinite(method.head_values(z)).all()


@pytest.mark.parametrize(
    "make, options, said",
    [
        (lambda: [], {}, "No layers"),
        (lambda: [replace(planted(2, 9), hook_name="blocks.2.hook_resid_post")], {}, r'read at z.*site="z"'),
        (lambda: [planted(2, 9), planted(3, 10)], {}, "same rows"),
        (lambda: [planted(2, 9), planted(3, 9, paired=True)], {}, "same rows"),
        (lambda: [planted(2, 9), planted(3, 9, groups=(torch.arange(9), torch.arange(9, 18)))], {}, "same rows"),
        (lambda: [planted(2, 9), planted(2, 9)], {}, "may be given once"),
        (lambda: [planted(2, 9)], {"n_heads": 5}, "n_heads=5 does not divide the width of z, 24"),
        (lambda: [planted(2, 9)], {"n_heads": 0}, "does not divide"),
        (lambda: [planted(2, 9)], {"top_k": 5}, "top_k is from 1 to 4, 4 heads in 1 layers; got 5"),
        (lambda: [planted(2, 9)], {"top_k": 0}, "top_k is from 1 to .* got 0"),
        (lambda: [planted(2, 9)], {"validation": 1.0}, "validation"),
        (lambda: [planted(2, 9)], {"validation": 0.01}, "without desired or undesired rows"),
        (lambda: [planted(2, 1)], {}, "at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_by_name(make, options, said):
    with pytest.raises(ValueError, match=said):
        ot.ITI.fit_heads(make(), **{"n_heads": HEADS, "top_k": 2, **options})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_heads": 5}, "5 heads do not divide"),
        ({"heads": (3, 0)}, "ascending"),
        ({"heads": (0, 9)}, "from 0 to 3"),
        ({"accuracy": (0.5,)}, "one accuracy"),
        ({"offset": ()}, "one offset"),
    ],
)
def test_numbers_that_do_not_belong_together_are_refused(acts, change, said):
    with pytest.raises(ValueError, match=said):
        replace(ot.ITI.fit_heads(acts, HEADS, top_k=3).parts[1], **change)
