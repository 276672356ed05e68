"""Which device every part of a model lies on, and how what is computed goes from one to the next.

accelerate works out what fits where. The way through the devices is our own: accelerate's hooks put weights that wait
in CPU memory out of sight, on the meta device, and empty the GPU's allocator after every tensor that they bring.
Knows modules and bytes; no families, no checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from idefics.errors import BadSetting, OutOfMemory
from idefics.host_memory import free_host_memory
from idefics.nn.decoder import DecoderLayer
from idefics.validation import short_repr
from idefics.weights import DeviceByModule

OUT_OF_MEMORY_PATTERN = re.compile(
    "allocate memory|failed to map segment", re.IGNORECASE
)  # of torch, of the linker
OUT_OF_MEMORY_HINT = "take a smaller one, or keep it in fewer bits (quantize)"
DeviceLike = int | str | torch.device  # an int is a GPU
DeviceMapStrategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """A model on several devices.

    Attributes:
        device_map: how accelerate shall spread it ("auto" and "balanced": evenly over the GPUs, then CPU memory;
            "balanced_low_0": as little as possible on the first; "sequential": one after another), or where each
            part lies, by module names, "" for the rest.
        max_memory: what may be used of each GPU (0, 1, ...) and of "cpu", in bytes or as "10GiB"; None: what is free.
    """

    device_map: DeviceMapStrategy | Mapping[str, DeviceLike]
    max_memory: Mapping[int | str, int | str] | None = None

    @property
    def main_device(self) -> torch.device:
        """The device whose abilities count: the first that is no CPU, if there is one."""
        if isinstance(self.device_map, str):
            return get_device("auto")
        return _main_device(get_device(device) for device in self.device_map.values())


def resolve_device(
    device: DeviceLike,
    device_map: DeviceLike | Mapping[str, DeviceLike] | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> torch.device | DeviceMap:
    """Where the caller wants a model to be: on one device, or spread.

    Args:
        device: "auto", or one device; goes without a device_map.
        device_map: None, one device, a `DeviceMapStrategy`, or devices by module names.

    Raises:
        BadSetting: no such device or way, or arguments that speak against each other.
    """
    for name, given in (("device", device), ("device_map", device_map)):
        if not isinstance(given, (str, int, torch.device, Mapping, NoneType)):
            raise BadSetting(f"{name} is {short_repr(given)}; give auto, cpu, cuda or cuda:1")
    if isinstance(device_map, Mapping) and not device_map:
        raise BadSetting('device_map is {}, which names no part: give {"": "cpu"}, or "auto"')
    if device_map is None or (
        not isinstance(device_map, Mapping) and device_map not in get_args(DeviceMapStrategy)
    ):
        if max_memory is not None:
            raise BadSetting(f'max_memory is given, but device_map is {device_map!r}: give device_map="auto"')
        return get_device(device if device_map is None else device_map)
    if device != "auto":
        raise BadSetting(f"device is {str(device)!r} and device_map {device_map!r}: give one of the two")
    if isinstance(device_map, Mapping) and max_memory is not None:
        raise BadSetting('max_memory is given, but device_map says where all lies: give device_map="auto"')
    return DeviceMap(device_map=device_map, max_memory=max_memory)  # type: ignore[arg-type]  # a Way, by the first line


def _device_names() -> list[str]:
    """What `device` may be on this machine."""
    gpus = (
        [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def get_device(name: DeviceLike) -> torch.device:
    """The device by its name or number, or a BadSetting if this machine has none such."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):
        device_text = name if isinstance(name, int) else str(name)
        names = ", ".join(_device_names())
        raise BadSetting(
            f"device is {device_text!r}, which this machine does not have: give one of {names}"
        ) from None
    return device


def assign_devices(
    model: nn.Module, device: torch.device | DeviceMap, *, dtype: torch.dtype, bits_by_name: Mapping[str, int]
) -> DeviceByModule:
    """Where each part of a model shall lie, by the names of its modules.

    Args:
        model: its shapes are enough; it may stand on the meta device.
        dtype: of its weights.
        bits_by_name: for weights that will take fewer than the dtype's, how many.

    Raises:
        BadSetting: it does not fit, or the device map does not fit it.
        OutOfMemory: it does not fit on the one device.
    """
    if isinstance(device, torch.device):
        needed, free = weight_bytes(model, dtype, bits_by_name), free_memory(device)
        if needed > free:
            raise OutOfMemory("the model", needed, free, OUT_OF_MEMORY_HINT)
        return {"": device}
    if isinstance(device.device_map, str):
        return _infer_device_map(model, device.device_map, device.max_memory, dtype, bits_by_name)
    return _validate_device_map(
        model, {name: get_device(device_name) for name, device_name in device.device_map.items()}
    )


