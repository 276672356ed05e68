"""Pictures of every kind into frames for the vision tower.

Every resize is PIL's, on uint8, rounded between steps, as in the image processors that the checkpoints were
trained with. Knows pixels and plans; does not know tokens. Reads the network only through its fetcher.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL.Image

from idefics.config import ImagePlan
from idefics.errors import BadPicture
from idefics.messages import ImageDetail, Picture
from idefics.processing import strangers
from idefics.processing.fetch import Fetcher, is_remote, short
from idefics.processing.resize import STRIP, normalise, pixels_of, resize
from idefics.processing.sizes import grid, longest_edge, native_size, plan_for
from idefics.prompt import Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PIXELS = 178_956_970  # PIL's own limit against decompression bombs: half a gigabyte of RGB
# Photographs and drawings. PIL also opens page descriptions (EPS) by starting other programs: never here.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
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


def open_picture(picture: Picture, fetcher: Fetcher) -> PIL.Image.Image:
    """The picture as RGB, upright by its EXIF tag, transparency over white; the first frame of an animation.

    Args:
        picture: a path, bytes, a `PIL.Image`, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, an
            http(s) URL or a data URI.
        fetcher: gets what is remote, or refuses to; says what is a stranger's.

    Raises:
        BadPicture: no such file, not a picture, broken, not to be fetched, or larger than `MOST_PIXELS`; of a stranger:
            a path, another format than `strangers.FORMATS`, larger than `strangers.MOST_PIXELS`, or a file that takes
            more work than a picture should.
    """
    with _opened(picture.source, fetcher) as decode, fetcher.turns:
        return decode()


@contextmanager
def _opened(source: object, fetcher: Fetcher) -> Iterator[Callable[[], PIL.Image.Image]]:
    """What decodes a picture: all of it is here then, and its turn may be waited for."""
    distrusted = fetcher.distrusts(source)
    decode = _decode_strangers if distrusted else _decode
    most = strangers.MOST_PIXELS if distrusted else MOST_PIXELS
    match source:
        case PIL.Image.Image():
            yield partial(_upright_rgb, source, f"a PIL picture of mode {source.mode}", most)
        case np.ndarray():
            yield partial(_from_array, source, most)
        case bytes():
            yield partial(decode, io.BytesIO(source), f"a picture of {len(source)} bytes")
        case str() if is_remote(source):
            yield partial(decode, io.BytesIO(fetcher.get(source)), short(source))
        case str() | os.PathLike() if fetcher.strangers:
            raise BadPicture("a picture cannot be a path here: send an http(s) address, or a data URI")
        case str() | os.PathLike():
            name = short(str(source))
            with open_file(Path(source), name) as file:
                yield partial(decode, file, name)
        case _:
            raise BadPicture(
                f"a picture cannot be a {type(source).__name__}: give a path, bytes, a PIL picture, a uint8 array, "
                "an http(s) URL or a data URI"
            )


def open_file(path: Path, name: str) -> io.BufferedReader:
    """A plain file: a folder, pipe or device is refused, as reading it might never end."""
    try:
        if path.is_file():
            return path.open("rb")
        exists = path.exists()
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    raise BadPicture(
        f"{name} is not a file: folders and devices are not read" if exists else f"{name}: no such file"
    )


def _decode(file: BinaryIO, name: str) -> PIL.Image.Image:
    with _image(file, name, FORMATS, "JPEG, PNG, WebP, GIF, BMP or TIFF", MOST_PIXELS) as image:
        return _upright_rgb(image, name, MOST_PIXELS)


def _decode_strangers(file: BinaryIO, name: str) -> PIL.Image.Image:
    data, exif, most = file.read(), b"", strangers.MOST_PIXELS
    if data.startswith(b"\xff\xd8"):
        data, exif = strangers.bare_jpeg(data)
    sparing = strangers.Sparing(data)
    with _image(sparing, name, strangers.FORMATS, "JPEG, PNG, WebP, GIF or BMP", most) as image:
        return _upright_rgb(
            image, name, most, lambda: strangers.orientation(exif or image.info.get("exif", b""))
        )


def _image(file: BinaryIO, name: str, formats: tuple[str, ...], wanted: str, most: int) -> PIL.Image.Image:
    """A picture of which the header has been read."""
    try:
        with _quiet():
            return PIL.Image.open(file, formats=_readable(formats))
    except BadPicture:
        raise
    except PIL.Image.DecompressionBombError:
        raise BadPicture(f"{name} has more than {most:,} pixels: make it smaller") from None
    except Exception:  # plugins raise whatever they like about a file that is not theirs
        raise BadPicture(f"{name} is not a picture that can be read: give {wanted}") from None


_FILTERS = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PIL's warnings about odd files and about half of our limit; filters belong to the whole process."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=2)
def _readable(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those that this build of PIL reads."""
    PIL.Image.init()
    return tuple(name for name in formats if name in PIL.Image.OPEN)


