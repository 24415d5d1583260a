"""The command that looks at texts before a fit."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options, values
from odesteer_tl.cli.app import app
from odesteer_tl.cli.exit_codes import STOPPED
from odesteer_tl.cli.messages import in_cli_words
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.pairs import check_pairs
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import check_readable, pairs_of, tell_blank_lines
from odesteer_tl.data.file_checks import check_writable_file
from odesteer_tl.evaluation.judged_texts import FEWEST


@app.command()
@loads_model
def check(
    desired: options.Desired,
    undesired: options.Undesired,
    model: options.ModelName = EMBEDDED,
    layers: options.Layers = None,
    method: options.MethodName = "odesteer",
    position: Annotated[
        Any,  # a name, an index, or None
        typer.Option(
            parser=values.one_position,
            metavar="WHERE",
            help="last, mean or an index such as -2. Default: last and mean, compared.",
        ),
    ] = None,
    paired: options.Paired = False,
    queries: options.Queries = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the queries, or else the texts, into the model's chat template.")
    ] = False,
    seed: options.Seed = 0,
    html: options.Page = None,
    as_json: options.AsJson = False,
) -> None:
    """Look at your own texts before a fit: duplicates, balance, lengths, what stands on their surface, labels that look
    wrong. Says pass, look or stop for each, and ends with 3 at a stop."""
    with command_output() as say:
        check_readable(desired, undesired, queries)
        if html is not None:
            check_writable_file(html)
            if any(html.exists() and html.samefile(each) for each in (desired, undesired, queries) if each is not None):
                raise ValueError(f"--html {html} would replace the texts that it is about: name another file.")
        check_model(model)
        for file in (desired, undesired):
            tell_blank_lines(file)
        sides, query_lines = pairs_of(desired, undesired, queries, paired)
        if min(map(len, sides)) < FEWEST:
            raise ValueError(
                f"{desired} holds {len(sides[0])} texts and {undesired} {len(sides[1])}: fewer than {FEWEST} on a side "
                "show nothing. Add texts."
            )
        from odesteer_tl.methods.registry import method_named

        method_class: Any = method_named(method)
        check_pairs(method_class.view.name, method_class.view.needs, sides, query_lines, paired)
        import odesteer_tl as ot

        found = ot.check_data(
            chosen_model(model), *sides, method_class, layers=layers, queries=query_lines, paired=paired, seed=seed,
            positions=("last", "mean") if position is None else (position,), chat_template=chat,
        )  # fmt: skip
        found = replace(
            found, items=tuple(replace(i, why=in_cli_words(i.why), do=in_cli_words(i.do)) for i in found.items)
        )
        say(found.to_json() if as_json else str(found))
        if html is not None:
            found.to_html(html)
        if found.verdict == "stop":
            raise typer.Exit(STOPPED)