def weight_bytes(model: nn.Module, dtype: torch.dtype, bits_by_name: Mapping[str, int]) -> int:
    """Bytes that a model's weights will take, tied ones once; arguments as in `places`."""
    total = sum(
        weight.numel()
        * bits_by_name.get(name, 8 * (dtype if weight.is_floating_point() else weight.dtype).itemsize)
        for name, weight in model.named_parameters()
    )
    return total // 8


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device."""
    match device.type:
        case "cuda":
            free: int = torch.cuda.mem_get_info(device)[0]
            # What torch has and nobody uses: of a model that was there before.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "mps":
            free_bytes: int = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
            return free_bytes
    return free_host_memory()


@contextmanager
def raise_out_of_memory(what: str, needed: int, device: torch.device) -> Iterator[None]:
    """Raises OutOfMemory in place of what allocators raise, each in its own words.

    Args:
        what: what is made meanwhile.
        needed: bytes that it takes.
    """
    free = free_memory(device) if device.type == "cpu" else 0
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY_PATTERN.search(str(error)):
            raise
        raise OutOfMemory(what, needed, free, OUT_OF_MEMORY_HINT) from error


def install_device_hooks(model: nn.Module) -> None:
    """Lets a model whose weights lie on several devices compute: a module brings its inputs to where it computes.

    Where parts lie on GPUs, those in CPU memory compute on the first GPU, and lend it their weights meanwhile.
    """
    devices = dict.fromkeys(weight.device for weight in model.parameters())
    if len(devices) == 1:
        return
    main_device = _main_device(devices)
    for _, block in no_split_blocks(model):
        weight_device = next((weight.device for weight in block.parameters()), main_device)
        compute_device = main_device if weight_device.type == "cpu" else weight_device
        for module in block.modules():
            module.register_forward_pre_hook(partial(_move_inputs, compute_device), with_kwargs=True)
            if weight_device != compute_device and module._parameters:
                hook = OffloadHook(module, compute_device)
                module.register_forward_pre_hook(hook.pre_forward)
                module.register_forward_hook(hook.post_forward, always_call=True)


class OffloadHook:
    """A module's own weights, which wait in one place and are elsewhere while it computes."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.offloaded_parameters = module._parameters
        self.compute_device = device

    def pre_forward(self, module: nn.Module, inputs: Any) -> None:
        # No Parameters but what `to` makes of them, so that a gradient finds its way back to the one that waits.
        moved: dict[str, Any] = {
            name: None if weight is None else weight.to(self.compute_device)
            for name, weight in self.offloaded_parameters.items()
        }
        module._parameters = moved

    def post_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module._parameters = self.offloaded_parameters


def no_split_blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts that are never cut in two, by name: decoder layers, and every module that holds none of them."""
    has_layers = any(isinstance(inner, DecoderLayer) for inner in module.modules() if inner is not module)
    if not has_layers and not isinstance(module, nn.ModuleList):
        yield name, module
        return
    for inner_name, inner in module.named_children():
        yield from no_split_blocks(inner, f"{name}.{inner_name}" if name else inner_name)


def _main_device(devices: Iterable[torch.device]) -> torch.device:
    all_devices = list(devices)
    return next((device for device in all_devices if device.type != "cpu"), all_devices[0])


def _move_inputs(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _to_device(args, device), {name: _to_device(value, device) for name, value in kwargs.items()}


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_to_device(one, device) for one in value) if type(value) is tuple else value


def _infer_device_map(
    model: nn.Module,
    strategy: DeviceMapStrategy,
    max_memory: Mapping[int | str, int | str] | None,
    dtype: torch.dtype,
    bits_by_name: Mapping[str, int],
) -> DeviceByModule:
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory, get_max_memory

    dtype_by_bits = {4: CustomDtype.INT4, 8: torch.int8, 16: torch.float16}
    accelerate_options: dict[str, Any] = {
        "dtype": dtype,
        "special_dtypes": {name: dtype_by_bits[count] for name, count in bits_by_name.items()},
        "no_split_module_classes": sorted({type(block).__name__ for _, block in no_split_blocks(model)}),
    }
    memory: Any = None if max_memory is None else dict(max_memory)
    try:
        if strategy == "sequential":
            memory = get_max_memory(memory)
        else:
            memory = get_balanced_memory(
                model, memory, low_zero=strategy == "balanced_low_0", **accelerate_options
            )
        device_by_module = infer_auto_device_map(model, max_memory=dict(memory), **accelerate_options)
    except ValueError as error:  # a device or a size that accelerate does not read
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
    """A caller's own map, which must name no part of a block and leave none out."""
    names = [name for name, _ in no_split_blocks(model)]
    for key in device_by_module:
        if key and not any(f"{name}.".startswith(f"{key}.") for name in names):
            raise BadSetting(
                f"device_map names {key!r}, which is no part of this model that can lie on a device of its own: "
                f"give {', '.join(sorted({_without_layer_number(name) for name in names}))}, or what holds them"
            )
    unassigned = [
        name for name in names if not any(f"{name}.".startswith(f"{key}.") for key in device_by_module)
    ]
    if unassigned and "" not in device_by_module:
        raise BadSetting(
            f'device_map leaves out {unassigned[0]}: give it a device, or all the rest one under ""'
        )
    return device_by_module


def _without_layer_number(name: str) -> str:
    """A block's name with n in place of a layer's number."""
    return ".".join("n" if part.isdecimal() else part for part in name.split("."))
