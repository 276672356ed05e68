"""The description of a picture (`dc:description`) in its own XMP: read, and written without a change to any pixel.

Programs that show or search pictures read it. JPEG, PNG and WebP files can be written; only the XMP packet changes, and
the sizes and checksums that depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from idefics.batch import xmp_jpeg, xmp_png, xmp_webp
from idefics.batch.file_replacement import PreparedFile, prepare_file
from idefics.batch.xmp_packet import read_packet_description, set_packet_description
from idefics.errors import BadPicture
from idefics.formats import SIGNATURE_BYTES, detect_image_format


class _Container(NamedTuple):
    """How the XMP packet of a file format is read, and written into the bytes of a file."""

    read_packet: Callable[[bytes], bytes | None]
    write_packet: Callable[[bytes, bytes], bytes]


_CONTAINER_BY_TITLE = {
    "JPEG": _Container(xmp_jpeg.read_packet, xmp_jpeg.write_packet),
    "PNG": _Container(xmp_png.read_packet, xmp_png.write_packet),
    "WebP": _Container(xmp_webp.read_packet, xmp_webp.write_packet),
}


def read_description(path: Path) -> str | None:
    """The description in a picture file's XMP; None if it has none, or white space alone.

    Raises:
        BadPicture: there is no such file, it is broken, or of another format than JPEG, PNG and WebP.
    """
    data, _ = _read_file(path)
    try:
        return extract_description(data)
    except BadPicture as error:
        raise BadPicture(f"{path}: {error}") from None


def extract_description(data: bytes) -> str | None:
    """The description in the XMP of a picture file with these bytes; `read_description` has the same errors."""
    text = read_packet_description(_find_container(data).read_packet(data))
    return text if text and text.strip() else None


def embed_description(data: bytes, text: str) -> bytes:
    """The bytes of a picture file with the text as the description in its XMP.

    Descriptions in named languages, all other properties and all other metadata stay as they are.

    Args:
        data: the bytes of a JPEG, PNG or WebP file.
        text: the text; characters that XML lacks are left out.

    Raises:
        BadPicture: the file is broken, of another format, or its XMP cannot be read or has no room for the text.
    """
    container = _find_container(data)
    return container.write_packet(data, set_packet_description(container.read_packet(data), text))


def prepare_description(
    path: Path, text: str, *, size: int | None = None, mtime_ns: int | None = None
) -> PreparedFile:
    """Writes a copy of a picture with the text as its description to a temporary file in the same folder.

    The copy has the times, permissions and, where this process may set it, the owner of the original, which its
    `commit` replaces. Where the path is a symbolic link, the file that it leads to is replaced, not the link.

    Args:
        path: the picture.
        text: the description.
        size: bytes that the file had when it was read for the text; default: not compared.
        mtime_ns: time of its last change then, in nanoseconds; default: not compared.

    Raises:
        BadPicture: the file has changed since then, cannot be read, is broken or of another format.
        OutputError: the temporary file cannot be written.
    """
    data, status = _read_file(path)
    if size not in (None, status.st_size) or mtime_ns not in (None, status.st_mtime_ns):
        raise BadPicture(f"{path} has changed since it was read: run again")
    try:
        new = embed_description(data, text)
    except BadPicture as error:
        raise BadPicture(f"{path}: {error}") from None
    return prepare_file(path, new, original=status, keeps_times=True)


def _read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """The content of a picture file, and its state before it was read."""
    from idefics.processing.picture_files import open_regular_file

    with open_regular_file(path, str(path)) as file:
        try:
            status = os.fstat(file.fileno())
            return file.read(), status
        except OSError as error:
            raise BadPicture(f"{path} cannot be read: {error.strerror}") from None


def _find_container(data: bytes) -> _Container:
    """The container format of a picture file."""
    if not data:
        raise BadPicture("the file is empty (0 bytes)")
    image_format = detect_image_format(data[:SIGNATURE_BYTES])
    if image_format is None:
        raise BadPicture("the file is no picture: JPEG, PNG and WebP can hold a description")
    if image_format.title not in _CONTAINER_BY_TITLE:
        raise BadPicture(
            f"descriptions are read and written in JPEG, PNG and WebP, not in {image_format.title}: "
            "use --sidecar xmp"
        )
    return _CONTAINER_BY_TITLE[image_format.title]
