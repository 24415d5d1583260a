"""The parity table: per method and way of steering, the largest deviation of a logit and the smallest effect."""

import json
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, get_args

from odesteer_tl.activations import ContrastiveActivations
from odesteer_tl.barriers import LogRatioBarrier
from odesteer_tl.control import ALQR, SPID
from odesteer_tl.features import Polynomial, PolynomialSketch, RandomFourier
from odesteer_tl.methods import (
    CAA,
    HPR,
    ITI,
    GradientFlow,
    Layers,
    LinearAcT,
    Method,
    MiMiC,
    ODESteer,
    RandomDirection,
    REControl,
    RepE,
    StepODESteer,
    TruthFlow,
)
from odesteer_tl.parity.models import Family, as_nnsight, hugging_face, tokenizer
from odesteer_tl.parity.oracle import PROMPTS, activations, differences, places, steered_and_plain, texts
from odesteer_tl.parity.running import ways

TOLERANCE, EFFECT = 1e-4, 0.1
"""float32: no logit may be further off than this, and none of the steering may do less than that."""

WAYS = (
    "HookedTransformer 3.9", "TransformerBridge 3.9", "TransformerBridge 4.x",
    "nnsight steering", "nnsight intervene", "nnsight remote", "Hugging Face",
)  # fmt: skip


def _hpr(acts: ContrastiveActivations) -> HPR:
    """HPR with its plane turned so that all that is read lies on its undesired side, and with angles nearer to a right
    one: a closed gate or a small angle shows no mistake."""
    method = HPR.fit(replace(acts, paired=True))
    plane = -(acts.desired.mean(0) + acts.undesired.mean(0))
    network = method.angles
    angles = replace(
        network,
        weights=(*network.weights[:-1], 0.1 * network.weights[-1]),
        biases=(*network.biases[:-1], 0.1 * network.biases[-1]),
    )
    return replace(method, barrier=replace(method.barrier, weight=plane), angles=angles)


def _truth_flow(acts: ContrastiveActivations) -> TruthFlow:
    """TruthFlow of pairs whose query is halfway between their members."""
    queries = (acts.desired + acts.undesired) / 2
    return TruthFlow.fit(replace(acts, paired=True, queries=queries), epochs=100)


def _at_one(fit: Callable[[ContrastiveActivations], Method]) -> Callable[[Family], Method]:
    """Fitted at `resid_post` of one layer."""
    return lambda family: fit(activations(family))


def _heads(family: Family) -> Layers:
    """ITI's own form: the 6 best of 12 heads, at z of those layers that have them."""
    return ITI.fit_heads([activations(family, layer, "z") for layer in range(3)], n_heads=4, top_k=6)


def _closed(cls: Any, **options: Any) -> Callable[[Family], Method]:
    """A loop over all layers, its set-points far enough from what the blocks do by themselves to show a mistake."""

    def fit(family: Family) -> Method:
        method = cls.fit(as_nnsight(hugging_face(family), tokenizer()), *texts(), progress=False, **options)
        return method.tracking(2 * method.set_points)

    return fit


METHODS: dict[str, Callable[[Family], Method]] = {
    "ODESteer": _at_one(ODESteer.fit),
    "ODESteer, sketch": _at_one(lambda acts: ODESteer.fit(acts, features=PolynomialSketch(n_components=500), tol=1e-4)),
    "ODESteer, Fourier, midpoint": _at_one(
        lambda acts: ODESteer.fit(acts, features=RandomFourier(200), solver="midpoint")
    ),
    "StepODESteer": _at_one(StepODESteer.fit),
    "CAA": _at_one(CAA.fit),
    "ITI": _at_one(ITI.fit),
    "ITI, heads": _heads,
    "RandomDirection": _at_one(RandomDirection.fit),
    "RepE": _at_one(RepE.fit),
    "RepE, layers": lambda family: RepE.fit_layers([activations(family, layer) for layer in (0, 1)]),
    "LinearAcT": _at_one(LinearAcT.fit),
    "MiMiC": _at_one(lambda acts: replace(MiMiC.fit(acts), prior=1e6)),  # its gate open: a closed one shows no mistake
    "HPR": _at_one(_hpr),
    "RE-Control": _at_one(REControl.fit),
    "TruthFlow": _at_one(_truth_flow),
    "A-LQR": _closed(ALQR, q=1.0, n_jacobians=5),
    "S-PID": _closed(SPID, kp=0.5, ki=0.1, kd=0.1),
    "GradientFlow, degree 3, RK4": _at_one(
        lambda acts: GradientFlow(
            LogRatioBarrier.fit(acts, Polynomial(degree=3)), steps=4, solver="rk4", origin=acts.origin
        )
    ),
}


