"""A pass over a tree of tokens gives what each row gives alone, steered by the positions of the rows."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny
from models import load

import odesteer_tl as ot
from odesteer_tl.backends.shared_prefix import SharedPrefix, shared_prefix
from odesteer_tl.backends.token_tree import TokenTree
from odesteer_tl.parity import oracle
from odesteer_tl.parity.table import parity_rows

ROWS = [[5, 6, 7, 8], [5, 6, 9, 8, 4], [5, 6], [5, 6, 7, 3]]
PROMPT = 2
MASK = torch.tensor([True, False, False, True, True])
RULES = {
    "all": range(5), "decoding": range(1, 5), "generated": range(2, 5), "prompt": range(2),
    "a slice": range(1, 4, 2), "a mask": (0, 3, 4),
}  # fmt: skip
POSITIONS = {"a slice": slice(1, 4, 2), "a mask": MASK}


def test_each_beginning_is_one_node_and_sees_its_ancestors():
    tree = TokenTree.of(ROWS)
    beginnings = {tuple(row[: k + 1]) for row in ROWS for k in range(len(row))}
    assert len(tree.tokens) == len(beginnings) == 8
    for row, path in zip(ROWS, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == row and tree.depth[path].tolist() == list(range(len(row)))
        assert [tree.sees[node].nonzero()[:, 0].tolist() for node in path] == [path[: k + 1] for k in range(len(row))]


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], [2, 2]], [[1], []]])
def test_rows_without_a_common_beginning_are_refused(rows):
    with pytest.raises(ValueError, match="begin with the same token"):
        TokenTree.of(rows)


@pytest.mark.parametrize("held", [0, 1])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["bridge", "huggingface"])
def test_a_tree_is_steered_where_its_rows_are(kind, rule, held):
    model, method = load(kind, "llama"), parity_rows()["ODESteer"]("llama")
    T = 0.5 * method.usual_T
    shared, tree = shared_prefix(model), TokenTree.of([row[held:] for row in ROWS])
    assert shared is not None
    shared.hold(ROWS[0][:held])
    where = RULES[rule] if held == 0 or rule in ("decoding", "generated") else [p for p in RULES[rule] if p >= held]
    with ot.steering(model, method, T=T, positions=POSITIONS.get(rule, rule), prompt_lengths=PROMPT) as report:
        found = shared.logits(tree)
    steered = {tuple(row[: p + 1]) for row in ROWS for p in where if p < len(row)}
    assert set(report.tokens_steered.values()) == {len(steered)}
    for row, path in zip(ROWS, tree.paths, strict=True):
        own = [p for p in where if p < len(row)]
        alone, plain = (oracle.logits("llama", row, oracle.places(method, T), chosen) for chosen in (own, ()))
        torch.testing.assert_close(found[path], alone[held:], rtol=1e-4, atol=1e-4)
        assert own == [] or (alone - plain).abs().max() > 1e-2


def passed(model, sees, ids, **options):
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
    with ot.steering(model, parity_rows()["CAA"]("llama"), T=1.0, **options):
        return model(input_ids=torch.arange(4, 4 + len(ids))[None], attention_mask=mask, position_ids=ids[None])


def test_a_tree_asks_where_the_prompt_ends_if_that_matters():
    model, tree = load("huggingface", "llama"), TokenTree.of(ROWS)
    with pytest.raises(ValueError, match=r"tree of tokens .* prompt_lengths="):
        passed(model, tree.sees, tree.depth)
    passed(model, tree.sees, tree.depth, positions=slice(0, 2))
    passed(model, tree.sees, tree.depth, prompt_lengths=2)


@pytest.mark.parametrize("positions", ["decoding", "prompt", slice(1, 3)])
def test_a_causal_mask_is_no_tree(positions):
    """Nor does the pass need prompt_lengths: all of it is the prompt."""
    model, causal = load("huggingface", "llama"), torch.ones(5, 5).tril().bool()
    found = passed(model, causal, torch.arange(5), positions=positions).logits
    with ot.steering(model, parity_rows()["CAA"]("llama"), T=1.0, positions=positions):
        torch.testing.assert_close(found, model(input_ids=torch.arange(4, 9)[None]).logits, rtol=1e-4, atol=1e-4)


def test_all_that_is_given_is_compared_and_all_heads_are_read():
    model, tree = load("huggingface", "llama"), TokenTree.of([[5, 6, 7], [5, 8, 9]])
    mask = torch.zeros(1, 4, 5, 5).masked_fill(~tree.sees, torch.finfo(torch.float32).min)
    given = {"input_ids": tree.tokens[None], "position_ids": tree.depth[None], "attention_mask": mask}
    other = mask.clone()
    other[:, 1:] = 0.0
    for wrong, said in (({"attention_mask": other}, "position ids"), ({"cache_position": torch.arange(7, 12)}, "is 7")):
        with ot.steering(model, parity_rows()["CAA"]("llama"), T=1.0, positions="all"):
            model(**given)
            with pytest.raises(ValueError, match=said):
                model(**given | wrong)


def test_a_method_of_the_prompts_end_needs_one_end():
    """TruthFlow reads the last prompt token: two branches before it are two prompts."""
    model, tree = load("huggingface", "llama"), TokenTree.of([[5, 6, 7, 8], [5, 9, 4, 3]])
    shared, method = shared_prefix(model), parity_rows()["TruthFlow"]("llama")
    assert shared is not None
    with ot.steering(model, method, T=1.0, prompt_lengths=1):
        shared.logits(tree)
    with pytest.raises(ValueError, match="branches before it"), ot.steering(model, method, T=1.0, prompt_lengths=2):
        shared.logits(tree)


def test_what_follows_a_tree_in_the_cache_is_refused():
    model, tree = load("huggingface", "llama"), TokenTree.of([[5, 6, 7, 8], [5, 6, 7, 9]])
    mask = torch.zeros(tree.sees.shape).masked_fill(~tree.sees, torch.finfo(torch.float32).min)[None, None]
    with ot.steering(model, parity_rows()["CAA"]("llama"), T=1.0, positions="all"):
        out = model(tree.tokens[None], attention_mask=mask, position_ids=tree.depth[None], use_cache=True)
        hidden = torch.zeros(1, 1, 1, 6)
        hidden[..., 3] = torch.finfo(torch.float32).min
        with pytest.raises(ValueError, match="which branch it continues"):
            model(
                torch.tensor([[4]]), attention_mask=hidden, position_ids=torch.tensor([[4]]),
                **{SharedPrefix(model).argument: out.past_key_values},
            )  # fmt: skip


def test_packed_rows_and_masks_that_are_no_tree_are_refused():
    model = load("huggingface", "llama")
    packed = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).tril().bool()
    window = torch.ones(5, 5).tril().triu(-1).bool()
    unseen = TokenTree.of([[1, 2, 3, 4], [1, 5]]).sees.clone()
    unseen[3, 1] = False  # a token that does not see its grandparent
    two_parents = torch.eye(5, dtype=torch.bool) | torch.tensor([1, 0, 0, 0, 0], dtype=torch.bool)
    two_parents[3, 1:3] = two_parents[4, 1:4] = True
    for sees in (packed, window, unseen, two_parents):
        with pytest.raises(ValueError, match="position ids"):
            passed(model, sees, sees.sum(1) - 1, prompt_lengths=1)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_family_is_served_or_reads_whole_rows(family):
    """A sliding window drops keys, and ALiBi counts columns: their trees would be wrong."""
    unserved = family.startswith(("gemma", "mi")) or family in ("qwen2", "falcon_alibi")
    assert (shared_prefix(tiny(family)) is None) == unserved
