"""Reads the size that a picture will have once it is decoded and upright, from the header of its file alone."""

from __future__ import annotations

import os
from typing import BinaryIO

import PIL.Image
import PIL.PngImagePlugin
import PIL.TiffImagePlugin

from idefics.processing.image_processor import MAX_PIXELS
from idefics.processing.picture_files import (
    TRANSPOSE_BY_ORIENTATION,
    check_num_pixels,
    load_upright_rgb,
    open_trusted,
    orientation_transpose,
)
from idefics.processing.tile_plan import Size

# Formats of Pillow whose size in the header is that of the decoded picture. Icons, for one, hold several sizes.
SIZE_IS_IN_HEADER = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# Of width and height (EXIF 2.32, 4.6.4).
SWAPPING_TRANSPOSITIONS = [TRANSPOSE_BY_ORIENTATION[orientation] for orientation in (5, 6, 7, 8)]
PNG_SIGNATURE_BYTES = 8
# Chunks of PNG (third edition, 11.3) from which Pillow takes an orientation: EXIF, and texts with these keywords.
PNG_EXIF_CHUNK, PNG_TEXT_CHUNKS = b"eXIf", (b"tEXt", b"zTXt", b"iTXt")
PNG_ORIENTATION_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"xmp\0")


def read_upright_size(file: BinaryIO, name: str) -> Size:
    """The width and height in pixels of a trusted sender's picture, upright by its EXIF tag.

    No pixels are decoded, but for files of rare formats and for PNGs with metadata that may turn them.

    Args:
        file: at its beginning.
        name: of the picture, for messages.

    Raises:
        BadPicture: it is empty, no picture, of a format that is not read, or has more than `MAX_PIXELS` pixels.
    """
    with open_trusted(file, name, MAX_PIXELS) as image:
        check_num_pixels(image, name, MAX_PIXELS)
        if image.format not in SIZE_IS_IN_HEADER:
            return load_upright_rgb(image, name, MAX_PIXELS).size
        # Pillow turns the pages of a TIFF itself, and its size says so.
        is_upright = isinstance(image, PIL.TiffImagePlugin.TiffImageFile) or image.width == image.height
        if isinstance(image, PIL.PngImagePlugin.PngImageFile) and not is_upright:
            position = file.tell()
            is_upright = not _may_have_orientation(file)
            file.seek(position)
            if not is_upright:  # the tag may follow the pixels
                return load_upright_rgb(image, name, MAX_PIXELS).size
        swaps = not is_upright and orientation_transpose(image, None) in SWAPPING_TRANSPOSITIONS
        return (image.height, image.width) if swaps else image.size


def _may_have_orientation(file: BinaryIO) -> bool:
    """Whether a PNG has metadata, before or after its pixels, that may turn it. Reads the heads of its chunks only."""
    position = PNG_SIGNATURE_BYTES
    end = file.seek(0, os.SEEK_END)
    while position < end:
        file.seek(position)
        head = file.read(8)
        kind = head[4:]
        if kind == PNG_EXIF_CHUNK:
            return True
        if kind in PNG_TEXT_CHUNKS and file.read(32).startswith(PNG_ORIENTATION_KEYWORDS):
            return True
        if kind == b"IEND":
            return False
        position += 12 + int.from_bytes(head[:4])  # length, kind and checksum take 12 bytes
    return False
