"""The classes and calls of the published IDEFICS guides.

    >>> from idefics.compat import AutoProcessor, IdeficsForVisionText2Text

Where a guide imports from `transformers`, import from here. The names are imported when first used.
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
    from idefics.compat.modeling_idefics import IdeficsForVisionText2Text, IdeficsModel
    from idefics.compat.modeling_idefics2 import (
        Idefics2ForConditionalGeneration,
        Idefics2Model,
        Idefics2PreTrainedModel,
    )
    from idefics.compat.modeling_idefics3 import (
        Idefics3ForConditionalGeneration,
        Idefics3Model,
        Idefics3PreTrainedModel,
        SmolVLMForConditionalGeneration,
        SmolVLMModel,
        SmolVLMPreTrainedModel,
    )
    from idefics.compat.modeling_idefics_base import IdeficsPreTrainedModel
    from idefics.compat.processing_auto import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from idefics.compat.processing_idefics import IdeficsProcessor
    from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
    from idefics.compat.quantization import BitsAndBytesConfig, QuantoConfig
    from idefics.compat.stopping_criteria import (
        EosTokenCriteria,
        MaxLengthCriteria,
        MaxTimeCriteria,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
    )
    from idefics.compat.streamers import TextIteratorStreamer, TextStreamer
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

_HOME = {
    "AutoConfig": "idefics.compat.configuration_auto",
    "AutoImageProcessor": "idefics.compat.processing_auto",
    "AutoModel": "idefics.compat.modeling_auto",
    "AutoModelForImageTextToText": "idefics.compat.modeling_auto",
    "AutoModelForVision2Seq": "idefics.compat.modeling_auto",
    "AutoProcessor": "idefics.compat.processing_auto",
    "AutoTokenizer": "idefics.compat.processing_auto",
    "BatchEncoding": "idefics.compat.batch_feature",
    "BatchFeature": "idefics.compat.batch_feature",
    "BitsAndBytesConfig": "idefics.compat.quantization",
    "EosTokenCriteria": "idefics.compat.stopping_criteria",
    "GPT2TokenizerFast": "idefics.compat.tokenization",
    "GenerateBeamDecoderOnlyOutput": "idefics.compat.generation_strategies",
    "GenerateDecoderOnlyOutput": "idefics.compat.generation_strategies",
    "GenerationConfig": "idefics.compat.generation_config",
    "Idefics2Config": "idefics.compat.configuration_inline",
    "Idefics2ForConditionalGeneration": "idefics.compat.modeling_idefics2",
    "Idefics2ImageProcessor": "idefics.compat.image_processing_inline",
    "Idefics2ImageProcessorFast": "idefics.compat.image_processing_inline",
    "Idefics2Model": "idefics.compat.modeling_idefics2",
    "Idefics2PreTrainedModel": "idefics.compat.modeling_idefics2",
    "Idefics2Processor": "idefics.compat.processing_inline",
    "Idefics3Config": "idefics.compat.configuration_inline",
    "Idefics3ForConditionalGeneration": "idefics.compat.modeling_idefics3",
    "Idefics3ImageProcessor": "idefics.compat.image_processing_inline",
    "Idefics3ImageProcessorFast": "idefics.compat.image_processing_inline",
    "Idefics3Model": "idefics.compat.modeling_idefics3",
    "Idefics3PreTrainedModel": "idefics.compat.modeling_idefics3",
    "Idefics3Processor": "idefics.compat.processing_inline",
    "IdeficsConfig": "idefics.compat.configuration_idefics",
    "IdeficsForVisionText2Text": "idefics.compat.modeling_idefics",
    "IdeficsImageProcessor": "idefics.compat.image_processing_idefics",
    "IdeficsModel": "idefics.compat.modeling_idefics",
    "IdeficsPerceiverConfig": "idefics.compat.configuration_idefics",
    "IdeficsPreTrainedModel": "idefics.compat.modeling_idefics_base",
    "IdeficsProcessor": "idefics.compat.processing_idefics",
    "IdeficsVisionConfig": "idefics.compat.configuration_idefics",
    "LlamaTokenizer": "idefics.compat.tokenization",
    "LlamaTokenizerFast": "idefics.compat.tokenization",
    "LogitsProcessor": "idefics.compat.logits_process",
    "LogitsProcessorList": "idefics.compat.logits_process",
    "MaxLengthCriteria": "idefics.compat.stopping_criteria",
    "MaxTimeCriteria": "idefics.compat.stopping_criteria",
    "PreTrainedTokenizer": "idefics.compat.tokenization",
    "PreTrainedTokenizerFast": "idefics.compat.tokenization",
    "QuantoConfig": "idefics.compat.quantization",
    "SmolVLMConfig": "idefics.compat.configuration_inline",
    "SmolVLMForConditionalGeneration": "idefics.compat.modeling_idefics3",
    "SmolVLMImageProcessor": "idefics.compat.image_processing_inline",
    "SmolVLMImageProcessorFast": "idefics.compat.image_processing_inline",
    "SmolVLMModel": "idefics.compat.modeling_idefics3",
    "SmolVLMPreTrainedModel": "idefics.compat.modeling_idefics3",
    "SmolVLMProcessor": "idefics.compat.processing_inline",
    "StopStringCriteria": "idefics.compat.stopping_criteria",
    "StoppingCriteria": "idefics.compat.stopping_criteria",
    "StoppingCriteriaList": "idefics.compat.stopping_criteria",
    "TextIteratorStreamer": "idefics.compat.streamers",
    "TextStreamer": "idefics.compat.streamers",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'idefics.compat' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
