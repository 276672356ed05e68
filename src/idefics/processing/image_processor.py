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

from idefics.config import ImageProcessorConfig
from idefics.errors import BadPicture, PartialPictureWarning
from idefics.messages import ImageDetail, Picture
from idefics.processing import untrusted
from idefics.processing.fetch import Fetcher, is_url, normalize_url, shorten_url
from idefics.processing.image_sizes import (
    apply_image_detail,
    compute_tile_grid,
    native_frame_size,
    resize_longest_edge,
)
from idefics.processing.picture_files import (
    decode,
    decode_untrusted,
    load_upright_rgb,
    open_file,
    wait_for_warning_filters,
)
from idefics.processing.resize import normalize, resize, to_pixel_array
from idefics.processing.to_rgb import image_from_array
from idefics.prompt import PreprocessedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PATH_CHARACTERS = 4096  # characters
MAX_PIXELS = 178_956_970  # PIL's own limit against decompression bombs: half a gigabyte of RGB


def open_picture(picture: Picture, fetcher: Fetcher) -> PIL.Image.Image:
    """The picture as RGB, upright by its EXIF tag, transparency over white; the first frame of an animation.

    Args:
        picture: a path, bytes, a `PIL.Image`, an array (see `to_rgb.from_array`), an http(s) URL, a data URI or base64.
        fetcher: gets what is remote, or refuses to; says what is a stranger's.

    Raises:
        BadPicture: no such file, not a picture, broken, not to be fetched, or larger than `MOST_PIXELS`; of a stranger:
            a path, another format than `UNTRUSTED_IMAGE_FORMATS`, larger than `untrusted.MOST_PIXELS`, or a file that takes
            more work than a picture should.
    """
    with _open_source(picture.source, fetcher) as decode, fetcher.decode_slots:
        image, note = decode()
    _warn(note, fetcher)
    return image


def _warn(note: str, fetcher: Fetcher) -> None:
    """Warns the Python caller; an untrusted sender reads the note in the answer instead."""
    if note and not fetcher.untrusted:
        with wait_for_warning_filters():
            warnings.warn(note, PartialPictureWarning, stacklevel=2)


def describe_bytes(data: bytes) -> str:
    """What messages call a picture that is given as the bytes of a file."""
    return f"a picture of {len(data)} bytes" if data else "the picture"


@contextmanager
def _open_source(source: object, fetcher: Fetcher) -> Iterator[Callable[[], tuple[PIL.Image.Image, str]]]:
    """Yields what decodes the picture and notes what it left out; its bytes are here, so the caller can wait first."""
    source = normalize_url(source) if isinstance(source, str) else source
    is_untrusted = fetcher.is_untrusted(source)
    max_pixels = untrusted.MAX_UNTRUSTED_PIXELS if is_untrusted else MAX_PIXELS
    decode_file = partial(decode_untrusted if is_untrusted else decode, max_pixels=max_pixels)
    match source:
        case PIL.Image.Image():
            yield lambda: (load_upright_rgb(source, f"a PIL picture of mode {source.mode}", max_pixels), "")
        case np.ndarray():
            yield lambda: (image_from_array(source, max_pixels), "")
        case bytes():
            yield partial(decode_file, io.BytesIO(source), describe_bytes(source))
        case str() if is_url(source):
            yield partial(decode_file, io.BytesIO(fetcher.get(source)), shorten_url(source))
        case str() | os.PathLike() if fetcher.untrusted:
            raise BadPicture("a picture cannot be a path here: send an http(s) address, or a data URI")
        case str() if len(source) > MAX_PATH_CHARACTERS:
            raise BadPicture(
                f"a picture given as a text of {len(source):,} characters is no path, no address and no base64 of a "
                "picture: does it begin with the picture's first byte?"
            )
        case str() | os.PathLike():
            name = shorten_url(str(source))
            with open_file(Path(source), name) as file:
                yield partial(decode_file, file, name)
        case _:
            raise BadPicture(
                f"a picture cannot be of type {type(source).__name__}: give a path, bytes, a file object, a PIL "
                "picture, an array, a tensor, an http(s) URL or a data URI; several pictures are one list"
            )


def open_and_preprocess(
    picture: Picture, config: ImageProcessorConfig, fetcher: Fetcher, image_detail: ImageDetail
) -> PreprocessedImage:
    """A picture opened and made ready; see `open_picture` and `prepare`.

    Args:
        image_detail: how closely, where the picture itself does not say.
    """
    image_detail = picture.look(image_detail)
    with _open_source(picture.source, fetcher) as decode, fetcher.decode_slots:
        image, note = decode()
        preprocessed = preprocess_image(image, apply_image_detail(*image.size, config, image_detail))
    _warn(note, fetcher)
    return replace(preprocessed, note=note)


def preprocess_image(image: PIL.Image.Image, config: ImageProcessorConfig) -> PreprocessedImage:
    """An RGB picture into normalised frames (3, h, w), which lie one after another.

    The order of the steps is the released processors': resize and tile (or quarter and resize), rescale, normalise.
    """
    pixels = to_pixel_array(image)
    digest = hashlib.sha256(f"{config!r} {image.mode} {image.size} ".encode())
    digest.update(pixels.data)
    frame_pixels, rows, columns = split_into_frames(pixels, config)
    sizes = [(3, *part.shape[:2]) for part in frame_pixels]
    frame_ends = list(accumulate(map(math.prod, sizes)))
    values = np.empty(frame_ends[-1], np.float32)
    frames = tuple(
        values[end - math.prod(size) : end].reshape(size) for size, end in zip(sizes, frame_ends, strict=True)
    )
    for part, frame in zip(frame_pixels, frames, strict=True):
        normalize(part, config, frame)
    return PreprocessedImage(frames, rows, columns, digest.hexdigest())


def split_into_frames(
    pixels: NDArray[np.uint8], config: ImageProcessorConfig
) -> tuple[list[NDArray[np.uint8]], int, int]:
    """(h, w, 3) -> the uint8 frames (h, w, 3), row by row, the whole picture last; rows and columns of the grid."""
    frame_size = config.frame_size
    height, width = pixels.shape[:2]
    rows, columns = compute_tile_grid(width, height, config)
    if config.shortest_edge is not None:
        parts = [*_split_into_quarters(pixels), pixels] if rows else [pixels]
        sizes = [native_frame_size(part.shape[1], part.shape[0], config) for part in parts]
        return (
            [resize(part, size, config.resample) for part, size in zip(parts, sizes, strict=True)],
            rows,
            columns,
        )
    if config.longest_edge is not None:
        pixels = resize(pixels, resize_longest_edge(width, height, config.longest_edge), config.resample)
    if not rows:
        return [resize(pixels, (frame_size, frame_size), config.resample)], 0, 0
    pixels = resize(pixels, (columns * frame_size, rows * frame_size), config.resample)
    tiles = [
        pixels[frame_size * row : frame_size * (row + 1), frame_size * column : frame_size * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]
    return [*tiles, resize(pixels, (frame_size, frame_size), config.resample)], rows, columns


def _split_into_quarters(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Row by row; the right and the lower ones are a pixel larger where the number is odd."""
    y, x = pixels.shape[0] // 2, pixels.shape[1] // 2
    return [pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:]]
