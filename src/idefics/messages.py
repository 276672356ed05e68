"""The words that every door speaks: pictures, videos and messages in, answers and rankings out.

Knows no tensors, no tokenizer and no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from idefics.errors import BadSetting
from idefics.media_sources import BinaryFile, read_source
from idefics.validation import reject_unknown_fields, validate_text

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
    """How closely pictures are looked at, by checkpoints that cut them into tiles; others see one frame anyhow.

    Attributes:
        detail: "high": as the checkpoint was released; "low": the whole picture as one frame; "auto": as "high", but no
            picture is enlarged into more tiles than its own pixels fill.
        max_tiles: at most so many frames of a picture, the whole one among them: the grid shrinks and keeps the aspect.
            None: as many as the checkpoint makes.

    Raises:
        BadSetting: another word, or no whole number above 0.
    """

    detail: Detail = "high"
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.detail, str) or self.detail not in get_args(Detail):
            raise BadSetting(f"detail is {self.detail!r}; give one of {', '.join(get_args(Detail))}")
        most = self.max_tiles
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise BadSetting(
                f"max_tiles is {most!r}; give a whole number from 1 (the picture as one frame), or leave it out"
            )


@reject_unknown_fields
@dataclass(frozen=True, eq=False)
class Picture:
    """Something to look at. Opened late, when a prompt is made of it; a file object or a tensor is read at once.

    Args:
        source: a path, the bytes of a picture file, an open file (`open(path, "rb")`, `io.BytesIO`), a `PIL.Image`, an
            http(s) URL, a data URI, or the pixels as a NumPy array or a torch tensor: (H, W), (H, W, C) or (C, H, W)
            with 1, 3 or 4 channels; uint8, whole numbers of 0 to 255, uint16, bool, or floats of 0 to 1. Where a
            shape fits both orders, such as (3, H, 3), an array has its channels last and a tensor first.
        detail, max_tiles: of this picture, whatever the call says: see `ImageDetail`. None: what the call says.

    Raises:
        BadSetting: as `ImageDetail`.
        BadPicture: a file object cannot be read.
    """

    source: PictureSource
    detail: Detail | None = None
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", read_source(self.source))
        self.resolve_detail(ImageDetail())

    def resolve_detail(self, call: ImageDetail) -> ImageDetail:
        """The detail of this picture in a call: its own settings, and those of `call` where it has none."""
        return ImageDetail(
            call.detail if self.detail is None else self.detail,
            call.max_tiles if self.max_tiles is None else self.max_tiles,
        )

    @classmethod
    def of(cls, source: Picture | PictureSource) -> Picture:
        """A picture as it is, or the picture of a source."""
        return source if isinstance(source, Picture) else cls(source)


if TYPE_CHECKING:
    VideoFileSource = str | os.PathLike[str] | bytes
    VideoSource = VideoFileSource | FileObject | Sequence[Picture | PictureSource] | np.ndarray | Tensor


@reject_unknown_fields
@dataclass(frozen=True, eq=False)
class Video:
    """Something to watch, for checkpoints that were trained with video. Opened late, as a picture is.

    A file is read by PyAV (`pip install 'idefics[video]'`); frames need nothing more.

    Args:
        source: a path, the bytes of a video file, an open file, an http(s) URL or a data URI; or its frames in order: a
            list of what `Picture` takes, or an array or a tensor of frames, one of them `source[0]`.
        fps: frames a second, for frames alone; a file says it itself. Where it is given, frames are chosen as from a
            file. Where it is not, each one is shown, and the times said are those of 24 a second.

    Raises:
        BadSetting: `fps` is not above 0.
    """

    source: VideoSource
    fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", read_source(self.source))
        if self.fps is not None and (
            not isinstance(self.fps, (int, float)) or not 0 < self.fps < float("inf")
        ):
            raise BadSetting(f"fps is {self.fps!r}; give the frames a second, a number above 0")

    @classmethod
    def of(cls, source: Video | VideoSource) -> Video:
        """A video as it is, or the video of a source."""
        return source if isinstance(source, Video) else cls(source)


class LiteralText(str):
    """Words that are never taken for the name of a file or an address."""

    __slots__ = ()


PictureOrVideo = Picture | Video
ContentPart = str | PictureOrVideo
Role = Literal["system", "user", "assistant"]


@reject_unknown_fields
@dataclass(frozen=True)
class Message:
    """One turn of a conversation: text, pictures and videos in any order."""

    role: Role
    parts: tuple[ContentPart, ...]


def user(*parts: ContentPart) -> Message:
    """A turn of the user: `user(Picture("photo.jpg"), "What is on the table?")`."""
    return Message("user", parts)


def assistant(*parts: ContentPart) -> Message:
    """A turn of the model."""
    return Message("assistant", parts)


@reject_unknown_fields
@dataclass(frozen=True)
class Shot:
    """One worked example for few-shot prompting: a picture and the answer wanted for it.

    Args:
        picture: the example's picture, or its video.
        answer: what the model should have said.
        question: what it was asked; empty where the task's own question stands.
    """

    picture: PictureOrVideo
    answer: str
    question: str = ""

    def __post_init__(self) -> None:
        given: object = self.picture
        if not isinstance(given, PictureOrVideo):  # a path alone would be read as text
            object.__setattr__(self, "picture", Picture(given))  # type: ignore[arg-type]  # opened, it is looked at
        validate_text("answer", self.answer, "A puppy.", allow_blank=True)
        validate_text("question", self.question, "What is this?", allow_blank=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in tokens (pictures' tokens included in the prompt's).

    Attributes:
        cached_tokens: so many of the prompt's had been read already, for an earlier prompt with the same beginning.
    """

    prompt_tokens: int
    completion_tokens: int
    pictures: int
    cached_tokens: int = field(default=0, compare=False)  # says what came before, not what was asked


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds: reading pictures and text, to the first token, and in all."""

    prepare: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have stood in an answer's place, with its natural-log probability there."""

    token: int
    logprob: float


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. Prints as its text.

    Attributes:
        text: the words, and content tokens such as DocTags; control tokens are left out (see `skip_special_tokens`).
        tokens: generated ids, the final stop id not among them.
        finish: "stop" (stop id or stop string), "length" (the limit was reached) or "cancelled".
        usage: tokens and pictures.
        timings: seconds; of the whole batch where several prompts were answered together.
        logprobs: natural-log probability of each token, where it was asked for.
        top_logprobs: for each token the most likely ones in its place, the likeliest first, where asked for.
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
    """What an answer has gained since the last one. All deltas of an answer joined are its text, tokens and logprobs.

    Attributes:
        text: characters that are certain now; empty in a last one that has tokens alone.
        tokens: ids, from the one after the last delta's to the one that made the text certain.
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
        logprob: the label's score: the summed log-probability of its tokens, after any normalisation asked for.
    """

    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Labels from the most to the least likely; usage, timings and notes as in `Answer`. Prints as the best label."""

    labels: tuple[RankedLabel, ...]
    usage: Usage
    timings: Timings
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The most likely label."""
        return self.labels[0].label

    def __iter__(self) -> Iterator[RankedLabel]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return self.best
