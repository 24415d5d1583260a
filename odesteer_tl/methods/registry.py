"""The registry of all methods, with a small instance of each for the tests and for the parity table.

A method registers below its class. Its `view` holds its name, what its fit needs, what its T counts and which T to try
first. The command line, `ot.compare`, the parity table, docs/methods.md, `ot.save`, `ot.load` and the tests read the
registry and keep no lists of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from odesteer_tl.data.activations import ContrastiveActivations


class Reader(Protocol):
    """The data on which an instance for the parity table is fitted: a small random model and its texts."""

    def acts(self, layer: int = 1, site: str = "resid_post") -> ContrastiveActivations:
        """Activations of as many desired as undesired texts, read at a site of a layer."""
        ...

    def model(self) -> Any:
        """The model, of three layers with four heads each."""
        ...

    def texts(self) -> tuple[Any, Any]:
        """Desired and undesired texts, as tokens."""
        ...


@dataclass(frozen=True)
class Entry:
    """One method: its class; its `row` in the tables of the ODESteer paper, from 1; and small instances of it.

    `example(acts)` fits an instance on activations as its view needs them (see `as_needed`); None where activations of
    one site are not enough. `parity`: the rows of the parity table, a label and a function that fits the method.
    """

    method: type[Any]
    row: int | None = None
    example: Callable[[ContrastiveActivations], Any] | None = None
    parity: Mapping[str, Callable[[Reader], Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name for the command line and the tests: that of the class in lower case."""
        return self.method.__name__.lower()

    @property
    def needs(self) -> str | None:
        """What its fit needs, one of `view.Needs`; None for a method without a view."""
        return self.method.view.needs if hasattr(self.method, "view") else None

    @property
    def fits_activations(self) -> bool:
        """Whether its class has a `fit(acts)`."""
        return hasattr(self.method, "fit") and self.needs not in (None, "texts and the model")


_ENTRIES: dict[str, Entry] = {}


def register(
    method: type[Any],
    *,
    row: int | None = None,
    example: Callable[[Any], Any] | None = None,
    parity: Mapping[str, Callable[[Any], Any]] | None = None,
) -> None:
    """Add a class to the registry. The default `example` is `method.fit(acts)`. The default `parity` is one row with
    the name of the class, the example fitted to activations of one layer; `parity={}` adds no row.

    Raises ValueError where another class of that name, in lower case, is registered.
    """
    entry = Entry(method, row, example)
    if example is None and entry.fits_activations:
        entry = replace(entry, example=method.fit)
    if parity is None:
        made = entry.example
        parity = {} if made is None else {method.__name__: lambda at: made(as_needed(at.acts(), entry.needs))}
    known = _ENTRIES.get(entry.name)
    if known is not None and known.method.__qualname__ != method.__qualname__:
        raise ValueError(f"A method called {known.method.__name__} is registered already: rename this class.")
    _ENTRIES[entry.name] = replace(entry, parity=parity)


def registered() -> tuple[Entry, ...]:
    """All methods: those of the ODESteer paper's tables in their order, then the others by name."""
    last = len(_ENTRIES) + 1
    return tuple(sorted(_ENTRIES.values(), key=lambda entry: (entry.row or last, entry.name)))


def method_named(name: str) -> type[Any]:
    """The class of a registered name, in lower case."""
    return _ENTRIES[name].method


def as_needed(acts: ContrastiveActivations, needs: str | None) -> ContrastiveActivations:
    """The activations as a fit needs them: paired, with the mean of each pair as its query, or unchanged.

    Raises ValueError where pairs are needed and the sides differ in length.
    """
    if needs not in ("pairs", "pairs with queries"):
        return acts
    queries = (acts.desired + acts.undesired) / 2 if needs == "pairs with queries" else None
    return replace(acts, paired=True, queries=queries)
