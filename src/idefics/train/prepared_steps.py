"""The rows of an optimizer step, packed and read before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from idefics.train.packing import PackedBatch
from idefics.train.pictures import Frames


class PreparedBatch(NamedTuple):
    """A micro batch, and the frames of those of its pictures that are not kept yet."""

    batch: PackedBatch
    frames_by_key: Mapping[str, Frames]


class PreparedStep(NamedTuple):
    """The rows of an optimizer step.

    Attributes:
        batches: the micro batches of this process.
        num_tokens, num_targets: tokens that are computed, and learned, in all processes.
    """

    batches: Sequence[PreparedBatch]
    num_tokens: int
    num_targets: int
