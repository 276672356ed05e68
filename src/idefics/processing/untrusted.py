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

MAX_UNTRUSTED_PIXELS = 40_000_000
MAX_READS = 20_000  # by which Pillow's readers go through a file: a PNG of 20 MB in parts of 8 kB takes 7,500
MAX_JPEG_SCANS = 100  # of a JPEG; a progressive one has about ten
MAX_JPEG_SEGMENTS = 5_000  # of a JPEG

EXIF_HEADER = b"Exif\0\0"
TIFF_SHORT = 3  # TIFF's type of an orientation
ORIENTATION_TAG = 0x0112
# In JPEG's data 0xff stands before 0 as itself, before 0xd0 to 0xd7 (and 1) alone, and before 0xff as filling.
JPEG_MARKER_PATTERN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
# Frames, tables, scans, and the two segments that say what the colours are (JFIF, Adobe).
DECODED_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), 0xE0, 0xEE} - {0xC8}
APPLICATION_SEGMENTS = {*range(0xE0, 0xF0), 0xFE} - DECODED_SEGMENTS  # and comments


def excessive_work_error() -> BadPicture:
    """The file asks for more work than a picture takes."""
    return BadPicture(
        "the picture is built to take more work than a picture takes: save it again with an ordinary program"
    )


class ReadLimitedFile(io.BytesIO):
    """A file that ends in an error where a decoder reads it in crumbs: each costs more than its bytes.

    Raises:
        BadPicture: at the read beyond `MAX_READS`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self.num_reads += 1
        if self.num_reads > MAX_READS:
            raise excessive_work_error()
        return super().read(size)


def strip_jpeg_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without the data of applications, and its EXIF data. Pillow reads those before it is asked for them.

    Markers are found as libjpeg finds them; what it does not know is refused, as Pillow may see other markers inside.
    What follows the end of the picture is left out.

    Raises:
        BadPicture: more scans than `MAX_JPEG_SCANS`, more segments than `MAX_JPEG_SEGMENTS`, or a segment of an unknown kind.
    """
    chunks, exif, num_scans, segment_start = [data[:2]], b"", 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = JPEG_MARKER_PATTERN.search(data, segment_start)
        if marker is None:
            return b"".join([*chunks, data[segment_start:]]), exif  # cut short: the decoder says so
        kind, start = data[marker.start() + 1], marker.end()
        if kind in (SOI, EOI):
            return b"".join([*chunks, data[segment_start:start]]), exif
        end = start + int.from_bytes(data[start : start + 2])
        num_scans += kind == SOS
        if (
            end < start + 2
            or num_scans > MAX_JPEG_SCANS
            or kind not in DECODED_SEGMENTS | APPLICATION_SEGMENTS
        ):
            raise excessive_work_error()
        chunks.append(data[segment_start : end if kind in DECODED_SEGMENTS else marker.start()])
        if not exif and kind == APP1 and data.startswith(EXIF_HEADER, start + 2):
            exif = data[start + 2 : end]
        segment_start = end
    raise excessive_work_error()


def read_orientation(exif: bytes) -> int:
    """How a picture is to be turned (EXIF 2.32, 4.6.4), or 1. No other tag's data is read."""
    tiff = exif.removeprefix(EXIF_HEADER)
    byte_order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if byte_order is None:
            return 1
        (first,) = struct.unpack_from(f"{byte_order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{byte_order}H", tiff, first)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{byte_order}HHLH", tiff, first + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return int(value) if kind == TIFF_SHORT else 1
    except struct.error:
        pass
    return 1
