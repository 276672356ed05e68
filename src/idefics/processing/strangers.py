"""Picture files from strangers: what is opened at all, and what a decoder never gets to see.

A few hundred kilobytes can ask Pillow for hours of work or for more memory than there is, without one pixel too many:
through EXIF data whose entries all hold the same megabyte, through thousands of passes over one JPEG, through comments
that are joined one by one. Knows bytes of files; does not know pixels.
"""

from __future__ import annotations

import io
import re
import struct

from idefics.errors import BadPicture

MOST_PIXELS = 40_000_000
MOST_READS = (
    20_000  # by which Pillow's readers go through a file: a PNG of 20 MB in parts of 8 kB takes 7,500
)
MOST_SCANS = 100  # of a JPEG; a progressive one has about ten
MOST_SEGMENTS = 5_000  # of a JPEG

EXIF = b"Exif\0\0"
SHORT = 3  # TIFF's type of an orientation
ORIENTATION = 0x0112
# In JPEG's data 0xff stands before 0 as itself, before 0xd0 to 0xd7 (and 1) alone, and before 0xff as filling.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
START, END, SCAN, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
# Frames, tables, scans, and the two segments that say what the colours are (JFIF, Adobe).
DECODED = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), 0xE0, 0xEE} - {0xC8}
APPLICATIONS = {*range(0xE0, 0xF0), 0xFE} - DECODED  # and comments


def too_much() -> BadPicture:
    """The file asks for more work than a picture takes."""
    return BadPicture(
        "the picture is built to take more work than a picture takes: save it again with an ordinary program"
    )


class Sparing(io.BytesIO):
    """A file that ends in an error where a decoder reads it in crumbs: each costs more than its bytes.

    Raises:
        BadPicture: at the read beyond `MOST_READS`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self.reads += 1
        if self.reads > MOST_READS:
            raise too_much()
        return super().read(size)


def bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without the data of applications, and its EXIF data. Pillow reads those before it is asked for them.

    Markers are found as libjpeg finds them; what it does not know is refused, as Pillow may see other markers inside.
    What follows the end of the picture is left out.

    Raises:
        BadPicture: more scans than `MOST_SCANS`, more segments than `MOST_SEGMENTS`, or a segment of an unknown kind.
    """
    kept, exif, scans, begun = [data[:2]], b"", 0, 2
    for _ in range(MOST_SEGMENTS):
        marker = MARKER.search(data, begun)
        if marker is None:
            return b"".join([*kept, data[begun:]]), exif  # cut short: the decoder says so
        kind, start = data[marker.start() + 1], marker.end()
        if kind in (START, END):
            return b"".join([*kept, data[begun:start]]), exif
        end = start + int.from_bytes(data[start : start + 2])
        scans += kind == SCAN
        if end < start + 2 or scans > MOST_SCANS or kind not in DECODED | APPLICATIONS:
            raise too_much()
        kept.append(data[begun : end if kind in DECODED else marker.start()])
        if not exif and kind == APP1 and data.startswith(EXIF, start + 2):
            exif = data[start + 2 : end]
        begun = end
    raise too_much()


def orientation(exif: bytes) -> int:
    """How a picture is to be turned (EXIF 2.32, 4.6.4), or 1. No other tag's data is read."""
    tiff = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return 1
        (first,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLH", tiff, first + 2 + 12 * entry)
            if tag == ORIENTATION:
                return int(value) if kind == SHORT else 1
    except struct.error:
        pass
    return 1
