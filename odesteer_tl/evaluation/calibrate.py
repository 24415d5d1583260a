"""`calibrate`: the strength at which steering spends a given budget of KL divergence."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import torch

from odesteer_tl._shapes import Samples
from odesteer_tl.backends.checks import check_layer, check_place, real_number
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.model_info import model_name_of
from odesteer_tl.backends.outputs import Generation
from odesteer_tl.backends.steer import edit_runner_for
from odesteer_tl.backends.tokenize import ChatTemplate, Texts
from odesteer_tl.evaluation.calibration import Calibration, Measured
from odesteer_tl.evaluation.displacement import displacements
from odesteer_tl.evaluation.divergence import SteeredTexts
from odesteer_tl.evaluation.root_search import Crossing, first_crossing
from odesteer_tl.evaluation.strength_search import Search, check_budget, search_for_factor, search_of, strength_of
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.methods import Calibrated, Layers, Method, PointwiseMethod
from odesteer_tl.methods.calibrated import positions_name
from odesteer_tl.portable.method_list import pairs_of
from odesteer_tl.portable.sites import Site, site_name
from odesteer_tl.remote.checks import check_travels


def calibrate(
    model: Any,
    method: Any,
    prompts: Texts,
    kl: Any = 0.1,
    *,
    quantile: Any = None,
    relative: bool | None = None,
    positions: Positions = "decoding",
    layer: int | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 24,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    system: str | None = None,
    remote: bool | str = False,
    blocks: Any = None,
) -> Calibration:
    """The smallest strength at which steering costs `kl` nats: KL(unsteered ‖ steered) of the next-token distribution,
    its mean over the steered tokens, or their `quantile`.

        method = ot.calibrate(model, ot.ODESteer.fit(acts), prompts, kl=0.1).method     # it carries its strength
        ot.generate(model, prompts, method)                                             # no T
        ot.save(method, "praise")

    The model continues the prompts once, greedily and unsteered, and every strength is judged on these texts, several
    in one pass. `relative`: whether relative_T is sought, and not T; None: where T is a length. Of a list of (method,
    T) it is the one factor for all strengths of the list. Prompts, `chat_template` and `system` as for `generate`;
    `positions`, `layer` and `blocks` as for `steering`; a `layer` becomes that of the method which is returned.
    `remote`, for nnsight models: True, or the address of a server. It writes the texts, steers them and computes the KL
    there, so that one number per steered token comes back, and no logits; a larger `batch_size` needs fewer requests.

    A budget of 0 is T = 0. Inside a steering block "unsteered" is as steered there. Raises ValueError for a budget
    below 0, a quantile outside (0, 1), a list with strengths per row, and a method that spends other than the budget at
    every strength it takes, as a map that is too weak or a closed loop that is never off; and, before anything is sent,
    for a method that cannot be sent. ConnectionError and RuntimeError for a server, as `generate` does; a server that
    sends other costs of the right form is not noticed, and the strength is wrong then.
    """
    start = time.perf_counter()
    check_budget(kl)
    if quantile is not None and not 0 < real_number("quantile", quantile) < 1:
        raise ValueError(f"quantile lies between 0 and 1, as 0.95 does; got {quantile}.")
    if isinstance(method, Layers) and all(isinstance(part, Calibrated) for part in method.parts):
        method = method.parts  # a list that was calibrated: one factor for the strengths that its parts carry
    search = search_for_factor(method, layer) if isinstance(method, Sequence) else search_of(method, relative)
    if layer is not None:
        check_layer(model, layer, blocks)
    if remote:
        _check_sent(model, search, positions, layer, remote, blocks)
    written = generate(
        model, prompts, max_new_tokens=max_new_tokens, do_sample=False, batch_size=batch_size, prepend_bos=prepend_bos,
        chat_template=chat_template, system=system, remote=remote, blocks=blocks,
    )  # fmt: skip
    texts = SteeredTexts.of(model, written, positions, layer, blocks, remote)
    spent = {
        "kl": float(kl),
        "quantile": quantile,
        "prompts": _hashed(written),
        "model_name": model_name_of(model),
        "positions": positions_name(positions),
        "chat": chat_template is not False,
    }

    def found(value: float, cost: float, monotone: bool, curve: tuple[Measured, ...], rounds: int) -> Calibration:
        parts = tuple(
            Calibrated(_at(part, layer), strength.T, strength.relative_T, **spent)  # type: ignore[arg-type]
            for part, strength in search.pairs(value)
        )
        made = parts[0] if len(parts) == 1 and search.sought != "factor" else Layers(parts)
        seconds = time.perf_counter() - start
        tokens, strength = int(texts.named.sum()), strength_of(search.sought, value)
        return Calibration(
            made, strength, search.sought, float(kl), cost, True, monotone, curve, quantile, tokens, rounds, seconds
        )

    if kl == 0:
        cost = float(texts.divergences(search.pairs, [0.0], batch_size).mean())
        if cost > 1e-6:
            raise ValueError(
                f"{search.name} is not off at 0: it spends {cost:.3g} nats there, as a closed loop does. Give a larger "
                "budget, kl=."
            )
        return found(0.0, 0.0, True, (), 0)
    read = _read(texts, search, layer, batch_size)
    curve: dict[float, Measured] = {}

    def measure(values: Sequence[float]) -> list[float]:
        divergences = texts.divergences(search.pairs, values, batch_size)
        for value, own in zip(values, divergences, strict=True):
            mean, p95 = float(own.mean()), float(own.quantile(0.95))
            cost = mean if quantile is None else float(own.quantile(quantile))
            curve[value] = Measured(value, cost, mean, p95, *_moved(search, read, value))
        return [curve[value].kl for value in values]

    crossing = first_crossing(measure, kl, search.guess, search.most)
    if not crossing.reached:
        raise ValueError(_not_reached(search, kl, crossing))
    points = tuple(curve[value] for value in sorted(curve))
    return found(crossing.strength, crossing.cost, crossing.monotone, points, crossing.rounds)


def _check_sent(
    model: Any, search: Search, positions: Positions, layer: int | None, remote: bool | str, blocks: Any
) -> None:
    """Raises ValueError for methods that do not fit the model or cannot be sent, before a server writes the texts."""
    check_place(model, remote, blocks)
    pairs = pairs_of(search.pairs(search.guess), None, None, layer)
    edit_runner_for(model, pairs, positions, None, layer, blocks)
    for method, _ in pairs:
        check_travels(method)


def _at(method: Method, layer: int | None) -> Method:
    """The method at another layer, as if it had been fitted there. Raises ValueError for a class of the user's own
    whose fields are not known."""
    if layer is None or layer == method.layer:
        return method
    if not is_dataclass(method):
        raise ValueError(f"Of a {type(method).__name__} only its own layer can be kept: leave layer= out.")
    own = method.origin
    hook = own.hook_name and Site.fitted(own.hook_name, layer).hook_name
    return replace(method, origin=replace(own, layer=layer, hook_name=hook))  # type: ignore[call-arg]


def _hashed(texts: Generation) -> str:
    """SHA-256 of the prompts' tokens."""
    rows = zip(texts.tokens, texts.mask, texts.prompt_lengths.tolist(), strict=True)
    prompts = [tokens[mask][:length].tolist() for tokens, mask, length in rows]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _read(texts: SteeredTexts, search: Search, layer: int | None, batch_size: int) -> Samples | None:
    """The unsteered activations at the method's one site; None where there are several."""
    ((method, _), *others) = search.pairs(0.0)
    at = method.layer if layer is None else layer
    if others or not isinstance(method, PointwiseMethod) or method._of_query is not None or at is None:
        return None
    site: Any = site_name(method.origin.hook_name)
    return texts.activations(Site(at, site), batch_size)


