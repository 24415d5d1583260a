"""The command that makes pairs of texts for a described axis."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import contrast_options, options
from odesteer_tl.cli.app import app
from odesteer_tl.cli.exit_codes import STOPPED
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.outputs import check_writable
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import check_readable, lines_of
from odesteer_tl.evaluation.contrasts.contrast_files import check_new
from odesteer_tl.evaluation.judged_texts import FEWEST


@app.command()
@loads_model
def contrastive(
    out: contrast_options.ContrastOut,
    axis: contrast_options.Axis,
    desired: contrast_options.DesiredAnswer,
    undesired: contrast_options.UndesiredAnswer,
    ambiguous: contrast_options.Ambiguous = None,
    questions: contrast_options.Questions = None,
    write_questions: contrast_options.WriteQuestions = None,
    forms: contrast_options.Forms = None,
    examples: contrast_options.Examples = None,
    answers: Annotated[
        bool, typer.Option("--answers/--no-answers", help="Write answers, or keep the paired prompts themselves.")
    ] = True,
    model: options.ModelName = EMBEDDED,
    max_new_tokens: options.MaxNewTokens = 60,
    seed: options.Seed = 0,
    check: Annotated[bool, typer.Option(help="Look at the pairs as `check` does, with --layers.")] = True,
    layers: options.Layers = None,
    as_json: options.AsJson = False,
) -> None:
    """Make pairs of texts that differ in what you describe: each question is asked twice, and the answers are a pair.
    Writes lines for `check` and `fit`, JSON, and a file to label; ends with 3 where the check says stop."""
    with command_output() as say:
        check_new(out)
        check_writable(out)
        check_readable(questions, examples)
        check_model(model)
        if questions is not None and write_questions is not None:
            raise ValueError("Give either --questions or --write-questions; got both.")
        asked = write_questions if questions is None else lines_of(questions)
        shown = [] if examples is None else _examples(examples)
        if "few-shot" in (forms or ()) and not shown:
            raise ValueError("--forms few-shot shows examples: give --examples FILE.")
        import odesteer_tl as ot

        loaded = chosen_model(model)
        found = ot.contrastive(
            loaded, axis, desired, undesired, ambiguous=ambiguous or (), questions=asked, forms=forms, examples=shown,
            answers=answers, max_new_tokens=max_new_tokens, seed=seed,
        )  # fmt: skip
        found.save(out)
        looked = found.check(loaded, layers=layers) if check and len(found) >= FEWEST else None
        if as_json:
            tree = {"folder": str(out), "pairs": len(found), "dropped": len(found.dropped), "check": None}
            say(json.dumps(tree | ({} if looked is None else {"check": json.loads(looked.to_json())}), indent=1))
        else:
            rest = "--queries {0}/questions.txt" if answers else "--paired"
            say("\n\n".join([str(found), *([] if looked is None else [str(looked)]), (
                f"Kept in {out}: read the pairs, or have {out}/to_label.jsonl labelled; then `odesteer-tl fit "
                f"{out}/desired.txt {out}/undesired.txt METHOD {rest.format(out)}`."
            )]))  # fmt: skip
        if looked is not None and looked.verdict == "stop":
            raise typer.Exit(STOPPED)


def _examples(file: Path) -> list[Any]:
    rows = [tuple(map(str.strip, line.split("\t"))) for line in lines_of(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != 3 or not all(row):
            raise ValueError(
                f"Example {number} of {file} has {len(row)} parts: a line is a question, a desired and an undesired "
                "answer, with tabs between."
            )
    return rows
