"""Devices by name, and `DeviceMap`, which spreads a model over several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Literal, get_args

import torch

from idefics.errors import BadSetting
from idefics.validation import short_repr

DeviceLike = int | str | torch.device  # an int is a GPU
DeviceMapStrategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]


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


def _available_device_names() -> list[str]:
    """The values of `device` that this machine supports, for error messages."""
    gpus = (
        [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


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
        names = ", ".join(_available_device_names())
        raise BadSetting(
            f"device is {device_text!r}, which this machine does not have: give one of {names}"
        ) from None
    return device


def first_accelerator_or_cpu(devices: Iterable[torch.device]) -> torch.device:
    """The first device that is not a CPU; the first one if all are CPUs."""
    all_devices = list(devices)
    return next((device for device in all_devices if device.type != "cpu"), all_devices[0])
