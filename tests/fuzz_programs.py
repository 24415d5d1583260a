"""Random programs around steering blocks, after which the model must be as if they had never run.

`programs(number, seed)` runs them. What a call computes inside blocks is compared, bit for bit, with the same call in
fresh blocks of the same kind, whatever went before it: failures, interrupts, abandoned generators, threads and tasks.
"""

import asyncio
import gc
import random
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import nnsight
import torch
from models import BACKENDS, hooks_of, load
from oracle import Asking, Stub
from torch._dynamo import eval_frame

import odesteer_tl as ot
from odesteer_tl.backends.model_info import modules_of
from odesteer_tl.parity.table import parity_rows

IDS = [torch.tensor(each) for each in ([[1, 5, 6, 7]], [[1, 8, 6], [1, 9, 4]], [[1, 7, 6, 5, 9]])]
"""None of them continues another, which would be taken for its continuation."""
ERRORS = [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, ValueError]
NAMES = ["stub", "other", "asking", "CAA", "S-PID", "ITI, heads", "TruthFlow"]
POSITIONS = ["decoding", "all", "prompt", "generated", slice(1, 3)]
Block = tuple[int, int, int]
"""A steering block: which method, which T, which positions."""
BLOCKS: list[Block] = [(0, 0, 0), (1, 2, 1), (2, 0, 3), (3, 1, 2), (4, 1, 0), (5, 0, 4), (6, 1, 1), (0, 2, 3)]
Call = tuple[str, int]
"""A call of the model: its name, and of which IDS."""


class Failing(Stub):
    """A method that is interrupted by `error` as it edits."""

    def __init__(self, d_model: int, error: BaseException):
        super().__init__(d_model)
        self.error = error

    def edits(self, T=None, *, relative_T=None, layer=None):
        edit = super().edits(T, relative_T=relative_T, layer=layer)[0]

        def apply(read, write, state):
            raise self.error

        return [ot.Edit(edit.read, edit.write, apply)]


def programs(number: int, seed: int = 0, kinds: tuple[str, ...] = tuple(BACKENDS)) -> Counter[str]:
    """How often each move was made in `number` random programs, which the `kinds` of model run in turn.

    Raises AssertionError, with the seed and the moves, for a program after or during which something is not right.
    """
    made: Counter[str] = Counter()
    worlds = {kind: _world(kind) for kind in kinds}
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("ignore")
        pool.submit(int).result()  # a thread that is older than every block
        gc.collect()
        gc.freeze()  # so that collecting what a program leaves is cheap, as it is in the tests after this one
        for turn in range(number):
            own = seed * 1_000_003 + turn
            program = _Program(worlds[kinds[turn % len(kinds)]], random.Random(own), pool)
            try:
                program.run()
            except BaseException as error:
                said = f"{program.world.kind}, random.Random({own}): {program.moves}"
                raise AssertionError(f"{said}: {type(error).__name__}: {error}") from error
            made.update(move.split(" ")[0] for move in program.moves)
    return made


@cache
def _methods() -> list[Any]:
    own = [Stub(32), Stub(32, layer=0, seed=1), Asking(32)]
    return [*own, *(parity_rows()[name]("llama") for name in NAMES[3:])]


@cache
def _world(kind: str) -> "_World":
    return _World(kind)


