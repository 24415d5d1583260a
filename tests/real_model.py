"""A real model in every library of this stack, beside a plain torch hook on the model of transformers.

    python scripts/get_smollm2.py smollm2 && python tests/real_model.py smollm2

It reads, steers and generates with CAA, ITI and ODESteer half-way up, answers through the chat template, and finds a
strength. Prints a line per library and method. Raises AssertionError where logits are off by more than 1e-3 of the
largest, where steering moves none by .1, or where tokens differ. `.ci/run` calls it.
"""

import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers, which a log shows line after line

import odesteer_tl as ot

LIBRARIES = ("huggingface", "nnsight", "transformer_lens")
METHODS = {
    "CAA": (ot.CAA, {"T": 1.9}),
    "ITI": (ot.ITI, {"relative_T": 0.17}),
    "ODESteer": (ot.ODESteer, {"relative_T": 0.16}),
}
STEPS, TEXTS = 8, 40
QUESTION = "What is the capital of France?"


def hooked_logits(plain: Any, layer: int, ids: Tensor, steer: Any, first: int) -> Tensor:
    """Logits [pos, d_vocab] where a plain hook replaces what leaves the block, from token `first` on."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[:, first:] = steer(hidden[:, first:])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = plain.model.layers[layer].register_forward_hook(hook)
    try:
        return plain(ids, use_cache=False).logits[0]
    finally:
        handle.remove()


@torch.no_grad()
def main(folder: str) -> None:
    """Load the model in every library in turn and compare."""
    plain: Any = ot.load_model(folder, library="huggingface")
    layer, demo = len(plain.model.layers) // 2 - 1, ot.load_demo()
    texts = [text[:200] for text in (*demo.desired[: TEXTS // 2], *demo.undesired[: TEXTS // 2])]
    sides = texts[: TEXTS // 2], texts[TEXTS // 2 :]
    acts = ot.collect(plain, *sides, layer=layer, prepend_bos=False)
    for text, a in zip(sides[0], acts.desired, strict=True):
        ids = plain.tokenizer(text, return_tensors="pt").input_ids
        states = plain(ids, output_hidden_states=True).hidden_states[layer + 1]
        torch.testing.assert_close(a, states[0, -1].float(), rtol=1e-4, atol=1e-4 * float(states.abs().max()))
    prompt = plain.tokenizer("My neighbour told me that the film", return_tensors="pt").input_ids
    start = prompt.shape[1]
    for library in LIBRARIES:
        model = ot.load_model(folder, library=library)
        read = ot.collect(model, *sides, layer=layer, prepend_bos=False)
        off = float((read.desired - acts.desired).abs().max() / acts.desired.abs().max())
        assert off <= 1e-4, (library, off)
        for name, (cls, strength) in METHODS.items():
            method = cls.fit(acts)
            out = ot.generate(model, prompt, method, max_new_tokens=STEPS, stop_at_eos=False, **strength)
            ids = out.tokens
            expected = hooked_logits(plain, layer, ids, lambda a, m=method, s=strength: m.steer(a, **s), start - 1)
            unsteered = plain(ids, use_cache=False).logits[0]
            assert torch.equal(ids[0, start:], expected[start - 1 : -1].argmax(-1)), (library, name)
            with ot.steering(model, method, prompt_lengths=start, **strength):
                steered = logits_of(model, ids)[0]
            deviation = float((steered - expected).abs().max() / expected.abs().max())
            effect = float((expected - unsteered).abs().amax(-1)[start - 1 :].max())
            print(f"{library:<17} {name:<9} deviation {deviation:.1e} of the largest logit, effect {effect:.2f}")
            assert deviation <= 1e-3 and effect >= 0.1, (library, name, deviation, effect)
        method = ot.ODESteer.fit(acts)
        found = ot.calibrate(model, method, [QUESTION, "Name a good book."], 0.1, max_new_tokens=12, chat_template=True)
        answers = [
            ot.generate(model, [QUESTION], given, max_new_tokens=12, chat_template=True).continuations[0]
            for given in (None, found.method)
        ]
        print(f"{library:<17} relative_T = {found.strength.size:.3f} spends .1 nats; {QUESTION} {answers}")
        assert "Paris" in answers[0] and "Paris" in answers[1] and 0.02 <= found.strength.size <= 0.6
        del model


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Logits [batch, pos, d_vocab] of one forward pass, in any library."""
    out = getattr(model, "_module", model)(ids)
    return getattr(out, "logits", out)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main(sys.argv[1])