def _upright_rgb(
    image: PIL.Image.Image, name: str, most: int, orientation: Callable[[], int] | None = None
) -> PIL.Image.Image:
    """Decoded, upright and RGB.

    Args:
        most: pixels; looked at before the first is decoded.
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
        upright = rgb(image)
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
        with _quiet():
            return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to refuse good pixels
        return None


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode to RGB; transparency over white.

    16-bit grey (0 to 65535) is scaled to 0 to 255; PIL itself would clip it at 255, a nearly white picture.
    """
    if image.mode.startswith("I"):
        flat = _from_wide_grey
    elif "A" in image.getbands() or image.info.get("transparency") is not None:
        flat = _over_white
    else:
        return image if image.mode == "RGB" else image.convert("RGB")
    whole = PIL.Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):  # what lies between takes many times the room of the picture
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        whole.paste(flat(strip), (0, top))
    return whole


def _over_white(strip: PIL.Image.Image) -> PIL.Image.Image:
    white = PIL.Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _from_wide_grey(strip: PIL.Image.Image) -> PIL.Image.Image:
    grey = (np.clip(np.asarray(strip, dtype=np.int64), 0, 65535) + 128) // 257
    return PIL.Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _from_array(array: NDArray[np.generic], most: int) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        raise BadPicture(f"a picture array of {array.dtype} is ambiguous: scale it to 0..255 and give uint8")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {3, 4}) or not array.size:
        raise BadPicture(
            f"a picture array has the shape {array.shape}; give (height, width) or (height, width, channels) "
            "with 1, 3 or 4 channels"
        )
    if array.shape[0] * array.shape[1] > most:
        raise BadPicture(f"a picture array of {array.shape} has more than {most:,} pixels: make it smaller")
    return rgb(PIL.Image.fromarray(np.ascontiguousarray(array)))


def prepared(picture: Picture, plan: ImagePlan, fetcher: Fetcher, look: ImageDetail) -> Tiles:
    """A picture opened and made ready; see `open_picture` and `prepare`.

    Args:
        look: how closely, where the picture itself does not say.
    """
    look = picture.look(look)
    with _opened(picture.source, fetcher) as decode, fetcher.turns:
        image = decode()
        return prepare(image, plan_for(*image.size, plan, look))


def prepare(image: PIL.Image.Image, plan: ImagePlan) -> Tiles:
    """An RGB picture into normalised frames (3, h, w), which lie one after another.

    The order of the steps is the released processors': resize and tile (or quarter and resize), rescale, normalise.
    """
    pixels = pixels_of(image)
    key = hashlib.sha256(f"{plan!r} {image.mode} {image.size} ".encode())
    key.update(pixels.data)
    parts, rows, columns = split(pixels, plan)
    sizes = [(3, *part.shape[:2]) for part in parts]
    ends = list(accumulate(map(math.prod, sizes)))
    values = np.empty(ends[-1], np.float32)
    frames = tuple(
        values[end - math.prod(size) : end].reshape(size) for size, end in zip(sizes, ends, strict=True)
    )
    for part, frame in zip(parts, frames, strict=True):
        normalise(part, plan, frame)
    return Tiles(frames, rows, columns, key.hexdigest())


def split(pixels: NDArray[np.uint8], plan: ImagePlan) -> tuple[list[NDArray[np.uint8]], int, int]:
    """(h, w, 3) -> the uint8 frames (h, w, 3), row by row, the whole picture last; rows and columns of the grid."""
    side = plan.side
    height, width = pixels.shape[:2]
    rows, columns = grid(width, height, plan)
    if plan.shortest is not None:
        parts = [*_quarters(pixels), pixels] if rows else [pixels]
        sizes = [native_size(part.shape[1], part.shape[0], plan) for part in parts]
        return (
            [resize(part, size, plan.resample) for part, size in zip(parts, sizes, strict=True)],
            rows,
            columns,
        )
    if plan.longest is not None:
        pixels = resize(pixels, longest_edge(width, height, plan.longest), plan.resample)
    if not rows:
        return [resize(pixels, (side, side), plan.resample)], 0, 0
    pixels = resize(pixels, (columns * side, rows * side), plan.resample)
    tiles = [
        pixels[side * row : side * (row + 1), side * column : side * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]
    return [*tiles, resize(pixels, (side, side), plan.resample)], rows, columns


def _quarters(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Row by row; the right and the lower ones are a pixel larger where the number is odd."""
    y, x = pixels.shape[0] // 2, pixels.shape[1] // 2
    return [pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:]]
