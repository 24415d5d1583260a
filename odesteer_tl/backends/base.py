"""What a model library has to do for this package, and which library a model belongs to.

General code asks `backend_of(model)`, and imports no library's folder. A model is told by what it offers, and its
folder's `backend.py` is imported then, so that no model library is loaded before a model is there.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odesteer_tl._shapes import Position, Samples, TokenIds, TokenMask
from odesteer_tl.data.activations import Processing
from odesteer_tl.data.tokens import SiteTokens, Tokenised
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength

Library = Literal["transformer_lens", "nnsight", "huggingface"]
"""The folders of this package that know a model library."""

Size = Literal["d_model", "n_ctx", "d_vocab"]
"""Width, longest text in tokens, and number of tokens, of a model."""


@runtime_checkable
class Backend(Protocol):
    """One class of models. Its methods take the model first; `blocks` is what the user says of where the decoder blocks
    are (None: the library finds them). All batches are left-padded, on the CPU, and so is what is returned."""

    library: Library

    # What a model is

    def root(self, model: Any) -> torch.nn.Module:
        """The torch module that several wrappers may share, whose forward takes tokens and mask."""
        ...

    def decoder_blocks(self, model: Any, blocks: Any) -> Sequence[torch.nn.Module]:
        """The decoder blocks, first to last. Raises ValueError where they are not found."""
        ...

    def tokenizer(self, model: Any) -> Any:
        """The tokenizer, or None. Asks no server."""
        ...

    def need_tokenizer(self, model: Any) -> Any:
        """The tokenizer. Raises ValueError, which says what to type, where there is none."""
        ...

    def eos_token_ids(self, model: Any) -> int | Sequence[int] | None:
        """The tokens that end a text, as the model's settings have them; None where they say nothing."""
        ...

    def prepends_bos(self, model: Any, tokenizer: Any) -> bool:
        """Whether the library puts the BOS, which this tokenizer has, before a text."""
        ...

    def model_name(self, model: Any) -> str:
        """The name that the library knows the model by; empty where it knows none."""
        ...

    def size(self, model: Any, name: Size) -> int | None:
        """A number of the model's configuration; None, with a warning where that is surprising, where it is silent."""
        ...

    def processing(self, model: Any) -> Processing:
        """What was done to the weights."""
        ...

    # What fits it

    def check_place(self, model: Any, remote: bool | str, blocks: Any) -> None:
        """Raises ValueError for `remote` or `blocks` where the library knows neither."""
        ...

    def check_sites(self, model: Any, sites: Iterable[Site], blocks: Any) -> None:
        """Raises ValueError for a site, of a layer that there is, that cannot be read and written."""
        ...

    def check_generates(self, model: Any, num_beams: int) -> None:
        """Raises ValueError for a model that does not generate, or not with so many beams."""
        ...

    # What it does

    def load_weights(self, model: Any) -> None:
        """The weights of the model are here afterwards. No model that has them is changed."""
        ...

    def forward(self, model: Any, tokens: TokenIds) -> None:
        """One pass over tokens [1, pos] without pads, on the model's device, without a cache, as modules that torch
        hooks see."""
        ...

    def watched(self, model: Any, runner: Any, owner: Any, blocks: Any) -> AbstractContextManager[None]:
        """Inside the block the `EditRunner` is told of each forward pass before any layer runs, and of its end where
        that can be seen; raises in a pass that the `Owner` does not admit."""
        ...

    def attached(self, model: Any, runner: Any, blocks: Any) -> AbstractContextManager[Any]:
        """The runner's edits act on the model inside the block, which gives a `Report`; nothing is left after it."""
        ...

    def activations(
        self,
        model: Any,
        batch: Tokenised,
        sites: list[Site],
        position: Position,
        read: TokenMask,
        keep_sinks: bool,
        remote: bool | str,
        blocks: Any,
    ) -> tuple[list[Samples], Int[Tensor, " n"], list[SiteTokens]]:
        """The activations at each site (layers ascending), float32, the row that each came from, and what was met
        (`tokens.read_sites`), in one pass that ends with the last of these layers. Only tokens of `read` are read."""
        ...

    def logits(self, model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of every real token, in its column, float32."""
        ...

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any]) -> TokenIds:
        """Prompts and continuations, by the library's own generate, whatever settings a checkpoint brings. `options`
        are `ot.generate`'s."""
        ...

    def generate_remotely(
        self,
        model: Any,
        batch: Tokenised,
        options: dict[str, Any],
        pairs: list[tuple[Any, Strength]],
        where: dict[str, Any],
        remote: bool | str,
        seed: int,
        written: Iterable[int],
    ) -> tuple[TokenIds, Any]:
        """The same on a server, steered there by the methods of `pairs`, and its `Report` (None without any); `where`
        are the rest of `intervene`'s arguments. Steered layers are among `written`. Called only where `check_place`
        lets `remote` pass."""
        ...


_BACKENDS = {
    "HookedTransformer": ("transformer_lens", "HOOKED"),
    "TransformerBridge": ("transformer_lens", "BRIDGE"),
    "nnsight": ("nnsight", "NNSIGHT"),
    "Hugging Face": ("huggingface", "HUGGING_FACE"),
}
"""Each class of models with the folder and the name of its `Backend`."""


def backend_of(model: Any) -> Backend:
    """The backend of the models that `model` behaves like. Raises ValueError for a model of another library."""
    library, name = _BACKENDS[_kind_of(model)]
    return getattr(_module_of(library), name)


def loader_of(library: str) -> Any:
    """What loads models of a library: (name, device, dtype) -> model. Raises ValueError for another library."""
    known = list(dict.fromkeys(folder for folder, _ in _BACKENDS.values()))
    if library not in known:
        raise ValueError(f"library must be {', '.join(known[:-1])} or {known[-1]}, got {library!r}.")
    return _module_of(library).load


@cache
def _module_of(library: str) -> Any:
    return import_module(f"odesteer_tl.backends.{library}.backend")


def _kind_of(model: Any) -> str:
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache", "blocks")):
        if hasattr(model, "original_model"):
            return "TransformerBridge"
        if hasattr(model, "embed"):
            return "HookedTransformer"
    if all(hasattr(model, name) for name in ("_module", "trace", "interleave", "interleaver")):
        return "nnsight"
    if all(hasattr(model, name) for name in ("cfg", "run_with_cache", "original_model")):
        raise ValueError(
            f"This {type(model).__name__} has no one list of decoder blocks (as an encoder-decoder has not): "
            'steer it in nnsight, nnsight.TransformersModel(model, ...), with blocks="model.decoder.layers" or where '
            "its decoder blocks are."
        )
    if isinstance(model, torch.nn.Module) and all(hasattr(model, name) for name in ("config", "get_input_embeddings")):
        return "Hugging Face"
    raise ValueError(
        "Expected a HookedTransformer or a TransformerBridge of TransformerLens, an nnsight model, or a Hugging Face "
        f"model (transformers.PreTrainedModel, also in a PEFT adapter), got {type(model).__name__}. A Hugging Face "
        'name or folder becomes one with ot.load_model(name), or ot.load_model(name, library="huggingface"); a torch '
        "module of your own with nnsight.NNsight(module)."
    )
