"""Thumbnails of pictures, small JPEGs for the report of a batch run."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from idefics.errors import BadPicture

if TYPE_CHECKING:
    import PIL.Image

THUMBNAIL_PIXELS, JPEG_QUALITY = 64, 60
MAX_PICTURE_PIXELS = 2**28  # width x height; a larger picture has no thumbnail
MAX_THUMBNAILS = 10_000  # of one report


def make_thumbnail(data: bytes, name: str, *, untrusted: bool = False) -> bytes | None:
    """Makes a thumbnail of at most 64 x 64 pixels.

    Args:
        data: the bytes of a picture file, in any format that this installation reads.
        name: of the file; its suffix tells a camera RAW from a TIFF.
        untrusted: whether it is of an untrusted sender: then fewer formats are read, and the work is bounded.

    Returns:
        The bytes of a JPEG file without metadata; None if the picture cannot be read, or is a video.
    """
    from idefics.processing.picture_files import decode_trusted, decode_untrusted
    from idefics.processing.untrusted import MAX_UNTRUSTED_PIXELS

    file = io.BytesIO(data)
    try:
        if untrusted:
            image = decode_untrusted(file, name, MAX_UNTRUSTED_PIXELS).image
        else:
            image = decode_trusted(file, name, MAX_PICTURE_PIXELS, min_side=THUMBNAIL_PIXELS).image
    except BadPicture:
        return None
    return encode_thumbnail(image, THUMBNAIL_PIXELS)


def encode_thumbnail(image: PIL.Image.Image, pixels: int) -> bytes:
    """A picture, of at most `pixels` a side, as a JPEG file without metadata."""
    from PIL.Image import Resampling

    image = image.copy()
    image.thumbnail((pixels, pixels), Resampling.BICUBIC)
    image.info.clear()  # Pillow would write its comment and colour profile
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()
