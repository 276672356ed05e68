"""Pictures to what the model keeps of them: feature rows in the text, or keys and values beside it.

Knows no tokens and no caches.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idefics.engine.contract import VLM
from idefics.nn.attention import Memory
from idefics.prompt import Tiles

log = logging.getLogger(__name__)


def first_weight(model: VLM) -> Tensor:
    """A floating-point parameter of the model: its device is where the engine computes."""
    return next(weight for weight in model.parameters() if weight.is_floating_point())


def encode_frames(model: VLM, frames: Sequence[np.ndarray], at_once: int) -> list[Tensor]:
    """Float32 arrays (3, h, w), of any sizes -> (M, D') each, in the same order.

    Frames of one size go through the vision tower together, `at_once` at most.
    """
    device = first_weight(model).device
    by_size: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        by_size[frame.shape].append(index)
    features: dict[int, Tensor] = {}
    for indices in by_size.values():
        for start in range(0, len(indices), at_once):
            some = indices[start : start + at_once]
            pixels = torch.from_numpy(np.stack([frames[index] for index in some]))  # (P, 3, h, w)
            encoded = model.encode(pixels.to(device, model.dtype))  # (P, M, D')
            features.update(zip(some, encoded, strict=True))
    return [features[index] for index in range(len(frames))]


@dataclass(slots=True)
class Kept:
    """What is kept of one picture.

    Attributes:
        frames: (M, D') of each frame that has been encoded, until all have been.
        features: the rows (F*M, D) that stand in the text for a picture of F frames.
        memory: keys and values (1, M, H, K) of each cross layer, where pictures are read beside the text.
    """

    frames: list[Tensor]
    features: Tensor | None = None
    memory: Memory = ()

    @property
    def is_whole(self) -> bool:
        return self.features is not None or bool(self.memory)

    @property
    def size(self) -> int:
        """Bytes."""
        whole = () if self.features is None else (self.features,)
        return sum(x.nbytes for x in (*self.frames, *whole, *(x for layer in self.memory for x in layer)))


class Pictures:
    """Pictures that have been encoded, by their keys: each once, until its room is wanted.

    Args:
        at_once: so many frames go through the vision tower together.
        most: bytes. What is in use is kept even beyond them.

    Attributes:
        encoded: how many pictures have been encoded so far.
    """

    def __init__(self, model: VLM, at_once: int, most: int) -> None:
        self.model, self.at_once, self.most = model, at_once, most
        self.kept: OrderedDict[str, Kept] = OrderedDict()  # the longest unused first
        self.size = self.encoded = 0

    def missing(self, tiles: Tiles) -> int:
        """How many frames of a picture are not encoded yet."""
        kept = self.kept.get(tiles.key)
        if kept is None:
            return len(tiles.frames)
        return 0 if kept.is_whole else len(tiles.frames) - len(kept.frames)

    def features(self, tiles: Tiles) -> Tensor:
        """(F*M, D): what stands in the text for a picture."""
        kept = self._used(tiles)
        assert kept.features is not None, "pictures stand in the text"
        return kept.features

    def memory(self, tiles: Tiles) -> Memory:
        """What a token that sees a picture beside the text sees of it."""
        return self._used(tiles).memory

    def encode(self, wanted: Sequence[tuple[Tiles, int]]) -> dict[str, Exception]:
        """Encodes so many more frames of each picture, those of one size together.

        Returns:
            What went wrong, by the keys of pictures.
        """
        errors: dict[str, Exception] = {}
        try:
            self._encode(wanted)
        except Exception:  # one of them: which?
            for one in wanted:
                try:
                    self._encode([one])
                except Exception as error:
                    errors[one[0].key] = error
        return errors

    def make_room(self, in_use: Collection[str], most: int | None = None) -> None:
        """Drops the longest unused until `most` bytes are left, or as many as may be; those `in_use` stay."""
        for key in [key for key in self.kept if key not in in_use]:
            if self.size <= (self.most if most is None else most):
                break
            self._drop(key)

    def _encode(self, wanted: Sequence[tuple[Tiles, int]]) -> None:
        began = time.perf_counter()
        frames = []
        for tiles, count in wanted:
            begun = len(tiles.frames) - self.missing(tiles)
            frames.append(tiles.frames[begun : begun + count])
        encoded = iter(encode_frames(self.model, [frame for some in frames for frame in some], self.at_once))
        for (tiles, _), some in zip(wanted, frames, strict=True):
            if not some:
                continue
            before = self.kept.get(tiles.key, Kept([]))
            # Copies: a slice would keep all that was encoded with it.
            now = [*before.frames, *(next(encoded).clone() for _ in some)]
            kept = self._finished(tiles, now) if len(now) == len(tiles.frames) else Kept(now)
            self.kept[tiles.key] = kept  # nothing half-made is kept, or counted, if that failed
            self.size += kept.size - before.size
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "encoded %d frames of %d pictures in %.3f s",
                sum(map(len, frames)),
                len(wanted),
                time.perf_counter() - began,
            )

    def _finished(self, tiles: Tiles, frames: list[Tensor]) -> Kept:
        """What is kept of a picture all of whose frames, (M, D') each, have been encoded."""
        kept = Kept([], features=torch.cat(frames))
        if self.model.layout.cross_layers:
            memory = self.model.memory(torch.cat(frames)[None])
            assert memory is not None, "a model with cross layers has a memory for them"
            kept = Kept([], memory=memory)
        self.encoded += 1
        return kept

    def _used(self, tiles: Tiles) -> Kept:
        self.kept.move_to_end(tiles.key)
        return self.kept[tiles.key]

    def _drop(self, key: str) -> None:
        if kept := self.kept.pop(key, None):
            self.size -= kept.size
