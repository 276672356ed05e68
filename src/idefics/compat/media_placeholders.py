"""Distributes images and videos over the texts of a batch, and puts them where their placeholders stand.

Nothing is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import PIL.Image

from idefics.compat.image_inputs import as_picture, group_by_sample, is_array_with_ndim, is_nested
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Picture, Video
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.validation import describe_type

VIDEO_TOKEN = "<video>"
NOUN_BY_PLACEHOLDER = {IMAGE_TOKEN: "pictures", VIDEO_TOKEN: "videos"}

MediaGroups = list[list[Any]]


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
    """Media as a list for each text: as they are grouped, or distributed by the placeholders in the texts."""
    if is_grouped:
        if len(media) != len(texts):
            raise BadPrompt(
                f"there are {len(texts)} texts, and {NOUN_BY_PLACEHOLDER[placeholder]} for {len(media)}: "
                "give a list for each"
            )
        return [list(group) for group in media]
    num_placeholders = [text.count(placeholder) for text in texts]
    if sum(num_placeholders) != len(media):
        raise BadPrompt(_count_mismatch_message(placeholder, sum(num_placeholders), len(media)))
    remaining_media = iter(media)
    return [list(islice(remaining_media, count)) for count in num_placeholders]


def _is_video(source: Any) -> bool:
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
        if pieces.count(placeholder) != len(media):
            raise BadPrompt(_count_mismatch_message(placeholder, pieces.count(placeholder), len(media)))
    iterator_by_placeholder = {
        placeholder: iter(media) for placeholder, media in media_by_placeholder.items()
    }
    return [
        next(iterator_by_placeholder[piece]) if piece in iterator_by_placeholder else piece
        for piece in pieces
        if piece
    ]


def _count_mismatch_message(placeholder: str, num_placeholders: int, num_media: int) -> str:
    noun = NOUN_BY_PLACEHOLDER[placeholder]
    return (
        f"the text has {num_placeholders} places for {noun} ({placeholder}), and {num_media} {noun} were given: "
        "give as many"
    )
