"""Every way to steer a generation. Each returns the generated tokens and the logits of every step."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from odesteer_tl._shapes import TokenIds
from odesteer_tl.backends import intervene, load_model, steering
from odesteer_tl.backends.nnsight.replies import tokens_in
from odesteer_tl.backends.nnsight.server_errors import server_request
from odesteer_tl.backends.tokenize import left_padded
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.parity.models import (
    Family,
    as_bridge,
    as_hooked,
    as_hugging_face,
    as_nnsight,
    hugging_face,
    saved,
    tokenizer,
)
from odesteer_tl.parity.oracle import STEPS

Generated = tuple[TokenIds, Tensor]
"""Tokens [batch, steps], logits [batch, steps, d_vocab]."""
Run = Callable[[list[list[int]], Any, float, bool], Generated]
"""(rows, method, T, cache) → the tokens and logits of one way of steering."""

_NO_END = 10**6  # an end-of-text id outside the vocabulary, so that no row ends early


def ways(family: Family, remote: str | None = None) -> dict[str, Run]:
    """The ways of the installed libraries, by name, each with its own model; `remote` is the address of a server."""
    major = version("transformer_lens").split(".")
    lens = ".".join(major[:2]) if major[0] == "3" else f"{major[0]}.x"
    hf = hugging_face(family)
    runs: dict[str, Run] = {}
    if remote is not None:  # first, as the server may not answer
        runs["nnsight remote"] = in_graph(load_model(saved(family), library="nnsight"), remote)
    if major[0] == "3":
        runs[f"HookedTransformer {lens}"] = in_transformer_lens(as_hooked(hf, tokenizer()), {"prepend_bos": False})
    runs[f"TransformerBridge {lens}"] = in_transformer_lens(as_bridge(hf, tokenizer()), {"attention_mask": True})
    model = as_nnsight(hf, tokenizer())
    runs["nnsight steering"] = in_transformers(model)
    runs["nnsight intervene"] = in_graph(model, False)
    runs["Hugging Face"] = in_transformers(as_hugging_face(hf, tokenizer()))
    return runs


def in_transformer_lens(model: Any, own: dict[str, Any]) -> Run:
    """`ot.steering` around TransformerLens' generate."""

    def run(rows: list[list[int]], method: Any, T: float, cache: bool) -> Generated:
        tokens, mask = padded(rows)
        options = {name: mask if name == "attention_mask" else value for name, value in own.items()}
        with steering(model, method, T):
            out = model.generate(
                tokens, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False, padding_side="left",
                return_type="tokens", use_past_kv_cache=cache, output_logits=True, **options,
            )  # fmt: skip
        return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)

    return run


def in_transformers(model: Any) -> Run:
    """`ot.steering` around the generate of transformers, the model's own or nnsight's."""

    def run(rows: list[list[int]], method: Any, T: float, cache: bool) -> Generated:
        tokens, mask = padded(rows)
        with steering(model, method, T):
            out = model.generate(
                tokens, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=_NO_END,
                pad_token_id=0, use_cache=cache, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)

    return run


def in_graph(model: Any, remote: str | bool) -> Run:
    """`ot.intervene` in a graph of nnsight's generate, here or on a server, beside a read of the logits."""
    import nnsight

    def run(rows: list[list[int]], method: Any, T: float, cache: bool) -> Generated:
        tokens, mask = padded(rows)
        inputs = {"input_ids": tokens, "attention_mask": mask}
        options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": _NO_END, "pad_token_id": 0}
        logits = sequences = None
        server = server_request(model, remote, max_bytes=2**26)
        with model.generate(inputs, use_cache=cache, remote=remote, backend=server, **options) as tracer:
            logits = nnsight.save([])
            for _ in tracer.iter[:STEPS]:
                intervene(model, method, T)
                logits.append(model.lm_head.output[:, -1].detach().cpu())
            sequences = nnsight.save(tracer.result)
        if server is not None:
            logits, sequences = server.named("logits", "sequences")
            vocabulary = model._module.config.vocab_size
            batch = Tokenised(tokens, mask.bool())
            sequences = tokens_in(sequences, batch, STEPS, vocabulary, 0, [], server.refused)
            shapes = [step.shape for step in logits if isinstance(step, Tensor)] if isinstance(logits, list) else []
            complete = shapes == [(len(rows), vocabulary)] * STEPS and len(logits) == STEPS
            if not complete or not all(step.dtype == torch.float32 and step.isfinite().all() for step in logits):
                raise server.refused("other logits than were asked for")
        return sequences[:, tokens.shape[1] :].cpu(), torch.stack(logits, dim=1)

    return run


def padded(rows: Sequence[list[int]], pad_id: int = 0) -> tuple[TokenIds, Tensor]:
    """Rows of ids as one tensor with pads on the left, and its mask as Hugging Face writes it."""
    tokens, mask = left_padded([list(row) for row in rows], pad_id)
    return tokens, mask.long()
