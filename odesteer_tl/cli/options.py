"""The arguments and options of the commands: their allowed values and their help texts."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from odesteer_tl.cli import values

MAX_SEED = 2**31 - 1
"""The rows of a comparison use multiples of the seed, and torch's seeds have 64 bits."""
MAX_SEEDS = 1_000
MAX_BUDGET = 100.0
MAX_TOKENS = 1_000_000
MAX_LAYER = 10_000
MAX_TIME = 1e9
"""The largest T and relative T: float32 can still add it to an activation and square it."""


class Direction(StrEnum):
    """Which side of the demo's texts is desired."""

    positive = "positive"
    negative = "negative"


MethodName = Annotated[
    str, Option(parser=values.method, metavar="NAME", help=f"One of {', '.join(values.method_names())}.")
]
ModelName = Annotated[
    str,
    Option(
        parser=values.name,
        metavar="NAME",
        help="A name for TransformerLens, a folder, a .gguf file, or 'embedded'.",
    ),
]
OtherModelName = Annotated[
    str | None, Option(parser=values.name, metavar="NAME", help="As for fit. Default: the model of the fit.")
]
Layer = Annotated[
    int | None,
    Option(
        parser=values.whole(0, MAX_LAYER),
        metavar="INTEGER",
        help="Block, from 0. Default: chosen by the data.",
    ),
]
FitLayer = Annotated[
    int | None,
    Option(
        parser=values.whole(0, MAX_LAYER),
        metavar="INTEGER",
        help="Block whose resid_post is read, from 0. Default: the one that steers most for --kl.",
    ),
]
Towards = Annotated[Direction, Option(help="Towards praise or towards its opposite.")]
Seed = Annotated[
    int,
    Option(
        parser=values.whole(0, MAX_SEED),
        metavar="INTEGER",
        help="The same seed gives the same output, except for timings.",
    ),
]
Seeds = Annotated[
    int | None,
    Option(
        parser=values.whole(1, MAX_SEEDS), metavar="INTEGER", help="Number of seeds. Default: 3, or 2 with --quick."
    ),
]
Picture = Annotated[
    Path, Option(parser=values.output, metavar="FILE", help="File for the picture, PNG or another format.")
]
Desired = Annotated[
    Path,
    Argument(
        parser=values.path, metavar="DESIRED", help="A text file, one desired text per line; - is standard input."
    ),
]
Undesired = Annotated[
    Path, Argument(parser=values.path, metavar="UNDESIRED", help="A text file, one undesired text per line.")
]
Queries = Annotated[
    Path | None,
    Option(
        parser=values.path,
        metavar="FILE",
        help="A text file: line i of both files continues its line i. Begin answers with a space.",
    ),
]
Page = Annotated[Path | None, Option("--html", parser=values.output, metavar="FILE", help="File for the page, HTML.")]
Out = Annotated[Path, Argument(parser=values.output, metavar="OUT", help="Folder for the fitted method.")]
Folder = Annotated[Path, Argument(parser=values.path, metavar="FOLDER", help="Folder that `fit` wrote.")]
Prompts = Annotated[list[str], Argument(parser=values.text, metavar="PROMPT...", help="One or more prompts.")]
Position = Annotated[
    Any,  # a name, an index, or None
    Option(
        parser=values.position,
        metavar="WHERE",
        help="last, mean, all, random:3 or an index such as -2. Default: last; without --layer by the data.",
    ),
]
PromptFile = Annotated[
    Path | None,
    Option(
        parser=values.path,
        metavar="FILE",
        help="Prompts to calibrate on, one per line. Default: the queries, or the first words of the texts.",
    ),
]
PromptArgument = Annotated[
    Path, Argument(parser=values.path, metavar="PROMPTS", help="A text file, one prompt per line; - is standard input.")
]
Budget = Annotated[
    float,
    Option(
        "--kl",
        parser=values.number(0.0, MAX_BUDGET, above=True),
        metavar="NATS",
        help="How far the next-token distribution may move, KL(unsteered ‖ steered) on average.",
    ),
]
Quantile = Annotated[
    float | None,
    Option(
        parser=values.number(0.0, 0.999999, above=True),
        metavar="NUMBER",
        help="Budget a quantile of the tokens, such as 0.95, and not their mean.",
    ),
]
Chat = Annotated[bool, Option("--chat", help="Put the prompts into the model's chat template.")]
ChatOrNot = Annotated[
    bool | None,
    Option(
        "--chat/--no-chat",
        help="Whether prompts, and queries or else texts, stand in the chat template. Default: as where the strength "
        "was found; for `fit`, where there are --queries and the model has a template.",
    ),
]
Paired = Annotated[bool, Option("--paired", help="Line i of both files answers the same query.")]
IntegrationTime = Annotated[
    float | None, Option("--T", parser=values.number(-MAX_TIME, MAX_TIME), metavar="NUMBER", help="Integration time.")
]
RelativeTime = Annotated[
    float | None,
    Option(
        "--relative-T",
        parser=values.number(-MAX_TIME, MAX_TIME),
        metavar="NUMBER",
        help="T as a part of ‖a‖, such as 0.25.",
    ),
]
MaxNewTokens = Annotated[int, Option(parser=values.whole(1, MAX_TOKENS), metavar="INTEGER")]
Temperature = Annotated[
    float | None,
    Option(
        parser=values.temperature,
        metavar="NUMBER",
        help="Turns on sampling. 0 is greedy, as are no --temperature and no --top-p.",
    ),
]
TopP = Annotated[
    float | None,
    Option(
        parser=values.number(0.0, 1.0, above=True),
        metavar="NUMBER",
        help="Turns on sampling, from the likeliest tokens.",
    ),
]
Remote = Annotated[
    str | None,
    Option(parser=values.address, metavar="URL", help="Address of an NDIF-like server, to fill its column too."),
]
Others = Annotated[
    list[Path] | None,
    Option("--with", parser=values.path, metavar="FILE", help="JSON output of another installation, to join."),
]
Layers = Annotated[
    Any,  # a list of layers, or None
    Option(parser=values.layers, metavar="LAYERS", help="As in 2,4 or 8:24:4. Default: about eight, evenly spaced."),
]
SweepOut = Annotated[
    Path | None,
    Option(
        "--out",
        parser=values.output,
        metavar="FOLDER",
        help="Folder for finished cells: the same command goes on there.",
    ),
]
SweepSeeds = Annotated[int, Option(parser=values.whole(1, MAX_SEEDS), metavar="INTEGER", help="Number of seeds.")]
AsJson = Annotated[bool, Option("--json", help="Print the numbers as JSON and nothing else.")]
