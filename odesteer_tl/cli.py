"""`odesteer-tl`: the demo, the comparison, fit and generate for one's own texts, and the parity table."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from odesteer_tl.demo import EMBEDDED

app = typer.Typer(add_completion=False, help="Steer language models by integrating an ODE on their activations.")

Folder = Annotated[Path, typer.Argument()]
ModelName = Annotated[str, typer.Option(help="A name that TransformerLens can load, a local folder, or 'embedded'.")]


BY_LENGTH = "--relative-T 0.05 to 0.4 is where to look first."
BY_PART = "--T 1 is the published map; less goes a part of the way."
STARTING_POINTS = {
    "repe": BY_LENGTH,
    "iti": BY_LENGTH,
    "caa": "--T 1 is the published strength; look from 0.25 to 2.",
    "mimic": BY_PART,
    "hpr": BY_PART,
    "recontrol": "--T counts steps of gradient ascent, 30 as published; look from 1 up.",
    "linearact": BY_PART,
    "truthflow": "--T counts corrections, 1.5 as published; look from 0.05 up.",
    "stepodesteer": BY_LENGTH,
    "odesteer": BY_LENGTH,
}


class Direction(StrEnum):
    """Which side of the demo's texts is desired."""

    positive = "positive"
    negative = "negative"


class MethodName(StrEnum):
    """The methods that `fit` offers, in the order of the paper's tables."""

    repe = "repe"
    iti = "iti"
    caa = "caa"
    mimic = "mimic"
    hpr = "hpr"
    recontrol = "recontrol"
    linearact = "linearact"
    truthflow = "truthflow"
    stepodesteer = "stepodesteer"
    odesteer = "odesteer"


@app.command()
def demo(
    model: ModelName = EMBEDDED,
    layer: Annotated[int | None, typer.Option(help="Block to steer, from 0. Default: a third of the way.")] = None,
    direction: Annotated[Direction, typer.Option(help="Towards praise or towards its opposite.")] = Direction.positive,
    quick: Annotated[bool, typer.Option(help="Fewer strengths and continuations: under a minute.")] = False,
    seed: Annotated[int, typer.Option(help="Repeats exactly, timings apart.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and nothing else.")] = False,
    picture: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("odesteer_demo.png"),
) -> None:
    """Steer a real language model with six methods and print what each gains and costs."""
    from odesteer_tl.evaluation.showcase import run_showcase

    with _clear_errors():
        run_showcase(
            model=None if model == EMBEDDED else model,
            layer=layer,
            towards_praise=direction is Direction.positive,
            quick=quick,
            seed=seed,
            json_output=as_json,
            picture=picture,
        )


@app.command()
def compare(
    model: ModelName = EMBEDDED,
    layer: Annotated[int | None, typer.Option(help="Block to steer, from 0. Default: a third of the way.")] = None,
    quick: Annotated[bool, typer.Option(help="All rows, fewer continuations: under three minutes.")] = False,
    seeds: Annotated[int | None, typer.Option(help="How many; 3 unless given, 2 with --quick.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON and nothing else.")] = False,
    picture: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("odesteer_compare.png"),
) -> None:
    """Compare the methods of the literature and three controls, and tune the nonlinearity: Tables 2 and 3 in small."""
    from odesteer_tl.evaluation.contest import run_contest

    with _clear_errors():
        run_contest(
            model=None if model == EMBEDDED else model,
            layer=layer,
            quick=quick,
            seeds=seeds,
            json_output=as_json,
            picture=picture,
        )


