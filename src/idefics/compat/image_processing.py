"""The image processors with the calls of the guides: pictures of every kind to pixel tensors.

Thin over `processing.images`: each class holds the settings of one family, and turns them into an `ImagePlan`.
Addresses and files are turned upright by their EXIF tag; objects are taken as they are, as the reference does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import torch

from idefics.compat.features import Array, BatchFeature, as_asked
from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest, write_json
from idefics.config import ImagePlan
from idefics.errors import BadPicture, BadPrompt, BadSetting
from idefics.messages import Picture
from idefics.models.family import FILTERS, filter_name
from idefics.processing import settings
from idefics.processing.fetch import Fetcher
from idefics.processing.images import open_picture, prepare
from idefics.processing.to_rgb import rgb
from idefics.prompt import Tiles

Number = float | Sequence[float] | None
Transform = Callable[[Any], torch.Tensor]


def fetcher() -> Fetcher:
    """Fetches any address, unless IDEFICS_REMOTE_IMAGES says otherwise."""
    return Fetcher(policy=os.environ.get("IDEFICS_REMOTE_IMAGES", "any"))


def as_picture(source: Any) -> Picture:
    """An address, a file, bytes, a PIL picture, or an array or tensor of uint8 with its channels first or last."""
    if isinstance(source, torch.Tensor):
        source = source.cpu().numpy()
    if isinstance(source, np.ndarray):
        channels_first = (
            source.ndim == 3 and source.shape[0] in {1, 3, 4} and source.shape[2] not in {1, 3, 4}
        )
        return Picture(source.transpose(1, 2, 0) if channels_first else source)
    if isinstance(source, PIL.Image.Image):
        try:
            return Picture(np.asarray(rgb(source)))  # an array has no tag that could turn it
        except OSError:
            raise BadPicture("a PIL picture is broken: its pixels cannot be read to the end") from None
    return source if isinstance(source, Picture) else Picture(source)


class ImageProcessor:
    """What the families' image processors share. Its fields are settings, each also a keyword of the call."""

    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask"]

    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Number
    image_std: Number

    @classmethod
    def from_plan(cls, plan: ImagePlan) -> Self:
        """The settings that make this plan."""
        raise NotImplementedError

    def plan(self, tokens: int = 1) -> ImagePlan:
        """How a picture becomes frames; `tokens` stand for each of them in a prompt."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **keywords: Any,
    ) -> Self:
        """The settings in a checkpoint's folder, or on the hub.

        Args:
            keywords: which folder is meant, as in `folder_and_rest`; settings instead of what the file says.
        """
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        return cls.from_settings(settings.preprocessor(folder)).changed(**changes)

    @classmethod
    def from_settings(cls, raw: Mapping[str, Any]) -> Self:
        """From a preprocessor_config.json; what else it holds, such as class names, means nothing here."""
        return cls(**{name: raw[name] for name in raw.keys() & cls._names()})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "preprocessor_config.json", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The settings as a preprocessor_config.json has them."""
        values = {name: value for name in self._names() if (value := getattr(self, name)) is not None}
        return {**values, "resample": int(self.resample), "image_processor_type": type(self).__name__}

    def changed(self, **changes: Any) -> Self:
        """The same with other settings; an unknown one is a TypeError."""
        if unknown := changes.keys() - self._names():
            known = ", ".join(sorted(self._names()))
            raise TypeError(
                f"unexpected keyword argument {min(unknown)!r}; {type(self).__name__} has {known}"
            )
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # a dataclass in each family

    @classmethod
    def _names(cls) -> frozenset[str]:
        return frozenset(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Addresses and files as upright RGB pictures, in whatever nest of lists; pictures stay as they are.

        Raises:
            BadPicture: no such file, not a picture, refused or unreachable.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(one) for one in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike, bytes, Picture)):
            return open_picture(as_picture(image_url_or_urls), fetcher())
        return image_url_or_urls

    def tiles(self, source: Any) -> Tiles:
        """One picture, ready for the vision tower."""
        return prepare(open_picture(as_picture(source), fetcher()), self.plan())

    def __call__(self, images: Any, **options: Any) -> Any:
        """As `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(self, images: Any, **options: Any) -> Any:
        """Pixel values of pictures."""
        raise NotImplementedError

    def numbers(self) -> dict[str, Any]:
        """The part of a plan that all families say alike."""
        return {
            "resample": filter_name(int(self.resample)),
            "scale": self.rescale_factor if self.do_rescale else 1.0,
            "mean": _per_channel(self.image_mean) if self.do_normalize else (0.0,) * 3,
            "std": _per_channel(self.image_std) if self.do_normalize else (1.0,) * 3,
        }


def settings_of(plan: ImagePlan) -> dict[str, Any]:
    """The settings behind the part of a plan that all families say alike."""
    return {
        "resample": FILTERS.index(plan.resample),
        "rescale_factor": plan.scale,
        "image_mean": list(plan.mean),
        "image_std": list(plan.std),
    }


def _per_channel(value: Number) -> tuple[float, ...]:
    numbers = (value,) * 3 if isinstance(value, (int, float)) else tuple(value or ())
    if len(numbers) != 3:
        raise BadSetting(
            f"image_mean or image_std is {value!r}; give one number, or one for each of 3 channels"
        )
    return numbers


def is_grouped(images: Any) -> bool:
    """Whether pictures come in a list for each text."""
    return isinstance(images, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in images)


def nested(images: Any) -> list[list[Any]]:
    """A picture, a list of pictures or a list of lists, as a list for each sample."""
    if not is_grouped(images):
        return [list(images)] if isinstance(images, (list, tuple)) else [[images]]
    lone = [number for number, one in enumerate(images, start=1) if not isinstance(one, (list, tuple))]
    if lone:
        raise BadPrompt(
            f"images mixes lists of pictures with pictures (number {lone[0]}): give one list a text"
        )
    return [list(sample) for sample in images]


def pixels(samples: Sequence[Sequence[Tiles]], return_tensors: str | None) -> BatchFeature:
    """`pixel_values` and `pixel_attention_mask` of a batch; no entries where it has no pictures."""
    frames = [[frame for picture in sample for frame in picture.frames] for sample in samples]
    if not any(frames):
        return BatchFeature()
    values, mask = stack(frames)
    return BatchFeature(
        pixel_values=as_asked(values, return_tensors), pixel_attention_mask=as_asked(mask, return_tensors)
    )


def stack(samples: Sequence[Sequence[Array]]) -> tuple[Array, Array]:
    """Frames (3, h, w) of B samples -> (B, F, 3, H, W) of float32 and (B, F, H, W) of ones, filled up with zeros."""
    most = max(map(len, samples))
    height, width = (max(frame.shape[axis] for sample in samples for frame in sample) for axis in (1, 2))
    values = np.zeros((len(samples), most, 3, height, width), np.float32)
    mask = np.zeros((len(samples), most, height, width), np.int64)
    for row, sample in enumerate(samples):
        for place, frame in enumerate(sample):
            values[row, place, :, : frame.shape[1], : frame.shape[2]] = frame
            mask[row, place, : frame.shape[1], : frame.shape[2]] = 1
    return values, mask
