"""The command that runs a benchmark of the field."""

import sys
from typing import Annotated, Any

import typer

from odesteer_tl.cli import options, values
from odesteer_tl.cli.app import app
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model, device_and_torch_dtype
from odesteer_tl.cli.outputs import check_writable
from odesteer_tl.cli.streams import command_output


def _benchmark(given: Any) -> str:
    """Reads the name of a benchmark."""
    from odesteer_tl.benchmarks.named import NAMED

    if given not in NAMED:
        raise typer.BadParameter(f"{given!r} is not one of {', '.join(NAMED)}.")
    return str(given)


def _rows(given: Any) -> list[str]:
    """Reads names of rows, separated by commas."""
    from odesteer_tl.benchmarks.named import row_names

    names = values.lower_names(given)
    for each in names:
        if each not in row_names():
            raise typer.BadParameter(f"{each!r} is not one of {', '.join(row_names())}; separate several by commas.")
    return names


@app.command()
@loads_model
def bench(
    name: Annotated[
        str, typer.Argument(parser=_benchmark, metavar="NAME", help="Which benchmark; docs/howto/benchmarks.md.")
    ],
    data: Annotated[
        str, typer.Argument(parser=values.name, metavar="DATA", help="Its file or folder, or a data set on the Hub.")
    ],
    model: options.ModelName,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=values.whole(4, 10**7), metavar="INTEGER", help="That many items, 4 or more, drawn by seed 0."
        ),
    ] = None,
    rows: Annotated[
        Any,  # a list of names, or None
        typer.Option(
            parser=_rows,
            metavar="NAMES",
            help="As in random,caa,nonlinear10, of those in docs/howto/benchmarks.md. Default: all baselines.",
        ),
    ] = None,
    layer: options.FitLayer = None,
    position: Annotated[
        Any,  # a name, an index, or None
        typer.Option(
            parser=values.one_position,
            metavar="WHERE",
            help="Default: the benchmark's; without --layer by data.",
        ),
    ] = None,
    layers: options.Layers = None,
    kl: options.Budget = 0.3,
    time: options.IntegrationTime = None,
    seeds: options.SweepSeeds = 3,
    prompts: Annotated[
        int, typer.Option(parser=values.whole(1, 10_000), metavar="INTEGER", help="On how many prompts KL is measured.")
    ] = 12,
    max_new_tokens: options.MaxNewTokens = 24,
    bos: Annotated[bool | None, typer.Option("--bos/--no-bos", help="Whether texts begin with the BOS.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            parser=values.name,
            metavar="JUDGE",
            help="reward:NAME, reward-chat:NAME, classifier:CLASS:NAME, lm:WORD:NAME (its prompt ends in a line "
            "'WORD:') or endpoint:FILE.",
        ),
    ] = None,
    info_judge: Annotated[
        str | None,
        typer.Option(parser=values.name, metavar="JUDGE", help="For truthfulqa: of how informative an answer is."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(parser=values.whole(1, 1000), metavar="INTEGER", help="Texts of a prompt that are judged."),
    ] = None,
    sample_tokens: Annotated[
        int | None, typer.Option(parser=values.whole(1, 10**6), metavar="INTEGER", help="Their length, in tokens.")
    ] = None,
    out: options.SweepOut = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a benchmark: controls, vectors and ODESteer at equal KL, fitted on one part of the data and tested on
    another, with intervals. A killed run goes on with the same command and --out."""
    with command_output() as say:
        if out is not None:
            check_writable(out)
        check_model(model)
        from odesteer_tl.benchmarks.named import read_named, rows_named
        from odesteer_tl.benchmarks.run import run
        from odesteer_tl.evaluation.reports.stages import stages

        given = {"samples": samples, "max_new_tokens": sample_tokens}
        how = {field: one for field, one in given.items() if one is not None}
        read = read_named(name, data, limit, judge, how, info_judge, device_and_torch_dtype())
        found = run(
            chosen_model(model), read, rows_named(rows, read.prefixes), layer=layer, position=position, layers=layers,
            kl=kl, T=time, seeds=range(seeds), prompts=prompts, max_new_tokens=max_new_tokens, prepend_bos=bos, out=out,
            progress=stages(),
        )  # fmt: skip
        for role in ("judge", "truth", "info"):
            asked = getattr(getattr(read, role, None), "usage", None)  # of a judge that is paid
            if asked is not None:
                print(f"--{'info-' * (role == 'info')}judge: {asked}.", file=sys.stderr)
        say(found.to_json() if as_json else str(found))
