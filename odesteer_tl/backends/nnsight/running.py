"""Running an nnsight model on tokens, here or on a server: what it holds at a layer, and what it continues with."""

from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from odesteer_tl.backends.models import pad_id_of
from odesteer_tl.backends.nnsight.asking import asking
from odesteer_tl.backends.nnsight.intervening import intervene
from odesteer_tl.backends.nnsight.picking import averaged_at, picked_at
from odesteer_tl.backends.report import Report
from odesteer_tl.shapes import PerRow, Position, Samples, TokenIds, TokenMask
from odesteer_tl.tokens import Tokenised, after, read_tokens

_NEVER = 2**31 - 1


def activations_of(
    model: Any,
    batch: Tokenised,
    layers: list[int],
    site: str,
    position: Position,
    remote: bool | str = False,
    blocks: Any = None,
    starts: PerRow | None = None,
) -> tuple[list[Samples], Int[Tensor, " n"]]:
    """The activations of a batch at a site of each layer (ascending), float32 on the CPU, and the row that each came
    from, in one pass. The first `starts` tokens of each row are not read. Later blocks are not run. Raises ValueError
    inside a trace, and as `asking` does.
    """
    if model.interleaver.interleaving:
        raise ValueError("Reading runs the model: do it outside the trace.")
    inputs, mask = _right_padded(model, batch)
    mask = after(mask, starts)
    whole = torch.arange(mask.shape[1], dtype=torch.float32).expand(mask.shape).unsqueeze(-1)
    columns, sources = read_tokens(whole, mask, position)  # which columns are read, by the one rule
    where = columns.squeeze(-1).long()
    values = None
    with asking(remote):
        if position == "mean":
            with model.trace(**inputs, use_cache=False, remote=remote) as tracer:
                values = nnsight.save(averaged_at(model, blocks, layers, site, mask))
                tracer.stop()
        else:
            with model.trace(**inputs, use_cache=False, remote=remote) as tracer:
                values = nnsight.save(picked_at(model, blocks, layers, site, sources, where))
                tracer.stop()
    if values is None:
        raise RuntimeError("The server says that it is done, and sent back no activations.")
    return values, sources


def logits_of(model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every real token of a left-padded batch, in its columns, on the CPU; 0 at pads."""
    inputs, mask = _right_padded(model, batch)
    with model.trace(**inputs, use_cache=False):
        found = nnsight.save(model.output)
    found = found.logits.float().cpu()
    logits = found.new_zeros(*batch.tokens.shape, found.shape[-1])
    logits[batch.mask] = found[mask]
    return logits


def _right_padded(model: Any, batch: Tokenised) -> tuple[dict[str, TokenIds], TokenMask]:
    """The same texts with their pads on the right, where a causal model needs no positions to be told."""
    rows = [row[real] for row, real in zip(*batch, strict=True)]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad_id_of(model) or 0)
    mask = torch.arange(tokens.shape[1]) < batch.mask.sum(1, keepdim=True)
    return {"input_ids": tokens, "attention_mask": mask.long()}, mask


def continued(model: Any, batch: Tokenised, options: dict[str, Any]) -> TokenIds:
    """Hugging Face's generate, as nnsight runs it here: whatever edits stand on the model act in every pass.

    A checkpoint's own settings (banned words, lengths, penalties) are put aside for as long as it lasts.
    """
    inner, own = model._module, getattr(model._module, "generation_config", None)
    try:
        if own is not None:
            inner.generation_config = type(own)(bos_token_id=own.bos_token_id)
        return model.generate(batch.tokens, attention_mask=batch.mask.long(), **_own(model, options)).cpu()
    finally:
        if own is not None:
            inner.generation_config = own


def continued_remotely(
    model: Any,
    batch: Tokenised,
    options: dict[str, Any],
    method: Any,
    strength: dict[str, Any],
    remote: bool | str,
    seed: int,
) -> tuple[TokenIds, Report | None]:
    """The same on a server, steered there by `intervene(model, method, **strength)`, and what was steered.

    Random numbers start from `seed` on the server. Settings that a checkpoint has beyond those named in `_own` act
    there. Raises as `asking` does, and RuntimeError where the server sends back no text.
    """
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}
    beams = options.get("num_beams", 1)
    here = {name: _per_row(value, beams) for name, value in strength.items()}
    if isinstance(mask := strength["positions"], Tensor) and mask.ndim == 1:  # one for every row
        here["positions"] = mask.cpu()
    methods = [(each, _per_row(T, beams)) for each, T in method] if isinstance(method, list) else method
    tokens, steered, steer = None, None, method is not None
    with asking(remote):
        with model.generate(remote=remote, **_own(model, options)) as tracer:
            with tracer.invoke(inputs):
                torch.manual_seed(seed)
                steered = nnsight.save({})
                if steer:
                    for _ in tracer.iter[:]:
                        steered.update(intervene(model, methods, **here))
            with tracer.invoke():
                tokens = nnsight.save(tracer.result)
    if tokens is None or steered is None or tokens.shape[1] <= batch.tokens.shape[1]:
        raise RuntimeError("The server says that it is done, and sent back no text.")
    return tokens.cpu(), Report(steered) if steer else None


def _per_row(value: Any, beams: int) -> Any:
    """What goes to a server, which may have no other device than the CPU: of a value per prompt, one per row there."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().repeat_interleave(beams, 0) if value.ndim else value.cpu()


def _own(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of ot.generate in Hugging Face's words. What checkpoints usually come with a setting of is said, so
    that a text does not depend on where the weights are from."""
    sampling = options["do_sample"]
    eos = options.get("eos_token_id")
    return {
        "max_new_tokens": options["max_new_tokens"],
        "do_sample": sampling,
        "temperature": options["temperature"] if sampling else 1.0,
        "top_k": (options["top_k"] or 0) if sampling else 50,
        "top_p": (options["top_p"] or 1.0) if sampling else 1.0,
        "min_p": 0.0 if sampling else None,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "guidance_scale": 1.0,
        "suppress_tokens": [],
        "num_beams": options.get("num_beams", 1),
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "use_cache": options["use_past_kv_cache"],
        # A token that no vocabulary holds: the tokens that end a text are then tokens like others.
        "eos_token_id": _NEVER if eos is None else eos,
        "pad_token_id": pad_id_of(model) if pad_id_of(model) is not None else 0,
    }
