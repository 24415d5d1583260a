"""What a closed loop costs: to fit, in time and memory, against keeping every gain; and while a model writes.

    python benchmarks/closed_loop.py

GPT-2 small's shape with random weights, float32, one thread. Fits: `sparing` is `ot.ALQR.fit`, which lets each Jacobian
and gain go and keeps two vectors a layer; `dense` keeps all A_k and K_k, as a released controller does; `matrix-free`
takes products alone. Each is made in a process of its own; peak memory is what that holds at most beyond what it held
before, after the fit of one layer. Decoding: tokens per second steered at all layers over unsteered, whole greedy
generations timed in turn, KV cache on; the cost of a loop does not depend on its numbers.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn
from peak import Peak
from shapes import gpt2, libraries, prompts

import odesteer_tl as ot
from odesteer_tl.backends.jacobians import mean_jacobians
from odesteer_tl.control.riccati import gains


def model_of(args: argparse.Namespace) -> Any:
    """The model that is steered."""
    return gpt2(args.library, layers=args.layers, d_model=args.d_model, d_vocab=args.d_vocab)


def texts(args: argparse.Namespace) -> torch.Tensor:
    """Desired and undesired token ids [2, n, context]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, args.d_vocab, (2, max(8, args.jacobians), args.context), generator=generator)


def fit_line(name: str, args: argparse.Namespace) -> None:
    """Fit once, in a process of its own, and print seconds and the peak beyond what was held before."""
    model, (desired, undesired) = model_of(args), texts(args)
    options: dict[str, Any] = {"n_jacobians": args.jacobians, "chunk": args.chunk, "progress": False}

    def dense() -> Any:
        prompts, layers = list(desired[: args.jacobians].split(1)), list(range(args.layers))
        matrices = list(mean_jacobians(model, prompts, layers, args.chunk, progress=False))
        found = [K for K, _ in gains(reversed(matrices), 0.1, 1.0, 0.1)]
        return ot.SPID.fit(model, desired, undesired, progress=False), matrices, found

    fits: dict[str, Callable[[], Any]] = {
        "sparing": lambda: ot.ALQR.fit(model, desired, undesired, **options),
        "matrix-free": lambda: ot.ALQR.fit(model, desired, undesired, matrix_free=True, **options),
        "dense": dense,
    }
    once: dict[str, Any] = options | {"n_jacobians": 1}
    ot.ALQR.fit(model, desired[:2], undesired[:2], layers=[args.layers - 1], **once)
    with Peak() as peak:
        start = time.perf_counter()
        kept = fits[name]()
        seconds = time.perf_counter() - start
    print(f"fit {name}: {seconds:.1f} s, peak {peak.above:.0f} MB beyond the model", flush=True)
    if name == "matrix-free":
        exact = fits["sparing"]().answers
        off = ((kept.answers - exact).norm(dim=-1) / exact.norm(dim=-1)).max()
        print(f"matrix-free answers are within {float(off):.1g} of the exact ones")


@torch.inference_mode()
def decoding(model: Any, name: str, method: Any, args: argparse.Namespace) -> None:
    """A line: steered over unsteered tokens per second."""
    ids = prompts(args.batch, 8, args.d_vocab)
    own = {"max_new_tokens": args.tokens, "stop_at_eos": False, "do_sample": False}
    calls = [lambda: ot.generate(model, ids, **own), lambda: ot.generate(model, ids, method, 1.0, **own)]
    found = timed_in_turn(calls, args.runs)
    each = [1000 * median(took[i] for took in found) / args.tokens for i in range(2)]
    told = f"{each[0]:.2f} and {each[1]:.2f} ms a step"
    print(line(f"decode {args.library} {name}", [took[0] / took[1] for took in found], told), flush=True)


def main() -> None:
    """Read the options, fit, and decode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="TransformerBridge", choices=libraries())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--d-vocab", type=int, default=50257)
    parser.add_argument("--jacobians", type=int, default=2)
    parser.add_argument("--context", type=int, default=16, help="tokens of each text")
    parser.add_argument("--chunk", type=int, default=8, help="rows of a Jacobian at once")
    parser.add_argument("--no-fits", action="store_true", help="only decode")
    parser.add_argument("--fit", choices=["sparing", "dense", "matrix-free"], help="only this fit, here and now")
    parser.add_argument("--matrix-free", action="store_true", help="fit without matrices, too")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{args.layers} layers, d_model {args.d_model}, {args.jacobians} Jacobians of {args.context} tokens, float32, "
        f"one CPU thread, torch {torch.__version__}; goal of the decode ratio: at least 0.97"
    )
    if args.fit:
        fit_line(args.fit, args)
        return
    for name in () if args.no_fits else ("sparing", "dense", *(["matrix-free"] if args.matrix_free else [])):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--fit", name], check=True)
    kept = 2 * args.layers * args.d_model
    print(f"kept: {kept:,} numbers in two vectors a layer, against {args.layers * args.d_model**2:,} in all gains")
    model, (desired, undesired) = model_of(args), texts(args)
    s_pid = ot.SPID.fit(model, desired, undesired, progress=False)
    v = s_pid.directions
    decoding(model, "A-LQR", ot.ALQR(v, s_pid.set_points, 0.1 * v, s_pid.layers, 0.1, 1.0, 0.1, s_pid.origin), args)
    decoding(model, "S-PID", s_pid, args)


if __name__ == "__main__":
    main()
