"""A-LQR (arXiv:2604.19018): a linear-quadratic regulator over the layers, which tracks a set-point at each.

State z_k: the input of block k. Near its states a block is nearly linear, δz_{k+1} = A_k δz_k + u_k, A_k the mean of
its last-token-to-last-token Jacobians over desired prompts. The nearest state at the set-point is z + α v, with
α_k = Tλ‖e_k‖ − v_kᵀz_k. So the error is −α v, and the regulator of `riccati` gives the control

    u_k = α_k w_k,   w_k = K_k v_k,   added to the output of block k.

The controller is two vectors per layer. h = −δzᵀS_k δz, minus the remaining cost, is its Lyapunov function. The
reference is computed anew from the state at every layer and token; α has a sign, so u pushes back beyond β*. With
positions="all", which steers every token, it is the paper's A-LQR+.

Compared with the source: the weights are scaled identities, as there, but only w is kept; S is symmetrised, in float64.
The buffers of the source's memory-saving collector, which keep one prompt's Jacobian and add those of other tokens, are
not reproduced. If only some layers are controlled, the others are part of the dynamics and of the cost, with u = 0.
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
from odesteer_tl.data.origin import Origin
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import SET_POINTS, View
from odesteer_tl.portable.feedback import linear_quadratic


@dataclass(frozen=True, eq=False)
class ALQR(FeedbackController):
    """u_k = Σ (T·β*_k − v_kᵀz_k) w_k over the features, at each of `layers`.

    `directions` v, `set_points` β* at T = 1 and `answers` w = K v, per layer and feature; the weights q, r, q_f of the
    cost; `gains` K [layers, d_model, d_model] if the fit kept them. Raises ValueError for shapes that do not match, and
    for weights that are not positive.
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
        """Compute the means of all texts at the block inputs, Jacobians of `n_jacobians` desired texts, and the gains.

        Only the ratios q : r : q_f matter; they weigh the error at the layers, the control, and the error at the end. A
        larger r steers less. `layers` None: all blocks. `also`: more features (desired, undesired), each with its own
        direction and set-point; all use the gains of the first feature's texts. The texts for Jacobians are chosen by
        `seed` and cut to their first `context` tokens (None: whole; the source takes 25 to 50 texts of 16 to 24
        tokens). `chunk` rows of a Jacobian are computed at once. The fit holds a few matrices of d_model × d_model at a
        time, and one per layer only with `keep_gains`. `matrix_free` holds none: it takes products with the Jacobians
        instead, to a relative error of 1e-6, with more passes. The other arguments are those of `ot.collect`; the model
        runs on this machine.

        Raises ValueError as `ot.collect` does, for weights that are not positive, for `n_jacobians`, `context` or
        `chunk` below 1, for `keep_gains` with `matrix_free`, and for matrices that do not fit into the memory.
        """
        check_weights(q, r, q_f)
        for name, value in (("n_jacobians", n_jacobians), ("chunk", chunk), ("context", context)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if matrix_free and keep_gains:
            raise ValueError("keep_gains=True keeps matrices, but matrix_free=True makes none: pass one of them.")
        style = {"prepend_bos": prepend_bos, "chat_template": chat_template}
        reading = {"batch_size": batch_size, "progress": progress}
        signal = contrastive_signal(model, desired, undesired, also, layers, blocks, **reading, **style)
        texts = tokenise(model, desired, **style)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(texts.mask), generator=generator, device="cpu")[:n_jacobians].sort()[0]
        prompts = [texts.tokens[i][texts.mask[i]][:context].unsqueeze(0) for i in chosen.tolist()]
        span = range(signal.layers[0], layers_of(model, blocks))
        kept_gains = None
        d_model = signal.directions.shape[-1]
        if matrix_free:
            linear = Linearised(model, prompts, list(span), chunk, blocks)
            w = _without_matrices(linear, signal, len(span), q, r, q_f, progress)
        else:
            check_room(
                4 * 8 * d_model**2, device_of(model), f"A-LQR by matrices of {d_model} × {d_model}",
                "pass matrix_free=True, which needs no matrices.",
            )  # fmt: skip
            jacobians = mean_jacobians(model, prompts, list(reversed(span)), chunk, blocks, progress)
            w, kept_gains = _with_matrices(jacobians, signal, span, q, r, q_f, keep_gains)
        return cls(
            signal.directions, signal.sizes, w, signal.layers, float(q), float(r), float(q_f), signal.origin, kept_gains
        )

    def _law(self) -> tuple[Any, tuple[Any, ...], bool]:
        return linear_quadratic, (self.directions, self.set_points, self.answers), False


def _with_matrices(
    jacobians: Iterable[Tensor], signal: Signal, span: range, q: float, r: float, q_f: float, keep: bool
) -> tuple[PerFeature, Float[Tensor, "layers d_model d_model"] | None]:
    """w = K v, and all K if `keep`. `jacobians` are those of the blocks in `span`, the last one first."""
    w, kept_gains = torch.zeros_like(signal.directions), []
    at = {layer: number for number, layer in enumerate(signal.layers)}
    solved = gains(jacobians, q, r, q_f, [layer in at for layer in reversed(span)])
    for layer, (K, _) in zip(reversed(span), solved, strict=True):
        if K is not None:
            v = signal.directions[at[layer]].to(K)
            w[at[layer]] = (v @ K.T).to(w)
            kept_gains += [K.float().cpu()] if keep else []
    return w, torch.stack(kept_gains[::-1]) if keep else None


def _without_matrices(
    linear: Linearised, signal: Signal, n_blocks: int, q: float, r: float, q_f: float, progress: bool | None
) -> PerFeature:
    """The same w by products with the Jacobians of `n_blocks` blocks, from the first controlled one to the last."""
    at = [layer - signal.layers[0] for layer in signal.layers]
    v = signal.directions.to(linear.device)
    v = v if v.device.type == "mps" else v.double()
    w = conjugate_answers(linear.jvp, linear.vjp, v, at, n_blocks, q, r, q_f, progress=progress)
    return w.to(signal.directions)


register(
    ALQR,
    parity={
        "A-LQR": lambda at: doubled(ALQR.fit(at.model(), *at.texts(), progress=False, q=1.0, n_jacobians=5)),
    },
)
