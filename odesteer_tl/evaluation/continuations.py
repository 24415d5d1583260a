"""Continuations of prompts, steered or not, with the scores of the judge, perplexity and variety."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl.backends import Generation, generate, generate_strengths, token_losses, tokenise
from odesteer_tl.evaluation.metrics import distinct
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Method, PointwiseMethod
from odesteer_tl.portable.strength import Strength

UNSTEERED = "no steering"

Judge = Callable[[Sequence[str]], Float[Tensor, " n"]]
"""A function from texts to the probability that each is as desired."""

Steerer = Method | tuple[Method, ...]
"""A method, or several of one kind that take turns over the continuations. The control takes several random
directions, as a single one can change the judge's scores by chance."""


@dataclass(frozen=True)
class Setting:
    """The settings that all rows share. Sampling is the paper's: temperature 0.7, top-p 0.9.

    Each row is run at the strengths that spend the `budgets`, KL(unsteered ‖ steered) in nats per token, on the
    validation prompts; a prompt has `samples` continuations at the first budget, and `further_samples` at each other
    (None: as many). `chat`: prompts stand in the model's chat template.
    """

    model: Any
    layer: int
    prompts: list[str]
    validation_prompts: list[str]
    judge: Judge
    samples: int = 10
    further_samples: int | None = None
    max_new_tokens: int = 32
    temperature: float = 0.7
    top_p: float = 0.9
    budgets: tuple[float, ...] = (0.1,)
    seed: int = 0
    chat: bool = False

    def samples_at(self, budget: float) -> int:
        """Continuations of a prompt at a budget."""
        return self.samples if budget == self.budgets[0] or self.further_samples is None else self.further_samples


@dataclass(frozen=True)
class Outcome:
    """Continuations under one setting: `desired` [prompts, samples] is 1.0 where the judge gives more than one half."""

    desired: Float[Tensor, "prompts samples"]
    perplexity: float
    distinct2: float
    tokens_per_second: float
    continuations: list[str]

    @property
    def share(self) -> float:
        return float(self.desired.mean())


def continued(
    setting: Setting,
    prompts: Sequence[str],
    samples: int,
    method: Steerer | None,
    strength: Strength | None,
    prefix: str = "",
    positions: Positions = "decoding",
) -> Outcome:
    """Continue every prompt `samples` times, steered at `positions`. The judge reads the continuations alone.

    With a `prefix` the model reads it and a space before each prompt. The perplexity is still that of the continuation
    after the prompt alone, so that rows with and without a prefix are comparable.
    """
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    steerer, given = (
        (method, strength)
        if method is None or isinstance(method, Method)
        else (turns(method, strength, torch.arange(len(repeated), device="cpu") % len(method)), None)
    )
    start = time.perf_counter()
    out = generate(
        setting.model,
        [f"{prefix} {prompt}" for prompt in repeated] if prefix else repeated,
        steerer,
        given,
        positions=positions,
        layer=None if method is None or first_of(method).several else setting.layer,
        max_new_tokens=setting.max_new_tokens,
        do_sample=True,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=setting.seed,
        chat_template=setting.chat,
    )
    return _outcome(setting, repeated, samples, out, time.perf_counter() - start, bool(prefix))


def continued_at(
    setting: Setting,
    prompts: Sequence[str],
    samples: int,
    method: Method,
    strengths: Sequence[Strength],
    positions: Positions = "decoding",
) -> list[Outcome]:
    """What `continued` gives at each of the strengths, all T or all relative_T, from one batch; each has the seconds of
    the batch over their number."""
    values, relative = [strength.value for strength in strengths], strengths[0].T is None
    start = time.perf_counter()
    found = generate_strengths(
        setting.model,
        prompts,
        method,
        None if relative else values,
        relative_T=values if relative else None,
        samples=samples,
        positions=positions,
        layer=None if method.several else setting.layer,
        max_new_tokens=setting.max_new_tokens,
        do_sample=True,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=setting.seed,
        chat_template=setting.chat,
    )
    seconds = (time.perf_counter() - start) / len(found)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return [_outcome(setting, repeated, samples, out, seconds) for out in found]


def _outcome(
    setting: Setting, repeated: list[str], samples: int, out: Generation, seconds: float, prefixed: bool = False
) -> Outcome:
    """The scores of the continuations of `repeated` prompts, which the model read after a prefix if `prefixed`."""
    alone = after_prompts(setting.model, repeated, out, chat_template=setting.chat) if prefixed else out
    losses, counted = token_losses(setting.model, alone)
    return Outcome(
        desired=(_judged(setting.judge, out.continuations) > 0.5).double().reshape(-1, samples),
        perplexity=float((losses.sum() / counted.sum()).exp()),
        distinct2=distinct(out.continuations),
        tokens_per_second=int(counted.sum()) / seconds,
        continuations=out.continuations,
    )


def first_of(method: Steerer) -> Method:
    """The method, or the first of those that take turns."""
    return method if isinstance(method, Method) else method[0]


def pointwise(method: Steerer) -> PointwiseMethod:
    """The first method, if it maps activations alone. Raises ValueError for one that needs a model."""
    first = first_of(method)
    if not isinstance(first, PointwiseMethod):
        raise ValueError(f"{type(first).__name__} steers models, not activations: compare it with ot.compare.")
    return first


def after_prompts(model: Any, prompts: Sequence[str], out: Generation, **style: Any) -> Generation:
    """The same generated tokens, after `prompts` instead of the prompts that they were generated from. `style` is that
    of `tokenise`."""
    read = tokenise(model, prompts, **style)
    width = int(out.prompt_lengths.max())  # prompts are padded on the left
    tokens = torch.cat([read.tokens, out.tokens[:, width:]], dim=1)
    mask = torch.cat([read.mask, out.mask[:, width:]], dim=1)
    return replace(out, tokens=tokens, mask=mask, prompt_lengths=read.mask.sum(1))


def _judged(judge: Judge, texts: Sequence[str]) -> Float[Tensor, " n"]:
    """The judge's probabilities, on the CPU. Raises ValueError where it does not return one per text."""
    probabilities = torch.as_tensor(judge(texts), device="cpu")
    if probabilities.shape != (len(texts),) or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError(
            f"A judge gives one probability, from 0 to 1, for each of {len(texts)} texts; got "
            f"{tuple(probabilities.shape)}: {probabilities.flatten()[:4].tolist()}."
        )
    return probabilities


def turns(
    methods: tuple[Method, ...], strength: Strength | None, turn: Int[Tensor, " rows"]
) -> list[tuple[Method, Strength]]:
    """Per method one strength per row: the given one where `turn` is the method's number, else 0.

    Turns that continue from prompt to prompt use all methods even if a prompt has fewer continuations.
    """
    own = Strength.of(strength)
    return [
        (method, own.mapped(lambda value, number=number: (turn == number) * torch.as_tensor(value, device="cpu")))
        for number, method in enumerate(methods)
    ]
