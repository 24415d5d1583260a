"""The tensor shapes of the package: all axis names are defined here.

`*batch` stands for any leading axes, or none: a barrier or a flow treats activations independently.
"""

from typing import Literal

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from odesteer_tl.portable.strength import Strength

Activations = Float[Tensor, "*batch d_model"]
PerActivation = Float[Tensor, "*batch"]
Desired = Float[Tensor, "n_desired d_model"]
Undesired = Float[Tensor, "n_undesired d_model"]
Samples = Float[Tensor, "n d_model"]
Direction = Float[Tensor, " d_model"]
Features = Float[Tensor, "*batch k"]
Weight = Float[Tensor, " k"]
Basis = Float[Tensor, "d_model m"]
Residual = Float[Tensor, "batch pos d_model"]
TokenIds = Int[Tensor, "batch pos"]
AnyTokens = Int[Tensor, "_ _"]
"""Token ids of one side of texts, or of one of several texts: their rows and columns need not agree."""
TokenMask = Bool[Tensor, "batch pos"]
PerRow = Int[Tensor, " batch"]
TokenKeys = Shaped[Tensor, "batch pos *embedding"]
"""Ids, or embeddings if the model was called with those: equal entries are equal tokens."""

Time = float | int | Float[Tensor, "..."]
"""Integration time T: one number, or one per leading axis (a `[batch]` tensor holds one T per row)."""
TimeOrStrength = Time | Strength
"""The type of the argument T: a value of T, or a `Strength`, which holds T or relative_T."""

Position = Literal["last", "mean", "all"] | str | int
"""Which token of a text is read; "random:3" are three of them, and an index counts the text's real tokens (0 the first,
-1 the last)."""
