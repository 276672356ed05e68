"""What a picture costs in a prompt, from its width and height alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from idefics.messages import ImageDetail
from idefics.processing.picture_expansion import image_placeholder_text
from idefics.processing.tile_plan import plan_tiles

if TYPE_CHECKING:
    from idefics.processing.processor import Processor


class ImageCost(NamedTuple):
    """What a picture costs in a prompt of its own.

    Attributes:
        rows, columns: the grid of its tiles; (0, 0) where it stays whole.
        num_frames: how many inputs of the vision tower it becomes: its tiles and the whole picture.
        num_tokens: how many tokens of the prompt it takes.
    """

    rows: int
    columns: int
    num_frames: int
    num_tokens: int


def compute_image_cost(processor: Processor, width: int, height: int, image_detail: ImageDetail) -> ImageCost:
    """The cost of a picture of `width` x `height` pixels, upright."""
    image_config = processor.image_config
    plan = plan_tiles(width, height, image_config, image_detail)
    text = image_placeholder_text(
        processor.prompt_format,
        image_config.tokens_per_frame,
        plan.rows,
        plan.columns,
        follows_picture=False,
    )
    num_tokens = len(processor.tokenizer.encode(text, add_special_tokens=False))
    return ImageCost(plan.rows, plan.columns, len(plan.frame_sizes), num_tokens)
