"""Runs an nnsight model on tokens, here or on a server: activations, logits and continuations."""

from collections.abc import Iterable
from typing import Any

import nnsight
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Position, TokenIds, TokenMask
from odesteer_tl.backends.model_info import pad_id_of, vocabulary_of
from odesteer_tl.backends.nnsight.replies import (
    activations_in,
    check_means,
    check_norms,
    report_in,
    tokens_in,
    width_at,
)
from odesteer_tl.backends.nnsight.server_errors import server_request
from odesteer_tl.backends.tokenize import right_padded
from odesteer_tl.backends.transformers_caches import cache_options, copied, name_in_generate
from odesteer_tl.backends.transformers_settings import generation_options, settings_put_aside
from odesteer_tl.data.tokens import Reading, Tokenised, tokens_at, without_sinks
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.nnsight.gather import averaged_at, picked_at
from odesteer_tl.portable.nnsight.intervene import intervene
from odesteer_tl.portable.strength import Strength

OVERHEAD_BYTES, _MAX_WIDTH = 2**22, 2**17
"""Bytes of a reply besides its numbers; and a width that is larger than that of any model."""


def activations_of(
    model: Any,
    batch: Tokenised,
    layers: list[int],
    site: str,
    position: Position,
    read: TokenMask,
    keep_sinks: bool,
    remote: bool | str = False,
    blocks: Any = None,
) -> Reading:
    """The activations of a batch at a site of each layer (ascending), float32 on the CPU, the row of each, and the
    norms and sinks (see `tokens.without_sinks`), in one pass. Only tokens of `read` are read. Later blocks are not run.
    Raises ValueError inside a trace, and as `ServerRequest` does; RuntimeError for a reply that is not what was asked.
    """
    if model.interleaver.interleaving:
        raise ValueError("Reading activations runs the model: call ot.collect outside the trace.")
    inputs, mask = inputs_of(model, batch)
    read = torch.zeros_like(mask).masked_scatter(mask, read[batch.mask])  # in the columns of the right-padded batch
    sources, columns = tokens_at(read, position).nonzero(as_tuple=True)
    values, width = None, width_at(model, blocks, layers, site) if remote else None
    max_bytes = OVERHEAD_BYTES + 8 * len(layers) * (len(sources) * (width or _MAX_WIDTH) + mask.numel())
    server = server_request(model, remote, max_bytes)
    if position == "mean":
        with model.trace(**inputs, use_cache=False, remote=remote, backend=server) as tracer:
            values = nnsight.save(averaged_at(model, blocks, layers, site, mask, read, keep_sinks))
            tracer.stop()
    else:
        with model.trace(**inputs, use_cache=False, remote=remote, backend=server) as tracer:
            values = nnsight.save(picked_at(model, blocks, layers, site, sources, columns))
            tracer.stop()
    if server is not None:
        (reply,) = server.named("values")
        count = len(mask) if position == "mean" else len(sources)
        samples, norms = activations_in(reply, len(layers), count, width, mask, server.refused)
    elif values is None:
        raise RuntimeError("The trace saved no activations.")
    else:
        samples, norms = [sample for sample, _ in values], [norm for _, norm in values]
    chosen, met = without_sinks(norms, mask, read, position, keep_sinks)
    if server is not None:
        for sample, norm, kept in zip(samples, norms, chosen, strict=True):
            if position == "mean":
                check_means(sample, norm, kept, server.refused)
            else:
                check_norms(sample, norm[sources, columns], server.refused)
    if position == "mean":
        return Reading(samples, torch.arange(len(mask), device="cpu"), met)
    kept = chosen[0][sources, columns]  # the same at every site
    return Reading([sample[kept] for sample in samples], sources[kept], met)


