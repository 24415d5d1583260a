"""How fast the libraries decode one model, steered and not: tokens per second over those of plain Hugging Face.

    python scripts/get_smollm2.py smollm2 && python benchmarks/libraries.py smollm2

Greedy, KV cache, by `ot.generate`, prompt included; the bare line is transformers' own generate. ODESteer at its
default (rank 256, ten steps, the last token of each pass), fitted to random activations, half-way up the model.
"""

import argparse
from statistics import median
from typing import Any

import torch
from paired import line, timed_in_turn
from shapes import fitted, prompts

import odesteer_tl as ot
from odesteer_tl.backends.model_info import layers_of, vocabulary_of, width_of

LIBRARIES = ("huggingface", "nnsight", "transformer_lens")


@torch.inference_mode()
def main() -> None:
    """Load the model in every library, time all in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file or a Hugging Face name")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each generation")
    parser.add_argument("--relative-t", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models: dict[str, Any] = {name: ot.load_model(args.model, library=name) for name in LIBRARIES}
    plain = models["huggingface"]
    width, layer = width_of(plain), layers_of(plain) // 2
    assert width is not None
    method, ids = fitted("odesteer", width, layer), prompts(args.batch, args.prompt, vocabulary_of(plain) or 1000)
    own: dict[str, Any] = {"max_new_tokens": args.tokens, "do_sample": False}
    calls = {"bare": lambda: plain.generate(ids, attention_mask=ids.new_ones(ids.shape), **own, eos_token_id=-1)}
    for name, model in models.items():
        calls[f"{name}, unsteered"] = lambda model=model: ot.generate(model, ids, stop_at_eos=False, **own)
        calls[f"{name}, steered"] = lambda model=model: ot.generate(
            model, ids, method, relative_T=args.relative_t, stop_at_eos=False, **own
        )
    took = timed_in_turn(list(calls.values()), args.runs)
    print(
        f"{args.model}, float32, batch {args.batch}, {args.tokens} new tokens after {args.prompt}, layer {layer}, "
        f"{args.threads} CPU thread(s), torch {torch.__version__}"
    )
    for number, name in enumerate(calls):
        speed = args.batch * args.tokens / median(run[number] for run in took)
        print(line(f"speed {name}", [run[0] / run[number] for run in took], f"{speed:.1f} tokens/s"))


if __name__ == "__main__":
    main()
