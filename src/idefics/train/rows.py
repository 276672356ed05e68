"""`TrainingRow`: one row of training data as the model sees it, and what is counted of all rows.

Pictures are read when they are encoded.

N tokens, P pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from idefics.prompt import PreprocessedImage
    from idefics.train.settings import TrainSettings


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

    def digest(self) -> RowsDigest:
        """What identifies them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsDigest:
    """What identifies training data: a training continues with the same alone.

    Attributes:
        num_rows: how many rows.
        tokens: SHA-256 (hex) of the token ids of all rows, and of which are learned.
        pictures: the same of their pictures, and of how these are preprocessed. Of a picture in a file of its own it
            covers the size and the first and last bytes, of others the content. "": they may change.
    """

    num_rows: int
    tokens: str
    pictures: str

    def changes_to(self, now: RowsDigest) -> list[str]:
        """What is different now, for people."""
        if self.num_rows != now.num_rows:
            return [f"there were {self.num_rows:,} rows and are {now.num_rows:,}"]
        changes = []
        if self.tokens != now.tokens:
            changes.append("texts of the rows have changed")
        if self.pictures and self.pictures != now.pictures:
            changes.append("pictures of the rows have changed, or how they are preprocessed")
        return changes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSizes:
    """The sizes of the rows to learn.

    Attributes:
        num_rows: how many.
        num_tokens, num_targets: of all rows: tokens, and learned ones.
        longest: tokens of the longest row.
        most_targets: learned tokens of the row that has the most.
        num_image_tokens: of all rows.
        num_distinct_image_tokens: the same, equal pictures counted once.
        most_image_tokens: of the row that has the most.
        num_left_out: rows that are too long and not learned.
        num_validation_rows, num_validation_left_out: of the validation data.
        num_validation_image_tokens: of these, equal pictures counted once.
    """

    num_rows: int
    num_tokens: int
    num_targets: int
    longest: int
    most_targets: int
    num_image_tokens: int
    num_distinct_image_tokens: int
    most_image_tokens: int
    num_left_out: int = 0
    num_validation_rows: int = 0
    num_validation_left_out: int = 0
    num_validation_image_tokens: int = 0

    @classmethod
    def of(cls, counts: TokenCounts, validation: TokenCounts | None = None) -> RowSizes:
        """The sizes of rows, of which there is at least one, and of validation rows if there are any."""
        return cls(
            num_rows=len(counts.lengths),
            num_tokens=int(counts.lengths.sum()),
            num_targets=int(counts.targets.sum()),
            longest=int(counts.lengths.max()),
            most_targets=int(counts.targets.max()),
            num_image_tokens=int(counts.image_tokens.sum()),
            num_distinct_image_tokens=counts.num_distinct_image_tokens,
            most_image_tokens=int(counts.image_tokens.max()),
            num_left_out=counts.num_left_out,
            num_validation_rows=0 if validation is None else len(validation.lengths),
            num_validation_left_out=0 if validation is None else validation.num_left_out,
            num_validation_image_tokens=0 if validation is None else validation.num_distinct_image_tokens,
        )

    def micro_batch(self, settings: TrainSettings) -> tuple[int, int]:
        """The most tokens that are computed at once, and how many of them are learned, about."""
        num_tokens = max(self.longest, min(settings.micro_batch_tokens, settings.batch_size * self.longest))
        share = self.num_targets / self.num_tokens
        return num_tokens, max(self.most_targets, math.ceil(num_tokens * share))
