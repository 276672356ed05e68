"""`PreTrainedModel`, the base class of the guides' models, and its attention. Parameters have the released names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.loading import ModelFromPretrainedMixin
from idefics.compat.model_construction import accept_any_config_in_init, should_initialize_weights
from idefics.compat.modeling_embeddings import EmbeddingAccessMixin
from idefics.compat.saving import SavingMixin
from idefics.compat.training import GradientCheckpointingMixin, initialize_module
from idefics.errors import BadSetting, UnsupportedModel
from idefics.nn.attention_backends import (
    ATTENTION_BACKENDS,
    AttentionBackend,
    HasAttentionBackend,
    get_attention_backend,
    set_attention_backend,
)
from idefics.quant import memory_footprint

# The config of a part -> the children of the base model that are built from it. The decoder's backend is an attribute
# of the model itself.
PART_MODULES = {
    "text_config": frozenset[str](),
    "vision_config": frozenset({"vision_model"}),
    "perceiver_config": frozenset({"perceiver_resampler", "connector"}),
}


class AttentionImplementationMixin(EmbeddingAccessMixin, HasAttentionBackend):
    """Gives a model `set_attn_implementation`, for the whole model or for its parts."""

    @property
    def attn_implementation(self) -> str | None:
        """The attention implementation of the whole model: "sdpa", "eager" or "flash_attention_2"."""
        return self.config._attn_implementation

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        """Chooses how attention is computed.

        Args:
            attn_implementation: "sdpa", "eager" or "flash_attention_2"; or one for each part of the model, by the name
                of its config ("vision_config"), and "" for the rest. Parts that are not named keep theirs.

        Raises:
            BadSetting: no such implementation or part, or flash attention without a CUDA device of compute capability
                8.0 (the requirement of FlashAttention-2) and 16-bit weights.
        """
        named = {"": attn_implementation} if isinstance(attn_implementation, str) else {**attn_implementation}
        sub_configs = {name: getattr(self.config, name) for name in self.config.parts}
        if unknown := [name for name in named if name and name not in sub_configs]:
            raise BadSetting(
                f"attn_implementation names {unknown[0]!r}; give {', '.join(sub_configs)}, or '' for the rest"
            )
        if not isinstance(self.config._attn_implementation, str):
            named.setdefault("", "sdpa")
        backends = {name: self._get_backend(one) for name, one in named.items()}
        if "" in named:
            set_attention_backend(self, backends[""])
            for config in (self.config, *sub_configs.values()):
                config._attn_implementation = named[""]
        children = dict(self.base_model.named_children())
        for name in named.keys() & sub_configs.keys():
            sub_configs[name]._attn_implementation = named[name]
            for module in (self, self.base_model) if name == "text_config" else ():
                module.attention_backend = backends[name]
            for child in children.keys() & PART_MODULES[name]:
                set_attention_backend(children[child], backends[name])

    def _get_backend(self, attn_implementation: str) -> AttentionBackend:
        """The attention backend of a name, for the dtype of the weights; raises BadSetting for an unknown name."""
        if attn_implementation not in ATTENTION_BACKENDS:  # in the words of transformers, which callers match
            raise BadSetting(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported: '
                f"give {', '.join(ATTENTION_BACKENDS)}"
            )
        dtype = next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), None)
        return get_attention_backend(attn_implementation, dtype or torch.float32, torch.device("cuda"))


TRANSFORMERS_MODULE = "transformers.modeling_utils"


class TransformersInstanceMixin(nn.Module):
    """Instances are also instances of transformers' `PreTrainedModel`, once that has been imported.

    `type(model)` and the method resolution order do not change: `isinstance` also reads `__class__`, as with the
    specifications of `unittest.mock`.
    """

    # Class attributes that transformers' own code reads. Its caches and compiled calls are not supported here.
    _no_split_modules = ("DecoderLayer", "GatedCrossAttentionLayer", "VisionLayer")
    _keys_to_ignore_on_save = _keys_to_ignore_on_load_missing = _keys_to_ignore_on_load_unexpected = None
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict = _tied_weights_keys = _tp_plan = None
    _supports_sdpa = _supports_flash_attn = _supports_flash_attn_2 = True
    _supports_flex_attn = _supports_attention_backend = _supports_static_cache = False
    _supports_cache_class = _supports_quantized_cache = _can_compile_fullgraph = _is_stateful = False
    is_parallelizable = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """True: the rules by which transformers renames weights of its own classes do not apply."""
        return True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """True: `set_attn_implementation` reaches every part."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """False: no code of the model was downloaded with a checkpoint."""
        return False

    def __init_subclass__(cls) -> None:
        """Does nothing: transformers' own, which reads annotations of its classes, is not called for ours."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        theirs = sys.modules.get(TRANSFORMERS_MODULE)
        if theirs is None or "PreTrainedModel" not in vars(theirs):  # it may be half imported
            return type(self)
        own: type = type(self)
        return _make_combined_class(own, theirs.PreTrainedModel)


