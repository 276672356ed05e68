"""Pictures to what the model keeps of them: feature rows in the text, or keys and values beside it.

Knows no tokens and no caches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from idefics.engine.contract import VLM
from idefics.nn.attention import LayerMemory, Memory
from idefics.prompt import Tiles


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


class Pictures:
    """What the model keeps of each picture, by the picture's key. Each is encoded once.

    Attributes:
        features: the rows (F*M, D) that stand in the text for a picture of F frames; empty where pictures are
            read beside the text.
        memory: keys and values (1, M, H, K) of each cross layer; empty where pictures are read in the text.
    """

    def __init__(self, model: VLM, at_once: int) -> None:
        self.model, self.at_once = model, at_once
        self.features: dict[str, Tensor] = {}
        self.memory: dict[str, Memory] = {}

    def read(self, pictures: Iterable[Tiles]) -> None:
        """Encodes those that are new."""
        new = [
            tiles
            for key, tiles in {tiles.key: tiles for tiles in pictures}.items()
            if key not in self.features and key not in self.memory
        ]
        if not new:
            return
        encoded = encode_frames(self.model, [frame for tiles in new for frame in tiles.frames], self.at_once)
        if self.model.layout.cross_layers:
            self._remember(new, torch.stack(encoded))
        else:
            rows = iter(encoded)
            for tiles in new:
                self.features[tiles.key] = torch.cat([next(rows) for _ in tiles.frames])

    def _remember(self, pictures: list[Tiles], features: Tensor) -> None:
        """Keys and values beside the text, where a picture is one frame: features are (P, M, D')."""
        memory = self.model.memory(features)
        assert memory is not None, "a model with cross layers has a memory for them"
        for index, tiles in enumerate(pictures):
            one = slice(index, index + 1)
            self.memory[tiles.key] = [LayerMemory(keys[one], values[one]) for keys, values in memory]

    def forget(self, pictures: Iterable[Tiles]) -> None:
        """Drops what is kept of these pictures; caches that have read them are not touched."""
        for tiles in pictures:
            self.features.pop(tiles.key, None)
            self.memory.pop(tiles.key, None)
