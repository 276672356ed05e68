"""The processor, image processor and tokenizer of a checkpoint, whatever its family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from idefics.compat.pretrained_folder import IGNORED_PROCESSOR_KWARGS, resolve_pretrained_folder
from idefics.compat.processing import BaseProcessor
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import UnsupportedModel
from idefics.processing.checkpoint_settings import read_json_object, read_preprocessor_config

if TYPE_CHECKING:
    import os

    from idefics.compat.image_processing import ImageProcessor

PROCESSOR_CLASSES: tuple[type[BaseProcessor], ...] = (
    IdeficsProcessor,
    Idefics2Processor,
    Idefics3Processor,
    SmolVLMProcessor,
)


class AutoProcessor:
    """`AutoProcessor.from_pretrained(...)` gives the processor that fits a checkpoint."""

    def __init__(self) -> None:
        _refuse_construction(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **keywords: Any,
    ) -> BaseProcessor:
        """The processor of a folder, a hub id or a short name; arguments as in the processors' own call."""
        folder, changes = resolve_pretrained_folder(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_PROCESSOR_KWARGS, needs="files"
        )
        model_type = read_json_object(folder / "config.json").get("model_type")
        name = read_json_object(folder / "processor_config.json").get("processor_class")
        for processor in PROCESSOR_CLASSES:
            if processor.model_type == model_type or (model_type is None and processor.__name__ == name):
                return processor.from_pretrained(folder, **changes)
        raise UnsupportedModel(
            f"{folder} is of the architecture {model_type or name!r}; there are processors for "
            f"{', '.join(processor.model_type for processor in PROCESSOR_CLASSES)}"
        )


class AutoImageProcessor:
    """`AutoImageProcessor.from_pretrained(...)` gives the image processor of a checkpoint."""

    def __init__(self) -> None:
        _refuse_construction(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **keywords: Any
    ) -> ImageProcessor:
        """The image processor of a folder, a hub id or a short name, whether or not there is a tokenizer too.

        Args:
            keywords: which folder is meant, as in `folder_and_rest`; settings instead of what the file says.
        """
        folder, changes = resolve_pretrained_folder(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_PROCESSOR_KWARGS, needs="files"
        )
        if (folder / "config.json").exists():
            return AutoProcessor.from_pretrained(folder).image_processor.with_settings(**changes)
        raw = read_preprocessor_config(folder)
        name = raw.get("image_processor_type", raw.get("feature_extractor_type"))
        processor_by_image_processor_name = {
            processor.image_processor_type.__name__: processor for processor in PROCESSOR_CLASSES
        }
        for suffix in ("", "Fast", "Pil"):
            if (
                processor := processor_by_image_processor_name.get(str(name).removesuffix(suffix))
            ) is not None:
                return processor.image_processor_type.from_preprocessor_config(raw).with_settings(**changes)
        raise UnsupportedModel(
            f"{folder} is of an image processor {name!r}; there are {', '.join(processor_by_image_processor_name)}"
        )


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(...)` gives the tokenizer of a checkpoint."""

    def __init__(self) -> None:
        _refuse_construction(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **changes: Any
    ) -> PreTrainedTokenizer:
        """The tokenizer of a folder, a hub id or a short name; arguments as in `PreTrainedTokenizer`."""
        return PreTrainedTokenizer.from_pretrained(pretrained_model_name_or_path, **changes)


def _refuse_construction(name: str) -> NoReturn:
    raise TypeError(f"{name} is not made by itself: call {name}.from_pretrained(...)")
