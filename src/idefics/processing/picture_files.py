"""Decodes picture files into upright RGB pixels; writes messages about formats that this installation does not read.

Independent of URLs and of how pictures are preprocessed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import PIL.features
import PIL.Image
import PIL.TiffImagePlugin

from idefics.errors import BadPicture
from idefics.formats import (
    IMAGE_FORMATS,
    SIGNATURE_BYTES,
    UNREADABLE_IMAGE_FORMATS,
    UNTRUSTED_IMAGE_FORMATS,
    MediaFormat,
    detect_image_format,
    detect_video_format,
    image_format_by_suffix,
    join_titles,
)
from idefics.processing import untrusted
from idefics.processing.multi_frame import (
    FORMATS_CHANGED_BY_COUNTING,
    SUBFILE_TYPE_TAG,
    describe_unread_frames,
)
from idefics.processing.to_rgb import to_rgb
from idefics.processing.warning_filters import suppress_warnings

# Features that a build of Pillow may lack.
PILLOW_FEATURE_BY_FORMAT = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
DNG_VERSION_TAG = 50706  # TIFF tag
EXIF_ORIENTATION_TAG = 0x0112
# The transposition that makes a picture with each orientation upright (EXIF 2.32, 4.6.4).
TRANSPOSE_BY_ORIENTATION = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class OpenedImage(NamedTuple):
    """A picture whose pixels are decoded.

    Attributes:
        image: RGB and upright.
        note: what was not read of its file, in one sentence; empty where all was.
    """

    image: PIL.Image.Image
    note: str = ""


@lru_cache(maxsize=1)
def readable_formats() -> tuple[MediaFormat, ...]:
    """The formats of `IMAGE_FORMATS` that this installation reads, by Pillow and, if it is installed, pillow_heif."""
    PIL.Image.init()
    missing = {one for one, feature in PILLOW_FEATURE_BY_FORMAT.items() if not PIL.features.check(feature)}
    return tuple(
        one
        for one in IMAGE_FORMATS
        if (one.pillow_format == "HEIF" and find_spec("pillow_heif") is not None)
        or (one.pillow_format in PIL.Image.OPEN and one.pillow_format not in missing)
    )


def open_regular_file(path: Path, name: str) -> io.BufferedReader:
    """Opens a regular file. Folders, pipes and devices are refused, as reading them might never end.

    Args:
        name: of the file, for messages.

    Raises:
        BadPicture: there is no such file, it cannot be read, or it is not a regular file.
    """
    try:
        if path.is_file():
            return path.open("rb")
        exists = path.exists()
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    raise BadPicture(
        f"{name} is not a file: folders and devices are not read"
        if name and exists
        else missing_file_message(name)
    )


def missing_file_message(name: str) -> str:
    """The message about a path that does not exist; it has a hint if the path is a URL or begins with "~"."""
    scheme, separator, rest = name.partition("://")
    if separator and scheme.lower() == "file":
        return f"{name} is a URL, and only http(s) ones are read: give the path, {rest}"
    if separator and scheme.replace("+", "").isalnum():
        return f"{name} is a URL, and only http(s) ones are read: download it first"
    if name.startswith("~"):
        return f"{name}: no such file; ~ is known to shells only: give the whole path"
    return f"{name or 'an empty name'}: no such file"


def read_file_head(path: str | os.PathLike[str]) -> bytes:
    """The first `SIGNATURE_BYTES` bytes of a file, which identify its format. Raises OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return file.read(SIGNATURE_BYTES)


def decode_trusted(file: BinaryIO, name: str, max_pixels: int, min_side: int = 0) -> OpenedImage:
    """Decodes a picture file of a trusted sender, in any format that this installation reads.

    With a `min_side` above 0, a JPEG is decoded at 1/8, 1/4 or 1/2 of its size if each side keeps that many pixels.

    Raises:
        BadPicture: it is empty, of another format, broken, or has more than `max_pixels` pixels.
    """
    with open_trusted(file, name, max_pixels) as image:
        if min_side:
            image.draft(None, (min_side, min_side))
        return _load_with_note(image, name, max_pixels)


def open_trusted(file: BinaryIO, name: str, max_pixels: int) -> PIL.Image.Image:
    """Opens a picture file of a trusted sender without decoding its pixels.

    Raises:
        BadPicture: it is empty, of a format that is not read, broken, or a TIFF whose first page is a preview.
    """
    head = file.read(SIGNATURE_BYTES)
    file.seek(0)
    image = open_header(file, head, name, readable_formats(), max_pixels)
    tags = image.tag_v2 if isinstance(image, PIL.TiffImagePlugin.TiffImageFile) else {}
    if DNG_VERSION_TAG in tags or tags.get(SUBFILE_TYPE_TAG, 0) & 1:
        raise BadPicture(
            f"{name} is a TIFF that begins with a preview, as camera RAW files do: convert it to JPEG"
        )
    return image


def decode_untrusted(file: BinaryIO, name: str, max_pixels: int) -> OpenedImage:
    """Decodes a picture file of an untrusted sender; arguments and errors as of `decode_trusted`.

    Fewer formats are read, the work is bounded, and no metadata is read but the orientation.
    """
    data, exif = file.read(), b""
    head = data[:SIGNATURE_BYTES]
    if data.startswith(b"\xff\xd8"):
        data, exif = untrusted.strip_jpeg_metadata(data)
    with open_header(
        untrusted.ReadLimitedFile(data), head, name, UNTRUSTED_IMAGE_FORMATS, max_pixels
    ) as image:
        return _load_with_note(
            image,
            name,
            max_pixels,
            lambda: untrusted.read_exif_orientation(exif or image.info.get("exif", b"")),
        )


