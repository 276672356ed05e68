"""`from_pretrained`, `from_config` and `save_pretrained` of every model class: configs and files, no mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from idefics.compat.added_modules import added_tensor_names, initialize_added_modules, skip_added_modules
from idefics.compat.configuration import PretrainedConfig
from idefics.compat.configuration_auto import as_config
from idefics.compat.generation_config import GENERATION_CONFIG_FILE as GENERATION_FILE
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.loading_arguments import (
    IGNORED_MODEL_KWARGS,
    NEUTRAL_MODEL_KWARGS,
    drop_neutral_model_kwargs,
)
from idefics.compat.loading_state_dict import accept_state_dict
from idefics.compat.model_construction import loading_checkpoint
from idefics.compat.modeling_adapters import PeftAdapterMixin, accept_adapter_folder
from idefics.compat.pretrained_folder import HUB_KWARGS, resolve_pretrained_folder
from idefics.compat.quantization import (
    AnyQuantizationConfig,
    BitsAndBytesConfig,
    HfQuantizer,
    as_quantization_config,
)
from idefics.errors import BadSetting, UnknownArgument, UnsupportedModel
from idefics.models import Checkpoint, load_weights, read_checkpoint
from idefics.placement import DeviceLike, resolve_device
from idefics.weights import KeyRules

DTYPE_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PretrainedLoadingMixin(PeftAdapterMixin):
    """A model class that reads and writes checkpoints.

    Attributes:
        config_class: what its config.json becomes.
        model_types: those whose checkpoints it reads.
        base_model_prefix: the attribute that holds everything but the head; "" in a model without a head.
        is_quantized: whether weights are kept in few bits; `is_loaded_in_4bit`, `is_loaded_in_8bit`,
            `quantization_method` and `hf_quantizer` say how, as trainers and peft ask for it.
        name_or_path: where its weights came from; "" if from nowhere.
    """

    config: PretrainedConfig
    generation_config: GenerationConfig
    config_class: ClassVar[type[PretrainedConfig]]
    model_types: ClassVar[tuple[str, ...]]
    base_model_prefix: ClassVar[str]
    is_quantized: bool
    is_loaded_in_4bit: bool
    is_loaded_in_8bit: bool
    quantization_method: str | None
    hf_quantizer: HfQuantizer | None
    name_or_path: str

    def __init__(self, config: Any) -> None:
        raise NotImplementedError

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        raise NotImplementedError

    @classmethod
    @accept_state_dict
    @accept_adapter_folder
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: PretrainedConfig | Mapping[str, Any] | str | PathLike[str] | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: DeviceLike | Mapping[str, DeviceLike] | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        quantization_config: AnyQuantizationConfig | Mapping[str, Any] | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        attn_implementation: str | Mapping[str, str] | None = None,
        generation_config: GenerationConfig | None = None,
        use_safetensors: bool | None = None,
        **keywords: Any,
    ) -> Self:
        """The model of a checkpoint, ready to answer (`eval`).

        Args:
            pretrained_model_name_or_path: a folder, a hub id ("owner/name") or a short name ("9b-instruct"); or the
                folder of an adapter, whose model is loaded with it; or None, with `config` and `state_dict`.
            config: in place of the checkpoint's own: a config of this package or of transformers, the content of a
                config.json, or the folder of one.
            torch_dtype, dtype: of the weights, by name or as torch has it; None or "auto": as they are stored.
            device_map: "auto" spreads layers over all GPUs, and over CPU memory what does not fit; or one device, or
                where each part lies, by module names, "" for the rest. None: CPU memory.
            max_memory: with "auto", what may be used of each GPU and of the CPU: {0: "10GiB", "cpu": "30GiB"}.
            quantization_config: keeps the decoder's weights in fewer bits; `load_in_8bit` and `load_in_4bit` are
                short for `BitsAndBytesConfig` with that field.
            attn_implementation: "sdpa" (the default), "eager" or "flash_attention_2"; or one for each part.
            generation_config: in place of the checkpoint's own.
            **keywords: fields of the config with another value; which files are meant (`folders.LOCATING`: `revision`,
                `token`, `cache_dir`, ...); and what `loading_arguments` ignores.

        Raises:
            UnknownArgument: a keyword that is neither an argument nor a field of the config.
            BadSetting: an argument out of its range, or a model that does not fit into memory.
            MissingExtra: four bits of bitsandbytes, or a spread model, without the packages for it.
            UnsupportedModel: a checkpoint of another class, or of pickles.
            ModelNotFound, BrokenCheckpoint, WeightsMismatch: as `idefics.load`.
        """
        function_name = f"{cls.__name__}.from_pretrained"
        if attn_implementation is None:
            attn_implementation = keywords.pop("_attn_implementation", None)
        if use_safetensors is False:
            raise BadSetting("use_safetensors is False; only safetensors are read: leave it out")
        if unknown := sorted(_unknown_kwargs(cls, keywords)):
            raise UnknownArgument(function_name, unknown, _from_pretrained_argument_names(cls))
        if load_in_8bit or load_in_4bit:
            quantization_config = BitsAndBytesConfig(load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit)
        quantization = as_quantization_config(quantization_config)
        folder, changes = resolve_pretrained_folder(
            pretrained_model_name_or_path,
            drop_neutral_model_kwargs(function_name, keywords),
            ignored=IGNORED_MODEL_KWARGS,
            needs="weights",
        )
        checkpoint = read_checkpoint(folder)
        resolved_config = as_config(folder if config is None else config, **changes)
        if resolved_config.model_type not in cls.model_types:
            raise UnsupportedModel(
                f"{folder} is of model_type {resolved_config.model_type!r} and {cls.__name__} reads "
                f"{', '.join(cls.model_types)}: use AutoModelForImageTextToText"
            )
        with loading_checkpoint():
            model = cls(resolved_config)
        module, key_rules = _module_with_checkpoint_names(model, checkpoint)
        added_tensors = added_tensor_names(module)
        missing_keys = load_weights(
            module,
            folder,
            key_rules,
            dtype=resolve_dtype(torch_dtype if dtype is None else dtype, checkpoint.config.dtype),
            device=resolve_device("cpu" if device_map is None else "auto", device_map, max_memory),
            quantization=None
            if quantization is None
            else skip_added_modules(quantization.to_quantization_config(), added_tensors),
            checkpoint_quantization=checkpoint.quantization,
            optional_names=added_tensors,
        )
        initialize_added_modules(model, module, missing_keys)
        model._set_quantization(quantization)
        model.is_quantized = quantization is not None or checkpoint.quantization is not None
        model.set_attn_implementation(attn_implementation or resolved_config._attn_implementation or "sdpa")
        if generation_config is not None:
            model.generation_config = GenerationConfig.from_any(generation_config)
        elif (folder / GENERATION_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model.eval()

    def _set_quantization(self, quantization: AnyQuantizationConfig | None) -> None:
        """Says how weights are kept; None: in full precision."""
        self.hf_quantizer = None if quantization is None else HfQuantizer(quantization)
        self.is_quantized = quantization is not None
        self.quantization_method = None if quantization is None else quantization.quant_method
        self.is_loaded_in_8bit = isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_8bit
        self.is_loaded_in_4bit = isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_4bit

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **options: Any) -> Self:
        """`from_config`, by the name that transformers' classes have for it."""
        return cls.from_config(config, **options)

    @classmethod
    def from_config(
        cls,
        config: PretrainedConfig | Mapping[str, Any],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | Mapping[str, str] | None = None,
    ) -> Self:
        """A model with first weights: to be trained, or filled by the caller.

        Args:
            config: of this package or of transformers, or the content of a config.json.
            torch_dtype, dtype: of the weights; None: float32, "auto": the config's.
            attn_implementation: "sdpa" (the default), "eager" or "flash_attention_2"; or one for each part.
        """
        resolved_config = as_config(config)
        model = cls(resolved_config).to(
            resolve_dtype(torch_dtype or dtype or "float32", resolved_config.torch_dtype)
        )
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model

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

        Of a model with adapters (`add_adapter`) the active one alone is written, as peft does.

        Args:
            is_main_process: only the main one of several processes writes.
            state_dict: in place of the model's own.
            max_shard_size: files of weights are no larger, in bytes or as "5GB".
            **kwargs: of transformers: `save_function` and `token` are ignored, `push_to_hub` is refused.

        Raises:
            BadSetting: `safe_serialization=False` asks for pickles.
            UnsupportedModel: the weights are kept in few bits.
        """
        from huggingface_hub import save_torch_state_dict

        if not safe_serialization:
            raise BadSetting("safe_serialization is False; only safetensors are written: leave it out")
        if kwargs.get("push_to_hub"):
            raise BadSetting("push_to_hub is True; only folders are written: upload with `hf upload`")
        if unknown := sorted(
            set(kwargs) - {"push_to_hub", "save_function", "token", "variant", "save_peft_format"}
        ):
            raise UnknownArgument("save_pretrained", unknown, ["state_dict", "max_shard_size"])
        if self._hf_peft_config_loaded:
            if is_main_process:
                self._save_adapter(Path(save_directory), state_dict)
            return
        if self.is_quantized:
            raise UnsupportedModel(
                "weights in few bits are not saved here: `idefics quantize MODEL --to int8 --out DIR` writes a folder "
                "of them; or save the model in its original precision"
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        config = copy(self.config)
        config.architectures = [type(self).__name__]
        dtype = next(weight.dtype for weight in self.parameters() if weight.is_floating_point())
        config.torch_dtype = str(dtype).removeprefix("torch.")
        vars(config).pop("transformers_version", None)  # of what wrote the first file: trainers warn of it
        config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        save_torch_state_dict(
            self.state_dict() if state_dict is None else state_dict,
            folder,
            max_shard_size=max_shard_size,
            shared_tensors_to_discard=_tied_parameter_names(self),
        )


def resolve_dtype(dtype: torch.dtype | str | None, checkpoint_dtype: str | None) -> torch.dtype:
    """A dtype by its name; None and "auto" are the stored one, float32 where a checkpoint says none."""
    if dtype is None or dtype == "auto":
        dtype = checkpoint_dtype or "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BY_NAME:
        raise BadSetting(f"torch_dtype is {name!r}; give auto, {', '.join(DTYPE_BY_NAME)}")
    return DTYPE_BY_NAME[name]


def _module_with_checkpoint_names(
    model: PretrainedLoadingMixin, checkpoint: Checkpoint
) -> tuple[nn.Module, KeyRules]:
    """The module whose names are those of the checkpoint, and its rules."""
    key_rules = checkpoint.family.key_rules
    if "lm_head" not in dict(model.named_children()):
        key_rules = replace(
            key_rules, ignore=(*key_rules.ignore, (r"^(lm_head|additional_fc)\.", "there is no head"))
        )
    if model.base_model_prefix or model.config.architectures == [type(model).__name__]:
        return model, key_rules
    wrapper = nn.Module()  # the checkpoint has a head, and all else under a name of its own
    wrapper.model = model
    return wrapper, key_rules


def _tied_parameter_names(model: nn.Module) -> list[str]:
    """Second and further names of parameters that have several."""
    first_name_by_id = {id(weight): name for name, weight in model.named_parameters()}
    return [
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if first_name_by_id[id(weight)] != name
    ]


def _unknown_kwargs(cls: type[PretrainedLoadingMixin], keywords: Iterable[str]) -> set[str]:
    """Those that are neither fields of the config nor known to be about files or without effect."""
    return set(keywords) - {
        *cls.config_class.fields,
        *HUB_KWARGS,
        *IGNORED_MODEL_KWARGS,
        *NEUTRAL_MODEL_KWARGS,
    }


def _from_pretrained_argument_names(cls: type[PretrainedLoadingMixin]) -> list[str]:
    names = [name for name in signature(cls.from_pretrained).parameters if name != "keywords"]
    return [*names[1:], *HUB_KWARGS, *cls.config_class.fields]
