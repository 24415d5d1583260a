"""What a sweep saves: `ot.generate` for several values of T in one batch, over one run for each.

    python benchmarks/sweeping.py

GPT-2 small's shape with random weights, KV cache, greedy, one thread. One batch holds the prompt once for each T, a
tensor with one value per row; the runs apart do the same rows one by one, and the tokens must agree.

The limit: a step of a batch of k reads the weights (497 MB) once instead of k times, so that memory alone would allow
k×; what the rows compute each, 250 MFLOP a token, does not shrink, and decides for many rows on a slow core.
"""

import argparse
from statistics import median

import torch
from paired import line, timed_in_turn
from shapes import fitted, gpt2, libraries, prompts

import odesteer_tl as ot


@torch.inference_mode()
def measure(library: str, args: argparse.Namespace) -> None:
    """Print a line: how many times faster the one batch is."""
    model, method = gpt2(library), fitted("odesteer", 768, args.layer)
    one = prompts(1, args.prompt, 50257)
    strengths = torch.linspace(0.02, 0.3, args.values)
    own = {"max_new_tokens": args.tokens, "stop_at_eos": False, "do_sample": False}

    def together() -> torch.Tensor:
        return ot.generate(model, one.expand(args.values, -1), method, relative_T=strengths, **own).tokens

    def apart() -> torch.Tensor:
        runs = [ot.generate(model, one, method, relative_T=float(T), **own) for T in strengths]
        return torch.cat([run.tokens for run in runs])

    same = (together() == apart()).float().mean()
    found = timed_in_turn([together, apart], args.runs)
    each = [median(took[i] for took in found) for i in range(2)]
    told = f"{each[0]:.2f} s in one batch, {each[1]:.2f} s apart; {100 * same:.1f} % of the tokens are the same"
    print(line(f"sweep {library} {args.values} values", [took[1] / took[0] for took in found], told), flush=True)


def main() -> None:
    """Read the options and measure every library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=libraries(), choices=libraries())
    parser.add_argument("--values", type=int, default=8, help="of T")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each row")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"GPT-2 small's shape, float32, {args.tokens} new tokens after {args.prompt}, {args.threads} CPU thread(s), "
        f"torch {torch.__version__}; goal: at least 4"
    )
    for library in args.library:
        measure(library, args)


if __name__ == "__main__":
    main()
