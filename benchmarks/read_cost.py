"""What reading costs: `ot.collect` at layer L of N over one bare forward pass of the model over the same batches.

    python benchmarks/read_cost.py

GPT-2 small's shape with random weights, texts of one length as token tensors, the same batches for both, one thread;
each library against its own bare forward pass (no gradients, no hooks).

The limit: layers 0 … L are (L + 1)/N of the blocks, and a bare pass computes the logits besides, which reading does not
(d_model × d_vocab of the 124M numbers that a token meets: 31 %). So the printed share (L + 1)/N of a whole pass is more
than must be computed: about (L + 1)/N × 0.69, beside which the goal, (L + 1)/N × 1.10, leaves room for reading itself.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn
from shapes import gpt2, libraries, prompts

import odesteer_tl as ot

LAYERS = 12


def forward(library: str, model: Any, batches: list[torch.Tensor]) -> Callable[[], None]:
    """One bare pass over every batch: TransformerLens' own call, and nnsight's module without a trace."""
    called = model._module if library == "nnsight" else model
    bare = {"use_cache": False} if library == "nnsight" else {}

    def run() -> None:
        for batch in batches:
            called(batch, **bare)

    return run


@torch.no_grad()
def measure(library: str, args: argparse.Namespace) -> None:
    """Print a line per layer."""
    model = gpt2(library)
    sides = prompts(2 * args.texts, args.tokens, 50257).split(args.texts)
    batches = [batch for side in sides for batch in side.split(args.batch)]

    def collect(layer: int) -> Callable[[], Any]:
        return lambda: ot.collect(
            model, *sides, layer=layer, position=args.position, batch_size=args.batch, progress=False
        )

    calls = [forward(library, model, batches), *(collect(layer) for layer in args.layers)]
    found = timed_in_turn(calls, args.runs)
    bare = median(took[0] for took in found)
    for n, layer in enumerate(args.layers, start=1):
        share = (layer + 1) / LAYERS
        told = f"goal at most {1.1 * share:.3g}; bare forward {1000 * bare:.0f} ms"
        print(line(f"read_over_forward {library} L={layer}", [took[n] / took[0] for took in found], told), flush=True)


def main() -> None:
    """Read the options and measure every library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=libraries(), choices=libraries())
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 5, 8, 11], choices=range(LAYERS))
    parser.add_argument("--texts", type=int, default=8, help="of each side")
    parser.add_argument("--tokens", type=int, default=16, help="of each text")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--position", default="last", choices=["last", "mean", "all"])
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"GPT-2 small's shape, float32, 2 x {args.texts} texts of {args.tokens} tokens, batches of {args.batch}, "
        f'position "{args.position}", {args.threads} CPU thread(s), torch {torch.__version__}'
    )
    for library in args.library:
        measure(library, args)


if __name__ == "__main__":
    main()
