"""Laws of edits and of the engine that carries them out: values that are compared and not changed, and what is asked of
whom, in a pass written out by hand."""

from copy import copy, deepcopy

import pytest
import torch

import odesteer_tl as ot
from odesteer_tl.portable.apply_edits import OwnedEdit, PassEdits, Tally, by_place, owned_edits, selected
from odesteer_tl.portable.token_tracks import Pass, TokenTrack

BATCH, POS, WIDTH = 3, 4, 5


def a_pass(rule="all", mask=None):
    real = torch.ones(BATCH, POS, dtype=torch.bool) if mask is None else mask
    found = TokenTrack(Pass(BATCH, POS), 0, torch.zeros(BATCH, dtype=torch.long), real, None, True)
    return selected(rule, found, found.lengths)


def plus(amount):
    return lambda read, write, state: write + amount * read


def carried_out(edits, selection, values, **options):
    """The values [batch, pos, width] by place, after the edits, and their tally."""
    tally = Tally()
    now = PassEdits(edits, selection, {}, tally, **options)
    for place, here in by_place(edits).items():
        new = now.act(here, values[place])
        values[place] = values[place] if new is None else new
    return values, tally


def test_sites_and_edits_are_compared_hashed_and_shown_by_what_they_say():
    site, apply = ot.Site(3), plus(1)
    assert site == ot.Site(3, "resid_post") == copy(site) == deepcopy(site) and site != ot.Site(3, "z")
    assert len({site, ot.Site(3), ot.Site(4)}) == 2 and site != (3, "resid_post")
    assert repr(site) == "Site(layer=3, name='resid_post')"
    assert (site.hook_name, ot.Site(2, "z").hook_name) == ("blocks.3.hook_resid_post", "blocks.2.attn.hook_z")
    edit = ot.Edit(ot.Site(1), site, apply)
    assert edit == ot.Edit(read=ot.Site(1), write=ot.Site(3), apply=apply, of_query=None) == copy(edit)
    assert edit != ot.Edit(ot.Site(1), site, plus(1)) and len({edit, copy(edit)}) == 1
    assert repr(edit) == f"Edit(read={ot.Site(1)!r}, write={site!r}, apply={apply!r}, of_query=None)"
    for thing, name in ((site, "layer"), (edit, "apply")):
        with pytest.raises(AttributeError, match=f"frozen: make a new one with another {name}"):
            setattr(thing, name, 1)
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        ot.Site(-1)
    with pytest.raises(ValueError, match=r"fitted at blocks\.1\.hook_k"):
        ot.Site.fitted("blocks.1.hook_k", 1)
    assert ot.Site.fitted("blocks.6.attn.hook_z", 2) == ot.Site(2, "z") and ot.Site.fitted(None, 2) == ot.Site(2)


def test_rows_are_found_when_they_are_first_asked_for():
    asked = []
    state = ot.State(lambda: asked.append(1) or torch.arange(2))
    assert not asked
    assert torch.equal(state.rows, state.rows) and asked == [1]
    assert torch.equal(ot.State(torch.tensor([2, 0])).rows, torch.tensor([2, 0])) and ot.State(state.rows).memory == {}


@pytest.mark.parametrize("rule", ["all", slice(1, 3), slice(9, None)], ids=str)
def test_the_values_chosen_are_changed_and_no_others_and_each_token_counts_once(rule):
    """Read at one place, write at a later one; two edits at one place act in their order."""
    selection = a_pass(rule)
    chosen = torch.zeros(BATCH, POS, 1)
    chosen[selection.rows, selection.columns] = 1.0
    early, late = torch.randn(BATCH, POS, WIDTH), torch.randn(BATCH, POS, WIDTH)
    first, last = ot.Site(0, "resid_pre"), ot.Site(1)
    edits = [
        OwnedEdit(ot.Edit(last, last, lambda r, w, s: 2 * w), 0, None),
        OwnedEdit(ot.Edit(first, last, plus(3)), 1, None),
    ]
    values, tally = carried_out(edits, selection, {(0, 0): early, (1, 5): late})
    assert torch.equal(values[0, 0], early)
    torch.testing.assert_close(values[1, 5], torch.where(chosen > 0, 2 * late + 3 * early, late))
    assert tally.totals == ({} if len(selection.rows) == 0 else {1: len(selection.rows)})


def test_each_token_gets_the_strength_of_its_row_or_of_its_prompts_beams():
    class Method:
        def edits(self, T=None, *, relative_T=None, layer=None):
            return [ot.Edit(ot.Site(0), ot.Site(0), lambda read, write, state: write + T[state.rows].unsqueeze(1))]

    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    value, per_row = torch.zeros(BATCH, POS, WIDTH), torch.tensor([1.0, 2.0, 3.0])
    for T, beams, expected in ((per_row, 1, per_row), (torch.tensor([5.0]), 3, torch.full((3,), 5.0))):
        owned = owned_edits(0, Method(), ot.Strength(T), None)
        values, _ = carried_out(owned, a_pass("all", mask), {(0, 5): value}, beams=beams)
        assert torch.equal(values[0, 5][..., 0], expected.unsqueeze(1) * mask)
    with pytest.raises(ValueError, match="T holds 3 values, the model sees 3 rows"):
        carried_out(owned_edits(0, Method(), ot.Strength(per_row), None), a_pass("all"), {(0, 5): value}, beams=2)


def test_a_pass_that_was_counted_before_is_not_counted_again():
    edits = [OwnedEdit(ot.Edit(ot.Site(0), ot.Site(0), plus(1)), 0, None)]
    values, tally = carried_out(edits, a_pass(), {(0, 5): torch.ones(BATCH, POS, WIDTH)}, counts=False)
    assert torch.equal(values[0, 5], torch.full((BATCH, POS, WIDTH), 2.0)) and tally.totals == {}