@cache
def _make_combined_class(own: type, theirs: type) -> type:
    """A class with the name of `own` that is a subclass of both; it has no instances."""
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own)(own.__name__, (own, theirs), names)


class PreTrainedModel(
    TransformersInstanceMixin,
    ModelFromPretrainedMixin,
    SavingMixin,
    GradientCheckpointingMixin,
    AttentionImplementationMixin,
):
    """Base of all model classes: loading, saving, embeddings, attention backends and gradient checkpointing.

    Attributes:
        config: has the fields of transformers' config; `config.to_model_config()` converts it for `idefics.models`.
        config_class, model_types: the class of the config, and the model_types of checkpoints that the class loads.
        name_or_path: where the weights were loaded from; "" where they were not.
        main_input_name, accepts_loss_kwargs: read by trainers; the second says that `forward` takes
            `num_items_in_batch`.
    """

    config: PretrainedConfig
    config_class: ClassVar[type[PretrainedConfig]]
    model_types: ClassVar[tuple[str, ...]]
    main_input_name = "input_ids"
    accepts_loss_kwargs = True

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        """For a subclass that builds the parts of the model itself, and then calls `post_init`."""
        HasAttentionBackend.__init__(self)
        self._init_from_config(config)

    @classmethod
    def _model_class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        """This class; raises UnsupportedModel if the config is of another model_type."""
        if config.model_type in cls.model_types:
            return cls
        raise UnsupportedModel(
            f"the config is of model_type {config.model_type!r} and {cls.__name__} reads "
            f"{', '.join(cls.model_types)}: use AutoModelForImageTextToText"
        )

    def _init_from_config(self, config: PretrainedConfig) -> None:
        """Sets `config`, and the other attributes to those of a model that was not loaded and is not quantised."""
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config.to_dict())
        self.name_or_path = ""
        self._set_quantization(None)

    def post_init(self) -> None:
        """Sets the attention backend and initialises the weights; a subclass calls it at the end of its constructor."""
        wanted = self.config._attn_implementation or "sdpa"
        self.set_attn_implementation(wanted)
        if not should_initialize_weights():  # the model with the head, or `from_pretrained`, sets it again
            self.config._attn_implementation = wanted
        if self.config.gradient_checkpointing:
            self.gradient_checkpointing_enable()
        if should_initialize_weights():
            self.init_weights()

    def init_weights(self) -> None:
        """Initialises the weights of every module, as `_init_weights` does."""
        for module in self.modules():
            self._init_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises the parameters of one module, without its submodules."""
        initialize_module(module, self.init_std)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device

    def get_decoder(self) -> nn.Module:
        """The model without its head, which takes the same arguments."""
        return self.base_model

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters, tied ones counted once."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            weight.numel()
            for weight in self.parameters()
            if not (exclude_embeddings and id(weight) in embeddings)
            and (weight.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, quantised or not, and of buffers unless `return_buffers` is False."""
        return memory_footprint(self, return_buffers)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model has `generate`: only with a head."""
        return False
