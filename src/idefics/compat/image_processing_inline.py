"""The image processors of the inline-image families: frames of native size (Idefics 2), or tiles (Idefics 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import PIL.Image

from idefics.compat.batch_feature import BatchFeature
from idefics.compat.image_processing import (
    ChannelValue,
    ImageProcessor,
    get_edge,
    stack_pixel_values,
)
from idefics.compat.media_inputs import group_by_sample
from idefics.errors import BadSetting
from idefics.models.family import HALF_PER_CHANNEL
from idefics.models.idefics3 import read_video_config
from idefics.processing.tile_plan import compute_tile_grid

UNBOUNDED_EDGE = 2**31  # pixels of an edge


class Idefics2ImageProcessor(ImageProcessor):
    """The image processor of Idefics 2: images keep their size within bounds, and may be split into quarters.

    Args:
        size: {"shortest_edge": ..., "longest_edge": ...} in pixels; or {"height": ..., "width": ...}, both the same,
            which does not keep the aspect.
        do_image_splitting: an image becomes its four quarters and the whole image.
        return_row_col_info: the call also returns `rows` and `cols`, the grid of each image.
        resample: number of PIL's filter.
        do_convert_rgb: False: images must be RGB.
        do_resize: False keeps the sizes of images.
        do_pad: False returns no mask, and without `return_tensors` frames of different sizes.
    """

    size: Mapping[str, int] = {"shortest_edge": 378, "longest_edge": 980}
    resample: int = 2
    image_mean: ChannelValue = [*HALF_PER_CHANNEL]  # noqa: RUF012
    image_std: ChannelValue = [*HALF_PER_CHANNEL]  # noqa: RUF012
    do_pad: bool = True
    do_image_splitting: bool = False
    return_row_col_info: bool | None = None

    def _frame_sizes(self) -> dict[str, Any]:
        """The fields of `ImageProcessorConfig` for the size of frames, from `size`; no bounds without `do_resize`."""
        min_edge, max_edge = 1, UNBOUNDED_EDGE
        if self.do_resize:
            names = ("width", "height") if "height" in self.size else ("shortest_edge", "longest_edge")
            min_edge, max_edge = (get_edge("size", self.size, name) for name in names)
            if "height" in self.size and min_edge != max_edge:
                raise BadSetting(
                    f"size is {dict(self.size)}; height and width must be alike: give shortest_edge and longest_edge"
                )
        return {"frame_size": max_edge, "longest_edge": max_edge, "shortest_edge": min_edge}

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """Computes the pixel values of an image, of a list of images (one sample), or of a list for each of B samples.

        Args:
            images: as in `as_picture`; an array (N, ...) is a list of N.
            return_tensors: "pt", "np" or None, which leaves lists.
            input_data_format: where the channels of an array are, if its shape is ambiguous.
            changes: other settings, for this call.

        Returns:
            `pixel_values` (B, F, 3, H, W) and `pixel_attention_mask` (B, F, H, W), F the largest number of frames of a
            sample, H and W the largest of the batch; padding is 0 in both.
        """
        processor = self.with_settings(**changes)
        samples = [
            [processor.preprocess_picture(one, input_data_format) for one in sample]
            for sample in group_by_sample(images)
        ]
        pixels = stack_pixel_values(samples, return_tensors, do_pad=processor.do_pad)
        entries = BatchFeature(pixels, return_tensors)
        if processor.return_row_col_info:
            entries["rows"] = [[picture.rows for picture in sample] for sample in samples]
            entries["cols"] = [[picture.columns for picture in sample] for sample in samples]
        return entries


class Idefics3ImageProcessor(Idefics2ImageProcessor):
    """The image processor of Idefics 3: an image is resized, split into square tiles, and added as a whole.

    Args:
        size: {"longest_edge": ...} to which the longer edge is resized; or {"height": ..., "width": ...}; in pixels.
        do_resize: False leaves this first step out; tiles always have their size.
        max_image_size: {"longest_edge": ...}, the side of a tile.
        do_image_splitting: tiles and the whole image; False: the whole image alone.
        video_sampling: {"fps": ..., "max_frames": ..., "video_size": {"longest_edge": ...}}, which frames of a video
            are used, and their size (SmolVLM2); None for checkpoints that were not trained with video.
    """

    size: Mapping[str, int] = {"longest_edge": 4 * 364}
    resample: int = 1
    do_image_splitting: bool = True
    max_image_size: Mapping[str, int] = {"longest_edge": 364}
    video_sampling: Mapping[str, Any] | None = None

    def _frame_sizes(self) -> dict[str, Any]:
        """The fields of `ImageProcessorConfig` for the size of tiles, of the resized image and of video frames."""
        tile_size = get_edge("max_image_size", self.max_image_size, "longest_edge")
        keeps_aspect = self.do_resize and self.fixed_resize_size() is None
        return {
            "frame_size": tile_size,
            "longest_edge": get_edge("size", self.size, "longest_edge") if keeps_aspect else None,
            "video": None
            if self.video_sampling is None
            else read_video_config(self.video_sampling, tile_size),
        }

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> tuple[int, int, int]:
        """The number of frames of an image of this size in pixels, and the rows and columns of its grid of tiles.

        Args:
            images_kwargs: other settings.
        """
        processor = self.with_settings(**(images_kwargs or {}))
        width, height = processor.fixed_resize_size() or (width, height)
        rows, columns = compute_tile_grid(width, height, processor.to_processor_config())
        return rows * columns + 1, max(rows, 1), max(columns, 1)

    def fixed_resize_size(self) -> tuple[int, int] | None:
        """(width, height) of `size`; None where `size` has a longest edge, or nothing is resized."""
        if not self.do_resize or not isinstance(self.size, Mapping) or "longest_edge" in self.size:
            return None
        return get_edge("size", self.size, "width"), get_edge("size", self.size, "height")

    def _prepare_opened_image(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Resizes an opened image to a fixed `size` if there is one; else returns it as it is."""
        size = self.fixed_resize_size() or image.size
        return image if size == image.size else image.resize(size, PIL.Image.Resampling(int(self.resample)))


class SmolVLMImageProcessor(Idefics3ImageProcessor):
    """The image processor of SmolVLM and SmolVLM2: that of Idefics 3 under its own name."""


# Names in transformers 4.48 and later; there is one implementation.
Idefics2ImageProcessorFast = Idefics2ImageProcessor
Idefics3ImageProcessorFast = Idefics3ImageProcessor
SmolVLMImageProcessorFast = SmolVLMImageProcessor
