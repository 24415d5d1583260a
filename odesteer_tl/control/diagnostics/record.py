"""Recording: read sites of a model, steered or not, by edits that change nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from odesteer_tl._shapes import Time, TimeOrStrength
from odesteer_tl.backends.generate import generate
from odesteer_tl.backends.tokenize import ChatTemplate, Texts
from odesteer_tl.data.origin import Origin
from odesteer_tl.interventions.positions import Positions
from odesteer_tl.portable.edits import Edit, State
from odesteer_tl.portable.precision import compute_dtype
from odesteer_tl.portable.sites import Site


class Recorder:
    """A method that steers nothing and keeps in `seen` the activations at `sites`, at each row's last chosen token."""

    origin = Origin()

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.seen: list[list[Tensor]] = [[] for _ in sites]

    def edits(
        self, T: TimeOrStrength | None = None, *, relative_T: Time | None = None, layer: int | None = None
    ) -> list[Edit]:
        """One edit per site: read it, and return the output of its block unchanged."""
        return [self._edit(site, kept) for site, kept in zip(self.sites, self.seen, strict=True)]

    @staticmethod
    def _edit(site: Site, kept: list[Tensor]) -> Edit:
        def apply(read: Tensor, write: Tensor, state: State) -> Tensor:
            ends = torch.cat([state.rows[1:] != state.rows[:-1], state.rows.new_ones(1, dtype=torch.bool)])
            kept.append(read[ends].detach().to("cpu", compute_dtype(read.dtype)))
            return write

        return Edit(site, Site(site.layer), apply)


@torch.no_grad()
def recorded(
    model: Any,
    texts: Texts,
    sites: Sequence[Site],
    method: Any = None,
    T: TimeOrStrength | None = None,
    *,
    positions: Positions = "decoding",
    batch_size: int = 16,
    prepend_bos: bool | None = None,
    chat_template: ChatTemplate = False,
    blocks: Any = None,
) -> Float[Tensor, "sites n d_model"]:
    """The activations at `sites` of the residual stream at the last token of each text, on the CPU, in float32, or in
    float64 for a float64 model; steered by `method` at T if one is given.

    At a site that the method writes, they are the steered ones. Raises ValueError for `positions` other than "decoding"
    and "all", as others leave out last tokens, and as `ot.generate` does.
    """
    if not isinstance(positions, str) or positions not in ("decoding", "all"):
        raise ValueError(f'The last tokens are recorded at positions="decoding" or "all", got {positions!r}.')
    recorder = Recorder(sites)
    steps = [(recorder, 0)] if method is None else [(method, T), (recorder, 0)]
    generate(
        model, texts, steps, positions=positions, max_new_tokens=1, batch_size=batch_size, prepend_bos=prepend_bos,
        chat_template=chat_template, blocks=blocks,
    )  # fmt: skip
    return torch.stack([torch.cat(kept) for kept in recorder.seen])
