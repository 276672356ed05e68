"""Images and videos as callers give them: converted, grouped by text, and put where their placeholders stand.

Nothing is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
import torch

from idefics.compat.batch_feature import Array
from idefics.errors import BadPicture, BadPrompt, BadSetting
from idefics.media_sources import CHANNEL_COUNTS
from idefics.messages import Picture, Video
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.fetch import Fetcher
from idefics.processing.to_rgb import to_rgb
from idefics.validation import describe_type

VIDEO_TOKEN = "<video>"
NOUN_BY_PLACEHOLDER = {IMAGE_TOKEN: "pictures", VIDEO_TOKEN: "videos"}

MediaGroups = list[list[Any]]


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
    """An image array with its channels as the last axis; an array without channels stays (H, W).

    Raises:
        BadPicture: without `input_data_format`, the channels may be the first axis or the last.
        BadSetting: there is no such `input_data_format`.
    """
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
    """Whether images are grouped by text: one of them is a list, or a 4-D array of several images."""
    return isinstance(images, (list, tuple)) and any(
        isinstance(one, (list, tuple)) or is_array_with_ndim(one, 4) for one in images
    )


def is_array_with_ndim(source: Any, ndim: int) -> bool:
    """Whether a source is an array or tensor with `ndim` axes: 2 or 3 for an image, 4 for several."""
    return isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == ndim


def group_by_sample(images: Any) -> list[list[Any]]:
    """Groups images by sample: a list of lists has a list for each; a list, a 4-D array or an image is one sample.

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


def as_text_list(text: Any) -> Sequence[str]:
    """A text or a list of texts as a list. Raises BadPrompt for anything else."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
        raise BadPrompt(f"text is {describe_type(text)}: give a string, or a list of strings")
    return texts


def group_pictures_by_text(texts: Sequence[str], images: Any) -> MediaGroups:
    """The images of each text: as the caller grouped them, or distributed by the placeholders in the texts."""
    groups = group_by_sample([] if images is None else images)
    return _group_by_text(texts, IMAGE_TOKEN, groups if is_nested(images) else groups[0], is_nested(images))


def group_videos_by_text(texts: Sequence[str], videos: Any, *, samples_frames: bool = True) -> MediaGroups:
    """The videos of each text. A list of images or of arrays is one video.

    Args:
        videos: a video, a list of videos, or a list for each text.
        samples_frames: whether frames of a video may be left out.

    Raises:
        BadSetting: `samples_frames` is False, and a video is a file.
    """
    video_list = [] if videos is None else [videos] if _is_video(videos) else list(videos)
    groups = _group_by_text(texts, VIDEO_TOKEN, video_list, not all(map(_is_video, video_list)))
    parsed_groups = [[_to_video(one) for one in group] for group in groups]
    if not samples_frames and any(
        not isinstance(one.source, list) for group in parsed_groups for one in group
    ):
        raise BadSetting(
            "do_sample_frames is False, but a video is a file, of which some frames are shown: say how many by "
            "num_frames, or give a list of frames"
        )
    return parsed_groups


def _group_by_text(
    texts: Sequence[str], placeholder: str, media: Sequence[Any], is_grouped: bool
) -> MediaGroups:
    """Groups media by text: as the caller grouped them, or distributed by the placeholders in the texts.

    Raises:
        BadPrompt: the texts have more or fewer placeholders than there are media.
    """
    if is_grouped:
        if len(media) != len(texts):
            raise BadPrompt(
                f"there are {len(texts)} texts, and {NOUN_BY_PLACEHOLDER[placeholder]} for {len(media)}: "
                "give a list for each"
            )
        return [list(group) for group in media]
    num_placeholders = [text.count(placeholder) for text in texts]
    _check_count(placeholder, sum(num_placeholders), len(media))
    remaining_media = iter(media)
    return [list(islice(remaining_media, count)) for count in num_placeholders]


def _is_video(source: Any) -> bool:
    """Whether a source is one video: a `Video`, path, URL or bytes, an array (T, H, W, 3), or a list of images."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(
            isinstance(one, Picture | PIL.Image.Image) or is_array_with_ndim(one, 3) for one in source
        )
    return isinstance(source, (Video, str, bytes, os.PathLike)) or is_array_with_ndim(source, 4)


def _to_video(source: Any) -> Video:
    """Converts a source to a `Video`; frames in a list or array are not turned by an EXIF tag, as image objects."""
    if isinstance(source, (list, tuple)) or is_array_with_ndim(source, 4):
        return Video([as_picture(frame) for frame in source])
    return Video.of(source)


def interleave_text_and_media(text: str, media_by_placeholder: Mapping[str, Sequence[Any]]) -> list[Any]:
    """A text as a list of its parts, with the media in place of the placeholders.

    Args:
        media_by_placeholder: for each placeholder what stands there, in order.

    Raises:
        BadPrompt: there are more or fewer media than placeholders.
    """
    pieces = re.split(f"({'|'.join(media_by_placeholder)})", text)
    for placeholder, media in media_by_placeholder.items():
        _check_count(placeholder, pieces.count(placeholder), len(media))
    iterator_by_placeholder = {
        placeholder: iter(media) for placeholder, media in media_by_placeholder.items()
    }
    return [
        next(iterator_by_placeholder[piece]) if piece in iterator_by_placeholder else piece
        for piece in pieces
        if piece
    ]


def _check_count(placeholder: str, num_placeholders: int, num_media: int) -> None:
    """Raises BadPrompt if a text has more or fewer placeholders than media were given for it."""
    if num_placeholders != num_media:
        noun = NOUN_BY_PLACEHOLDER[placeholder]
        raise BadPrompt(
            f"the text has {num_placeholders} places for {noun} ({placeholder}), and {num_media} {noun} were given: "
            "give as many"
        )
