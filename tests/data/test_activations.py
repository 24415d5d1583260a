"""Laws of contrastive activations: which token is read, how rows are parted, what is kept."""

import pytest
import torch
from instances import activations, planted, without_shape_checks
from saved_folders import tensors_of

from odesteer_tl.data.activations import ContrastiveActivations, Tokenised
from odesteer_tl.data.origin import processing_seen_in
from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.data.tokens import select, tokens_at

HOOK = "blocks.2.hook_resid_post"
LENGTHS = [5, 2, 3, 1]


def padded(lengths, side="right", d_model=6, seed=0):
    """Rows of unequal length, each token's values distinct; pads hold large rubbish. Returns values, mask and rows."""
    rows = [activations(n, d_model=d_model, seed=seed + i, dtype=torch.float32) for i, n in enumerate(lengths)]
    values = torch.full((len(lengths), max(lengths), d_model), 1e6)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(max(lengths) - len(row), None)
        values[i, where], mask[i, where] = row, True
    return values, mask, rows


def read_tokens(values, mask, position):
    return select(values, tokens_at(mask, position), position)


def expected_reading(rows, position):
    if position == "last":
        return torch.stack([row[-1] for row in rows])
    if position == "mean":
        return torch.stack([row.mean(0) for row in rows])
    if position == "all":
        return torch.cat(rows)
    return torch.stack([row[position] for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", ["last", "mean", "all", 0, -1])
def test_padding_on_either_side_is_never_read(side, position):
    values, mask, rows = padded(LENGTHS, side)
    samples, row = read_tokens(values, mask, position)
    # Equal to the last bit, but for a mean: masked sums of 1e6 · 0 are exact, their order is another.
    torch.testing.assert_close(
        samples, expected_reading(rows, position), rtol=0, atol=1e-6 if position == "mean" else 0
    )
    expected = [i for i, n in enumerate(LENGTHS) for _ in range(n if position == "all" else 1)]
    assert row.tolist() == expected


def test_random_tokens_are_drawn_from_the_whole_text():
    """The mean place of n draws without replacement from 1…L is (L + 1)/2; over 300 lengths its error is known."""
    lengths = torch.arange(1, 301)
    for side in ("left", "right"):
        values, mask, _ = padded(lengths.tolist(), side)
        _, row = read_tokens(values, mask, "random:3")
        assert torch.equal(row.bincount(), lengths.clamp(max=3))
    mask = torch.arange(300) < lengths.unsqueeze(1)
    row, column = tokens_at(mask, "random:3").nonzero(as_tuple=True)
    places = (column + 0.5) / lengths[row]
    error = 12**-0.5 / len(places) ** 0.5  # of a uniform draw
    assert abs(float(places.mean()) - 0.5) < 4 * error and float(places.var()) == pytest.approx(1 / 12, rel=0.1)


def test_random_tokens_are_not_paired():
    """Those of two texts of different lengths stand at other places."""
    rows = torch.ones(4, 3)
    with pytest.raises(ValueError, match="draws other tokens"):
        ContrastiveActivations(rows, 0 * rows, paired=True, position="random:2")


@pytest.mark.parametrize("position", [1, -2])
def test_an_index_counts_among_the_real_tokens(position):
    for side in ("left", "right"):
        values, mask, rows = padded([5, 2, 3], side)
        assert torch.equal(read_tokens(values, mask, position)[0], expected_reading(rows, position))


def test_a_mask_with_gaps_counts_real_tokens_only():
    values = activations(1, 5, d_model=3, dtype=torch.float32)
    mask = torch.tensor([[True, False, True, True, False]])
    for position, column in ((0, 0), (1, 2), (2, 3), (-1, 3), (-3, 0), ("last", 3)):
        assert torch.equal(read_tokens(values, mask, position)[0][0], values[0, column])


@pytest.mark.parametrize("position", [1, 4, -2, -6])
def test_an_index_beyond_a_row_names_the_row(position):
    values, mask, _ = padded(LENGTHS)
    short = next(i for i, n in enumerate(LENGTHS) if not (-n <= position < n))
    with pytest.raises(ValueError, match=rf"position={position} lies outside row {short}, which has {LENGTHS[short]}"):
        read_tokens(values, mask, position)


def test_a_row_of_pads_only_is_refused():
    values, mask, _ = padded(LENGTHS)
    mask[2] = False
    with pytest.raises(ValueError, match="Row 2 holds no real token"):
        read_tokens(values, mask, "last")


@pytest.mark.parametrize("position", ["last", "mean", "all", 0])
def test_caches_of_right_padded_rows_read_as_the_rows_do_alone(position):
    (good, mask, rows), (bad, _, others) = padded(LENGTHS), padded([1, 4], seed=50)
    acts = ContrastiveActivations.from_caches(
        {HOOK: good}, {HOOK: bad}, layer=2, desired_mask=mask, undesired_lengths=[1, 4], position=position
    )
    torch.testing.assert_close(acts.desired, expected_reading(rows, position), rtol=0, atol=1e-6)
    torch.testing.assert_close(acts.undesired, expected_reading(others, position), rtol=0, atol=1e-6)
    assert (acts.layer, acts.hook_name, acts.position) == (2, HOOK, position)
    by_lengths = ContrastiveActivations.from_caches(
        {HOOK: good},
        {HOOK: bad},
        layer=2,
        desired_lengths=torch.tensor(LENGTHS),
        undesired_lengths=(1, 4),
        position=position,
    )
    assert torch.equal(by_lengths.desired, acts.desired) and torch.equal(by_lengths.undesired, acts.undesired)
    if position == "all":
        assert acts.groups[0].tolist() == [0] * 5 + [1] * 2 + [2] * 3 + [3]
        assert acts.groups[1].tolist() == [4] + [5] * 4  # no text of one side shares a group with one of the other
    else:
        assert acts.groups is None


def test_left_padded_caches_are_read_by_their_mask():
    (good, mask, rows), (bad, other_mask, others) = padded(LENGTHS, "left"), padded([2, 3], "left", seed=50)
    acts = ContrastiveActivations.from_caches(
        {HOOK: good}, {HOOK: bad}, layer=2, desired_mask=mask, undesired_mask=other_mask
    )
    assert torch.equal(acts.desired, expected_reading(rows, "last"))
    assert torch.equal(acts.undesired, expected_reading(others, "last"))


def test_one_row_needs_no_lengths_with_or_without_a_batch_axis():
    one = activations(1, 4, d_model=6, dtype=torch.float32)
    acts = ContrastiveActivations.from_caches({HOOK: one}, {HOOK: one[0]}, layer=2)
    assert torch.equal(acts.desired, one[:, -1]) and torch.equal(acts.undesired, one[:, -1])


def test_an_explicit_index_counts_columns_where_no_lengths_are_given():
    values, _, _ = padded([4, 4, 4])
    acts = ContrastiveActivations.from_caches({HOOK: values}, {HOOK: values}, layer=2, position=-2)
    assert torch.equal(acts.desired, values[:, -2])


def test_caches_give_float32_that_shares_no_graph():
    values = activations(1, 4, d_model=6, dtype=torch.bfloat16).requires_grad_()
    acts = ContrastiveActivations.from_caches({HOOK: values}, {HOOK: values.double()}, layer=2)
    assert acts.desired.dtype == acts.undesired.dtype == torch.float32
    assert not acts.desired.requires_grad


def test_the_processing_is_seen_in_the_numbers():
    values = activations(1, 4, d_model=6, dtype=torch.float32) + 0.3
    centred = values - values.mean(-1, keepdim=True)
    for cache, processing in ((values, "raw"), (centred, "centred")):
        acts = ContrastiveActivations.from_caches({HOOK: cache}, {HOOK: cache}, layer=2)
        assert acts.processing == acts.origin.processing == processing
    assert processing_seen_in(values[0]) == "raw"
    rounded = centred[0].bfloat16()  # each entry off by up to 2⁻⁹ of itself: their mean is no longer zero
    assert processing_seen_in(rounded) == processing_seen_in(rounded.float(), torch.bfloat16) == "centred"
    assert processing_seen_in(rounded.float()) == processing_seen_in(values[0].bfloat16()) == "raw"
    said = ContrastiveActivations.from_caches(
        {HOOK: values}, {HOOK: values}, layer=2, processing="folded", model_name="m"
    )
    assert said.processing == "folded"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"desired cache holds 4 rows: pass desired_lengths .* desired_mask, or an explicit index"),
        ({"desired_lengths": [5, 2]}, r"desired_lengths must hold 4 numbers from 1 to 5, got \[5, 2\]"),
        ({"desired_lengths": [5, 2, 3, 0]}, r"desired_lengths must hold 4 numbers from 1 to 5"),
        ({"desired_lengths": [6, 2, 3, 1]}, r"desired_lengths must hold 4 numbers from 1 to 5"),
        ({"desired_mask": torch.ones(4, 3, dtype=torch.bool)}, r"desired_mask is \(4, 3\), the cache \(4, 5\)"),
        ({"layer": 3}, r"no blocks\.3\.hook_resid_post: run_with_cache\(tokens, names_filter='blocks\.3"),
        ({"desired_lengths": LENGTHS, "position": 1}, r"position=1 lies outside row 3"),
    ],
)
def test_a_cache_that_does_not_say_what_to_read_is_refused(arguments, message):
    values, _, _ = padded(LENGTHS)
    one = activations(1, 5, d_model=6, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        ContrastiveActivations.from_caches({HOOK: values}, {HOOK: one}, **{"layer": 2, **arguments})
    swapped = {key.replace("desired", "undesired"): value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=message.replace("desired", "undesired")):
        ContrastiveActivations.from_caches({HOOK: one}, {HOOK: values}, **{"layer": 2, **swapped})


def x(n, d=4):
    return torch.ones(n, d)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"desired": x(0)}, r"desired needs at least one activation, a float tensor \[n, d_model\]; got \(0, 4\)"),
        ({"undesired": x(0)}, r"undesired needs at least one activation"),
        ({"undesired": x(3, 5)}, r"desired has d_model 4, undesired 5: both must be read at the same site"),
        ({"desired": x(3) * torch.tensor(float("nan"))}, r"desired holds NaN or inf in 3 of 3 rows; drop them"),
        ({"undesired": x(3).index_fill(0, torch.tensor(1), float("inf"))}, r"undesired holds NaN or inf in 1 of 3"),
        ({"undesired": x(2), "paired": True}, r"paired=True needs as many desired as undesired rows, got 3 and 2"),
        ({"queries": x(3)}, r"queries need paired=True and the shape of desired \(3, 4\)"),
        (
            {"queries": x(2), "paired": True},
            r"queries need paired=True and the shape of desired \(3, 4\), got \(2, 4\)",
        ),
    ],
)
def test_activations_that_do_not_fit_together_are_refused(arguments, message):
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        ContrastiveActivations(**{"desired": x(3), "undesired": x(3), **arguments})


