"""Reads the tokens, mask and cache of every forward pass as it begins.

The module that runs the decoder blocks is wrapped. It gets tokens, mask and cache whatever calls it: a language model's
head, an adapter, a vision model or an encoder-decoder. The generate of a HookedTransformer calls no such module, so
`transformer_lens/hooked_passes.py` does this for it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.backends.forward_calls import Around, around_forward
from odesteer_tl.backends.model_info import modules_of, stack_of
from odesteer_tl.backends.owners import Owner
from odesteer_tl.backends.torch_hooks import removal
from odesteer_tl.backends.upstream_names import made_by
from odesteer_tl.portable.kv_caches import offset_in
from odesteer_tl.portable.model_inputs import compare, declared, named, tree_positions, unread
from odesteer_tl.portable.token_tracks import Pass

_LOCK, _STANCES = RLock(), []  # the torch.compile stance to leave at the end, then a None for each open block


@contextmanager
def watching(model: Any, runner: EditRunner, owner: Owner, blocks: Any = None) -> Iterator[None]:
    """Inside the block every forward pass calls `runner` before any layer runs, and at its end where that can be seen.
    Raises in a pass that `owner` does not admit.

    Compiled parts of the model run uncompiled inside: a graph compiled before would not call the hooks.
    """
    block_list = modules_of(model, blocks)
    with ExitStack() as stack:
        stack.enter_context(backend_of(model).watched(model, runner, owner, blocks))
        for layer in sorted({site.layer for site in runner.sites}):
            for remove in _watch_recomputed(block_list[layer], layer, runner):
                stack.callback(remove)
        stack.enter_context(_uncompiled())
        yield


@contextmanager
def stack_watched(model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> Iterator[None]:
    """`Backend.watched` for models with one module that runs the decoder blocks (`model_info.stack_of`)."""
    errors_in_threads: list[Exception] = []
    stack_module = stack_of(model, blocks)
    with around_forward(stack_module, _around(stack_module, runner, owner, errors_in_threads)):
        yield
        if errors_in_threads:
            raise errors_in_threads[0]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled code runs uncompiled until the last open block ends; blocks may overlap in any order."""
    with _LOCK:
        if not _STANCES:
            _STANCES.append(torch.compiler.set_stance("force_eager"))
        _STANCES.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _STANCES.pop()
            if len(_STANCES) == 1:
                _STANCES.pop().__exit__(None, None, None)


def _watch_recomputed(block: Any, layer: int, runner: EditRunner) -> list[Callable[[], None]]:
    """Gradient checkpointing recomputes the inside of a block during the backward pass. Hooks remember the input of the
    block, and recognise it at the first part that runs again. Without gradient checkpointing there are no hooks."""
    if not any(getattr(module, "gradient_checkpointing", False) for module in block.modules()):
        return []

    def enters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner.entered(layer, args[0] if args else next(iter(kwargs.values()), None))

    def reenters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner.entered_again(layer, args[0] if args else next(iter(kwargs.values()), None))

    parts = [module for module in block.modules() if module is not block]
    hooks = [(part, part.register_forward_pre_hook(reenters, with_kwargs=True, prepend=True)) for part in parts]
    hooks.append((block, block.register_forward_pre_hook(enters, with_kwargs=True)))
    return [removal(*hook) for hook in hooks]


class _Call:
    """Reads the calls of the module that runs the blocks: `read` turns the arguments of a call into a `Pass`."""

    def __init__(self, watched: Any) -> None:
        parameters = inspect.signature(type(watched).forward).parameters
        self.names = [name for name in parameters if name != "self"]
        self.library = made_by(watched)
        swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_mask = "attention_mask" in self.names or not swallows
        self._states: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # tokens seen by a cache without columns
        self._cache_seen = self._caching = False

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        """The `Pass` of a call. Raises ValueError if the call cannot be read."""
        arguments = named(args, kwargs, self.names)
        tokens = arguments.get("input_ids", args[0] if args else None)
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor) or tokens.ndim not in (2, 3):
            raise unread(arguments, self.library, "neither input_ids nor inputs_embeds [batch, pos, …] is given")
        batch, width = tokens.shape[:2]
        if isinstance(tokens, FakeTensor):  # nnsight's scan: shapes without numbers
            return Pass(batch, width, tokens=tokens)
        if batch > 1 and not self.takes_mask:
            raise unread(arguments, self.library, "it takes no attention_mask, so pads in a batch cannot be seen")
        offset, cache = offset_in(arguments, width, self._state_of, self.library)
        use_cache = arguments.get("use_cache") is True
        if cache is None and use_cache and width == 1 and self._hidden(arguments):
            raise unread(arguments, self.library, "one token comes with use_cache=True, and no argument is its cache")
        self._caching, self._cache_seen = cache is not None or use_cache, self._cache_seen or cache is not None
        if cache is not None and hasattr(cache, "__weakref__"):
            self._states[cache] = offset + width
        tree = tree_positions(arguments, offset, width)
        if tree is not None:
            compare(arguments | {"position_ids": None}, None, width, offset, self.library)
            return Pass(batch, width, offset, tokens, caching=self._caching, positions=tree.expand(batch, -1))
        mask = declared(arguments.get("attention_mask"), offset, width, self.library)
        compare(arguments, mask, width, offset, self.library)
        return Pass(batch, width, offset, tokens, mask, self._caching)

    def _state_of(self, cache: Any) -> int | None:
        return self._states.get(cache) if hasattr(cache, "__weakref__") else None

    def _hidden(self, call_arguments: dict[str, Any]) -> bool:
        """Whether a token may continue an earlier pass with a cache that is not among the arguments: a pass kept its
        keys, no pass has shown its cache, and no argument says that this token is the first of its row."""
        arguments = [call_arguments.get(name) for name in ("attention_mask", "position_ids", "cache_position")]
        return self._caching and not self._cache_seen and all(value is None for value in arguments)


def _around(stack_module: Any, runner: EditRunner, owner: Owner, errors_in_threads: list[Exception]) -> Around:
    """Every call of the module is a pass. It ends with the call, also if Ctrl-C ends it."""
    call = _Call(stack_module)

    def around(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with owner.at_work():
            owner.admit()
            return run(forward, args, kwargs)

    def run(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer = runner.under_way
        try:
            try:
                runner.begin(call.read(args, kwargs))
            except Exception as error:  # another thread, as in generate_batch, may hide it: the block's end raises it
                if not owner.is_here():
                    errors_in_threads.append(error)
                raise
            output = forward(*args, **kwargs)
            runner.check_complete(library=call.library)
            return output
        except Exception:
            raise
        except BaseException:
            runner.forget()
            raise
        finally:
            runner.end(outer)

    return around
