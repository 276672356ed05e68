"""The XMP packet of a WebP file: its chunk "XMP " (RFC 9649, 2.7.1.5), which the flags in the chunk VP8X announce."""

from __future__ import annotations

from typing import NamedTuple

from idefics.errors import BadPicture

HEAD_LENGTH = 12  # "RIFF", the size of all that follows, "WEBP"
XMP_FLAG, ALPHA_FLAG = 0x04, 0x10  # RFC 9649, figure 7
MAX_FILE_BYTES = 2**32 - 10  # RFC 9649, 2.4: at most 2**32 - 10 bytes follow the size


class _RiffChunk(NamedTuple):
    """A chunk: its type, where it and its data are, and where the next one begins, after padding to an even length."""

    type: bytes
    start: int
    content: int
    content_end: int
    end: int


def read_packet(data: bytes) -> bytes | None:
    """The XMP packet of a WebP file, or None. Raises BadPicture if the file is broken."""
    return next(
        (data[one.content : one.content_end] for one in _read_chunks(data) if one.type == b"XMP "), None
    )


def write_packet(data: bytes, packet: bytes) -> bytes:
    """The WebP file with this XMP packet, in the place of its own or as the last chunk.

    Raises:
        BadPicture: the file is broken, has several packets, or would be too large.
    """
    chunks = _read_chunks(data)
    if sum(one.type == b"XMP " for one in chunks) > 1:
        raise BadPicture("it has several XMP packets, and one is allowed: use --sidecar xmp")
    new = _write_chunk(b"XMP ", packet)
    parts = [] if chunks[0].type == b"VP8X" else [_describe_simple_file(data, chunks[0])]
    for chunk in chunks:
        if chunk.type == b"VP8X":
            flags = data[chunk.content] | XMP_FLAG
            parts.append(
                data[chunk.start : chunk.content] + bytes([flags]) + data[chunk.content + 1 : chunk.end]
            )
        else:
            parts.append(new if chunk.type == b"XMP " else data[chunk.start : chunk.end])
    if len(data[: chunks[-1].end]) % 2:  # the file lacks the last byte of padding
        parts.append(b"\0")
    if all(chunk.type != b"XMP " for chunk in chunks):
        parts.append(new)
    body = b"WEBP" + b"".join(parts)
    if len(body) > MAX_FILE_BYTES:
        raise BadPicture(f"with the text it has {len(body):,} bytes; a WebP file holds {MAX_FILE_BYTES:,}")
    return b"RIFF" + len(body).to_bytes(4, "little") + body + data[chunks[-1].end :]


def _read_chunks(data: bytes) -> list[_RiffChunk]:
    """The chunks of a WebP file (RFC 9649, 2.3), of which there is one at least."""
    chunks: list[_RiffChunk] = []
    file_end = 8 + int.from_bytes(data[4:8], "little")
    if file_end > len(data):
        raise BadPicture(f"broken WebP: it has {len(data):,} of {file_end:,} bytes")
    start = HEAD_LENGTH
    while start < file_end:
        content = start + 8
        content_end = content + int.from_bytes(data[start + 4 : content], "little")
        if content_end > file_end:
            raise BadPicture(f"broken WebP: the chunk at byte {start:,} does not end in the file")
        end = min(content_end + content_end % 2, file_end)
        chunks.append(_RiffChunk(data[start : start + 4], start, content, content_end, end))
        start = end
    if not chunks:
        raise BadPicture("broken WebP: it has no chunks")
    return chunks


def _write_chunk(type: bytes, content: bytes) -> bytes:
    """A chunk, padded to an even length."""
    return type + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def _describe_simple_file(data: bytes, chunk: _RiffChunk) -> bytes:
    """The chunk VP8X for a file that begins with its pixels: width, height and whether it has transparency.

    Both are in the beginning of the pixels' chunk: RFC 6386, 9.1 (VP8) and RFC 9649, 3.4 (VP8L).
    """
    head = data[chunk.content : chunk.content_end][:10]
    if chunk.type == b"VP8 " and head[3:6] == b"\x9d\x01\x2a" and len(head) == 10:
        width = int.from_bytes(head[6:8], "little") & 0x3FFF
        height = int.from_bytes(head[8:10], "little") & 0x3FFF
        flags = XMP_FLAG
    elif chunk.type == b"VP8L" and head[:1] == b"\x2f" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = XMP_FLAG | (ALPHA_FLAG if bits >> 28 & 1 else 0)
    else:
        raise BadPicture("broken WebP: its pixels have no header")
    if not width or not height:
        raise BadPicture(f"broken WebP: it has {width} x {height} pixels")
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _write_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)
