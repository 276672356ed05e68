"""Prompts as processing gives them to the engine: token ids and preprocessed pictures. No torch, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class PromptAdapter:
    """An adapter of a loaded model, with which prompts are answered.

    Attributes:
        name: by which callers choose it.
        index: its number among the model's adapters.
        key: SHA-256 (hex) of its files.
        changes_pictures: whether pictures are encoded in another way with it.
    """

    name: str
    index: int
    key: str
    changes_pictures: bool


@dataclass(frozen=True, eq=False)
class PreprocessedImage:
    """One picture, ready for the vision tower.

    Attributes:
        frames: arrays (3, h, w) of float32, normalised; several where the picture was split, the whole picture last.
        rows, columns: the grid of the tiles; (0, 0) where the picture was not split.
        content_hash: SHA-256 (hex) of the upright pixels, or of what their first resize leaves if that is less, and of
            how they were preprocessed: equal hashes mean equal frames.
        note: what was not read of the picture's file, in one sentence; empty where all was.
        base: the picture that this one was made of by changing a part. Frames that are the very arrays of the base, the
            last one excepted, need not be encoded again while the base is cached.
        adapter: the adapter that the picture is encoded with; None: the model without one, or with one that does not
            change pictures.
    """

    frames: tuple[np.ndarray, ...]
    rows: int
    columns: int
    content_hash: str
    note: str = ""
    base: PreprocessedImage | None = None
    adapter: PromptAdapter | None = None

    @property
    def feature_key(self) -> str:
        """The picture's key in the caches of features: equal keys mean equal features."""
        return self.content_hash if self.adapter is None else f"{self.content_hash} {self.adapter.key}"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids and the pictures among them.

    Attributes:
        ids: N token ids.
        pictures: P pictures in the order of the prompt.
        image_token_positions: for each picture the positions of its image tokens in `ids`: in inline-image models one
            per feature row, all frames in order; in cross-attention models the one `<image>`.
        image_index: N numbers: for each token the index of the latest picture at or before it, or -1 where there is
            none (yet, or since the end of its document).
        adapter: the adapter that answers; None: the model without one.
    """

    ids: tuple[int, ...]
    pictures: tuple[PreprocessedImage, ...]
    image_token_positions: tuple[tuple[int, ...], ...]
    image_index: tuple[int, ...]
    adapter: PromptAdapter | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read of the pictures' files, each sentence once."""
        return tuple(dict.fromkeys(picture.note for picture in self.pictures if picture.note))

    def with_last_pictures(self, pictures: Sequence[PreprocessedImage]) -> Prompt:
        """The same tokens with other pictures of the same tiles in the place of the last ones."""
        kept = self.pictures[: len(self.pictures) - len(pictures)]
        return replace(self, pictures=(*kept, *pictures))

    def text_prefix(self, end: int) -> Prompt:
        """The first `end` tokens as a prompt of their own; only for a prompt without pictures."""
        return Prompt(self.ids[:end], (), (), self.image_index[:end], self.adapter)

    def with_adapter(self, adapter: PromptAdapter) -> Prompt:
        """The same prompt, to be answered with an adapter."""
        pictures = self.pictures
        if adapter.changes_pictures:
            pictures = tuple(replace(picture, adapter=adapter) for picture in pictures)
        return replace(self, adapter=adapter, pictures=pictures)


class ScoringPrompt(NamedTuple):
    """A prompt and the continuations whose likelihoods are compared.

    Attributes:
        prompt: what all continuations share.
        continuations: the token ids of each after the prompt.
    """

    prompt: Prompt
    continuations: tuple[tuple[int, ...], ...]
