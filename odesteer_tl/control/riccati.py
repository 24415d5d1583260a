"""Riccati: the gains of the finite-horizon linear-quadratic regulator, layer by layer from the last to the first.

For δz_{k+1} = A_k δz_k + u_k and the cost Σ (q‖δz_k‖² + r‖u_k‖²) + q_f‖δz_ℓ‖² the best control is u_k = −K_k δz_k:

    S_ℓ = q_f I,   K_k = (S_{k+1} + rI)⁻¹ S_{k+1} A_k,   S_k = qI + r A_kᵀ K_k,

and with no control at a layer S_k = qI + A_kᵀ S_{k+1} A_k. δzᵀ S_k δz is the remaining cost.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

Square = Float[Tensor, "d_model d_model"]


def gains(
    jacobians: Iterable[Square], q: float, r: float, q_f: float, controlled: Iterable[bool] | None = None
) -> Iterator[tuple[Square | None, Square]]:
    """(K_k, S_k) for each A_k, last layer first, in float64 if the device supports it. K_k is None at layers where
    `controlled`, in the same order, is False (None: all are controlled).

    Each A_k is computed when it is needed and then dropped, so only a few matrices exist at a time. K depends only on
    the ratios q : r : q_f. Raises ValueError for weights that are not positive.
    """
    check_weights(q, r, q_f)
    S: Tensor | None = None
    is_controlled = None if controlled is None else iter(controlled)
    for jacobian in jacobians:
        A = jacobian if jacobian.device.type == "mps" else jacobian.double()
        S = q_f * torch.eye(len(A), dtype=A.dtype, device=A.device) if S is None else S
        K: Tensor | None = None
        if is_controlled is None or next(is_controlled):
            P = S.clone()
            P.diagonal().add_(r)
            K = torch.cholesky_solve(S @ A, torch.linalg.cholesky(P))
            S = r * (A.T @ K)
        else:
            S = A.T @ (S @ A)
        S = (S + S.T) / 2  # rounding would add up over the layers
        S.diagonal().add_(q)
        yield K, S


def check_weights(q: float, r: float, q_f: float) -> None:
    """Raise ValueError unless all three are positive, finite numbers."""
    for name, value in (("q", q), ("r", r), ("q_f", q_f)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ValueError(f"{name} is a weight of the cost, a positive number; got {value!r}.")
