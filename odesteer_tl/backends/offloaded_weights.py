"""Offloaded weights: accelerate keeps them outside the model until a module runs; the model holds meta tensors."""

from typing import Any

import torch
from torch import Tensor


def device_under(module: Any) -> torch.device:
    """The device on which a torch module takes its inputs: that of its weights, or, if accelerate offloads these, the
    device that it loads them to."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]
    devices = [device for hook in hooks for device in _places(hook)]
    return torch.device(devices[0]) if devices else torch.device("cpu")


def weight_on_cpu(model: Any, parameter: Tensor) -> Tensor:
    """The values of a parameter of the model, on the CPU, also if they are offloaded.

    Raises ValueError if there are none, as in a model that was made on the meta device.
    """
    if not parameter.is_meta:
        return parameter.detach().cpu()
    from accelerate.utils import align_module_device

    for module in model.modules():
        for name, candidate in module.named_parameters(recurse=False):
            if candidate is parameter:
                with align_module_device(module):
                    value = getattr(module, name)
                    if not value.is_meta:
                        return value.detach().cpu()
    raise ValueError(
        f"A weight of shape {tuple(parameter.shape)} has no numbers: the model was made without its weights (on the "
        "meta device). Load them, as ot.load_model(name) does."
    )


def _places(hook: Any) -> list[Any]:
    """The devices on which accelerate's hook runs a module; it may be a sequence of hooks."""
    hooks = [hook, *getattr(hook, "hooks", ())]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return [device for device in devices if device is not None]
