"""The forecast of what a training keeps of pictures: how much of it in memory, and how much in files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from idefics.config import ModelConfig
from idefics.errors import format_bytes
from idefics.train.pictures import MEMORY_BYTES, DiskSpace
from idefics.train.rows import RowSizes
from idefics.train.trainable import LearnedParameters, part_of


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPictures:
    """Where a training keeps what it reads of pictures, so that it is computed once.

    Attributes:
        memory: bytes in memory.
        disk: bytes of files, which are there until the training ends.
        free_disk: bytes that are free on that disk.
        encodes_again: whether some pictures are encoded each time, since neither memory nor disk keeps all of them.
    """

    memory: int
    disk: int
    free_disk: int
    encodes_again: bool

    def line(self) -> str:
        """What is written, for people; "" if nothing is."""
        if not self.disk and not self.encodes_again:
            return ""
        more = "; others are encoded each time" if self.encodes_again else ""
        return (
            f"disk: at most {format_bytes(self.disk)} of {format_bytes(self.free_disk)} free, for features of pictures "
            f"until training ends{more}"
        )


def forecast_kept_pictures(
    config: ModelConfig, learned: LearnedParameters, sizes: RowSizes, num_seen_rows: int, disk: DiskSpace
) -> KeptPictures:
    """Forecasts what `PictureStore` keeps, in float32. Nothing is written if no picture is shown a second time.

    Args:
        config: of the model.
        learned: what is learned of it.
        sizes: of the rows.
        num_seen_rows: how many rows all steps learn from, a row again in each epoch.
        disk: of the folder of the files.
    """
    vision, parts = config.vision, {part_of(name) for name in learned.by_name}
    if "vision" in parts:
        numbers = 3 * vision.image_size**2
    elif "connector" in parts:
        numbers = vision.patches_per_side**2 * vision.hidden_size
    elif config.resampler is not None:
        numbers = config.resampler.num_latents * vision.hidden_size
    else:
        numbers = image_tokens_per_frame(config) * config.text.hidden_size
    num_image_tokens = sizes.num_distinct_image_tokens + sizes.num_validation_image_tokens
    num_bytes = math.ceil(num_image_tokens / image_tokens_per_frame(config) * numbers * 4)
    is_repeated = num_seen_rows > sizes.num_rows or sizes.num_image_tokens > sizes.num_distinct_image_tokens
    rest = max(0, num_bytes - MEMORY_BYTES) if is_repeated and "vision" not in parts else 0
    return KeptPictures(
        memory=min(MEMORY_BYTES, num_bytes),
        disk=min(rest, disk.usable),
        free_disk=disk.free,
        encodes_again=rest > disk.usable,
    )


def image_tokens_per_frame(config: ModelConfig) -> int:
    """How many image tokens stand for one frame in a row."""
    if config.cross_attention is not None:
        return 1
    if config.perceiver is not None:
        return config.perceiver.num_latents
    return config.vision.patches_per_side**2 // config.pixel_shuffle_factor**2
