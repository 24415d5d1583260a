"""What a closed loop costs: to fit, in time and memory, against keeping every gain; and while a model writes.

    python benchmarks/closed_loop.py

GPT-2 small's shape with random weights, float32, one thread. Fits: `sparing` is `ot.ALQR.fit`, which lets each Jacobian
and gain go and keeps two vectors a layer; `dense` keeps all A_k and K_k, as a released controller does; `matrix-free`
takes products alone. Peak memory is what the process holds beyond the model at most (Linux: VmHWM, reset before each).
Decoding: tokens per second steered at all layers over unsteered, whole greedy generations timed in turn, KV cache on.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn

import odesteer_tl as ot
from odesteer_tl.backends.linearising import mean_jacobians
from odesteer_tl.control.riccati import gains
from odesteer_tl.parity.models import as_bridge, as_nnsight


def gpt2(library: str, layers: int, d_model: int, d_vocab: int) -> Any:
    """GPT-2's blocks at this shape, with random weights and a tokenizer of as many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(d_vocab - 4))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = GPT2Config(
        vocab_size=d_vocab, n_embd=d_model, n_layer=layers, n_head=d_model // 64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
        torch.manual_seed(0)
        held = {"TransformerBridge": as_bridge, "nnsight": as_nnsight}[library]
        return held(GPT2LMHeadModel(config).eval(), AutoTokenizer.from_pretrained(folder))


def memory(name: str) -> float:
    """VmHWM or VmRSS of this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(each.split()[1]) / 1024 for each in lines if each.startswith(name))


def fit_line(name: str, fit: Callable[[], Any]) -> Any:
    """Fit once, and print seconds and the peak beyond what was held before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, start = memory("VmRSS"), time.perf_counter()
    found = fit()
    seconds = time.perf_counter() - start
    print(f"fit {name}: {seconds:.1f} s, peak {memory('VmHWM') - before:.0f} MB beyond the model", flush=True)
    return found


def fits(model: Any, desired: torch.Tensor, undesired: torch.Tensor, args: argparse.Namespace) -> ot.ALQR:
    """A line for each way to fit; the sparing fit is returned."""
    options = {"n_jacobians": args.jacobians, "chunk": args.chunk, "progress": False}
    prompts = list(desired[: args.jacobians].split(1))

    def dense() -> Any:
        matrices = list(mean_jacobians(model, prompts, list(range(args.layers)), args.chunk, progress=False))
        found = [K for K, _ in gains(reversed(matrices), 0.1, 1.0, 0.1)]
        return ot.SPID.fit(model, desired, undesired, progress=False), matrices, found

    ot.SPID.fit(model, desired, undesired, progress=False)  # a first pass is no part of either
    method = fit_line("sparing", lambda: ot.ALQR.fit(model, desired, undesired, **options))
    fit_line("dense", dense)
    if args.matrix_free:
        free = fit_line("matrix-free", lambda: ot.ALQR.fit(model, desired, undesired, matrix_free=True, **options))
        off = ((free.answers - method.answers).norm(dim=-1) / method.answers.norm(dim=-1)).max()
        print(f"matrix-free answers are within {float(off):.1g} of the exact ones")
    kept = 2 * args.layers * args.d_model
    print(f"kept: {kept:,} numbers in two vectors a layer, against {args.layers * args.d_model**2:,} in all gains")
    return method


@torch.inference_mode()
def decoding(model: Any, name: str, method: Any, args: argparse.Namespace) -> None:
    """A line: steered over unsteered tokens per second."""
    ids = torch.randint(4, args.d_vocab, (args.batch, 8), generator=torch.Generator().manual_seed(1))
    own = {"max_new_tokens": args.tokens, "stop_at_eos": False, "do_sample": False}
    calls = [lambda: ot.generate(model, ids, **own), lambda: ot.generate(model, ids, method, 1.0, **own)]
    found = timed_in_turn(calls, args.runs)
    each = [1000 * median(took[i] for took in found) / args.tokens for i in range(2)]
    told = f"{each[0]:.2f} and {each[1]:.2f} ms a step"
    print(line(f"decode {args.library} {name}", [took[0] / took[1] for took in found], told), flush=True)


def main() -> None:
    """Read the options, fit, and decode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="TransformerBridge", choices=["TransformerBridge", "nnsight"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--d-vocab", type=int, default=50257)
    parser.add_argument("--jacobians", type=int, default=4)
    parser.add_argument("--context", type=int, default=16, help="tokens of each text")
    parser.add_argument("--chunk", type=int, default=16, help="rows of a Jacobian at once")
    parser.add_argument("--matrix-free", action="store_true", help="fit without matrices, too: slower at this width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{args.layers} layers, d_model {args.d_model}, {args.jacobians} Jacobians of {args.context} tokens, float32, "
        f"one CPU thread, torch {torch.__version__}; goal of the decode ratio: at least 0.97"
    )
    model = gpt2(args.library, args.layers, args.d_model, args.d_vocab)
    generator = torch.Generator().manual_seed(0)
    desired, undesired = torch.randint(4, args.d_vocab, (2, max(8, args.jacobians), args.context), generator=generator)
    method = fits(model, desired, undesired, args)
    decoding(model, "A-LQR", method, args)
    decoding(model, "S-PID", ot.SPID.fit(model, desired, undesired, progress=False), args)


if __name__ == "__main__":
    main()