def logits_of(model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every real token of a left-padded batch, at its row and column, on the CPU; 0 at pads."""
    inputs, mask = inputs_of(model, batch)
    with model.trace(**inputs, use_cache=False):
        output = nnsight.save(model.output)
    output = output.logits.float().cpu()
    logits = output.new_zeros(*batch.tokens.shape, output.shape[-1])
    logits[batch.mask] = output[mask]
    return logits


def inputs_of(model: Any, batch: Tokenised) -> tuple[dict[str, TokenIds], TokenMask]:
    """The right-padded inputs of a trace, and their mask."""
    tokens, mask = right_padded(batch, pad_id_of(model) or 0)
    return {"input_ids": tokens, "attention_mask": mask.long()}, mask


def prompt_cache(model: Any, batch: Tokenised, copies: int) -> Any:
    """`Backend.prompt_cache`, from Hugging Face's generate under nnsight. Edits on the model act in it."""
    with settings_put_aside(model._module):
        out = model.generate(batch.tokens, attention_mask=batch.mask.long(), **cache_options())
    return copied(out[name_in_generate()], batch.tokens.shape[1], copies)


def continued(model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
    """Prompts and continuations, by Hugging Face's generate under nnsight on this machine; with a `cache` of all
    columns but the last. Edits on the model act in every pass."""
    own = {} if cache is None else {name_in_generate(): cache}
    with settings_put_aside(model._module):
        settings = generation_options(options, pad_id_of(model)) | own
        return model.generate(batch.tokens, attention_mask=batch.mask.long(), **settings).cpu()


def continued_remotely(
    model: Any,
    batch: Tokenised,
    options: dict[str, Any],
    pairs: list[tuple[Any, Strength]],
    intervene_args: dict[str, Any],
    remote: bool | str,
    seed: int,
    written: Iterable[int],
) -> tuple[TokenIds, Report | None]:
    """Prompts and continuations from a server, steered there by `intervene(model, pairs, **intervene_args)`, and the
    counts of steered tokens.

    Random numbers start from `seed` on the server. Settings that a checkpoint has beyond those of `generation_options`
    act there. Raises as `ServerRequest` does, and RuntimeError for a reply that is not what was asked. Steered layers
    are among `written`.
    """
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}
    beams = options.get("num_beams", 1)
    remote_args = {name: per_row(value, beams) for name, value in intervene_args.items()}
    if isinstance(mask := intervene_args["positions"], Tensor) and mask.ndim == 1:  # one for every row
        remote_args["positions"] = mask.cpu()
    methods = [(method, strength.mapped(lambda value: per_row(value, beams))) for method, strength in pairs]
    tokens, steered, steer, new = None, None, bool(pairs), options["max_new_tokens"]
    rows = len(batch.tokens) * beams
    server = server_request(model, remote, OVERHEAD_BYTES + 16 * len(batch.tokens) * (batch.tokens.shape[1] + new))
    with model.generate(remote=remote, backend=server, **generation_options(options, pad_id_of(model))) as tracer:
        with tracer.invoke(inputs):
            torch.manual_seed(seed)
            steered = nnsight.save({})
            if steer:
                for _ in tracer.iter[:]:
                    steered.update(intervene(model, methods, **remote_args))
        with tracer.invoke():
            tokens = nnsight.save(tracer.result)
    if server is None:
        if tokens is None or steered is None:
            raise RuntimeError("The trace saved no text.")
        return tokens.cpu(), Report(steered) if steer else None
    tokens, steered = server.named("tokens", "steered")
    eos, pad = options.get("eos_token_id", []), pad_id_of(model) or 0
    ends = [eos] if isinstance(eos, int) else eos
    tokens = tokens_in(tokens, batch, new, vocabulary_of(model), pad, ends, server.refused)
    max_count = beams * int(batch.mask.sum()) + rows * new
    # All other names choose the last token of every prompt; a mask, a slice or `prompt_lengths` may choose none.
    positions, lengths = intervene_args["positions"], intervene_args["prompt_lengths"]
    min_count = rows if steer and lengths is None and isinstance(positions, str) and positions != "generated" else 0
    steered = report_in(steered, written if steer else (), min_count, max_count, server.refused)
    return tokens, Report(steered) if steer else None


def per_row(value: Any, beams: int) -> Any:
    """The value for a server: tensors on the CPU, because the server may have no other device, and a tensor of one
    value per prompt repeated to one per row."""
    if not isinstance(value, Tensor):
        return value
    return repeat(value.cpu(), "prompt ... -> (prompt beam) ...", beam=beams) if value.ndim else value.cpu()
