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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL.Image

from idefics.config import ImagePlan
from idefics.errors import BadPicture
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher, is_remote, short
from idefics.prompt import Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PIXELS = 178_956_970  # PIL's own limit against decompression bombs: half a gigabyte of RGB
LONGEST_EDGE = 4096  # Idefics 3's processor never resizes to more than this
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
        fetcher: gets what is remote, or refuses to.

    Raises:
        BadPicture: no such file, not a picture, broken, larger than `MOST_PIXELS`, or not to be fetched.
    """
    source = picture.source
    match source:
        case PIL.Image.Image():
            return _upright_rgb(source, f"a PIL picture of mode {source.mode}")
        case np.ndarray():
            return rgb(_from_array(source))
        case bytes():
            return _decode(io.BytesIO(source), f"a picture of {len(source)} bytes")
        case str() if is_remote(source):
            return _decode(io.BytesIO(fetcher.get(source)), short(source))
        case str() | os.PathLike():
            path = Path(source)
            with open_file(path, short(str(path))) as file:
                return _decode(file, short(str(path)))
    raise BadPicture(
        f"a picture cannot be a {type(source).__name__}: give a path, bytes, a PIL picture, a uint8 array, "
        "an http(s) URL or a data URI"
    )


def open_file(path: Path, name: str) -> BinaryIO:
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
    try:
        with _quiet():
            image = PIL.Image.open(file, formats=_formats())
    except PIL.Image.DecompressionBombError:
        raise BadPicture(f"{name} has more than {MOST_PIXELS:,} pixels: make it smaller") from None
    except Exception:  # plugins raise whatever they like about a file that is not theirs
        raise BadPicture(
            f"{name} is not a picture that can be read: give JPEG, PNG, WebP, GIF, BMP or TIFF"
        ) from None
    with image:
        return _upright_rgb(image, name)


_FILTERS = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PIL's warnings about odd files and about half of our limit; filters belong to the whole process."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of PIL reads."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _upright_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise BadPicture(
            f"{name} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read: "
            "make it smaller"
        )
    if not image.width * image.height:
        raise BadPicture(f"{name} is empty: {image.width} x {image.height} pixels")
    try:
        image.load()  # before its tag is read: PNG may hold it behind the pixels, PIL obeys TIFF's by itself
        upright = rgb(image)
    except Exception:
        raise BadPicture(f"{name} is broken: its pixels cannot be read to the end") from None
    turn = _turn(image)
    return upright if turn is None else upright.transpose(turn)


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    try:
        with _quiet():
            return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to refuse good pixels
        return None


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode to RGB; transparency over white.

    16-bit grey (0 to 65535) is scaled to 0 to 255; PIL itself would clip it at 255, a nearly white picture.
    """
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return PIL.Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: NDArray[np.generic]) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        raise BadPicture(f"a picture array of {array.dtype} is ambiguous: scale it to 0..255 and give uint8")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {3, 4}) or not array.size:
        raise BadPicture(
            f"a picture array has the shape {array.shape}; give (height, width) or (height, width, channels) "
            "with 1, 3 or 4 channels"
        )
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise BadPicture(
            f"a picture array of {array.shape} has more than {MOST_PIXELS:,} pixels: make it smaller"
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def prepare(image: PIL.Image.Image, plan: ImagePlan) -> Tiles:
    """An RGB picture into normalised frames (3, h, w).

    The order of the steps is the released processors': resize and tile (or quarter and resize), rescale, normalise.
    """
    key = hashlib.sha256(f"{image.mode} {image.size} {plan!r} ".encode())
    key.update(image.tobytes())
    frames, rows, columns = split(image, plan)
    return Tiles(tuple(_normalise(frame, plan) for frame in frames), rows, columns, key.hexdigest())


def split(image: PIL.Image.Image, plan: ImagePlan) -> tuple[list[NDArray[np.uint8]], int, int]:
    """The uint8 frames (h, w, 3), row by row, the whole picture last; rows and columns of the grid."""
    resample, side = PIL.Image.Resampling[plan.resample.upper()], plan.side
    rows, columns = grid(*image.size, plan)
    if plan.shortest is not None:
        parts = [*_quarters(image), image] if rows else [image]
        resized = (part.resize(native_size(*part.size, plan), resample) for part in parts)
        return [np.asarray(part) for part in resized], rows, columns
    if plan.longest is not None:
        image = image.resize(longest_edge(*image.size, plan.longest), resample)
    if not rows:
        return [np.asarray(image.resize((side, side), resample))], 0, 0
    image = image.resize((columns * side, rows * side), resample)
    tiles = np.asarray(image).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    frames = list(tiles.reshape(rows * columns, side, side, 3))
    return [*frames, np.asarray(image.resize((side, side), resample))], rows, columns


def grid(width: int, height: int, plan: ImagePlan) -> tuple[int, int]:
    """Rows and columns of tiles; (0, 0) where the picture stays whole: it fits one tile or is not split."""
    if plan.longest is None or not plan.splitting:
        return 0, 0
    if plan.shortest is not None:
        return (2, 2) if min(width, height) > 1 else (0, 0)  # a line of pixels has no quarters
    width, height = tile_multiple(*longest_edge(width, height, plan.longest), plan.side)
    rows, columns = height // plan.side, width // plan.side
    return (rows, columns) if rows * columns > 1 else (0, 0)


def _quarters(image: PIL.Image.Image) -> list[PIL.Image.Image]:
    """Row by row; the right and the lower ones are a pixel larger where the number is odd."""
    (width, height), x, y = image.size, image.width // 2, image.height // 2
    boxes = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    return [image.crop(box) for box in boxes]


def native_size(width: int, height: int, plan: ImagePlan) -> tuple[int, int]:
    """(width, height) of a frame of its own size: `longest` bounds it, then each edge is at least `shortest`."""
    assert plan.longest is not None
    assert plan.shortest is not None
    aspect = width / height
    if width >= height and width > plan.longest:
        width, height = plan.longest, int(plan.longest / aspect)
    elif height > width and height > plan.longest:
        width, height = int(plan.longest * aspect), plan.longest
    return max(width, plan.shortest), max(height, plan.shortest)


def longest_edge(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height), the longer edge exactly `longest`; the shorter keeps the aspect and is made even."""
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    if max(width, height) <= LONGEST_EDGE:
        return width, height
    aspect = width / height
    if width >= height:
        return LONGEST_EDGE, max(int(LONGEST_EDGE / aspect), 1)
    return max(int(LONGEST_EDGE * aspect), 1), LONGEST_EDGE


def tile_multiple(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) rounded up to multiples of `side`, the shorter from the longer's new length."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / aspect) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * aspect) / side) * side, height


def _normalise(frame: NDArray[np.uint8], plan: ImagePlan) -> NDArray[np.float32]:
    """(h, w, 3) of uint8 -> (3, h, w) of float32: (value * scale - mean) / std."""
    table = _table(plan)
    values = np.empty((3, *frame.shape[:2]), np.float32)
    for channel in range(3):  # "clip" spares the look at bounds that 256 entries and uint8 cannot break
        np.take(table[channel], frame[:, :, channel], out=values[channel], mode="clip")
    return values


@lru_cache(maxsize=8)
def _table(plan: ImagePlan) -> NDArray[np.float32]:
    """What each uint8 value becomes in each channel: (3, 256)."""
    scaled = (np.arange(256) * plan.scale).astype(np.float32)
    mean, std = np.array(plan.mean, np.float32), np.array(plan.std, np.float32)
    table: NDArray[np.float32] = (scaled - mean[:, None]) / std[:, None]
    return table
