"""Moves tensors that each step reads into huge pages, so that fewer addresses have to be translated."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from ctypes import memmove

import torch
from torch import Tensor

CACHE_LINE_BYTES = 64  # each tensor begins at a multiple of this
MAX_PACKED_BYTES = 2**31  # copying more would take longer than it saves in short answers


def pack_into_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Moves tensors into huge pages, one after another, on Linux.

    They stay the same objects; their old memory is freed when nothing else refers to it. Nothing is moved if they take
    more than `MAX_PACKED_BYTES`, or if memory is short.
    """
    if sys.platform != "linux":
        return
    once = dict.fromkeys(tensors)  # tied ones
    total_bytes = sum(-(-tensor.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES for tensor in once)
    if not 0 < total_bytes <= MAX_PACKED_BYTES:
        return
    try:
        memory = mmap.mmap(-1, total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # the process has reached a limit
        return
    memory.madvise(mmap.MADV_HUGEPAGE)
    buffer, offset = torch.frombuffer(memory, dtype=torch.uint8), 0
    for tensor in once:
        target = buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        source = tensor.detach().contiguous()
        # By one thread: those of torch would wait for each other after each copy, long if the machine is busy.
        memmove(target.data_ptr(), source.data_ptr(), tensor.nbytes)
        tensor.data = target
        offset += -(-tensor.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
