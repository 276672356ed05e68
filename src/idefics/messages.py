"""The inputs and results of all frontends: pictures, videos and messages; answers and rankings.

Plain data: no torch, no tokenizer, no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from idefics.errors import BadSetting
from idefics.media_sources import BinaryFile, convert_in_memory_source
from idefics.validation import reject_unknown_fields, validate_choice, validate_text

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from torch import Tensor

    FileObject = bytearray | memoryview | BinaryFile
    PictureSource = str | os.PathLike[str] | bytes | FileObject | PIL.Image.Image | np.ndarray | Tensor


Detail = Literal["low", "high", "auto"]


@reject_unknown_fields
@dataclass(frozen=True, slots=True)
class ImageDetail:
    """Into how many tiles a picture is split, by checkpoints that split pictures; others always use one frame.

    Attributes:
        detail: "high": as the checkpoint was released; "low": the whole picture as one frame; "auto": as "high", but no
            picture is enlarged into more tiles than its own pixels fill.
        max_tiles: at most this many frames per picture, the whole picture among them: the grid shrinks and keeps its
            aspect ratio. None: as many as the checkpoint makes.

    Raises:
        BadSetting: `detail` is another word, or `max_tiles` is no whole number above 0.
    """

    detail: Detail = "high"
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        validate_choice("detail", self.detail, get_args(Detail))
        most = self.max_tiles
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise BadSetting(
                f"max_tiles is {most!r}; give a whole number from 1 (the picture as one frame), or leave it out"
            )


@reject_unknown_fields
@dataclass(frozen=True, eq=False)
class Picture:
    """A picture for a prompt, opened when the prompt is made; a file object or a tensor is read at once.

    Args:
        source: a path, the bytes of a picture file, an open file (`open(path, "rb")`, `io.BytesIO`), a `PIL.Image`, an
            http(s) URL, a data URI, or the pixels as a NumPy array or a torch tensor: (H, W), (H, W, C) or (C, H, W)
            with 1, 3 or 4 channels; uint8, whole numbers of 0 to 255, uint16, bool, or floats of 0 to 1. Where a
            shape fits both orders, such as (3, H, 3), an array has its channels last and a tensor first.
        detail, max_tiles: override those of the call for this picture: see `ImageDetail`. None: as in the call.

    Raises:
        BadSetting: see `ImageDetail`.
        BadPicture: a file object cannot be read.
    """

    source: PictureSource
    detail: Detail | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", convert_in_memory_source(self.source))
        self.resolve_detail(ImageDetail())

    def resolve_detail(self, call: ImageDetail) -> ImageDetail:
        """The detail of this picture in a call: its own settings, and those of `call` where it has none."""
        return ImageDetail(
            call.detail if self.detail is None else self.detail,
            call.max_tiles if self.max_tiles is None else self.max_tiles,
        )

    @classmethod
    def of(cls, source: Picture | PictureSource) -> Picture:
        """Returns a `Picture` as it is, and any other source as a new `Picture`."""
        return source if isinstance(source, Picture) else cls(source)


if TYPE_CHECKING:
    VideoFileSource = str | os.PathLike[str] | bytes
    VideoSource = VideoFileSource | FileObject | Sequence[Picture | PictureSource] | np.ndarray | Tensor


@reject_unknown_fields
@dataclass(frozen=True, eq=False)
class Video:
    """A video for a prompt, for checkpoints that were trained with video; opened when the prompt is made.

    A file is read by PyAV (`pip install 'idefics[video]'`); frames need no extra package.

    Args:
        source: a path, the bytes of a video file, an open file, an http(s) URL or a data URI; or its frames in order: a
            list of what `Picture` takes, or an array or a tensor whose first axis counts the frames.
        fps: frames per second, only where `source` is frames. With it, frames are sampled as from a file; without it,
            every frame is shown, with the times of 24 frames per second.

    Raises:
        BadSetting: `fps` is not above 0.
    """

    source: VideoSource
    fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", convert_in_memory_source(self.source))
        if self.fps is not None and (
            not isinstance(self.fps, (int, float)) or not 0 < self.fps < float("inf")
        ):
            raise BadSetting(f"fps is {self.fps!r}; give the frames a second, a number above 0")

    @classmethod
    def of(cls, source: Video | VideoSource) -> Video:
        """Returns a `Video` as it is, and any other source as a new `Video`."""
        return source if isinstance(source, Video) else cls(source)


class LiteralText(str):
    """Text that is never taken for the name of a file or a URL."""

    __slots__ = ()


PictureOrVideo = Picture | Video
ContentPart = str | PictureOrVideo
Role = Literal["system", "user", "assistant"]


@reject_unknown_fields
@dataclass(frozen=True)
class Message:
    """One turn of a conversation: its text, pictures and videos in any order."""

    role: Role
    parts: tuple[ContentPart, ...]


def user(*parts: ContentPart) -> Message:
    """A message of the user: `user(Picture("photo.jpg"), "What is on the table?")`."""
    return Message("user", parts)


def assistant(*parts: ContentPart) -> Message:
    """A message of the assistant, that is, an earlier answer: `assistant("A cup of tea.")`."""
    return Message("assistant", parts)


@reject_unknown_fields
@dataclass(frozen=True)
class Shot:
    """One example for few-shot prompting: a picture and the answer wanted for it.

    Args:
        picture: the example's picture or video.
        answer: the answer that the model should give.
        question: the question about the picture; empty for the task's own question.
    """

    picture: PictureOrVideo
    answer: str
    question: str = ""

    def __post_init__(self) -> None:
        given: object = self.picture
        if not isinstance(given, PictureOrVideo):  # a path alone would be read as text
            object.__setattr__(self, "picture", Picture(given))  # type: ignore[arg-type]  # checked when opened
        validate_text("answer", self.answer, "A puppy.", allow_blank=True)
        validate_text("question", self.question, "What is this?", allow_blank=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of an answer: tokens of the prompt (image tokens included), generated tokens, pictures in the prompt.

    Attributes:
        cached_tokens: prompt tokens that were in the prefix cache and not computed again.
    """

    prompt_tokens: int
    completion_tokens: int
    pictures: int
    cached_tokens: int = field(default=0, compare=False)  # depends on earlier requests


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds from the call until the prompt is made (prepare), the first token, and the last (total)."""

    prepare: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen at a position of the answer, with its natural-log probability there."""

    token: int
    logprob: float


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer; `str(answer)` is its text.

    Attributes:
        text: the words, and content tokens such as DocTags; control tokens are left out (see `skip_special_tokens`).
        tokens: generated ids without the final stop id.
        finish: "stop" (a stop id or stop string), "length" (the limit was reached) or "cancelled".
        usage: counts of tokens and pictures.
        timings: seconds; of the whole batch where several prompts were answered together.
        logprobs: natural-log probability of each token, if requested.
        top_logprobs: for each token the most likely tokens at its position, the likeliest first, if requested.
        notes: what was not read of the pictures' files, such as further pages of a TIFF; one sentence each.
    """

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[Alternative, ...], ...] | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Delta:
    """The part of a streamed answer since the last delta; joined, the deltas are its text, tokens and logprobs.

    Attributes:
        text: new characters that can no longer change; may be empty in the last delta.
        tokens: ids since the last delta, up to the one that completed the text.
        logprobs, top_logprobs: of each token, as in `Answer`.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[Alternative, ...], ...] | None = None


class RankedLabel(NamedTuple):
    """One label of a ranking: `for label, probability, logprob in ranking`.

    Attributes:
        label: the label as it was given.
        probability: softmax of the scores over the labels of the ranking.
        logprob: the label's score: the summed log-probability of its tokens, after the normalisation of the call.
    """

    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Labels from the most to the least likely; prints as the best. `usage`, `timings`, `notes`: as in `Answer`."""

    labels: tuple[RankedLabel, ...]
    usage: Usage
    timings: Timings
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The most likely label, as it was given."""
        return self.labels[0].label

    def __iter__(self) -> Iterator[RankedLabel]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return self.best
