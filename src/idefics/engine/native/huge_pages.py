"""Weights side by side in memory of large pages: a step reads all of them, in this order.

In pages of 4 KiB the processor looks up where memory lies for every 64 lines of it, under a virtual machine in two sets
of tables; in pages of 2 MiB hardly ever.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

CACHE_LINE_BYTES = 64  # bytes: each weight begins on a line of the caches
MAX_PACKED_BYTES = 2**31  # bytes: what short answers can win back by it is not worth to copy more


def pack_into_huge_pages(layers: Iterable[nn.Linear]) -> None:
    """Moves the weights and scales of layers into large pages, where the system is Linux, which has them.

    The parameters stay the same objects; their old memory is given back as soon as nobody else holds it. More than
    `MOST` bytes stay where they are, and what there is no memory for.
    """
    if sys.platform != "linux":
        return
    all_parameters = chain.from_iterable(layer.parameters(recurse=False) for layer in layers)
    parameters = dict.fromkeys(all_parameters)  # a tied one once
    total_bytes = sum(-(-parameter.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES for parameter in parameters)
    if not 0 < total_bytes <= MAX_PACKED_BYTES:
        return
    try:
        memory = mmap.mmap(-1, total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # a limit of this process
        return
    memory.madvise(mmap.MADV_HUGEPAGE)
    buffer, offset = torch.frombuffer(memory, dtype=torch.uint8), 0
    for parameter in parameters:
        target = buffer[offset : offset + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        parameter.data = target.copy_(parameter.detach())
        offset += -(-parameter.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
