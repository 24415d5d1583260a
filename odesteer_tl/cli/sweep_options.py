"""The options of `sweep` alone: its plan, its guardrails, its judge."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from odesteer_tl.cli import values
from odesteer_tl.cli.options import MAX_BUDGET, MAX_LAYER, MAX_SEEDS

SweptPrompts = Annotated[
    Path | None,
    Option(
        parser=values.path,
        metavar="FILE",
        help="Prompts to continue, one per line. Default: the first words of the texts.",
    ),
]
Methods = Annotated[
    Any,
    Option(parser=values.methods, metavar="NAMES", help="Methods, separated by commas, such as caa,odesteer."),
]
Places = Annotated[Any, Option(parser=values.positions, metavar="WHERE", help="Reading positions, such as last,mean.")]
Strengths = Annotated[
    Any,
    Option(
        parser=values.strengths,
        metavar="NUMBERS",
        help="Separated by commas: relative T where T is a length, else 0.3 is the usual T of the method.",
    ),
]
Keep = Annotated[
    int, Option(parser=values.whole(1, MAX_LAYER), metavar="INTEGER", help="Places of a method that texts come from.")
]
Samples = Annotated[
    int, Option(parser=values.whole(1, MAX_SEEDS), metavar="INTEGER", help="Continuations of a prompt.")
]
Ablation = Annotated[
    bool, Option("--ablation", help="Also h linear or nonlinear, in one step or ten, at equal KL (--kl).")
]
AblationBudget = Annotated[
    float | None,
    Option(
        "--kl",
        parser=values.number(0.0, MAX_BUDGET, above=True),
        metavar="NATS",
        help="What each row of the ablation spends, KL(unsteered ‖ steered) per token. Default: 0.1.",
    ),
]
Guardrails = Annotated[
    list[Any] | None,
    Option(
        "--guardrail",
        parser=values.guardrail,
        metavar="BOUND",
        help="As 'kl<0.5' or 'distinct2>0.3', in place of the defaults kl<1, perplexity_ratio>0.5 and <2. Repeatable.",
    ),
]
JudgeChoice = Annotated[
    Any,
    Option(
        "--judge",
        parser=values.judge,
        metavar="WHICH",
        help="texts (fitted on your two files), embedded (film reviews), or two other files, as good2.txt,bad2.txt.",
    ),
]
Unrelated = Annotated[
    Path | None,
    Option(parser=values.path, metavar="FILE", help="Prompts whose KL is the side effect, unrelated_kl, one per line."),
]
DryRun = Annotated[bool, Option("--dry-run", help="Print the evaluation plan with its cost, and run nothing.")]
