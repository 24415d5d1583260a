"""What steering costs while a model writes: tokens per second steered over tokens per second unsteered.

    python benchmarks/decode.py

GPT-2 small's shape with random weights, KV cache, greedy, one thread; each library against its own unsteered self, by
`ot.generate`, and by `model.generate` in a block of `ot.steering` (TransformerLens). Whole generations are timed in
turn, prompt included. ODESteer is at its default: rank 256, ten steps, the last token of each pass.

The limit: a token reads all weights once (497 MB), a steered one U, Uᵀ and the diagonal form of h besides
(2 × 768 × 256 numbers, 1.6 MB), which is 0.3 %: a ratio of 0.997 where memory decides. What is left beside that is the
rest of the flow, and Python: `--profile` prints where the time of a steered generation goes that the other has not.
"""

import argparse
import cProfile
import pstats
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn
from shapes import fitted, gpt2, libraries, prompts

import odesteer_tl as ot


def pairs(model: Any, method: Any, ids: torch.Tensor, args: argparse.Namespace) -> dict[str, list[Callable[[], Any]]]:
    """By the verb: [unsteered, steered] generations."""
    own = {"max_new_tokens": args.tokens, "stop_at_eos": False, "do_sample": False}
    strength = {"relative_T": args.relative_t}

    def block() -> None:
        with ot.steering(model, method, **strength):
            model.generate(ids, verbose=False, **own)

    found: dict[str, list[Callable[[], Any]]] = {
        "generate": [lambda: ot.generate(model, ids, **own), lambda: ot.generate(model, ids, method, **strength, **own)]
    }
    if hasattr(model, "cfg"):
        found["block"] = [lambda: model.generate(ids, verbose=False, **own), block]
    return found


def profile(call: Callable[[], Any], rows: int) -> None:
    """Print the functions in which one call spends most time."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("odesteer_tl", rows)


@torch.inference_mode()
def measure(library: str, args: argparse.Namespace) -> None:
    """Print a line per verb and method."""
    model, ids = gpt2(library), prompts(args.batch, args.prompt, 50257)
    for name in args.method:
        method = fitted(name, 768, args.layer)
        for verb, calls in pairs(model, method, ids, args).items():
            found = timed_in_turn(calls, args.runs)
            each = [1000 * median(took[i] for took in found) / args.tokens for i in range(2)]
            told = f"{args.batch / each[0] * 1000:.1f} tokens/s unsteered; {each[0]:.2f} and {each[1]:.2f} ms a step"
            print(line(f"decode {library} {verb} {name}", [took[0] / took[1] for took in found], told), flush=True)
            if args.profile:
                profile(calls[1], 30)


def main() -> None:
    """Read the options and measure every library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=libraries(), choices=libraries())
    parser.add_argument("--method", nargs="+", default=["odesteer"], choices=["odesteer", "caa"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each generation")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--relative-t", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"GPT-2 small's shape, float32, batch {args.batch}, {args.tokens} new tokens after {args.prompt}, layer "
        f"{args.layer}, {args.threads} CPU thread(s), torch {torch.__version__}; goal: at least 0.97"
    )
    for library in args.library:
        measure(library, args)


if __name__ == "__main__":
    main()
