"""Generate continuations of the same prompts at several strengths, in one batch that computes the prompts once."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import TokenIds
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import of_rows
from odesteer_tl.backends.checks import check_mask_taken, check_place, warn_of_other_use, whole_number
from odesteer_tl.backends.decode_settings import Decoding, batch_continued, decoding_of, merged_report, seeded
from odesteer_tl.backends.model_info import device_of, dtype_of, load_weights
from odesteer_tl.backends.outputs import Generation, finished
from odesteer_tl.backends.own_draws import OwnDraws
from odesteer_tl.backends.owners import owned, steered_around
from odesteer_tl.backends.steer import check_report, warn_of_limit, warn_of_rounding
from odesteer_tl.backends.tokenize import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.token_rules import checked, chosen_by

Values = Sequence[float] | Tensor
"""Strengths, [strengths]."""


def generate_strengths(
    model: Any,
    prompts: Texts,
    method: Any,
    T: Values | None = None,
    *,
    relative_T: Values | None = None,
    samples: int = 1,
    positions: Positions = "decoding",
    layer: int | None = None,
    max_new_tokens: int = 40,
    do_sample: bool | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_at_eos: bool = True,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    blocks: Any = None,
) -> list[Generation]:
    """Continue `prompts` at each strength of `T` or `relative_T`, all in one batch: one `Generation` per strength.

        weak, strong = ot.generate_strengths(model, prompts, method, relative_T=[0.1, 0.3])

    Each is what `ot.generate(model, prompts, method, T=value, ...)` gives alone, also sampled, from the same `seed`, up
    to rounding; with `samples`, of every prompt that often, one after the other. What comes before the last token of a
    prompt is computed once for all strengths and samples, and the weights are read once per new token for all rows.
    `batch_size` prompts share a batch (None: all), len(T) · samples rows each. The other arguments are those of
    `generate`. The reports, and their counts, are of all strengths together.

    Where `positions` steers tokens before a prompt's last one, where the model's cache cannot be copied by rows (state-
    space models), and inside a `steering` block, a warning says so, and each row computes its own prompt.

    Raises ValueError as `generate` does, and for strengths that are not at least one finite number.
    """
    check_place(model, False, blocks)
    load_weights(model)
    values = _values(model, T, "T"), _values(model, relative_T, "relative_T")
    pairs = pairs_of(method, *values, layer)
    warn_of_other_use(model, method, *values, positions, layer)
    samples = whole_number("samples", samples)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
    decoding = decoding_of(
        model, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p,
        stop_at_eos=stop_at_eos, seed=seed,
    )  # fmt: skip
    texts = tokenise(model, prompts, prepend_bos=prepend_bos, chat_template=chat_template, system=system)
    check_context(model, texts, decoding.options["max_new_tokens"])
    number, count = len(pairs[0][1].value), len(texts.tokens)
    strength_of = torch.arange(number, device="cpu").repeat_interleave(samples)  # of the rows of one prompt
    unshared = _steered_before_the_end(positions, texts) or steered_around(model)
    generators = [torch.Generator(device_of(model)).manual_seed(decoding.seed) for _ in range(number)]
    found: list[list[Tensor]] = [[] for _ in range(number)]
    reports: list[Report] = []
    limits: dict[str, None] = {}
    warn_of_rounding(model, pairs)
    with owned(model, blocks, alone=True), seeded(device_of(model), decoding.seed):
        for chosen in torch.arange(count, device="cpu").split(batch_size or count):
            batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
            check_mask_taken(model, batch.mask)
            cache = None
            if unshared is None and batch.tokens.shape[1] > 1:
                cache = backend_of(model).prompt_cache(model, _start(batch), len(strength_of))
                unshared = f"the cache of this {type(model).__name__} is not copied by rows" if cache is None else None
            at = partial(_repeated, count=len(strength_of))
            parts = strength_of.repeat(len(chosen))
            where = {
                "positions": at(of_rows(positions, chosen, count))
                if isinstance(positions, Tensor) and positions.ndim == 2
                else positions,
                "prompt_lengths": at(batch.mask.sum(1)),
                "layer": layer,
                "blocks": blocks,
            }
            per_row = [(one, strength.mapped(lambda value, parts=parts: value[parts])) for one, strength in pairs]
            tokens, report = _drawn(
                model, Tokenised(*map(at, batch)), decoding, per_row, where, limits, cache, generators, parts
            )
            for part, of_part in enumerate(found):
                of_part.append(tokens[parts == part])
            reports += [] if report is None else [report]
    report = merged_report(reports)
    if report is not None:
        check_report(report, positions)
    warn_of_limit(list(limits))
    if unshared is not None:
        warnings.warn(f"Each row computed its own prompt, which takes longer: {unshared}.", stacklevel=2)
    prompted = Tokenised(*(_repeated(part, samples) for part in texts))
    return [_alone(finished(model, prompted, rows, decoding.eos, report)) for rows in found]


def _start(batch: Tokenised) -> Tokenised:
    """All columns but the last. A row of one token has nothing but pads here: the last of them stands as a token, since
    a model can do nothing with a row of none. Whoever continues the row declares it a pad."""
    mask = batch.mask[:, :-1].clone()
    mask[:, -1] = True
    return Tokenised(batch.tokens[:, :-1], mask)


def _drawn(
    model: Any,
    batch: Tokenised,
    decoding: Decoding,
    pairs: list[Any],
    where: dict[str, Any],
    limits: dict[str, None],
    cache: Any,
    generators: Sequence[torch.Generator],
    parts: Tensor,
) -> tuple[TokenIds, Report | None]:
    """Generate one batch, whose tokens each part draws by its own generator. Raises ValueError if they were drawn in
    another way, which would mix the random numbers of the parts."""
    if not decoding.samples:
        return batch_continued(model, batch, decoding.options, pairs, where, limits, cache=cache)
    with OwnDraws(generators, parts) as draws:
        tokens, report = batch_continued(model, batch, decoding.options, pairs, where, limits, cache=cache)
    if draws.draws != tokens.shape[1] - batch.tokens.shape[1]:
        raise ValueError(
            f"The library drew {draws.draws} times by torch.multinomial for "
            f"{tokens.shape[1] - batch.tokens.shape[1]} new tokens: sample one strength at a time, "
            "ot.generate(model, prompts, method, T=...)."
        )
    return tokens, report


def _values(model: Any, values: Any, name: str) -> Tensor | None:
    """Strengths as a tensor on the CPU, in the precision of the model's numbers. Raises ValueError for no number, and
    for anything but a sequence of numbers."""
    if values is None:
        return None
    dtype = torch.float64 if dtype_of(model) == torch.float64 else torch.float32
    try:
        numbers = torch.as_tensor(values, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.zeros(0, device="cpu")
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"{name} holds the strengths, such as {name}=[0.1, 0.2, 0.4]; got {values!r}.")
    return numbers


def _steered_before_the_end(positions: Positions, texts: Tokenised) -> str | None:
    """Why the strengths share no prompt: positions choose tokens before its last one. None where they do not."""
    index, lengths = texts.mask.long().cumsum(1) - 1, texts.mask.sum(1)
    chosen = chosen_by(checked(positions), index, lengths) & texts.mask & (index < lengths.unsqueeze(1) - 1)
    if not bool(chosen.any()):
        return None
    name = positions if isinstance(positions, str) else type(positions).__name__
    return f"positions={name!r} steers tokens of the prompts, so that each strength has another prompt"


def _repeated(values: Tensor, count: int) -> Tensor:
    return values.repeat_interleave(count, 0)


def _alone(found: Generation) -> Generation:
    """Without the last columns in which only other strengths had tokens."""
    width = int(found.mask.any(0).nonzero().max()) + 1
    return Generation(
        found.texts, found.continuations, found.tokens[:, :width], found.mask[:, :width], found.prompt_lengths,
        found.report,
    )  # fmt: skip
