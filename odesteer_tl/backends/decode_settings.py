"""How a text is decoded: the settings, checked, and the generation of one batch by the library's own generate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from odesteer_tl._shapes import TokenIds
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.checks import real_number, whole_number
from odesteer_tl.backends.model_info import eos_ids_of
from odesteer_tl.backends.steer import attached, edit_runner_for
from odesteer_tl.data.tokens import Tokenised
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.strength import Strength


@dataclass(frozen=True)
class Decoding:
    """Checked settings: the `options` that a library's generate takes, the ids `eos` that end a text, and the `seed`
    from which sampling starts."""

    options: dict[str, Any]
    eos: list[int]
    seed: int

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.options["do_sample"]


def decoding_of(
    model: Any,
    *,
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_at_eos: bool,
    seed: int,
    num_beams: int = 1,
    use_past_kv_cache: bool = True,
) -> Decoding:
    """The settings of `generate`. Raises ValueError for a number that is out of bounds, and for beams that the library
    does not have."""
    max_new_tokens, num_beams = whole_number("max_new_tokens", max_new_tokens), whole_number("num_beams", num_beams)
    temperature, seed = real_number("temperature", temperature), whole_number("seed", seed, -(2**63))
    top_k = None if top_k is None else whole_number("top_k", top_k)
    top_p = None if top_p is None else real_number("top_p", top_p)
    if seed >= 2**63 or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"top_p must lie in (0, 1] and seed below 2**63, got {top_p} and {seed}.")
    backend_of(model).check_generates(model, num_beams)
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
    return Decoding(options, eos, seed)


def batch_continued(
    model: Any,
    batch: Tokenised,
    options: dict[str, Any],
    pairs: list[tuple[Any, Strength]],
    intervene_args: dict[str, Any],
    limits: dict[str, None],
    remote: bool | str = False,
    seed: int = 0,
    cache: Any = None,
) -> tuple[TokenIds, Report | None]:
    """Generate one batch by the library's own generate. `limits` gets the sites at which activations were cut to the
    largest float16; `seed` is for a server, `cache` as for `Backend.generate`."""
    backend, beams = backend_of(model), options.get("num_beams", 1)
    runner = edit_runner_for(model, pairs, **intervene_args, beams=beams) if pairs else None
    if remote:  # making the runner has checked that the method fits; the server does the steering
        written = () if runner is None else runner.tokens_steered
        tokens, report = backend.generate_remotely(model, batch, options, pairs, intervene_args, remote, seed, written)
        if runner is not None and report is not None:
            report.tokens_steered = runner.tokens_steered | report.tokens_steered
        return tokens, report
    if runner is None:
        return backend.generate(model, batch, options, cache), None
    with attached(model, runner, intervene_args["blocks"]) as report:
        tokens = backend.generate(model, batch, options, cache)
    limits |= dict.fromkeys(runner.at_limit)
    return tokens, report


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Inside the block random numbers on the CPU and on `device` start from `seed`; afterwards the global generators
    continue as before."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def merged_report(reports: list[Report]) -> Report | None:
    """The counts of several batches together; None where there are none."""
    if not reports:
        return None
    layers = {layer: sum(report.tokens_steered[layer] for report in reports) for layer in reports[0].tokens_steered}
    return Report(layers, any(report.hooks_removed for report in reports))
