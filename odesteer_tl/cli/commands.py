"""The commands and their options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options
from odesteer_tl.cli.endings import EPILOG, WRONG, Ending
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.outputs import check_output, keep
from odesteer_tl.cli.pairs import check_pairs
from odesteer_tl.cli.saved_methods import saved_method
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import check_readable, lines_of

app = typer.Typer(
    name="odesteer-tl",
    cls=Ending,
    add_completion=False,
    epilog=EPILOG,
    help="Steer language models by integrating an ODE on their activations.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code, one of `endings.EXIT_CODES`. `argv` None: that of the process."""
    command = typer.main.get_command(app)
    try:
        command.main(args=None if argv is None else list(argv), prog_name="odesteer-tl")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@app.command()
def demo(
    model: options.ModelName = EMBEDDED,
    layer: options.Layer = None,
    direction: options.Towards = options.Direction.positive,
    quick: Annotated[bool, typer.Option(help="Fewer strengths and continuations: under a minute.")] = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    picture: options.Picture = Path("odesteer_demo.png"),
) -> None:
    """Steer a real language model with six methods and print the effect and the cost of each."""
    with command_output() as say:
        check_model(model)
        from odesteer_tl.evaluation.reports.demo import run_showcase

        run_showcase(
            model=None if model == EMBEDDED else model,
            layer=layer,
            towards_praise=direction is options.Direction.positive,
            quick=quick,
            seed=seed,
            json_output=as_json,
            picture=picture,
            out=say,
            load=chosen_model,
        )


@app.command()
def compare(
    model: options.ModelName = EMBEDDED,
    layer: options.Layer = None,
    quick: Annotated[bool, typer.Option(help="All rows, fewer continuations: under three minutes.")] = False,
    seeds: options.Seeds = None,
    as_json: options.AsJson = False,
    picture: options.Picture = Path("odesteer_compare.png"),
) -> None:
    """Compare the published methods and three controls, and tune the nonlinearity: Tables 2 and 3 on a small scale."""
    with command_output() as say:
        check_model(model)
        from odesteer_tl.evaluation.reports.paper import run_contest

        run_contest(
            model=None if model == EMBEDDED else model,
            layer=layer,
            quick=quick,
            seeds=seeds,
            json_output=as_json,
            picture=picture,
            out=say,
            load=chosen_model,
        )


@app.command()
def fit(
    desired: options.Desired,
    undesired: options.Undesired,
    out: options.Out,
    layer: options.FitLayer,
    model: options.ModelName = EMBEDDED,
    method: options.MethodName = "odesteer",
    position: options.Position = "last",
    paired: options.Paired = False,
    queries: options.Queries = None,
) -> None:
    """Fit a method on your own texts and save it in a folder; HPR needs --paired or --queries, TruthFlow --queries."""
    with command_output() as say:
        check_output(out)
        check_readable(desired, undesired, queries)
        check_model(model)
        aligned = paired or queries is not None
        query_lines = None if queries is None else lines_of(queries, aligned)
        sides = lines_of(desired, aligned), lines_of(undesired, aligned)
        import odesteer_tl as ot
        from odesteer_tl.methods.registry import registered

        method_class: Any = next(entry.method for entry in registered() if entry.name == method)
        check_pairs(method_class.view.name, method_class.view.needs, sides, query_lines, paired)
        loaded = chosen_model(model)
        acts = ot.collect(loaded, *sides, layer=layer, queries=query_lines, position=position, paired=paired)  # type: ignore[arg-type]
        fitted = method_class.fit(acts)
        keep(fitted, out)
        say(
            f"Fitted {type(fitted).__name__} on {len(acts.desired)} desired and {len(acts.undesired)} undesired "
            f"activations at {acts.hook_name}{_learned_from(fitted)}; saved in {out}. {method_class.view.T.start}"
        )


@app.command()
def generate(
    folder: options.Folder,
    prompt: options.Prompts,
    T: options.IntegrationTime = None,
    relative_T: options.RelativeTime = None,
    model: options.OtherModelName = None,
    max_new_tokens: options.MaxNewTokens = 40,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
) -> None:
    """Continue prompts with a fitted method, and print the unsteered continuation beside it."""
    with command_output() as say:
        if (T is None) == (relative_T is None):
            raise ValueError(f"Give either --T or --relative-T; got {'neither' if T is None else 'both'}.")
        import odesteer_tl as ot

        method, name = saved_method(folder, model)
        loaded = chosen_model(name)
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        if temperature is not None or top_p is not None:
            sampling |= {"do_sample": True, "top_p": top_p, "temperature": 1.0 if temperature is None else temperature}
        # Steered first: a method that does not fit the model raises before anything is generated.
        steered = ot.generate(loaded, prompt, method, T, relative_T=relative_T, **sampling)
        plain = ot.generate(loaded, prompt, **sampling)
        for unsteered_text, steered_text in zip(plain.texts, steered.texts, strict=True):
            say(f"unsteered  {unsteered_text}\nsteered    {steered_text}\n")


@app.command()
def parity(
    remote: options.Remote = None,
    others: options.Others = None,
    as_json: options.AsJson = False,
    complete: Annotated[bool, typer.Option(help="Empty cells are errors.")] = False,
    quick: Annotated[bool, typer.Option(help="Half of the cells, with every pair of family, prompts, cache.")] = False,
) -> None:
    """Compare the steered logits of every installed library with those of a plain torch hook."""
    with command_output() as say:
        from odesteer_tl.parity.table import print_parity

        if not print_parity(remote, others or [], as_json, complete, say, quick):
            raise typer.Exit(WRONG)


@app.command()
def methods() -> None:
    """Print the unified view of all methods: barrier, field, steps, norm, needs, source and unit of T, in Markdown."""
    with command_output() as say:
        from odesteer_tl.methods.registry import registered
        from odesteer_tl.methods.view import unified_table

        say(unified_table(entry.method for entry in registered()))


def _learned_from(fitted: Any) -> str:
    """The data on which a value network was trained, as text for the message."""
    return f", its value network trained on {fitted.trained_on}" if hasattr(fitted, "trained_on") else ""
