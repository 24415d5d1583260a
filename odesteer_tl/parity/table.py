"""The parity table: per method and way of steering, the largest deviation of a logit and the smallest effect."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, get_args

from odesteer_tl._shapes import TokenIds
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.data.targets import MOST_BYTES
from odesteer_tl.methods import Method
from odesteer_tl.methods.registry import registered
from odesteer_tl.parity.models import Family, as_nnsight, hugging_face, tokenizer
from odesteer_tl.parity.oracle import LAYER, PROMPTS, activations, differences, places, steered_and_plain, texts
from odesteer_tl.parity.run import ways

TOLERANCE, EFFECT = 1e-4, 0.1
"""In float32: the largest deviation of a logit that passes, and the smallest effect of steering that shows mistakes."""

WAYS = (
    "HookedTransformer 3.9", "TransformerBridge 3.9", "TransformerBridge 4.x",
    "nnsight steering", "nnsight intervene", "nnsight remote", "Hugging Face",
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """The data that rows are fitted on: the random model of a family, its activations and texts (`registry.Reader`)."""

    family: Family

    def acts(self, layer: int = LAYER, site: Any = "resid_post") -> ContrastiveActivations:
        """Activations at the texts' last tokens, read by a torch hook."""
        return activations(self.family, layer, site)

    def model(self) -> Any:
        """The model, as nnsight holds it."""
        return as_nnsight(hugging_face(self.family), tokenizer())

    def texts(self) -> tuple[TokenIds, TokenIds]:
        """Random texts of two halves of the vocabulary."""
        return texts()


def parity_rows() -> dict[str, Callable[[Family], Method]]:
    """The rows of the table, of all registered methods, each with the function that fits its method."""
    fits = {label: fit for entry in registered() for label, fit in entry.parity.items()}
    return {label: (lambda family, fit=fit: fit(Small(family))) for label, fit in fits.items()}


@dataclass(frozen=True)
class Cell:
    """One way of steering with one method: largest `deviation` of a logit from the oracle's, smallest `effect`."""

    way: str
    method: str
    family: str
    prompts: str
    cache: bool
    deviation: float
    effect: float

    @property
    def good(self) -> bool:
        """Whether the deviation is within the tolerance, and the effect large enough to show a mistake."""
        return self.deviation <= TOLERANCE and self.effect >= EFFECT


def conditions(quick: bool = False) -> list[tuple[Family, str, bool]]:
    """Family, prompts and cache of every cell; with `quick` of half of them, with all pairs of values."""
    every = product(get_args(Family), PROMPTS, (True, False))
    return [case for case in every if not quick or (case[0] == "llama") ^ (case[1] == "single") ^ case[2]]


def measured(remote: str | None = None, quick: bool = False) -> list[Cell]:
    """Measure every cell on the installed libraries; with `remote`, on the server at that address too. `quick`: half of
    the conditions."""
    with StringIO() as unread, redirect_stdout(unread), redirect_stderr(unread):  # progress and status of the libraries
        return [cell for family in get_args(Family) for cell in _of_family(family, remote, quick)]


def _of_family(family: Family, remote: str | None, quick: bool) -> Iterator[Cell]:
    fitted = {label: fit(family) for label, fit in parity_rows().items()}
    expected: dict[Any, Any] = {}  # one per generated tokens: all ways generate the same, unless one is wrong
    for name, run in ways(family, remote).items():
        for label, method in fitted.items():
            T = method.usual_T
            where = places(method, T)
            for prompts, cache in [case[1:] for case in conditions(quick) if case[0] == family]:
                new, logits = run(PROMPTS[prompts], method, T, cache)
                key = label, prompts, str(new.tolist())
                if key not in expected:
                    expected[key] = steered_and_plain(family, PROMPTS[prompts], new, where)
                worst, effect = differences(logits, expected[key])
                yield Cell(name, label, family, prompts, cache, worst, effect)


def written(cells: Iterable[Cell]) -> str:
    """The cells as JSON, for `read`."""
    return json.dumps([asdict(cell) for cell in cells], indent=1)


def read(file: Path) -> list[Cell]:
    """The cells of another installation. Raises ValueError for a file that does not hold cells."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)  # some devices never end
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        cells = [Cell(**cell) for cell in json.loads(data.decode())]
        for cell in cells:
            for field in fields(Cell):
                if not isinstance(getattr(cell, field.name), field.type):  # type: ignore[arg-type]
                    raise TypeError(f"{field.name} is {getattr(cell, field.name)!r}")
        return cells
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} does not hold what odesteer-tl parity --json prints: {error}") from error


def markdown(cells: list[Cell]) -> str:
    """A row per method, a column per way: largest deviation / smallest effect, over families, prompts and cache."""
    columns = [way for way in WAYS if any(cell.way == way for cell in cells)]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in parity_rows():
        row = []
        for way in columns:
            own_cells = [cell for cell in cells if (cell.way, cell.method) == (way, method)]
            row.append(_worst_of(own_cells) if own_cells else "—")
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _worst_of(cells: list[Cell]) -> str:
    worst, effect = max(cell.deviation for cell in cells), min(cell.effect for cell in cells)
    return f"{worst:.0e} / {effect:.1f}"


def faults(cells: list[Cell], complete: bool = False, quick: bool = False) -> list[str]:
    """What is wrong with a table: cells that deviate or have no effect and, if `complete`, missing cells."""
    wrong = [str(cell) for cell in cells if not cell.good]
    if complete:
        present = {(cell.way, cell.method, cell.family, cell.prompts, cell.cache) for cell in cells}
        wrong += [
            f"No cell for {key}"
            for way in WAYS
            for method in parity_rows()
            for case in conditions(quick)
            if (key := (way, method, *case)) not in present
        ]
    return wrong


def print_parity(
    cells: list[Cell], as_json: bool, complete: bool, say: Callable[[Any], Any], quick: bool = False
) -> bool:
    """Print the table of the cells, or JSON, by `say`. Returns whether all cells are good."""
    wrong = faults(cells, complete, quick)
    if as_json:
        say(written(cells))
        return not wrong
    say(markdown(cells))
    shown = f"{len(cells)} measurements in float32: largest deviation of a logit from a torch hook / smallest effect"
    over = f"{', '.join(get_args(Family))}, {' and '.join(PROMPTS)} prompts, KV cache on and off"
    say(f"\n{shown}, over {over}{', every two of these together' if quick else ''}.")
    if not any(cell.way == "nnsight remote" for cell in cells):
        say("nnsight remote is left out: --remote URL names a server.")
    for fault in wrong:
        say(f"WRONG {fault}")
    return not wrong
