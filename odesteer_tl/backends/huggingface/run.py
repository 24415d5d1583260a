"""Runs a plain Hugging Face model on tokens: reads activations and logits, generates, and attaches edits."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Position, TokenIds, TokenMask
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_passes import watching
from odesteer_tl.backends.huggingface.parts import blocks_in, module_at, root_of
from odesteer_tl.backends.model_info import device_of, pad_id_of
from odesteer_tl.backends.owners import owned
from odesteer_tl.backends.tokenize import right_padded
from odesteer_tl.backends.torch_hooks import edit_hook, removal, replacing
from odesteer_tl.backends.transformers_caches import cache_options, copied, name_in_generate
from odesteer_tl.backends.transformers_settings import generation_options, settings_put_aside
from odesteer_tl.data.tokens import Reading, Tokenised, tokens_at, without_sinks
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.decoder_blocks import entering, value_in
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.token_values import averaged, picked


class _StopForward(Exception):
    """Stops a forward pass when all sites are read."""


@contextmanager
def edited(model: Any, runner: EditRunner, blocks: Any = None) -> Iterator[Report]:
    """The runner's edits are torch hooks on the model inside the block, and are removed after it."""
    report, block_list = Report(runner.tokens_steered), blocks_in(model, blocks)
    with ExitStack() as stack:
        owner = stack.enter_context(owned(model, blocks))
        stack.enter_context(watching(model, runner, owner, blocks))
        for site in runner.sites:
            module, side = module_at(block_list, site)
            stack.callback(edit_hook(module, side, replacing(runner.hook(site), side)))
        yield report
        owner.wait()


def activations_of(
    model: Any,
    batch: Tokenised,
    sites: list[Site],
    positions: Sequence[Position],
    read: TokenMask,
    keep_sinks: bool,
    blocks: Any,
) -> list[Reading]:
    """For each position the activations of a batch at each site (layers ascending), float32 on the CPU, the row of
    each, and the norms and sinks (see `tokens.without_sinks`), in one pass that ends at the last site. Only tokens of
    `read` are read."""
    inputs, mask = _right_padded(model, batch)
    read = torch.zeros_like(mask).masked_scatter(mask, read[batch.mask])  # in the columns of the right-padded batch
    places = [tokens_at(read, position).nonzero(as_tuple=True) for position in positions]
    values_and_norms: list[list[tuple[Tensor, Tensor]]] = []

    def read_value(value: Tensor) -> None:
        if value.shape[:2] != mask.shape:
            raise ValueError(
                f"A block holds {tuple(value.shape[:2])} [batch, pos] where the texts have {tuple(mask.shape)}: it "
                "does not see the same tokens as the model. Read an earlier layer, or give blocks=."
            )
        values_and_norms.append(
            [
                averaged(value, mask, read, keep_sinks) if position == "mean" else picked(value, *place)
                for position, place in zip(positions, places, strict=True)
            ]
        )
        if len(values_and_norms) == len(sites):
            raise _StopForward

    block_list = blocks_in(model, blocks)
    with ExitStack() as stack:
        for site in sites:
            stack.callback(_reading_hook(*module_at(block_list, site), read_value))
        try:
            model(**inputs, use_cache=False)
        except _StopForward:
            pass
    if len(values_and_norms) < len(sites):
        raise ValueError(
            f"{len(sites) - len(values_and_norms)} of the {len(sites)} sites to be read did not run: the model was "
            "compiled before, or skips these blocks."
        )
    readings: list[Reading] = []
    for position, (sources, columns), at_sites in zip(
        positions, places, zip(*values_and_norms, strict=True), strict=True
    ):
        samples, norms = (list(part) for part in zip(*at_sites, strict=True))
        chosen, met = without_sinks(norms, mask, read, position, keep_sinks)
        if position == "mean":
            readings.append(Reading(samples, torch.arange(len(mask), device="cpu"), met))
        else:
            kept = chosen[0][sources, columns]  # the same at every site
            readings.append(Reading([sample[kept] for sample in samples], sources[kept], met))
    return readings


def _reading_hook(module: Any, side: str, read_value: Callable[[Tensor], None]) -> Callable[[], None]:
    """Call `read_value` with the value after all earlier hooks, steering included. Returns a function that removes
    the hook."""
    if side == "input":
        handle = module.register_forward_pre_hook(
            lambda m, args, kwargs: read_value(entering((args, kwargs))), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda m, args, output: read_value(value_in(output)))
    return removal(module, handle)


def logits_of(model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every real token of a left-padded batch, at its row and column, on the CPU; 0 at pads."""
    inputs, mask = _right_padded(model, batch)
    right_padded_logits = model(**inputs, use_cache=False).logits.float().cpu()
    logits = right_padded_logits.new_zeros(*batch.tokens.shape, right_padded_logits.shape[-1])
    logits[batch.mask] = right_padded_logits[mask]
    return logits


def prompt_cache(model: Any, batch: Tokenised, copies: int) -> Any:
    """`Backend.prompt_cache`, from the model's own generate, which knows its positions and the class of its cache."""
    return copied(_generated(model, batch, cache_options())[name_in_generate()], batch.tokens.shape[1], copies)


def continued(model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
    """Prompts and continuations, by the model's own generate; with a `cache` of all columns but the last."""
    own = {} if cache is None else {name_in_generate(): cache}
    return _generated(model, batch, generation_options(options, pad_id_of(model)) | own).cpu()


def _generated(model: Any, batch: Tokenised, own: dict[str, Any]) -> Any:
    warn_of_dropout(model)
    device = device_of(model)
    with ExitStack() as stack:
        for part in dict.fromkeys((root_of(model), model)):
            if "generation_config" in vars(part):  # an adapter uses the model's, unless it was given its own
                stack.enter_context(settings_put_aside(part))
        return model.generate(
            input_ids=batch.tokens.to(device), attention_mask=batch.mask.long().to(device), **own
        )  # fmt: skip


def warn_of_dropout(model: Any) -> None:
    """Warns of a model in training mode with dropout, whose results are random."""
    root = root_of(model)
    has_dropout = any(
        isinstance(module, torch.nn.Dropout) and module.training and module.p > 0 for module in model.modules()
    )
    config = getattr(root.config, "to_dict", dict)()
    rates = [value for name, value in config.items() if "drop" in name and isinstance(value, float)]
    if has_dropout or (root.training and any(value > 0 for value in rates)):
        warnings.warn(
            "The model is in training mode, and its dropout makes the results random: call model.eval() first.",
            stacklevel=2,
        )


def _right_padded(model: Any, batch: Tokenised) -> tuple[dict[str, TokenIds], TokenMask]:
    """The right-padded inputs of a pass, on the model's device, and their mask."""
    warn_of_dropout(model)
    tokens, mask = right_padded(batch, pad_id_of(model) or 0)
    device = device_of(model)
    return {"input_ids": tokens.to(device), "attention_mask": mask.long().to(device)}, mask
