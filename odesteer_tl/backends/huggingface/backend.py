"""The backend for plain Hugging Face models (`transformers.PreTrainedModel`), also in a PEFT adapter."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Position, TokenIds, TokenMask
from odesteer_tl.backends.base import Library, Size
from odesteer_tl.backends.checkpoints import refuse_missing
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_passes import stack_watched
from odesteer_tl.backends.gguf_files import is_gguf, model_and_tokenizer
from odesteer_tl.backends.huggingface.parts import blocks_in, module_at, needed_tokenizer, root_of, tokenizer_of
from odesteer_tl.backends.huggingface.run import (
    activations_of,
    continued,
    edited,
    logits_of,
    prompt_cache,
    warn_of_dropout,
)
from odesteer_tl.backends.owners import Owner
from odesteer_tl.backends.transformers_settings import (
    begins_with_bos,
    configured_eos,
    configured_size,
    text_config,
    without_progress_bars,
)
from odesteer_tl.data.origin import Processing
from odesteer_tl.data.tokens import Reading, Tokenised
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.sites import Site


def load(name: str, device: str, dtype: torch.dtype) -> Any:
    """Load the model of a Hugging Face name, a folder or a GGUF file, with its tokenizer as `model.tokenizer`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    if is_gguf(name):
        model, tokenizer = model_and_tokenizer(name, dtype)
    else:
        with without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
        model, said = loaded
        refuse_missing(name, said["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(name)
    model.tokenizer = tokenizer
    return model.to(device).eval()


class _HuggingFace:
    """`transformers.PreTrainedModel`."""

    library: Library = "huggingface"

    def root(self, model: Any) -> Any:
        return root_of(model)

    def decoder_blocks(self, model: Any, blocks: Any) -> Any:
        return blocks_in(model, blocks)

    def tokenizer(self, model: Any) -> Any:
        return tokenizer_of(model)

    def need_tokenizer(self, model: Any) -> Any:
        return needed_tokenizer(model)

    def eos_token_ids(self, model: Any) -> Any:
        return configured_eos(root_of(model))

    def prepends_bos(self, model: Any, tokenizer: Any) -> bool:
        return begins_with_bos(tokenizer)

    def model_name(self, model: Any) -> str:
        return str(getattr(text_config(root_of(model)), "name_or_path", None) or root_of(model).config.name_or_path)

    def size(self, model: Any, name: Size) -> int | None:
        return configured_size(root_of(model), name)

    def processing(self, model: Any) -> Processing:
        return "raw"

    def check_place(self, model: Any, remote: bool | str, blocks: Any) -> None:
        if remote:
            raise ValueError(
                "remote=True needs an nnsight model, nnsight.TransformersModel(name); a Hugging Face model runs on "
                "this machine."
            )
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError(
                "This adapter puts its own tokens before each text, so the positions of tokens are not known: steer "
                "the model without it (model.get_base_model()), or use an adapter of another kind, such as LoRA."
            )

    def check_sites(self, model: Any, sites: Iterable[Site], blocks: Any) -> None:
        block_list = blocks_in(model, blocks)
        for site in sites:
            module_at(block_list, site)

    def check_generates(self, model: Any, num_beams: int) -> None:
        _check_decoder_only(model)
        if not hasattr(model, "generate"):
            raise ValueError(
                f"A {type(model).__name__} does not generate: load it with transformers.AutoModelForCausalLM, which "
                "adds the language model's head."
            )

    def load_weights(self, model: Any) -> None:
        pass

    def forward(self, model: Any, tokens: TokenIds) -> None:
        _check_decoder_only(model)
        warn_of_dropout(model)
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)

    def watched(self, model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> AbstractContextManager[None]:
        return stack_watched(model, runner, owner, blocks)

    def attached(self, model: Any, runner: EditRunner, blocks: Any) -> AbstractContextManager[Report]:
        return edited(model, runner, blocks)

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
        _check_decoder_only(model)
        return activations_of(model, batch, sites, positions, read, keep_sinks, blocks)

    def logits(self, model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
        _check_decoder_only(model)
        return logits_of(model, batch)

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        return prompt_cache(model, batch, copies)

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        return continued(model, batch, options, cache)

    def generate_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError

    def effects_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError

    def likelihoods_remotely(self, model: Any, *what: Any) -> Any:
        raise NotImplementedError


def _check_decoder_only(model: Any) -> None:
    """Raises ValueError for an encoder-decoder, whose decoder gets other tokens than the model."""
    if getattr(root_of(model).config, "is_encoder_decoder", False):
        raise ValueError(
            f"A {type(root_of(model)).__name__} has an encoder, so its decoder does not get the text: write "
            "ot.steering(model, method, T=..., blocks=...) around its own forward or generate."
        )


HUGGING_FACE = _HuggingFace()