@pytest.mark.parametrize("name", ["groups", "rewards"])
def test_groups_and_rewards_need_a_value_per_row(name):
    dtype = torch.long if name == "groups" else torch.float32
    good = (torch.ones(3, dtype=dtype), torch.ones(2, dtype=dtype))
    ContrastiveActivations(x(3), x(2), **{name: good})
    message = rf"{name} needs one value per row of \(desired, undesired\): \(3, 2\), got \(3, 3\)"
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        ContrastiveActivations(x(3), x(2), **{name: (good[0], good[0])})


def numbered(n_desired=20, n_undesired=15, **fields):
    """Row i of either side holds its own number, so that a split can be followed."""
    desired, undesired = torch.arange(n_desired).float(), 100 + torch.arange(n_undesired).float()
    return ContrastiveActivations(desired.unsqueeze(1).repeat(1, 3), undesired.unsqueeze(1).repeat(1, 3), 4, **fields)


def rows_of(acts):
    return acts.desired[:, 0].long().tolist(), acts.undesired[:, 0].long().tolist()


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_a_split_is_disjoint_and_complete_and_of_the_size_asked(fraction):
    whole = numbered()
    fit, held_out = whole.split(seed=3, fraction=fraction)
    for side in (0, 1):
        one, two, all_rows = rows_of(fit)[side], rows_of(held_out)[side], rows_of(whole)[side]
        assert sorted(one + two) == all_rows
        assert len(one) == round(fraction * len(all_rows))
    assert (fit.layer, fit.hook_name) == (4, "blocks.4.hook_resid_post")


