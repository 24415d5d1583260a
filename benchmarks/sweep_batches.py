"""What a sweep saves: several strengths in one batch, over one run for each.

    python benchmarks/sweep_batches.py                     # ot.generate_strengths over ot.generate
    python benchmarks/sweep_batches.py --model FOLDER      # the same on a real model, and ot.sweep at eight strengths

GPT-2 small's shape with random weights, KV cache, greedy, one thread. `ot.generate_strengths` computes the prompt once
and continues it at all strengths; the runs apart do the same rows one by one, and the tokens must agree. Ratios are
medians with quartiles over paired runs.

The limit: a step of a batch of k reads the weights (497 MB) once instead of k times, so that memory alone would allow
k×. What the machine's matrix products make of it is measured too, `products`: those of a step with one row, k times,
over those of a step with k rows, with nothing else.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
from shapes import fitted, gpt2, libraries, prompts

import odesteer_tl as ot
from odesteer_tl.evaluation.sweeps import plan


def clocked(call: Callable[[], object]) -> float:
    """Seconds of a call: of CPU time with one thread, so that waiting for a core that others use does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def report(name: str, calls: tuple[Callable[[], object], Callable[[], object]], runs: int, more: str = "") -> None:
    """Print the ratio of the second call's seconds to the first's; both have been made once, and take turns."""
    found = []
    for run in range(runs):
        took = {number: clocked(calls[number]) for number in ((0, 1) if run % 2 else (1, 0))}
        found.append((took[0], took[1]))
    low, middle, high = quantiles([apart / together for together, apart in found], n=4, method="inclusive")
    first, second = (median(took[i] for took in found) for i in range(2))
    print(
        f"{name} {middle:.3g} ({low:.3g}–{high:.3g}) over {runs} paired runs | {first:.2f} s together, {second:.2f} s "
        f"apart{more}",
        flush=True,
    )


@torch.inference_mode()
def products(args: argparse.Namespace) -> None:
    """The matrix products of one step of GPT-2 small, k times with one row over once with k rows."""
    shapes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)] * 12
    weights, head = [(torch.randn(shape), torch.randn(shape[1])) for shape in shapes], torch.randn(50257, 768)
    inputs = {rows: {width: torch.randn(rows, width) for width in (768, 3072)} for rows in (1, args.values)}

    def step(rows: int) -> None:
        for weight, bias in weights:
            torch.addmm(bias, inputs[rows][len(weight)], weight)
        torch.nn.functional.linear(inputs[rows][768], head)

    def apart() -> None:
        for _ in range(args.values):
            step(1)

    step(args.values)
    apart()
    report(f"products {args.values} rows", (lambda: step(args.values), apart), 3 * args.runs)


@torch.inference_mode()
def measure(name: str, model: Any, method: Any, asked: Any, args: argparse.Namespace) -> None:
    """All strengths of the same prompts in one batch, over a run for each."""
    strengths = torch.linspace(0.02, 0.3, args.values)
    own: dict[str, Any] = {"max_new_tokens": args.tokens, "stop_at_eos": False, "do_sample": False}

    def together() -> torch.Tensor:
        return torch.cat(
            [out.tokens for out in ot.generate_strengths(model, asked, method, relative_T=strengths, **own)]
        )

    def apart() -> torch.Tensor:
        return torch.cat([ot.generate(model, asked, method, relative_T=float(T), **own).tokens for T in strengths])

    same = 100 * float((together() == apart()).float().mean())
    report(
        f"sweep {name}, {args.values} strengths", (together, apart), args.runs, f"; {same:.1f} % of the tokens the same"
    )


def sweep(model: Any, args: argparse.Namespace) -> None:
    """The whole of `ot.sweep`, with as many strengths at once as it takes, over one at a time."""
    demo, strengths = ot.load_demo(), torch.linspace(0.02, 0.3, args.values).tolist()
    data = SimpleNamespace(desired=demo.desired[:12], undesired=demo.undesired[:12], prompts=demo.prompts[:4])

    def run(at_once: int) -> object:
        most, plan.MOST_AT_ONCE = plan.MOST_AT_ONCE, at_once
        try:
            return ot.sweep(
                model, data, {"ODESteer": ot.ODESteer}, layers=[args.layer], strengths=strengths, primary="words",
                metrics={"words": lambda texts: sum(len(text.split()) for text in texts) / len(texts)}, guardrails={},
                keep=1, seeds=(0,), samples=1, max_new_tokens=args.tokens,
            )  # fmt: skip
        finally:
            plan.MOST_AT_ONCE = most

    run(plan.MOST_AT_ONCE)
    report(
        f"ot.sweep, {args.values} strengths, {plan.MOST_AT_ONCE} at once",
        (lambda: run(plan.MOST_AT_ONCE), lambda: run(1)),
        args.runs,
    )


def main() -> None:
    """Read the options and measure every library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=libraries(), choices=libraries())
    parser.add_argument("--model", metavar="FOLDER", help="a real model in place of GPT-2's shape")
    parser.add_argument("--values", type=int, default=8, help="strengths")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1], help="how many share a batch")
    parser.add_argument("--length", type=int, nargs="+", default=[8, 64], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each row")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"float32, {args.tokens} new tokens, {args.threads} CPU thread(s), torch {torch.__version__}; goal: at least 4"
    )
    if args.model is None:
        products(args)
    for library in args.library if args.model is None else ["huggingface"]:
        model = gpt2(library) if args.model is None else ot.load_model(args.model, library="huggingface")
        width, words = (768, 50257) if args.model is None else (model.config.hidden_size, model.config.vocab_size)
        method = fitted("odesteer", width, args.layer)
        for count, length in ((count, length) for count in args.prompts for length in args.length):
            asked = prompts(count, length, words)
            measure(f"{library}, {count} prompt(s) of {length}", model, method, asked, args)
        if args.model is not None:
            sweep(model, args)


if __name__ == "__main__":
    main()
