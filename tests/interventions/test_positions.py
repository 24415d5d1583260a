"""Laws of the tracker: however a text reaches the model, the same tokens are chosen, each known by its own id."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odesteer_tl.interventions.positions import Pass, Tracker, checked, uneven_pads
from odesteer_tl.portable.apply_edits import Selection, Tally

PAD = 0
RULES = ["decoding", "generated", "prompt", "all", slice(2, None), slice(1, 6, 2)]
MASK = torch.tensor([True, False, True, True, False, True])
rules = st.sampled_from([*RULES, MASK])
prompts = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def named(rule, prompt: int, total: int) -> set[int]:
    """The positions of one row, in so many words."""
    match rule:
        case "decoding":
            return set(range(prompt - 1, total))
        case "generated":
            return set(range(prompt, total))
        case "prompt":
            return set(range(prompt))
        case "all":
            return set(range(total))
        case slice():
            return set(range(total)[rule])
        case _:
            return {i for i in range(total) if i < len(rule) and rule[i]}


def texts(lengths, steps):
    """Row r's token at position p has id 1 + 100 r + p, so that it is known wherever it turns up."""
    return [[1 + 100 * row + p for p in range(length + steps)] for row, length in enumerate(lengths)]


def pad(rows, side="left"):
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    sides = (fill, rows) if side == "left" else (rows, fill)
    tokens = torch.tensor([start + end for start, end in zip(*sides, strict=True)])
    return tokens, (tokens != PAD).long()


def ids(selection: Selection, chunk):
    """The ids chosen, each checked against the position that the selection gives it."""
    found = chunk[selection.rows, selection.columns].tolist()
    assert found == (1 + 100 * selection.rows + selection.positions).tolist()
    assert selection.everything == (len(found) == chunk.numel())
    return found


def cached(tracker, rows, lengths, steps):
    tokens, mask = pad([row[:n] for row, n in zip(rows, lengths, strict=True)])
    for step in range(steps + 1):
        if step:
            new = torch.tensor([[row[n + step - 1]] for row, n in zip(rows, lengths, strict=True)])
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            offset, chunk = mask.shape[1] - 1, new
        else:
            offset, chunk = 0, tokens
        yield from ids(tracker.select(Pass(len(rows), chunk.shape[1], offset, chunk, mask, True)), chunk)


def uncached(tracker, rows, lengths, steps):
    for step in range(steps + 1):
        tokens, mask = pad([row[: n + step] for row, n in zip(rows, lengths, strict=True)])
        yield from ids(tracker.select(Pass(len(rows), tokens.shape[1], 0, tokens, mask)), tokens)


def expected(rule, rows, lengths):
    return {row[p] for row, n in zip(rows, lengths, strict=True) for p in named(rule, n, len(row))}


@given(rules, prompts, st.integers(0, 4), st.sampled_from([cached, uncached]))
def test_generation_steers_the_named_tokens_with_and_without_cache(rule, lengths, steps, run):
    rows = texts(lengths, steps)
    assert set(run(Tracker(rule, pad_id=PAD), rows, lengths, steps)) == expected(rule, rows, lengths)


@given(rules, prompts, st.integers(0, 4), st.sampled_from(["left", "right"]))
def test_prompt_lengths_tell_prompt_from_continuation_in_one_pass(rule, lengths, steps, side):
    rows = texts(lengths, steps)
    tokens, mask = pad(rows, side)
    tracker = Tracker(rule, torch.tensor(lengths), pad_id=PAD)
    assert set(ids(tracker.select(Pass(len(rows), tokens.shape[1], 0, tokens, mask)), tokens)) == expected(
        rule, rows, lengths
    )


