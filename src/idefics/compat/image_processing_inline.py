"""The image processors of families that read pictures in the text: frames of native size, or tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from idefics.compat.batch_feature import BatchFeature
from idefics.compat.image_inputs import group_by_sample
from idefics.compat.image_processing import (
    ChannelValue,
    ImageProcessor,
    config_to_settings,
    drop_ignored_kwargs,
    get_edge,
    stack_pixel_values,
)
from idefics.config import ImageProcessorConfig
from idefics.errors import BadSetting
from idefics.models.family import HALF_PER_CHANNEL
from idefics.models.idefics3 import read_video_config
from idefics.processing.tile_plan import compute_tile_grid

UNBOUNDED_EDGE = 2**31  # pixels of an edge


@drop_ignored_kwargs
@dataclass(kw_only=True)
class Idefics2ImageProcessor(ImageProcessor):
    """Idefics 2's: pictures keep their size within bounds, and may be cut into quarters first.

    Args:
        size: {"shortest_edge": ..., "longest_edge": ...}, pixels; or {"height": ..., "width": ...}, both alike, which
            does not keep the aspect.
        do_image_splitting: four quarters and the whole picture instead of it alone.
        return_row_col_info: the call also returns `rows` and `cols`, the grid of each picture.
        resample: PIL's filter, by its number.
        do_convert_rgb: False takes pictures that are RGB already.
        do_resize: False keeps the sizes of pictures.
        do_pad: False returns no mask; without `return_tensors`, frames of different sizes.
    """

    do_convert_rgb: bool = True
    do_resize: bool = True
    size: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"shortest_edge": 378, "longest_edge": 980}
    )
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: ChannelValue = dataclasses.field(default_factory=lambda: list(HALF_PER_CHANNEL))
    image_std: ChannelValue = dataclasses.field(default_factory=lambda: list(HALF_PER_CHANNEL))
    do_pad: bool = True
    do_image_splitting: bool = False
    return_row_col_info: bool | None = None

    @classmethod
    def from_processor_config(cls, config: ImageProcessorConfig) -> Self:
        """The settings that make this plan."""
        size = {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge}
        return cls(
            size=cast(Mapping[str, int], size),
            do_image_splitting=config.do_image_splitting,
            **config_to_settings(config),
        )

    def to_processor_config(self, tokens_per_frame: int = 1) -> ImageProcessorConfig:
        """Frames of the pictures' own sizes, within bounds."""
        if not self.do_resize:
            min_edge, max_edge = 1, UNBOUNDED_EDGE
        elif "height" in self.size:
            min_edge, max_edge = (get_edge("size", self.size, name) for name in ("width", "height"))
            if min_edge != max_edge:
                raise BadSetting(
                    f"size is {dict(self.size)}; height and width must be alike: give shortest_edge and longest_edge"
                )
        else:
            min_edge, max_edge = (
                get_edge("size", self.size, f"{name}_edge") for name in ("shortest", "longest")
            )
        return ImageProcessorConfig(
            frame_size=max_edge,
            longest_edge=max_edge,
            shortest_edge=min_edge,
            do_image_splitting=self.do_image_splitting,
            tokens_per_frame=tokens_per_frame,
            **self.resample_and_normalize_kwargs(),
        )

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """Pixels of a batch: a picture, a list of them (one sample) or a list for each of B samples.

        Args:
            images: see `as_picture`; an array (N, ...) is a list of N.
            return_tensors: "pt", "np" or None, which leaves lists.
            input_data_format: where an array's channels are, if its shape does not say it.
            changes: other settings, for this call.

        Returns:
            `pixel_values` (B, F, 3, H, W) and `pixel_attention_mask` (B, F, H, W), F the most frames of a sample,
            H and W the largest of the batch; what is filled up is 0 in both.
        """
        processor = self.with_settings(**changes)
        samples = [
            [processor.preprocess_picture(one, input_data_format) for one in sample]
            for sample in group_by_sample(images)
        ]
        entries = stack_pixel_values(samples, return_tensors, do_pad=processor.do_pad)
        if processor.return_row_col_info:
            entries["rows"] = [[picture.rows for picture in sample] for sample in samples]
            entries["cols"] = [[picture.columns for picture in sample] for sample in samples]
        return entries


@drop_ignored_kwargs
@dataclass(kw_only=True)
class Idefics3ImageProcessor(Idefics2ImageProcessor):
    """Idefics 3's: a picture is resized, cut into square tiles, and added whole.

    Args:
        size: {"longest_edge": ...}, pixels that the longer edge gets; or {"height": ..., "width": ...}.
        do_resize: False leaves out this first step; tiles have their size all the same.
        max_image_size: {"longest_edge": ...}, the side of a tile.
        do_image_splitting: tiles and the whole picture instead of it alone.
        video_sampling: {"fps": ..., "max_frames": ..., "video_size": {"longest_edge": ...}}, which frames of a video
            are shown, and how large (SmolVLM2); None for checkpoints that know no video.
    """

    size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"longest_edge": 4 * 364})
    resample: int = 1
    do_image_splitting: bool = True
    max_image_size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"longest_edge": 364})
    video_sampling: Mapping[str, Any] | None = None

    @classmethod
    def from_processor_config(cls, config: ImageProcessorConfig) -> Self:
        """The settings that make this plan."""
        video_sampling: dict[str, Any] | None = None
        if config.video is not None:
            size = {"longest_edge": config.video.longest_edge}
            video_sampling = {
                "fps": config.video.fps,
                "max_frames": config.video.max_frames,
                "video_size": size,
            }
        return cls(
            video_sampling=video_sampling,
            size={"longest_edge": cast(int, config.longest_edge)},
            max_image_size={"longest_edge": config.frame_size},
            do_image_splitting=config.do_image_splitting,
            **config_to_settings(config),
        )

    def to_processor_config(self, tokens_per_frame: int = 1) -> ImageProcessorConfig:
        """Square frames."""
        tile_size = get_edge("max_image_size", self.max_image_size, "longest_edge")
        keeps_aspect = self.do_resize and self.fixed_size() is None
        return ImageProcessorConfig(
            frame_size=tile_size,
            longest_edge=get_edge("size", self.size, "longest_edge") if keeps_aspect else None,
            video=None if self.video_sampling is None else read_video_config(self.video_sampling, tile_size),
            do_image_splitting=self.do_image_splitting,
            tokens_per_frame=tokens_per_frame,
            **self.resample_and_normalize_kwargs(),
        )

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> tuple[int, int, int]:
        """How many frames a picture of this size becomes, and the rows and columns of its grid (1 where it is whole).

        Args:
            images_kwargs: other settings.
        """
        processor = self.with_settings(**(images_kwargs or {}))
        width, height = processor.fixed_size() or (width, height)
        rows, columns = compute_tile_grid(width, height, processor.to_processor_config())
        return rows * columns + 1, max(rows, 1), max(columns, 1)

    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) of `size`, where it is not the longest edge."""
        if not self.do_resize or not isinstance(self.size, Mapping) or "longest_edge" in self.size:
            return None
        return get_edge("size", self.size, "width"), get_edge("size", self.size, "height")


@drop_ignored_kwargs
@dataclass(kw_only=True)
class SmolVLMImageProcessor(Idefics3ImageProcessor):
    """SmolVLM's: as Idefics 3's."""


# Names of transformers 4.48 and later: there is one implementation.
Idefics2ImageProcessorFast = Idefics2ImageProcessor
Idefics3ImageProcessorFast = Idefics3ImageProcessor
SmolVLMImageProcessorFast = SmolVLMImageProcessor
