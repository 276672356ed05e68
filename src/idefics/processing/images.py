"""Pictures of every kind into frames for the vision tower.

Every resize is PIL's, on uint8, rounded between steps, as in the image processors that the checkpoints were
trained with. Knows pixels and plans; does not know tokens. Reads the network only through its fetcher.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.config import ImagePlan
from idefics.errors import BadPicture, PartialPictureWarning
from idefics.messages import ImageDetail, Picture
from idefics.processing import strangers
from idefics.processing.fetch import Fetcher, as_address, is_remote, short
from idefics.processing.picture_files import decode, decode_untrusted, open_file, unfiltered, upright_rgb
from idefics.processing.resize import normalise, pixels_of, resize
from idefics.processing.sizes import grid, longest_edge, native_size, plan_for
from idefics.processing.to_rgb import from_array
from idefics.prompt import Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_PATH = 4096  # characters
MOST_PIXELS = 178_956_970  # PIL's own limit against decompression bombs: half a gigabyte of RGB


def open_picture(picture: Picture, fetcher: Fetcher) -> PIL.Image.Image:
    """The picture as RGB, upright by its EXIF tag, transparency over white; the first frame of an animation.

    Args:
        picture: a path, bytes, a `PIL.Image`, an array (see `to_rgb.from_array`), an http(s) URL, a data URI or base64.
        fetcher: gets what is remote, or refuses to; says what is a stranger's.

    Raises:
        BadPicture: no such file, not a picture, broken, not to be fetched, or larger than `MOST_PIXELS`; of a stranger:
            a path, another format than `UNTRUSTED_FORMATS`, larger than `strangers.MOST_PIXELS`, or a file that takes
            more work than a picture should.
    """
    with _opened(picture.source, fetcher) as decode, fetcher.turns:
        image, note = decode()
    _warn(note, fetcher)
    return image


def _warn(note: str, fetcher: Fetcher) -> None:
    """Warns the Python caller; an untrusted sender reads the note in the answer instead."""
    if note and not fetcher.strangers:
        with unfiltered():
            warnings.warn(note, PartialPictureWarning, stacklevel=2)


def name_of_bytes(data: bytes) -> str:
    """What messages call a picture that is given as the bytes of a file."""
    return f"a picture of {len(data)} bytes" if data else "the picture"


@contextmanager
def _opened(source: object, fetcher: Fetcher) -> Iterator[Callable[[], tuple[PIL.Image.Image, str]]]:
    """Yields what decodes the picture and notes what it left out; its bytes are here, so the caller can wait first."""
    source = as_address(source) if isinstance(source, str) else source
    distrusted = fetcher.distrusts(source)
    most = strangers.MOST_PIXELS if distrusted else MOST_PIXELS
    decoded = partial(decode_untrusted if distrusted else decode, most=most)
    match source:
        case PIL.Image.Image():
            yield lambda: (upright_rgb(source, f"a PIL picture of mode {source.mode}", most), "")
        case np.ndarray():
            yield lambda: (from_array(source, most), "")
        case bytes():
            yield partial(decoded, io.BytesIO(source), name_of_bytes(source))
        case str() if is_remote(source):
            yield partial(decoded, io.BytesIO(fetcher.get(source)), short(source))
        case str() | os.PathLike() if fetcher.strangers:
            raise BadPicture("a picture cannot be a path here: send an http(s) address, or a data URI")
        case str() if len(source) > LONGEST_PATH:
            raise BadPicture(
                f"a picture given as a text of {len(source):,} characters is no path, no address and no base64 of a "
                "picture: does it begin with the picture's first byte?"
            )
        case str() | os.PathLike():
            name = short(str(source))
            with open_file(Path(source), name) as file:
                yield partial(decoded, file, name)
        case _:
            raise BadPicture(
                f"a picture cannot be of type {type(source).__name__}: give a path, bytes, a file object, a PIL "
                "picture, an array, a tensor, an http(s) URL or a data URI; several pictures are one list"
            )


def prepared(picture: Picture, plan: ImagePlan, fetcher: Fetcher, look: ImageDetail) -> Tiles:
    """A picture opened and made ready; see `open_picture` and `prepare`.

    Args:
        look: how closely, where the picture itself does not say.
    """
    look = picture.look(look)
    with _opened(picture.source, fetcher) as decode, fetcher.turns:
        image, note = decode()
        tiles = prepare(image, plan_for(*image.size, plan, look))
    _warn(note, fetcher)
    return replace(tiles, note=note)


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
