"""Generate continuations of prompts, steered or not, reproducibly."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.backends.batches import of_rows
from odesteer_tl.backends.checks import check_mask_taken, check_place, warn_of_other_use, whole_number
from odesteer_tl.backends.decode_settings import batch_continued, decoding_of, merged_report, seeded
from odesteer_tl.backends.model_info import device_of, load_weights
from odesteer_tl.backends.outputs import Generation, finished
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.steer import check_report, warn_of_limit, warn_of_rounding
from odesteer_tl.backends.tokenize import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.positions import Positions, PromptLengths
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.method_list import pairs_of
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
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
    decoding = decoding_of(
        model, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p,
        stop_at_eos=stop_at_eos, seed=seed, num_beams=num_beams, use_past_kv_cache=use_past_kv_cache,
    )  # fmt: skip
    texts = tokenise(model, prompts, prepend_bos=prepend_bos, chat_template=chat_template, system=system)
    count = len(texts.tokens)
    lengths = None if prompt_lengths is None else lengths_of(prompt_lengths)
    seeds = torch.Generator().manual_seed(decoding.seed)  # one seed per batch for a server
    check_context(model, texts, decoding.options["max_new_tokens"])
    warn_of_rounding(model, pairs)
    limits: dict[str, None] = {}  # the sites where float16 was too small, each once
    generated: list[Tensor] = []
    reports: list[Report] = []
    ownership = nullcontext() if method is None or remote else owned(model, blocks, alone=True)
    with ownership, seeded(device_of(model), decoding.seed):
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
            tokens, report = batch_continued(
                model, batch, decoding.options, batch_pairs, intervene_args, limits, remote, batch_seed
            )
            generated.append(tokens)
            reports += [] if report is None else [report]
    report = merged_report(reports)
    if report is not None:
        check_report(report, positions)
    warn_of_limit(list(limits))
    return finished(model, texts, generated, decoding.eos, report)