@torch.no_grad()
def _moved(search: Search, a: Samples | None, value: float) -> tuple[float | None, float | None, float | None]:
    """Medians over the steered tokens: h before and after, and ‖a(T) − a‖/‖a‖."""
    ((method, strength), *_) = search.pairs(value)
    if a is None or not isinstance(method, PointwiseMethod):
        return None, None, None
    end = method.steer(a, strength)
    moved = float(displacements(a, end).median())
    barrier = method.to(a.device, a.dtype).barrier
    if barrier is None:
        return None, None, moved
    return float(barrier.value(a).median()), float(barrier.value(end).median()), moved


def _not_reached(search: Search, kl: float, crossing: Crossing) -> str:
    name, said = search.name, search.sought
    least, most = min(crossing.costs.values()), max(crossing.costs.values())
    span = f"{said} from {min(crossing.costs):.3g} to {max(crossing.costs):.3g}"
    if most < kl:
        return (
            f"{name} does not spend {kl:g} nats of KL: {most:.3g} at most, for {span}. Give a smaller budget, kl=, or "
            "another layer or method."
        )
    if least > kl:
        return (
            f"{name} spends more than {kl:g} nats of KL at every strength tried: {least:.3g} at least, for {span}. "
            "Give a larger budget, kl=, or another method (a closed loop also acts at T = 0)."
        )
    return (
        f"{name} jumps over {kl:g} nats of KL: from {crossing.cost:.3g} at {said} {crossing.strength:.4g} to its "
        f"neighbour's, after {crossing.rounds} rounds. Give more prompts, or another budget, kl=."
    )
