"""The shapes of the package: every axis name is coined here and nowhere else.

`*batch` stands for any leading axes, none included: a barrier or a flow treats each activation on its own.
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
Chosen = Float[Tensor, "chosen d_model"]
TokenIds = Int[Tensor, "batch pos"]
AnyTokens = Int[Tensor, "_ _"]
"""Token ids of a text side, or of one text of several: they need not agree in rows or columns."""
TokenMask = Bool[Tensor, "batch pos"]
PerRow = Int[Tensor, " batch"]
Indices = Int[Tensor, " chosen"]
Columns = Shaped[Tensor, "batch columns"]
"""One value per cached and per present column of a batch: an attention mask, as model libraries hold it."""
TokenKeys = Shaped[Tensor, "batch pos *embedding"]
"""What tells tokens apart: ids, or the embeddings where a model was called with those."""

Time = float | int | Float[Tensor, "..."]
"""Integration time T: one number, or one per leading axis (a `[batch]` tensor holds one T per row)."""
TimeOrStrength = Time | Strength
"""What is given as T: itself, or a `Strength`, which holds T or relative_T."""

Position = Literal["last", "mean", "all"] | int
"""Which token of a text is read: an index counts among the text's real tokens (0 the first, -1 the last)."""
