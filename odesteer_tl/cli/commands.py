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
from odesteer_tl.cli.streams import own_output
from odesteer_tl.cli.text_files import check_readable, lines_of

app = typer.Typer(
    name="odesteer-tl",
    cls=Ending,
    add_completion=False,
    epilog=EPILOG,
    help="Steer language models by integrating an ODE on their activations.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code, one of `endings.EXIT_CODES`; None takes that of the process."""
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
    """Steer a real language model with six methods and print what each gains and costs."""
    with own_output() as say:
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
    """Compare the methods of the literature and three controls, and tune the nonlinearity: Tables 2 and 3 in small."""
    with own_output() as say:
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
    """Fit a method on your own texts and keep it in a folder; HPR wants --paired or --queries, TruthFlow --queries."""
    with own_output() as say:
        check_output(out)
        check_readable(desired, undesired, queries)
        check_model(model)
        aligned = paired or queries is not None
        asked = None if queries is None else lines_of(queries, aligned)
        sides = lines_of(desired, aligned), lines_of(undesired, aligned)
        import odesteer_tl as ot
        from odesteer_tl.methods.registry import registered

        fitting: Any = next(entry.method for entry in registered() if entry.name == method)
        check_pairs(fitting.view.name, fitting.view.needs, sides, asked, paired)
        loaded = chosen_model(model)
        acts = ot.collect(loaded, *sides, layer=layer, queries=asked, position=position, paired=paired)  # type: ignore[arg-type]
        fitted = fitting.fit(acts)
        keep(fitted, out)
        say(
            f"Fitted {type(fitted).__name__} on {len(acts.desired)} desired and {len(acts.undesired)} undesired "
            f"activations at {acts.hook_name}{_learned_from(fitted)}; kept in {out}. {fitting.view.T.start}"
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
    """Continue prompts with a fitted method at work, beside the unsteered continuation."""
    with own_output() as say:
        if (T is None) == (relative_T is None):
            raise ValueError(f"Give either --T or --relative-T; got {'neither' if T is None else 'both'}.")
        import odesteer_tl as ot

        method, name = saved_method(folder, model)
        loaded = chosen_model(name)
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        if temperature is not None or top_p is not None:
            sampling |= {"do_sample": True, "top_p": top_p, "temperature": 1.0 if temperature is None else temperature}
        # Steered first: a method that does not fit the model says so before anything is generated.
        steered = ot.generate(loaded, prompt, method, T, relative_T=relative_T, **sampling)
        plain = ot.generate(loaded, prompt, **sampling)
        for before, after in zip(plain.texts, steered.texts, strict=True):
            say(f"unsteered  {before}\nsteered    {after}\n")


@app.command()
def parity(
    remote: options.Remote = None,
    others: options.Others = None,
    as_json: options.AsJson = False,
    complete: Annotated[bool, typer.Option(help="Empty cells are errors.")] = False,
    quick: Annotated[bool, typer.Option(help="Half of the cells: any two of family, prompts, cache.")] = False,
) -> None:
    """Compare the steered logits of every installed library with a plain torch hook."""
    with own_output() as say:
        from odesteer_tl.parity.table import print_parity

        if not print_parity(remote, others or [], as_json, complete, say, quick):
            raise typer.Exit(WRONG)


@app.command()
def methods() -> None:
    """Print the unified view of all methods: barrier, field, steps, norm, needs, source and unit of T, in Markdown."""
    with own_output() as say:
        from odesteer_tl.methods.registry import registered
        from odesteer_tl.methods.view import unified_table

        say(unified_table(entry.method for entry in registered()))


def _learned_from(fitted: Any) -> str:
    """What a value network was trained on, which the user did not say."""
    return f", its value network trained on {fitted.trained_on}" if hasattr(fitted, "trained_on") else ""
