"""The arguments and options of `contrastive` alone."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from odesteer_tl.cli import values
from odesteer_tl.cli.options import MAX_LAYER

Axis = Annotated[str, Option(parser=values.name, metavar="TEXT", help="The name of what differs, as politeness.")]
DesiredAnswer = Annotated[
    str, Option("--desired", parser=values.name, metavar="TEXT", help='Completes "The answer …", as in "is polite".')
]
UndesiredAnswer = Annotated[
    str, Option("--undesired", parser=values.name, metavar="TEXT", help='Completes "The answer …", as in "is rude".')
]
Ambiguous = Annotated[
    list[str] | None,
    Option(parser=values.name, metavar="TEXT", help="A case that belongs to neither side, for labelling. Repeatable."),
]
Questions = Annotated[
    Path | None,
    Option(parser=values.path, metavar="FILE", help="A text file, one question per line. Default: 64 everyday ones."),
]
WriteQuestions = Annotated[
    int | None,
    Option(parser=values.whole(2, MAX_LAYER), metavar="INTEGER", help="How many questions the model shall write."),
]
Forms = Annotated[
    Any,
    Option(parser=values.forms, metavar="NAMES", help="How pairs are asked for: system, persona, few-shot."),
]
Examples = Annotated[
    Path | None,
    Option(
        parser=values.path,
        metavar="FILE",
        help="A text file: a question, a desired and an undesired answer per line, with tabs between.",
    ),
]
ContrastOut = Annotated[Path, Argument(parser=values.output, metavar="OUT", help="A new folder for the texts.")]
