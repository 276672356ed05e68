"""Turns a video into text and pictures: samples its frames, and puts a caption with the time before each.

Sampling and wording are those of the released SmolVLM2 code (transformers 4.50 to 5.23). Video files are read by PyAV;
lists of frames need no extra package. Independent of token ids.
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
from idefics.config import ImageProcessorConfig, VideoProcessorConfig
from idefics.errors import BadSetting, BadVideo
from idefics.formats import SIGNATURE_BYTES, VIDEO_SUFFIXES, detect_image_format, detect_video_format
from idefics.media_sources import convert_in_memory_source, is_array_of_strings_or_objects
from idefics.messages import Picture, PictureOrVideo, Video
from idefics.processing.fetch import Fetcher, is_url
from idefics.processing.image_processor import open_picture, preprocess_image
from idefics.processing.picture_files import read_file_head
from idefics.processing.tokenizer import TextPiece
from idefics.processing.video_file import DEFAULT_FPS, open_video
from idefics.prompt import PreprocessedImage

if TYPE_CHECKING:
    from idefics.messages import PictureSource, VideoFileSource, VideoSource

VIDEO_INTRODUCTION = (
    "You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
)
FRAME_CAPTION = "\nFrame from {minutes:02d}:{seconds:02d}:"
VIDEO_END = "\n\n"


def is_video_name(name: str) -> bool:
    """Whether a path or URL has the suffix of a video, or a data URI has a video's media type."""
    head = re.split("[?#]", name, maxsplit=1)[0] if is_url(name) else name
    return head[:11].lower() == "data:video/" or head.lower().endswith(VIDEO_SUFFIXES)


def to_picture_or_video(source: PictureOrVideo | PictureSource, *, untrusted: bool = False) -> PictureOrVideo:
    """Makes a `Video` or `Picture` of a source: a file or its bytes by content, a URL by suffix, all else a picture.

    A path that is unreadable or of no known content is a video by its suffix, a data URI by its media type.

    Args:
        untrusted: whether the source is of an untrusted sender: every text or path becomes a `Picture`; no path is
            read, and opening one is refused.
    """
    if isinstance(source, PictureOrVideo):
        return source
    contents = convert_in_memory_source(source)
    if untrusted and isinstance(contents, (str, os.PathLike)):
        return Picture(contents)
    head = _read_head(contents)
    is_video = detect_video_format(head) is not None or (
        detect_image_format(head) is None
        and isinstance(contents, (str, os.PathLike))
        and is_video_name(str(contents))
    )
    return Video(contents) if is_video else Picture(contents)


def _read_head(source: object) -> bytes:
    """The first bytes of a file or of its content, which identify its format; b"" if the source is neither."""
    if isinstance(source, bytes):
        return source[:SIGNATURE_BYTES]
    try:
        if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
            return read_file_head(source)
    except (OSError, ValueError):  # refused when it is opened; ValueError: no valid path
        pass
    return b""


