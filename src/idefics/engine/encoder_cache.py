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

from idefics.engine.model_interface import VLM
from idefics.nn.attention import CrossKV
from idefics.prompt import PreprocessedImage

log = logging.getLogger(__name__)


def first_float_parameter(model: VLM) -> Tensor:
    """A floating-point parameter of the model: its device is where the engine computes."""
    return next(weight for weight in model.parameters() if weight.is_floating_point())


def encode_frames(model: VLM, frames: Sequence[np.ndarray], max_batch_frames: int) -> list[Tensor]:
    """Float32 arrays (3, h, w), of any sizes -> (M, D') each, in the same order.

    Frames of one size go through the vision tower together, `max_batch_frames` at most.
    """
    device = first_float_parameter(model).device
    indices_by_size: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        indices_by_size[frame.shape].append(index)
    features: dict[int, Tensor] = {}
    for indices in indices_by_size.values():
        for start in range(0, len(indices), max_batch_frames):
            batch = indices[start : start + max_batch_frames]
            pixels = torch.from_numpy(np.stack([frames[index] for index in batch]))  # (P, 3, h, w)
            encoded = model.encode(pixels.to(device, model.dtype))  # (P, M, D')
            features.update(zip(batch, encoded, strict=True))
    return [features[index] for index in range(len(frames))]


@dataclass(slots=True)
class CachedImage:
    """What is kept of one picture.

    Attributes:
        frames: (M, D') of each frame that has been encoded, until all have been.
        features: the rows (F*M, D) that stand in the text for a picture of F frames.
        cross_kv: keys and values (1, M, H, K) of each cross layer, where pictures are read beside the text.
    """

    frames: list[Tensor]
    features: Tensor | None = None
    cross_kv: CrossKV = ()

    @property
    def is_complete(self) -> bool:
        return self.features is not None or bool(self.cross_kv)

    @property
    def size_bytes(self) -> int:
        """Bytes."""
        features = () if self.features is None else (self.features,)
        return sum(
            x.nbytes for x in (*self.frames, *features, *(x for layer in self.cross_kv for x in layer))
        )


class EncoderCache:
    """Pictures that have been encoded, by their keys: each once, until its room is wanted.

    Args:
        max_batch_frames: so many frames go through the vision tower together.
        max_bytes: bytes. What is in use is kept even beyond them.

    Attributes:
        num_encoded: how many pictures have been encoded so far.
    """

    def __init__(self, model: VLM, max_batch_frames: int, max_bytes: int) -> None:
        self.model, self.max_batch_frames, self.max_bytes = model, max_batch_frames, max_bytes
        self.image_by_key: OrderedDict[str, CachedImage] = OrderedDict()  # the longest unused first
        self.size_bytes = self.num_encoded = 0

    def count_missing_frames(self, tiles: PreprocessedImage) -> int:
        """How many frames of a picture are not encoded yet."""
        image = self.image_by_key.get(tiles.content_hash)
        if image is None:
            return len(tiles.frames)
        return 0 if image.is_complete else len(tiles.frames) - len(image.frames)

    def features(self, tiles: PreprocessedImage) -> Tensor:
        """(F*M, D): what stands in the text for a picture."""
        image = self._touch(tiles)
        assert image.features is not None, "pictures stand in the text"
        return image.features

    def cross_kv(self, tiles: PreprocessedImage) -> CrossKV:
        """What a token that sees a picture beside the text sees of it."""
        return self._touch(tiles).cross_kv

    def encode(self, encoder_inputs: Sequence[tuple[PreprocessedImage, int]]) -> dict[str, Exception]:
        """Encodes so many more frames of each picture, those of one size together.

        Returns:
            What went wrong, by the keys of pictures.
        """
        errors: dict[str, Exception] = {}
        try:
            self._encode(encoder_inputs)
        except Exception:  # one of them: which?
            for encoder_input in encoder_inputs:
                try:
                    self._encode([encoder_input])
                except Exception as error:
                    errors[encoder_input[0].content_hash] = error
        return errors

    def evict_unused(self, keys_in_use: Collection[str], max_bytes: int | None = None) -> None:
        """Drops the longest unused until `max_bytes` bytes are left, or as many as may be; those `keys_in_use` stay."""
        for key in [key for key in self.image_by_key if key not in keys_in_use]:
            if self.size_bytes <= (self.max_bytes if max_bytes is None else max_bytes):
                break
            self._evict(key)

    def _encode(self, encoder_inputs: Sequence[tuple[PreprocessedImage, int]]) -> None:
        start_time = time.perf_counter()
        frames = []
        for tiles, count in encoder_inputs:
            num_encoded_frames = len(tiles.frames) - self.count_missing_frames(tiles)
            frames.append(tiles.frames[num_encoded_frames : num_encoded_frames + count])
        encoded = iter(
            encode_frames(
                self.model, [frame for new_frames in frames for frame in new_frames], self.max_batch_frames
            )
        )
        for (tiles, _), new_frames in zip(encoder_inputs, frames, strict=True):
            if not new_frames:
                continue
            previous = self.image_by_key.get(tiles.content_hash, CachedImage([]))
            # Copies: a slice would keep all that was encoded with it.
            encoded_frames = [*previous.frames, *(next(encoded).clone() for _ in new_frames)]
            image = (
                self._complete_image(tiles, encoded_frames)
                if len(encoded_frames) == len(tiles.frames)
                else CachedImage(encoded_frames)
            )
            self.image_by_key[tiles.content_hash] = (
                image  # nothing half-made is kept, or counted, if that failed
            )
            self.size_bytes += image.size_bytes - previous.size_bytes
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "encoded %d frames of %d pictures in %.3f s",
                sum(map(len, frames)),
                len(encoder_inputs),
                time.perf_counter() - start_time,
            )

    def _complete_image(self, tiles: PreprocessedImage, frames: list[Tensor]) -> CachedImage:
        """What is kept of a picture all of whose frames, (M, D') each, have been encoded."""
        image = CachedImage([], features=torch.cat(frames))
        if self.model.layout.num_cross_attention_layers:
            cross_kv = self.model.compute_cross_kv(torch.cat(frames)[None])
            assert cross_kv is not None, "a model with cross layers has a memory for them"
            image = CachedImage([], cross_kv=cross_kv)
        self.num_encoded += 1
        return image

    def _touch(self, tiles: PreprocessedImage) -> CachedImage:
        self.image_by_key.move_to_end(tiles.content_hash)
        return self.image_by_key[tiles.content_hash]

    def _evict(self, key: str) -> None:
        if image := self.image_by_key.pop(key, None):
            self.size_bytes -= image.size_bytes
