"""Generating: prompts to continuations, steered or not, the same ones whenever the same call is made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from odesteer_tl.activations import Tokenised
from odesteer_tl.backends.choosing import kind_of
from odesteer_tl.backends.report import Report
from odesteer_tl.backends.transformer_lens.models import check_local, device_of, eos_ids_of, pad_id_of
from odesteer_tl.backends.transformer_lens.steering import attached, carrier_for, conclude
from odesteer_tl.backends.transformer_lens.texts import ChatTemplate, Texts, check_context, tokenise, trimmed
from odesteer_tl.positions import Positions
from odesteer_tl.shapes import PerRow, Time, TokenIds, TokenMask


@dataclass(frozen=True, eq=False)
class Generation:
    """What was generated. `texts`: prompt and continuation; `continuations`: the generated part, up to its EOS.

    `tokens`: prompts, left-padded, then the generated columns; `mask` tells the real tokens: no pads, and nothing after
    a row's EOS. `prompt_lengths`: real tokens of each prompt. `report`: what was steered, None without a method.
    Texts are empty where the model has no tokenizer.
    """

    texts: list[str]
    continuations: list[str]
    tokens: TokenIds
    mask: TokenMask
    prompt_lengths: PerRow
    report: Report | None


def generate(
    model: Any,
    prompts: Texts,
    method: Any = None,
    T: Time | None = None,
    *,
    relative_T: Time | None = None,
    positions: Positions = "decoding",
    layer: int | None = None,
    max_new_tokens: int = 40,
    do_sample: bool | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    use_past_kv_cache: bool = True,
    stop_at_eos: bool = True,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    seed: int = 0,
    batch_size: int | None = None,
    remote: bool = False,
) -> Generation:
    """Continue `prompts`, steered by `method` (see `steering`), or as the model alone does where it is None.

    Greedy, unless `do_sample`, a `temperature` other than 1, `top_k` or `top_p` asks for sampling; temperature 0 is
    greedy. Sampling starts from `seed` and neither reads nor moves the global generators. `num_beams` > 1 needs a
    TransformerBridge. `T` may hold one value per prompt. `batch_size` None takes all prompts at once; greedy
    continuations do not depend on it. Prompts as for `collect`. `remote` is for nnsight models.

    Raises ValueError as `tokenise` and `steering` do, for a T without a method or of another length than
    the prompts, and for a token budget (also one beyond the model's context), a temperature or beams that cannot be.
    """
    kind = kind_of(model)
    check_local(remote)
    if method is None and (T is not None or relative_T is not None):
        raise ValueError("T was given without a method: ot.generate(model, prompts, method, T=...).")
    if max_new_tokens < 1 or num_beams < 1 or temperature < 0 or (batch_size is not None and batch_size < 1):
        raise ValueError(
            "max_new_tokens, num_beams and batch_size must be at least 1 and temperature at least 0, got "
            f"{max_new_tokens}, {num_beams}, {batch_size} and {temperature}."
        )
    if (top_p is not None and not 0 < top_p <= 1) or (top_k is not None and top_k < 1):
        raise ValueError(f"top_p lies in (0, 1] and top_k is at least 1, got {top_p} and {top_k}.")
    if num_beams > 1 and kind == "HookedTransformer":
        raise ValueError("HookedTransformer has no beam search: load the model as a bridge, ot.load_model(name).")
    if do_sample is None:
        do_sample = temperature not in (0.0, 1.0) or top_k is not None or top_p is not None
    eos = eos_ids_of(model) if stop_at_eos else []
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop_at_eos": bool(eos),
        "do_sample": do_sample and temperature > 0,
        "use_past_kv_cache": use_past_kv_cache,
        "return_type": "tokens",
    }
    if eos:
        options["eos_token_id"] = eos if len(eos) > 1 else eos[0]
    if options["do_sample"]:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if num_beams > 1:
        options["num_beams"] = num_beams
    texts = tokenise(model, prompts, prepend_bos=prepend_bos, chat_template=chat_template)
    count = len(texts.tokens)
    check_context(model, texts, max_new_tokens)
    generated: list[Tensor] = []
    reports: list[Report] = []
    with _own_randomness(device_of(model), seed):
        for chosen in torch.arange(count).split(batch_size or count):

            def own(value: Any, chosen: Tensor = chosen) -> Any:
                """A value per prompt, cut to the prompts of this batch; anything else as it is."""
                if not isinstance(value, Tensor) or value.ndim == 0:
                    return value
                if len(value) != count:
                    raise ValueError(f"{count} prompts need as many values per prompt, got {len(value)}.")
                return value[chosen]

            batch = trimmed(Tokenised(texts.tokens[chosen], texts.mask[chosen]))
            if method is None:
                generated.append(_continued(model, kind, batch, options))
                continue
            methods = [tuple(map(own, pair)) for pair in method] if isinstance(method, Sequence) else method
            where = own(positions) if isinstance(positions, Tensor) and positions.ndim == 2 else positions
            carrier = carrier_for(model, methods, own(T), own(relative_T), where, None, layer, num_beams)
            with attached(model, carrier) as report:
                generated.append(_continued(model, kind, batch, options))
            reports.append(report)
    report = _together(reports)
    if report is not None:
        conclude(report, positions)
    return _finished(model, texts, generated, eos, report)


def _continued(model: Any, kind: str, batch: Tokenised, options: dict[str, Any]) -> Tensor:
    """The library's own generate, told which tokens are pads in the way that this library understands."""
    device = device_of(model)
    tokens, mask = batch.tokens.to(device), batch.mask
    if kind == "HookedTransformer":
        flag = _bos_flag(model, batch)
        return model.generate(tokens, padding_side="left", prepend_bos=flag, verbose=False, **options).cpu()
    # Nothing said is what the library does by itself where there is nothing to say.
    padded = {} if bool(mask.all()) else {"attention_mask": mask.long().to(device)}
    if "num_beams" in options:
        return model.hf_generate(tokens, use_cache=options["use_past_kv_cache"], **padded, **options).cpu()
    return model.generate(tokens, verbose=False, **padded, **options).cpu()


def _bos_flag(model: Any, batch: Tokenised) -> bool:
    """HookedTransformer.generate takes leading pad ids for pads, but spares one where it is told of a BOS of the same
    id: the flag with which it reads the true mask. ValueError where there is none."""
    pad_id = pad_id_of(model)
    if pad_id is None:
        if not bool(batch.mask.all()):
            raise ValueError(
                "This model has no pad token: generate prompts of one length at a time, with batch_size=1."
            )
        return False
    leading = (batch.tokens != pad_id).cumsum(1) == 0
    for flag in (False, True):
        if flag and model.tokenizer.bos_token_id == pad_id:
            leading[torch.arange(len(leading)), leading.sum(1) - 1] = False
        if torch.equal(~leading, batch.mask):
            return flag
    raise ValueError(
        f"Some prompts begin with the pad token {pad_id} and others do not, and HookedTransformer.generate tells "
        "padding by that token: generate them apart, or load the model as a bridge, ot.load_model(name)."
    )


def _finished(
    model: Any, texts: Tokenised, generated: list[Tensor], eos: list[int], report: Report | None
) -> Generation:
    """Batches put together, every row cut after its EOS."""
    rows: list[Tensor] = []
    for batch in generated:
        masks = texts.mask[len(rows) : len(rows) + len(batch)]
        rows += batch[:, int(masks.sum(1).max()) :].unbind(0)
    new = pad_sequence(rows, batch_first=True, padding_value=eos[0] if eos else 0)
    there = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    ends = torch.isin(new, torch.tensor(eos, dtype=new.dtype)) & there
    real = there & (ends.cumsum(1) - ends.long() == 0)
    prompts = [row[mask] for row, mask in zip(*texts, strict=True)]
    wholes, parts = _decoded(model, prompts, [row[mask] for row, mask in zip(new, real & ~ends, strict=True)])
    tokens, mask = torch.cat([texts.tokens, new], dim=1), torch.cat([texts.mask, real], dim=1)
    return Generation(wholes, parts, tokens, mask, texts.mask.sum(1), report)


def _decoded(model: Any, prompts: list[Tensor], continuations: list[Tensor]) -> tuple[list[str], list[str]]:
    """Whole texts and continuations, without special tokens. Many tokenizers drop the leading space of a part, so the
    continuation is cut from the whole."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return [], []
    before, wholes, alone = (
        [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        for rows in (prompts, [torch.cat(both) for both in zip(prompts, continuations, strict=True)], continuations)
    )
    triples = zip(before, wholes, alone, strict=True)
    return wholes, [whole[len(start) :] if whole.startswith(start) else part for start, whole, part in triples]


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from `seed` on the CPU and on `device`; the global generators are as before afterwards."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _together(reports: list[Report]) -> Report | None:
    if not reports:
        return None
    layers = {layer: sum(report.tokens_steered[layer] for report in reports) for layer in reports[0].tokens_steered}
    return Report(layers, any(report.hooks_removed for report in reports))
