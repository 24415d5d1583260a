"""S-PID: a proportional-integral-derivative controller over the layers, on the signal of A-LQR (arXiv:2604.19018).

    u_k = K_p e_k + K_i Σ_{j≤k} e_j + K_d (e_k − e_{k−1}),   e_k = α_k v_k,   α_k = Tλ‖e_k‖ − v_kᵀz_k,

measured at the input of block k and added to its output; sum and difference run over the steered layers and start from
0 in every forward pass. There is no model of the blocks: h = −½α². A proportional controller, K_i = K_d = 0, is
activation addition towards a set-point.

`parity=True` is the released code: at layers 0, 10, 20, … the sum is set to 0, including the error of that layer.
Neither sum nor error is reset between tokens, so the difference at the first layer is to the error of the last layer in
the previous pass. This state lasts for a block of `ot.steering` or one `ot.generate`, between passes that steer equally
many tokens, as with the KV cache on. In a graph, `ot.intervene` starts anew in every pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from odesteer_tl.backends.tokenize import ChatTemplate, Texts
from odesteer_tl.control.base import FeedbackController, PerFeature, SetPoints, contrastive_signal, doubled
from odesteer_tl.data.origin import Origin
from odesteer_tl.methods.registry import register
from odesteer_tl.methods.view import SET_POINTS, View
from odesteer_tl.portable.feedback import proportional_integral_derivative

RESET_EVERY = 10
"""The number of layers after which the released code sets its sum to 0."""


@dataclass(frozen=True, eq=False)
class SPID(FeedbackController):
    """u_k = kp·e_k + ki·Σe + kd·Δe at each of `layers`, e_k = Σ (T·β*_k − v_kᵀz_k) v_k over the features.

    Raises ValueError for coefficients that are not finite numbers, and for tensors whose shapes do not match.
    """

    view: ClassVar[View] = View(
        "S-PID", "−½αₖ²", "Kₚeₖ + Kᵢ Σeⱼ + K_d(eₖ − eₖ₋₁) at every layer, eₖ = αₖvₖ", "1 a layer",
        "any", "texts and the model", "arXiv:2604.19018", SET_POINTS,
    )  # fmt: skip

    directions: PerFeature
    set_points: SetPoints
    layers: tuple[int, ...]
    kp: float
    ki: float
    kd: float
    origin: Origin
    parity: bool = False

    def __post_init__(self) -> None:
        FeedbackController.__post_init__(self)
        _check_coefficients(self.kp, self.ki, self.kd)

    @classmethod
    def fit(
        cls,
        model: Any,
        desired: Texts,
        undesired: Texts,
        *,
        kp: float = 0.7,
        ki: float = 0.01,
        kd: float = 0.1,
        layers: Iterable[int] | None = None,
        also: Sequence[tuple[Texts, Texts]] = (),
        parity: bool = False,
        batch_size: int = 16,
        prepend_bos: bool | None = None,
        chat_template: ChatTemplate = False,
        progress: bool | None = None,
        blocks: Any = None,
    ) -> "SPID":
        """Compute the means of all texts at the block inputs. The defaults are the source's for gemma-2-2b.

        `layers` None: all blocks. `also`: more features (desired, undesired), whose errors are summed. The other
        arguments are those of `ot.collect`. Raises ValueError as `ot.collect` does, and for coefficients that are not
        finite.
        """
        _check_coefficients(kp, ki, kd)
        reading = {"batch_size": batch_size, "progress": progress}
        style = {"prepend_bos": prepend_bos, "chat_template": chat_template}
        signal = contrastive_signal(model, desired, undesired, also, layers, blocks, **reading, **style)
        return cls(
            signal.directions, signal.sizes, signal.layers, float(kp), float(ki), float(kd), signal.origin, parity
        )

    def _law(self) -> tuple[Any, tuple[Any, ...], bool]:
        resets = tuple(self.parity and layer % RESET_EVERY == 0 for layer in self.layers)
        params = (self.directions, self.set_points, float(self.kp), float(self.ki), float(self.kd), resets)
        return proportional_integral_derivative, params, self.parity


def _check_coefficients(kp: float, ki: float, kd: float) -> None:
    for name, value in (("kp", kp), ("ki", ki), ("kd", kd)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
            raise ValueError(f"{name} is a finite number, got {value!r}.")


register(
    SPID,
    parity={
        "S-PID": lambda at: doubled(SPID.fit(at.model(), *at.texts(), progress=False, kp=0.5, ki=0.1, kd=0.1)),
    },
)
