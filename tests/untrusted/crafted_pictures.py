"""Helpers: crafted picture files, as an attacker would write them."""

import io
import struct
import zlib

import PIL.Image

from processing.pictures_tiny import encode_picture, random_picture

SAVE_OPTIONS_BY_FORMAT = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}}


def encode_image(format, size=(37, 23), **options):
    return encode_picture(
        random_picture("RGB", size), format, **SAVE_OPTIONS_BY_FORMAT.get(format, {}), **options
    )


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming_size(width, height, *, depth=8, colour=2, rows=b""):
    """A PNG whose header has a given size; `rows` are its compressed pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    )


def gif_claiming_size(width, height, *, frame=None):
    """A GIF whose screen, or whose first frame, has a given size in its header."""
    left, top, wide, high = frame or (0, 0, width, height)
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", left, top, wide, high, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


def bmp_claiming_size(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 4, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + head + bytes(4)


def jpeg_claiming_size(width, height):
    """A JPEG of 8 x 8 pixels with another size in its header."""
    data = bytearray(encode_picture(PIL.Image.new("RGB", (8, 8)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming_size(width, height):
    """An animation with a large canvas and a frame of one pixel."""
    payload = encode_picture(PIL.Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(12) + b"\x10\0\0\0" + payload
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


FILE_CLAIMING_SIZE_BY_FORMAT = {
    "JPEG": jpeg_claiming_size,
    "PNG": png_claiming_size,
    "WEBP": webp_claiming_size,
    "GIF": gif_claiming_size,
    "BMP": bmp_claiming_size,
}


def make_exif_bomb(total, entries):
    """EXIF data of `total` bytes, all of whose entries point at the same nearly `total` bytes."""
    first = 8 + 2 + 12 * entries + 4
    listed = b"".join(struct.pack(">HHLL", 1000 + n, 7, total - first, first) for n in range(entries))
    return b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", entries) + listed + bytes(4 + total - first)


def jpeg_with_segments(data, segments, kind=0xE1):
    """A JPEG with more segments, inserted before all others."""
    segment_bytes = b"".join(struct.pack(">BBH", 0xFF, kind, len(each) + 2) + each for each in segments)
    return data[:2] + segment_bytes + data[2:]


def jpeg_with_scans(size, times):
    """A progressive JPEG whose last scan is repeated many times."""
    buffer = io.BytesIO()
    PIL.Image.new("L", size, 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * times + data[-2:]
