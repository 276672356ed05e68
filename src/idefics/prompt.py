"""The plain data that crosses from processing to the engine. No torch, no text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class PreprocessedImage:
    """One picture, ready for the vision tower.

    Attributes:
        frames: arrays (3, h, w) of float32, normalised; several where the picture was split, the whole one last.
        rows, columns: the grid of the split; (0, 0) where the picture was not split.
        content_hash: SHA-256 (hex) over the plan, and the picture's mode, size and upright pixels: equal keys mean equal frames.
        note: what was not read of the picture's file, in one sentence; empty where all was.
    """

    frames: tuple[np.ndarray, ...]
    rows: int
    columns: int
    content_hash: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids and the pictures among them.

    Attributes:
        ids: N token ids.
        pictures: P pictures in the order of the prompt.
        image_token_positions: for each picture the positions in `ids` that stand for it: one for each of its feature rows where
            pictures are read in the text (all frames in order), the one `<image>` where they are read beside it.
        image_index: for each token the index of the latest picture at or before it, or -1 (none yet, or after an
            end-of-document). N numbers.
    """

    ids: tuple[int, ...]
    pictures: tuple[PreprocessedImage, ...]
    image_token_positions: tuple[tuple[int, ...], ...]
    image_index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read of the pictures' files, each sentence once."""
        return tuple(dict.fromkeys(tiles.note for tiles in self.pictures if tiles.note))

    def text_prefix(self, end: int) -> Prompt:
        """The first `end` tokens of a prompt without pictures."""
        return Prompt(self.ids[:end], (), (), self.image_index[:end])
