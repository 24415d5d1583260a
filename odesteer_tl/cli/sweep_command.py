"""The command that sweeps layers, methods and strengths on texts of one's own."""

from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options, sweep_options
from odesteer_tl.cli.app import app
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.outputs import check_writable
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import beginnings, check_differ, check_readable, lines_of
from odesteer_tl.evaluation.sweeps.cells import finished
from odesteer_tl.evaluation.sweeps.guardrails import GUARDRAILS, Bounds

FEWEST = 5
"""Texts a side: each of five folds holds one out."""
NEAR_CHANCE = 0.6
"""The share of held-out texts below which a judge of two sides is said to be of no use."""


@app.command()
@loads_model
def sweep(
    desired: options.Desired,
    undesired: options.Undesired,
    model: options.ModelName = EMBEDDED,
    prompts: sweep_options.SweptPrompts = None,
    methods: sweep_options.Methods = "caa,odesteer",
    layers: options.Layers = None,
    positions: sweep_options.Places = "last",
    strengths: sweep_options.Strengths = "0.05,0.1,0.2,0.4",
    keep: sweep_options.Keep = 3,
    seeds: options.SweepSeeds = 3,
    samples: sweep_options.Samples = 4,
    max_new_tokens: options.MaxNewTokens = 32,
    ablation: sweep_options.Ablation = False,
    kl: sweep_options.AblationBudget = None,
    guardrail: sweep_options.Guardrails = None,
    unrelated: sweep_options.Unrelated = None,
    judge: sweep_options.JudgeChoice = "texts",
    chat: options.Chat = False,
    out: options.SweepOut = None,
    dry_run: sweep_options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Screen layers by the AUC of h, generate at the best with rising strengths until a guardrail or the noise ends it,
    and print the table; a killed run goes on with the same command. The judge is fitted on your files, or --judge."""
    with command_output() as say:
        if out is not None:
            check_writable(out)
        if kl is not None and not ablation:
            raise ValueError("--kl is the budget of the ablation: add --ablation, or leave --kl out.")
        judged = [*judge] if isinstance(judge, tuple) else []
        check_readable(desired, undesired, prompts, unrelated, *judged)
        check_model(model)
        sides = lines_of(desired), lines_of(undesired)
        if min(map(len, sides)) < FEWEST:
            raise ValueError(
                f"{desired} holds {len(sides[0])} texts and {undesired} {len(sides[1])}: a sweep needs at least "
                f"{FEWEST} on a side, and tells more with hundreds."
            )
        check_differ(desired, undesired, sides)
        openings = beginnings(*sides) if prompts is None else lines_of(prompts)
        if len(openings) < 2:
            raise ValueError(f"{prompts} holds one prompt: a sweep needs two or more, whose spread is its noise.")
        bounds = _bounds(guardrail)
        if "unrelated_kl" in bounds and unrelated is None:
            raise ValueError("--guardrail unrelated_kl needs prompts: give --unrelated FILE.")
        others = () if unrelated is None else tuple(lines_of(unrelated))
        read = [*map(lines_of, judged)] or [*sides]
        if min(map(len, read)) < FEWEST:
            raise ValueError(f"--judge {','.join(map(str, judged))} needs at least {FEWEST} texts a side.")
        if judged:
            check_differ(judged[0], judged[1], (read[0], read[1]))
        import odesteer_tl as ot
        from odesteer_tl.backends.chat_templates import has_template
        from odesteer_tl.backends.model_info import tokenizer_of
        from odesteer_tl.evaluation.json_text import json_text
        from odesteer_tl.evaluation.reports.stages import stages
        from odesteer_tl.methods.registry import method_named

        stage = stages()
        judging, told = _judge(judge, read, sides)
        loaded = chosen_model(model)
        if chat and not has_template(tokenizer_of(loaded)):
            raise ValueError("This model has no chat template: leave out --chat, or give a model with one.")
        data = SimpleNamespace(desired=sides[0], undesired=sides[1], prompts=openings, chat=chat)
        options_of = dict(
            layers=layers, positions=positions, strengths=strengths, judge=judging.positive_probability, keep=keep,
            seeds=range(seeds), samples=samples, max_new_tokens=max_new_tokens, out=out, unrelated=others,
            guardrails=bounds, ablation=ablation, kl=0.1 if kl is None else kl,
        )  # fmt: skip
        named = {one.__name__: one for one in map(method_named, methods)}
        plan = ot.sweep(loaded, data, named, dry_run=True, **options_of)  # type: ignore[call-overload]
        if dry_run:
            there = 0 if out is None else finished(out)
            goes_on = (
                f"\n{out} holds {there} finished cells: the same command without --dry-run goes on." if there else ""
            )
            say(json_text(asdict(plan)) if as_json else f"{plan}\n{told}{goes_on}")
            return
        for line in filter(None, [*str(plan).splitlines(), told]):
            stage(line)
        found = ot.sweep(loaded, data, named, progress=stage, **options_of)  # type: ignore[call-overload]
        say(found.to_json() if as_json else f"{found}\n\n{found.conclusion()}\n{told}")


def _judge(choice: Any, read: Sequence[list[str]], sides: Sequence[list[str]]) -> tuple[Any, str]:
    """The judge that was asked for, fitted on the texts that were read for it, and a line about it, with how it judges
    the two `sides` of the sweep where these are others."""
    from odesteer_tl.evaluation.judge import Judge
    from odesteer_tl.evaluation.text_judge import fitted_judge

    if choice == "embedded":
        found = Judge.load_embedded()
        return found, f"Judge: {found.trained_on}. {_of_sides(found, sides)}"
    found, right = fitted_judge(read[0], read[1])
    files = "the two" if choice == "texts" else "two other"
    said = f"Judge: words and pairs of words of {files} files, right for {100 * right:.0f} % of held-out texts"
    said += ", which is near chance: give another --judge." if right < NEAR_CHANCE else "."
    return found, said if choice == "texts" else f"{said} {_of_sides(found, sides)}"


def _of_sides(judge: Any, sides: Sequence[list[str]]) -> str:
    """How a judge of other texts sees those of the sweep: one that calls the undesired ones desired is upside down."""
    up, down = (float((judge.positive_probability(side) > 0.5).double().mean()) for side in sides)
    said = (
        f"Of your files it calls {100 * up:.0f} % of the desired and {100 * down:.0f} % of the undesired texts desired"
    )
    return f"{said}: are its files the other way round?" if up < down else f"{said}."


def _bounds(given: Sequence[tuple[str, float | None, float | None]] | None) -> Bounds:
    """The bounds by measure, several of one measure as one pair; the defaults where none is given. Raises ValueError
    for two on one side, and for a pair that allows nothing."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for name, low, high in given or ():
        before = found.get(name, (None, None))
        if (low is not None and before[0] is not None) or (high is not None and before[1] is not None):
            raise ValueError(f"--guardrail bounds {name} twice on one side: give one of them.")
        found[name] = (before[0] if low is None else low, before[1] if high is None else high)
        if None not in found[name] and found[name][0] > found[name][1]:  # type: ignore[operator]
            raise ValueError(f"--guardrail allows no {name}: its least value is above its largest.")
    return found or GUARDRAILS
