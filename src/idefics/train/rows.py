"""`TrainingRow`: one row of training data as the model sees it. Pictures are read when they are encoded.

N tokens, P pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from idefics.prompt import PreprocessedImage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingRow:
    """One row: its token ids with the answers, and which of them the model is to learn.

    Attributes:
        name: identifies the row for people: "train.jsonl#17".
        ids: (N,) int32 token ids.
        is_target: (N,) bool: the token is learned. Never an image token, never a token of a question.
        image_index: (N,) int32: as in `Prompt`: for each token the latest of the P pictures before it, or -1.
        image_token_positions: (P arrays of int32) as in `Prompt`.
        picture_keys: for each picture a text that identifies its content and how it is preprocessed; equal keys
            mean equal frames.
        read_pictures: reads and preprocesses the row's P pictures; in any thread, as often as needed.
            Raises BadPicture.
        read_thumbnails: reads the pictures as small JPEG files, for people.
    """

    name: str
    ids: np.ndarray
    is_target: np.ndarray
    image_index: np.ndarray
    image_token_positions: tuple[np.ndarray, ...]
    picture_keys: tuple[str, ...]
    read_pictures: Callable[[], tuple[PreprocessedImage, ...]]
    read_thumbnails: Callable[[], tuple[bytes, ...]] = tuple

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        """How many tokens are learned."""
        return int(self.is_target.sum())


class TrainingRows(Protocol):
    """The rows of one file or folder, in its order; read and checked as a whole before training begins."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingRow: ...


@dataclass(frozen=True, slots=True, eq=False)
class TokenCounts:
    """How many tokens R rows have.

    Attributes:
        lengths: (R,) tokens of each row.
        targets: (R,) learned ones.
        image_tokens: (R,) image tokens.
        num_distinct_image_tokens: of all rows, equal pictures counted once.
        num_left_out: further rows, which are too long and not learned.
    """

    lengths: np.ndarray
    targets: np.ndarray
    image_tokens: np.ndarray
    num_distinct_image_tokens: int
    num_left_out: int
