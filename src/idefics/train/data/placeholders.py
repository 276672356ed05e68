"""`PlaceholderExpander`: rows are tokenized with one image token a picture, which become as many as the picture needs.

A picture's placeholder begins and ends with a special token, so that it has the same ids in any text. Nothing is kept
of the thousand image tokens that a split picture has, and they are tokenized once for each grid of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from idefics.processing.picture_expansion import image_placeholder_text
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import TextPiece

if TYPE_CHECKING:
    from numpy.typing import NDArray

Grid = tuple[int, int]


class PlaceholderExpander:
    """Writes short placeholders into text, and makes whole ones of their ids.

    Args:
        processor: of the checkpoint.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._is_cross_attention = processor.prompt_format.image_tokens == "cross_attention"
        self._merges_neighbours = processor.prompt_format.image_tokens == "inline"
        short = self._encode(self._text(1, (0, 0), follows_picture=False))
        self._num_before = short.index(processor.image_token_id)
        self._short_length = len(short)
        self._ids_of_grid = lru_cache(maxsize=None)(self._encode_grid)

    def short_piece(self, *, follows_picture: bool) -> TextPiece:
        """The text that stands for a picture while a row is tokenized, with one image token."""
        return TextPiece(self._text(1, (0, 0), follows_picture=follows_picture), trusted=True)

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """The ids of a row with whole placeholders.

        Args:
            ids: of the row with short placeholders, one for each of `grids`.
        """
        return list(chain.from_iterable(self._pieces(ids, grids)))

    def expanded_length(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """How many ids `expand` makes."""
        return sum(map(len, self._pieces(ids, grids)))

    def expand_mask(
        self, ids: Sequence[int], grids: Sequence[Grid], mask: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """A mask over `ids` for the whole ids; it is False in placeholders, as it has to be in short ones."""
        pieces = self._pieces(ids, grids)
        expanded = np.zeros(sum(map(len, pieces)), bool)
        start = end = 0  # of a piece that is no placeholder: in the short ids, and in the whole ones
        for number, piece in enumerate(pieces):
            if number % 2 == 0:
                expanded[end : end + len(piece)] = mask[start : start + len(piece)]
                start += len(piece) + self._short_length
            end += len(piece)
        return expanded

    def num_image_tokens(self, grid: Grid) -> int:
        """How many image tokens a picture with this grid has."""
        if self._is_cross_attention:
            return 1
        return (grid[0] * grid[1] + 1) * self._processor.image_config.tokens_per_frame

    def _pieces(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[Sequence[int]]:
        """The ids of a row in pieces: those between placeholders as they are, and whole placeholders."""
        if self._is_cross_attention or not grids:
            return [ids]
        pieces, end = list[Sequence[int]](), 0
        position = -1
        for number, grid in enumerate(grids):
            position = ids.index(self._processor.image_token_id, position + 1)
            start = position - self._num_before
            placeholder = self._ids_of_grid(grid)
            if self._merges_neighbours and number and start == end:
                placeholder = placeholder[1:]  # neighbours share a fake token
            pieces += [ids[end:start], placeholder]
            end = start + self._short_length
        return [*pieces, ids[end:]]

    def _encode_grid(self, grid: Grid) -> list[int]:
        """The ids of the whole placeholder of a picture with this grid."""
        tokens_per_frame = self._processor.image_config.tokens_per_frame
        return self._encode(self._text(tokens_per_frame, grid, follows_picture=False))

    def _text(self, tokens_per_frame: int, grid: Grid, *, follows_picture: bool) -> str:
        return image_placeholder_text(
            self._processor.prompt_format, tokens_per_frame, *grid, follows_picture=follows_picture
        )

    def _encode(self, text: str) -> list[int]:
        return self._processor.tokenizer.encode_pieces([TextPiece(text, trusted=True)])
