"""Encoded pictures: feature rows for inline-image models, cross-attention keys and values for the others.

P frames of one size, F frames of a picture, M feature rows of a frame, D' width of features, D width of the decoder.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from idefics.config import EngineConfig
from idefics.engine.adapters import NO_ADAPTERS, ModelAdapters
from idefics.engine.model_interface import VLM
from idefics.engine.tensor_files import TensorFileCache
from idefics.nn.attention import CrossKV, LayerCrossKV
from idefics.prompt import PreprocessedImage

log = logging.getLogger(__name__)

# Pixels of one batch on a CPU. Tensors of more than 32 MiB are returned to the system and cleared by it for each batch.
CPU_BATCH_BYTES = 16 << 20


def first_float_parameter(model: VLM) -> Tensor:
    """The first floating-point parameter of a model: the engine puts ids and images on its device."""
    return next(weight for weight in model.parameters() if weight.is_floating_point())


def encode_frames(model: VLM, frames: Sequence[np.ndarray], max_batch_frames: int) -> list[Tensor]:
    """Image features of frames, batched by size.

    Args:
        frames: float32 arrays (3, h, w), of any sizes.
        max_batch_frames: how many frames of one size go through the vision tower in one batch.

    Returns:
        (M, D') for each frame, in the same order.
    """
    device = first_float_parameter(model).device
    indices_by_size: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        indices_by_size[frame.shape].append(index)
    features: dict[int, Tensor] = {}
    for indices in indices_by_size.values():
        cpu_batch_frames = max(1, CPU_BATCH_BYTES // frames[indices[0]].nbytes)
        batch_frames = min(max_batch_frames, cpu_batch_frames) if device.type == "cpu" else max_batch_frames
        for start in range(0, len(indices), batch_frames):
            batch = indices[start : start + batch_frames]
            pixels = torch.from_numpy(np.stack([frames[index] for index in batch]))  # (P, 3, h, w)
            encoded = model.encode(pixels.to(device, model.dtype))  # (P, M, D')
            features.update(zip(batch, encoded, strict=True))
    return [features[index] for index in range(len(frames))]


@dataclass(slots=True)
class CachedImage:
    """The cached encoding of one picture.

    Attributes:
        num_frames: how many frames have been encoded.
        features: (M, D') for each encoded frame, until all F are. Then in an inline-image model one (F*M, D), the
            embeddings at the picture's image tokens; in a cross-attention model none.
        cross_kv: in a cross-attention model, once all frames are encoded, (1, M, H, K) keys and values for each layer.
    """

    num_frames: int
    features: list[Tensor]
    cross_kv: CrossKV = ()

    @property
    def tensors(self) -> list[Tensor]:
        """The features, then the keys and values of each layer."""
        return [*self.features, *chain.from_iterable(self.cross_kv)]

    def is_complete_inline(self, num_frames: int) -> bool:
        """Whether all of the picture's frames are encoded, and their features are still here: an inline-image model."""
        return self.num_frames == num_frames and len(self.features) == 1 and not self.cross_kv

    @property
    def size_bytes(self) -> int:
        """The memory that the picture's tensors take, in bytes."""
        return sum(x.nbytes for x in self.tensors)


class EncoderCache:
    """Encoded pictures by feature key: each picture is encoded once and kept until evicted.

    Args:
        model: encodes the pictures.
        config: `encode_frames` is the most frames of one size that go through the vision tower in one batch;
            `picture_bytes` the size of the cache above which the engine evicts pictures that no request uses.
        feature_cache: files of pictures that were encoded before, also by other processes; None: no files.
        adapters: of the model.

    Attributes:
        image_by_key: the cached pictures, the least recently used first.
        size_bytes: the memory of all cached pictures, in bytes.
        num_encoded: how many pictures have been encoded so far.
    """

    def __init__(
        self,
        model: VLM,
        config: EngineConfig,
        feature_cache: TensorFileCache | None = None,
        adapters: ModelAdapters = NO_ADAPTERS,
    ) -> None:
        self.model, self.feature_cache, self.adapters = model, feature_cache, adapters
        self.max_batch_frames, self.max_bytes = config.encode_frames, config.picture_bytes
        self.image_by_key: OrderedDict[str, CachedImage] = OrderedDict()
        self.size_bytes = self.num_encoded = 0

    def count_missing_frames(self, image: PreprocessedImage) -> int:
        """How many frames of a picture are not encoded yet; first reads its file in `feature_cache` if there is one.

        Frames that the picture shares with its base do not count while the base is cached.
        """
        return len(self._missing_frame_indices(image))

    def features(self, image: PreprocessedImage) -> Tensor:
        """The features of an encoded picture in an inline-image model: (F*M, D) embeddings for its image tokens."""
        (features,) = self._mark_recently_used(image).features
        return features

    def cross_kv(self, image: PreprocessedImage) -> CrossKV:
        """The keys and values of an encoded picture for each cross-attention layer, (1, M, H, K) each."""
        return self._mark_recently_used(image).cross_kv

    def encode(self, encoder_inputs: Sequence[tuple[PreprocessedImage, int]]) -> None:
        """Encodes further frames of pictures.

        Args:
            encoder_inputs: pictures, and how many more of their frames to encode.
        """
        for adapter in dict.fromkeys(image.adapter for image, _ in encoder_inputs):
            self.adapters.select(adapter)
            self._encode_with_one_adapter([one for one in encoder_inputs if one[0].adapter == adapter])

    def _encode_with_one_adapter(self, encoder_inputs: Sequence[tuple[PreprocessedImage, int]]) -> None:
        """`encode` for pictures that are encoded with the same adapter, or without one."""
        start_time = time.perf_counter()
        indices = [self._missing_frame_indices(image)[:count] for image, count in encoder_inputs]
        all_frames = [
            image.frames[index]
            for (image, _), missing in zip(encoder_inputs, indices, strict=True)
            for index in missing
        ]
        encoded = iter(encode_frames(self.model, all_frames, self.max_batch_frames))
        for (image, _), missing in zip(encoder_inputs, indices, strict=True):
            if not missing:
                continue
            previous = self.image_by_key.get(image.feature_key, CachedImage(0, []))
            # Clones, since a slice would keep the features of the whole batch in memory.
            features = [
                *previous.features,
                *(
                    (next(encoded) if index in missing else self._base_features(image, index)).clone()
                    for index in range(previous.num_frames, missing[-1] + 1)
                ),
            ]
            cached = CachedImage(len(features), features)
            if cached.num_frames == len(image.frames):
                cached = self._complete_image(features)
                if self.feature_cache is not None and image.base is None:
                    self.feature_cache.store(image.feature_key, cached.tensors)
            # Stored last: an error above leaves the cache unchanged.
            self.image_by_key[image.feature_key] = cached
            self.size_bytes += cached.size_bytes - previous.size_bytes
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "encoded %d frames of %d pictures in %.3f s",
                len(all_frames),
                len(encoder_inputs),
                time.perf_counter() - start_time,
            )

    def evict_unused(self, keys_in_use: Collection[str], max_bytes: int | None = None) -> None:
        """Evicts unused pictures, the least recently used first, until the cache takes at most `max_bytes`.

        Args:
            keys_in_use: feature keys of the pictures that are kept, even if the cache stays larger.
            max_bytes: None: `picture_bytes` of the config.
        """
        for key in [key for key in self.image_by_key if key not in keys_in_use]:
            if self.size_bytes <= (self.max_bytes if max_bytes is None else max_bytes):
                break
            self.size_bytes -= self.image_by_key.pop(key).size_bytes

    def _missing_frame_indices(self, image: PreprocessedImage) -> list[int]:
        """Which frames of a picture have to be encoded: those after the encoded ones that the base does not have.

        The last one is always among them, so that a picture is complete once all of them are encoded.
        """
        cached = self.image_by_key.get(image.feature_key) or self._load_image(image)
        num_frames = len(image.frames)
        missing = range(cached.num_frames if cached is not None else 0, num_frames)
        base = image.base
        base_image = None if base is None else self.image_by_key.get(base.feature_key)
        if base is None or base_image is None or not base_image.is_complete_inline(num_frames):
            return list(missing)
        return [i for i in missing if i == num_frames - 1 or image.frames[i] is not base.frames[i]]

    def _base_features(self, image: PreprocessedImage, index: int) -> Tensor:
        """The (M, D) features of the frame number `index`, which the picture shares with its base."""
        assert image.base is not None
        (features,) = self.image_by_key[image.base.feature_key].features
        return features.chunk(len(image.frames))[index]

    def _complete_image(self, features: list[Tensor]) -> CachedImage:
        """The cache entry of a picture, from the (M, D') features of each of its frames."""
        all_features = torch.cat(features)
        cross_kv = self.model.compute_cross_kv(all_features[None])
        self.num_encoded += 1
        if cross_kv is None:
            return CachedImage(len(features), [all_features])
        return CachedImage(len(features), [], cross_kv)

    def _load_image(self, image: PreprocessedImage) -> CachedImage | None:
        """Reads a picture's file from `feature_cache` and adds it to this cache; returns None if there is no file."""
        if self.feature_cache is None or image.base is not None:
            return None
        tensors = self.feature_cache.load(image.feature_key)
        if tensors is None:
            return None
        cached = CachedImage(len(image.frames), tensors)
        if self.model.layout.num_cross_attention_layers:
            cross_kv = [LayerCrossKV(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
            cached = CachedImage(len(image.frames), [], cross_kv)
        self.image_by_key[image.feature_key] = cached
        self.size_bytes += cached.size_bytes
        return cached

    def _mark_recently_used(self, image: PreprocessedImage) -> CachedImage:
        """Marks a cached picture as the most recently used and returns it; KeyError if it is not cached."""
        self.image_by_key.move_to_end(image.feature_key)
        return self.image_by_key[image.feature_key]
