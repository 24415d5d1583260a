"""Random numbers of its own for each part of a batch, so that a part is sampled as if it were alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OwnDraws(TorchFunctionMode):
    """Inside the block, `torch.multinomial` draws the rows of each part by the part's own generator.

    All libraries draw tokens by `torch.multinomial`, alone from the global generator; a part whose generator starts
    from the same seed gets the same tokens here. `parts` [row] is the part of each row, on the CPU. Raises ValueError
    for a draw of another number of rows.
    """

    def __init__(self, generators: Sequence[torch.Generator], parts: Tensor) -> None:
        super().__init__()
        self.generators, self.parts, self.draws = generators, parts, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func not in (torch.multinomial, Tensor.multinomial):
            return func(*args, **options)
        options = dict(options)
        probabilities = args[0] if args else options.pop("input")
        if probabilities.ndim != 2 or len(probabilities) != len(self.parts):
            raise ValueError(
                f"The library draws tokens from {tuple(probabilities.shape)} probabilities, where {len(self.parts)} "
                "rows were expected: sample one strength at a time, ot.generate(model, prompts, method, T=...)."
            )
        self.draws += 1
        drawn: Any = None
        for number, generator in enumerate(self.generators):
            rows = (self.parts == number).nonzero().squeeze(1).to(probabilities.device)
            of_part = func(probabilities[rows], *args[1:], **options | {"generator": generator})
            drawn = of_part.new_empty(len(self.parts), *of_part.shape[1:]) if drawn is None else drawn
            drawn[rows] = of_part
        return drawn
