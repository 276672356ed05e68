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

from idefics.calls import short
from idefics.errors import BadSetting, OutOfMemory
from idefics.host_memory import free_host_memory
from idefics.nn.decoder import DecoderLayer
from idefics.weights import Places

OUT_OF_MEMORY = re.compile("allocate memory|failed to map segment", re.IGNORECASE)  # of torch, of the linker
SMALLER = "take a smaller one, or keep it in fewer bits (quantize)"
Device = int | str | torch.device  # an int is a GPU
Way = Literal["auto", "balanced", "balanced_low_0", "sequential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A model on several devices.

    Attributes:
        device_map: how accelerate shall spread it ("auto" and "balanced": evenly over the GPUs, then CPU memory;
            "balanced_low_0": as little as possible on the first; "sequential": one after another), or where each
            part lies, by module names, "" for the rest.
        max_memory: what may be used of each GPU (0, 1, ...) and of "cpu", in bytes or as "10GiB"; None: what is free.
    """

    device_map: Way | Mapping[str, Device]
    max_memory: Mapping[int | str, int | str] | None = None

    @property
    def main(self) -> torch.device:
        """The device whose abilities count: the first that is no CPU, if there is one."""
        if isinstance(self.device_map, str):
            return device_called("auto")
        return _main(device_called(device) for device in self.device_map.values())


def wanted(
    device: Device,
    device_map: Device | Mapping[str, Device] | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> torch.device | Spread:
    """Where the caller wants a model to be: on one device, or spread.

    Args:
        device: "auto", or one device; goes without a device_map.
        device_map: None, one device, a `Way`, or devices by module names.

    Raises:
        BadSetting: no such device or way, or arguments that speak against each other.
    """
    for name, given in (("device", device), ("device_map", device_map)):
        if not isinstance(given, (str, int, torch.device, Mapping, NoneType)):
            raise BadSetting(f"{name} is {short(given)}; give auto, cpu, cuda or cuda:1")
    if isinstance(device_map, Mapping) and not device_map:
        raise BadSetting('device_map is {}, which names no part: give {"": "cpu"}, or "auto"')
    if device_map is None or (not isinstance(device_map, Mapping) and device_map not in get_args(Way)):
        if max_memory is not None:
            raise BadSetting(f'max_memory is given, but device_map is {device_map!r}: give device_map="auto"')
        return device_called(device if device_map is None else device_map)
    if device != "auto":
        raise BadSetting(f"device is {str(device)!r} and device_map {device_map!r}: give one of the two")
    if isinstance(device_map, Mapping) and max_memory is not None:
        raise BadSetting('max_memory is given, but device_map says where all lies: give device_map="auto"')
    return Spread(device_map=device_map, max_memory=max_memory)  # type: ignore[arg-type]  # a Way, by the first line


def _device_names() -> list[str]:
    """What `device` may be on this machine."""
    gpus = (
        [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def device_called(name: Device) -> torch.device:
    """The device by its name or number, or a BadSetting if this machine has none such."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):
        given = name if isinstance(name, int) else str(name)
        names = ", ".join(_device_names())
        raise BadSetting(
            f"device is {given!r}, which this machine does not have: give one of {names}"
        ) from None
    return device


def places(
    model: nn.Module, device: torch.device | Spread, *, dtype: torch.dtype, bits: Mapping[str, int]
) -> Places:
    """Where each part of a model shall lie, by the names of its modules.

    Args:
        model: its shapes are enough; it may stand on the meta device.
        dtype: of its weights.
        bits: for weights that will take fewer than the dtype's, how many.

    Raises:
        BadSetting: it does not fit, or the device map does not fit it.
        OutOfMemory: it does not fit on the one device.
    """
    if isinstance(device, torch.device):
        needed, free = weight_bytes(model, dtype, bits), free_memory(device)
        if needed > free:
            raise OutOfMemory("the model", needed, free, SMALLER)
        return {"": device}
    if isinstance(device.device_map, str):
        return _fitted(model, device.device_map, device.max_memory, dtype, bits)
    return _checked(model, {name: device_called(place) for name, place in device.device_map.items()})


def weight_bytes(model: nn.Module, dtype: torch.dtype, bits: Mapping[str, int]) -> int:
    """Bytes that a model's weights will take, tied ones once; arguments as in `places`."""
    total = sum(
        weight.numel() * bits.get(name, 8 * (dtype if weight.is_floating_point() else weight.dtype).itemsize)
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
            most: int = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
            return most
    return free_host_memory()


@contextmanager
def told_of_memory(what: str, needed: int, device: torch.device) -> Iterator[None]:
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
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise OutOfMemory(what, needed, free, SMALLER) from error


def join(model: nn.Module) -> None:
    """Lets a model whose weights lie on several devices compute: a module brings its inputs to where it computes.

    Where parts lie on GPUs, those in CPU memory compute on the first GPU, and lend it their weights meanwhile.
    """
    devices = dict.fromkeys(weight.device for weight in model.parameters())
    if len(devices) == 1:
        return
    main = _main(devices)
    for _, block in blocks(model):
        lies = next((weight.device for weight in block.parameters()), main)
        computes = main if lies.type == "cpu" else lies
        for module in block.modules():
            module.register_forward_pre_hook(partial(_bring, computes), with_kwargs=True)
            if lies != computes and module._parameters:
                loan = Loan(module, computes)
                module.register_forward_pre_hook(loan.begin)
                module.register_forward_hook(loan.end, always_call=True)


class Loan:
    """A module's own weights, which wait in one place and are elsewhere while it computes."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.waiting = module._parameters
        self.device = device

    def begin(self, module: nn.Module, inputs: Any) -> None:
        # No Parameters but what `to` makes of them, so that a gradient finds its way back to the one that waits.
        lent: dict[str, Any] = {
            name: None if weight is None else weight.to(self.device) for name, weight in self.waiting.items()
        }
        module._parameters = lent

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module._parameters = self.waiting


def blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts that are never cut in two, by name: decoder layers, and every module that holds none of them."""
    holds_layers = any(isinstance(inner, DecoderLayer) for inner in module.modules() if inner is not module)
    if not holds_layers and not isinstance(module, nn.ModuleList):
        yield name, module
        return
    for inner_name, inner in module.named_children():
        yield from blocks(inner, f"{name}.{inner_name}" if name else inner_name)


def _main(devices: Iterable[torch.device]) -> torch.device:
    every = list(devices)
    return next((device for device in every if device.type != "cpu"), every[0])


def _bring(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _moved(args, device), {name: _moved(value, device) for name, value in kwargs.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_moved(one, device) for one in value) if type(value) is tuple else value


def _fitted(
    model: nn.Module,
    way: Way,
    max_memory: Mapping[int | str, int | str] | None,
    dtype: torch.dtype,
    bits: Mapping[str, int],
) -> Places:
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory, get_max_memory

    small = {4: CustomDtype.INT4, 8: torch.int8, 16: torch.float16}
    how: dict[str, Any] = {
        "dtype": dtype,
        "special_dtypes": {name: small[count] for name, count in bits.items()},
        "no_split_module_classes": sorted({type(block).__name__ for _, block in blocks(model)}),
    }
    memory: Any = None if max_memory is None else dict(max_memory)
    try:
        if way == "sequential":
            memory = get_max_memory(memory)
        else:
            memory = get_balanced_memory(model, memory, low_zero=way == "balanced_low_0", **how)
        found = infer_auto_device_map(model, max_memory=dict(memory), **how)
    except ValueError as error:  # a device or a size that accelerate does not read
        raise BadSetting(f"max_memory is {max_memory!r}: {str(error).splitlines()[0]}") from None
    if "disk" in found.values():
        room = ", ".join(f"{size / 1e9:.3g} GB on {device}" for device, size in memory.items())
        raise BadSetting(
            f"the model does not fit into memory ({room}): give a smaller model, "
            'fewer bits (quantize="nf4"), or more max_memory'
        )
    return {
        name: torch.device(f"cuda:{place}" if isinstance(place, int) else place)
        for name, place in found.items()
    }


def _checked(model: nn.Module, places: Places) -> Places:
    """A caller's own map, which must name no part of a block and leave none out."""
    names = [name for name, _ in blocks(model)]
    for key in places:
        if key and not any(f"{name}.".startswith(f"{key}.") for name in names):
            raise BadSetting(
                f"device_map names {key!r}, which is no part of this model that can lie on a device of its own: "
                f"give {', '.join(sorted({_numberless(name) for name in names}))}, or what holds them"
            )
    left = [name for name in names if not any(f"{name}.".startswith(f"{key}.") for key in places)]
    if left and "" not in places:
        raise BadSetting(f'device_map leaves out {left[0]}: give it a device, or all the rest one under ""')
    return places


def _numberless(name: str) -> str:
    """A block's name with n in place of a layer's number."""
    return ".".join("n" if part.isdecimal() else part for part in name.split("."))
