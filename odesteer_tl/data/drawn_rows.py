"""Which rows of both sides go into the first part of a split."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Masks = tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]]


def drawn_rows(
    sizes: tuple[int, int], groups: tuple[Tensor, Tensor] | None, paired: bool, seed: int, fraction: float
) -> Masks:
    """A `fraction` of the rows of each side, or of the `groups` of both, drawn by the `seed`; pairs stay together.

    Raises ValueError where a part would have an empty side, and for pairs whose members carry different groups.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(ids: Int[Tensor, " n"]) -> Int[Tensor, " chosen"]:
        unique = ids.unique()
        order = unique[torch.randperm(len(unique), generator=generator, device="cpu")]
        return order[: round(fraction * len(unique))]

    if groups is not None:
        ids = draw(torch.cat(groups))
        masks = torch.isin(groups[0], ids), torch.isin(groups[1], ids)
        if paired and not torch.equal(*masks):
            raise ValueError("The two members of a pair carry different groups: give each pair one group.")
    else:
        rows = [torch.arange(size, device="cpu") for size in sizes]
        first = torch.isin(rows[0], draw(rows[0]))
        masks = first, first if paired else torch.isin(rows[1], draw(rows[1]))
    if any(bool(mask.all()) or not bool(mask.any()) for mask in masks):
        raise ValueError(f"fraction={fraction} leaves a part without desired or undesired rows.")
    return masks
