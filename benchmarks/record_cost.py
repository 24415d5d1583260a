"""What the recording of a steering block costs while a model writes: where it is not asked for, and where it is.

    python benchmarks/record_cost.py

`steering(record=True)` keeps h and displacement of every token. The code that would record stands in every steered
pass. Generations are timed in turn: steered, as it is; steered, with the lines that could record taken out of
`PassEdits` and `EditRunner` (the same source without them, compiled here); as it is a second time, whose ratio to the
first is the noise; and recording. GPT-2 small's shape with random weights, KV cache, greedy, one thread; ODESteer and
CAA. Time is that of the process on its core, so that other jobs on the machine count little.

A ratio is tokens per second as it is over tokens per second without the lines; goal: at least 0.99. Whole generations
cannot show a microsecond, so the lines are also timed alone: what they add to one pass with one edit, a vector of width
8 on one token. Medians, and quartiles in brackets.
"""

import argparse
import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from time import process_time
from typing import Any

import torch
from paired import timed_in_turn
from shapes import fitted, gpt2, libraries, prompts

import odesteer_tl as ot
from odesteer_tl.backends.edit_runner import EditRunner
from odesteer_tl.interventions.positions import Tracker
from odesteer_tl.portable.apply_edits import PassEdits, owned_edits
from odesteer_tl.portable.strength import Strength
from odesteer_tl.portable.token_tracks import Pass

LINES = {
    (PassEdits, "__init__"): {
        "self.beams, self.counts, self.record = beams, counts, record": "self.beams, self.counts = beams, counts"
    },
    (PassEdits, "act"): {
        "before = value": "",
        "if self.record is not None:": "",
        "self.record(number, self.selection, before, value)": "",
    },
    (EditRunner, "_new_run"): {
        "record = self.recording.add if counts and self.recording is not None else None": "",
        "self._tally, beams, counts, record))": "self._tally, beams, counts))",
    },
}
"""By function: what could record, and what stands there without it."""


def without_lines(owner: type, name: str) -> Callable[..., Any]:
    """The function of a class with its `LINES` replaced. Raises ValueError where one is not found once."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    for line, other in LINES[owner, name].items():
        if source.count(line) != 1:
            raise ValueError(f"{owner.__name__}.{name} has no line {line!r}: say in LINES what records there now.")
        source = source.replace(line, other)
    made: dict[str, Any] = {}
    exec(compile(source, f"<{name} without recording>", "exec"), vars(inspect.getmodule(function)), made)
    return made[name]


AS_IT_IS = {place: getattr(*place) for place in LINES}
WITHOUT = {place: without_lines(*place) for place in LINES}


def run_with(functions: dict[tuple[type, str], Callable[..., Any]], call: Callable[[], Any]) -> Any:
    """The call with these functions in the classes. Both kinds are put in anew each time, as Python forgets what it has
    learnt of a class that is changed."""
    for (owner, name), function in functions.items():
        setattr(owner, name, function)
    try:
        return call()
    finally:
        for (owner, name), function in AS_IT_IS.items():
            setattr(owner, name, function)


def told(name: str, ratios: list[float]) -> str:
    """The median with its quartiles."""
    low, _, high = quantiles(ratios, n=4)
    return f"{name} {median(ratios):.4f} ({low:.4f}–{high:.4f})"


def of_one_act(runs: int) -> list[float]:
    """By run: the microseconds that the lines add to one pass with one edit, a vector of width 8 on one token."""
    method = fitted("caa", 8, 0, samples=20)
    runner = EditRunner(owned_edits(0, method, Strength(T=1.0), None), Tracker("all"))
    value = torch.zeros(1, 1, 8)
    now = Pass(1, 1, 0, torch.zeros(1, 1, dtype=torch.long))
    runner.begin(now)
    assert runner._run is not None
    selection, here = runner._run.edits.selection, next(iter(runner._places.values()))

    def act() -> None:
        for _ in range(50):
            runner._new_run(now, selection).edits.act(here, value)

    calls = [partial(run_with, functions, act) for functions in (AS_IT_IS, WITHOUT)]
    return [(own - bare) / 50 * 1e6 for own, bare in timed_in_turn(calls, runs, 0.05, process_time)]


@torch.inference_mode()
def measure(library: str, args: argparse.Namespace) -> None:
    """Print a line per method."""
    model, ids = gpt2(library), prompts(args.batch, args.prompt, 50257)
    for name in args.method:
        method = fitted(name, 768, args.layer)

        def call(record: bool = False, method: Any = method) -> torch.Tensor:
            with ot.steering(model, method, relative_T=args.relative_t, record=record) as report:
                out = ot.generate(model, ids, max_new_tokens=args.tokens, stop_at_eos=False, do_sample=False)
            assert report.recording is None or report.records
            return out.tokens

        own, bare = (partial(run_with, functions, call) for functions in (AS_IT_IS, WITHOUT))
        assert torch.equal(own(), bare())
        recording = partial(run_with, AS_IT_IS, partial(call, True))
        took = timed_in_turn([own, bare, own, recording], args.runs, clock=process_time)
        step = 1000 * median(one[0] for one in took) / args.tokens
        print(
            told(f"recording unused {library} {name}", [one[1] / one[0] for one in took]),
            told("the same twice", [one[2] / one[0] for one in took]),
            told("used", [one[1] / one[3] for one in took]),
            f"{step:.2f} ms a step, {args.runs} paired runs",
            sep=" | ",
            flush=True,
        )


def main() -> None:
    """Read the options and measure every library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=libraries(), choices=libraries())
    parser.add_argument("--method", nargs="+", default=["odesteer", "caa"], choices=["odesteer", "caa"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each generation")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--relative-t", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(1)
    added = of_one_act(args.runs)
    low, _, high = quantiles(added, n=4)
    print(f"the lines alone: {median(added):.2f} ({low:.2f} … {high:.2f}) µs a pass, {args.runs} paired runs")
    for library in args.library:
        measure(library, args)


if __name__ == "__main__":
    main()
