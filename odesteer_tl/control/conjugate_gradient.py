"""The same answers w_k = K_k v_k without a matrix: from products with A_k and A_kᵀ, by conjugate gradients.

K_k v_k is minus the first control of the best plan that starts at layer k from δz_k = v_k. A plan U minimises
½ UᵀHU + bᵀU, H = rI + Gᵀ Q G, G taking controls to the states that they lead to. One product with H is a pass through
the layers and one back. The plans of all layers and features are the rows of one batch, each zero before its own layer.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._progress import bar

Rows = Float[Tensor, "rows d_model"]
Product = Callable[[int, Rows], Rows]
"""(number of the layer, rows) → A row, or Aᵀ row, of each."""


def answers(
    pushed: Product,
    pulled: Product,
    directions: Float[Tensor, "controlled features d_model"],
    at: Sequence[int],
    depth: int,
    q: float,
    r: float,
    q_f: float,
    tol: float = 1e-6,
    max_iter: int = 500,
    progress: bool | None = None,
) -> Float[Tensor, "controlled features d_model"]:
    """w = K v for each of `directions`, those of the layers `at` (ascending), of `depth` layers numbered from 0.

    The first layer is among `at`. `tol`: of ‖residual‖/‖b‖. Warns where `max_iter` products do not reach it.
    """
    count, features, d_model = directions.shape
    starts = [number for number in at for _ in range(features)]
    live = [sum(start <= j for start in starts) for j in range(depth)]
    acts = [live[j] if j in set(at) else 0 for j in range(depth)]  # rows that may steer at layer j
    v = directions.reshape(count * features, d_model)

    def states(U: Tensor | None) -> list[Tensor]:
        """The states of all rows before each layer, and at the end: from v without controls, or from 0 with them."""
        z, found = torch.zeros_like(v), []
        for j in range(depth):
            if U is None and acts[j]:
                z = torch.cat([z[: acts[j] - features], v[acts[j] - features : acts[j]], z[acts[j] :]])
            found.append(z)
            z = torch.cat([pushed(j, z[: live[j]]), z[live[j] :]])
            z = z if U is None else z + U[j]
        return [*found, z]

    def gradient(z: list[Tensor]) -> Tensor:
        """GᵀQz: the derivative of half the cost of the states by every control."""
        costate, found = q_f * z[-1], []
        for j in reversed(range(depth)):
            found.append(torch.cat([costate[: acts[j]], torch.zeros_like(costate[acts[j] :])]))
            costate = q * z[j] + torch.cat([pulled(j, costate[: live[j]]), torch.zeros_like(costate[live[j] :])])
        return torch.stack(found[::-1])

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((0, 2), keepdim=True)

    residual = -gradient(states(None))
    U, way, size = torch.zeros_like(residual), residual, dot(residual, residual)
    goal = tol**2 * size
    for _ in bar(range(max_iter), label="Conjugate gradients", progress=progress):
        if bool((size <= goal).all()):
            break
        product = r * way + gradient(states(way))
        step = torch.where(size > goal, size / dot(way, product), 0.0)
        U, residual = U + step * way, residual - step * product
        before, size = size, dot(residual, residual)
        way = residual + torch.where(before > 0, size / before, 0.0) * way
    else:
        worst = float((size / goal).max().sqrt()) * tol
        warnings.warn(
            f"{max_iter} steps of conjugate gradients leave a relative error of {worst:.1g}: raise r, or use the exact "
            "fit, matrix_free=False.",
            stacklevel=3,
        )
    rows = torch.arange(len(v), device=v.device)
    return -U[torch.tensor(starts, device=v.device), rows].reshape(directions.shape)
