"""Picture files into pixels: which formats this installation reads, and what is said of the others.

Knows files and Pillow's decoders; does not know plans, frames or addresses.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import PIL.features
import PIL.Image
import PIL.TiffImagePlugin

from idefics.errors import BadPicture
from idefics.formats import (
    HEAD_BYTES,
    IMAGE_FORMATS,
    OTHER_FORMATS,
    UNTRUSTED_FORMATS,
    ImageFormat,
    format_named,
    recognised,
    recognised_video,
    titles,
)
from idefics.processing import strangers
from idefics.processing.multi_frame import SHARED, SUBFILE_TYPE, unread_note
from idefics.processing.to_rgb import rgb

if TYPE_CHECKING:
    import os

PILLOW_FEATURES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # builds of Pillow may lack them
DNG_VERSION = 50706  # TIFF tag
ORIENTATION = 0x0112  # the EXIF tag, and what turns each of its values upright (EXIF 2.32, 4.6.4)
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


@lru_cache(maxsize=1)
def readable_formats() -> tuple[ImageFormat, ...]:
    """The formats of the table that this installation reads."""
    PIL.Image.init()
    supported = {*PIL.features.get_supported(), None}
    return tuple(
        one
        for one in IMAGE_FORMATS
        if (one.pillow == "HEIF" and find_spec("pillow_heif") is not None)
        or (one.pillow in PIL.Image.OPEN and PILLOW_FEATURES.get(one.pillow) in supported)
    )


def way_out(one: ImageFormat) -> str:
    """What can be done about a file of a format that is not read."""
    return f"pip install 'idefics[{one.extra}]', or convert it to JPEG" if one.extra else "convert it to JPEG"


def open_file(path: Path, name: str) -> io.BufferedReader:
    """A plain file: a folder, pipe or device is refused, as reading it might never end."""
    try:
        if path.is_file():
            return path.open("rb")
        exists = path.exists()
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    raise BadPicture(
        f"{name} is not a file: folders and devices are not read" if name and exists else no_such_file(name)
    )


def no_such_file(name: str) -> str:
    """What is said of a path that leads nowhere, with the way out where it is none that a program can open."""
    scheme, separator, rest = name.partition("://")
    if separator and scheme.lower() == "file":
        return f"{name} is an address, and only http(s) ones are read: give the path, {rest}"
    if separator and scheme.replace("+", "").isalnum():
        return f"{name} is an address, and only http(s) ones are read: download it first"
    if name.startswith("~"):
        return f"{name}: no such file; ~ is known to shells only: give the whole path"
    return f"{name or 'an empty name'}: no such file"


def head_of(path: str | os.PathLike[str]) -> bytes:
    """The beginning of a file, by which it is recognised. OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return file.read(HEAD_BYTES)


