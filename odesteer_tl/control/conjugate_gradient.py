"""The vectors w_k = K_k v_k without matrices: from products with A_k and A_kᵀ, by conjugate gradients.

K_k v_k is minus the first control of the optimal plan that starts at layer k from δz_k = v_k. The optimal plan U
minimises ½ UᵀHU + bᵀU, H = rI + Gᵀ Q G, where G maps controls to the states that they cause. One product with H is one
pass forward and one back through the layers. The plans of all layers and features are the rows of one batch, each zero
before its own layer.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._progress import bar

Rows = Float[Tensor, "rows d_model"]
Product = Callable[[int, Rows], Rows]
"""(index of the layer, rows) → A row, or Aᵀ row, for each row."""


def answers(
    pushed: Product,
    pulled: Product,
    directions: Float[Tensor, "controlled features d_model"],
    layers: Sequence[int],
    n_layers: int,
    q: float,
    r: float,
    q_f: float,
    tol: float = 1e-6,
    max_iter: int = 500,
    progress: bool | None = None,
) -> Float[Tensor, "controlled features d_model"]:
    """w = K v for each of `directions`, which belong to the controlled `layers` (ascending) of `n_layers`, from 0.

    The first layer is controlled. `tol` is the bound on ‖residual‖/‖b‖. Warns if `max_iter` products do not reach it.
    """
    count, features, d_model = directions.shape
    start_layers = [layer for layer in layers for _ in range(features)]
    active = [sum(start <= j for start in start_layers) for j in range(n_layers)]
    steering = [active[j] if j in set(layers) else 0 for j in range(n_layers)]  # rows that may steer at layer j
    v = directions.reshape(count * features, d_model)

    def states(U: Tensor | None) -> list[Tensor]:
        """The states of all rows before each layer and at the end: from v without controls, from 0 with controls U."""
        z, states_before = torch.zeros_like(v), []
        for j in range(n_layers):
            if U is None and steering[j]:
                z = torch.cat([z[: steering[j] - features], v[steering[j] - features : steering[j]], z[steering[j] :]])
            states_before.append(z)
            z = torch.cat([pushed(j, z[: active[j]]), z[active[j] :]])
            z = z if U is None else z + U[j]
        return [*states_before, z]

    def gradient(z: list[Tensor]) -> Tensor:
        """GᵀQz: the gradient of half the cost of the states, by every control."""
        costate, gradients = q_f * z[-1], []
        for j in reversed(range(n_layers)):
            gradients.append(torch.cat([costate[: steering[j]], torch.zeros_like(costate[steering[j] :])]))
            costate = q * z[j] + torch.cat([pulled(j, costate[: active[j]]), torch.zeros_like(costate[active[j] :])])
        return torch.stack(gradients[::-1])

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((0, 2), keepdim=True)

    residual = -gradient(states(None))
    U, search, size = torch.zeros_like(residual), residual, dot(residual, residual)
    goal = tol**2 * size
    for _ in bar(range(max_iter), label="Conjugate gradients", progress=progress):
        if bool((size <= goal).all()):
            break
        product = r * search + gradient(states(search))
        step = torch.where(size > goal, size / dot(search, product), 0.0)
        U, residual = U + step * search, residual - step * product
        before, size = size, dot(residual, residual)
        search = residual + torch.where(before > 0, size / before, 0.0) * search
    else:
        worst = float((size / goal).max().sqrt()) * tol
        warnings.warn(
            f"{max_iter} steps of conjugate gradients leave a relative error of {worst:.1g}: pass a larger r, or "
            "matrix_free=False for the exact fit.",
            stacklevel=3,
        )
    rows = torch.arange(len(v), device=v.device)
    return -U[torch.tensor(start_layers, device=v.device), rows].reshape(directions.shape)
