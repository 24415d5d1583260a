"""The commands for texts of one's own: fit, calibrate and generate."""

import warnings
from typing import Annotated, Any

import typer

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.cli import options
from odesteer_tl.cli.app import app
from odesteer_tl.cli.model_options import loads_model
from odesteer_tl.cli.models import check_model, chosen_model
from odesteer_tl.cli.outputs import check_output, keep
from odesteer_tl.cli.pairs import check_pairs
from odesteer_tl.cli.saved_methods import carries_strength, saved_method, was_chat
from odesteer_tl.cli.streams import command_output
from odesteer_tl.cli.text_files import PROMPTS, beginnings, check_differ, check_readable, lines_of, pairs_of
from odesteer_tl.data.tokens import reads_several
from odesteer_tl.evaluation.judged_texts import FEWEST


@app.command()
@loads_model
def fit(
    desired: options.Desired,
    undesired: options.Undesired,
    out: options.Out,
    layer: options.FitLayer = None,
    model: options.ModelName = EMBEDDED,
    method: options.MethodName = "odesteer",
    position: options.Position = None,
    paired: options.Paired = False,
    queries: options.Queries = None,
    prompts: options.PromptFile = None,
    kl: options.Budget = 0.1,
    calibrate: Annotated[
        bool, typer.Option(help="Find the strength that spends --kl, and keep it with the method.")
    ] = True,
    chat: options.ChatOrNot = None,
) -> None:
    """Fit a method on your own texts, find its layer and strength, and save it in a folder; HPR needs --paired or
    --queries, TruthFlow --queries."""
    with command_output() as say:
        check_output(out)
        check_readable(desired, undesired, queries, prompts)
        check_model(model)
        sides, query_lines = pairs_of(desired, undesired, queries, paired)
        prompt_lines = None if prompts is None else lines_of(prompts)
        if layer is None and reads_several(position):
            raise ValueError(f"--position {position} needs --layer: layers are compared by one activation per text.")
        if layer is None and min(map(len, sides)) < FEWEST:
            raise ValueError(
                f"{desired} holds {len(sides[0])} texts and {undesired} {len(sides[1])}: fewer than {FEWEST} on a side "
                "do not show which layer is best. Add texts, or give --layer."
            )
        check_differ(desired, undesired, sides)
        import odesteer_tl as ot
        from odesteer_tl.backends.chat_templates import has_template
        from odesteer_tl.backends.model_info import tokenizer_of
        from odesteer_tl.methods.registry import method_named

        method_class: Any = method_named(method)
        check_pairs(method_class.view.name, method_class.view.needs, sides, query_lines, paired)
        loaded = chosen_model(model)
        chat = (query_lines is not None and has_template(tokenizer_of(loaded))) if chat is None else chat
        own: dict[str, Any] = {"queries": query_lines, "paired": paired, "chat_template": chat}
        if layer is None:
            places = ("last", "mean") if position is None else (position,)
            choice = ot.choose_layer(loaded, *sides, method_class, positions=places, kl=kl, **own)  # type: ignore[arg-type]
            acts, fitted, tables = choice.acts, choice.method, [str(choice)]
        else:
            acts = ot.collect(loaded, *sides, layer=layer, position="last" if position is None else position, **own)  # type: ignore[arg-type]
            acts = acts.without_sinks()
            fitted, tables = method_class.fit(acts), []
        start = f"Now `odesteer-tl generate {out} PROMPT`."
        saved: Any = fitted
        if calibrate:
            given = prompt_lines or (query_lines or [])[: 2 * PROMPTS] or beginnings(*sides)
            try:
                calibration = ot.calibrate(loaded, fitted, given, kl, chat_template=chat)
            except ValueError as error:
                start = f"It carries no strength: {error} {method_class.view.T.start}"
            else:
                saved = calibration.method
                tables.append(str(calibration))
        else:
            start = method_class.view.T.start
        if chat and saved is fitted:
            start += " Its texts stood in the chat template: give --chat to `generate` and `calibrate`."
        keep(saved, out)
        summary = (
            f"Fitted {type(fitted).__name__} on {len(acts.desired)} desired and {len(acts.undesired)} undesired "
            f"activations of {'the embedded model' if model == EMBEDDED else model} at "
            f"{acts.hook_name}{_learned_from(fitted)}; saved in {out}. {start}"
        )
        say("\n\n".join([*tables, summary]))


@app.command()
@loads_model
def calibrate(
    folder: options.Folder,
    prompts: options.PromptArgument,
    kl: options.Budget = 0.1,
    quantile: options.Quantile = None,
    model: options.OtherModelName = None,
    max_new_tokens: options.MaxNewTokens = 24,
    chat: options.ChatOrNot = None,
) -> None:
    """Find the strength at which a fitted method spends a budget of KL on your prompts, and keep it in the folder."""
    with command_output() as say:
        check_output(folder)
        check_readable(prompts)
        lines = lines_of(prompts)
        import odesteer_tl as ot

        method, name = saved_method(folder, model)
        found = ot.calibrate(
            chosen_model(name), method, lines, kl, quantile=quantile, max_new_tokens=max_new_tokens,
            chat_template=was_chat(method) if chat is None else chat,
        )  # fmt: skip
        keep(found.method, folder)
        say(f"{found}\nKept in {folder}: `odesteer-tl generate {folder} PROMPT` needs no --T.")


@app.command()
@loads_model
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
    chat: options.ChatOrNot = None,
) -> None:
    """Continue prompts with a fitted method, and print the unsteered continuation beside it."""
    with command_output() as say:
        if T is not None and relative_T is not None:
            raise ValueError("Give either --T or --relative-T; got both.")
        import odesteer_tl as ot
        from odesteer_tl.backends.chat_templates import has_template
        from odesteer_tl.backends.model_info import tokenizer_of

        method, name = saved_method(folder, model)
        if T is None and relative_T is None and not carries_strength(method):
            raise ValueError(
                f"Give either --T or --relative-T: the method in {folder} carries no strength. `odesteer-tl calibrate "
                f"{folder} PROMPTS` finds one."
            )
        loaded = chosen_model(name)
        own_chat = was_chat(method)
        chat = own_chat if chat is None else chat
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "chat_template": chat}
        if T is None and relative_T is None and chat != own_chat:
            found, there = ("in", "out of") if own_chat else ("out of", "in")
            warnings.warn(
                f"The strength was found on prompts {found} the chat template, and is used {there} it: `odesteer-tl "
                f"calibrate {folder} PROMPTS {'--chat' if chat else '--no-chat'}` finds the one for it.",
                stacklevel=1,
            )
        if temperature is not None or top_p is not None:
            sampling |= {"do_sample": True, "top_p": top_p, "temperature": 1.0 if temperature is None else temperature}
        # Steered first: a method that does not fit the model raises before anything is generated.
        steered = ot.generate(loaded, prompt, method, T, relative_T=relative_T, **sampling)
        plain = ot.generate(loaded, prompt, **sampling)
        for unsteered_text, steered_text in zip(plain.texts, steered.texts, strict=True):
            say(f"unsteered  {unsteered_text}\nsteered    {steered_text}\n")
        silent = not all(map(str.strip, [*plain.continuations, *steered.continuations]))
        if silent and not chat and has_template(tokenizer_of(loaded)):
            warnings.warn("A text ended at once. This model answers in a chat template: give --chat.", stacklevel=1)


def _learned_from(fitted: Any) -> str:
    """The data on which a value network was trained, as text for the message."""
    return f", its value network trained on {fitted.trained_on}" if hasattr(fitted, "trained_on") else ""
