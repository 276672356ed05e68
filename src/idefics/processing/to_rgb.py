"""Converts pixel values of every kind into 8-bit RGB: Pillow images of all modes, and arrays.

The range of the values is never guessed: floats are 0 to 1, 16-bit values 0 to 65535, and what fits two ranges is
refused. Does not open files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.errors import BadPicture
from idefics.media_sources import CHANNEL_COUNTS
from idefics.processing.resize import iterate_strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    NumberArray = NDArray[np.generic]
    ToGray = Callable[[NumberArray], NDArray[np.uint8]]


ROUNDING_TOLERANCE = 1 / 510  # half an 8-bit step: floats beyond 0 or 1 by less than this are clipped
FULL_RANGE_FORMATS = ("PNG", "PPM", "JPEG2000")  # formats that define 16-bit values as 0 to 65535
STRAIGHT_ALPHA_MODE_BY_MODE = {
    "RGBa": "RGBA",
    "La": "LA",
}  # Pillow converts these modes to one other mode only


def to_rgb(image: PIL.Image.Image, name: str = "the picture") -> PIL.Image.Image:
    """A Pillow image of any mode as RGB; transparency is composited over white.

    16-bit gray (0 to 65535) and floats (0 to 1) are scaled to 0 to 255; Pillow itself would clip both.

    Raises:
        BadPicture: the values fit no range, or two; `name` begins the message.
    """
    if image.mode in STRAIGHT_ALPHA_MODE_BY_MODE:
        image = image.convert(STRAIGHT_ALPHA_MODE_BY_MODE[image.mode])
    if image.mode.startswith(("I", "F")):
        to_gray, transparent = _gray_converter(image, name), image.info.get("transparency")

        def strip_to_rgb(strip: PIL.Image.Image) -> PIL.Image.Image:
            numbers = np.asarray(strip)
            gray = to_gray(numbers)
            if isinstance(transparent, int):
                gray[numbers == transparent] = 255
            return PIL.Image.fromarray(gray).convert("RGB")
    elif image.has_transparency_data:
        strip_to_rgb = _composite_over_white
    else:
        return image if image.mode == "RGB" else image.convert("RGB")
    result = PIL.Image.new("RGB", image.size)
    for top, strip in iterate_strips(image):  # intermediate images take many times the memory of the result
        result.paste(strip_to_rgb(strip), (0, top))
    return result


def _composite_over_white(strip: PIL.Image.Image) -> PIL.Image.Image:
    """An image with transparency as RGB over a white background."""
    white = PIL.Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _gray_converter(image: PIL.Image.Image, name: str) -> ToGray:
    """The function that turns strips of an image of mode I, I;16 or F into 8-bit gray.

    Raises:
        BadPicture: the image's values fit no range, or two; `name` begins the message.
    """
    strip_ranges = [_min_and_max(np.asarray(strip)) for _, strip in iterate_strips(image)]
    low, high = min(low for low, _ in strip_ranges), max(high for _, high in strip_ranges)
    if image.mode == "F":
        return _float_converter(low, high, name)
    return _uint16_converter(low, high, name, is_full_range=image.format in FULL_RANGE_FORMATS)


def _min_and_max(numbers: NumberArray) -> tuple[float, float]:
    """The smallest and the largest value of an array; both NaN if the array has a NaN."""
    return float(numbers.min()), float(numbers.max())


def _float_converter(low: float, high: float, name: str) -> ToGray:
    """The function that turns floats of 0 to 1 into uint8; raises BadPicture if `low` to `high` is another range."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadPicture(f"{name} holds NaN or infinite numbers; 0 to 1 are read: replace them")
    if not (low >= -ROUNDING_TOLERANCE and high <= 1 + ROUNDING_TOLERANCE):
        raise BadPicture(
            f"{name} holds floating-point numbers from {low:g} to {high:g}; 0 to 1 are read: scale them to that, or "
            "to whole numbers of 0 to 255"
        )
    return lambda numbers: (np.clip(numbers.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)


def _uint16_converter(low: float, high: float, name: str, *, is_full_range: bool) -> ToGray:
    """The function that turns 0 to 65535 into uint8; raises BadPicture if `low` to `high` is another range.

    If all values are small, they may be 8-bit values in a wider type, which is refused unless `is_full_range`.
    """
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


def image_from_array(array: NumberArray, max_pixels: int) -> PIL.Image.Image:
    """Converts an array to an RGB image.

    Args:
        array: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: uint8, whole numbers of 0 to 255, uint16 of
            0 to 65535, bool, or floats of 0 to 1. Where the shape fits both orders the channels are last.
        max_pixels: limit on H x W.

    Raises:
        BadPicture: the shape or the values fit none of these, or there are too many pixels.
    """
    array = _to_channels_last(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.shape[0] * array.shape[1] > max_pixels:
        raise BadPicture(
            f"a picture array of {array.shape} has more than {max_pixels:,} pixels: make it smaller"
        )
    pixels = np.ascontiguousarray(_to_uint8(array))
    return to_rgb(PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _to_channels_last(array: NumberArray) -> NumberArray:
    """Moves the channels of an array to the last axis: (H, W), (H, W, C) or (C, H, W) -> (H, W) or (H, W, C).

    Raises:
        BadPicture: it has another shape.
    """
    shape = array.shape
    if array.size and (array.ndim == 2 or (array.ndim == 3 and shape[2] in CHANNEL_COUNTS)):
        return array
    if array.size and array.ndim == 3 and shape[0] in CHANNEL_COUNTS:
        return array.transpose(1, 2, 0)
    raise BadPicture(
        f"a picture array has the shape {shape}; give (height, width), (height, width, channels) or (channels, "
        "height, width) with 1, 3 or 4 channels; several pictures are a list"
    )


def _to_uint8(array: NumberArray) -> NDArray[np.uint8]:
    """Scales the values of an array to 0 to 255; raises BadPicture if their range is ambiguous or unsupported."""
    if array.dtype == np.uint8:
        return array  # type: ignore[return-value]  # mypy does not narrow dtypes
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    name = f"a picture array of {array.dtype}"
    if array.dtype.kind not in "iuf":
        raise BadPicture(f"{name} is no picture: give uint8, uint16, bool, or floats of 0 to 1")
    low, high = _min_and_max(array)
    if array.dtype.kind == "f":
        return _float_converter(low, high, name)(array)
    if array.dtype == np.uint16:
        return _uint16_converter(low, high, name, is_full_range=False)(array)
    if low < 0 or high > 255:
        raise BadPicture(
            f"{name} holds numbers from {low:g} to {high:g}; 0 to 255 are read: scale them to that"
        )
    if high == 1:
        raise BadPicture(
            f"{name} holds 0 and 1 alone, which is black as 0 to 255: give bool, or floats of 0 to 1"
        )
    return array.astype(np.uint8)
