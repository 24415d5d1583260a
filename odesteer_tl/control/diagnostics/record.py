"""Watching: what stands at sites of a model while it is steered, or is not, read by edits that change nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.tokenize import ChatTemplate, Texts
from odesteer_tl.data.activations import Origin
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.precision import compute_dtype
from odesteer_tl.portable.sites import Site


class Recorder:
    """A method that steers nothing: what it reads at `sites` of each row's last chosen token is kept in `seen`."""

    origin = Origin()

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.seen: list[list[Tensor]] = [[] for _ in sites]

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """One per site: read it, and leave what its block gives as it is."""
        return [self._edit(site, kept) for site, kept in zip(self.sites, self.seen, strict=True)]

    @staticmethod
    def _edit(site: Site, kept: list[Tensor]) -> Edit:
        def apply(read: Tensor, write: Tensor, state: State) -> Tensor:
            ends = torch.cat([state.rows[1:] != state.rows[:-1], state.rows.new_ones(1, dtype=torch.bool)])
            kept.append(read[ends].detach().to("cpu", compute_dtype(read.dtype)))
            return write

        return Edit(site, Site(site.layer), apply)


@torch.no_grad()
def watched(
    model: Any,
    texts: Texts,
    sites: Sequence[Site],
    method: Any = None,
    T: Time | None = None,
    *,
    positions: Positions = "decoding",
    batch_size: int = 16,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    blocks: Any = None,
) -> Float[Tensor, "sites n d_model"]:
    """The value at each site of the residual stream at the last token of each text, steered by `method` at T if there
    is one: float32, or float64 of a model in that, on the CPU.

    At a site where the method writes, what it wrote. Raises ValueError for `positions` other than "decoding" and "all",
    which leave out last tokens, and as `ot.generate` does.
    """
    if not isinstance(positions, str) or positions not in ("decoding", "all"):
        raise ValueError(f'The last tokens are watched at positions "decoding" or "all", got {positions!r}.')
    watch = Recorder(sites)
    steps = [(watch, 0)] if method is None else [(method, T), (watch, 0)]
    generate(
        model, texts, steps, positions=positions, max_new_tokens=1, batch_size=batch_size, prepend_bos=prepend_bos,
        chat_template=chat_template, blocks=blocks,
    )  # fmt: skip
    return torch.stack([torch.cat(kept) for kept in watch.seen])
