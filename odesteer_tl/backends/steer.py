"""The steering block: edits that act on a model inside a `with` block, and a hook for users who attach it
themselves."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.backends.base import backend_of
from odesteer_tl.backends.checks import check_fit, check_place, warn_of_other_use
from odesteer_tl.backends.edit_runner import EditRunner, SiteValue
from odesteer_tl.backends.model_info import dtype_of, pad_id_of, tokenizer_of
from odesteer_tl.backends.tokenize import token_texts
from odesteer_tl.interventions.positions import Positions, PromptLengths, Tracker
from odesteer_tl.interventions.records import RecordedEdit, Recording
from odesteer_tl.interventions.report import Report
from odesteer_tl.portable.apply_edits import owned_edits
from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.sites import place_of
from odesteer_tl.portable.strength import Strength

_SMALLEST_RELATIVE_T = 0.02


class NothingSteered(ValueError):
    """A block or a generation with a method steered no token."""


@contextmanager
def steering(
    model: Any,
    method: Any,
    T: TimeOrStrength | None = None,
    *,
    relative_T: Time | None = None,
    positions: Positions = "decoding",
    prompt_lengths: PromptLengths | None = None,
    layer: int | None = None,
    blocks: Any = None,
    record: bool = False,
) -> Iterator[Report]:
    """Steer everything that `model` computes inside the block. Afterwards the model is as before, also after an error.

        with ot.steering(model, method, T=5.0) as report:
            model.generate(...)

    This covers generate, forward, run_with_cache (its cache holds steered values), run_with_hooks, and a bridge's
    hf_generate. On an nnsight model it covers every trace and generate that starts at the model itself and runs here;
    the values read there are steered. On a Hugging Face model it covers every call of its decoder.

    `method` may be a list of (method, T). `T` is a number or a tensor of one value per batch row (per beam in a beam
    search); `relative_T` means T = relative_T·‖a‖; in a list, write ot.Strength(relative_T=…) in place of T.
    `positions` chooses the tokens (see `interventions.positions`), the same with the KV cache on or off, alone or in a
    padded batch. `prompt_lengths`, in real tokens per row, separates prompt and continuation if one pass holds both, or
    only a part of the prompt. `layer` overrides the fitted layer, not the site within it. `blocks`, as in
    blocks="transformer.h", is the path of the decoder blocks of an unknown architecture (nnsight, Hugging Face).

    With `record=True` the report also knows what was steered, token by token: `report.records` (layer, row, position,
    token, h before and after, displacement), and `report.show()`, a page of HTML. It costs two evaluations of h per
    pass; without it nothing.

    Steering blocks can be nested; the user's own hooks and edits stay. At one layer of an nnsight model the order is:
    edits made before the block, steering, edits made inside, operations of the trace. If several nnsight models wrap
    one module, the traced one acts first. On a Hugging Face model steering acts before the user's torch hooks, which
    see steered values.

    A block belongs to the thread and the asyncio task that open it. A thread started while the block is open, for
    example for a streamer, may run the model while no other thread is in a generate or forward of it; join it before
    the block ends. Any other thread or task that opens a block on the model, or runs it, gets a RuntimeError, and the
    block is not affected. ot.generate with a method allows no other thread.

    Raises ValueError for a method that does not fit the model (width, layer, hook, weight processing), for pads that no
    mask declares, for a remote trace inside the block, and, at an exit without error, if no token was steered. Raises
    RuntimeError for another thread or task. Warns if reset_hooks() or clear_edits() inside the block removed the
    steering, and if T is too small for a 16-bit residual stream.
    """
    # stacklevel: two frames more than in generate, this generator and contextlib's __enter__
    pairs = pairs_of(method, T, relative_T, layer)
    warn_of_other_use(model, method, T, relative_T, positions, layer, stacklevel=4)
    runner = edit_runner_for(model, pairs, positions, prompt_lengths, layer, blocks, record=record)
    warn_of_rounding(model, pairs, stacklevel=4)
    with attached(model, runner, blocks) as report:
        report.recording = runner.recording
        yield report
    check_report(report, positions, stacklevel=4)
    warn_of_limit(runner.at_limit, stacklevel=4)


def steering_hook(
    method: Any,
    T: TimeOrStrength | None = None,
    *,
    relative_T: Time | None = None,
    positions: Literal["last", "all"] | slice | Bool[Tensor, " pos"] | Bool[Tensor, "batch pos"] = "last",
) -> Callable[..., SiteValue]:
    """A plain TransformerLens hook (value, hook) -> value, which the user attaches at the method's site.

    The site is `resid_post` of a layer, or `hook_z`, where [batch, pos, n_heads, d_head] is steered as one activation
    per token.

    The hook has no memory between calls. `positions` chooses columns of the value that it gets, pads included: "last",
    "all", a slice, or a bool mask ([pos] or [batch, pos]). With the KV cache on, "last" steers the same tokens as
    `steering`; with it off, tokens generated earlier are not steered. Raises ValueError for a method that reads or
    writes several sites.
    """
    layer = None if getattr(method, "several", False) else method.origin.layer or 0
    edits = method.edits(T=T, relative_T=relative_T, layer=layer)
    if len(edits) != 1 or edits[0].read != edits[0].write or edits[0].of_query is not None:
        raise ValueError(
            "A single hook has no memory, so it works only for a method that edits one site by the value there: use "
            "ot.steering(model, method, T) here."
        )
    if not isinstance(positions, (slice, Tensor)) and positions not in ("last", "all"):
        raise ValueError(f'positions of a hook must be "last", "all", a slice or a bool mask, got {positions!r}.')

    def hook(value: SiteValue | torch.nn.Module, hook: Any = None, *args: Any) -> SiteValue:
        if isinstance(value, torch.nn.Module):
            raise ValueError(
                "This is a hook for TransformerLens, (value, hook) -> value, and not for torch: use ot.steering(model, "
                "method, T), or call it on the activations, which are output[0] if a block returns a tuple."
            )
        chosen = torch.zeros(value.shape[:2], dtype=torch.bool, device="cpu")
        if isinstance(positions, Tensor):
            if positions.shape not in (chosen.shape, chosen.shape[1:]):
                raise ValueError(f"The mask is {tuple(positions.shape)}, the chunk {tuple(chosen.shape)} [batch, pos].")
            chosen |= positions.cpu()
        else:
            chosen[
                :, {"last": slice(-1, None), "all": slice(None)}[positions] if isinstance(positions, str) else positions
            ] = True
        index = tuple(index.to(value.device, non_blocking=True) for index in chosen.nonzero(as_tuple=True))
        flat = value.flatten(2)
        a = flat[index]
        return flat.index_put(index, edits[0].apply(a, a, State(index[0])).to(value)).reshape(value.shape)

    return hook


def attached(model: Any, runner: EditRunner, blocks: Any = None) -> AbstractContextManager[Report]:
    """The runner's edits act on the model inside the block, and are removed after it; yields a `Report`."""
    return backend_of(model).attached(model, runner, blocks)


