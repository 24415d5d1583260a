"""A-LQR (arXiv:2604.19018): a linear-quadratic regulator over the layers, tracking a set-point at each.

State z_k: what enters block k. Near its states a block is nearly linear, δz_{k+1} = A_k δz_k + u_k, A_k the mean of
its last-token-to-last-token Jacobians over desired prompts. The nearest state at the set-point is z + α v, with
α_k = Tλ‖e_k‖ − v_kᵀz_k, so that the error is −α v, and the regulator of `riccati` answers with

    u_k = α_k w_k,   w_k = K_k v_k,   added to what leaves block k.

Two vectors a layer are the whole controller. h = −δzᵀS_k δz, the cost that is still to come, is its Lyapunov function.
The reference is taken anew at every layer and token from the state there; α has a sign, and pushes back beyond β*.
Every token steered with positions="all" is the paper's A-LQR+.

Beside the source: the weights are scaled identities, as there, but only w is kept; S is symmetrised, in float64; the
buffers of its sparing collector, which keep one prompt's Jacobian and add those of other tokens, are not followed.
Where only some layers are controlled, the others are part of the dynamics and of the cost, with u = 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._memory import check_room
from odesteer_tl.backends.jacobians import Linearised, mean_jacobians
from odesteer_tl.backends.model_info import device_of, layers_of
from odesteer_tl.backends.tokenize import ChatTemplate, Texts, tokenise
from odesteer_tl.control.base import FeedbackController, PerFeature, SetPoints, Signal, contrastive_signal, doubled
from odesteer_tl.control.conjugate_gradient import answers as conjugate_answers
from odesteer_tl.control.riccati import check_weights, gains
from odesteer_tl.data.activations import Origin
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import SET_POINTS, View
from odesteer_tl.portable.feedback import linear_quadratic


@dataclass(frozen=True, eq=False)
class ALQR(FeedbackController):
    """u_k = Σ (T·β*_k − v_kᵀz_k) w_k over the features, at each of `layers`.

    `directions` v, `set_points` β* at T = 1 and `answers` w = K v, per layer and feature; q, r, q_f of the cost;
    `gains` K [layers, d_model, d_model] where they were asked for. Raises ValueError where these do not belong
    together, and for weights that are not positive.
    """

    view: ClassVar[View] = View(
        "A-LQR", "−δzᵀSₖδz, δz = −αₖvₖ", "αₖKₖvₖ at every layer, αₖ = T‖eₖ‖ − vₖᵀz", "1 a layer",
        "any", "texts and the model", "arXiv:2604.19018", SET_POINTS,
    )  # fmt: skip

    directions: PerFeature
    set_points: SetPoints
    answers: PerFeature
    layers: tuple[int, ...]
    q: float
    r: float
    q_f: float
    origin: Origin
    gains: Float[Tensor, "layers d_model d_model"] | None = None

    def __post_init__(self) -> None:
        FeedbackController.__post_init__(self)
        check_weights(self.q, self.r, self.q_f)
        if self.answers.shape != self.directions.shape:
            shapes = tuple(self.answers.shape), tuple(self.directions.shape)
            raise ValueError(f"answers have the shape of directions, got {shapes[0]} and {shapes[1]}.")
        square = (len(self.layers), *2 * (self.directions.shape[2],))
        if self.gains is not None and tuple(self.gains.shape) != square:
            raise ValueError(f"gains hold one matrix per layer, {square}, got {tuple(self.gains.shape)}.")

    @classmethod
    def fit(
        cls,
        model: Any,
        desired: Texts,
        undesired: Texts,
        *,
        q: float = 0.1,
        r: float = 1.0,
        q_f: float = 0.1,
        layers: Iterable[int] | None = None,
        also: Sequence[tuple[Texts, Texts]] = (),
        n_jacobians: int = 25,
        context: int | None = None,
        matrix_free: bool = False,
        keep_gains: bool = False,
        chunk: int = 64,
        batch_size: int = 16,
        prepend_bos: bool | None = None,
        chat_template: ChatTemplate = False,
        seed: int = 0,
        progress: bool | None = None,
        blocks: Any = None,
    ) -> "ALQR":
        """Means of all texts at the inputs of the blocks, Jacobians of `n_jacobians` desired ones, then the gains.

        Only the ratios q : r : q_f matter: of the error on the way, of the control, of the error at the end; a larger r
        steers less. `layers` None: all blocks. `also`: more features (desired, undesired), each with a direction and a
        set-point of its own, answered by the same gains, those of the first feature's texts. The texts for Jacobians
        are chosen by `seed` and cut to their first `context` tokens (None: whole; the source has 25 to 50 of them, and
        16 to 24 tokens). `chunk` rows of a Jacobian are computed at once. At its peak the fit holds a few matrices of
        d_model × d_model, and never one per layer but in `gains`, which `keep_gains` keeps. `matrix_free` holds none:
        it takes products with the Jacobians instead, to a relative error of 1e-6, at the cost of more passes. The rest
        as for `ot.collect`; the model runs on this machine.

        Raises ValueError as `ot.collect` does, for weights that are not positive, and for `n_jacobians`, `context` or
        `chunk` below 1, `keep_gains` without matrices, or matrices that do not fit into the memory.
        """
        check_weights(q, r, q_f)
        for name, value in (("n_jacobians", n_jacobians), ("chunk", chunk), ("context", context)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if matrix_free and keep_gains:
            raise ValueError("keep_gains=True keeps matrices, and matrix_free=True makes none: choose one of them.")
        style = {"prepend_bos": prepend_bos, "chat_template": chat_template}
        reading = {"batch_size": batch_size, "progress": progress}
        found = contrastive_signal(model, desired, undesired, also, layers, blocks, **reading, **style)
        texts = tokenise(model, desired, **style)
        chosen = torch.randperm(len(texts.mask), generator=torch.Generator().manual_seed(seed))[:n_jacobians].sort()[0]
        prompts = [texts.tokens[i][texts.mask[i]][:context].unsqueeze(0) for i in chosen.tolist()]
        span = range(found.layers[0], layers_of(model, blocks))
        kept = None
        d_model = found.directions.shape[-1]
        if matrix_free:
            linear = Linearised(model, prompts, list(span), chunk, blocks)
            w = _without_matrices(linear, found, len(span), q, r, q_f, progress)
        else:
            check_room(
                4 * 8 * d_model**2, device_of(model), f"A-LQR by matrices of {d_model} × {d_model}",
                "pass matrix_free=True, which makes none.",
            )  # fmt: skip
            jacobians = mean_jacobians(model, prompts, list(reversed(span)), chunk, blocks, progress)
            w, kept = _with_matrices(jacobians, found, span, q, r, q_f, keep_gains)
        return cls(found.directions, found.sizes, w, found.layers, float(q), float(r), float(q_f), found.origin, kept)

    def _law(self) -> tuple[Any, tuple[Any, ...], bool]:
        return linear_quadratic, (self.directions, self.set_points, self.answers), False


def _with_matrices(
    jacobians: Iterable[Tensor], found: Signal, span: range, q: float, r: float, q_f: float, keep: bool
) -> tuple[PerFeature, Float[Tensor, "layers d_model d_model"] | None]:
    """w = K v, and the K where they are to be kept. `jacobians` of the blocks in `span`, the last one first."""
    w, kept = torch.zeros_like(found.directions), []
    at = {layer: number for number, layer in enumerate(found.layers)}
    solved = gains(jacobians, q, r, q_f, [layer in at for layer in reversed(span)])
    for layer, (K, _) in zip(reversed(span), solved, strict=True):
        if K is not None:
            v = found.directions[at[layer]].to(K)
            w[at[layer]] = (v @ K.T).to(w)
            kept += [K.float().cpu()] if keep else []
    return w, torch.stack(kept[::-1]) if keep else None


def _without_matrices(
    linear: Linearised, found: Signal, depth: int, q: float, r: float, q_f: float, progress: bool | None
) -> PerFeature:
    """The same w by products with the Jacobians of `depth` blocks from the first that is controlled to the last."""
    at = [layer - found.layers[0] for layer in found.layers]
    v = found.directions.to(linear.device)
    v = v if v.device.type == "mps" else v.double()
    w = conjugate_answers(linear.jvp, linear.vjp, v, at, depth, q, r, q_f, progress=progress)
    return w.to(found.directions)


register(
    ALQR,
    parity={
        "A-LQR": lambda at: doubled(ALQR.fit(at.model(), *at.texts(), progress=False, q=1.0, n_jacobians=5)),
    },
)