@dataclass(frozen=True)
class Cell:
    """One way of steering with one method: `deviation` of the worst logit from the oracle's, `effect` of steering."""

    way: str
    method: str
    family: str
    prompts: str
    cache: bool
    deviation: float
    effect: float

    @property
    def good(self) -> bool:
        """Within the tolerance, and with an effect that would have shown a mistake."""
        return self.deviation <= TOLERANCE and self.effect >= EFFECT


def conditions(quick: bool = False) -> list[tuple[Family, str, bool]]:
    """Family, prompts and cache of every cell or, where it is `quick`, of half of them: any two of the three meet."""
    every = product(get_args(Family), PROMPTS, (True, False))
    return [case for case in every if not quick or (case[0] == "llama") ^ (case[1] == "single") ^ case[2]]


def measured(remote: str | None = None, quick: bool = False) -> list[Cell]:
    """Every cell that can be measured on the installed libraries; with `remote`, on the server at that address too.
    `quick`: those of half of the conditions."""
    cells = []
    for family in get_args(Family):
        fitted = {label: fit(family) for label, fit in METHODS.items()}
        expected: dict[Any, Any] = {}  # all ways generate the same tokens, unless one is wrong
        for name, run in ways(family, remote).items():
            for label, method in fitted.items():
                T = _strength(method)
                where = places(method, T)
                for prompts, cache in [case[1:] for case in conditions(quick) if case[0] == family]:
                    new, found = run(PROMPTS[prompts], method, T, cache)
                    key = label, prompts, str(new.tolist())
                    if key not in expected:
                        expected[key] = steered_and_plain(family, PROMPTS[prompts], new, where)
                    worst, effect = differences(found, expected[key])
                    cells.append(Cell(name, label, family, prompts, cache, worst, effect))
    return cells


def _strength(method: Method) -> float:
    """About a third of an activation's length, whatever T counts in; a map: all its way; RE-Control: steps of 1."""
    if isinstance(method, Layers):
        return min(_strength(part) for part in method.parts)
    if isinstance(method, REControl):
        return float(method.steps)
    speed, norm = getattr(method, "speed", 1.0), method.origin.typical_norm
    return 1.0 if speed is None else 0.3 * (norm or 1.0) / (speed or 1.0)


def written(cells: Iterable[Cell]) -> str:
    """The cells as JSON, which `read` reads."""
    return json.dumps([asdict(cell) for cell in cells], indent=1)


def read(file: Path) -> list[Cell]:
    """The cells of another installation. Raises ValueError for a file that holds none."""
    try:
        cells = [Cell(**cell) for cell in json.loads(file.read_text(encoding="utf-8"))]
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
    for method in METHODS:
        row = []
        for way in columns:
            here = [cell for cell in cells if (cell.way, cell.method) == (way, method)]
            row.append(_worst_of(here) if here else "—")
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _worst_of(cells: list[Cell]) -> str:
    worst, effect = max(cell.deviation for cell in cells), min(cell.effect for cell in cells)
    return f"{worst:.0e} / {effect:.1f}"


def faults(cells: list[Cell], complete: bool = False, quick: bool = False) -> list[str]:
    """What is wrong with a table: cells that deviate or do nothing and, where it is to be complete, empty ones."""
    wrong = [str(cell) for cell in cells if not cell.good]
    if complete:
        there = {(cell.way, cell.method, cell.family, cell.prompts, cell.cache) for cell in cells}
        wrong += [
            f"No cell for {key}"
            for way in WAYS
            for method in METHODS
            for case in conditions(quick)
            if (key := (way, method, *case)) not in there
        ]
    return wrong


def print_parity(
    remote: str | None,
    others: list[Path],
    as_json: bool,
    complete: bool,
    say: Callable[[Any], Any],
    quick: bool = False,
) -> bool:
    """Measure, join with the cells of `others`, and `say` the table, or JSON. Returns whether all is well."""
    more = [cell for file in others for cell in read(file)]
    with StringIO() as unread, redirect_stdout(unread), redirect_stderr(unread):  # progress and status of the libraries
        cells = measured(remote, quick) + more
    wrong = faults(cells, complete, quick)
    if as_json:
        say(written(cells))
        return not wrong
    say(markdown(cells))
    shown = f"{len(cells)} measurements in float32: largest deviation of a logit from a torch hook / smallest effect"
    over = f"{', '.join(get_args(Family))}, {' and '.join(PROMPTS)} prompts, KV cache on and off"
    say(f"\n{shown}, over {over}{', every two of these together' if quick else ''}.")
    if remote is None:
        say("nnsight remote is left out: --remote URL names a server.")
    for fault in wrong:
        say(f"WRONG {fault}")
    return not wrong
