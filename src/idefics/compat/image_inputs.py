"""Converts what callers give as images to `Picture`s, and groups them by text. Nothing is opened here."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import PIL.Image
import torch

from idefics.compat.batch_feature import Array
from idefics.errors import BadPicture, BadPrompt, BadSetting
from idefics.media_sources import CHANNEL_COUNTS
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.to_rgb import to_rgb


def make_fetcher_from_environment() -> Fetcher:
    """A fetcher for any URL, unless the environment variable IDEFICS_REMOTE_IMAGES restricts it."""
    return Fetcher(policy=os.environ.get("IDEFICS_REMOTE_IMAGES", "any"))


def as_picture(source: Any, input_data_format: str | None = None) -> Picture:
    """Converts an image of any kind to a `Picture`.

    Args:
        source: a URL, a path, bytes, a file object, a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W)
            of whole numbers from 0 to 255, as integers or floats, or of floats from 0 to 1.
        input_data_format: "channels_first", "channels_last" or "none" (no channels), where the shape is ambiguous.

    Raises:
        BadPicture: a PIL image is broken, or the shape of an array is ambiguous.
        BadSetting: there is no such `input_data_format`.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, PIL.Image.Image):
        try:
            # A copy without an EXIF tag: image objects are not turned.
            return Picture(PIL.Image.fromarray(np.asarray(to_rgb(source))))
        except OSError:
            raise BadPicture("a PIL picture is broken: its pixels cannot be read to the end") from None
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, np.ndarray):
        array = _to_uint8_if_integral(_to_channels_last(source, input_data_format))
        is_unambiguous = input_data_format is not None and array.dtype == np.uint8 and array.shape[2:] == (3,)
        return Picture(PIL.Image.fromarray(np.ascontiguousarray(array)) if is_unambiguous else array)
    return Picture(source)


def _to_channels_last(array: Array, input_data_format: str | None) -> Array:
    match input_data_format:
        case None if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] in CHANNEL_COUNTS:
            raise BadPicture(
                f"a picture array of the shape {array.shape} is ambiguous: the channels may be its first or its last "
                "axis; give input_data_format='channels_first' or 'channels_last'"
            )
        case "channels_first" if array.ndim == 3:
            return array.transpose(1, 2, 0)
        case None | "channels_last" | "none" | "channels_first":
            return array
        case other:
            raise BadSetting(
                f"input_data_format is {other!r}; give 'channels_first', 'channels_last' or 'none'"
            )


def _to_uint8_if_integral(array: Array) -> Array:
    """Converts whole numbers from 0 to 255 of any type to uint8; other arrays stay as they are."""
    if array.dtype == np.uint8 or array.dtype.kind not in "iuf" or not array.size:
        return array
    low, high = array.min(), array.max()
    is_eight_bits = low >= 0 and 1 < high <= 255 and (array == np.round(array)).all()
    return array.astype(np.uint8) if is_eight_bits or low == high == 0 else array


def is_float_array(picture: Picture) -> bool:
    """Whether an image is an array of floats; such values are taken to be 0 to 1."""
    return isinstance(picture.source, np.ndarray) and picture.source.dtype.kind == "f"


def is_nested(images: Any) -> bool:
    """Whether there is a list of images, or a 4-D array, for each text."""
    return isinstance(images, (list, tuple)) and any(
        isinstance(one, (list, tuple)) or is_array_with_ndim(one, 4) for one in images
    )


def is_array_with_ndim(source: Any, ndim: int) -> bool:
    """Whether an array or tensor has so many axes: an image 2 or 3, several images 4."""
    return isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == ndim


def group_by_sample(images: Any) -> list[list[Any]]:
    """Images as a list for each sample: of one image, a list, or a list of lists; a 4-D array is a list.

    Raises:
        BadPrompt: lists and single images are mixed.
    """
    images = list(images) if is_array_with_ndim(images, 4) else images
    if not is_nested(images):
        return [list(images)] if isinstance(images, (list, tuple)) else [[images]]
    samples = [list(one) if is_array_with_ndim(one, 4) else one for one in images]
    for number, sample in enumerate(samples, start=1):
        if not isinstance(sample, (list, tuple)):
            raise BadPrompt(
                f"images mixes lists of pictures with pictures (number {number}): give one list a text"
            )
    return [list(sample) for sample in samples]