@app.command()
def fit(
    desired: Annotated[Path, typer.Argument(help="A text file, one desired text per line.")],
    undesired: Annotated[Path, typer.Argument(help="A text file, one undesired text per line.")],
    out: Annotated[Path, typer.Argument(help="Folder for the fitted method.")],
    layer: Annotated[int, typer.Option(help="Block whose resid_post is read, from 0.")],
    model: ModelName = EMBEDDED,
    method: Annotated[MethodName, typer.Option()] = MethodName.odesteer,
    position: Annotated[str, typer.Option(help="last, mean, all, or an index such as -2.")] = "last",
    paired: Annotated[bool, typer.Option("--paired", help="Line i of both files answers the same query.")] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="A text file: line i of both files goes on where its line i ends. Begin answers with a space."
        ),
    ] = None,
) -> None:
    """Fit a method on your own texts and keep it in a folder; HPR wants --paired or --queries, TruthFlow --queries."""
    import odesteer_tl as ot
    from odesteer_tl.artefacts import METHODS

    methods: dict[str, Any] = {cls.__name__.lower(): cls for cls in METHODS}
    with _clear_errors():
        named = position in ("last", "mean", "all")
        if not named and not position.removeprefix("-").isdigit():
            raise ValueError(f"--position is last, mean, all or an index such as -2, got {position!r}.")
        where: Any = position if named else int(position)
        loaded, aligned = _load(model), paired or queries is not None
        asked = None if queries is None else _lines(queries, aligned)
        sides = _lines(desired, aligned), _lines(undesired, aligned)
        acts = ot.collect(loaded, *sides, layer=layer, queries=asked, position=where, paired=paired)
        fitted = methods[method].fit(acts)
        ot.save(fitted, out)
        typer.echo(
            f"Fitted {type(fitted).__name__} on {len(acts.desired)} desired and {len(acts.undesired)} undesired "
            f"activations at {acts.hook_name}{_learned_from(fitted)}; kept in {out}. {STARTING_POINTS[method]}"
        )


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    prompt: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    T: Annotated[float | None, typer.Option("--T", help="Integration time.")] = None,
    relative_T: Annotated[float | None, typer.Option("--relative-T", help="T as a part of ‖a‖, such as 0.25.")] = None,
    model: Annotated[str | None, typer.Option(help="As for fit; the model of the fit unless given.")] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 40,
    temperature: Annotated[float | None, typer.Option(help="Samples; without it and --top-p greedy.")] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Continue prompts with a fitted method at work, beside the unsteered continuation."""
    import odesteer_tl as ot

    with _clear_errors():
        method = ot.load(folder)
        loaded = _load(model or method.origin.model_name or EMBEDDED)
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        if temperature is not None or top_p is not None:
            sampling |= {"do_sample": True, "top_p": top_p, "temperature": 1.0 if temperature is None else temperature}
        plain = ot.generate(loaded, prompt, **sampling)
        steered = ot.generate(loaded, prompt, method, T, relative_T=relative_T, **sampling)
        for before, after in zip(plain.texts, steered.texts, strict=True):
            typer.echo(f"unsteered  {before}\nsteered    {after}\n")


@app.command()
def parity(
    remote: Annotated[str | None, typer.Option(help="Address of an NDIF-like server, to fill its column too.")] = None,
    others: Annotated[list[Path] | None, typer.Option("--with", help="JSON of another installation to join.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON and nothing else.")] = False,
    complete: Annotated[bool, typer.Option(help="Empty cells are errors.")] = False,
) -> None:
    """Compare the steered logits of every installed library with a plain torch hook."""
    from odesteer_tl.parity.table import print_parity

    with _clear_errors():
        if not print_parity(remote, others or [], as_json, complete, typer.echo):
            raise typer.Exit(1)


@app.command()
def methods() -> None:
    """Print the unified view of all methods: barrier, field, steps, norm, needs and source of each, in Markdown."""
    from odesteer_tl.artefacts import METHODS
    from odesteer_tl.methods.view import unified_table

    typer.echo(unified_table(METHODS))


def _load(model: str) -> Any:
    import odesteer_tl as ot

    return ot.load_demo().model if model == EMBEDDED else ot.load_model(model)


def _learned_from(fitted: Any) -> str:
    """What a value network was trained on, which the user did not say."""
    return f", its value network trained on {fitted.trained_on}" if hasattr(fitted, "trained_on") else ""


def _lines(file: Path, aligned: bool = False) -> list[str]:
    """The lines that are not blank. `aligned`: line i belongs to line i of other files, so that only the last may be;
    an answer keeps the space that it begins with, as it goes on where its query ends."""
    if not file.is_file():
        raise ValueError(f"{file} is not a file; it should hold one text per line.")
    read = file.read_text(encoding="utf-8").rstrip().split("\n")
    lines = [line.rstrip() if aligned else line.strip() for line in read]
    if aligned and "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {file} is blank: line i of one file answers to line i of another, so "
            "remove that line from all of them."
        )
    return [line for line in lines if line]


class _clear_errors:
    """Bad input ends in its message and exit code 2, not in a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # OSError: a model that transformers cannot find, a server that is not there; RuntimeError: one that fails.
        if isinstance(error, (ValueError, OSError, RuntimeError)) and not isinstance(error, typer.Exit):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
