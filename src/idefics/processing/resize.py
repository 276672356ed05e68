"""Resizing as Pillow does it, bit for bit, and normalising: the slowest steps of preprocessing.

A kernel in C (`native/resize.c`) does both where the package was built with a compiler; else Pillow and NumPy do.
Both release the GIL while they work, so that several threads can resize at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.config import ImageProcessorConfig, ResampleFilter
from idefics.native import library
from idefics.native.library import InstructionSet
from idefics.processing.frame_memory import empty_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from idefics.processing.tile_plan import Size

    Pixels = NDArray[np.uint8]

ROWS_PER_STRIP = 128  # rows copied out of a PIL picture at once; a strip fits the CPU cache


def iterate_strips(image: PIL.Image.Image) -> Iterator[tuple[int, PIL.Image.Image]]:
    """Cuts an image into horizontal strips: yields the index of each strip's first row, and the strip."""
    for top in range(0, image.height, ROWS_PER_STRIP):
        yield top, image.crop((0, top, image.width, min(top + ROWS_PER_STRIP, image.height)))


def iterate_pixel_strips(image: PIL.Image.Image, *, four_bytes: bool = False) -> Iterator[Pixels]:
    """Yields the pixels of an RGB image in horizontal strips (rows, w, 3), from the top.

    Pillow exports a whole image in many small pieces, which takes longer than to export them strip by strip.

    Args:
        four_bytes: yields (rows, w, 4), as Pillow stores pixels, in half the time; the last byte has no meaning.
    """
    for _, strip in iterate_strips(image):
        if four_bytes:
            yield np.frombuffer(strip.tobytes("raw", "RGBX"), np.uint8).reshape(strip.height, strip.width, 4)
        else:
            yield np.asarray(strip)


def resize(pixels: Pixels, size: Size, resample: ResampleFilter) -> Pixels:
    """Resizes pixels (h, w, 3) to (size[1], size[0], 3): `size` is (width, height), as in Pillow.

    Pixels that have this size already are returned themselves.
    """
    old_size = (pixels.shape[1], pixels.shape[0])
    return pixels if old_size == size else resize_strips([pixels], old_size, size, resample)


def resize_strips(strips: Iterable[Pixels], old_size: Size, size: Size, resample: ResampleFilter) -> Pixels:
    """Resizes a picture whose pixels come in horizontal strips, of which none is kept.

    Args:
        strips: (rows, w, 3) each, from the top, or (rows, w, 4), whose last byte is left out.
        old_size: (width, height) of all strips together.
        size: (width, height) of the result, (size[1], size[0], 3).
    """
    native = get_native_resizer()
    if native is None or resample == "nearest":  # which is no convolution
        return resize_with_pillow(np.concatenate([strip[:, :, :3] for strip in strips]), size, resample)
    return native.resize_strips(strips, old_size, size, resample)


def normalize(pixels: Pixels, config: ImageProcessorConfig, out: NDArray[np.float32]) -> None:
    """Writes (pixels * rescale_factor - mean) / std into `out`, (3, h, w) of float32.

    Args:
        pixels: (h, w, 3) of uint8; may be a view of a larger array.
    """
    native = get_native_resizer()
    normalize_pixels = normalize_with_numpy if native is None else native.normalize
    normalize_pixels(pixels, _normalization_table(config), out)


@lru_cache(maxsize=1)
def get_native_resizer() -> NativeResizer | None:
    """The C kernels for resizing and normalising; None where the package was built without a compiler."""
    instruction_set = library.best_instruction_set("resizing")
    return None if instruction_set is None else NativeResizer(instruction_set)


def resize_with_pillow(pixels: Pixels, size: Size, resample: ResampleFilter) -> Pixels:
    """`resize` by Pillow, to the new width first, as every version of Pillow did when the models were released.

    Since 13.0 Pillow begins with the height where that is reduced much more. The order matters, as values are rounded
    between the two passes.
    """
    image, pil_filter = PIL.Image.fromarray(pixels), PIL.Image.Resampling[resample.upper()]
    return np.asarray(image.resize((size[0], image.height), pil_filter).resize(size, pil_filter))


def normalize_with_numpy(pixels: Pixels, table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """`normalize` by NumPy.

    Args:
        table: (3, 256) the normalised number of each uint8 value in each channel.
        out: (3, h, w) of float32, where the result is written.
    """
    for channel in range(3):  # "clip" skips the bounds check, which uint8 indices cannot fail
        np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")


class NativeResizer:
    """The resize and normalize functions of the C library.

    Args:
        instruction_set: the CPU instructions to use; this machine must have them.
    """

    def __init__(self, instruction_set: InstructionSet) -> None:
        kernels = library.load_library()
        assert kernels is not None, "see get_native_resizer"
        self.instruction_set = instruction_set
        self._kernels = kernels

    def resize_strips(
        self, strips: Iterable[Pixels], old_size: Size, size: Size, resample: ResampleFilter
    ) -> Pixels:
        """As the function `resize_strips`; any filter but "nearest"."""
        out = empty_pixels(size[1], size[0])
        number = PIL.Image.Resampling[resample.upper()]
        started = self._kernels.idefics_resize_begin(
            self.instruction_set, number, *old_size, out.ctypes.data, *size
        )
        if started is None:
            raise MemoryError(
                f"not enough memory to resize {old_size[0]} x {old_size[1]} pixels to {size[0]} x {size[1]}"
            )
        try:
            for strip in map(np.ascontiguousarray, strips):
                self._kernels.idefics_resize_add(started, strip.ctypes.data, *strip.shape[::2])
        finally:
            self._kernels.idefics_resize_end(started)
        return out

    def normalize(self, pixels: Pixels, table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Writes normalised pixels into `out`; arguments as of `normalize_with_numpy`."""
        if pixels.strides[1:] != (3, 1):
            pixels = np.ascontiguousarray(pixels)
        assert table.flags.c_contiguous
        assert out.flags.c_contiguous
        height, width = pixels.shape[:2]
        self._kernels.idefics_normalize(
            pixels.ctypes.data, pixels.strides[0], height, width, table.ctypes.data, out.ctypes.data
        )


@lru_cache(maxsize=8)
def _normalization_table(config: ImageProcessorConfig) -> NDArray[np.float32]:
    """The table of `normalize_with_numpy`: (3, 256), the normalised number of each uint8 value in each channel."""
    scaled = (np.arange(256) * config.rescale_factor).astype(np.float32)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    table: NDArray[np.float32] = np.ascontiguousarray((scaled - mean[:, None]) / std[:, None])
    return table
