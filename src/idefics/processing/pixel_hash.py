"""The content hash of a picture, computed by a second thread while the picture is resized."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_BYTES_FOR_THREAD = 2**19  # a quarter of a millisecond; less takes longer to hand over than to hash


class PixelHash:
    """A SHA-256 of pixels.

    Args:
        prefix: hashed first.
        thread: an executor of one thread, which hashes large arrays.
    """

    def __init__(self, prefix: str, thread: ThreadPoolExecutor) -> None:
        self._digest, self._thread = hashlib.sha256(prefix.encode()), thread
        self._last_update: Future[None] | None = None

    def update(self, pixels: NDArray[np.uint8]) -> None:
        """Hashes a contiguous array, perhaps later: it must not be changed any more."""
        if self._last_update is None and pixels.nbytes < MIN_BYTES_FOR_THREAD:
            self._digest.update(pixels.data)
        else:  # also what is small and follows: the order matters
            self._last_update = self._thread.submit(self._digest.update, pixels.data)

    def hexdigest(self) -> str:
        """The hash of everything so far, in hexadecimal digits."""
        if self._last_update is not None:
            self._last_update.result()
        return self._digest.hexdigest()
