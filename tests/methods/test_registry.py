"""One entry per method: every exported method has one, and what shows methods shows each of them without a list."""

import inspect
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from instances import METHODS, UNITS, activations, example, planted

import odesteer_tl as ot
from odesteer_tl.cli.values import method, method_names
from odesteer_tl.evaluation.entries import LITERATURE, entry_of
from odesteer_tl.flows.fields import Constant
from odesteer_tl.methods import FlowMethod, Method, registry
from odesteer_tl.methods.registry import as_needed, register, registered
from odesteer_tl.methods.view import Unit, View, unified_table
from odesteer_tl.parity.table import Cell, markdown, parity_rows


@dataclass(frozen=True, eq=False)
class Pushed(FlowMethod):
    """A method of somebody's own: a + T e₁."""

    view: ClassVar[View] = View(
        "a push", "none", "e₁", "1", "any", "one side", "here",
        Unit("pushes", "--T 3 is where to look first.", whole=3.0, is_map=True, bounds=(0.0, 3.0)),
    )  # fmt: skip

    direction: torch.Tensor
    origin: ot.ContrastiveActivations
    speed: ClassVar[float | None] = None

    @classmethod
    def fit(cls, acts):
        return cls(torch.eye(acts.desired.shape[1])[0], acts.origin)

    @property
    def barrier(self):
        return None

    @property
    def flow(self):
        return ot.Flow(Constant(self.direction), steps=1)


@pytest.fixture
def pushed(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    register(Pushed)
    return Pushed


def test_every_public_method_is_registered_and_nothing_else():
    public = {thing for thing in vars(ot).values() if inspect.isclass(thing) and issubclass(thing, Method)}
    assert {entry.method for entry in registered()} == public
    assert {thing.__name__ for thing in public} <= set(ot.__all__)


def test_each_has_a_view_an_instance_for_the_laws_and_a_row_of_parity_or_is_made_of_those_that_do():
    without_view = {entry.method for entry in registered() if not hasattr(entry.method, "view")}
    assert without_view == {ot.Calibrated, ot.Layers}
    no_example = {entry.method for entry in registered() if entry.example is None}
    assert no_example == {ot.ALQR, ot.SPID, ot.Calibrated, ot.Layers} and not {"alqr", "spid", "layers"} & set(METHODS)
    no_parity = {entry.method for entry in registered() if not entry.parity}
    assert no_parity == {ot.HeadShift, ot.Calibrated, ot.Layers}  # "ITI, heads" is the parity of both
    labels = [label for entry in registered() for label in entry.parity]
    assert len(labels) == len(set(labels)) and set(labels) == set(parity_rows())


def test_the_papers_rows_come_first_in_its_order_and_the_others_by_name():
    rows = [entry.row for entry in registered()]
    count = sum(row is not None for row in rows)
    assert rows[:count] == list(range(1, count + 1)) and set(rows[count:]) == {None}
    assert [entry.name for entry in registered()[count:]] == sorted(entry.name for entry in registered()[count:])
    assert list(LITERATURE) == [entry.method.view.name for entry in registered()[:count]]


@pytest.mark.parametrize("name", [name for name in METHODS if "-" not in name])
def test_the_unit_of_T_says_what_the_method_does(name):
    unit, made = UNITS[name], METHODS[name]()
    low, high = unit.bounds or (-float("inf"), float("inf"))
    assert low <= made.usual_T <= high and (made.speed is not None or unit.whole is not None)
    for T in (unit.whole or 1.0, made.usual_T):
        assert torch.isfinite(made.steer(activations(2), T=T)).all()
    assert unit.start.startswith(("--T ", "--relative-T ")) and unit.start.endswith(".")
    assert unit.bounds is None or not unit.start.startswith("--relative-T")


def test_a_method_that_registers_is_in_every_list_without_another_line(pushed, tmp_path):
    acts = planted()
    assert "pushed" in method_names() and method("pushed") == "pushed"
    lines = unified_table(entry.method for entry in registered()).splitlines()
    assert "| a push | none | e₁ | 1 | any | one side | here | pushes | `Pushed` |" in lines
    cell = Cell("nnsight steering", "CAA", "llama", "single", True, 0.0, 1.0)
    assert "Pushed" in parity_rows() and "| Pushed | — |" in markdown([cell]).splitlines()
    made = example(next(entry for entry in registered() if entry.name == "pushed"))
    assert made.usual_T == 3.0
    with pytest.raises(ValueError, match=r"T counts pushes here, from 0 to 3, .*; got T=4"):
        made.steer(activations(2), T=4.0)
    assert entry_of("mine", pushed).fit(acts, 0).direction[0] == 1
    assert ot.compare(None, acts, {"mine": pushed}).row("mine").conditions.T == 3.0
    ot.save(made, tmp_path)
    assert isinstance(ot.load(tmp_path), Pushed)


def test_what_is_not_registered_is_neither_offered_nor_read(pushed, tmp_path, monkeypatch):
    ot.save(pushed.fit(planted()), tmp_path)
    known = dict(registry._ENTRIES)
    del known["pushed"]
    monkeypatch.setattr(registry, "_ENTRIES", known)
    assert "pushed" not in method_names()
    with pytest.raises(ValueError, match="holds a 'Pushed', which this version of odesteer_tl does not know"):
        ot.load(tmp_path)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="A method called CAA is registered already: rename this class"):
        register(type("Caa", (), {"view": ot.CAA.view, "fit": ot.CAA.fit}))


def test_artefacts_name_their_classes_as_before(tmp_path):
    ot.save(ot.CAA.fit(planted()), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tree"]["method"]["class"] == "CAA"


@pytest.mark.parametrize("needs", ["both sides", "pairs", "pairs with queries"])
def test_activations_are_made_into_what_a_fit_needs(needs):
    acts = as_needed(planted(20, 20), needs)
    assert acts.paired == needs.startswith("pairs") and (acts.queries is not None) == (needs == "pairs with queries")


def test_a_reader_of_instances_may_be_anything_with_its_methods():
    at = SimpleNamespace(acts=lambda layer=1, site="resid_post": planted(20, 20, layer=layer))
    entry = next(entry for entry in registered() if entry.method is ot.RepE)
    assert entry.parity["RepE"](at).layer == 1 and len(entry.parity["RepE, layers"](at).parts) == 2
