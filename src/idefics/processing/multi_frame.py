"""Counts the pages, frames or pictures of a picture file, and writes the note about those that are not read.

Works on pictures that Pillow has opened; does not open files.
"""

from __future__ import annotations

from collections.abc import Callable

import PIL.Image
from PIL.MpoImagePlugin import MpoImageFile
from PIL.TiffImagePlugin import TiffImageFile

from idefics.media_sources import is_multi_frame_image

SUBFILE_TYPE_TAG = (
    254  # TIFF tag; bit 0: a smaller copy of another page, bit 2: a mask of one (TIFF 6.0, section 8)
)
COPY_OR_MASK_BITS = 0b101
# Formats by Pillow's names; the others are animations.
NOUN_BY_FORMAT = {"TIFF": "pages", "HEIF": "pictures", "MPO": "pictures"}
FORMATS_CHANGED_BY_COUNTING = ("TIFF", "MPO")  # formats where counting the frames changes the open picture


def describe_unread_frames(image: PIL.Image.Image, name: str) -> str:
    """One sentence on the pictures of a file that were not read; "" where the file has one picture.

    Not counted are smaller copies and masks of a TIFF's pages, and pictures of other sizes in a JPEG (previews, depth
    maps, gain maps). The sizes of an icon are one picture.

    Args:
        image: as it was opened. Counting may seek to another frame, so that it must not be used afterwards.
        name: of the file; begins the sentence.
    """
    count = _count_frames(image) if is_multi_frame_image(image) else 1
    if count == 1:
        return ""
    noun = NOUN_BY_FORMAT.get(image.format or "", "frames")
    read = "the main one" if image.format == "HEIF" else "the first"
    has = f"has {count:,} {noun}" if count else f"has several {noun}"
    return f"{name} {has}, and only {read} was read: save the others as files of their own to ask about them"


def _count_frames(image: PIL.Image.Image) -> int | None:
    """How many pictures a file has; None if they cannot be counted, because the file is broken or has too many."""
    try:
        if isinstance(image, TiffImageFile):
            return _count_matching_frames(
                image, lambda: not image.tag_v2.get(SUBFILE_TYPE_TAG, 0) & COPY_OR_MASK_BITS
            )
        if isinstance(image, MpoImageFile):
            size = image.size
            return _count_matching_frames(image, lambda: image.size == size)
        frames: int = image.n_frames  # type: ignore[attr-defined]  # exists where `is_animated` does
        return frames
    except Exception:
        return None


def _count_matching_frames(image: TiffImageFile | MpoImageFile, is_picture: Callable[[], bool]) -> int:
    """Counts the first frame, and the others for which `is_picture` is true after `image` has seeked to them."""
    count = 1
    for frame in range(1, image.n_frames):
        image.seek(frame)
        count += is_picture()
    return count
