"""Moves inputs, and weights that are offloaded to CPU memory, to the device where a module computes.

accelerate's own hooks are not used: they put offloaded weights on the meta device, where nothing else can read them,
and empty the GPU's allocator after every tensor that they move.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from idefics.placement.assignment import named_no_split_modules
from idefics.placement.devices import first_accelerator_or_cpu


def install_device_hooks(model: nn.Module) -> None:
    """Lets a model run with its weights on several devices: each module moves its inputs to its device.

    If one of them is a GPU, modules in CPU memory compute on the first GPU: their weights are copied there meanwhile.
    """
    devices = dict.fromkeys(weight.device for weight in model.parameters())
    if len(devices) == 1:
        return
    main_device = first_accelerator_or_cpu(devices)
    for _, block in named_no_split_modules(model):
        weight_device = next((weight.device for weight in block.parameters()), main_device)
        compute_device = main_device if weight_device.type == "cpu" else weight_device
        for module in block.modules():
            module.register_forward_pre_hook(partial(_move_inputs, compute_device), with_kwargs=True)
            if weight_device != compute_device and module._parameters:
                hook = OffloadHook(module, compute_device)
                module.register_forward_pre_hook(hook.pre_forward)
                module.register_forward_hook(hook.post_forward, always_call=True)


class OffloadHook:
    """Holds the weights of an offloaded module on another device while the module runs."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.offloaded_parameters = module._parameters
        self.compute_device = device

    def pre_forward(self, module: nn.Module, inputs: Any) -> None:
        """Replaces the module's parameters by copies on the device.

        The copies are results of `to`, not Parameters, so that gradients flow back to the offloaded ones.
        """
        moved: dict[str, Any] = {
            name: None if weight is None else weight.to(self.compute_device)
            for name, weight in self.offloaded_parameters.items()
        }
        module._parameters = moved

    def post_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Replaces the copies by the offloaded parameters again."""
        module._parameters = self.offloaded_parameters


def _move_inputs(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A forward pre-hook (after `partial`) that moves all arguments to a device."""
    return _to_device(args, device), {name: _to_device(value, device) for name, value in kwargs.items()}


def _to_device(value: Any, device: torch.device) -> Any:
    """Moves a tensor, or the tensors in a tuple; returns other values unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_to_device(one, device) for one in value) if type(value) is tuple else value
