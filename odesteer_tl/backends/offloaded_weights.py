"""Weights that are not where the model's tensors are: accelerate keeps them elsewhere until a module runs."""

from typing import Any

import torch
from torch import Tensor


def device_under(module: Any) -> torch.device:
    """Where a torch module takes its inputs: the device of its weights, or, where those are kept elsewhere (offloaded
    by accelerate), the one that they are brought to."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]
    found = [place for hook in hooks for place in _places(hook)]
    return torch.device(found[0]) if found else torch.device("cpu")


def numbers_of(model: Any, parameter: Tensor) -> Tensor:
    """A parameter of the model with its numbers, on the CPU, wherever they are kept.

    Raises ValueError where they are nowhere, as in a model that was made on the meta device.
    """
    if not parameter.is_meta:
        return parameter.detach().cpu()
    from accelerate.utils import align_module_device

    for module in model.modules():
        for name, own in module.named_parameters(recurse=False):
            if own is parameter:
                with align_module_device(module):
                    kept = getattr(module, name)
                    if not kept.is_meta:
                        return kept.detach().cpu()
    raise ValueError(
        f"A weight of shape {tuple(parameter.shape)} has no numbers: the model was made without its weights (on the "
        "meta device). Load them, as ot.load_model(name) does."
    )


def _places(hook: Any) -> list[Any]:
    """Where accelerate's hooks run a module: a hook, or several in a row."""
    hooks = [hook, *getattr(hook, "hooks", ())]
    found = [getattr(each, "execution_device", None) for each in hooks]
    return [place for place in found if place is not None]
