"""Memory of frames and of resized pictures, used again for the next picture.

The system clears new memory before it gives it, which takes as long as normalising.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SPARE_BYTES = 2**26  # 17 frames of 512 x 512 are 53 MB
MIN_PIXEL_BYTES = 2**22  # tiles have less
MAX_PIXEL_BYTES = 2**24  # a picture resized to 2048 x 2048 has 12.6 MB

_spare: deque[NDArray[np.float32]] = deque(maxlen=1)
_spare_pixels: deque[NDArray[np.uint8]] = deque(maxlen=2)  # a picture is resized twice


class _Owner:
    """The object that every array over a block of memory refers to: once it is gone, the block is spare."""

    def __init__(self, block: NDArray[Any]) -> None:
        self.__array_interface__ = block.__array_interface__


def empty_float32(count: int) -> NDArray[np.float32]:
    """`count` numbers of any value, in the memory of earlier ones that nothing refers to, if its size fits."""
    block = _pop_fitting(_spare, count)
    if block is None:
        block = np.empty(count, np.float32)
    owner = _Owner(block)
    if block.nbytes <= MAX_SPARE_BYTES:
        weakref.finalize(owner, _spare.append, block).atexit = False
    return np.asarray(owner)[:count]


def empty_pixels(height: int, width: int) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of any value; those of a large picture as in `empty_float32`."""
    shape = (height, width, 3)
    count = math.prod(shape)
    if not MIN_PIXEL_BYTES <= count <= MAX_PIXEL_BYTES:
        return np.empty(shape, np.uint8)
    block = _pop_fitting(_spare_pixels, count)
    if block is None:
        block = np.empty(count, np.uint8)
    owner = _Owner(block)
    weakref.finalize(owner, _spare_pixels.append, block).atexit = False
    return np.asarray(owner)[:count].reshape(shape)


def _pop_fitting(spare: deque[NDArray[Any]], count: int) -> NDArray[Any] | None:
    """Takes a block of `count` to twice as many numbers out of `spare`; drops those before it that do not fit."""
    while True:
        try:
            block = spare.popleft()
        except IndexError:
            return None
        if count <= block.size <= 2 * count:
            return block
