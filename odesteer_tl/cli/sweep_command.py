"""The command that sweeps layers, methods and strengths on texts of one's own."""

from dataclasses import asdict
from types import SimpleNamespace

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options
from odesteer_tl.cli.app import app
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.outputs import check_writable
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import beginnings, check_differ, check_readable, lines_of

FEWEST = 5
"""Texts a side: each of five folds holds one out."""


@app.command()
def sweep(
    desired: options.Desired,
    undesired: options.Undesired,
    model: options.ModelName = EMBEDDED,
    prompts: options.PromptFile = None,
    methods: options.Methods = "caa,odesteer",
    layers: options.Layers = None,
    positions: options.Places = "last",
    strengths: options.Strengths = "0.05,0.1,0.2,0.4",
    keep: options.Keep = 3,
    seeds: options.SweepSeeds = 3,
    samples: options.Samples = 4,
    max_new_tokens: options.MaxNewTokens = 32,
    ablation: options.Ablation = False,
    kl: options.AblationBudget = None,
    out: options.SweepOut = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Screen layers by the AUC of h, generate at the best with rising strengths until a guardrail or the noise ends it,
    and print the table; a killed run goes on with the same command. The judge is fitted on your two files."""
    with command_output() as say:
        if out is not None:
            check_writable(out)
        if kl is not None and not ablation:
            raise ValueError("--kl is the budget of the ablation: add --ablation, or leave --kl out.")
        check_readable(desired, undesired, prompts)
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
        import odesteer_tl as ot
        from odesteer_tl.evaluation.json_text import json_text
        from odesteer_tl.evaluation.reports.stages import stages
        from odesteer_tl.evaluation.text_judge import fitted_judge
        from odesteer_tl.methods.registry import method_named

        stage = stages()
        judge, accuracy = fitted_judge(*sides)
        loaded = chosen_model(model)
        data = SimpleNamespace(desired=sides[0], undesired=sides[1], prompts=openings)
        options_of = dict(
            layers=layers, positions=positions, strengths=strengths, judge=judge.positive_probability, keep=keep,
            seeds=range(seeds), samples=samples, max_new_tokens=max_new_tokens, out=out,
            ablation=ablation, kl=0.1 if kl is None else kl,
        )  # fmt: skip
        named = {one.__name__: one for one in map(method_named, methods)}
        plan = ot.sweep(loaded, data, named, dry_run=True, **options_of)  # type: ignore[call-overload]
        told = f"Judge: words and pairs of words of the two files, right for {100 * accuracy:.0f} % of held-out texts."
        if dry_run:
            say(json_text(asdict(plan)) if as_json else f"{plan}\n{told}")
            return
        for line in filter(None, [*str(plan).splitlines(), told]):
            stage(line)
        found = ot.sweep(loaded, data, named, progress=stage, **options_of)  # type: ignore[call-overload]
        say(found.to_json() if as_json else f"{found}\n\n{found.conclusion()}\n{told}")