def decode(file: BinaryIO, name: str, most: int) -> tuple[PIL.Image.Image, str]:
    """A picture file of the owner as RGB, upright by its EXIF tag; `most` bounds its pixels.

    Returns:
        The picture, and what is said of those that the file holds besides: see `unread_note`.

    Raises:
        BadPicture: it is empty, of another format, broken or too large.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    with _header(file, head, name, readable_formats(), most) as image:
        if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
            tags = image.tag_v2
            if DNG_VERSION in tags or tags.get(SUBFILE_TYPE, 0) & 1:
                raise BadPicture(
                    f"{name} is a TIFF that begins with a preview, as camera RAW files do: convert it to JPEG"
                )
        upright = upright_rgb(image, name, most)
        if upright is image and image.format in SHARED:
            upright = image.copy()
        with quiet():
            return upright, unread_note(image, name)


def decode_untrusted(file: BinaryIO, name: str, most: int) -> tuple[PIL.Image.Image, str]:
    """The same for a file of an untrusted sender, in the few formats that are read from one."""
    data, exif = file.read(), b""
    head = data[:HEAD_BYTES]
    if data.startswith(b"\xff\xd8"):
        data, exif = strangers.bare_jpeg(data)
    with _header(strangers.Sparing(data), head, name, UNTRUSTED_FORMATS, most) as image:
        upright = upright_rgb(
            image, name, most, lambda: strangers.orientation(exif or image.info.get("exif", b""))
        )
        with quiet():
            return upright, unread_note(image, name)


def _header(
    file: BinaryIO, head: bytes, name: str, formats: tuple[ImageFormat, ...], most: int
) -> PIL.Image.Image:
    """A picture of which the header has been read, and no pixel.

    Args:
        head: the file's first bytes.
        formats: those that are read; no other decoder sees the file.
    """
    if not head:
        raise BadPicture(f"{name} is empty (0 bytes)")
    kind = recognised(head)
    if kind is not None and kind.pillow == "TIFF" and format_named(name) in OTHER_FORMATS:
        kind = format_named(name)  # camera RAW, of which PIL would read the preview
    if kind is not None and kind not in formats:
        raise BadPicture(_refusal(name, kind, formats))
    try:
        with quiet():
            if kind is not None and kind.pillow == "HEIF":
                from pillow_heif import HeifImageFile

                return HeifImageFile(file)
            names = [one.pillow for one in formats if one in readable_formats() and one.pillow != "HEIF"]
            return PIL.Image.open(file, formats=names)
    except BadPicture:
        raise
    except PIL.Image.DecompressionBombError:
        raise BadPicture(f"{name} has more than {most:,} pixels: make it smaller") from None
    except Exception:  # decoders raise whatever they like about a file that is not theirs
        if kind is not None:
            raise BadPicture(f"{name} is broken: it begins like {kind.title} but cannot be read") from None
        if video := recognised_video(head):
            way = "send its frames as pictures" if formats is UNTRUSTED_FORMATS else "give it as a Video"
            raise BadPicture(f"{name} is a video ({video.title}) and no picture: {way}") from None
        raise BadPicture(f"{name} is not a picture that can be read: give {titles(formats)}") from None


def _refusal(name: str, kind: ImageFormat, formats: tuple[ImageFormat, ...]) -> str:
    """About a file of a format that is not among those that are read."""
    if formats is UNTRUSTED_FORMATS:
        return f"{name} is {kind.title}, which is not read here: give {titles(formats)}"
    if kind.extra:
        return f"{name} is {kind.title}: {way_out(kind)}"
    by = " by this installation of Pillow" if kind.pillow else ""
    return f"{name} is {kind.title}, which is not read{by}: {way_out(kind)}"


_FILTERS = threading.Lock()
if (
    sys.platform != "win32"
):  # a process is forked while nobody holds it: its holder would not be there to let go
    os.register_at_fork(
        before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without PIL's warnings about odd files and about half of our limit; filters belong to the whole process."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def unfiltered() -> Iterator[None]:
    """Holds the lock of `quiet`, within which warnings of every thread are dropped."""
    with _FILTERS:
        yield


def upright_rgb(
    image: PIL.Image.Image, name: str, most: int, orientation: Callable[[], int] | None = None
) -> PIL.Image.Image:
    """Decoded, upright and RGB.

    Args:
        most: pixels; compared with the header's before the first is decoded.
        orientation: what the tag says, once the picture is decoded; None: as PIL reads it.
    """
    if image.width * image.height > most:
        raise BadPicture(
            f"{name} has {image.width} x {image.height} pixels; at most {most:,} are read: make it smaller"
        )
    if not image.width * image.height:
        raise BadPicture(f"{name} is empty: {image.width} x {image.height} pixels")
    try:
        image.load()  # before its tag is read: PNG may hold it behind the pixels, PIL obeys TIFF's by itself
        upright = rgb(image, name)
    except BadPicture:
        raise
    except Exception:
        raise BadPicture(f"{name} is broken: its pixels cannot be read to the end") from None
    turn = _turn(image, orientation)
    return upright if turn is None else upright.transpose(turn)


def _turn(image: PIL.Image.Image, orientation: Callable[[], int] | None) -> PIL.Image.Transpose | None:
    try:
        if orientation is not None:
            return UPRIGHT.get(orientation())
        with quiet():
            return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to refuse good pixels
        return None
