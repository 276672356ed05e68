"""The memory that a model needs and that a device has, and the error if it does not suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from idefics.errors import OutOfMemory
from idefics.host_memory import free_host_memory

# What torch's allocators, the linker and CPython say when an allocation fails.
OUT_OF_MEMORY_PATTERN = re.compile(
    "allocate memory|failed to map segment|without exception set", re.IGNORECASE
)
OUT_OF_MEMORY_HINT = "take a smaller one, or keep it in fewer bits (quantize)"


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
