"""Memory of frames, used again for the next picture.

The system clears new memory before it gives it, which takes as long as normalising.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SPARE_BYTES = 2**26  # 17 frames of 512 x 512 are 53 MB

_spare: deque[NDArray[np.float32]] = deque(maxlen=1)


class _Owner:
    """The object that every array over a block of memory refers to: once it is gone, the block is spare."""

    def __init__(self, block: NDArray[np.float32]) -> None:
        self.__array_interface__ = block.__array_interface__


def empty_float32(count: int) -> NDArray[np.float32]:
    """`count` numbers of any value, in the memory of earlier ones that nothing refers to, if its size fits."""
    try:
        block = _spare.pop()
    except IndexError:
        block = np.empty(count, np.float32)
    if not count <= block.size <= 2 * count:
        block = np.empty(count, np.float32)
    owner = _Owner(block)
    if block.nbytes <= MAX_SPARE_BYTES:
        weakref.finalize(owner, _spare.append, block).atexit = False
    return np.asarray(owner)[:count]
