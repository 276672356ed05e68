"""`from_pretrained` and `from_config` of the model classes and of the auto classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.configuration_auto import as_config
from idefics.compat.generation_config import GENERATION_CONFIG_FILE, GenerationConfig
from idefics.compat.keyword_arguments import split_kwargs
from idefics.compat.loading_state_dict import load_from_memory
from idefics.compat.model_construction import building_models
from idefics.compat.modeling_adapters import adapter_base_model
from idefics.compat.pretrained import HUB_KWARGS, MODEL_FILES, resolve_folder_and_settings
from idefics.compat.quantization import AnyQuantizationConfig, BitsAndBytesConfig, as_quantization_config
from idefics.errors import BadSetting, ModelNotFound, UnknownArgument
from idefics.generation.load_settings import DTYPE_BY_NAME
from idefics.models import Checkpoint, load_weights, read_checkpoint
from idefics.placement.devices import DeviceLike, resolve_device
from idefics.weights import KeyRules

if TYPE_CHECKING:
    from idefics.compat.modeling import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class LoadingOptions:
    """The keyword arguments of a model's `from_pretrained`.

    Attributes:
        config: in place of the checkpoint's own: a config of this package or of transformers, the content of a
            config.json, or the folder of one.
        torch_dtype, dtype: of the weights, as a name or a `torch.dtype`; None or "auto": as they are stored.
        device_map: "auto" spreads layers over all GPUs, and over CPU memory what does not fit; or one device, or a
            device for each part by module name, "" for the rest. None: CPU memory.
        max_memory: with "auto", what may be used of each GPU and of the CPU: {0: "10GiB", "cpu": "30GiB"}.
        quantization_config: quantises the decoder's weights; `load_in_8bit` and `load_in_4bit` are short for
            `BitsAndBytesConfig` with that field.
        attn_implementation: "sdpa" (the default), "eager" or "flash_attention_2"; or one for each part of the model,
            as `set_attn_implementation` takes it. `_attn_implementation` is another name.
        generation_config: in place of the checkpoint's own.
    """

    config: PretrainedConfig | Mapping[str, Any] | str | PathLike[str] | None = None
    torch_dtype: torch.dtype | str | None = None
    dtype: torch.dtype | str | None = None
    device_map: DeviceLike | Mapping[str, DeviceLike] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    quantization_config: AnyQuantizationConfig | Mapping[str, Any] | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    attn_implementation: str | Mapping[str, str] | None = None
    _attn_implementation: str | Mapping[str, str] | None = None
    generation_config: GenerationConfig | None = None

    def __post_init__(self) -> None:
        self.dtype = self.torch_dtype if self.dtype is None else self.dtype
        self.attn_implementation = self.attn_implementation or self._attn_implementation
        if self.load_in_8bit or self.load_in_4bit:
            self.quantization_config = BitsAndBytesConfig(
                load_in_8bit=self.load_in_8bit, load_in_4bit=self.load_in_4bit
            )


OPTION_NAMES = [field.name for field in fields(LoadingOptions)]


class ModelFromPretrainedMixin:
    """Gives a class `from_pretrained` and `from_config`; `_model_class_for` returns the model class that they build."""

    @classmethod
    def _model_class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        """The class of the model that a config describes. Raises UnsupportedModel where there is none."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads the model of a checkpoint, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, a hub id ("owner/name") or a short name ("9b-instruct"); the
                folder of an adapter, whose base model is loaded first; or None, with `config` and `state_dict`, a
                config and weights in memory.
            output_loading_info: also return a dict with `missing_keys`, weights that the files lack.
            kwargs: the fields of `LoadingOptions`; fields of the config with another value; which files are meant,
                and arguments without effect, as in `PretrainedMixin.from_pretrained`.

        Raises:
            UnknownArgument: an argument is none of these.
            BadSetting: an argument out of its range, or the model does not fit into memory.
            MissingExtra: bitsandbytes' four bits, or a model on several devices, without the packages for it.
            UnsupportedModel: a checkpoint of another class, or of pickles.
            ModelNotFound, BrokenCheckpoint, WeightsMismatch: as `idefics.load`.
        """
        name = pretrained_model_name_or_path
        if name is None:
            model = load_from_memory(cls, kwargs)
        elif base := adapter_base_model(name):
            try:
                model = cls._load_checkpoint(base, kwargs)
            except ModelNotFound:
                return cls._load_checkpoint(
                    name, kwargs
                )  # which raises an error that says what the folder holds
            model.load_adapter(name)
        else:
            model = cls._load_checkpoint(name, kwargs)
        if not output_loading_info:
            return model
        empty_info: dict[str, object] = {"unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model, {"missing_keys": set(model.missing_keys), **empty_info}

    @classmethod
    def _load_checkpoint(cls, name: str | PathLike[str], kwargs: Mapping[str, Any]) -> PreTrainedModel:
        """Finds a checkpoint, builds the model without memory for its weights, and streams them in."""
        folder, settings = resolve_folder_and_settings(cls.__name__, name, kwargs, MODEL_FILES)
        given, settings = split_kwargs(settings, OPTION_NAMES)
        options = LoadingOptions(**given)
        checkpoint = read_checkpoint(folder)
        config = as_config(folder if options.config is None else options.config)
        model_class = cls._model_class_for(config)
        known_names = model_class.config_class.fields
        if unknown := sorted(settings.keys() - known_names):
            raise UnknownArgument(
                f"{cls.__name__}.from_pretrained", unknown, [*OPTION_NAMES, *HUB_KWARGS, *known_names]
            )
        config = as_config(config, **settings)
        with building_models("load"):
            model = model_class(config)
        _load_checkpoint_weights(model, checkpoint, options)
        model.set_attn_implementation(options.attn_implementation or config._attn_implementation or "sdpa")
        if options.generation_config is not None:
            model.generation_config = GenerationConfig.from_any(options.generation_config)
        elif (folder / GENERATION_CONFIG_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = str(name)
        return model.eval()

    @classmethod
    def from_config(
        cls,
        config: PretrainedConfig | Mapping[str, Any],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | Mapping[str, str] | None = None,
    ) -> Any:
        """Builds a model with initial weights, to be trained or filled by the caller.

        Args:
            config: of this package or of transformers, or the content of a config.json.
            torch_dtype, dtype: of the weights; None: float32; "auto": the config's.
            attn_implementation: as in `LoadingOptions`.
        """
        resolved_config = as_config(config)
        model = cls._model_class_for(resolved_config)(resolved_config)
        model = model.to(resolve_dtype(torch_dtype or dtype or "float32", resolved_config.torch_dtype))
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model

    _from_config = from_config  # the name that transformers' classes have for it


def _load_checkpoint_weights(model: PreTrainedModel, checkpoint: Checkpoint, options: LoadingOptions) -> None:
    """Streams a checkpoint's weights into a model that stands on the meta device."""
    quantization = as_quantization_config(options.quantization_config)
    module, key_rules = _module_with_checkpoint_names(model, checkpoint)
    # Modules of this package stand on the meta device, and only those that a subclass has added do not.
    tensors = module.state_dict(keep_vars=True).items()
    added_names = frozenset(name for name, tensor in tensors if not tensor.is_meta)
    core_quantization = None if quantization is None else quantization.to_quantization_config()
    if core_quantization and (modules := sorted({name.rpartition(".")[0] for name in added_names} - {""})):
        core_quantization = replace(core_quantization, skip=(*core_quantization.skipped, *modules))
    missing_keys = load_weights(
        module,
        checkpoint.folder,
        key_rules,
        dtype=resolve_dtype(options.dtype, checkpoint.config.dtype),
        device=resolve_device(
            "cpu" if options.device_map is None else "auto", options.device_map, options.max_memory
        ),
        quantization=core_quantization,
        checkpoint_quantization=checkpoint.quantization,
        optional_names=added_names,
    )
    initialize_missing_modules_and_warn(model, module, missing_keys)
    model._set_quantization(quantization)
    model.is_quantized = quantization is not None or checkpoint.quantization is not None