def edit_runner_for(
    model: Any,
    pairs: Sequence[tuple[Any, Strength]],
    positions: Positions,
    prompt_lengths: PromptLengths | None,
    layer: int | None,
    blocks: Any = None,
    beams: int = 1,
    record: bool = False,
) -> EditRunner:
    """The `EditRunner` of all methods (see `pairs_of`) in their order, checked against the model, with a new tracker,
    and with a recording of what they do to each token if `record`.

    T, prompt lengths and masks hold one entry per prompt, and the model sees `beams` rows per prompt.
    """
    check_place(model, False, blocks)
    owned = []
    for owner, (method, strength) in enumerate(pairs):
        method_edits = owned_edits(owner, method, strength, layer)
        edits = [owned_edit.edit for owned_edit in method_edits]
        check_fit(model, method.origin, [site for edit in edits for site in (edit.read, edit.write)], blocks)
        _check_order(edits)
        owned += method_edits
    needs_prompt_end = any(method.edit.of_query is not None for method in owned)
    recording = None
    if record:
        recorded = [RecordedEdit.of(owned_edit, pairs[owned_edit.owner][0]) for owned_edit in owned]
        recording = Recording(recorded, partial(token_texts, tokenizer_of(model)))
    tracker = Tracker(positions, prompt_lengths, pad_id_of(model), beams, needs_prompt_end)
    return EditRunner(owned, tracker, recording)


def check_report(report: Report, positions: Positions, stacklevel: int = 3) -> None:
    """Warn or raise at the end of a block without an error, as `steering` documents."""
    if report.hooks_removed:
        warnings.warn(
            "reset_hooks() or clear_edits() inside the steering block removed the steering: what the model computed "
            "after that is not steered. Call it before the block.",
            stacklevel=stacklevel,
        )
    if not any(report.tokens_steered.values()):
        raise NothingSteered(
            f"No token was steered (positions={positions!r}): "
            + ("reset_hooks() or clear_edits() removed the steering, " if report.hooks_removed else "")
            + "the model did not run inside the block, or positions= chose none of its tokens."
        )


def warn_of_limit(sites: Sequence[str], stacklevel: int = 3) -> None:
    """Warn if steered activations at some sites were clamped to the largest number of float16."""
    if sites:
        warnings.warn(
            f"Steered activations at {', '.join(sites)} reached the largest number of float16, 65504, and "
            "were cut there: give a smaller T, or load the model in bfloat16.",
            stacklevel=stacklevel,
        )


def warn_of_rounding(model: Any, pairs: Sequence[tuple[Any, Strength]], stacklevel: int = 3) -> None:
    """Warn, once for all methods and rows, if the smallest T is little against the rounding of a 16-bit model."""
    if dtype_of(model) not in (torch.bfloat16, torch.float16):
        return
    moves = [move for method, strength in pairs if (move := _smallest_move(method, strength)) is not None]
    if moves and min(moves) < _SMALLEST_RELATIVE_T:
        warnings.warn(
            f"T moves an activation by about {min(moves):.3g} of its usual norm: in {dtype_of(model)} more than a "
            "tenth of the displacement is lost to rounding. Load the model in float32, or steer above "
            f"{_SMALLEST_RELATIVE_T}.",
            stacklevel=stacklevel,
        )


def _smallest_move(method: Any, strength: Strength) -> float | None:
    """‖a(T) − a‖/‖a‖, roughly, of the row that moves least; None where nothing moves or it is not known."""
    speed, typical_norm = getattr(method, "speed", 1.0), method.origin.typical_norm
    if speed is None or (strength.relative_T is None and not typical_norm):
        return None
    values = speed * torch.as_tensor(strength.value, device="cpu").abs().float()
    values = values / typical_norm if strength.relative_T is None else values
    return float(values[values > 0].min()) if bool((values > 0).any()) else None


def _check_order(edits: list[Edit]) -> None:
    for edit in edits:
        if place_of(edit.read) > place_of(edit.write):
            raise ValueError(f"An edit reads {edit.read.hook_name} after it writes {edit.write.hook_name}.")
