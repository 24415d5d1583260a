"""Forward passes, seen as soon as they begin: their tokens, mask and cache.

A model is watched at the module that runs its decoder blocks; that sees tokens, mask and cache however it was reached:
through a language model's head, an adapter, a vision model or an encoder-decoder. A HookedTransformer, whose generate
calls no such module, is watched in a way of its own (`transformer_lens/hooked_passes.py`).
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
from odesteer_tl.portable.model_inputs import compare, declared, named, unread
from odesteer_tl.portable.token_tracking import Pass

_LOCK, _STANCES = RLock(), []  # the stance that is to be left, and a None for each block that is open


@contextmanager
def watching(model: Any, runner: EditRunner, owner: Owner, blocks: Any = None) -> Iterator[None]:
    """Tells `runner` of every forward pass before any of its layers runs, and where that can be seen of its end.
    Raises in a pass that `owner` does not admit.

    Compiled parts of the model run uncompiled inside: a graph made before the hooks were there would not call them.
    """
    own = modules_of(model, blocks)
    with ExitStack() as stack:
        stack.enter_context(backend_of(model).watched(model, runner, owner, blocks))
        for layer in sorted({site.layer for site in runner.sites}):
            for remove in _watch_recomputed(own[layer], layer, runner):
                stack.callback(remove)
        stack.enter_context(_uncompiled())
        yield


@contextmanager
def stack_watched(model: Any, runner: EditRunner, owner: Owner, blocks: Any) -> Iterator[None]:
    """`Backend.watched` for models whose decoder blocks are run by one module, `models.stack_of`."""
    elsewhere: list[Exception] = []
    watched = stack_of(model, blocks)
    with around_forward(watched, _around(watched, runner, owner, elsewhere)):
        yield
        if elsewhere:
            raise elsewhere[0]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch compiled runs uncompiled until the last of several blocks ends, which may overlap in any order."""
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
    """Gradient checkpointing runs the inside of a block once more during the backward pass. What enters the block tells
    which pass that belongs to; the first part of the block that runs again is given it. Nothing where it is off."""
    if not any(getattr(module, "gradient_checkpointing", False) for module in block.modules()):
        return []

    def enters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner.entered(layer, args[0] if args else next(iter(kwargs.values()), None))

    def again(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner.entered_again(layer, args[0] if args else next(iter(kwargs.values()), None))

    parts = [module for module in block.modules() if module is not block]
    hooks = [(part, part.register_forward_pre_hook(again, with_kwargs=True, prepend=True)) for part in parts]
    hooks.append((block, block.register_forward_pre_hook(enters, with_kwargs=True)))
    return [removal(*each) for each in hooks]


class _Call:
    """What the module that runs the blocks is given, call by call: `read` makes a `Pass` of it."""

    def __init__(self, watched: Any) -> None:
        self.names = [name for name in inspect.signature(type(watched).forward).parameters if name != "self"]
        self.library = made_by(watched)
        parameters = inspect.signature(type(watched).forward).parameters.values()
        swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.takes_mask = "attention_mask" in self.names or not swallows
        self._states: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # columns that a cache without columns has seen
        self._cache_seen = self._caching = False

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        """Raises ValueError where the call is not understood."""
        given = named(args, kwargs, self.names)
        tokens = given.get("input_ids", args[0] if args else None)
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor) or tokens.ndim not in (2, 3):
            raise unread(given, self.library, "neither input_ids nor inputs_embeds [batch, pos, …] is given")
        batch, width = tokens.shape[:2]
        if isinstance(tokens, FakeTensor):  # nnsight's scan: shapes without numbers
            return Pass(batch, width, tokens=tokens)
        if batch > 1 and not self.takes_mask:
            raise unread(given, self.library, "it takes no attention_mask, so that a batch may hold pads")
        offset, cache = offset_in(given, width, self._state_of, self.library)
        wanted = given.get("use_cache") is True
        if cache is None and wanted and width == 1 and self._hidden(given):
            raise unread(given, self.library, "one token comes with use_cache=True, and its cache is not among these")
        self._caching, self._cache_seen = cache is not None or wanted, self._cache_seen or cache is not None
        if cache is not None and hasattr(cache, "__weakref__"):
            self._states[cache] = offset + width
        mask = declared(given.get("attention_mask"), offset, width, self.library)
        compare(given, mask, width, offset, self.library)
        return Pass(batch, width, offset, tokens, mask, self._caching)

    def _state_of(self, cache: Any) -> int | None:
        return self._states.get(cache) if hasattr(cache, "__weakref__") else None

    def _hidden(self, given: dict[str, Any]) -> bool:
        """Whether a token after a pass that kept its keys may continue it, though no cache is to be seen: nothing says
        that it is the first of its row, and no pass has shown its cache yet."""
        says = [given.get(name) for name in ("attention_mask", "position_ids", "cache_position")]
        return self._caching and not self._cache_seen and all(each is None for each in says)


def _around(watched: Any, runner: EditRunner, owner: Owner, elsewhere: list[Exception]) -> Around:
    """Every call of the watched module is a pass, which is over when the call is, also where Ctrl-C ends it."""
    call = _Call(watched)

    def around(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner.admit()
        outer = runner.under_way
        try:
            try:
                runner.begin(call.read(args, kwargs))
            except Exception as error:  # a server's thread, as generate_batch has, may swallow it: the block's end says
                if not owner.is_here():
                    elsewhere.append(error)
                raise
            output = forward(*args, **kwargs)
            runner.check_complete(made=call.library)
            return output
        except Exception:
            raise
        except BaseException:
            runner.forget()
            raise
        finally:
            runner.end(outer)

    return around
