"""Bound: an upper bound on the error of A-LQR in a forward pass, as a sum of three terms.

The error is δz_k = z_k − z'_k, with z'_k = z_k + α_k v_k the nearest state at the set-point. With Â_k = A_k − K_k,

    δz_{k+1} = Â_k δz_k + r_k + d_k,   r_k = φ_k(z_k) − φ_k(z'_k) − A_k δz_k,   d_k = φ_k(z'_k) − z'_{k+1},

so that, with the transition matrix Φ(k, i) = Â_{k−1} … Â_i of the closed loop,

    ‖δz_k‖ ≤ ‖Φ(k, 0)‖ ‖δz_0‖ + Σ_{i<k} ‖Φ(k, i+1)‖ ‖r_i‖ + Σ_{i<k} ‖Φ(k, i+1)‖ ‖d_i‖.

r is the nonlinear part of a block; ‖r_i‖ = (L_i/2)‖δz_i‖² defines the curvature L_i of the published form. That form
has only the first two terms. It holds for a reference that follows the model, z'_{k+1} = φ_k(z'_k). The adaptive
reference is computed anew from each state and does not; d is its deviation (A_k z'_k − z'_{k+1} for a linear block),
and without d the bound can fail. Norms are those of the Lyapunov weights P_k = Â_kᵀ P_{k+1} Â_k + I, P = I at the last
layer: ‖x‖_P = √(xᵀPx), and the induced norms of Φ.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.jacobians import block_maps
from odesteer_tl.backends.model_info import layers_of
from odesteer_tl.backends.tokenize import Texts, tokenise
from odesteer_tl.control.a_lqr import ALQR
from odesteer_tl.control.diagnostics.record import recorded
from odesteer_tl.portable.sites import Site

States = Float[Tensor, "layers n d_model"]
Steps = Float[Tensor, "steps n d_model"]
Matrices = Float[Tensor, "steps d_model d_model"]
Sizes = Float[Tensor, "layers n"]


@dataclass(frozen=True, eq=False)
class Bound:
    """‖δz_k‖_P = √(δz_kᵀP_kδz_k) of n texts at the input of each of `layers`, and the three terms of its bound."""

    layers: tuple[int, ...]
    errors: Sizes
    start: Sizes
    curvature: Sizes
    drift: Sizes

    @property
    def published(self) -> Sizes:
        """The first two terms; not a bound where the reference does not follow the model."""
        return self.start + self.curvature

    @property
    def bound(self) -> Sizes:
        """The sum of all three terms."""
        return self.start + self.curvature + self.drift

    def table(self) -> str:
        """A line per layer: means over the texts, and the number of texts that exceed the published form."""
        lines = [
            f"{'layer':>5} {'‖δz‖_P':>9} {'bound':>9} {'start':>9} {'curvature':>9} {'drift':>9} "
            f"{'exceeding without':>14}"
        ]
        for n, layer in enumerate(self.layers):
            columns = (self.errors, self.bound, self.start, self.curvature, self.drift)
            exceeding = int((self.errors[n] > self.published[n] * (1 + 1e-5)).sum())
            lines.append(
                f"{layer:>5} "
                + " ".join(f"{float(values[n].mean()):>9.4g}" for values in columns)
                + f" {f'{exceeding} of {self.errors.shape[1]}':>14}"
            )
        return "\n".join(lines)


def tracking_bound(
    model: Any, method: ALQR, texts: Texts, T: float | int = 1.0, *, prepend_bos: bool | None = None, blocks: Any = None
) -> Bound:
    """Run `texts` with their last tokens steered at T, and compare ‖δz_k‖ with its bound at every layer of `method`.

    The A_k are those of the fit, recovered from its gains. Blocks run on this machine in the model's dtype; all else is
    float64. It takes a few copies of all gains, and a spectral norm for every two layers. Raises ValueError for methods
    other than A-LQR, without gains, with several features, or without control at a block after their first one.
    """
    if not isinstance(method, ALQR):
        raise ValueError(
            f"The bound is defined for A-LQR only; got a {type(method).__name__}: pass ot.ALQR.fit(…, keep_gains=True)."
        )
    matrices, gains = jacobians_of(method), method.gains
    assert gains is not None  # jacobians_of has checked that
    if method.layers != tuple(range(method.layers[0], layers_of(model, blocks))) or method.directions.shape[1] != 1:
        raise ValueError(
            f"The bound is defined for one feature, controlled at every block from the first to the last; got "
            f"{method.directions.shape[1]} features at layers {list(method.layers)}."
        )
    sites = [Site(layer, "resid_pre") for layer in method.layers]
    z = recorded(model, texts, sites, method, T, prepend_bos=prepend_bos, blocks=blocks).double()
    v = method.directions[:, 0].cpu().double()
    alphas = T * method.set_points.cpu().double() - torch.einsum("lnd,ld->ln", z, v)
    errors = -alphas.unsqueeze(-1) * v.unsqueeze(1)
    reference = z - errors
    tokenised = tokenise(model, texts, prepend_bos=prepend_bos)
    residuals, drifts = (torch.zeros_like(z[1:]) for _ in range(2))
    for n, (tokens, mask) in enumerate(zip(tokenised.tokens, tokenised.mask, strict=True)):
        maps = block_maps(model, tokens[mask].unsqueeze(0), list(method.layers[:-1]), blocks)
        for k, block in enumerate(maps):
            with torch.inference_mode(False), torch.no_grad():
                mapped, mapped_reference = block(torch.stack([z[k, n], reference[k, n]]).to(block.at)).cpu().double()
            residuals[k, n] = mapped - mapped_reference - matrices[k] @ errors[k, n]
            drifts[k, n] = mapped_reference - reference[k + 1, n]
    closed = matrices[:-1] - gains[:-1].cpu().double()
    return Bound(method.layers, *bound_of(closed, errors, residuals, drifts))


def bound_of(closed: Matrices, errors: States, residuals: Steps, drifts: Steps) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """‖δz_k‖ and the three terms of its bound, from `closed` Â_k, δz_k, r_k and d_k, in the weights P_k."""
    weights = [torch.eye(errors.shape[-1], dtype=errors.dtype, device="cpu")]
    for step in reversed(closed):
        P = step.T @ weights[0] @ step + torch.eye(len(step), dtype=step.dtype, device="cpu")
        weights.insert(0, (P + P.T) / 2)
    roots = [torch.linalg.cholesky(P) for P in weights]  # ‖x‖_P = ‖Lᵀx‖ for P = LLᵀ

    def weighted_norms(x: Tensor, shift: int = 0) -> Tensor:
        norms = [(rows @ roots[k + shift]).norm(dim=-1) for k, rows in enumerate(x)]
        return torch.stack(norms) if norms else x[..., 0]

    error_norms, residual_norms, drift_norms = (
        weighted_norms(errors),
        weighted_norms(residuals, 1),
        weighted_norms(drifts, 1),
    )
    start, curvature, drift = (torch.zeros_like(error_norms) for _ in range(3))
    for k in range(len(errors)):
        transition = torch.eye(errors.shape[-1], dtype=errors.dtype, device="cpu")  # Φ(k, i), from i = k down to 0
        for i in range(k, -1, -1):
            size = torch.linalg.matrix_norm(
                roots[k].T @ torch.linalg.solve_triangular(roots[i], transition.T, upper=False).T, 2
            )
            if i == 0:
                start[k] = size * error_norms[0]
            else:
                curvature[k] += size * residual_norms[i - 1]
                drift[k] += size * drift_norms[i - 1]
                transition = transition @ closed[i - 1]
    return error_norms, start, curvature, drift


def jacobians_of(method: ALQR) -> Matrices:
    """The A_k of a fit, [layers, d_model, d_model] in float64: A_k = K_k + r S_{k+1}⁻¹ K_k, from the last layer back.

    They are correct if every block from the first to the model's last is controlled. Raises ValueError where the gains
    were not kept.
    """
    if method.gains is None:
        raise ValueError("The fit did not keep its gains: fit with keep_gains=True.")
    eye = torch.eye(method.gains.shape[-1], dtype=torch.float64, device="cpu")
    S, jacobians = method.q_f * eye, []
    for K in reversed(method.gains.cpu().double()):
        A = K + method.r * torch.linalg.solve(S, K)
        S = method.q * eye + method.r * A.T @ K
        S = (S + S.T) / 2
        jacobians.append(A)
    return torch.stack(jacobians[::-1])