class _World:
    """A model, and what each call of it gives in fresh blocks."""

    def __init__(self, kind: str) -> None:
        self.kind, self.model = kind, load(kind, "llama")
        self._known: dict[tuple[tuple[Block, ...], Call], Any] = {}
        self.calls = ["forward", "forward", "forward", "cached", "uncached", "ot.generate", "collect"]
        self.calls += ["trace"] if kind == "nnsight" else ["run_with_cache"]
        for name in self.calls:  # a bridge makes hooks of its own as it first runs
            self.call((name, 0))
        self.made = self.call(("forward", 0))
        self.hooks = hooks_of(self.model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = getattr(self.model, "_module", self.model)(ids)
        return found if isinstance(found, torch.Tensor) else found.logits

    @torch.no_grad()
    def call(self, call: Call) -> Any:
        name, ids, model = call[0], IDS[call[1]], self.model
        if name == "forward":
            return self.forward(ids)
        if name == "collect":
            acts = ot.collect(model, ids, ids.flip(1), layer=1, keep_sinks=True, progress=False)
            return torch.cat([acts.desired, acts.undesired])
        if name == "ot.generate":
            return ot.generate(model, ids, _methods()[1], T=9.0, max_new_tokens=2, stop_at_eos=False).tokens
        if name == "run_with_cache":
            return model.run_with_cache(ids)[1]["blocks.2.hook_resid_post"]
        if name == "trace":
            with model.trace(ids):
                found = nnsight.save(model.lm_head.output)
            return found
        keep = name == "cached"
        if self.kind == "nnsight":
            own = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": keep, "max_new_tokens": 2}
            own |= {"output_logits": True, "return_dict_in_generate": True}
            return torch.stack(model._module.generate(ids, **own).logits)
        own = {"max_new_tokens": 2, "do_sample": False, "stop_at_eos": False, "verbose": False}
        own |= {"return_type": "tokens", "use_past_kv_cache": keep, "output_logits": True}
        return torch.stack(model.generate(ids, **own).logits)

    def block(self, block: Block) -> Any:
        method, T, positions = block
        strength = [3.0, 0.7, torch.tensor([2.0, -1.0])][T]
        return ot.steering(self.model, _methods()[method], strength, positions=POSITIONS[positions])

    def outcome(self, call: Call) -> Any:
        """What the call gives, or the error that it raises."""
        try:
            return self.call(call)
        except Exception as error:
            return type(error), str(error)

    def right(self, blocks: tuple[Block, ...], call: Call) -> Any:
        """The outcome in fresh blocks. Is asked for while none is open."""
        if (blocks, call) not in self._known:
            with nothing_steered_allowed(), ExitStack() as stack:
                for block in blocks:
                    stack.enter_context(self.block(block))
                self._known[blocks, call] = self.outcome(call)
        return self._known[blocks, call]


@contextmanager
def nothing_steered_allowed() -> Iterator[None]:
    """Of a block in which nothing was steered, that is said."""
    try:
        yield
    except ValueError as error:
        if "No token was steered" not in str(error):
            raise


class _Program:
    def __init__(self, world: _World, chance: random.Random, pool: ThreadPoolExecutor) -> None:
        self.world, self.chance, self.pool = world, chance, pool
        self.moves: list[str] = []
        self.found: list[tuple[tuple[Block, ...], Call, Any]] = []

    def run(self) -> None:
        self.move((), 0)
        world = self.world
        for blocks, call, found in self.found:
            assert _same(found, world.right(blocks, call)), f"{call} in {blocks} gave {found}"
        assert hooks_of(world.model) == world.hooks, "hooks are left"
        assert eval_frame._stance.stance == "default", "the stance of torch.compile is left"
        assert torch.equal(world.call(("forward", 0)), world.made), "the model is another"
        last = (((self.chance.randrange(3), 0, 1),), ("forward", 0))
        right = world.right(*last)
        with world.block(last[0][0]):
            assert torch.equal(world.call(last[1]), right), "the next steering is wrong"

    def move(self, blocks: tuple[Block, ...], depth: int) -> None:
        deep = [self.call, self.call, self.fails] if depth > 1 else [self.opens, self.opens, self.abandons]
        any_depth = [self.call, self.fails, self.edit_fails, self.thread, self.tasks, self.hooks, self.overlap]
        self.chance.choice(any_depth + deep)(blocks, depth)

    def some(self) -> Call:
        return self.chance.choice(self.world.calls), self.chance.randrange(len(IDS))

    def next_block(self, blocks: tuple[Block, ...]) -> Block:
        """Any block; within another one of two, so that what is right of most nestings is known from earlier ones."""
        if not blocks:
            return self.chance.choice(BLOCKS)
        return BLOCKS[(BLOCKS.index(blocks[-1]) + self.chance.choice([1, 3])) % len(BLOCKS)]

    def call(self, blocks: tuple[Block, ...], depth: int) -> None:
        self.compare(blocks, self.some())

    def compare(self, blocks: tuple[Block, ...], call: Call) -> None:
        self.moves.append(f"{call[0]} {call[1]}")
        self.found.append((blocks, call, self.world.outcome(call)))

    def opens(self, blocks: tuple[Block, ...], depth: int) -> None:
        """A block with moves in it, left at its end or by an error."""
        block, ends = self.next_block(blocks), self.chance.choice([None, None, *ERRORS])
        self.moves.append(f"block {block} {ends and ends.__name__}")
        try:
            with nothing_steered_allowed(), self.world.block(block):
                for _ in range(self.chance.choice([1, 1, 2])):
                    self.move((*blocks, block), depth + 1)
                if ends is not None:
                    raise ends("mine")
        except BaseException as error:
            if type(error) is not ends or str(error) != "mine":
                raise
        self.moves.append("end")

    def fails(self, blocks: tuple[Block, ...], depth: int) -> None:
        """An error, or Ctrl-C, inside a pass; then the same call."""
        error, layer, call = self.chance.choice(ERRORS)("mine"), self.chance.randrange(3), self.some()
        left = self.chance.choice([1, 1, 2])
        self.moves.append(f"fails {type(error).__name__} {layer} {call} {left}")

        def interrupt(module: Any, args: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise error

        handle = modules_of(self.world.model)[layer].register_forward_pre_hook(interrupt)
        try:
            self.world.call(call)
        except BaseException as other:
            if other is not error and not (blocks and isinstance(other, Exception)) and "mine" not in str(other):
                raise
        finally:
            handle.remove()
        if self.chance.random() < 0.6:
            self.compare(blocks, call)

    def edit_fails(self, blocks: tuple[Block, ...], depth: int) -> None:
        error = self.chance.choice(ERRORS)("mine")
        self.moves.append(f"edit_fails {type(error).__name__}")
        try:
            with ot.steering(self.world.model, Failing(32, error), 1.0):
                self.world.call(("forward", 0))
        except BaseException as other:
            if other is not error and "mine" not in str(other) and not (blocks and "T holds 2" in str(other)):
                raise
        else:
            raise AssertionError("the error was lost")

    def generator(self, block: Block) -> Iterator[None]:
        with nothing_steered_allowed(), self.world.block(block):
            while True:
                yield

    def abandons(self, blocks: tuple[Block, ...], depth: int) -> None:
        """A generator that holds a block: closed, thrown into, dropped, or collected in a cycle."""
        block, end = self.next_block(blocks), self.chance.choice(["close", "throw", "drop", "cycle"])
        self.moves.append(f"generator {block} {end}")
        holder: list[Any] = [self.generator(block)]
        next(holder[0])
        self.move((*blocks, block), depth + 1)
        if end == "close":
            holder[0].close()
        elif end == "throw":
            error = self.chance.choice(ERRORS)("mine")
            try:
                holder[0].throw(error)
            except BaseException as other:
                if other is not error:
                    raise
        elif end == "cycle":
            holder.append(_Cycle(holder))
        holder = []
        if end == "cycle":
            gc.collect()
        self.moves.append("end")

    def overlap(self, blocks: tuple[Block, ...], depth: int) -> None:
        """Two blocks, of which the first one ends first."""
        first = self.next_block(blocks)
        second = self.next_block((*blocks, first))
        self.moves.append(f"overlap {first} {second}")
        one, two = self.generator(first), self.generator(second)
        next(one), next(two)
        self.compare((*blocks, first, second), self.some())
        one.close()
        self.compare((*blocks, second), self.some())
        two.close()

    def thread(self, blocks: tuple[Block, ...], depth: int) -> None:
        """A thread that is older than the blocks is refused; one that is started now runs in them."""
        call, old = ("forward", self.chance.randrange(3)), self.chance.random() < 0.5
        self.moves.append(f"thread {call[1]} {'old' if old else 'new'}")
        found: list[Any] = []
        if old:
            found.append(self.pool.submit(self.world.outcome, call).result())
        else:
            worker = threading.Thread(target=lambda: found.append(self.world.outcome(call)))
            worker.start()
            worker.join()
        if old and blocks:
            assert found[0][0] is RuntimeError and "Another thread" in found[0][1], found
        else:
            self.found.append((blocks, call, found[0]))
        self.compare(blocks, call)

    def tasks(self, blocks: tuple[Block, ...], depth: int) -> None:
        """A block in one task, and another task that calls the model meanwhile."""
        block, call = self.next_block(blocks), self.some()
        self.moves.append(f"tasks {block} {call}")

        async def owner() -> None:
            with nothing_steered_allowed(), self.world.block(block):
                await asyncio.sleep(0)
                self.compare((*blocks, block), call)

        async def other() -> Any:
            return self.world.outcome(call)

        async def both() -> Any:
            return (await asyncio.gather(owner(), other()))[1]

        refused = asyncio.run(both())
        assert refused[0] is RuntimeError and "Another asyncio task" in refused[1], refused

    def hooks(self, blocks: tuple[Block, ...], depth: int) -> None:
        """Hooks of the user's own, which stay for a while and change nothing."""
        self.moves.append("hooks")
        seen: list[int] = []
        block = modules_of(self.world.model)[self.chance.randrange(3)]
        see: Callable[..., None] = lambda *what: seen.append(1)  # noqa: E731
        handles = [block.register_forward_hook(see), block.register_forward_pre_hook(see)]
        try:
            self.move(blocks, depth + 1)
            self.compare(blocks, ("forward", 0))
        finally:
            for handle in handles:
                handle.remove()
        assert seen or isinstance(self.found[-1][2], tuple), "a hook of the user's did not run"


class _Cycle:
    def __init__(self, held: Any) -> None:
        self.held = held


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return isinstance(one, tuple) and one == other
