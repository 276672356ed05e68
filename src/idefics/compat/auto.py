"""The processor, image processor and tokenizer of a checkpoint, whatever its family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest
from idefics.compat.processing import BaseProcessor
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_in_text import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import UnsupportedModel
from idefics.processing.settings import json_object, preprocessor

if TYPE_CHECKING:
    import os

    from idefics.compat.image_processing import ImageProcessor

PROCESSORS: tuple[type[BaseProcessor], ...] = (
    IdeficsProcessor,
    Idefics2Processor,
    Idefics3Processor,
    SmolVLMProcessor,
)


class AutoProcessor:
    """`AutoProcessor.from_pretrained(...)` gives the processor that fits a checkpoint."""

    def __init__(self) -> None:
        _refuse(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **keywords: Any,
    ) -> BaseProcessor:
        """The processor of a folder, a hub id or a short name; arguments as in the processors' own call."""
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        model_type = json_object(folder / "config.json").get("model_type")
        name = json_object(folder / "processor_config.json").get("processor_class")
        for processor in PROCESSORS:
            if processor.model_type == model_type or (model_type is None and processor.__name__ == name):
                return processor.from_pretrained(folder, **changes)
        raise UnsupportedModel(
            f"{folder} is of the architecture {model_type or name!r}; there are processors for "
            f"{', '.join(processor.model_type for processor in PROCESSORS)}"
        )


class AutoImageProcessor:
    """`AutoImageProcessor.from_pretrained(...)` gives the image processor of a checkpoint."""

    def __init__(self) -> None:
        _refuse(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **keywords: Any
    ) -> ImageProcessor:
        """The image processor of a folder, a hub id or a short name, whether or not there is a tokenizer too.

        Args:
            keywords: which folder is meant, as in `folder_and_rest`; settings instead of what the file says.
        """
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        if (folder / "config.json").exists():
            return AutoProcessor.from_pretrained(folder).image_processor.changed(**changes)
        raw = preprocessor(folder)
        name = raw.get("image_processor_type", raw.get("feature_extractor_type"))
        known = {processor.image_processor_type.__name__: processor for processor in PROCESSORS}
        for suffix in ("", "Fast", "Pil"):
            if (processor := known.get(str(name).removesuffix(suffix))) is not None:
                return processor.image_processor_type.from_settings(raw).changed(**changes)
        raise UnsupportedModel(f"{folder} is of an image processor {name!r}; there are {', '.join(known)}")


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(...)` gives the tokenizer of a checkpoint."""

    def __init__(self) -> None:
        _refuse(type(self).__name__)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **changes: Any
    ) -> PreTrainedTokenizer:
        """The tokenizer of a folder, a hub id or a short name; arguments as in `PreTrainedTokenizer`."""
        return PreTrainedTokenizer.from_pretrained(pretrained_model_name_or_path, **changes)


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} is not made by itself: call {name}.from_pretrained(...)")
