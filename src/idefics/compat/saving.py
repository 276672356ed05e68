"""`save_pretrained` of the model classes: configs and weights in the released layout."""

from __future__ import annotations

from copy import copy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.keyword_arguments import check_save_kwargs
from idefics.compat.modeling_adapters import PeftAdapterMixin
from idefics.compat.quantization import AnyQuantizationConfig, BitsAndBytesConfig, HfQuantizer
from idefics.errors import BadSetting, UnsupportedModel
from idefics.weights.tensors import save_weights


class SavingMixin(PeftAdapterMixin):
    """Gives a model class `save_pretrained`, and attributes that say how its weights are stored.

    Attributes:
        is_quantized: whether weights are quantised; `is_loaded_in_4bit`, `is_loaded_in_8bit`,
            `quantization_method` and `hf_quantizer` say how, under the names that trainers and peft read.
    """

    config: PretrainedConfig
    generation_config: GenerationConfig
    is_quantized: bool
    is_loaded_in_4bit: bool
    is_loaded_in_8bit: bool
    quantization_method: str | None
    hf_quantizer: HfQuantizer | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    def _set_quantization(self, quantization: AnyQuantizationConfig | None) -> None:
        """Sets the attributes that say how weights are stored; None: they are not quantised."""
        self.hf_quantizer = None if quantization is None else HfQuantizer(quantization)
        self.is_quantized = quantization is not None
        self.quantization_method = None if quantization is None else quantization.quant_method
        self.is_loaded_in_8bit = isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_8bit
        self.is_loaded_in_4bit = isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_4bit

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Writes config.json, generation_config.json and safetensors into a folder, in the released layout.

        Of a model with adapters (`add_adapter`) only the active adapter is written, as peft does.

        Args:
            is_main_process: False writes nothing: only the main process of several writes.
            state_dict: in place of the model's own.
            max_shard_size: the largest size of a file of weights, in bytes or as "5GB".
            kwargs: arguments of transformers without effect, such as `save_function` and `token`.

        Raises:
            BadSetting: `safe_serialization=False` asks for pickles, or `push_to_hub=True` for an upload.
            UnsupportedModel: the weights are quantised, and there is no adapter.
        """
        if not safe_serialization:
            raise BadSetting("safe_serialization is False; only safetensors are written: leave it out")
        check_save_kwargs(kwargs)
        if self._hf_peft_config_loaded:
            if is_main_process:
                self._save_adapter(Path(save_directory), state_dict)
            return
        if self.is_quantized:
            raise UnsupportedModel(
                "quantised weights are not saved here: `idefics quantize MODEL --to int8 --out DIR` writes a folder "
                "of them; or save the model in its original precision"
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        config = copy(self.config)
        config.architectures = [type(self).__name__]
        config.torch_dtype = str(self.dtype).removeprefix("torch.")
        # Of the library that wrote the first file: trainers warn of it.
        vars(config).pop("transformers_version", None)
        config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        save_weights(self, folder, max_shard_size, state_dict)
