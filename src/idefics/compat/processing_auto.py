"""The processor, image processor and tokenizer of a checkpoint, whatever its family."""

from __future__ import annotations

from typing import Any

from idefics.compat.image_processing import ImageProcessor
from idefics.compat.pretrained import PROCESSOR_FILES, AutoClass, StrPath, resolve_folder_and_settings
from idefics.compat.processing import BaseProcessor
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import UnsupportedModel
from idefics.processing.checkpoint_settings import read_json_object, read_preprocessor_config

PROCESSOR_CLASSES: tuple[type[BaseProcessor], ...] = (
    IdeficsProcessor,
    Idefics2Processor,
    Idefics3Processor,
    SmolVLMProcessor,
)


class AutoProcessor(AutoClass):
    """`AutoProcessor.from_pretrained(...)` returns the processor that fits a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> BaseProcessor:
        """Reads a processor; arguments and errors as in `PretrainedMixin.from_pretrained`."""
        folder, settings = resolve_folder_and_settings(
            cls.__name__, pretrained_model_name_or_path, kwargs, PROCESSOR_FILES
        )
        model_type = read_json_object(folder / "config.json").get("model_type")
        name = read_json_object(folder / "processor_config.json").get("processor_class")
        for processor in PROCESSOR_CLASSES:
            if processor.model_type == model_type or (model_type is None and processor.__name__ == name):
                return processor._from_folder(folder, **settings)
        raise UnsupportedModel(
            f"{folder} is of the architecture {model_type or name!r}; there are processors for "
            f"{', '.join(processor.model_type for processor in PROCESSOR_CLASSES)}"
        )


class AutoImageProcessor(AutoClass):
    """`AutoImageProcessor.from_pretrained(...)` returns the image processor that fits a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> ImageProcessor:
        """Reads an image processor; arguments and errors as in `PretrainedMixin.from_pretrained`.

        In a folder without config.json, preprocessor_config.json names the class; no tokenizer is needed.
        """
        folder, settings = resolve_folder_and_settings(
            cls.__name__, pretrained_model_name_or_path, kwargs, PROCESSOR_FILES
        )
        if (folder / "config.json").exists():
            return AutoProcessor.from_pretrained(folder).image_processor.with_settings(**settings)
        preprocessor_config = read_preprocessor_config(folder)
        name = preprocessor_config.get(
            "image_processor_type", preprocessor_config.get("feature_extractor_type")
        )
        for processor in PROCESSOR_CLASSES:
            image_processor = processor.image_processor_type
            # Newer files have "Fast" or "Pil" at the end.
            if str(name).startswith(image_processor.__name__):
                return image_processor.from_dict(preprocessor_config, **settings)
        raise UnsupportedModel(
            f"{folder} has an image processor of class {name!r}; there are "
            f"{', '.join(processor.image_processor_type.__name__ for processor in PROCESSOR_CLASSES)}"
        )


class AutoTokenizer(AutoClass):
    """`AutoTokenizer.from_pretrained(...)` returns the tokenizer of a checkpoint."""

    from_pretrained = PreTrainedTokenizer.from_pretrained
