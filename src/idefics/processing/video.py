"""Videos into words and pictures: which frames are shown, and what is said about when they were.

The rules are those of the released SmolVLM2 code (transformers 4.50 to 5.23), whose users' prompts they are. Knows
files, frames and plans; does not know tokens. Reads the network only through its fetcher. Only a file needs PyAV.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from idefics.catalog import CATALOG
from idefics.config import ImagePlan, VideoPlan
from idefics.errors import BadSetting, BadVideo
from idefics.formats import HEAD_BYTES, VIDEO_SUFFIXES, recognised, recognised_video
from idefics.messages import Picture, Video, Visual
from idefics.processing.fetch import Fetcher, is_remote
from idefics.processing.images import open_picture, prepare
from idefics.processing.picture_files import head_of
from idefics.processing.tokenizer import Piece
from idefics.processing.video_file import FPS, open_video
from idefics.prompt import Tiles
from idefics.sources import held, is_list_of_things

if TYPE_CHECKING:
    from idefics.messages import PictureSource, VideoFileSource, VideoSource

INTRODUCTION = "You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
FRAME = "\nFrame from {minutes:02d}:{seconds:02d}:"
END = "\n\n"


def names_video(name: str) -> bool:
    """Whether a path or address ends like a video's, or a data URI says that it is one."""
    head = re.split("[?#]", name, maxsplit=1)[0] if is_remote(name) else name
    return head[:11].lower() == "data:video/" or head.lower().endswith(VIDEO_SUFFIXES)


def as_visual(source: Visual | PictureSource, *, untrusted: bool = False) -> Visual:
    """A file or its bytes by its content, an address by its end, anything else as a picture.

    Args:
        untrusted: the source is of an untrusted sender: a path is not looked up, it is refused when it is opened.
    """
    if isinstance(source, Visual):
        return source
    found = held(source)
    if untrusted and isinstance(found, (str, os.PathLike)):
        return Picture(found)
    head = _head(found)
    if head and recognised_video(head):
        return Video(found)
    if not (head and recognised(head)) and isinstance(found, (str, os.PathLike)) and names_video(str(found)):
        return Video(found)
    return Picture(found)


def _head(source: object) -> bytes:
    """The beginning of a file or of its bytes; empty where there is none to be read here."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    try:
        if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
            return head_of(source)
    except (OSError, ValueError):  # to be said when it is opened; longer than any file's name
        pass
    return b""


def watch(video: Video, plan: ImagePlan, fetcher: Fetcher) -> list[Piece | Tiles]:
    """What stands in a prompt for a video: words, and a picture for each frame.

    Raises:
        BadVideo: the checkpoint was not trained with video, or this one cannot be read.
        BadPicture: there is no such file, it may not be fetched, or a frame of a list cannot be opened.
        MissingExtra: the video is a file, and PyAV is not installed.
    """
    if plan.video is None:
        names = ", ".join(row.name for row in CATALOG if row.video)
        raise BadVideo(
            f"this checkpoint was not trained with video: load one that was ({names}), or send frames as pictures"
        )
    times, duration, pictures = _show(video, plan, plan.video, fetcher)
    count, length = in_words(len(times)), timedelta(seconds=int(duration))
    parts: list[Piece | Tiles] = [Piece(INTRODUCTION.format(count=count, length=length), trusted=True)]
    for time, tiles in zip(times, pictures, strict=True):
        said = FRAME.format(minutes=int(time // 60), seconds=int(time % 60))
        parts += [Piece(said, trusted=True), tiles]
    return [*parts, Piece(END, trusted=True)]


def in_words(number: int) -> str:
    """A number below a million in English words: 101 is "one hundred and one"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    joint = "" if not rest else " and " if rest < 100 else ", "
    return f"{in_words(number // size)} {name}{joint}{in_words(rest) if rest else ''}"


ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def choose(total: int, fps: Fraction | float, plan: VideoPlan) -> list[int]:
    """Which of `total` frames, `fps` a second, are shown: evenly spread, about `plan.fps` of each second.

    As the released sampling function: the ends of a long video are left out, and a number is never given twice.
    """
    duration = float(total / fps)
    count = max(min(round(plan.fps * duration), plan.most_frames), 1)
    first, last = 0, total - 1
    if plan.skip_seconds and duration - 2 * plan.skip_seconds > plan.most_frames * plan.fps:
        skipped = plan.skip_seconds * float(fps)
        first, last = int(skipped), min(int(total - skipped), last)
        if first >= last:
            first, last = 0, total - 1
    return [int(index) for index in np.unique(np.linspace(first, last, count, dtype=int))]


def check(video: Video, fetcher: Fetcher) -> None:
    """Raises what is wrong with a file, as far as it shows before its frames are read."""
    if _is_file(video.source):
        with open_video(video.source, fetcher):
            pass


def _show(
    video: Video, plan: ImagePlan, how: VideoPlan, fetcher: Fetcher
) -> tuple[list[float], float, list[Tiles]]:
    """When each chosen frame is (seconds), how long the video is, and the frames, never split, as pictures."""
    whole = replace(plan, longest=how.longest, splitting=False)
    if _is_file(video.source):
        if video.fps is not None:
            raise BadSetting(
                f"fps is {video.fps}, but a file says its own: give it with a list of frames only"
            )
        with open_video(video.source, fetcher) as file:
            chosen, fps, duration = choose(file.total, file.fps, how), float(file.fps), file.duration
            pictures = [prepare(image, whole) for image in file.read(chosen)]
    else:
        frames = _frames(video.source)
        chosen, fps, duration = _choose_of_list(len(frames), video.fps, how)
        opened = (open_picture(Picture.of(frames[index]), fetcher) for index in chosen)
        pictures = [prepare(image, whole) for image in opened]
    return [index / fps for index in chosen], duration, pictures


def _is_file(source: VideoSource) -> TypeGuard[VideoFileSource]:
    return isinstance(source, (str, bytes, os.PathLike))


def _frames(source: VideoSource) -> list[Picture | PictureSource]:
    if isinstance(source, np.ndarray) and source.ndim != 4 and not is_list_of_things(source):
        raise BadVideo(f"a video array has the shape {source.shape}; give (frames, height, width, channels)")
    if not isinstance(source, (Sequence, np.ndarray)):
        raise BadVideo(
            f"a video cannot be of type {type(source).__name__}: give a path, bytes, an http(s) URL, a data URI or a "
            "list of frames"
        )
    if not len(source):
        raise BadVideo("a video has no frames: give at least one")
    return list(source)


def _choose_of_list(total: int, fps: float | None, how: VideoPlan) -> tuple[list[int], float, float]:
    """(numbers, frames a second, duration). Without `fps` the list is what the caller has chosen: all are shown."""
    if fps is not None:
        return choose(total, fps, how), fps, total / fps
    if total > how.most_frames:
        raise BadVideo(
            f"a video of {total} frames is too long; this checkpoint is shown {how.most_frames}: give fewer, or "
            "say by fps how many are a second, and they are chosen"
        )
    return list(range(total)), FPS, (total - 1) / FPS