@given(rules, prompts, st.integers(0, 3), st.data())
def test_prompt_lengths_allow_a_prompt_in_chunks(rule, lengths, steps, data):
    rows = texts(lengths, steps)
    tokens, mask = pad(rows)
    cuts = data.draw(st.sets(st.integers(1, max(1, tokens.shape[1] - 1))))
    edges = sorted({0, tokens.shape[1]} | {cut for cut in cuts if cut < tokens.shape[1]})
    tracker, found = Tracker(rule, lengths, pad_id=PAD), set()
    for start, stop in pairwise(edges):
        now = Pass(len(rows), stop - start, start, tokens[:, start:stop], mask[:, :stop], True)
        # Between two cuts a row may hold pads only, before its first token.
        found |= set(ids(tracker.select(now), tokens[:, start:stop]))
    assert found == expected(rule, rows, lengths)


@given(prompts, st.integers(0, 3), st.integers(0, 3), st.sampled_from([cached, uncached]))
def test_two_generations_in_one_block_are_two_prompts_and_each_token_counts_once(lengths, first, second, run):
    tally = Tally([3, 4])

    class Counted(Tracker):
        def select(self, now):
            found = super().select(now)
            tally.add(3, found)
            return found

    tracker = Counted("decoding", pad_id=PAD)
    for steps in (first, second):
        rows = texts(lengths, steps)
        assert set(run(tracker, rows, lengths, steps)) == expected("decoding", rows, lengths)
    assert tally.totals == {3: len(lengths) * (first + second + 2), 4: 0}


def test_a_prompt_of_one_token_is_its_own_last_token():
    tracker = Tracker("decoding")
    assert tracker.select(Pass(1, 1)).positions.tolist() == [0]
    assert tracker.select(Pass(1, 1, 1)).positions.tolist() == [1]


def test_without_cache_beams_may_swap_rows_and_keep_their_prompt():
    tracker = Tracker("generated")
    rows = torch.tensor([[1, 2], [1, 2], [5, 6], [5, 6]])
    assert len(tracker.select(Pass(4, 2, 0, rows)).rows) == 0
    second = torch.tensor([[1, 2, 7], [1, 2, 8], [5, 6, 7], [5, 6, 9]])
    assert tracker.select(Pass(4, 3, 0, second)).positions.tolist() == [2] * 4
    third = torch.tensor([[1, 2, 8, 1], [1, 2, 8, 2], [5, 6, 9, 3], [5, 6, 7, 4]])
    found = tracker.select(Pass(4, 4, 0, third))
    assert found.positions.tolist() == [2, 3] * 4 and found.prompt == 0
    other = torch.tensor([[1, 2, 8, 1, 0], [9, 9, 9, 9, 9], [5, 6, 9, 3, 0], [5, 6, 7, 4, 0]])
    assert tracker.select(Pass(4, 5, 0, other)).prompt == 1


def test_without_cache_rows_of_other_lengths_may_change_places():
    tracker = Tracker("generated", pad_id=PAD)
    rows = torch.tensor([[0, 0, 3], [5, 6, 7]])
    tracker.select(Pass(2, 3, 0, rows, (rows != 0).long()))
    swapped = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]])
    found = tracker.select(Pass(2, 4, 0, swapped, (swapped != 0).long()))
    assert (found.rows.tolist(), found.positions.tolist(), found.prompt) == ([0, 1], [3, 1], 0)


def test_beams_share_the_prompt_length_and_the_mask_of_their_row():
    found = Tracker("decoding", [2, 3], beams=2).select(Pass(4, 3))
    assert found.positions.tolist() == [1, 2, 1, 2, 2, 2]
    masks = torch.tensor([[True, False, False], [False, False, True]])
    assert Tracker(masks, beams=2).select(Pass(4, 3)).positions.tolist() == [0, 0, 2, 2]


def test_values_per_row_are_never_taken_for_beams_unasked():
    for tracker in (Tracker("decoding", [2, 3]), Tracker(torch.ones(2, 3, dtype=torch.bool))):
        with pytest.raises(ValueError, match="4 rows, 2 were given"):
            tracker.select(Pass(4, 3))


def test_a_kept_cache_means_that_a_longer_prompt_is_a_new_one():
    tracker = Tracker("decoding")
    tracker.select(Pass(1, 2, 0, torch.tensor([[1, 2]]), None, True))
    found = tracker.select(Pass(1, 3, 0, torch.tensor([[1, 2, 3]]), None, True))
    assert found.prompt == 1 and found.positions.tolist() == [2]


