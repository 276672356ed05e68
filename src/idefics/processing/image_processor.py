"""Turns a picture into normalised frames, in these steps:

    Picture -> fetch_picture: its bytes, fetched if it is remote (fetch, untrusted)
            -> OpenedImage: decoded within limits, RGB, upright (picture_files, to_rgb)
            -> TilePlan: how it is resized and cut, from its size alone (tile_plan)
            -> PreprocessedImage: frames, resized, cut and normalised (resize)

Then `picture_expansion` writes its placeholders into the prompt. Every resize is Pillow's, on uint8, rounded between
steps, as in the image processors that the checkpoints were trained with. Only the fetcher uses the network.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL.Image

from idefics.config import ImageProcessorConfig, ResampleFilter
from idefics.errors import BadPicture, PartialPictureWarning, format_count
from idefics.messages import ImageDetail, Picture
from idefics.processing.fetch import Fetcher, is_url, name_for_message, normalize_source_text
from idefics.processing.frame_memory import empty_float32
from idefics.processing.picture_files import (
    OpenedImage,
    decode_trusted,
    decode_untrusted,
    load_upright_rgb,
    open_regular_file,
)
from idefics.processing.pixel_hash import PixelHash
from idefics.processing.resize import iterate_pixel_strips, normalize, resize, resize_strips
from idefics.processing.tile_plan import TilePlan, plan_tiles, tile_boxes
from idefics.processing.to_rgb import image_from_array
from idefics.processing.untrusted import MAX_UNTRUSTED_PIXELS
from idefics.processing.warning_filters import WARNING_FILTERS_LOCK
from idefics.prompt import PreprocessedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PATH_CHARACTERS = 4096
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: half a gigabyte of RGB
MIN_WIDTH_FOR_THREAD = 2048  # strips of narrower pictures take longer to hand over than to copy


def open_and_preprocess(
    picture: Picture, config: ImageProcessorConfig, fetcher: Fetcher, image_detail: ImageDetail
) -> PreprocessedImage:
    """Opens a picture and computes its normalised frames; raises the errors of `open_picture`.

    Args:
        image_detail: how the picture is split into tiles, unless it has a detail of its own.
    """
    decode_picture = fetch_picture(picture.source, fetcher)
    with fetcher.decode_slots:
        opened = decode_picture()
        detail = picture.resolve_detail(image_detail)
        preprocessed = preprocess_image(opened.image, config, detail, note=opened.note)
    _warn_trusted_caller(opened.note, fetcher)
    return preprocessed


def open_picture(picture: Picture, fetcher: Fetcher) -> PIL.Image.Image:
    """Opens a picture as RGB, upright by its EXIF tag, transparency over white; the first frame of an animation.

    Args:
        picture: a path, bytes, a `PIL.Image`, an array (see `image_from_array`), an http(s) URL, a data URI or base64.
        fetcher: gets what is remote, or refuses to; says whether the sender is trusted.

    Raises:
        BadPicture: no such file, not a picture, broken, not to be fetched, or larger than `MAX_PIXELS`; of an untrusted
            sender: a path, a format outside `UNTRUSTED_IMAGE_FORMATS`, larger than `MAX_UNTRUSTED_PIXELS`, or a file
            that takes more work to decode than a picture should.
    """
    return open_picture_with_note(picture, fetcher).image


def open_picture_with_note(picture: Picture, fetcher: Fetcher) -> OpenedImage:
    """As `open_picture`, with the note of what was not read of the file."""
    decode_picture = fetch_picture(picture.source, fetcher)
    with fetcher.decode_slots:
        opened = decode_picture()
    _warn_trusted_caller(opened.note, fetcher)
    return opened


def fetch_picture(source: object, fetcher: Fetcher) -> Callable[[], OpenedImage]:
    """Fetches a picture if it is remote, and returns the function that decodes it.

    Returns:
        The function that decodes the picture. It needs no network, so that the caller may hold one of the few
        `decode_slots` while it runs.

    Raises:
        BadPicture: the source is of an unsupported type, may not be read or fetched, or cannot be reached.
    """
    source = normalize_source_text(source) if isinstance(source, str) else source
    is_untrusted = fetcher.is_untrusted(source)
    max_pixels = MAX_UNTRUSTED_PIXELS if is_untrusted else MAX_PIXELS
    decode_file = partial(decode_untrusted if is_untrusted else decode_trusted, max_pixels=max_pixels)
    match source:
        case PIL.Image.Image():
            name = f"a PIL picture of mode {source.mode}"
            return lambda: OpenedImage(load_upright_rgb(source, name, max_pixels))
        case np.ndarray():
            return lambda: OpenedImage(image_from_array(source, max_pixels))
        case bytes():
            name = f"a picture of {format_count(len(source), 'byte')}" if source else "the picture"
            return partial(decode_file, io.BytesIO(source), name)
        case str() if is_url(source):
            return partial(decode_file, io.BytesIO(fetcher.get(source)), name_for_message(source))
        case str() | os.PathLike() if fetcher.untrusted:
            raise BadPicture("a picture cannot be a path here: send an http(s) address, or a data URI")
        case str() if len(source) > MAX_PATH_CHARACTERS:
            raise BadPicture(
                f"a picture given as a text of {len(source):,} characters is no path, no address and no base64 of a "
                "picture: does it begin with the picture's first byte?"
            )
        case str() | os.PathLike():
            return partial(_decode_path, Path(source), name_for_message(str(source)), decode_file)
        case _:
            raise BadPicture(
                f"a picture cannot be of type {type(source).__name__}: give a path, bytes, a file object, a PIL "
                "picture, an array, a tensor, an http(s) URL or a data URI; several pictures are one list"
            )


def _decode_path(path: Path, name: str, decode_file: Callable[[BinaryIO, str], OpenedImage]) -> OpenedImage:
    """Opens a file and decodes it with `decode_file(file, name)`."""
    with open_regular_file(path, name) as file:
        return decode_file(file, name)


def _warn_trusted_caller(note: str, fetcher: Fetcher) -> None:
    """Emits a picture's note as a Python warning, unless the sender is untrusted: a server puts it into the answer."""
    if note and not fetcher.untrusted:
        with WARNING_FILTERS_LOCK:
            warnings.warn(note, PartialPictureWarning, stacklevel=2)


