"""Assigns each module of a model to a device: all to one, by the caller's map, or by accelerate's strategies.

While such a model runs, inputs and weights that are offloaded to CPU memory are moved to the device where a module
computes. accelerate's own hooks are not used: they put offloaded weights on the meta device, where nothing else can
read them, and empty the GPU's allocator after every tensor that they move.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from idefics.errors import BadSetting, OutOfMemory
from idefics.nn.decoder import DecoderLayer
from idefics.placement.devices import (
    OUT_OF_MEMORY_HINT,
    DeviceMap,
    first_accelerator_or_cpu,
    free_memory,
    get_available_device,
    weight_bytes,
)
from idefics.weights import DeviceByModule


def assign_devices(
    model: nn.Module, device: torch.device | DeviceMap, *, dtype: torch.dtype, bits_by_name: Mapping[str, int]
) -> DeviceByModule:
    """Chooses the device of each part of a model.

    Args:
        model: may be on the meta device: only its shapes are read.
        dtype: of its weights.
        bits_by_name: for weights that are stored in fewer bits than the dtype has, the bits of one number.

    Returns:
        The devices by module name; "" is the whole model.

    Raises:
        BadSetting: the model does not fit on the devices, or the device map does not fit the model.
        OutOfMemory: the model does not fit on the one device.
    """
    if isinstance(device, torch.device):
        needed, free = weight_bytes(model, dtype, bits_by_name), free_memory(device)
        if needed > free:
            raise OutOfMemory("the model", needed, free, OUT_OF_MEMORY_HINT)
        return {"": device}
    if isinstance(device.device_map, str):
        return _infer_device_map(model, device, dtype, bits_by_name)
    return _validate_device_map(
        model, {name: get_available_device(device_name) for name, device_name in device.device_map.items()}
    )


def named_no_split_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, module) of the modules that are never split over devices.

    These are decoder layers, and modules that contain none.
    """
    has_layers = any(isinstance(inner, DecoderLayer) for inner in module.modules() if inner is not module)
    if not has_layers and not isinstance(module, nn.ModuleList):
        yield name, module
        return
    for inner_name, inner in module.named_children():
        yield from named_no_split_modules(inner, f"{name}.{inner_name}" if name else inner_name)


def _infer_device_map(
    model: nn.Module, placement: DeviceMap, dtype: torch.dtype, bits_by_name: Mapping[str, int]
) -> DeviceByModule:
    """Distributes a model over the devices with accelerate, by the strategy of `placement`."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory, get_max_memory

    dtype_by_bits = {4: CustomDtype.INT4, 8: torch.int8, 16: torch.float16}
    accelerate_options: dict[str, Any] = {
        "dtype": dtype,
        "special_dtypes": {name: dtype_by_bits[count] for name, count in bits_by_name.items()},
        "no_split_module_classes": sorted(
            {type(block).__name__ for _, block in named_no_split_modules(model)}
        ),
    }
    max_memory, strategy = placement.max_memory, placement.device_map
    memory: Any = None if max_memory is None else dict(max_memory)
    try:
        if strategy == "sequential":
            memory = get_max_memory(memory)
        else:
            memory = get_balanced_memory(
                model, memory, low_zero=strategy == "balanced_low_0", **accelerate_options
            )
        device_by_module = infer_auto_device_map(model, max_memory=dict(memory), **accelerate_options)
    except ValueError as error:  # a device or a size that accelerate does not know
        raise BadSetting(f"max_memory is {max_memory!r}: {str(error).splitlines()[0]}") from None
    if "disk" in device_by_module.values():
        memory_text = ", ".join(f"{size / 1e9:.3g} GB on {device}" for device, size in memory.items())
        raise BadSetting(
            f"the model does not fit into memory ({memory_text}): give a smaller model, "
            'fewer bits (quantize="nf4"), or more max_memory'
        )
    return {
        name: torch.device(f"cuda:{location}" if isinstance(location, int) else location)
        for name, location in device_by_module.items()
    }


def _validate_device_map(model: nn.Module, device_by_module: DeviceByModule) -> DeviceByModule:
    """Returns a caller's own map; raises BadSetting if it splits a block or leaves one without a device."""
    names = [name for name, _ in named_no_split_modules(model)]
    numberless_names = {re.sub(r"\b\d+\b", "n", name) for name in names}
    for key in device_by_module:
        if key and not any(f"{name}.".startswith(f"{key}.") for name in names):
            raise BadSetting(
                f"device_map names {key!r}, which is not a module that can have a device of its own: give "
                f"{', '.join(sorted(numberless_names))}, or a module that contains them"
            )
    unassigned = [
        name for name in names if not any(f"{name}.".startswith(f"{key}.") for key in device_by_module)
    ]
    if unassigned and "" not in device_by_module:
        raise BadSetting(
            f'device_map leaves out {unassigned[0]}: give it a device, or give one for the rest under ""'
        )
    return device_by_module


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
        """Replaces the module's parameters by copies on the device where it computes.

        The copies are results of `to`, not Parameters, so that gradients flow back to the offloaded ones.
        """
        moved: dict[str, Any] = {
            name: None if weight is None else weight.to(self.compute_device)
            for name, weight in self.offloaded_parameters.items()
        }
        module._parameters = moved

    def post_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Puts the offloaded parameters back in the place of the copies."""
        module._parameters = self.offloaded_parameters


def _move_inputs(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A forward pre-hook (after `partial`) that moves all arguments to a device."""
    return _to_device(args, device), {name: _to_device(value, device) for name, value in kwargs.items()}


def _to_device(value: Any, device: torch.device) -> Any:
    """Moves a tensor, or the tensors in a tuple; returns other values unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_to_device(one, device) for one in value) if type(value) is tuple else value
