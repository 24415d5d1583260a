"""The commands that compare methods: demo, compare, parity and methods."""

from pathlib import Path
from typing import Annotated

import typer

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options
from odesteer_tl.cli.app import app
from odesteer_tl.cli.exit_codes import WRONG
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model, is_plain_demo
from odesteer_tl.cli.streams import command_output


@app.command()
@loads_model
def demo(
    model: options.ModelName = EMBEDDED,
    layer: options.Layer = None,
    direction: options.Towards = options.Direction.positive,
    quick: Annotated[bool, typer.Option(help="One budget of KL, half the texts, less text written.")] = False,
    seed: options.Seed = 0,
    chat: options.Chat = False,
    as_json: options.AsJson = False,
    picture: options.Picture = Path("odesteer_demo.png"),
) -> None:
    """Steer a real language model with five methods and print the effect and the cost of each."""
    with command_output() as say:
        check_model(model)
        from odesteer_tl.evaluation.reports.demo import run_showcase

        run_showcase(
            model=None if is_plain_demo(model) else model,
            layer=layer,
            towards_praise=direction is options.Direction.positive,
            quick=quick,
            seed=seed,
            chat=chat,
            json_output=as_json,
            picture=picture,
            out=say,
            load=chosen_model,
        )


@app.command()
@loads_model
def compare(
    model: options.ModelName = EMBEDDED,
    layer: options.Layer = None,
    quick: Annotated[bool, typer.Option(help="All rows, fewer continuations: under three minutes.")] = False,
    seeds: options.Seeds = None,
    chat: options.Chat = False,
    as_json: options.AsJson = False,
    picture: options.Picture = Path("odesteer_compare.png"),
) -> None:
    """Compare the published methods and three controls, and tune the nonlinearity: Tables 2 and 3 on a small scale."""
    with command_output() as say:
        check_model(model)
        from odesteer_tl.evaluation.reports.paper import run_contest

        run_contest(
            model=None if is_plain_demo(model) else model,
            layer=layer,
            quick=quick,
            seeds=seeds,
            chat=chat,
            json_output=as_json,
            picture=picture,
            out=say,
            load=chosen_model,
        )


@app.command()
def parity(
    remote: options.Remote = None,
    others: options.Others = None,
    as_json: options.AsJson = False,
    complete: Annotated[bool, typer.Option(help="Empty cells are errors.")] = False,
    quick: Annotated[bool, typer.Option(help="Half of the cells, with every pair of family, prompts, cache.")] = False,
    measure: Annotated[bool, typer.Option(help="--no-measure: only join the files of --with.")] = True,
) -> None:
    """Compare the steered logits of every installed library with those of a plain torch hook."""
    with command_output() as say:
        if not measure and (remote is not None or not others):
            raise ValueError("--no-measure joins the files of --with FILE, and has no use for --remote.")
        from odesteer_tl.parity.table import measured, print_parity, read

        cells = [cell for file in others or [] for cell in read(file)]
        if measure:
            cells = measured(remote, quick) + cells
        if not print_parity(cells, as_json, complete, say, quick):
            raise typer.Exit(WRONG)


@app.command()
def methods() -> None:
    """Print the unified view of all methods: barrier, field, steps, norm, needs, source and unit of T, in Markdown."""
    with command_output() as say:
        from odesteer_tl.methods.registry import registered
        from odesteer_tl.methods.view import unified_table

        say(unified_table(entry.method for entry in registered()))
