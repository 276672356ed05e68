"""The XMP packet of a JPEG file: an APP1 segment with a name of its own (XMP Specification Part 3).

Further pictures of a file (CIPA DC-007, Multi-Picture Format) are found by offsets that its index holds: where the
packet changes its length, these are changed, too. Extended XMP and all other segments stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from idefics.batch.xmp_packet import trim_padding
from idefics.errors import BadPicture

NAME = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_NAME = b"Exif\0"
MPF_NAME = b"MPF\0"
MAX_PACKET_BYTES = 65_502  # in one segment (XMP Specification Part 3)

APP0, APP1, APP2, START_OF_SCAN = 0xE0, 0xE1, 0xE2, 0xDA
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # ITU-T T.81, table B.1: TEM, RST0 to RST7, SOI
_MP_ENTRY_TAG, _MP_ENTRY_BYTES = 0xB002, 16  # CIPA DC-007


class _Segment(NamedTuple):
    """A marker segment: its marker, and where it, its content and its end are."""

    marker: int
    start: int
    content: int
    end: int


def read_packet(data: bytes) -> bytes | None:
    """The XMP packet of a JPEG file, or None. Raises BadPicture if the file is broken before its pixels."""
    packets = _find_packets(data, list(_iterate_segments(data)))
    return data[packets[0].content + len(NAME) : packets[0].end] if packets else None


def write_packet(data: bytes, packet: bytes) -> bytes:
    """The JPEG file with this XMP packet, in the place of its own or after the segments JFIF and Exif.

    Raises:
        BadPicture: the file is broken before its pixels, has several packets, or the packet is too large.
    """
    segments = list(_iterate_segments(data))
    packets = _find_packets(data, segments)
    if len(packets) > 1:
        raise BadPicture(f"it has {len(packets)} XMP packets, and one is allowed: use --sidecar xmp")
    packet = trim_padding(packet, MAX_PACKET_BYTES)
    if len(packet) > MAX_PACKET_BYTES:
        raise BadPicture(
            f"with the text its XMP has {len(packet):,} bytes; a JPEG holds {MAX_PACKET_BYTES:,}: use --sidecar xmp"
        )
    if packets:
        start, end = packets[0].start, packets[0].end
    else:
        start = end = max((one.end for one in segments if _goes_before_xmp(data, one)), default=2)
    content = NAME + packet
    new = b"\xff" + bytes([APP1]) + (len(content) + 2).to_bytes(2) + content
    data = _shift_further_pictures(data, segments, start, len(new) - (end - start))
    return data[:start] + new + data[end:]


def _iterate_segments(data: bytes) -> Iterator[_Segment]:
    """The marker segments of a JPEG file that precede its pixels (ITU-T T.81, B.1.1)."""
    start = 2
    while True:
        position = start
        while data[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        head = data[position : position + 4]
        if len(head) < 4 or head[0] != 0xFF:
            raise BadPicture(f"broken JPEG: no marker at byte {position:,}")
        if head[1] == START_OF_SCAN:
            return
        if head[1] in _MARKERS_WITHOUT_LENGTH:
            start = position + 2
            continue
        end = position + 2 + int.from_bytes(head[2:])
        if end < position + 4 or end > len(data):
            raise BadPicture(f"broken JPEG: the segment at byte {position:,} does not end in the file")
        yield _Segment(head[1], start, position + 4, end)
        start = end


def _find_packets(data: bytes, segments: list[_Segment]) -> list[_Segment]:
    """The segments that hold an XMP packet."""
    return [one for one in segments if one.marker == APP1 and data.startswith(NAME, one.content, one.end)]


def _goes_before_xmp(data: bytes, segment: _Segment) -> bool:
    """Whether a segment is one of JFIF or Exif, which readers expect first."""
    is_exif = segment.marker == APP1 and data.startswith(EXIF_NAME, segment.content, segment.end)
    return segment.marker == APP0 or is_exif


def _shift_further_pictures(data: bytes, segments: list[_Segment], place: int, num_bytes: int) -> bytes:
    """The file with the index of its pictures changed for `num_bytes` more bytes at `place`, if it has an index.

    An entry has the attributes of a picture, its size, and its offset from the index's header; that of the first
    picture is 0.
    """
    for segment in segments:
        if segment.marker != APP2 or not data.startswith(MPF_NAME, segment.content, segment.end):
            continue
        header = segment.content + len(MPF_NAME)
        order = "<" if data.startswith(b"II", header) else ">"
        changed = bytearray(data)
        for entry in _iterate_mp_entries(data[: segment.end], header, order):
            size, offset = struct.unpack_from(f"{order}II", data, entry + 4)
            if offset == 0:
                size += num_bytes
            elif place > header:
                offset += num_bytes
            if min(size, offset) >= 0 and max(size, offset) < 2**32:
                struct.pack_into(f"{order}II", changed, entry + 4, size, offset)
        return bytes(changed)
    return data


def _iterate_mp_entries(data: bytes, header: int, order: str) -> Iterator[int]:
    """Where the entries of an index of pictures are; none where the index is broken.

    Args:
        data: the file up to the end of the index.
        header: where its header, that of a TIFF file, is.
        order: the byte order, as `struct` writes it.
    """
    try:
        directory = header + struct.unpack_from(f"{order}I", data, header + 4)[0]
        (num_fields,) = struct.unpack_from(f"{order}H", data, directory)
        for field in range(directory + 2, directory + 2 + 12 * num_fields, 12):
            tag, _, count, offset = struct.unpack_from(f"{order}HHII", data, field)
            if tag == _MP_ENTRY_TAG:
                last = min(header + offset + count, len(data)) - _MP_ENTRY_BYTES
                yield from range(header + offset, last + 1, _MP_ENTRY_BYTES)
    except struct.error:
        return
