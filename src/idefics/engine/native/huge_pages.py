"""Moves weights into one block of memory with huge pages, in the order in which a decode step reads them.

With pages of 4 KiB the processor translates an address for every 64 cache lines that it reads, on a virtual machine in
two steps; with pages of 2 MiB hardly ever.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

CACHE_LINE_BYTES = 64  # each weight begins at a multiple of this
MAX_PACKED_BYTES = 2**31  # copying more would take longer than it saves in short answers


def pack_into_huge_pages(layers: Iterable[nn.Linear]) -> None:
    """Moves the weights and scales of layers into huge pages, on Linux.

    The parameters stay the same objects; their old memory is freed when nothing else refers to it. Nothing is moved if
    they take more than `MAX_PACKED_BYTES`, or if memory is short.
    """
    if sys.platform != "linux":
        return
    all_parameters = chain.from_iterable(layer.parameters(recurse=False) for layer in layers)
    parameters = dict.fromkeys(all_parameters)  # tied ones once
    total_bytes = sum(-(-parameter.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES for parameter in parameters)
    if not 0 < total_bytes <= MAX_PACKED_BYTES:
        return
    try:
        memory = mmap.mmap(-1, total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # the process has reached a limit
        return
    memory.madvise(mmap.MADV_HUGEPAGE)
    buffer, offset = torch.frombuffer(memory, dtype=torch.uint8), 0
    for parameter in parameters:
        target = buffer[offset : offset + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        parameter.data = target.copy_(parameter.detach())
        offset += -(-parameter.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