def _load_with_note(
    image: PIL.Image.Image, name: str, max_pixels: int, read_orientation: Callable[[], int] | None = None
) -> OpenedImage:
    """Decodes an opened picture, as `load_upright_rgb`; the result has a note on what was not read of the file."""
    upright = load_upright_rgb(image, name, max_pixels, read_orientation)
    if upright is image and image.format in FORMATS_CHANGED_BY_COUNTING:
        upright = image.copy()
    with suppress_warnings():
        return OpenedImage(upright, describe_unread_frames(image, name))


def open_header(
    file: BinaryIO, head: bytes, name: str, formats: tuple[MediaFormat, ...], max_pixels: int
) -> PIL.Image.Image:
    """Opens a picture without decoding its pixels.

    Args:
        head: the file's first bytes.
        formats: the formats that are read; decoders of other formats are not tried.
    """
    if not head:
        raise BadPicture(f"{name} is empty (0 bytes)")
    image_format = detect_image_format(head)
    if (
        image_format is not None
        and image_format.pillow_format == "TIFF"
        and image_format_by_suffix(name) in UNREADABLE_IMAGE_FORMATS
    ):
        image_format = image_format_by_suffix(name)  # camera RAW, of which Pillow would read the preview
    if image_format is not None and image_format not in formats:
        raise BadPicture(_unreadable_format_message(name, image_format, formats))
    try:
        with suppress_warnings():
            if image_format is not None and image_format.pillow_format == "HEIF":
                from pillow_heif import HeifImageFile

                return HeifImageFile(file)
            names = [
                one.pillow_format
                for one in formats
                if one in readable_formats() and one.pillow_format != "HEIF"
            ]
            return PIL.Image.open(file, formats=names)
    except BadPicture:
        raise
    except PIL.Image.DecompressionBombError:
        raise BadPicture(f"{name} has more than {max_pixels:,} pixels: make it smaller") from None
    except Exception:  # decoders raise any error about an invalid file
        if image_format is not None:
            raise BadPicture(
                f"{name} is broken: it begins like {image_format.title} but cannot be read"
            ) from None
        if video := detect_video_format(head):
            way = (
                "send its frames as pictures" if formats is UNTRUSTED_IMAGE_FORMATS else "give it as a Video"
            )
            raise BadPicture(f"{name} is a video ({video.title}) and no picture: {way}") from None
        raise BadPicture(f"{name} is not a picture that can be read: give {join_titles(formats)}") from None


def _unreadable_format_message(name: str, image_format: MediaFormat, formats: tuple[MediaFormat, ...]) -> str:
    """The message about a file whose format is known but not read here: what to install, or which formats are read."""
    if formats is UNTRUSTED_IMAGE_FORMATS:
        return f"{name} is {image_format.title}, which is not read here: give {join_titles(formats)}"
    if image_format.extra:
        return f"{name} is {image_format.title}: pip install 'idefics[{image_format.extra}]', or convert it to JPEG"
    by = " by this installation of Pillow" if image_format.pillow_format else ""
    return f"{name} is {image_format.title}, which is not read{by}: convert it to JPEG"


def check_num_pixels(image: PIL.Image.Image, name: str, max_pixels: int) -> None:
    """Raises BadPicture if a picture has no pixels, or more than `max_pixels`, by its header."""
    if image.width * image.height > max_pixels:
        raise BadPicture(
            f"{name} has {image.width} x {image.height} pixels; at most {max_pixels:,} are read: make it smaller"
        )
    if not image.width * image.height:
        raise BadPicture(f"{name} is empty: {image.width} x {image.height} pixels")


def load_upright_rgb(
    image: PIL.Image.Image, name: str, max_pixels: int, read_orientation: Callable[[], int] | None = None
) -> PIL.Image.Image:
    """Decodes a picture and returns it as RGB, upright.

    Args:
        name: of the picture, for messages.
        max_pixels: limit on width x height of the header, checked before any pixel is decoded.
        read_orientation: returns the EXIF orientation once the picture is decoded; None: Pillow reads it.

    Raises:
        BadPicture: it is too large, empty or broken, or its values cannot become RGB.
    """
    check_num_pixels(image, name, max_pixels)
    try:
        image.load()  # before the EXIF tag is read, which may follow a PNG's pixels; Pillow applies a TIFF's itself
        upright = to_rgb(image, name)
    except BadPicture:
        raise
    except Exception:
        raise BadPicture(f"{name} is broken: its pixels cannot be read to the end") from None
    transpose = orientation_transpose(image, read_orientation)
    return upright if transpose is None else upright.transpose(transpose)


def orientation_transpose(
    image: PIL.Image.Image, read_orientation: Callable[[], int] | None
) -> PIL.Image.Transpose | None:
    """The transposition that makes a picture upright by its EXIF tag; None if it is upright or has no valid tag."""
    try:
        if read_orientation is not None:
            return TRANSPOSE_BY_ORIENTATION.get(read_orientation())
        with suppress_warnings():
            return TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(EXIF_ORIENTATION_TAG, 1))
    except Exception:  # a broken tag does not make the pixels unreadable
        return None
