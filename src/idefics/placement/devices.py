"""Devices by name, and the memory that they have and a model needs; `DeviceMap` spreads a model over several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Literal, get_args

import torch
from torch import nn

from idefics.errors import BadSetting, OutOfMemory
from idefics.host_memory import free_host_memory
from idefics.validation import short_repr

DeviceLike = int | str | torch.device  # an int is a GPU
DeviceMapStrategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]

# What torch's allocators, the linker and CPython say when an allocation fails.
OUT_OF_MEMORY_PATTERN = re.compile(
    "allocate memory|failed to map segment|without exception set", re.IGNORECASE
)
OUT_OF_MEMORY_HINT = "take a smaller one, or keep it in fewer bits (quantize)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """How a model is spread over several devices.

    Attributes:
        device_map: a strategy of accelerate ("auto" and "balanced": evenly over the GPUs, the rest in CPU memory;
            "balanced_low_0": as little as possible on the first GPU; "sequential": one GPU after another), or a device
            for each part by module name, "" for the rest.
        max_memory: the memory to use of each GPU (0, 1, ...) and of "cpu", in bytes or as "10GiB"; None: all free.
    """

    device_map: DeviceMapStrategy | Mapping[str, DeviceLike]
    max_memory: Mapping[int | str, int | str] | None = None

    @property
    def main_device(self) -> torch.device:
        """The device that inputs are on and kernels are chosen for: the first that is not a CPU, if there is one."""
        if isinstance(self.device_map, str):
            return get_available_device("auto")
        return first_accelerator_or_cpu(get_available_device(device) for device in self.device_map.values())


def resolve_device(
    device: DeviceLike,
    device_map: DeviceLike | Mapping[str, DeviceLike] | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> torch.device | DeviceMap:
    """Checks and combines the arguments that choose the device or devices of a model.

    Args:
        device: "auto", or one device; must be "auto" with a device_map.
        device_map: None, one device, a `DeviceMapStrategy`, or devices by module name.
        max_memory: as in `DeviceMap`; needs a strategy.

    Returns:
        One device, or a `DeviceMap` for a strategy or a mapping.

    Raises:
        BadSetting: no such device or strategy, or arguments that contradict each other.
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
        return get_available_device(device if device_map is None else device_map)
    if device != "auto":
        raise BadSetting(f"device is {str(device)!r} and device_map {device_map!r}: give one of the two")
    if isinstance(device_map, Mapping) and max_memory is not None:
        raise BadSetting(
            'max_memory is given, but device_map names a device for each module: give device_map="auto"'
        )
    return DeviceMap(device_map=device_map, max_memory=max_memory)  # type: ignore[arg-type]  # a strategy, as checked above


def get_available_device(name: DeviceLike) -> torch.device:
    """The device with this name or GPU number; "auto": a GPU (CUDA, then MPS), else the CPU.

    Raises:
        BadSetting: this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):
        device_text = name if isinstance(name, int) else str(name)
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        available = ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
        raise BadSetting(
            f"device is {device_text!r}, which this machine does not have: give one of {', '.join(available)}"
        ) from None
    return device


def first_accelerator_or_cpu(devices: Iterable[torch.device]) -> torch.device:
    """The first device that is not a CPU; the first one if all are CPUs."""
    all_devices = list(devices)
    return next((device for device in all_devices if device.type != "cpu"), all_devices[0])


def weight_bytes(model: nn.Module, dtype: torch.dtype, bits_by_name: Mapping[str, int]) -> int:
    """Bytes that a model's weights will take, tied ones counted once; arguments as in `assign_devices`."""
    total = sum(
        weight.numel()
        * bits_by_name.get(name, 8 * (dtype if weight.is_floating_point() else weight.dtype).itemsize)
        for name, weight in model.named_parameters()
    )
    return total // 8


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device."""
    match device.type:
        case "cuda":
            free: int = torch.cuda.mem_get_info(device)[0]
            # Also what torch's allocator holds unused, of a model that was freed.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "mps":
            free_bytes: int = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
            return free_bytes
    return free_host_memory()


@contextmanager
def allocation_errors_as_out_of_memory(what: str, needed: int, device: torch.device) -> Iterator[None]:
    """Replaces the errors of allocators that are raised in this context by OutOfMemory.

    Args:
        what: the thing that is allocated, for the message.
        needed: its bytes.
    """
    free = free_memory(device) if device.type == "cpu" else 0
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError, ImportError, SystemError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY_PATTERN.search(str(error)):
            raise
        raise OutOfMemory(what, needed, free, OUT_OF_MEMORY_HINT) from error
