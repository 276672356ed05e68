"""Limits on the size and structure of picture files of untrusted senders, checked before Pillow decodes them.

A file of a few hundred kilobytes can take Pillow hours or more memory than there is, without having too many pixels:
by EXIF entries that all refer to the same megabyte, thousands of scans of one JPEG, or comments that are joined one by
one. Works on the bytes of files; does not decode pixels.
"""

from __future__ import annotations

import io
import re
import struct

from idefics.errors import BadPicture

MAX_UNTRUSTED_PIXELS = 40_000_000
MAX_READS = 20_000  # calls of `read`; a PNG of 20 MB in chunks of 8 kB takes 7,500
MAX_JPEG_SCANS = 100  # a progressive JPEG has about ten
MAX_JPEG_SEGMENTS = 5_000

EXIF_HEADER = b"Exif\0\0"
TIFF_SHORT = 3  # TIFF's type of an orientation value
ORIENTATION_TAG = 0x0112
# In JPEG data 0xff 0x00 is an escaped 0xff; 0xff 0x01 and 0xff 0xd0 to 0xd7 are markers without a segment; 0xff 0xff is
# padding.
JPEG_MARKER_PATTERN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
# Frames, tables, scans, and the two application segments that define the colours (JFIF, Adobe).
DECODED_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), 0xE0, 0xEE} - {0xC8}
APPLICATION_SEGMENTS = {*range(0xE0, 0xF0), 0xFE} - DECODED_SEGMENTS  # and comments


def excessive_work_error() -> BadPicture:
    """The error for a file that takes far more work to decode than an ordinary picture."""
    return BadPicture(
        "the picture is built to take more work than a picture takes: save it again with an ordinary program"
    )


class ReadLimitedFile(io.BytesIO):
    """A file in memory with a limited number of reads: a decoder spends time on each read, even of few bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads up to `size` bytes, as `io.BytesIO.read`.

        Raises:
            BadPicture: the file was read `MAX_READS` times before.
        """
        self.num_reads += 1
        if self.num_reads > MAX_READS:
            raise excessive_work_error()
        return super().read(size)


def strip_jpeg_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Removes application data and comments from a JPEG, which Pillow would parse when it opens the file.

    Markers are found as libjpeg finds them; unknown markers are refused, as Pillow may find others inside their data.
    Bytes after the end of the picture are removed too.

    Returns:
        The JPEG without metadata, and its EXIF data (b"" where it has none).

    Raises:
        BadPicture: more than `MAX_JPEG_SCANS` scans or `MAX_JPEG_SEGMENTS` segments, or a segment of an unknown kind.
    """
    chunks, exif, num_scans, segment_start = [data[:2]], b"", 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = JPEG_MARKER_PATTERN.search(data, segment_start)
        if marker is None:
            return b"".join([*chunks, data[segment_start:]]), exif  # truncated: the decoder refuses it
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


def read_exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8 (EXIF 2.32, 4.6.4), in EXIF data; 1 if it has none. Reads no other tag's data."""
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
