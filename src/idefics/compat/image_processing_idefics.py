"""The image processor of Idefics: one square frame for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import PIL.Image
import torch

from idefics.compat.batch_feature import Array, to_tensor_type
from idefics.compat.image_processing import (
    ChannelValue,
    ImageProcessor,
    get_edge,
    pad_and_stack,
)
from idefics.compat.media_inputs import group_by_sample
from idefics.errors import BadSetting
from idefics.models.idefics1_config import CLIP_MEAN, CLIP_STD
from idefics.prompt import PreprocessedImage

PictureTransform = Callable[[Any], torch.Tensor]


class IdeficsImageProcessor(ImageProcessor):
    """The image processor of Idefics: every image becomes one square frame.

    Args:
        image_size: side of a frame in pixels; also as {"height": ..., "width": ...}, both the same.
        size: another name of `image_size`.
        do_resize: False: images must have this size.
        do_convert_rgb: False: images must be RGB.
        image_mean, image_std: a number, or one for each channel; None: CLIP's.
        image_num_channels: must be 3.
    """

    image_size: int | Mapping[str, int] = 224
    image_mean: ChannelValue = None
    image_std: ChannelValue = None
    image_num_channels: int = 3
    size: int | Mapping[str, int] | None = None
    resample: int = 3

    model_input_names: ClassVar = ["pixel_values"]

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        if self.size is not None:
            self.image_size, self.size = self.size, None
        if isinstance(self.image_size, Mapping):
            edges = {get_edge("image_size", self.image_size, name) for name in ("height", "width")}
            if len(edges) != 1:
                raise BadSetting(f"image_size is {dict(self.image_size)}; height and width are alike")
            self.image_size = edges.pop()
        if self.image_num_channels != 3:
            raise BadSetting(
                f"image_num_channels is {self.image_num_channels}; pictures are read in RGB: give 3"
            )
        self.image_mean = list(CLIP_MEAN) if self.image_mean is None else self.image_mean
        self.image_std = list(CLIP_STD) if self.image_std is None else self.image_std

    def _frame_sizes(self) -> dict[str, Any]:
        """The fields of `ImageProcessorConfig` for the size of frames: a square of `image_size`."""
        return {"frame_size": self.image_size, "longest_edge": None}

    def preprocess(
        self,
        images: Any,
        *,
        transform: PictureTransform | None = None,
        return_tensors: str | None = "pt",
        input_data_format: str | None = None,
        **changes: Any,
    ) -> Any:
        """Computes the pixel values (N, 3, side, side) of N images.

        Args:
            images: an image, or a list of images, nested or not, as in `as_picture`; an array (N, ...) is N images.
            transform: in place of the usual steps, a function of an image that returns a tensor (3, side, side).
            return_tensors: "pt"; "np" for an array; None for a list of arrays.
            input_data_format: where the channels of an array are, if its shape is ambiguous.
            changes: other settings, for this call.
        """
        processor = self.with_settings(**changes)
        frames = [
            processor.preprocess_with_transform(source, transform, input_data_format).frames[0]
            for sample in group_by_sample(images)
            for source in sample
        ]
        return (
            frames if return_tensors is None else to_tensor_type(stack_same_size([frames])[0], return_tensors)
        )

    def _prepare_opened_image(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Returns the image; raises BadSetting if it has another size than a frame and `do_resize` is False."""
        if not self.do_resize and image.size != (self.image_size, self.image_size):
            raise BadSetting(
                f"do_resize is False, and a picture has {image.width} x {image.height} pixels; the models read "
                f"{self.image_size} x {self.image_size}: leave it out"
            )
        return image

    def preprocess_with_transform(
        self, source: Any, transform: PictureTransform | None, input_data_format: str | None = None
    ) -> PreprocessedImage:
        """Opens and preprocesses an image.

        Args:
            source: as in `as_picture`.
            transform: (image) -> tensor (3, side, side), in place of the usual steps; None: the usual steps.
            input_data_format: where the channels of an array are, if its shape is ambiguous.

        Raises:
            BadSetting: `transform` returns something other than a tensor (3, side, side).
        """
        if transform is None:
            return self.preprocess_picture(source, input_data_format)
        frame = transform(self.fetch_images(source))
        if not isinstance(frame, torch.Tensor) or frame.dim() != 3 or frame.shape[0] != 3:
            raise BadSetting(
                f"transform returned a {type(frame).__name__}; it takes a picture and returns a tensor (3, side, side)"
            )
        array = frame.detach().cpu().float().numpy()
        key = hashlib.sha256(f"{array.shape} ".encode() + array.tobytes())
        return PreprocessedImage((array,), 0, 0, key.hexdigest())


def stack_same_size(samples: Sequence[Sequence[Array]]) -> Array:
    """Frames (3, h, w) of B samples, all of one size -> (B, F, 3, h, w); missing frames are zeros.

    Raises:
        BadSetting: the frames differ in size, as a `transform` returned them.
    """
    if len(sizes := {frame.shape for sample in samples for frame in sample}) > 1:
        raise BadSetting(
            f"transform returned pictures of the shapes {sorted(sizes)}: one size for all is needed"
        )
    return pad_and_stack(samples)[0]
