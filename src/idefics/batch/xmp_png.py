"""The XMP packet of a PNG file: an iTXt chunk with the keyword "XML:com.adobe.xmp" (XMP Specification Part 3)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from idefics.batch.xmp_packet import MAX_PACKET_BYTES
from idefics.errors import BadPicture

SIGNATURE_LENGTH = 8
KEYWORD = b"XML:com.adobe.xmp\0"
_UNCOMPRESSED_HEAD = KEYWORD + b"\0\0\0\0"  # not compressed, method 0, no language, no translated keyword


class _PngChunk(NamedTuple):
    """A chunk: its type, and where it and its end are; length and type are before its data, a CRC is after it."""

    type: bytes
    start: int
    end: int

    def data(self, file: bytes) -> bytes:
        """The chunk's data."""
        return file[self.start + 8 : self.end - 4]


def read_packet(data: bytes) -> bytes | None:
    """The XMP packet of a PNG file, or None. Raises BadPicture if the file or the packet is broken."""
    packets = [chunk for chunk in _iterate_chunks(data) if _is_packet(data, chunk)]
    return _read_text(data, packets[0]) if packets else None


def write_packet(data: bytes, packet: bytes) -> bytes:
    """The PNG file with this XMP packet, in the place of its own or after the header.

    Raises:
        BadPicture: the file is broken or has several packets.
    """
    header, *others = _iterate_chunks(data)
    packets = [chunk for chunk in others if _is_packet(data, chunk)]
    if len(packets) > 1:
        raise BadPicture(f"it has {len(packets)} XMP packets, and one is allowed: use --sidecar xmp")
    start, end = (packets[0].start, packets[0].end) if packets else (header.end, header.end)
    body = b"iTXt" + _UNCOMPRESSED_HEAD + packet
    new = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return data[:start] + new + data[end:]


def _iterate_chunks(data: bytes) -> Iterator[_PngChunk]:
    """The chunks of a PNG file, from IHDR to IEND (PNG Specification, third edition, 5.3)."""
    start, type = SIGNATURE_LENGTH, b""
    while type != b"IEND":
        type = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if end > len(data):
            raise BadPicture(f"broken PNG: the chunk at byte {start:,} does not end in the file")
        if start == SIGNATURE_LENGTH and type != b"IHDR":
            raise BadPicture("broken PNG: it does not begin with the chunk IHDR")
        yield _PngChunk(type, start, end)
        start = end


def _is_packet(data: bytes, chunk: _PngChunk) -> bool:
    """Whether a chunk holds an XMP packet."""
    return chunk.type == b"iTXt" and data.startswith(KEYWORD, chunk.start + 8, chunk.end - 4)


def _read_text(data: bytes, chunk: _PngChunk) -> bytes:
    """The text of an iTXt chunk (PNG Specification, third edition, 11.3.3.4)."""
    if zlib.crc32(data[chunk.start + 4 : chunk.end - 4]) != int.from_bytes(data[chunk.end - 4 : chunk.end]):
        raise BadPicture("broken PNG: the checksum of its XMP is wrong")
    flags, rest = chunk.data(data)[len(KEYWORD) :][:2], chunk.data(data)[len(KEYWORD) + 2 :]
    try:
        _, _, text = rest.split(b"\0", 2)  # after the language and the translated keyword
        if flags == b"\1\0":
            return zlib.decompressobj().decompress(text, MAX_PACKET_BYTES + 1)
    except (ValueError, zlib.error):
        raise BadPicture("broken PNG: the text of its XMP cannot be read") from None
    return text
