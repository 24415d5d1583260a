"""Generate continuations of prompts, steered or not, reproducibly."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import Time, TimeOrStrength, TokenIds
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.batches import of_rows
from odesteer_tl.backends.checks import check_mask_taken, check_place, real_number, warn_of_other_use, whole_number
from odesteer_tl.backends.model_info import device_of, eos_ids_of, load_weights
from odesteer_tl.backends.outputs import Generation, finished
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.steer import attached, check_report, edit_runner_for, warn_of_limit, warn_of_rounding
from odesteer_tl.backends.tokenize import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions, PromptLengths
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_rules import lengths_of


def generate(
    model: Any,
    prompts: Texts,
    method: Any = None,
    T: TimeOrStrength | None = None,
    *,
    relative_T: Time | None = None,
    positions: Positions = "decoding",
    prompt_lengths: PromptLengths | None = None,
    layer: int | None = None,
    max_new_tokens: int = 40,
    do_sample: bool | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    use_past_kv_cache: bool = True,
    stop_at_eos: bool = True,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> Generation:
    """Continue `prompts`, steered by `method` (see `steering`), or unsteered if it is None.

    Decoding is greedy unless `do_sample`, a `temperature` other than 1, `top_k` or `top_p` asks for sampling;
    temperature 0 is greedy. `prompt_lengths` (in real tokens, one number or one per prompt) moves the border between
    prompt and continuation into the prompts, for example to the end of an instruction: with positions="generated" all
    tokens after it are steered. Sampling starts from `seed`, and leaves the global random generators here as they were;
    on a server it sets them. Other threads that sample at the same time change the result.
    `num_beams` > 1 does not work with HookedTransformer. `T` may hold one value per prompt. `batch_size` None takes all
    prompts at once; greedy continuations do not depend on it. `prompts`, `system`, `remote` and `blocks` are as in
    `collect`.

    Raises ValueError as `tokenise` and `steering` do; for a T without a method, or with another number of values than
    prompts; for a wrong number of tokens (also beyond the model's context), temperature or number of beams; and, before
    anything is sent, for a method that cannot be sent. ConnectionError if a server is not reached or the connection is
    lost. RuntimeError if the server fails, or sends back something else than was asked for: other prompts, too many
    tokens, tokens outside the vocabulary, impossible counts. A server that steers differently, or another model, is not
    noticed.
    """
    check_place(model, remote, blocks)
    if not remote:
        load_weights(model)
    if method is None and (T is not None or relative_T is not None):
        raise ValueError("T was given without a method: type ot.generate(model, prompts, method, T=...).")
    pairs = []
    if method is not None:
        pairs = pairs_of(method, T, relative_T, layer)
        warn_of_other_use(model, method, T, relative_T, positions, layer)
    max_new_tokens, num_beams = whole_number("max_new_tokens", max_new_tokens), whole_number("num_beams", num_beams)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
    temperature, seed = real_number("temperature", temperature), whole_number("seed", seed, -(2**63))
    top_k = None if top_k is None else whole_number("top_k", top_k)
    top_p = None if top_p is None else real_number("top_p", top_p)
    if seed >= 2**63 or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"top_p must lie in (0, 1] and seed below 2**63, got {top_p} and {seed}.")
    backend_of(model).check_generates(model, num_beams)
    if do_sample is None:
        do_sample = temperature not in (0.0, 1.0) or top_k is not None or top_p is not None
    eos = eos_ids_of(model) if stop_at_eos else []
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop_at_eos": bool(eos),
        "do_sample": do_sample and temperature > 0,
        "use_past_kv_cache": use_past_kv_cache,
        "return_type": "tokens",
    }
    if eos:
        options["eos_token_id"] = eos if len(eos) > 1 else eos[0]
    if options["do_sample"]:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if num_beams > 1:
        options["num_beams"] = num_beams
    texts = tokenise(model, prompts, prepend_bos=prepend_bos, chat_template=chat_template, system=system)
    count = len(texts.tokens)
    lengths = None if prompt_lengths is None else lengths_of(prompt_lengths)
    seeds = torch.Generator().manual_seed(seed)  # one seed per batch for a server, which has its own generators
    check_context(model, texts, max_new_tokens)
    warn_of_rounding(model, pairs)
    limits: dict[str, None] = {}  # the sites where float16 was too small, each once
    generated: list[Tensor] = []
    reports: list[Report] = []
    ownership = nullcontext() if method is None or remote else owned(model, blocks, alone=True)
    with ownership, _seeded(device_of(model), seed):
        for chosen in torch.arange(count, device="cpu").split(batch_size or count):
            rows_of_batch = partial(of_rows, rows=chosen, count=count)
            batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
            batch_pairs = [(method, strength.mapped(rows_of_batch)) for method, strength in pairs]
            intervene_args = {
                "positions": rows_of_batch(positions)
                if isinstance(positions, Tensor) and positions.ndim == 2
                else positions,
                "prompt_lengths": rows_of_batch(lengths),
                "layer": layer,
                "blocks": blocks,
            }
            batch_seed = int(torch.randint(2**62, (), generator=seeds, device="cpu"))
            check_mask_taken(model, batch.mask)
            tokens, report = _continued(model, batch, options, batch_pairs, intervene_args, remote, batch_seed, limits)
            generated.append(tokens)
            reports += [] if report is None else [report]
    report = _merged_report(reports)
    if report is not None:
        check_report(report, positions)
    warn_of_limit(list(limits))
    return finished(model, texts, generated, eos, report)


def _continued(
    model: Any,
    batch: Tokenised,
    options: dict[str, Any],
    pairs: list[tuple[Any, Strength]],
    intervene_args: dict[str, Any],
    remote: bool | str,
    seed: int,
    limits: dict[str, None],
) -> tuple[TokenIds, Report | None]:
    """Generate one batch by the library's own generate; `seed` is for a server. `limits` gets the sites at which
    activations were cut to the largest float16."""
    backend, beams = backend_of(model), options.get("num_beams", 1)
    runner = edit_runner_for(model, pairs, **intervene_args, beams=beams) if pairs else None
    if remote:  # making the runner has checked that the method fits; the server does the steering
        written = () if runner is None else runner.tokens_steered
        tokens, report = backend.generate_remotely(model, batch, options, pairs, intervene_args, remote, seed, written)
        if runner is not None and report is not None:
            report.tokens_steered = runner.tokens_steered | report.tokens_steered
        return tokens, report
    if runner is None:
        return backend.generate(model, batch, options), None
    with attached(model, runner, intervene_args["blocks"]) as report:
        tokens = backend.generate(model, batch, options)
    limits |= dict.fromkeys(runner.at_limit)
    return tokens, report


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Inside the block random numbers on the CPU and on `device` start from `seed`; afterwards the global generators
    continue as before."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _merged_report(reports: list[Report]) -> Report | None:
    if not reports:
        return None
    layers = {layer: sum(report.tokens_steered[layer] for report in reports) for layer in reports[0].tokens_steered}
    return Report(layers, any(report.hooks_removed for report in reports))
