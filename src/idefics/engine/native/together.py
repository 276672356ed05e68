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

LINE = 64  # bytes: each weight begins on a line of the caches
MOST = 2**31  # bytes: what short answers can win back by it is not worth to copy more


def bring_together(layers: Iterable[nn.Linear]) -> None:
    """Moves the weights and scales of layers into large pages, where the system is Linux, which has them.

    The parameters stay the same objects; their old memory is given back as soon as nobody else holds it. More than
    `MOST` bytes stay where they are, and what there is no memory for.
    """
    if sys.platform != "linux":
        return
    each = chain.from_iterable(layer.parameters(recurse=False) for layer in layers)
    parameters = dict.fromkeys(each)  # a tied one once
    room = sum(-(-one.nbytes // LINE) * LINE for one in parameters)
    if not 0 < room <= MOST:
        return
    try:
        memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # a limit of this process
        return
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole, at = torch.frombuffer(memory, dtype=torch.uint8), 0
    for one in parameters:
        there = whole[at : at + one.nbytes].view(one.dtype).view(one.shape)
        one.data = there.copy_(one.detach())
        at += -(-one.nbytes // LINE) * LINE
