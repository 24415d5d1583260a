"""Linearity: how close a block is to one linear map for all prompts, as a regulator assumes.

Two Jacobians are compared by their ranges, from the m largest singular values: with W ≈ U_W Σ_W V_Wᵀ,

    sim_m(W, X) = ‖(U_W Σ_W)ᵀ (U_X Σ_X)‖_* / (‖Σ_W‖ ‖Σ_X‖)   in [0, 1],

1 for W = X and for W = XQ with Q orthogonal, 0 for orthogonal ranges. The residual stream passes through a block,
J = I + …, so J − I is the part of the block itself. Each Jacobian is also compared with the block's response to a
change δz of growing length: ‖φ(z + δz) − φ(z) − A δz‖ / ‖φ(z + δz) − φ(z)‖.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl.backends.checks import check_layer
from odesteer_tl.backends.jacobians import BlockMap, block_maps
from odesteer_tl.backends.model_info import layers_chosen
from odesteer_tl.backends.tokenize import Texts, tokenise

RADII = (0.01, 0.03, 0.1, 0.3, 1.0)
"""‖δz‖/‖z‖ at which the error of a Jacobian is measured."""

Matrix = Float[Tensor, "d_model d_model"]


@dataclass(frozen=True, eq=False)
class Linearity:
    """For each layer: `similarity` of J and `own_similarity` of J − I, means over all pairs of prompts; and at each of
    `radii` the relative error of a prompt's own Jacobian, `own_error`, and of the prompts' mean one, `mean_error`."""

    layers: tuple[int, ...]
    radii: tuple[float, ...]
    similarity: Float[Tensor, " layers"]
    own_similarity: Float[Tensor, " layers"]
    own_error: Float[Tensor, "layers radii"]
    mean_error: Float[Tensor, "layers radii"]

    def table(self) -> str:
        """A line per layer: the two similarities, then own / mean error at each radius."""
        lines = [f"{'layer':>5} {'sim J':>6} {'J − I':>6}" + "".join(f"{f'{r:g}‖z‖':>14}" for r in self.radii)]
        for n, layer in enumerate(self.layers):
            errors = zip(self.own_error[n].tolist(), self.mean_error[n].tolist(), strict=True)
            cells = "".join(f"{f'{own:.3f} / {mean:.3f}':>14}" for own, mean in errors)
            lines.append(f"{layer:>5} {self.similarity[n]:>6.3f} {self.own_similarity[n]:>6.3f}{cells}")
        return "\n".join(lines)


def similarity(W: Matrix, X: Matrix, modes: int | None = None) -> float:
    """sim_m of two matrices, m = `modes` (None: a twentieth of d_model, at least 1), in [0, 1]; 0 where one is 0.

    Raises ValueError for matrices of different shapes, and for `modes` outside 1 … d_model.
    """
    if W.shape != X.shape:
        raise ValueError(f"similarity compares matrices of one shape, got {tuple(W.shape)} and {tuple(X.shape)}.")
    m = _modes(modes, len(W))
    return _similarity(_top_range(W, m), _top_range(X, m))


def local_linearity(
    model: Any,
    texts: Texts,
    layers: Iterable[int] | None = None,
    *,
    modes: int | None = None,
    radii: Sequence[float] = RADII,
    directions: int = 8,
    context: int | None = None,
    chunk: int = 64,
    prepend_bos: bool | None = None,
    seed: int = 0,
    blocks: Any = None,
) -> Linearity:
    """Compare the last-token Jacobians of all `texts` at each of `layers` (None: all), and test them at random δz.

    There are `directions` random δz for each text and radius, drawn by `seed`; texts are cut to their first `context`
    tokens. It holds a matrix of d_model × d_model per text. The model runs on this machine; in 16 bits the errors at
    small radii are rounding errors. Raises ValueError for fewer than two texts, radii that are not positive, counts
    below 1, unknown layers, and as `similarity` and `ot.collect` do.
    """
    chosen = layers_chosen(model, layers, blocks)
    for layer in chosen:
        check_layer(model, layer, blocks)
    for name, value in (("layers", len(chosen)), ("directions", directions), ("chunk", chunk), ("context", context)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    tokenised = tokenise(model, texts, prepend_bos=prepend_bos)
    prompts = [
        tokens[mask][:context].unsqueeze(0) for tokens, mask in zip(tokenised.tokens, tokenised.mask, strict=True)
    ]
    if len(prompts) < 2 or not radii or not all(radius > 0 for radius in radii):
        raise ValueError(f"local_linearity needs at least 2 texts and positive radii; got {len(prompts)}, {radii}.")
    generator = torch.Generator().manual_seed(seed)
    of_J, of_J_minus_I, errors = [], [], []
    for layer in chosen:
        maps = [block_maps(model, prompt, [layer], blocks)[0] for prompt in prompts]
        m = _modes(modes, len(maps[0].at))
        jacobians = [_jacobian(block, chunk) for block in maps]
        eye = torch.eye(len(jacobians[0]), dtype=jacobians[0].dtype, device="cpu")
        for similarities, matrices in ((of_J, jacobians), (of_J_minus_I, [J - eye for J in jacobians])):
            pairs = list(combinations([_top_range(J, m) for J in matrices], 2))
            similarities.append(sum(_similarity(*pair) for pair in pairs) / len(pairs))
        mean = torch.stack(jacobians).mean(0)
        drawn = torch.randn(directions, len(mean), generator=generator, device="cpu")
        unit = torch.nn.functional.normalize(drawn, dim=1)
        of_prompts = [
            [_errors(block, unit, radii, A) for A in (J, mean)] for block, J in zip(maps, jacobians, strict=True)
        ]
        errors.append(torch.tensor(of_prompts, device="cpu").mean(0))  # [own or mean, radii]
    both, of_J, of_J_minus_I = torch.stack(errors), *(torch.tensor(of, device="cpu") for of in (of_J, of_J_minus_I))
    return Linearity(tuple(chosen), tuple(radii), of_J, of_J_minus_I, both[:, 0], both[:, 1])


def _modes(modes: int | None, d_model: int) -> int:
    m = max(1, d_model // 20) if modes is None else modes
    if not 1 <= m <= d_model:
        raise ValueError(f"modes is from 1 to d_model, {d_model}; got {modes}.")
    return m


def _similarity(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """sim of two matrices, from the `_top_range` of each."""
    sizes = float(one[1].norm() * other[1].norm())
    return float(torch.linalg.matrix_norm(one[0].T @ other[0], "nuc")) / sizes if sizes > 0 else 0.0


def _top_range(M: Matrix, m: int) -> tuple[Tensor, Tensor]:
    """U Σ and Σ of the m largest singular values."""
    U, s, _ = torch.linalg.svd(M.double() if M.device.type != "mps" else M, full_matrices=False)
    return U[:, :m] * s[:m], s[:m]


def _jacobian(block: BlockMap, chunk: int) -> Matrix:
    eye = torch.eye(len(block.at), dtype=block.at.dtype, device=block.at.device)
    jacobian = torch.cat([block.vjp(rows) for rows in eye.split(chunk)])
    return jacobian.to("cpu", torch.promote_types(jacobian.dtype, torch.float32))


def _errors(block: BlockMap, unit: Tensor, radii: Sequence[float], A: Matrix) -> list[float]:
    """The mean over the rows of `unit` of the relative error of A, at each radius."""
    errors = []
    with torch.inference_mode(False), torch.no_grad():
        for radius in radii:
            state = block.at.unsqueeze(0)
            moved = torch.cat([state, state + (radius * float(state.norm())) * unit.to(state)])
            rows, moved = (x.cpu().to(A) for x in (block(moved), moved))  # the step as rounded in the model's dtype
            response, linear = rows[1:] - rows[:1], (moved[1:] - moved[:1]) @ A.T
            errors.append(float(((response - linear).norm(dim=1) / response.norm(dim=1)).mean()))
    return errors
