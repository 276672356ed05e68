"""The image processors of families that read pictures in the text: frames of native size, or tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from idefics.compat.features import BatchFeature
from idefics.compat.image_processing import ImageProcessor, Number, nested, pixels, settings_of
from idefics.config import ImagePlan
from idefics.errors import BadSetting
from idefics.models.idefics3 import video_plan

HALF = [0.5, 0.5, 0.5]


@dataclass(kw_only=True)
class Idefics2ImageProcessor(ImageProcessor):
    """Idefics 2's: pictures keep their size within bounds, and may be cut into quarters first.

    Args:
        size: {"shortest_edge": ..., "longest_edge": ...}, pixels.
        do_image_splitting: four quarters and the whole picture instead of it alone.
        resample: PIL's filter, by its number.
        do_convert_rgb, do_resize, do_pad: True; the models read nothing else.
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

    def __post_init__(self) -> None:
        for name in ("do_convert_rgb", "do_resize", "do_pad"):
            if not getattr(self, name):
                raise BadSetting(
                    f"{name} is {getattr(self, name)!r}; the models of this family need it: give True"
                )

    @classmethod
    def from_plan(cls, plan: ImagePlan) -> Self:
        """The settings that make this plan."""
        size = {"shortest_edge": plan.shortest, "longest_edge": plan.longest}
        return cls(size=cast(Mapping[str, int], size), do_image_splitting=plan.splitting, **settings_of(plan))

    def plan(self, tokens: int = 1) -> ImagePlan:
        """Frames of the pictures' own sizes."""
        longest = edge("size", self.size, "longest_edge")
        return ImagePlan(
            side=longest,
            longest=longest,
            shortest=edge("size", self.size, "shortest_edge"),
            splitting=self.do_image_splitting,
            tokens=tokens,
            **self.numbers(),
        )

    def preprocess(
        self,
        images: Any,
        *,
        return_row_col_info: bool = False,
        return_tensors: str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """Pixels of a batch: a picture, a list of them (one sample) or a list for each of B samples.

        Args:
            return_row_col_info: also return `rows` and `cols` of each picture's grid.
            changes: other settings, for this call.

        Returns:
            `pixel_values` (B, F, 3, H, W) and `pixel_attention_mask` (B, F, H, W), F the most frames of a sample,
            H and W the largest of the batch; what is filled up is 0 in both.
        """
        maker = self.changed(**changes)
        samples = [[maker.tiles(one) for one in sample] for sample in nested(images)]
        entries = pixels(samples, return_tensors)
        if return_row_col_info:
            entries["rows"] = [[picture.rows for picture in sample] for sample in samples]
            entries["cols"] = [[picture.columns for picture in sample] for sample in samples]
        return entries


@dataclass(kw_only=True)
class Idefics3ImageProcessor(Idefics2ImageProcessor):
    """Idefics 3's and SmolVLM's: a picture is resized, cut into square tiles, and added whole.

    Args:
        size: {"longest_edge": ...}, pixels that the longer edge gets.
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
        return ImagePlan(
            side=side,
            longest=edge("size", self.size, "longest_edge"),
            video=None if self.video_sampling is None else video_plan(self.video_sampling, side),
            splitting=self.do_image_splitting,
            tokens=tokens,
            **self.numbers(),
        )


def edge(name: str, size: Mapping[str, int], key: str) -> int:
    """One number of a size as the guides write it."""
    if not isinstance(size, Mapping) or not isinstance(size.get(key), int) or size[key] < 1:
        raise BadSetting(f'{name} is {size!r}; give {{"{key}": pixels}}')
    return size[key]
