"""`EncodedRows`: the rows of training data as token ids in a few flat arrays."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np

from idefics.processing.picture_expansion import build_prompt
from idefics.processing.processor import Processor
from idefics.train.data.picture_table import PictureTable
from idefics.train.data.placeholders import Grid, PlaceholderExpander
from idefics.train.data.row_encoder import EncodedExample
from idefics.train.rows import RowsDigest, TokenCounts, TrainingRow


class EncodedRows:
    """Rows with one image token a picture, which become whole when they are taken. Implements `TrainingRows`.

    Args:
        processor: of the checkpoint; its `image_detail` is that of pictures without their own.

    Attributes:
        pictures: the pictures of all rows.
        expander: makes the whole ids of a row.
        skipped: the names of rows that were left out because they are too long.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self.pictures = PictureTable(processor.image_config, processor.image_detail)
        self.expander = PlaceholderExpander(processor)
        self.skipped: tuple[str, ...] = ()
        self._names: list[str] = []
        self._ids, self._is_target, self._picture_indices = array("i"), array("b"), array("i")
        # Where the ids and the pictures of each row begin; the last number is where those of the last row end.
        self._id_starts, self._picture_starts = array("q", [0]), array("q", [0])
        self._lengths = array("i")
        self._kept = array("q")  # the numbers of the rows that are not left out

    def append(self, name: str, encoded: EncodedExample, pictures: Sequence[int]) -> None:
        """Adds a row.

        Args:
            name: of the row.
            encoded: its tokens.
            pictures: the indices of its pictures in the table.
        """
        self._kept.append(len(self._names))
        self._names.append(name)
        self._ids.extend(encoded.ids)
        self._is_target.extend(encoded.is_target)
        self._picture_indices.extend(pictures)
        self._id_starts.append(len(self._ids))
        self._picture_starts.append(len(self._picture_indices))
        self._lengths.append(self.expander.expanded_length(encoded.ids, self._grids(pictures)))

    def longer_than(self, limit: int) -> list[tuple[int, str, int]]:
        """The index, the name and the number of tokens of each row that has more than `limit`."""
        return [
            (index, self._names[row], self._lengths[row])
            for index, row in enumerate(self._kept)
            if self._lengths[row] > limit
        ]

    def leave_out(self, indices: Collection[int]) -> None:
        """Leaves out the rows with these indices; they are named in `skipped`."""
        left_out = set(indices)
        self.skipped += tuple(self._names[self._kept[index]] for index in sorted(left_out))
        self._kept = array("q", (row for at, row in enumerate(self._kept) if at not in left_out))

    @property
    def lengths(self) -> np.ndarray:
        """(R,) int32: the tokens of each row."""
        return np.array(self._lengths, np.int32)[np.array(self._kept, np.int64)]

    def count_tokens(self) -> TokenCounts:
        """How many tokens each row has, of all kinds, without making the rows whole."""
        kept = np.array(self._kept, np.int64)
        tokens_of_picture = np.array(
            [
                self.expander.num_image_tokens(self.pictures[index].grid)
                for index in range(len(self.pictures))
            ],
            np.int64,
        )
        picture_tokens = tokens_of_picture[np.array(self._picture_indices, np.int64)]
        return TokenCounts(
            lengths=self.lengths,
            targets=_sums(np.array(self._is_target, np.int64), self._id_starts)[kept],
            image_tokens=_sums(picture_tokens, self._picture_starts)[kept],
            num_distinct_image_tokens=int(tokens_of_picture.sum()),
            num_left_out=len(self.skipped),
        )

    def digest(self) -> RowsDigest:
        """What identifies the rows; no picture is read."""
        tokens, pictures = hashlib.sha256(), hashlib.sha256()
        for numbers in (self._kept, self._id_starts, self._ids, self._is_target):
            tokens.update(numbers)
        for numbers in (self._kept, self._picture_starts, self._picture_indices):
            pictures.update(numbers)
        pictures.update(self.pictures.digest())
        return RowsDigest(num_rows=len(self), tokens=tokens.hexdigest(), pictures=pictures.hexdigest())

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> TrainingRow:
        row = self._kept[index]
        ids = self._ids[self._id_starts[row] : self._id_starts[row + 1]].tolist()
        is_target = np.array(self._is_target[self._id_starts[row] : self._id_starts[row + 1]], bool)
        pictures = self._picture_indices[self._picture_starts[row] : self._picture_starts[row + 1]].tolist()
        grids = self._grids(pictures)
        whole_ids = self.expander.expand(ids, grids)
        prompt = build_prompt(
            whole_ids,
            (),
            self._processor.image_token_id,
            [self.expander.num_image_tokens(grid) for grid in grids],
            self._processor.end_of_document_id,
        )
        return TrainingRow(
            name=self._names[row],
            ids=np.array(whole_ids, np.int32),
            is_target=self.expander.expand_mask(ids, grids, is_target),
            image_index=np.array(prompt.image_index, np.int32),
            image_token_positions=tuple(np.array(one, np.int32) for one in prompt.image_token_positions),
            picture_keys=tuple(map(self.pictures.key, pictures)),
            read_pictures=partial(self.pictures.read, pictures),
            read_thumbnails=partial(self.pictures.make_thumbnails, pictures),
        )

    def _grids(self, pictures: Sequence[int]) -> list[Grid]:
        """The grids of some pictures."""
        return [self.pictures[index].grid for index in pictures]


def _sums(values: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """The sum of the values of each row; `starts` says where each begins, and where the last ends."""
    totals = np.concatenate([[0], np.cumsum(values)])
    return np.diff(totals[np.array(starts, np.int64)])
