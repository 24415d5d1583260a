"""The backend for nnsight models, on this machine and on a server."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
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
from odesteer_tl.backends.owners import Owner
from odesteer_tl.backends.transformers_settings import begins_with_bos, configured_eos, configured_size, text_config
from odesteer_tl.backends.upstream_names import need
from odesteer_tl.data.origin import Processing
from odesteer_tl.data.tokens import Reading, Tokenised
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.nnsight.blocks import blocks_of
from odesteer_tl.portable.nnsight.sites import check_site
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength


def load(name: str, device: str, dtype: torch.dtype) -> Any:
    """An nnsight model of a Hugging Face name or a folder, whose weights are loaded when it first runs here; or of a
    GGUF file, whose weights are loaded at once."""
    from nnsight import TransformersModel
    from nnsight.modeling import huggingface
    from transformers import AutoTokenizer

    if is_gguf(name):
        model, tokenizer = model_and_tokenizer(name, dtype)
        return TransformersModel(model.to(device), tokenizer=tokenizer, task="text-generation")
    if Path(name).is_dir():  # otherwise nnsight would look up the folder's name on the Hub
        huggingface._ID_CACHE[name] = name
        check_whole(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    return TransformersModel(name, tokenizer=tokenizer, task="text-generation", dtype=dtype, device_map=device)


class _Nnsight:
    """nnsight's models. Modules that import nnsight are imported only when they are used."""

    library: Library = "nnsight"

    def root(self, model: Any) -> Any:
        return model._module

    def decoder_blocks(self, model: Any, blocks: Any) -> Any:
        return blocks_of(model, blocks)._module

    def tokenizer(self, model: Any) -> Any:
        if not hasattr(model, "repo_id"):  # nnsight.NNsight(module) need not have a tokenizer
            return getattr(model, "tokenizer", None)
        return need(model, "tokenizer", "by whose pad token undeclared pads are noticed")

    def need_tokenizer(self, model: Any) -> Any:
        tokenizer = self.tokenizer(model)
        if tokenizer is None:
            raise ValueError("This model has no tokenizer: pass token tensors, or Tokenised(tokens, mask).")
        return tokenizer

    def eos_token_ids(self, model: Any) -> Any:
        return configured_eos(model._module)

    def prepends_bos(self, model: Any, tokenizer: Any) -> bool:
        return begins_with_bos(tokenizer)

    def model_name(self, model: Any) -> str:
        repo_id = getattr(model, "repo_id", None)
        return str(repo_id or getattr(text_config(model._module), "name_or_path", None) or "")

    def size(self, model: Any, name: Size) -> int | None:
        return configured_size(model._module, name)

    def processing(self, model: Any) -> Processing:
        return "raw"

    def check_place(self, model: Any, remote: bool | str, blocks: Any) -> None:
        pass

    def check_sites(self, model: Any, sites: Iterable[Site], blocks: Any) -> None:
        block_list = blocks_of(model, blocks)
        for site in sites:
            check_site(block_list[site.layer], site.name)

    def check_generates(self, model: Any, num_beams: int) -> None:
        pass

    def load_weights(self, model: Any) -> None:
        if not getattr(model, "dispatched", True):
            if repository := getattr(model, "repo_id", None):
                check_whole(repository)  # not before: a server may run it, and nothing is downloaded here
            model.dispatch()

    def forward(self, model: Any, tokens: TokenIds) -> None:
        model._module(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)

    def watched(self, model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> AbstractContextManager[None]:
        return stack_watched(model, runner, owner, blocks)

    def attached(self, model: Any, runner: EditRunner, blocks: Any) -> AbstractContextManager[Report]:
        from odesteer_tl.backends.nnsight.edits import edited

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
        from odesteer_tl.backends.nnsight.run import activations_of

        layers = [site.layer for site in sites]
        return [
            activations_of(model, batch, layers, sites[0].name, position, read, keep_sinks, remote, blocks)
            for position in positions
        ]

    def logits(self, model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
        from odesteer_tl.backends.nnsight.run import logits_of

        return logits_of(model, batch)

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        from odesteer_tl.backends.nnsight.run import prompt_cache

        return prompt_cache(model, batch, copies)

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        from odesteer_tl.backends.nnsight.run import continued

        return continued(model, batch, options, cache)

    def generate_remotely(
        self,
        model: Any,
        batch: Tokenised,
        options: dict[str, Any],
        pairs: list[tuple[Any, Strength]],
        intervene_args: dict[str, Any],
        remote: bool | str,
        seed: int,
        written: Iterable[int],
    ) -> tuple[TokenIds, Report | None]:
        from odesteer_tl.backends.nnsight.run import continued_remotely

        return continued_remotely(model, batch, options, pairs, intervene_args, remote, seed, written)

    def effects_remotely(self, model: Any, *what: Any) -> tuple[Tensor, Tensor, Tensor]:
        from odesteer_tl.backends.nnsight.measures import effects_remotely

        return effects_remotely(model, *what)

    def likelihoods_remotely(self, model: Any, *what: Any) -> tuple[Tensor, Tensor]:
        from odesteer_tl.backends.nnsight.measures import likelihoods_remotely

        return likelihoods_remotely(model, *what)


NNSIGHT = _Nnsight()
