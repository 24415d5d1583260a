"""What a report calls the model: its name, and its type of number and device where they are not the usual ones."""

from typing import Any

from odesteer_tl.assets.demo import EMBEDDED
from odesteer_tl.backends.model_info import device_of, dtype_of


def model_name(given: str | None, model: Any) -> str:
    """`given`: what was asked for; None for the embedded model. "in bfloat16 on cuda" follows where it holds."""
    dtype, device = str(dtype_of(model)).removeprefix("torch."), device_of(model).type
    name = "the embedded model" if given in (None, EMBEDDED) else str(given)
    return name + f" in {dtype}" * (dtype != "float32") + f" on {device}" * (device != "cpu")
