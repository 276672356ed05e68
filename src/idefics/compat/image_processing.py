"""The image processors as the guides call them: images of every kind to pixel tensors.

Each class holds the settings of a family and converts them to an `ImageProcessorConfig`; the pixels are computed by
`processing.image_processor`. Files are turned upright by their EXIF tag and image objects are not, as in transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image

from idefics.compat.batch_feature import Array
from idefics.compat.image_utils import load_image
from idefics.compat.keyword_arguments import IGNORED_IMAGE_KWARGS, check_save_kwargs, split_kwargs
from idefics.compat.media_inputs import as_picture, is_float_array
from idefics.compat.pretrained import PROCESSOR_FILES, AnnotatedFields, PretrainedMixin, StrPath, write_json
from idefics.config import ImageProcessorConfig
from idefics.errors import BadPicture, BadSetting, UnknownArgument
from idefics.messages import ImageDetail, Picture
from idefics.models.family import resample_filter_name
from idefics.processing.checkpoint_settings import read_preprocessor_config
from idefics.processing.image_processor import preprocess_image
from idefics.prompt import PreprocessedImage

ChannelValue = float | Sequence[float] | None


class ImageProcessor(PretrainedMixin, AnnotatedFields):
    """The base of the image processors. Their fields are settings, and arguments of the call too."""

    file_selection = PROCESSOR_FILES
    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask"]
    is_fast = False

    do_convert_rgb: bool = True
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    do_image_splitting = False  # a field of the inline families alone
    resample: int
    image_mean: ChannelValue
    image_std: ChannelValue

    def __init__(self, *values: Any, **named: Any) -> None:
        if named.get("data_format", "channels_first") not in ("channels_first", None):
            raise BadSetting(
                f"data_format is {named['data_format']!r}; the models read channels first: leave it out"
            )
        _, settings = split_kwargs(named, IGNORED_IMAGE_KWARGS)
        if unknown := settings.keys() - self.fields.keys():
            raise UnknownArgument(type(self).__name__, sorted(unknown), sorted(self.fields))
        super().__init__(*values, **settings)

    def to_processor_config(self, tokens_per_frame: int = 1) -> ImageProcessorConfig:
        """The settings as an `ImageProcessorConfig`; each frame has `tokens_per_frame` tokens in a prompt."""
        return ImageProcessorConfig(
            **self._frame_sizes(),
            do_image_splitting=self.do_image_splitting,
            tokens_per_frame=tokens_per_frame,
            resample=resample_filter_name(int(self.resample)),
            rescale_factor=self.rescale_factor if self.do_rescale else 1.0,
            mean=_to_channel_values(self.image_mean) if self.do_normalize else (0.0,) * 3,
            std=_to_channel_values(self.image_std) if self.do_normalize else (1.0,) * 3,
        )

    def _frame_sizes(self) -> dict[str, Any]:
        """The fields of `ImageProcessorConfig` that say how large frames are."""
        raise NotImplementedError

    @classmethod
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads preprocessor_config.json of a folder; `settings` take the place of those in the file."""
        return cls.from_dict(read_preprocessor_config(folder), **settings)

    @classmethod
    def from_dict(  # type: ignore[override]  # the argument's name in transformers
        cls, image_processor_dict: Mapping[str, Any], **changes: Any
    ) -> Self:
        """Makes an image processor from the content of a preprocessor_config.json, without fields that are no settings.

        Args:
            changes: settings with another value.
        """
        settings, _ = split_kwargs(image_processor_dict, cls.fields)
        return cls(**settings).with_settings(**changes)

    def save_pretrained(self, save_directory: StrPath, **keywords: Any) -> list[str]:
        """Writes preprocessor_config.json, and returns its path in a list."""
        check_save_kwargs(keywords)
        return [write_json(Path(save_directory) / "preprocessor_config.json", self.to_dict())]

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {**values, "resample": int(self.resample), "image_processor_type": type(self).__name__}

    def with_settings(self, **changes: Any) -> Self:
        """A copy with other settings; None leaves a setting as it is. Raises UnknownArgument for an unknown one."""
        changes = {name: value for name, value in changes.items() if value is not None}
        return type(self)(**{**vars(self), **changes})

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens URLs and files as upright RGB images, also in nested lists; image objects stay as they are.

        Raises:
            BadPicture: there is no such file, it is not an image, or a URL is refused or cannot be reached.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(one) for one in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike, bytes, Picture)):
            return load_image(image_url_or_urls)
        return image_url_or_urls

    def preprocess_picture(self, source: Any, input_data_format: str | None = None) -> PreprocessedImage:
        """Opens an image and computes its frames.

        Args:
            source: as in `as_picture`.
            input_data_format: "channels_first" or "channels_last", where the shape of an array is ambiguous.

        Raises:
            BadPicture: the image cannot be opened, or is not RGB with `do_convert_rgb=False`; or an array of floats
                from 0 to 1 would be rescaled.
        """
        if not self.do_convert_rgb and isinstance(source, PIL.Image.Image) and source.mode != "RGB":
            raise BadPicture(
                f"do_convert_rgb is False, and a picture has the mode {source.mode}; the models read RGB: give True"
            )
        picture, config = as_picture(source, input_data_format), self.to_processor_config()
        if is_float_array(picture):
            if self.do_rescale:
                raise BadPicture(
                    "an array holds floats from 0 to 1, and do_rescale would divide them by 255 again: give "
                    "do_rescale=False"
                )
            config = replace(config, rescale_factor=1 / 255)
        image = self._prepare_opened_image(load_image(picture))
        return preprocess_image(image, config, picture.resolve_detail(ImageDetail()))

    def _prepare_opened_image(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Resizes an opened image before `preprocess_image`, or refuses its size; by default it stays as it is."""
        return image

    def __call__(self, images: Any, **options: Any) -> Any:
        """Computes pixel values, as `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(self, images: Any, **options: Any) -> Any:
        """Computes the pixel values of images; each family has its own arguments."""
        raise NotImplementedError


def size_settings(config: ImageProcessorConfig) -> dict[str, Any]:
    """The sizes of frames in `config`, under the names of the image processors' settings.

    A processor has some of these settings.
    """
    edges = {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge}
    return {
        "image_size": config.frame_size,
        "max_image_size": {"longest_edge": config.frame_size},
        "size": {name: edge for name, edge in edges.items() if edge is not None} or None,
    }


def _to_channel_values(value: ChannelValue) -> tuple[float, float, float]:
    """Mean or deviation of each of three channels, from one number or three; raises BadSetting for anything else."""
    match (value,) * 3 if isinstance(value, (int, float)) else value:
        case [red, green, blue]:
            return red, green, blue
    raise BadSetting(f"image_mean or image_std is {value!r}; give one number, or one for each of 3 channels")


def stack_pixel_values(
    samples: Sequence[Sequence[PreprocessedImage]], return_tensors: str | None, *, do_pad: bool
) -> dict[str, Any]:
    """`pixel_values` and `pixel_attention_mask` of a batch; no entries where there are no images.

    Args:
        do_pad: False: frames are not padded, and there is no mask.

    Raises:
        BadSetting: frames that differ in size or number cannot be stacked without padding.
    """
    frames = [[frame for picture in sample for frame in picture.frames] for sample in samples]
    if not any(frames):
        return {}
    if not do_pad:
        if return_tensors is None:
            return {"pixel_values": frames}
        if len({len(sample) for sample in frames}) > 1 or len({f.shape for s in frames for f in s}) > 1:
            raise BadSetting("do_pad is False, and pictures differ in size or number: give do_pad=True")
    values, mask = pad_and_stack(frames)
    return {"pixel_values": values} | ({"pixel_attention_mask": mask} if do_pad else {})


def pad_and_stack(samples: Sequence[Sequence[Array]]) -> tuple[Array, Array]:
    """Frames (3, h, w) of B samples -> float32 (B, F, 3, H, W) and a mask (B, F, H, W), padded with zeros."""
    height, width = np.max([frame.shape[1:] for sample in samples for frame in sample], axis=0)
    shape = (len(samples), max(map(len, samples)))
    values = np.zeros((*shape, 3, height, width), np.float32)
    mask = np.zeros((*shape, height, width), np.int64)
    for row, sample in enumerate(samples):
        for index, frame in enumerate(sample):
            region = (row, index, ..., slice(frame.shape[1]), slice(frame.shape[2]))
            values[region] = frame
            mask[region] = 1
    return values, mask


def get_edge(setting_name: str, size: Mapping[str, int], key: str) -> int:
    """An edge, in pixels, of a size such as {"longest_edge": 980}. Raises BadSetting where it is missing."""
    if not isinstance(size, Mapping) or not isinstance(size.get(key), int) or size[key] < 1:
        raise BadSetting(f'{setting_name} is {size!r}; give {{"{key}": pixels}}')
    return size[key]
