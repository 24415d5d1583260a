"""The interface that every model library implements, and the choice of the backend for a model.

General code calls `backend_of(model)`, and imports no library's folder. The library of a model is recognised by the
model's attributes. Only then is the folder's `backend.py` imported, so no model library is loaded before it is needed.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import PerRow, Position, TokenIds, TokenMask
from odesteer_tl.data.origin import Processing
from odesteer_tl.data.tokens import Reading, Tokenised
from odesteer_tl.portable.sites import Site
from odesteer_tl.portable.strength import Strength

Library = Literal["transformer_lens", "nnsight", "huggingface"]
"""The model libraries, by the folder of this package that supports them."""

Size = Literal["d_model", "n_ctx", "d_vocab"]
"""The width of a model, its longest text in tokens, and the size of its vocabulary."""


@runtime_checkable
class Backend(Protocol):
    """The backend of one class of models. Its methods take the model first. `blocks` is the user's path to the decoder
    blocks, or their list (None: the library finds them). Batches and results are left-padded and on the CPU."""

    library: Library

    # What a model is

    def root(self, model: Any) -> torch.nn.Module:
        """The torch module inside the wrappers, which several of them may share; its forward takes tokens and mask."""
        ...

    def decoder_blocks(self, model: Any, blocks: Any) -> Sequence[torch.nn.Module]:
        """The decoder blocks, first to last. Raises ValueError if they are not found."""
        ...

    def tokenizer(self, model: Any) -> Any:
        """The tokenizer, or None. Does not use the network."""
        ...

    def need_tokenizer(self, model: Any) -> Any:
        """The tokenizer. Raises ValueError, which says what to type, if there is none."""
        ...

    def eos_token_ids(self, model: Any) -> int | Sequence[int] | None:
        """The tokens that end a text, by the model's settings; None if these do not say."""
        ...

    def prepends_bos(self, model: Any, tokenizer: Any) -> bool:
        """Whether the library puts the BOS before a text; the tokenizer has one."""
        ...

    def model_name(self, model: Any) -> str:
        """The library's name for the model; empty if it has none."""
        ...

    def size(self, model: Any, name: Size) -> int | None:
        """A number of the model's configuration; None if it is not there, with a warning where it should be."""
        ...

    def processing(self, model: Any) -> Processing:
        """The processing of the weights: see `Processing`."""
        ...

    # Checks

    def check_place(self, model: Any, remote: bool | str, blocks: Any) -> None:
        """Raises ValueError for a `remote` or `blocks` that the library does not support."""
        ...

    def check_sites(self, model: Any, sites: Iterable[Site], blocks: Any) -> None:
        """Raises ValueError for a site that cannot be read and written; the layers of all sites exist."""
        ...

    def check_generates(self, model: Any, num_beams: int) -> None:
        """Raises ValueError for a model that cannot generate, or not with that many beams."""
        ...

    # What it does

    def load_weights(self, model: Any) -> None:
        """Load the weights of the model, unless it has them."""
        ...

    def forward(self, model: Any, tokens: TokenIds) -> None:
        """Run one pass over tokens [1, pos] without pads and without a cache, on the model's device. The modules are
        called, so that torch hooks on them run."""
        ...

    def watched(self, model: Any, runner: Any, owner: Any, blocks: Any) -> AbstractContextManager[None]:
        """Inside the block, each forward pass calls the `EditRunner` before any layer runs, and at its end where that
        can be seen. Raises in a pass that the `Owner` does not admit."""
        ...

    def attached(self, model: Any, runner: Any, blocks: Any) -> AbstractContextManager[Any]:
        """The runner's edits act on the model inside the block, and are removed after it; yields a `Report`."""
        ...

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
        """For each of `positions` the activations at each site (layers ascending), float32, the row of each, and the
        norms and sinks at each site (see `tokens.read_sites`), in one pass that ends with the last of these layers; on
        nnsight in a pass for each position. Only tokens of `read` are read."""
        ...

    def logits(self, model: Any, batch: Tokenised) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of every real token, at its row and column, float32."""
        ...

    def prompt_cache(self, model: Any, batch: Tokenised, copies: int) -> Any:
        """The keys and values of a batch, each row `copies` times, next to one another, in the class that the library
        itself uses. None where they cannot be copied by rows."""
        ...

    def generate(self, model: Any, batch: Tokenised, options: dict[str, Any], cache: Any = None) -> TokenIds:
        """Prompts and continuations, by the library's own generate, without the checkpoint's generation settings.
        `options` are those of `ot.generate`. `cache`: the `prompt_cache` of all columns but the last, which are then
        not computed again."""
        ...

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
    ) -> tuple[TokenIds, Any]:
        """`generate` on a server, steered there by the methods of `pairs`, and a `Report` (None without methods).
        `intervene_args` holds the other arguments of `intervene`. The steered layers are among `written`. Called only
        if `check_place` accepted `remote`."""
        ...

    def effects_remotely(
        self,
        model: Any,
        batch: Tokenised,
        named: TokenMask,
        following: Tensor,
        words: Tensor,
        copies: int,
        pairs: list[tuple[Any, Strength]],
        intervene_args: dict[str, Any],
        remote: bool | str,
        written: Iterable[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`next_tokens.effects` at the tokens of `named`, computed on a server: of the batch unsteered, and of `copies`
        of it that are steered there by the methods of `pairs`, one copy after the other, all in one pass.
        `intervene_args` are those of `generate_remotely`, with one entry per steered row. All of `written` are steered.
        Called only if `check_place` accepted `remote`."""
        ...

    def likelihoods_remotely(
        self,
        model: Any,
        batch: Tokenised,
        asked: TokenMask,
        copies: PerRow,
        following: Tensor,
        pairs: list[tuple[Any, Strength]],
        intervene_args: dict[str, Any],
        remote: bool | str,
        written: Iterable[int],
        count: int,
    ) -> tuple[Tensor, Tensor]:
        """`next_tokens.likelihoods` at `tokens.places_of(asked, copies)`, computed on a server, steered there by the
        methods of `pairs`. At each of the layers `written`, `count` tokens are. `intervene_args` are those of
        `generate_remotely`. Called only if `check_place` accepted `remote`."""
        ...


