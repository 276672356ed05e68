"""The image processors of families that read pictures in the text: frames of native size, or tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from idefics.compat.features import BatchFeature
from idefics.compat.image_inputs import nested
from idefics.compat.image_processing import (
    ImageProcessor,
    Number,
    edge,
    leaves_out_inert,
    pixels,
    settings_of,
)
from idefics.config import ImagePlan
from idefics.errors import BadSetting
from idefics.models.idefics3 import video_plan
from idefics.processing.sizes import grid

HALF = [0.5, 0.5, 0.5]
UNBOUNDED = 2**31  # pixels of an edge


@leaves_out_inert
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
    image_mean: Number = dataclasses.field(default_factory=HALF.copy)
    image_std: Number = dataclasses.field(default_factory=HALF.copy)
    do_pad: bool = True
    do_image_splitting: bool = False
    return_row_col_info: bool | None = None

    @classmethod
    def from_plan(cls, plan: ImagePlan) -> Self:
        """The settings that make this plan."""
        size = {"shortest_edge": plan.shortest, "longest_edge": plan.longest}
        return cls(size=cast(Mapping[str, int], size), do_image_splitting=plan.splitting, **settings_of(plan))

    def plan(self, tokens: int = 1) -> ImagePlan:
        """Frames of the pictures' own sizes, within bounds."""
        if not self.do_resize:
            shortest, longest = 1, UNBOUNDED
        elif "height" in self.size:
            shortest, longest = (edge("size", self.size, name) for name in ("width", "height"))
            if shortest != longest:
                raise BadSetting(
                    f"size is {dict(self.size)}; height and width must be alike: give shortest_edge and longest_edge"
                )
        else:
            shortest, longest = (edge("size", self.size, f"{name}_edge") for name in ("shortest", "longest"))
        return ImagePlan(
            side=longest,
            longest=longest,
            shortest=shortest,
            splitting=self.do_image_splitting,
            tokens=tokens,
            **self.numbers(),
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
        maker = self.changed(**changes)
        samples = [[maker.tiles(one, input_data_format) for one in sample] for sample in nested(images)]
        entries = pixels(samples, return_tensors, padded=maker.do_pad)
        if maker.return_row_col_info:
            entries["rows"] = [[picture.rows for picture in sample] for sample in samples]
            entries["cols"] = [[picture.columns for picture in sample] for sample in samples]
        return entries


@leaves_out_inert
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
    def from_plan(cls, plan: ImagePlan) -> Self:
        """The settings that make this plan."""
        video: dict[str, Any] | None = None
        if plan.video is not None:
            size = {"longest_edge": plan.video.longest}
            video = {"fps": plan.video.fps, "max_frames": plan.video.most_frames, "video_size": size}
        return cls(
            video_sampling=video,
            size={"longest_edge": cast(int, plan.longest)},
            max_image_size={"longest_edge": plan.side},
            do_image_splitting=plan.splitting,
            **settings_of(plan),
        )

    def plan(self, tokens: int = 1) -> ImagePlan:
        """Square frames."""
        side = edge("max_image_size", self.max_image_size, "longest_edge")
        keeps_aspect = self.do_resize and self.exact_size() is None
        return ImagePlan(
            side=side,
            longest=edge("size", self.size, "longest_edge") if keeps_aspect else None,
            video=None if self.video_sampling is None else video_plan(self.video_sampling, side),
            splitting=self.do_image_splitting,
            tokens=tokens,
            **self.numbers(),
        )

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> tuple[int, int, int]:
        """How many frames a picture of this size becomes, and the rows and columns of its grid (1 where it is whole).

        Args:
            images_kwargs: other settings.
        """
        maker = self.changed(**(images_kwargs or {}))
        width, height = maker.exact_size() or (width, height)
        rows, columns = grid(width, height, maker.plan())
        return rows * columns + 1, max(rows, 1), max(columns, 1)

    def exact_size(self) -> tuple[int, int] | None:
        """(width, height) of `size`, where it is not the longest edge."""
        if not self.do_resize or not isinstance(self.size, Mapping) or "longest_edge" in self.size:
            return None
        return edge("size", self.size, "width"), edge("size", self.size, "height")


@leaves_out_inert
@dataclass(kw_only=True)
class SmolVLMImageProcessor(Idefics3ImageProcessor):
    """SmolVLM's: as Idefics 3's."""


# Names of transformers 4.48 and later: there is one implementation.
Idefics2ImageProcessorFast = Idefics2ImageProcessor
Idefics3ImageProcessorFast = Idefics3ImageProcessor
SmolVLMImageProcessorFast = SmolVLMImageProcessor
