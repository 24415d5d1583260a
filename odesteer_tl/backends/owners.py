"""Owners of steering blocks. Edits on a model steer every thread that runs it. So a block belongs to one thread and one
asyncio task, and others are refused while it is open."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch

from odesteer_tl.backends.base import backend_of
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
        self._calls: dict[threading.Thread, FrameType] = {}  # the newest generate or forward of a thread

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
        while not self.alone and (other := self._enter(me)) is not None:
            self._wait_for(other, 0.0 if other is self.thread else _PATIENCE)

    def leave(self) -> None:
        """Called when a forward pass in this thread has ended. A generate may go on, and make the next pass."""
        call = self._calls.get(threading.current_thread())
        if call is not None and call.f_code.co_name == "forward":
            self._calls.pop(threading.current_thread(), None)

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

    def _enter(self, me: threading.Thread) -> threading.Thread | None:
        """The pass is this thread's, unless the returned other thread is in a generate or forward of the model."""
        with _LOCK:
            for other in (self.thread, self.helper):
                if other is not None and other is not me and self._busy(other):
                    return other
            if me is not self.thread:
                self.helper = me
            if not self._busy(me) and (call := self._outermost_call()) is not None:
                self._calls[me] = call
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
        """Whether `thread` is in a generate or forward of the model. Python clears a frame only when it has returned;
        to walk the frames of a running thread may crash Python 3.11."""
        with _LOCK:
            if (call := self._calls.get(thread)) is not None:
                try:
                    call.clear()
                except RuntimeError:  # it still runs
                    return thread.is_alive()
                del self._calls[thread]
        return False

    def _outermost_call(self) -> FrameType | None:
        """The first generate or forward of the model among the calls that this thread is in; None outside of any."""
        found, frame = None, inspect.currentframe()
        while frame is not None:
            code = frame.f_code
            named = code.co_name in ("generate", "forward") and code.co_varnames[:1] == ("self",)
            if named and not code.co_flags & inspect.CO_GENERATOR:  # to clear a generator would close it
                instance = frame.f_locals.get("self")
                found = frame if any(instance is part for part in self._parts) else found
            frame = frame.f_back
        return found


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
        yield owner
    finally:
        with _LOCK:
            _OPEN_BLOCKS[:] = [other for other in _OPEN_BLOCKS if other is not owner]


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
