"""Contrastive activations: the activations at one site of desired and of undesired text."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odesteer_tl._shapes import Position
from odesteer_tl.data.degeneracy import check_apart, rows_without_sinks, sinks_told, warnings_about
from odesteer_tl.data.drawn_rows import drawn_rows
from odesteer_tl.data.field_types import check_fields
from odesteer_tl.data.origin import Origin, Processing, processing_seen_in
from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.data.token_weights import TokenWeights, by_name, given_weights
from odesteer_tl.data.tokens import (
    SiteTokens,
    Tokenised,
    check_paired,
    check_position,
    mask_of_lengths,
    read_sites,
    reads_several,
    warn_of_sinks,
)
from odesteer_tl.portable.sites import check_index


@dataclass(frozen=True, eq=False)
class ContrastiveActivations:
    """Desired and undesired activations at one site, with their model, site and tokens.

    `desired` [n_desired, d_model] and `undesired` [n_undesired, d_model]: finite, any float dtype.
    `paired`: row i of both sides answers the same query. `groups`: per side, an id per row; rows of one id stay on one
    side of a `split`. `rewards`: per side, a score per row. `queries` [n_pairs, d_model]: the activation of each
    pair's query. `tokens`: the texts as they were read, per side, so that another backend can read the same.

    Raises ValueError for an empty side, unequal widths, NaN or inf, and pairs, groups, rewards or queries of another
    length.
    """

    desired: Float[Tensor, "n_desired d_model"]
    undesired: Float[Tensor, "n_undesired d_model"]
    layer: int | None = None
    hook_name: str | None = None
    model_name: str = ""
    processing: Processing = "unknown"
    position: Position | None = None
    paired: bool = False
    groups: tuple[Int[Tensor, " n_desired"], Int[Tensor, " n_undesired"]] | None = None
    rewards: tuple[Float[Tensor, " n_desired"], Float[Tensor, " n_undesired"]] | None = None
    queries: Float[Tensor, "n_pairs d_model"] | None = None
    tokens: tuple[Tokenised, Tokenised] | None = None

    _checked: ClassVar[bool] = False
    """Whether `check` has passed for these activations, or for those that they were split from."""

    def __post_init__(self) -> None:
        if self.position is not None:
            check_position(self.position)
        for name in ("desired", "undesired"):
            side = getattr(self, name)
            if not isinstance(side, Tensor) or not side.is_floating_point() or side.ndim != 2 or len(side) == 0:
                got = tuple(side.shape) if isinstance(side, Tensor) else type(side).__name__
                raise ValueError(f"{name} needs at least one activation, a float tensor [n, d_model]; got {got}.")
            object.__setattr__(self, name, side.detach())
            bad = (~torch.isfinite(side)).any(1)
            if bad.any():
                raise ValueError(f"{name} holds NaN or inf in {int(bad.sum())} of {len(side)} rows; drop them first.")
        if self.desired.shape[1] != self.undesired.shape[1]:
            raise ValueError(
                f"desired has d_model {self.desired.shape[1]}, undesired {self.undesired.shape[1]}: "
                "both must be read at the same site of the same model."
            )
        sizes = (len(self.desired), len(self.undesired))
        if self.paired:
            check_paired(self.position)
        if self.paired and sizes[0] != sizes[1]:
            raise ValueError(f"paired=True needs as many desired as undesired rows, got {sizes[0]} and {sizes[1]}.")
        for name in ("groups", "rewards"):
            sides = getattr(self, name)
            if sides is not None:
                sides = tuple(s if isinstance(s, Tensor) else torch.as_tensor(s, device="cpu") for s in sides)
                object.__setattr__(self, name, sides)
            if sides is not None and (lengths := tuple(len(side) for side in sides)) != sizes:
                raise ValueError(f"{name} needs one value per row of (desired, undesired): {sizes}, got {lengths}.")
        if self.queries is not None and (not self.paired or self.queries.shape != self.desired.shape):
            shape = tuple(self.queries.shape)
            raise ValueError(
                f"queries need paired=True and the shape of desired {tuple(self.desired.shape)}, got {shape}."
            )
        if self.layer is not None:
            check_index(self.layer)
            if self.hook_name is None:
                object.__setattr__(self, "hook_name", f"blocks.{self.layer}.hook_resid_post")

    @property
    def origin(self) -> Origin:
        """Site, model and median norm of these activations, as fitted methods keep them."""
        norms = torch.cat([side.float().norm(dim=1) for side in (self.desired, self.undesired)])
        shared = {f.name: getattr(self, f.name) for f in fields(Origin) if hasattr(self, f.name)}
        return Origin(d_model=self.desired.shape[1], typical_norm=float(norms.median()), **shared)

    def check(self, name: str = "A fit", least: int = 1, stacklevel: int = 3) -> None:
        """Check that the two sides can be told apart. Every fit calls this first; `name` is its method in the errors.

        Raises ValueError for fewer than `least` activations on a side, and for sides that are the same. Warns, once for
        these activations, of sides without spread, repeated rows, norms of another size and rows on both sides.
        """
        sizes = (len(self.desired), len(self.undesired))
        if min(sizes) < least:
            raise ValueError(
                f"{name} needs at least {least} desired and {least} undesired activations, got {sizes[0]} and "
                f"{sizes[1]}."
            )
        if self._checked:
            return
        check_apart(self.desired, self.undesired)
        object.__setattr__(self, "_checked", True)
        for text in warnings_about(self.desired, self.undesired):
            warnings.warn(text, stacklevel=stacklevel)

    @classmethod
    def from_caches(
        cls,
        desired_cache: Any,
        undesired_cache: Any,
        layer: int,
        *,
        desired_lengths: Int[Tensor, " n_desired"] | Sequence[int] | None = None,
        undesired_lengths: Int[Tensor, " n_undesired"] | Sequence[int] | None = None,
        desired_mask: Bool[Tensor, "n_desired pos_desired"] | None = None,
        undesired_mask: Bool[Tensor, "n_undesired pos_undesired"] | None = None,
        position: Position | TokenWeights | None = None,
        keep_sinks: bool = False,
        **provenance: Any,
    ) -> "ContrastiveActivations":
        """Read two `ActivationCache`s of `run_with_cache` at `blocks.{layer}.hook_resid_post`.

        A cache carries no mask, and lists of texts are right-padded by default, so index -1 of a shorter row is a pad.
        A cache of several rows therefore needs the number of real tokens per row (`*_lengths`, right-padded), masks, or
        an index as `position`, which then counts columns; or `ot.TokenWeights`. The default is "last". Attention
        sinks are treated as in `ot.collect`; a mask that is False at the first token leaves that token out.
        `provenance` sets `paired`, `groups`, `model_name`, `processing` and the other fields. With "all" and
        "random:3" each text is a group. Raises ValueError where the site is not in a cache, and where the lengths are
        missing or do not fit.
        """
        hook_name = f"blocks.{layer}.hook_resid_post"
        explicit = isinstance(position, int)
        weights = given_weights(position)
        position = "last" if position is None else by_name(position)
        sides, rows, sites = [], [], []
        for name, cache, lengths, mask in (
            ("desired", desired_cache, desired_lengths, desired_mask),
            ("undesired", undesired_cache, undesired_lengths, undesired_mask),
        ):
            if hook_name not in cache:
                raise ValueError(
                    f"The {name} cache has no {hook_name}: run_with_cache(tokens, names_filter={hook_name!r})."
                )
            values = cache[hook_name]
            values = (values.unsqueeze(0) if values.ndim == 2 else values).detach().float().cpu()
            if mask is None:
                mask = mask_of_lengths(name, values, lengths, explicit)
            elif mask.shape != values.shape[:2]:
                raise ValueError(f"{name}_mask is {tuple(mask.shape)}, the cache {tuple(values.shape[:2])}.")
            mask = mask.bool().cpu()
            reading = read_sites([values], mask, mask, position, keep_sinks)
            if weights is not None:
                reading = weights.mean(reading, name, mask, mask, keep_sinks)
            (samples,), row, site = reading
            sides.append(samples)
            rows.append(row)
            sites += site
        if not keep_sinks:
            both = SiteTokens(*(torch.cat(parts) for parts in zip(*sites, strict=True)))
            warn_of_sinks([both], [hook_name], position, lambda hit, most: "", stacklevel=2)
        if reads_several(position):
            offset = 0 if provenance.get("paired") else int(rows[0].max()) + 1
            provenance.setdefault("groups", (rows[0], rows[1] + offset))
        cfg = getattr(getattr(desired_cache, "model", None), "cfg", None)
        provenance.setdefault("model_name", str(getattr(cfg, "model_name", "") or ""))
        provenance.setdefault("processing", processing_seen_in(torch.cat(sides), desired_cache[hook_name].dtype))
        return cls(*sides, layer=layer, hook_name=hook_name, position=position, **provenance)

    def split(self, seed: int = 0, fraction: float = 0.8) -> tuple["ContrastiveActivations", "ContrastiveActivations"]:
        """Split the rows at random into (fit, held out), with `fraction` of them in the first part.

        Pairs and groups stay together. `seed` alone decides. Raises ValueError where a part would have an empty side.
        """
        masks = drawn_rows((len(self.desired), len(self.undesired)), self.groups, self.paired, seed, fraction)
        return self._take(*masks), self._take(*(~mask for mask in masks))

    def without_sinks(self, warn: bool = True) -> "ContrastiveActivations":
        """The rows whose norm is not that of an attention sink, of pairs those of which neither row is.

        A text of one token, or of which a sink alone is read, can have hundreds of times the norm of the others, and a
        mean over all is then that text. The warning says how many were left out. Itself where none is a sink.
        """
        kept = rows_without_sinks(self.desired, self.undesired, self.paired)
        if kept is None:
            return self
        if warn:
            warnings.warn(f"{sinks_told(self.desired, self.undesired)}, and are left out.", stacklevel=3)
        return self._take(*kept)

    def _take(self, desired: Tensor, undesired: Tensor) -> "ContrastiveActivations":
        both = desired, undesired
        part = replace(
            self,
            desired=self.desired[desired.to(self.desired.device)],
            undesired=self.undesired[undesired.to(self.undesired.device)],
            groups=None if self.groups is None else tuple(s[m] for s, m in zip(self.groups, both, strict=True)),
            rewards=None if self.rewards is None else tuple(s[m] for s, m in zip(self.rewards, both, strict=True)),
            queries=None if self.queries is None else self.queries[desired],
            tokens=None,  # rows of text and rows of activations differ when all tokens of a text are read
        )
        object.__setattr__(part, "_checked", self._checked)
        return part

    def save(self, folder: str | Path) -> None:
        """Write all fields to `folder` as safetensors and JSON, or nothing at all. Raises as `ot.save` does."""
        check_fields(type(self), values := {f.name: getattr(self, f.name) for f in fields(self)})
        write_tree(folder, {"class": "ContrastiveActivations"} | values)

    @classmethod
    def load(cls, folder: str | Path) -> "ContrastiveActivations":
        """Read what `save` wrote. Raises ValueError where the folder holds something else or was changed after that."""
        tree = read_tree(folder)
        if tree.pop("class", None) != "ContrastiveActivations" or set(tree) != {f.name for f in fields(cls)}:
            raise ValueError(f"{folder} holds no ContrastiveActivations; fitted methods are read with ot.load.")
        try:
            tokens = tree.pop("tokens")
            tree["tokens"] = None if tokens is None else tuple(Tokenised(t, m) for t, m in tokens)
            for name in ("groups", "rewards"):
                tree[name] = None if tree[name] is None else tuple(tree[name])
            check_fields(cls, tree)
            return cls(**tree)
        except Exception as error:  # values of another type or shape than the fields'
            raise ValueError(f"{folder} holds activations whose values do not fit: {error}") from error