def test_embeddings_serve_as_tokens():
    a = torch.randn(2, 4, 3)
    tracker = Tracker("generated", pad_id=PAD)
    tracker.select(Pass(2, 3, 0, a[:, :3]))
    assert tracker.select(Pass(2, 4, 0, a)).positions.tolist() == [3, 3]


def test_a_cache_filled_elsewhere_counts_as_prompt():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert Tracker("decoding").select(Pass(2, 1, 3, None, mask, True)).positions.tolist() == [2, 3]
    assert len(Tracker("prompt").select(Pass(2, 1, 3, None, mask, True)).rows) == 0


@pytest.mark.parametrize("rule", RULES)
def test_decoding_with_a_cache_reads_nothing_from_the_device(rule):
    """A meta tensor has no numbers to read, so that any look at the mask or the ids would fail."""
    tracker = Tracker(rule, pad_id=PAD)
    tracker.select(Pass(2, 3, 0, torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.tensor([[0, 1, 1], [1, 1, 1]]), True))
    for offset in (3, 4):
        ids, mask = torch.ones(2, 1, device="meta"), torch.ones(2, offset + 1, device="meta")
        tracker.select(Pass(2, 1, offset, ids, mask, True))


@pytest.mark.parametrize("rule", ["decoding", "generated", "prompt"])
def test_a_prompt_in_chunks_needs_prompt_lengths(rule):
    tracker = Tracker(rule)
    tracker.select(Pass(1, 4))
    with pytest.raises(ValueError, match="prompt_lengths"):
        tracker.select(Pass(1, 2, 4))


def test_undeclared_pads_are_refused_and_one_bos_of_the_same_id_is_not_a_pad():
    bos = torch.tensor([[7, 1, 2], [7, 3, 4]])
    Tracker("all", pad_id=7).select(Pass(2, 3, 0, bos))
    assert not uneven_pads(bos, 7)
    for left in (None, torch.ones(2, 3)):  # libraries fill in ones where they were told nothing
        with pytest.raises(ValueError, match="padding_side"):
            Tracker("all", pad_id=7).select(Pass(2, 3, 0, torch.tensor([[7, 7, 2], [7, 3, 4]]), left))
    right = torch.tensor([[1, 2, 7], [1, 3, 4]])
    with pytest.raises(ValueError, match="padding_side"):
        Tracker("all", pad_id=7).select(Pass(2, 3, 0, right))
    Tracker("all", pad_id=7).select(Pass(2, 3, 0, right, torch.ones(2, 3)))  # a text closed by its end-of-text
    assert Tracker("all", pad_id=7).select(Pass(2, 3, 0, right, (right != 7).long())).rows.tolist() == [0, 0, 1, 1, 1]


def test_right_padded_prompts_cannot_be_continued():
    rows, mask = torch.tensor([[1, 0], [1, 2]]), torch.tensor([[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="Right-padded"):
        Tracker("decoding").select(Pass(2, 2, 0, rows, mask, True))
    tracker = Tracker("decoding")
    assert tracker.select(Pass(2, 2, 0, rows, mask)).positions.tolist() == [0, 1]
    with pytest.raises(ValueError, match="Right-padded"):
        tracker.select(Pass(2, 3, 0, torch.tensor([[1, 0, 5], [1, 2, 5]]), torch.tensor([[1, 0, 1], [1, 1, 1]])))


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("last", "decoding"),
        (slice(-1, None), "decoding"),
        (slice(5, 2), "chooses no token"),
        (slice(0), "chooses no token"),
        (slice(0, 4, -1), "forwards"),
        (torch.tensor([1, 0]), "bool"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused_by_name(wrong, says):
    with pytest.raises(ValueError, match=says):
        checked(wrong)


def test_prompt_lengths_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="one entry per row"):
        Tracker("decoding", [1, 2, 3]).select(Pass(2, 3))
