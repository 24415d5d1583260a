"""Sampled continuations of prompts under a row, with what the unsteered model says of them."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.generate_strengths import generate_strengths
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.score import token_losses
from odesteer_tl.benchmarks.applied import Applied
from odesteer_tl.evaluation.continuations import after_prompts, turns
from odesteer_tl.evaluation.metrics import distinct


@dataclass(frozen=True)
class Sampling:
    """How texts are sampled: `samples` of each prompt, of at most `max_new_tokens`. The defaults are ODESteer's
    temperature and top-p."""

    samples: int = 3
    max_new_tokens: int = 20
    temperature: float = 0.7
    top_p: float = 0.9
    batch_size: int = 32

    def record(self) -> dict[str, Any]:
        """In plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sampled:
    """`texts`: the continuations, all of the first prompt first. `guardrails`: perplexity under the unsteered model,
    pooled over tokens and after the prompt without the row's prefix, and Dist-1/2/3, pooled over texts."""

    texts: list[str]
    guardrails: dict[str, float | None]

    def of_prompt(self, number: int, samples: int) -> list[str]:
        """Those of one prompt."""
        return self.texts[number * samples : (number + 1) * samples]


def sampled(
    model: Any, prompts: Sequence[str], applied: Applied, how: Sampling, seed: int, bos: bool | None
) -> Sampled:
    """Continue every prompt; prompt i is steered by the method whose turn it is."""
    repeated = [prompt for prompt in prompts for _ in range(how.samples)]
    out = _continued(model, [applied.prompt(prompt) for prompt in prompts], applied, how, seed, bos)
    alone = after_prompts(model, repeated, out, prepend_bos=bos) if applied.prefix else out
    losses, counted = token_losses(model, alone, how.batch_size)
    tokens = int(counted.sum())
    perplexity = float((losses.sum() / tokens).exp()) if tokens else math.nan
    found = {"perplexity": perplexity} | {f"Dist-{n}": distinct(out.continuations, n) for n in (1, 2, 3)}
    return Sampled(out.continuations, {name: one if math.isfinite(one) else None for name, one in found.items()})


def _continued(
    model: Any, prompts: list[str], applied: Applied, how: Sampling, seed: int, bos: bool | None
) -> Generation:
    """All samples of each prompt. Under one method that does not steer the prompts they are computed once for all their
    samples. Every row shares its passes, and so its random numbers, with the same others, whatever is steered."""
    given: dict[str, Any] = {
        "positions": applied.positions, "max_new_tokens": how.max_new_tokens, "do_sample": True,
        "temperature": how.temperature, "top_p": how.top_p, "seed": seed, "prepend_bos": bos,
    }  # fmt: skip
    at_once = how.batch_size // how.samples  # prompts; none where the samples of one are too many for a pass
    methods, strength = applied.methods, applied.strength
    prompts_alike = applied.positions in ("decoding", "generated")
    if at_once and len(methods) == 1 and strength is not None and strength.rows is None and prompts_alike:
        T, relative_T = (None if one is None else [float(one)] for one in (strength.T, strength.relative_T))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Each row computed its own prompt", UserWarning)
            return generate_strengths(
                model, prompts, methods[0], T, relative_T=relative_T, samples=how.samples, batch_size=at_once, **given
            )[0]  # fmt: skip
    owner = torch.arange(len(prompts), device="cpu").repeat_interleave(how.samples)
    pairs = turns(methods, strength, owner % len(methods)) if methods and strength is not None else None
    rows = at_once * how.samples or how.batch_size
    return generate(model, [prompts[row] for row in owner], pairs, batch_size=rows, **given)