def test_a_split_is_by_its_seed_alone():
    state = torch.get_rng_state()
    splits = []
    for global_seed, seed in ((0, 1), (9, 1), (0, 2)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        splits.append(rows_of(numbered().split(seed=seed)[0]))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert splits[0] == splits[1] != splits[2]


def test_pairs_stay_together_and_keep_their_queries():
    acts = numbered(20, 20, paired=True, queries=torch.arange(20.0).unsqueeze(1).repeat(1, 3))
    for part in acts.split(seed=1):
        desired, undesired = rows_of(part)
        assert undesired == [100 + i for i in desired]
        assert part.queries[:, 0].long().tolist() == desired
        assert part.paired


def test_groups_stay_on_one_side_across_desired_and_undesired():
    groups = (torch.arange(20) % 7, torch.arange(15) % 7)
    rewards = (torch.arange(20).float(), 100 + torch.arange(15).float())
    fit, held_out = numbered(groups=groups, rewards=rewards).split(seed=1, fraction=0.6)
    seen = [set(torch.cat(part.groups).tolist()) for part in (fit, held_out)]
    assert seen[0].isdisjoint(seen[1]) and seen[0] | seen[1] == set(range(7))
    for part in (fit, held_out):
        desired, undesired = rows_of(part)
        assert part.groups[0].tolist() == [i % 7 for i in desired]
        assert part.groups[1].tolist() == [(i - 100) % 7 for i in undesired]
        assert part.rewards[0].tolist() == desired and part.rewards[1].tolist() == undesired


def test_a_split_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"fraction=1\.0 leaves a part without desired or undesired rows"):
        numbered().split(fraction=1.0)
    with pytest.raises(ValueError, match="leaves a part without"):
        numbered(1, 15).split()
    crossed = numbered(4, 4, paired=True, groups=(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])))
    with pytest.raises(ValueError, match="two members of a pair carry different groups: give each pair one group"):
        crossed.split(fraction=0.5)


