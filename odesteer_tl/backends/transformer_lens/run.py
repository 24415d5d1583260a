"""Runs a TransformerLens model on tokens: reads activations and logits, and generates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Position, TokenIds, TokenMask
from odesteer_tl.backends.model_info import device_of, pad_id_of
from odesteer_tl.backends.transformer_lens.cache_names import renamed
from odesteer_tl.data.tokens import Reading, Tokenised, read_sites
from odesteer_tl.portable.sites import Site


def activations_of(
    model: Any, batch: Tokenised, sites: list[Site], positions: Sequence[Position], read: TokenMask, keep_sinks: bool
) -> list[Reading]:
    """For each position the activations of a left-padded batch at each site, float32 on the CPU, the row of each, and
    the norms and sinks (see `tokens.read_sites`), in one pass. Only tokens of `read` are read. A value with an axis for
    heads (hook_z) is flattened to one activation per token."""
    tokens, mask = batch.tokens.to(device_of(model)), batch.mask.long().to(device_of(model))
    names, last = [site.hook_name for site in sites], max(site.layer for site in sites)
    with renamed(model):
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=names, stop_at_layer=last + 1)
    values = [cache[name].flatten(2).float().cpu() for name in names]
    return [read_sites(values, batch.mask, read, position, keep_sinks) for position in positions]


@contextmanager
def no_logits(bridge: Any, last: int) -> Iterator[None]:
    """Inside the block a bridge stops before its final norm, if `last` is the model's last layer. Otherwise it would
    compute the logits, which are not needed; a HookedTransformer stops by itself."""
    norm = getattr(bridge, "ln_final", None) if last + 1 == bridge.cfg.n_layers else None
    if norm is None:
        yield
        return

    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    def stop(module: Any, args: Any) -> None:
        raise StopAtLayerException(torch.empty(0, device="cpu"))

    handle = norm.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def logits_of(model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every token of a left-padded batch, on the CPU."""
    tokens, mask = batch.tokens.to(device_of(model)), batch.mask.long().to(device_of(model))
    with renamed(model):
        return model(tokens, attention_mask=mask, return_type="logits").float().cpu()


def hooked_continued(model: Any, batch: Tokenised, options: dict[str, Any]) -> TokenIds:
    """Prompts and continuations, by HookedTransformer's own generate, with the flag by which it reads the right
    mask."""
    flag = _bos_flag(model, batch)
    tokens = batch.tokens.to(device_of(model))
    return model.generate(tokens, padding_side="left", prepend_bos=flag, verbose=False, **options).cpu()


def bridge_continued(model: Any, batch: Tokenised, options: dict[str, Any]) -> TokenIds:
    """Prompts and continuations, by a bridge's own generate, or Hugging Face's for a beam search."""
    device = device_of(model)
    tokens, mask = batch.tokens.to(device), batch.mask
    # Without pads no mask is passed, as when a user calls the library.
    mask_argument = {} if bool(mask.all()) else {"attention_mask": mask.long().to(device)}
    with renamed(model):
        if "num_beams" in options:
            return model.hf_generate(tokens, use_cache=options["use_past_kv_cache"], **mask_argument, **options).cpu()
        return model.generate(tokens, verbose=False, **mask_argument, **options).cpu()


def _bos_flag(model: Any, batch: Tokenised) -> bool:
    """The `prepend_bos` with which HookedTransformer.generate reads the right mask. It treats leading pad ids as pads,
    except one with `prepend_bos` if the BOS has the same id. Raises ValueError if neither flag is right."""
    pad_id = pad_id_of(model)
    if pad_id is None:
        if not bool(batch.mask.all()):
            raise ValueError(
                "This model has no pad token: generate prompts of one length at a time, with batch_size=1."
            )
        return False
    leading = (batch.tokens != pad_id).cumsum(1) == 0
    for flag in (False, True):
        if flag and model.tokenizer.bos_token_id == pad_id:
            leading[torch.arange(len(leading), device="cpu"), leading.sum(1) - 1] = False
        if torch.equal(~leading, batch.mask):
            return flag
    raise ValueError(
        f"Some prompts begin with the pad token {pad_id} and others do not, and HookedTransformer.generate recognises "
        "pads by that token: generate them separately, or load the model as a bridge, ot.load_model(name)."
    )
