"""The image processors with the calls of the guides: pictures of every kind to pixel tensors.

Thin over `processing.images`: each class holds the settings of one family, and turns them into an `ImagePlan`.
Addresses and files are turned upright by their EXIF tag; objects are taken as they are, as the reference does.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import PIL.Image

from idefics.compat.features import Array, BatchFeature, as_asked
from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest, write_json
from idefics.compat.image_inputs import as_picture, fetcher, is_rescaled
from idefics.config import ImagePlan
from idefics.errors import BadPicture, BadSetting
from idefics.messages import ImageDetail, Picture
from idefics.models.family import FILTERS, filter_name
from idefics.processing import settings
from idefics.processing.images import open_picture, prepare
from idefics.processing.sizes import plan_for
from idefics.prompt import Tiles

T = TypeVar("T")
Number = float | Sequence[float] | None

# Keywords that image processors of transformers take and that change nothing in this family, with the reason.
INERT = {
    "data_format": "frames are (3, height, width)",
    "default_to_square": "`size` says both edges",
    "device": "pixels are computed on the CPU",
    "disable_grouping": "pictures are prepared one by one",
    "padding_value": "what is filled up is zero",
    "return_tensors": "a word of the call",
}


def leaves_out_inert(kind: type[T]) -> type[T]:
    """A decorator of classes: their constructors leave out keywords that change nothing."""
    made = kind.__init__

    @wraps(made)
    def init(self: T, *args: Any, **keywords: Any) -> None:
        made(self, *args, **_without_inert(keywords))

    kind.__init__ = init  # type: ignore[method-assign,assignment]
    return kind


class ImageProcessor:
    """What the families' image processors share. Its fields are settings, each also a keyword of the call."""

    model_input_names: ClassVar = ["pixel_values", "pixel_attention_mask"]
    is_fast: ClassVar = False

    do_convert_rgb: bool
    do_resize: bool
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
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **keywords: Any) -> Self:
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

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **changes: Any) -> Self:
        """From what `to_dict` gives, with other settings where `changes` says so."""
        return cls.from_settings(image_processor_dict).changed(**changes)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """From what `to_json_file` wrote."""
        return cls.from_settings(settings.json_object(Path(json_file)))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> list[str]:
        """Writes preprocessor_config.json, and returns its path in a list."""
        refuse_upload(keywords)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "preprocessor_config.json"
        write_json(path, self.to_dict())
        return [str(path)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as a preprocessor_config.json has them."""
        values = {name: value for name in self._names() if (value := getattr(self, name)) is not None}
        return {**values, "resample": int(self.resample), "image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes `to_json_string` into a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def changed(self, **changes: Any) -> Self:
        """The same with other settings; None leaves one as it is, an unknown one is a TypeError."""
        changes = {name: value for name, value in _without_inert(changes).items() if value is not None}
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

    def tiles(self, source: Any, input_data_format: str | None = None) -> Tiles:
        """One picture, ready for the vision tower.

        Args:
            source: see `as_picture`.
            input_data_format: "channels_first" or "channels_last", where an array's shape does not say it.
        """
        if isinstance(source, Tiles):
            return source
        if not self.do_convert_rgb and isinstance(source, PIL.Image.Image) and source.mode != "RGB":
            raise BadPicture(
                f"do_convert_rgb is False, and a picture has the mode {source.mode}; the models read RGB: give True"
            )
        picture = as_picture(source, input_data_format)
        image = open_picture(picture, fetcher())
        plan = self._plan_of(image, self._scaled(picture))
        if (size := self.exact_size()) is not None and image.size != size:
            image = image.resize(size, PIL.Image.Resampling(int(self.resample)))
        return prepare(image, plan_for(*image.size, plan, picture.look(ImageDetail())))

    def exact_size(self) -> tuple[int, int] | None:
        """(width, height) that pictures are resized to first, whatever their aspect; None where they keep it."""
        return None

    def _plan_of(self, image: PIL.Image.Image, plan: ImagePlan) -> ImagePlan:
        """The plan for one picture."""
        return plan

    def _scaled(self, picture: Picture) -> ImagePlan:
        """The plan whose `scale` fits the numbers of an array: floats of 0 to 1 are rescaled already."""
        plan = self.plan()
        if not is_rescaled(picture):
            return plan
        if self.do_rescale:
            raise BadPicture(
                "an array holds floats from 0 to 1, and do_rescale would divide them by 255 again: give "
                "do_rescale=False"
            )
        return replace(plan, scale=1 / 255)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        """As `preprocess`."""
        return self.preprocess(images, *args, **options)

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


def _without_inert(keywords: Mapping[str, Any]) -> dict[str, Any]:
    if keywords.get("data_format", "channels_first") not in ("channels_first", None):
        raise BadSetting(
            f"data_format is {keywords['data_format']!r}; the models read channels first: leave it out"
        )
    return {name: value for name, value in keywords.items() if name not in INERT}


def refuse_upload(keywords: Mapping[str, Any]) -> None:
    """Of the further keywords of `save_pretrained`, refuses `push_to_hub=True` and those that nobody knows."""
    if unknown := keywords.keys() - {
        "push_to_hub",
        "token",
        "repo_id",
        "commit_message",
        "private",
        "revision",
    }:
        raise TypeError(f"save_pretrained has no argument {min(unknown)!r}")
    if keywords.get("push_to_hub"):
        raise BadSetting("push_to_hub is True; nothing is uploaded here: call `hf upload` with the folder")


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


def pixels(
    samples: Sequence[Sequence[Tiles]], return_tensors: str | None, *, padded: bool = True
) -> BatchFeature:
    """`pixel_values` and `pixel_attention_mask` of a batch; no entries where it has no pictures.

    Args:
        padded: False leaves frames as they are, without a mask (`do_pad=False`).

    Raises:
        BadSetting: frames of different sizes, or numbers, are no tensor without padding.
    """
    frames = [[frame for picture in sample for frame in picture.frames] for sample in samples]
    if not any(frames):
        return BatchFeature()
    if not padded:
        if return_tensors is None:
            return BatchFeature(pixel_values=frames)
        if len({len(sample) for sample in frames}) > 1 or len({f.shape for s in frames for f in s}) > 1:
            raise BadSetting("do_pad is False, and pictures differ in size or number: give do_pad=True")
    values, mask = stack(frames)
    entries = {"pixel_values": values} | ({"pixel_attention_mask": mask} if padded else {})
    return BatchFeature({name: as_asked(value, return_tensors) for name, value in entries.items()})


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


def edge(name: str, size: Mapping[str, int], key: str) -> int:
    """One number of a size as the guides write it."""
    if not isinstance(size, Mapping) or not isinstance(size.get(key), int) or size[key] < 1:
        raise BadSetting(f'{name} is {size!r}; give {{"{key}": pixels}}')
    return size[key]
