"""Which picture or video stands where: texts with places for them, and what was given to fill these.

Knows marks in text; opens nothing.
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

from idefics.calls import kind_of
from idefics.compat.image_inputs import as_picture, is_grouped, nested
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Picture, Video
from idefics.processing.chat import IMAGE

VIDEO = "<video>"
NOUNS = {IMAGE: "pictures", VIDEO: "videos"}

Groups = list[list[Any]]


def texts_of(text: Any) -> Sequence[str]:
    """A text or a list of texts as a list."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
        raise BadPrompt(f"text is {kind_of(text)}: give a string, or a list of strings")
    return texts


def pictures_for(texts: Sequence[str], images: Any) -> Groups:
    """The pictures of each text: as they are grouped already, or by how many places each text has for them."""
    groups = nested([] if images is None else images)
    groups = groups if is_grouped(images) else _shared_out(texts, IMAGE, groups[0])
    return [[as_picture(one) for one in group] for group in _one_each(texts, groups, IMAGE)]


def videos_for(texts: Sequence[str], videos: Any, *, samples: bool = True) -> Groups:
    """The videos of each text: one, a list, or a list of lists. A list of pictures or arrays is one video.

    Raises:
        BadSetting: `samples` is False, so that all frames would be shown, but a video is a file.
    """
    given = [] if videos is None else [videos] if _is_video(videos) else list(videos)
    is_flat = all(map(_is_video, given))
    groups = _shared_out(texts, VIDEO, given) if is_flat else [list(group) for group in given]
    read = [[_as_video(one) for one in group] for group in _one_each(texts, groups, VIDEO)]
    if not samples and any(not isinstance(one.source, list) for group in read for one in group):
        raise BadSetting(
            "do_sample_frames is False, but a video is a file, of which some frames are shown: say how many by "
            "num_frames, or give a list of frames"
        )
    return read


def _is_video(source: Any) -> bool:
    if isinstance(source, (list, tuple)):
        return bool(source) and all(
            isinstance(one, Picture | PIL.Image.Image) or _has(one, 3) for one in source
        )
    return isinstance(source, (Video, str, bytes, os.PathLike)) or _has(source, 4)


def _has(source: Any, dimensions: int) -> bool:
    return isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == dimensions


def _as_video(source: Any) -> Video:
    """Frames are taken as they are, as pictures are."""
    if isinstance(source, (list, tuple)) or _has(source, 4):
        return Video([as_picture(frame) for frame in source])
    return Video.of(source)


def _shared_out(texts: Sequence[str], mark: str, given: Sequence[Any]) -> Groups:
    places = [text.count(mark) for text in texts]
    if sum(places) != len(given):
        raise BadPrompt(_counts(mark, sum(places), len(given)))
    waiting = iter(given)
    return [list(islice(waiting, count)) for count in places]


def _one_each(texts: Sequence[str], groups: Groups, mark: str) -> Groups:
    if len(groups) != len(texts):
        raise BadPrompt(
            f"there are {len(texts)} texts, and {NOUNS[mark]} for {len(groups)}: give a list for each"
        )
    return groups


def fill(text: str, visuals: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Text, and what stands in its places: `visuals` says for each mark what to put there, in order.

    Raises:
        BadPrompt: there are more or fewer than places.
    """
    pieces = re.split(f"({'|'.join(visuals)})", text)
    for mark, given in visuals.items():
        if pieces.count(mark) != len(given):
            raise BadPrompt(_counts(mark, pieces.count(mark), len(given)))
    waiting = {mark: iter(given) for mark, given in visuals.items()}
    return [next(waiting[piece]) if piece in waiting else piece for piece in pieces if piece]


def _counts(mark: str, places: int, given: int) -> str:
    noun = NOUNS[mark]
    return f"the text has {places} places for {noun} ({mark}), and {given} {noun} were given: give as many"