def preprocess_image(
    image: PIL.Image.Image,
    config: ImageProcessorConfig,
    image_detail: ImageDetail | None = None,
    *,
    note: str = "",
) -> PreprocessedImage:
    """Turns an RGB picture into normalised frames (3, h, w) of float32, which share one block of memory.

    The order of the steps is the released processors': resize and cut (or quarter and resize), rescale, normalise.

    Args:
        image: in mode RGB, upright.
        image_detail: may reduce the number of tiles; None: as many as the checkpoint makes.
        note: what was not read of the picture's file.
    """
    plan = plan_tiles(*image.size, config, image_detail)
    settings = (plan, config.resample, config.rescale_factor, config.mean, config.std)
    with ThreadPoolExecutor(1, thread_name_prefix="idefics-pixels") as thread:
        pixel_hash = PixelHash(f"{settings!r} {image.mode} {image.size} ", thread)
        pixels = _resize_first(image, plan, config.resample, pixel_hash, thread)
        frames = _normalized_frames(resize_and_cut(pixels, plan, config.resample), config)
        content_hash = pixel_hash.hexdigest()
    return PreprocessedImage(frames, plan.rows, plan.columns, content_hash, note)


def _resize_first(
    image: PIL.Image.Image,
    plan: TilePlan,
    resample: ResampleFilter,
    pixel_hash: PixelHash,
    thread: ThreadPoolExecutor,
) -> NDArray[np.uint8]:
    """The pixels of a picture after the first resize of its plan, if there is one.

    `pixel_hash` hashes the fewer pixels, of those before and after: all frames follow from either.

    Args:
        thread: an executor of one thread, which copies pixels out of a large picture while others are resized.
    """
    size = plan.resize_steps[0] if plan.resize_steps else image.size
    if math.prod(image.size) <= math.prod(size):
        strips = _hash_strips(iterate_pixel_strips(image), pixel_hash)
        return resize_strips(strips, image.size, size, resample)
    strips = iterate_pixel_strips(image, four_bytes=True)
    if image.width >= MIN_WIDTH_FOR_THREAD:
        strips = _iterate_ahead(strips, thread)
    pixels = resize_strips(strips, image.size, size, resample)
    pixel_hash.update(pixels)
    return pixels


def _iterate_ahead(
    strips: Iterator[NDArray[np.uint8]], thread: ThreadPoolExecutor
) -> Iterator[NDArray[np.uint8]]:
    """Yields the same strips; `thread` makes the next one while the caller works on one."""
    next_strip = thread.submit(next, strips, None)
    while (strip := next_strip.result()) is not None:
        next_strip = thread.submit(next, strips, None)
        yield strip


def _hash_strips(strips: Iterable[NDArray[np.uint8]], pixel_hash: PixelHash) -> Iterator[NDArray[np.uint8]]:
    """Yields strips of pixels, which `pixel_hash` hashes."""
    for strip in strips:
        pixel_hash.update(strip)
        yield strip


def _normalized_frames(
    frame_pixels: Sequence[NDArray[np.uint8]], config: ImageProcessorConfig
) -> tuple[NDArray[np.float32], ...]:
    """Normalises frames (h, w, 3) to (3, h, w), which share one block of memory."""
    ends = np.cumsum([part.size for part in frame_pixels])
    blocks = np.split(empty_float32(ends[-1]), ends[:-1])
    frames = tuple(
        block.reshape(3, *part.shape[:2]) for block, part in zip(blocks, frame_pixels, strict=True)
    )
    for part, frame in zip(frame_pixels, frames, strict=True):
        normalize(part, config, frame)
    return frames


def resize_and_cut(
    pixels: NDArray[np.uint8], plan: TilePlan, resample: ResampleFilter
) -> list[NDArray[np.uint8]]:
    """Resizes pixels (h, w, 3) and cuts them into the frames of a plan: tiles row by row, then the whole picture.

    Args:
        pixels: of the picture, or as the first resize of the plan leaves them.
    """
    for size in plan.resize_steps:
        pixels = resize(pixels, size, resample)
    height, width = pixels.shape[:2]
    tiles = [
        pixels[top:bottom, left:right]
        for left, top, right, bottom in tile_boxes(width, height, plan.rows, plan.columns)
    ]
    return [
        resize(part, size, resample) for part, size in zip([*tiles, pixels], plan.frame_sizes, strict=True)
    ]