def initialize_missing_modules_and_warn(
    model: PreTrainedModel, root: nn.Module, missing_keys: Sequence[str]
) -> None:
    """Initialises added modules that are wholly missing in a checkpoint; a warning names the missing weights.

    Args:
        model: initialises them by `_init_weights`, and gets `missing_keys`.
        root: the module in which the names are looked up.
        missing_keys: names of weights that the checkpoint lacks.
    """
    model.missing_keys = tuple(missing_keys)
    if not missing_keys:
        return
    for owner in {name.rpartition(".")[0] for name in missing_keys}:
        module = root.get_submodule(owner)
        prefix = f"{owner}." if owner else ""
        own_parameter_names = {prefix + name for name, _ in module.named_parameters(recurse=False)}
        if owner and own_parameter_names <= set(missing_keys):
            model._init_weights(module)
    names = ", ".join(missing_keys[:5]) + (" ..." if len(missing_keys) > 5 else "")
    warnings.warn(
        f"{len(missing_keys)} weights are not in the checkpoint and were newly initialised ({names}): "
        "train them before use",
        stacklevel=5,  # the caller of `from_pretrained`
    )


def _module_with_checkpoint_names(
    model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[nn.Module, KeyRules]:
    """The model, or a module around it, whose parameters have the names of the checkpoint; and the rules for names.

    A model without a head is wrapped if the checkpoint has a head, and everything else under "model.".
    """
    key_rules = checkpoint.family.key_rules
    if "lm_head" not in dict(model.named_children()):
        key_rules = replace(key_rules, ignore=(*key_rules.ignore, r"^(lm_head|additional_fc)\."))
    if model.base_model_prefix or model.config.architectures == [type(model).__name__]:
        return model, key_rules
    wrapper = nn.Module()  # the checkpoint has a head, and everything else under "model."
    wrapper.model = model
    return wrapper, key_rules


def resolve_dtype(dtype: torch.dtype | str | None, checkpoint_dtype: str | None) -> torch.dtype:
    """The dtype of a name; None and "auto" stand for `checkpoint_dtype`, or float32 if that is None."""
    if dtype is None or dtype == "auto":
        dtype = checkpoint_dtype or "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BY_NAME:
        raise BadSetting(f"torch_dtype is {name!r}; give auto, {', '.join(DTYPE_BY_NAME)}")
    return DTYPE_BY_NAME[name]
