"""Numbers of every kind into RGB of eight bits: PIL pictures of all modes, and arrays.

What the numbers mean is never guessed: floats are 0 to 1, sixteen bits are 0 to 65535, and what fits two readings is
refused. Knows pixels; does not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.errors import BadPicture
from idefics.processing.resize import STRIP
from idefics.sources import CHANNELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.generic]
    Grey = Callable[[Numbers], NDArray[np.uint8]]


ROUNDED = 1 / 510  # half a step of eight bits: floats that are off by less than this mean 0 and 1
FULL_RANGE = ("PNG", "PPM", "JPEG2000")  # formats whose sixteen bits are 0 to 65535 by their definition
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}  # modes that PIL converts to one other mode only


def rgb(image: PIL.Image.Image, name: str = "the picture") -> PIL.Image.Image:
    """Any mode to RGB; transparency over white.

    16-bit grey (0 to 65535) and floats (0 to 1) are scaled to 0 to 255; PIL itself would clip both.

    Raises:
        BadPicture: the numbers fit no range, or two; `name` begins the message.
    """
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode.startswith(("I", "F")):
        grey, transparent = _grey_of(image, name), image.info.get("transparency")

        def flat(strip: PIL.Image.Image) -> PIL.Image.Image:
            numbers = np.asarray(strip)
            eight = grey(numbers)
            if isinstance(transparent, int):
                eight[numbers == transparent] = 255
            return PIL.Image.fromarray(eight).convert("RGB")
    elif image.has_transparency_data:
        flat = _over_white
    else:
        return image if image.mode == "RGB" else image.convert("RGB")
    whole = PIL.Image.new("RGB", image.size)
    for top, strip in _strips(image):  # what lies between takes many times the room of the picture
        whole.paste(flat(strip), (0, top))
    return whole


def _strips(image: PIL.Image.Image) -> Iterator[tuple[int, PIL.Image.Image]]:
    for top in range(0, image.height, STRIP):
        yield top, image.crop((0, top, image.width, min(top + STRIP, image.height)))


def _over_white(strip: PIL.Image.Image) -> PIL.Image.Image:
    white = PIL.Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _grey_of(image: PIL.Image.Image, name: str) -> Grey:
    """What turns a strip of a picture of mode I, I;16 or F into grey of eight bits."""
    ends = [_extrema(np.asarray(strip)) for _, strip in _strips(image)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if image.mode == "F":
        return _from_floats(low, high, name)
    return _from_wide(low, high, name, is_full_range=image.format in FULL_RANGE)


def _extrema(numbers: Numbers) -> tuple[float, float]:
    """The least and the largest; NaN where there is one."""
    return float(numbers.min()), float(numbers.max())


def _from_floats(low: float, high: float, name: str) -> Grey:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadPicture(f"{name} holds NaN or infinite numbers; 0 to 1 are read: replace them")
    if not (low >= -ROUNDED and high <= 1 + ROUNDED):
        raise BadPicture(
            f"{name} holds floating-point numbers from {low:g} to {high:g}; 0 to 1 are read: scale them to that, or "
            "to whole numbers of 0 to 255"
        )
    return lambda numbers: (np.clip(numbers.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)


def _from_wide(low: float, high: float, name: str, *, is_full_range: bool) -> Grey:
    """Of sixteen bits. Small numbers may also be those of eight bits, which were put into a wider type."""
    if low < 0 or high > 65535:
        raise BadPicture(
            f"{name} holds numbers from {low:g} to {high:g}; 0 to 65535 are read: scale them to that"
        )
    if 0 < high <= 255 and not is_full_range:
        raise BadPicture(
            f"{name} is read as 0 to 65535 and holds no number above {high:g}, which would be black: make it uint8 "
            "if these are 0 to 255, or scale them to 0 to 65535"
        )
    return lambda numbers: ((numbers.astype(np.int64) + 128) // 257).astype(np.uint8)


def from_array(array: Numbers, most: int) -> PIL.Image.Image:
    """An array as an RGB picture.

    Args:
        array: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: uint8, whole numbers of 0 to 255, uint16 of
            0 to 65535, bool, or floats of 0 to 1. Where the shape fits both orders the channels are last.
        most: pixels.

    Raises:
        BadPicture: the shape or the numbers fit no reading, or there are too many pixels.
    """
    array = _channels_last(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.shape[0] * array.shape[1] > most:
        raise BadPicture(f"a picture array of {array.shape} has more than {most:,} pixels: make it smaller")
    eight = np.ascontiguousarray(_eight_bits(array))
    return rgb(PIL.Image.fromarray(eight[:, :, 0] if eight.shape[2:] == (1,) else eight))


def _channels_last(array: Numbers) -> Numbers:
    shape = array.shape
    if array.ndim == 2 and array.size:
        return array
    if array.ndim == 3 and array.size and shape[2] in CHANNELS:
        return array
    if not (array.ndim == 3 and array.size and shape[0] in CHANNELS):
        raise BadPicture(
            f"a picture array has the shape {shape}; give (height, width), (height, width, channels) or (channels, "
            "height, width) with 1, 3 or 4 channels; several pictures are a list"
        )
    return array.transpose(1, 2, 0)


def _eight_bits(array: Numbers) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array  # type: ignore[return-value]  # mypy does not narrow dtypes
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    name = f"a picture array of {array.dtype}"
    if array.dtype.kind not in "iuf":
        raise BadPicture(f"{name} is no picture: give uint8, uint16, bool, or floats of 0 to 1")
    low, high = _extrema(array)
    if array.dtype.kind == "f":
        return _from_floats(low, high, name)(array)
    if array.dtype == np.uint16:
        return _from_wide(low, high, name, is_full_range=False)(array)
    if low < 0 or high > 255:
        raise BadPicture(
            f"{name} holds numbers from {low:g} to {high:g}; 0 to 255 are read: scale them to that"
        )
    if high == 1:
        raise BadPicture(
            f"{name} holds 0 and 1 alone, which is black as 0 to 255: give bool, or floats of 0 to 1"
        )
    return array.astype(np.uint8)
