"""The backends for TransformerLens models: `HookedTransformer` and `TransformerBridge`."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Position, TokenIds, TokenMask
from odesteer_tl.backends.base import Library, Size
from odesteer_tl.backends.checkpoints import check_whole
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_passes import stack_watched
from odesteer_tl.backends.gguf_files import is_gguf, model_and_tokenizer
from odesteer_tl.backends.offloaded_weights import weight_on_cpu
from odesteer_tl.backends.owners import Owner
from odesteer_tl.backends.transformer_lens.cache_names import rename_permanently
from odesteer_tl.backends.transformer_lens.hooked_passes import hooked_watched
from odesteer_tl.backends.transformer_lens.hooks import hooked
from odesteer_tl.backends.transformer_lens.prompt_caches import (
    bridge_cache,
    bridge_started,
    hooked_cache,
    hooked_started,
)
from odesteer_tl.backends.transformer_lens.run import (
    activations_of,
    bridge_continued,
    hooked_continued,
    logits_of,
    no_logits,
)
from odesteer_tl.backends.transformers_settings import without_progress_bars
from odesteer_tl.backends.upstream_names import need
from odesteer_tl.data.origin import Processing, processing_seen_in
from odesteer_tl.data.tokens import Reading, Tokenised
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.sites import Site


def load(name: str, device: str, dtype: torch.dtype) -> Any:
    """A TransformerBridge of a Hugging Face name, a folder or a GGUF file, with unprocessed weights."""
    from transformer_lens.model_bridge import TransformerBridge

    source: dict[str, Any] = {}
    if is_gguf(name):
        model, tokenizer = model_and_tokenizer(name, dtype)
        source = {"hf_model": model.to(device), "tokenizer": tokenizer}
    else:
        check_whole(name)
    with without_progress_bars():
        return rename_permanently(TransformerBridge.boot_transformers(name, device=device, dtype=dtype, **source))


class _TransformerLens:
    """The common part of both classes: the models have a `cfg`, and a hook point for every site."""

    library: Library = "transformer_lens"

    def root(self, model: Any) -> Any:
        raise NotImplementedError

    def decoder_blocks(self, model: Any, blocks: Any) -> Any:
        return model.blocks

    def tokenizer(self, model: Any) -> Any:
        return need(model, "tokenizer", "by whose pad token undeclared pads are noticed")

    def need_tokenizer(self, model: Any) -> Any:
        tokenizer = self.tokenizer(model)
        if tokenizer is None:
            raise ValueError("This model has no tokenizer: pass token tensors, or Tokenised(tokens, mask).")
        return tokenizer

    def eos_token_ids(self, model: Any) -> Any:
        generation_config = getattr(getattr(model, "original_model", None), "generation_config", None)
        eos = getattr(generation_config, "eos_token_id", None)
        return getattr(model.cfg, "eos_token_id", None) if eos is None else eos

    def prepends_bos(self, model: Any, tokenizer: Any) -> bool:
        return bool(model.cfg.default_prepend_bos)

    def model_name(self, model: Any) -> str:
        return str(getattr(model.cfg, "model_name", "") or "")

    def size(self, model: Any, name: Size) -> int | None:
        return getattr(model.cfg, name)

    def processing(self, model: Any) -> Processing:
        """Read from the weights: "centred" if the rows of the embedding have mean zero over d_model, as after
        center_writing_weights; "folded" if the norms have no scale; "raw" otherwise."""
        if processing_seen_in(weight_on_cpu(model, model.W_E)[:256]) == "centred":
            return "centred"
        norm = getattr(model.blocks[0], "ln1", None)
        if norm is None:
            return "raw"
        if type(norm).__name__.endswith("Pre"):  # LayerNormPre, RMSNormPre: a norm whose scale is folded
            return "folded"
        scale = need(norm, "w", "by which folded weights are told from raw ones")
        return "folded" if bool((weight_on_cpu(model, scale) == 1).all()) else "raw"

    def check_place(self, model: Any, remote: bool | str, blocks: Any) -> None:
        if remote:
            raise ValueError("remote=True needs an nnsight model; a TransformerLens model runs on this machine.")
        if blocks is not None:
            raise ValueError(
                "blocks= is for nnsight and Hugging Face models; TransformerLens knows its own blocks: leave it out."
            )

    def check_sites(self, model: Any, sites: Iterable[Site], blocks: Any) -> None:
        hooks = model.hook_dict  # read once, because a bridge collects it at every access
        for site in sites:
            if site.hook_name not in hooks:
                raise ValueError(f"This model has no hook {site.hook_name}: choose one of model.hook_dict.")

    def check_generates(self, model: Any, num_beams: int) -> None:
        pass

    def load_weights(self, model: Any) -> None:
        pass

    def forward(self, model: Any, tokens: TokenIds) -> None:
        model(tokens, attention_mask=torch.ones_like(tokens), return_type="logits")

    def watched(self, model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> AbstractContextManager[None]:
        raise NotImplementedError

    def attached(self, model: Any, runner: EditRunner, blocks: Any) -> AbstractContextManager[Report]:
        return hooked(model, runner)

    def activations(
        self,
        model: Any,
        batch: Tokenised,
        sites: list[Site],
        positions: Sequence[Position],
        read: TokenMask,
        keep_sinks: bool,
        remote: bool | str,
        blocks: Any,
    ) -> list[Reading]:
        return activations_of(model, batch, sites, positions, read, keep_sinks)

    def logits(self, model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
        return logits_of(model, batch)

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        raise NotImplementedError

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        raise NotImplementedError

    def generate_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError

    def effects_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError

    def likelihoods_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError


class _Hooked(_TransformerLens):
    """`HookedTransformer`: its generate calls only the modules of the embedding and of the blocks."""

    def root(self, model: Any) -> Any:
        return model

    def check_generates(self, model: Any, num_beams: int) -> None:
        if num_beams > 1:
            raise ValueError("HookedTransformer has no beam search: load the model as a bridge, ot.load_model(name).")

    def watched(self, model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> AbstractContextManager[None]:
        return hooked_watched(model, runner, owner)

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        return hooked_cache(model, batch, copies)

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        with hooked_started(model, cache):
            return hooked_continued(model, batch, options)


class _Bridge(_TransformerLens):
    """`TransformerBridge`: it wraps a Hugging Face model."""

    def root(self, model: Any) -> Any:
        return model.original_model

    def watched(self, model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> AbstractContextManager[None]:
        return stack_watched(model, runner, owner, blocks)

    def activations(self, model: Any, batch: Tokenised, sites: list[Site], *how: Any) -> Any:
        with no_logits(model, max(site.layer for site in sites)):
            return super().activations(model, batch, sites, *how)

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        return bridge_cache(model, batch, copies)

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        with bridge_started(model, cache):
            return bridge_continued(model, batch, options)


HOOKED, BRIDGE = _Hooked(), _Bridge()