def complete():
    side = Tokenised(torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[True, True, False], [True, True, True]]))
    return ContrastiveActivations(
        desired=activations(2, d_model=3, dtype=torch.bfloat16),
        undesired=activations(2, d_model=3, seed=1),
        layer=4,
        hook_name="blocks.4.hook_resid_post",
        model_name="some/model",
        processing="folded",
        position=-1,
        paired=True,
        groups=(torch.tensor([0, 1]), torch.tensor([0, 1])),
        rewards=(torch.tensor([0.5, 1.0]), torch.tensor([-1.0, 2.0])),
        queries=activations(2, d_model=3, seed=2),
        tokens=(side, side),
    )


def test_saving_and_loading_keeps_every_field(tmp_path):
    acts = complete()
    acts.save(tmp_path / "acts")
    again = ContrastiveActivations.load(tmp_path / "acts")
    for name in ("desired", "undesired", "queries"):
        before, after = getattr(acts, name), getattr(again, name)
        assert before.dtype == after.dtype and torch.equal(before, after)
    for name in ("layer", "hook_name", "model_name", "processing", "position", "paired"):
        assert getattr(acts, name) == getattr(again, name)
    for name in ("groups", "rewards"):
        assert all(torch.equal(*both) for both in zip(getattr(acts, name), getattr(again, name), strict=True))
    for before, after in zip(acts.tokens, again.tokens, strict=True):
        assert isinstance(after, Tokenised)
        assert torch.equal(before.tokens, after.tokens) and torch.equal(before.mask, after.mask)
    assert {file.name for file in (tmp_path / "acts").iterdir()} == {"config.json", tensors_of(tmp_path / "acts").name}


def test_saving_and_loading_keeps_what_is_absent(tmp_path):
    ContrastiveActivations(x(2), x(3)).save(tmp_path)
    again = ContrastiveActivations.load(tmp_path)
    absent = ("layer", "hook_name", "position", "groups", "rewards", "queries", "tokens")
    assert all(getattr(again, name) is None for name in absent)
    assert (again.paired, again.model_name, again.processing) == (False, "", "unknown")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a saved odesteer_tl folder: it has no config\.json"):
        ContrastiveActivations.load(tmp_path)
    write_tree(tmp_path / "other", {"class": "CAA", "a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"holds no ContrastiveActivations; fitted methods are read with ot\.load"):
        ContrastiveActivations.load(tmp_path / "other")
    complete().save(tmp_path / "acts")
    tree = read_tree(tmp_path / "acts")
    write_tree(tmp_path / "more", {**tree, "extra": 1})
    with pytest.raises(ValueError, match="holds no ContrastiveActivations"):
        ContrastiveActivations.load(tmp_path / "more")
    tensors_of(tmp_path / "acts").unlink()
    with pytest.raises(ValueError, match=r"it has no tensors-[0-9a-f]{16}\.safetensors"):
        ContrastiveActivations.load(tmp_path / "acts")


def test_a_folder_of_another_format_is_refused(tmp_path):
    planted().save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(ValueError, match="has format 99; this version of odesteer_tl reads formats 1 and 2"):
        ContrastiveActivations.load(tmp_path)


def test_the_hook_name_follows_from_the_layer_and_the_origin_from_both():
    acts = ContrastiveActivations(3 * x(2), x(3), layer=6, model_name="m", processing="raw", position="mean")
    assert acts.hook_name == "blocks.6.hook_resid_post"
    origin = acts.origin
    assert (origin.d_model, origin.layer, origin.hook_name) == (4, 6, acts.hook_name)
    assert (origin.model_name, origin.processing, origin.position) == ("m", "raw", "mean")
    assert origin.typical_norm == 2.0  # the median of 6, 6, 2, 2, 2
    assert ContrastiveActivations(x(2), x(3)).hook_name is None
