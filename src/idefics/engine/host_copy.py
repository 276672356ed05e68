"""Copies of small tensors to the host, synchronous or overlapped with the GPU's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def copy_to_host(values: Tensor) -> Callable[[], list[Any]]:
    """Copies now; the returned function gives the list."""
    host_values = values.tolist()
    return lambda: host_values


def copy_to_host_async(values: Tensor) -> Callable[[], list[Any]]:
    """Starts a copy from a CUDA device; the returned function waits for it alone, not for work launched later."""
    host_values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copy_done = torch.cuda.Event()
    copy_done.record(torch.cuda.current_stream(values.device))

    def wait_for_values() -> list[Any]:
        copy_done.synchronize()
        return host_values.tolist()

    return wait_for_values
