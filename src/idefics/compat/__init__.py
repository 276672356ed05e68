"""The classes of transformers that scripts for these models use, on this package's own models.

    >>> from idefics.compat import AutoProcessor, IdeficsForVisionText2Text

Where a script imports from `transformers`, import from here. Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.compat.batch_feature import (
        BatchEncoding,
        BatchFeature,
    )
    from idefics.compat.configuration_auto import AutoConfig
    from idefics.compat.configuration_idefics import (
        IdeficsConfig,
        IdeficsPerceiverConfig,
        IdeficsVisionConfig,
    )
    from idefics.compat.configuration_inline import Idefics2Config, Idefics3Config, SmolVLMConfig
    from idefics.compat.generation_callbacks import (
        EosTokenCriteria,
        MaxLengthCriteria,
        MaxTimeCriteria,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
        TextIteratorStreamer,
        TextStreamer,
    )
    from idefics.compat.generation_config import GenerationConfig
    from idefics.compat.generation_strategies import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
    from idefics.compat.image_processing_idefics import IdeficsImageProcessor
    from idefics.compat.image_processing_inline import (
        Idefics2ImageProcessor,
        Idefics2ImageProcessorFast,
        Idefics3ImageProcessor,
        Idefics3ImageProcessorFast,
        SmolVLMImageProcessor,
        SmolVLMImageProcessorFast,
    )
    from idefics.compat.logits_process import LogitsProcessor, LogitsProcessorList
    from idefics.compat.modeling_auto import (
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForVision2Seq,
    )
    from idefics.compat.modeling_idefics import (
        IdeficsForVisionText2Text,
        IdeficsModel,
        IdeficsPreTrainedModel,
    )
    from idefics.compat.modeling_inline import (
        Idefics2ForConditionalGeneration,
        Idefics2Model,
        Idefics2PreTrainedModel,
        Idefics3ForConditionalGeneration,
        Idefics3Model,
        Idefics3PreTrainedModel,
        SmolVLMForConditionalGeneration,
        SmolVLMModel,
        SmolVLMPreTrainedModel,
    )
    from idefics.compat.processing_auto import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from idefics.compat.processing_idefics import IdeficsProcessor
    from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
    from idefics.compat.quantization import BitsAndBytesConfig, QuantoConfig
    from idefics.compat.tokenization import (
        GPT2TokenizerFast,
        LlamaTokenizer,
        LlamaTokenizerFast,
        PreTrainedTokenizer,
        PreTrainedTokenizerFast,
    )

__all__ = [
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoProcessor",
    "AutoTokenizer",
    "BatchEncoding",
    "BatchFeature",
    "BitsAndBytesConfig",
    "EosTokenCriteria",
    "GPT2TokenizerFast",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerationConfig",
    "Idefics2Config",
    "Idefics2ForConditionalGeneration",
    "Idefics2ImageProcessor",
    "Idefics2ImageProcessorFast",
    "Idefics2Model",
    "Idefics2PreTrainedModel",
    "Idefics2Processor",
    "Idefics3Config",
    "Idefics3ForConditionalGeneration",
    "Idefics3ImageProcessor",
    "Idefics3ImageProcessorFast",
    "Idefics3Model",
    "Idefics3PreTrainedModel",
    "Idefics3Processor",
    "IdeficsConfig",
    "IdeficsForVisionText2Text",
    "IdeficsImageProcessor",
    "IdeficsModel",
    "IdeficsPerceiverConfig",
    "IdeficsPreTrainedModel",
    "IdeficsProcessor",
    "IdeficsVisionConfig",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "QuantoConfig",
    "SmolVLMConfig",
    "SmolVLMForConditionalGeneration",
    "SmolVLMImageProcessor",
    "SmolVLMImageProcessorFast",
    "SmolVLMModel",
    "SmolVLMPreTrainedModel",
    "SmolVLMProcessor",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextIteratorStreamer",
    "TextStreamer",
]

# Which module each name is imported from.
_MODULE_BY_NAME = {
    name: f"idefics.compat.{module}"
    for module, names in {
        "batch_feature": "BatchEncoding BatchFeature",
        "configuration_auto": "AutoConfig",
        "configuration_idefics": "IdeficsConfig IdeficsPerceiverConfig IdeficsVisionConfig",
        "configuration_inline": "Idefics2Config Idefics3Config SmolVLMConfig",
        "generation_callbacks": (
            "EosTokenCriteria MaxLengthCriteria MaxTimeCriteria StopStringCriteria StoppingCriteria "
            "StoppingCriteriaList TextIteratorStreamer TextStreamer"
        ),
        "generation_config": "GenerationConfig",
        "generation_strategies": "GenerateBeamDecoderOnlyOutput GenerateDecoderOnlyOutput",
        "image_processing_idefics": "IdeficsImageProcessor",
        "image_processing_inline": (
            "Idefics2ImageProcessor Idefics2ImageProcessorFast Idefics3ImageProcessor "
            "Idefics3ImageProcessorFast SmolVLMImageProcessor SmolVLMImageProcessorFast"
        ),
        "logits_process": "LogitsProcessor LogitsProcessorList",
        "modeling_auto": "AutoModel AutoModelForImageTextToText AutoModelForVision2Seq",
        "modeling_idefics": "IdeficsForVisionText2Text IdeficsModel IdeficsPreTrainedModel",
        "modeling_inline": (
            "Idefics2ForConditionalGeneration Idefics2Model Idefics2PreTrainedModel "
            "Idefics3ForConditionalGeneration Idefics3Model Idefics3PreTrainedModel "
            "SmolVLMForConditionalGeneration SmolVLMModel SmolVLMPreTrainedModel"
        ),
        "processing_auto": "AutoImageProcessor AutoProcessor AutoTokenizer",
        "processing_idefics": "IdeficsProcessor",
        "processing_inline": "Idefics2Processor Idefics3Processor SmolVLMProcessor",
        "quantization": "BitsAndBytesConfig QuantoConfig",
        "tokenization": (
            "GPT2TokenizerFast LlamaTokenizer LlamaTokenizerFast PreTrainedTokenizer PreTrainedTokenizerFast"
        ),
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'idefics.compat' has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)


def __dir__() -> list[str]:
    return __all__
