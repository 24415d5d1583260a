"""What steering costs on a GPU: tokens per second steered over unsteered, at Llama-3.1-8B's shape.

    python benchmarks/decode_gpu.py                 # one GPU of 24 GB or more, no network; prints the table by itself
    python benchmarks/decode_gpu.py --bridge        # a TransformerBridge steered by ot.steering as well
    python benchmarks/decode_gpu.py --shape tiny    # anywhere, to see that it runs

Random bfloat16 weights, made on the device. `hook` is a plain Hugging Face model with `method.steer` as a forward hook
of the middle block, on the last token of each pass: the prompt's, then every new one; ODESteer at its default (rank
256, ten steps). Greedy, KV cache, whole generations in turn with unsteered ones; the clock stops when the device has.

The limit: a step reads 16.06 GB of weights, 4.8 ms at 3.35 TB/s, and steering two 4096 × 256 float32 matrices, 8.4 MB:
a ratio of 0.999. Without CUDA graphs the host decides instead: a step launches about as many kernels as it calls
operators, which are counted with and without the method (1168 and 1302 at 32 layers). Host-device synchronisations
are counted by torch.cuda.set_sync_debug_mode, in a step of the bare model and in a steered one.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn
from shapes import LLAMAS, fitted, llama, prompts, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

import odesteer_tl as ot


class Operators(TorchDispatchMode):
    """Counts the operators that are called inside the block, but for views: about as many kernels are launched."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@contextmanager
def hooked(model: Any, method: Any, layer: int, relative_T: float) -> Iterator[None]:
    """The method as a forward hook of a block, on the last token of each pass."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        whole = output if isinstance(output, torch.Tensor) else output[0]
        new = method.steer(whole[:, -1:], relative_T=relative_T)
        new = new if whole.shape[1] == 1 else torch.cat([whole[:, :-1], new], dim=1)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def syncs(call: Callable[[], Any]) -> str:
    """How often the host waits for the device in a call; "no CUDA" where there is none."""
    if not torch.cuda.is_available():
        return "no CUDA"
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return str(sum("synchroniz" in str(each.message) for each in said))


def step_counts(model: Any, ids: torch.Tensor, around: Callable[[], Any]) -> str:
    """Operators and synchronisations of one step after the prompt, inside what `around` makes."""
    with around():
        cache = model(ids, use_cache=True).past_key_values

        def step() -> None:
            model(ids[:, -1:], past_key_values=cache, use_cache=True)

        step()
        with Operators() as operators:
            step()
        return f"{operators.count} operators, {syncs(step)} synchronisations"


def measure(name: str, run: Callable[[], Any], around: Callable[[], Any], args: argparse.Namespace) -> None:
    """Print one line: `run` as it is, and inside what `around` makes."""

    def done(wrapped: Callable[[], Any]) -> Callable[[], None]:
        def whole() -> None:
            with wrapped():
                run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return whole

    found = timed_in_turn([done(nullcontext), done(around)], args.runs)
    each = [1000 * median(took[i] for took in found) / args.tokens for i in range(2)]
    told = f"{each[0]:.3f} and {each[1]:.3f} ms a step"
    print(line(name, [took[0] / took[1] for took in found], told), flush=True)


@torch.inference_mode()
def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=list(LLAMAS))
    parser.add_argument("--method", nargs="+", default=["odesteer", "caa"], choices=["odesteer", "caa"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each generation")
    parser.add_argument("--relative-t", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--bridge", action="store_true", help="also a TransformerBridge around the same weights")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{args.shape}, bfloat16, {args.tokens} new tokens after {args.prompt}, torch {torch.__version__}, {named}; "
        "goal: at least 0.99"
    )
    model, width, vocabulary = (
        llama(args.shape, device),
        *(LLAMAS[args.shape][n] for n in ("hidden_size", "vocab_size")),
    )
    layer = LLAMAS[args.shape]["num_hidden_layers"] // 2
    methods = {name: fitted(name, width, layer).to(device) for name in args.method}
    chosen = [(prompts(batch, args.prompt, vocabulary).to(device), name) for batch in args.batch for name in methods]
    for ids, name in chosen:
        same = {"attention_mask": torch.ones_like(ids), "do_sample": False, "min_new_tokens": args.tokens}
        run = partial(model.generate, ids, max_new_tokens=args.tokens, **same)
        around = partial(hooked, model, methods[name], layer, args.relative_t)
        measure(f"decode_gpu hook {name} batch {len(ids)}", run, around, args)
        counts = [step_counts(model, ids, each) for each in (nullcontext, around)]
        print(f"    one step: bare {counts[0]}; steered {counts[1]}", flush=True)
    if args.bridge:  # it wraps the model in place, so it comes last
        bridge = as_bridge(model, tokenizer(vocabulary))
        for ids, name in chosen:
            own = {"max_new_tokens": args.tokens, "do_sample": False, "stop_at_eos": False, "verbose": False}
            around = partial(ot.steering, bridge, methods[name], relative_T=args.relative_t)
            measure(f"decode_gpu bridge {name} batch {len(ids)}", partial(bridge.generate, ids, **own), around, args)
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def as_bridge(model: Any, words: Any) -> Any:
    """A TransformerBridge around the model itself, not a copy."""
    from transformer_lens.model_bridge import TransformerBridge

    own = {"hf_model": model, "tokenizer": words, "device": str(model.device), "dtype": torch.bfloat16}
    return TransformerBridge.boot_transformers("llama", **own)


if __name__ == "__main__":
    main()
