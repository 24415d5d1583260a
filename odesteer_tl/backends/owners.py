"""Owners of steering blocks. Edits on a model steer every thread that runs it. So a block belongs to one thread and one
asyncio task, and others are refused while it is open."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch

from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.forward_calls import around_forward
from odesteer_tl.backends.model_info import stack_of

_PATIENCE = 1.0
"""Seconds to wait for the end of a generate: a streamer gives its last word a moment before its thread returns."""
_LOCK = threading.RLock()
_OPEN_BLOCKS: "list[Owner]" = []
"""The open blocks of all models."""


class Owner:
    """The thread and the task that opened a block on a model. `parts`: the modules whose forward or generate runs it,
    the last of them the one that runs the decoder blocks.

    With `alone` no other thread may run the model. Otherwise a thread that was started after the block opened may run
    it, while no other thread is in a generate or forward of the model.
    """

    def __init__(self, parts: list[Any], alone: bool) -> None:
        self.thread, self.task, self.alone = threading.current_thread(), _task(), alone
        self.helper: threading.Thread | None = None
        self._older = WeakSet(threading.enumerate())
        self._parts = parts
        self._calls: Counter[threading.Thread] = Counter()  # of generate and forward that a thread is in

    def admit(self) -> None:
        """Called before a forward pass in this thread. Raises RuntimeError if the pass does not belong to the block."""
        me = threading.current_thread()
        if me is self.thread:
            if not self.is_here():
                raise _refused("asyncio task")
        elif torch._C._current_graph_task_id() != -1:  # a backward pass, which recomputes in its own threads
            return
        elif self.alone or me in self._older:
            raise _refused("thread")
        while (other := self._other_at_work(me)) is not None:
            self._wait_for(other, 0.0 if other is self.thread else _PATIENCE)

    def count(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Goes around each generate and forward of the model: this thread is at work until it returns."""
        with self.at_work():
            return method(*args, **kwargs)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, this thread is in a generate or forward of the model."""
        me = threading.current_thread()
        with _LOCK:
            self._calls[me] += 1
        try:
            yield
        finally:
            with _LOCK:
                self._calls[me] -= 1
                if not self._calls[me]:
                    del self._calls[me]

    def steers(self, root: Any) -> bool:
        """Whether the block steers the module `root`: it holds what runs the decoder blocks, as a model, a part of it,
        and a wrapper of the user's around it all do."""
        return any(module is self._parts[-1] for module in root.modules())

    def is_here(self) -> bool:
        """Whether the current thread and task are those of the block. A block without a task owns all of its thread."""
        return threading.current_thread() is self.thread and (self.task is None or self.task is _task())

    def wait(self) -> None:
        """Wait for a thread that was started in the block. Raises RuntimeError if it keeps running the model."""
        if self.helper is not None:
            self._wait_for(self.helper, _PATIENCE)

    def _other_at_work(self, me: threading.Thread) -> threading.Thread | None:
        """The other thread that is in a generate or forward of the model; None if this one may run it now."""
        with _LOCK:
            for other in (self.thread, self.helper):
                if other is not None and other is not me and self._busy(other):
                    return other
            if me is not self.thread:
                self.helper = me
        return None

    def _wait_for(self, thread: threading.Thread, patience: float) -> None:
        """Raises RuntimeError if the thread is still in a generate or forward of the model after `patience` seconds."""
        for _ in range(int(patience * 100)):
            if not self._busy(thread):
                return
            thread.join(0.01)
        if self._busy(thread):
            raise _concurrent_use()

    def _busy(self, thread: threading.Thread) -> bool:
        return thread.is_alive() and self._calls[thread] > 0


@contextmanager
def owned(model: Any, blocks: Any = None, alone: bool = False) -> Iterator[Owner]:
    """The model belongs to this thread and task inside the block. Raises RuntimeError if another one owns it."""
    root = backend_of(model).root(model)
    parts = [model, root, stack_of(model, blocks)]
    with _LOCK:
        check_free(model)
        owner = Owner(parts, alone or any(other.alone for other in _open_on(model)))
        _OPEN_BLOCKS.append(owner)
    try:
        with ExitStack() as stack:
            if not owner.alone:  # else no other thread may run the model at all
                for module, name in _entries(parts[:-1]):  # a pass counts the last one itself, in `at_work`
                    stack.enter_context(around_forward(module, owner.count, name))
            yield owner
    finally:
        with _LOCK:
            _OPEN_BLOCKS[:] = [other for other in _OPEN_BLOCKS if other is not owner]


def _entries(parts: list[Any]) -> list[tuple[Any, str]]:
    """The forward of each part, and every generate in them: an adapter calls that of the model in it."""
    modules = {id(part): part for part in parts if isinstance(part, torch.nn.Module)}
    inside = {id(module): module for part in modules.values() for module in part.modules()}
    writing = [module for module in inside.values() if callable(getattr(type(module), "generate", None))]
    return [(module, "forward") for module in modules.values()] + [(module, "generate") for module in writing]


def check_free(model: Any) -> None:
    """Raises RuntimeError if another thread or task has a steering block open on the model, or if a thread that was
    started in an open block runs the model."""
    for owner in _open_on(model):
        if not owner.is_here():
            raise _refused("asyncio task" if owner.thread is threading.current_thread() else "thread")
        owner.wait()


def steered_around(model: Any) -> str | None:
    """That a block is open on the model, in words; None if there is none."""
    return "a steering block is open on this model, and steers the prompts too" if _open_on(model) else None


def _open_on(model: Any) -> list[Owner]:
    """The open blocks that steer the model."""
    root = backend_of(model).root(model)
    return [owner for owner in list(_OPEN_BLOCKS) if owner.steers(root)]


def _task() -> Any:
    """The running asyncio task, or None."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is running
        return None


def _refused(who: str) -> RuntimeError:
    lock, statement = ("asyncio.Lock()", "async with") if who == "asyncio task" else ("threading.Lock()", "with")
    return RuntimeError(
        f"Another {who} has a block of ot.steering, or an ot.generate with a method, open on this model, which would "
        f"steer this {who} as well. Load one model per {who}, or share lock = {lock} and write "
        f"`{statement} lock:` around each steering block and each call of the model."
    )


def _concurrent_use() -> RuntimeError:
    return RuntimeError(
        "Two threads run this model at the same time in one steering block, which can follow only one of them: call "
        "thread.join() on the thread that was started in the block before you call the model again, and before the "
        "block ends."
    )
