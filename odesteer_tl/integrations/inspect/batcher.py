# pyright: reportMissingImports=false
"""Batches of requests that arrive one by one: whoever is first waits a moment, and takes along who has come by then.

It works on asyncio and on trio, and needs no thread that lives on. A batch is computed in a worker thread, one at a
time for all that share a model.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

WAIT = 0.1
"""Seconds in which other requests may join a batch."""

_LOCKS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()


@dataclass(eq=False)
class _Waiting:
    request: Any
    key: Hashable
    answer: Any = None
    error: Exception | None = None
    done: bool = False


class Batcher:
    """Calls `answered(requests)` with at most `size` requests of the same key; `module` is what all models share that
    must not run at the same time."""

    def __init__(self, answered: Callable[[list[Any]], Sequence[Any]], size: int, module: Any) -> None:
        self._answered, self._size = answered, size
        self._waiting: list[_Waiting] = []
        self._turn = anyio.Lock()
        self._running = _LOCKS.setdefault(module, threading.Lock())

    async def ask(self, request: Any, key: Hashable) -> Any:
        """The answer to one request. Raises what `answered` raises, for each request of its batch."""
        own = _Waiting(request, key)
        self._waiting.append(own)
        try:
            async with self._turn:
                if not own.done:
                    if sum(one.key == key for one in self._waiting) < self._size:
                        await anyio.sleep(WAIT)
                    batch = [own, *(one for one in self._waiting if one.key == key and one is not own)][: self._size]
                    await anyio.to_thread.run_sync(self._run, batch)
        finally:
            self._waiting = [one for one in self._waiting if one is not own and not one.done]
        if own.error is not None:
            raise own.error
        return own.answer

    def _run(self, batch: list[_Waiting]) -> None:
        try:
            with self._running:
                answers = self._answered([one.request for one in batch])
            for one, answer in zip(batch, answers, strict=True):
                one.answer = answer
        except Exception as error:
            for one in batch:
                one.error = error
        for one in batch:
            one.done = True