_BACKENDS = {
    "HookedTransformer": ("transformer_lens", "HOOKED"),
    "TransformerBridge": ("transformer_lens", "BRIDGE"),
    "nnsight": ("nnsight", "NNSIGHT"),
    "Hugging Face": ("huggingface", "HUGGING_FACE"),
}
"""Each class of models with the folder and the name of its `Backend`."""


def backend_of(model: Any) -> Backend:
    """The backend of a model. Raises ValueError for a model of another library."""
    library, name = _BACKENDS[_kind_of(model)]
    return getattr(_module_of(library), name)


def loader_of(library: str) -> Any:
    """The function that loads models of a library: (name, device, dtype) -> model. Raises ValueError for another
    library."""
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
            f"This {type(model).__name__} has no single list of decoder blocks (it may be an encoder-decoder): steer "
            'it in nnsight, nnsight.TransformersModel(model, ...), with blocks="model.decoder.layers" or the path of '
            "its decoder blocks."
        )
    if isinstance(model, torch.nn.Module) and all(hasattr(model, name) for name in ("config", "get_input_embeddings")):
        return "Hugging Face"
    raise ValueError(
        "Expected a HookedTransformer or a TransformerBridge of TransformerLens, an nnsight model, or a Hugging Face "
        f"model (transformers.PreTrainedModel, also in a PEFT adapter), got {type(model).__name__}. Load a Hugging "
        'Face name or folder with ot.load_model(name), or ot.load_model(name, library="huggingface"); wrap a torch '
        "module of your own with nnsight.NNsight(module)."
    )
