"""Picture files that hold several pages, frames or pictures: how many, and what is said of those that are not read.

Knows pictures as Pillow opens them; does not know files by name.
"""

from __future__ import annotations

from collections.abc import Callable

import PIL.Image
from PIL.MpoImagePlugin import MpoImageFile
from PIL.TiffImagePlugin import TiffImageFile

from idefics.media_sources import MultiFrameImage

SUBFILE_TYPE_TAG = (
    254  # TIFF tag; bit 0: a smaller copy of another page, bit 2: a mask of one (TIFF 6.0, section 8)
)
COPY_OR_MASK_BITS = 0b101
NOUN_BY_FORMAT = {
    "TIFF": "pages",
    "HEIF": "pictures",
    "MPO": "pictures",
}  # by Pillow's names; the others are animations
FORMATS_CHANGED_BY_COUNTING = ("TIFF", "MPO")  # formats of which counting changes the picture that is open


def describe_unread_frames(image: PIL.Image.Image, name: str) -> str:
    """One sentence on what a file holds beside the picture that is read of it; empty where that is nothing.

    Smaller copies and masks of a TIFF's pages, and what a JPEG holds in other sizes than its own (previews, depth maps,
    gain maps), are no further pictures. An icon's sizes are one picture.

    Args:
        image: as it was opened; it must not be used afterwards, as counting may move it to another frame.
        name: of the file; begins the sentence.
    """
    try:
        is_one = not (isinstance(image, MultiFrameImage) and image.is_animated)
    except Exception:  # more reading than a picture of an untrusted sender may cost
        is_one = True
    count = 1 if is_one else _count_frames(image)
    if count == 1:
        return ""
    noun = NOUN_BY_FORMAT.get(image.format or "", "frames")
    read = "the main one" if image.format == "HEIF" else "the first"
    has = f"has {count:,} {noun}" if count else f"has several {noun}"
    return f"{name} {has}, and only {read} was read: save the others as files of their own to ask about them"


def _count_frames(image: PIL.Image.Image) -> int | None:
    """How many pictures there are; None where they cannot be counted: broken, or too long."""
    try:
        if isinstance(image, TiffImageFile):
            return _count_matching_frames(
                image, lambda: not image.tag_v2.get(SUBFILE_TYPE_TAG, 0) & COPY_OR_MASK_BITS
            )
        if isinstance(image, MpoImageFile):
            size = image.size
            return _count_matching_frames(image, lambda: image.size == size)
        frames: int = image.n_frames  # type: ignore[attr-defined]  # of all classes with `is_animated`
        return frames
    except Exception:
        return None


def _count_matching_frames(image: TiffImageFile | MpoImageFile, is_picture: Callable[[], bool]) -> int:
    count = 1
    for frame in range(1, image.n_frames):
        image.seek(frame)
        count += is_picture()
    return count