def expand_video(
    video: Video, image_config: ImageProcessorConfig, fetcher: Fetcher
) -> list[TextPiece | PreprocessedImage]:
    """The text and the pictures that a video becomes in a prompt: an introduction, and a caption before each frame.

    Raises:
        BadVideo: the checkpoint was not trained with video, or the video cannot be read.
        BadPicture: there is no such file, it may not be fetched, or a frame of a list cannot be opened.
        MissingExtra: the video is a file, and PyAV is not installed.
    """
    if image_config.video is None:
        names = ", ".join(row.name for row in CATALOG if row.is_video_trained)
        raise BadVideo(
            f"this checkpoint was not trained with video: load one that was ({names}), or send frames as pictures"
        )
    times, duration, pictures = _sample_frames(video, image_config, image_config.video, fetcher)
    count, length = number_to_words(len(times)), timedelta(seconds=int(duration))
    parts: list[TextPiece | PreprocessedImage] = [
        TextPiece(VIDEO_INTRODUCTION.format(count=count, length=length), trusted=True)
    ]
    for time, tiles in zip(times, pictures, strict=True):
        caption = FRAME_CAPTION.format(minutes=int(time // 60), seconds=int(time % 60))
        parts += [TextPiece(caption, trusted=True), tiles]
    return [*parts, TextPiece(VIDEO_END, trusted=True)]


def number_to_words(number: int) -> str:
    """A number from 0 to 999,999 in English words, as num2words writes it: 101 is "one hundred and one"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    separator = "" if not rest else " and " if rest < 100 else ", "
    return f"{number_to_words(number // size)} {name}{separator}{number_to_words(rest) if rest else ''}"


ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def sample_frame_indices(num_frames: int, fps: Fraction | float, config: VideoProcessorConfig) -> list[int]:
    """Indices of the frames to show, evenly spread over the video, as the released sampling function computes them.

    The ends of a long video are left out, and no index occurs twice.

    Args:
        num_frames: frames of the video.
        fps: frames per second of the video.
    """
    duration = float(num_frames / fps)
    num_sampled = max(min(round(config.fps * duration), config.max_frames), 1)
    first, last = 0, num_frames - 1
    if config.skip_seconds and duration - 2 * config.skip_seconds > config.max_frames * config.fps:
        skipped = config.skip_seconds * float(fps)
        first, last = int(skipped), min(int(num_frames - skipped), last)
        if first >= last:
            first, last = 0, num_frames - 1
    return [int(index) for index in np.unique(np.linspace(first, last, num_sampled, dtype=int))]


def check_video(video: Video, fetcher: Fetcher) -> None:
    """Raises the errors that opening a video file would raise (`open_video`); decodes no frames.

    Lists of frames are not checked.
    """
    if _is_file_source(video.source):
        with open_video(video.source, fetcher):
            pass


def _sample_frames(
    video: Video, image_config: ImageProcessorConfig, video_config: VideoProcessorConfig, fetcher: Fetcher
) -> tuple[list[float], float, list[PreprocessedImage]]:
    """Reads the frames of a video that the model sees: (times in seconds, duration in seconds, preprocessed frames).

    Frames are never split into tiles.
    """
    unsplit_config = replace(image_config, longest_edge=video_config.longest_edge, do_image_splitting=False)
    if _is_file_source(video.source):
        if video.fps is not None:
            raise BadSetting(
                f"fps is {video.fps}, but a video file has its own: give fps with a list of frames only"
            )
        with open_video(video.source, fetcher) as file:
            indices, fps, duration = (
                sample_frame_indices(file.num_frames, file.fps, video_config),
                float(file.fps),
                file.duration_seconds,
            )
            pictures = [preprocess_image(image, unsplit_config) for image in file.read_frames(indices)]
    else:
        frames = _list_frames(video.source)
        indices, fps, duration = _sample_listed_frames(len(frames), video.fps, video_config)
        opened = (open_picture(Picture.of(frames[index]), fetcher) for index in indices)
        pictures = [preprocess_image(image, unsplit_config) for image in opened]
    return [index / fps for index in indices], duration, pictures


def _is_file_source(source: VideoSource) -> TypeGuard[VideoFileSource]:
    """Whether a video is given as a path, URL or bytes, not as its frames."""
    return isinstance(source, (str, bytes, os.PathLike))


def _list_frames(source: VideoSource) -> list[Picture | PictureSource]:
    """The frames of a video that is given as a list or an array; raises BadVideo for anything else."""
    if isinstance(source, np.ndarray) and source.ndim != 4 and not is_array_of_strings_or_objects(source):
        raise BadVideo(f"a video array has the shape {source.shape}; give (frames, height, width, channels)")
    if not isinstance(source, (Sequence, np.ndarray)):
        raise BadVideo(
            f"a video cannot be of type {type(source).__name__}: give a path, bytes, an http(s) URL, a data URI or a "
            "list of frames"
        )
    if not len(source):
        raise BadVideo("a video has no frames: give at least one")
    return list(source)


def _sample_listed_frames(
    num_frames: int, fps: float | None, video_config: VideoProcessorConfig
) -> tuple[list[int], float, float]:
    """Which frames of a video given as a list are used: (indices, frames per second, duration in seconds).

    Without `fps` the caller has sampled the frames, and all are used.
    """
    if fps is not None:
        return sample_frame_indices(num_frames, fps, video_config), fps, num_frames / fps
    if num_frames > video_config.max_frames:
        raise BadVideo(
            f"a video of {num_frames} frames is too long; this checkpoint is shown {video_config.max_frames}: give "
            "fewer, or give fps (frames per second), and they are sampled"
        )
    return list(range(num_frames)), DEFAULT_FPS, (num_frames - 1) / DEFAULT_FPS
