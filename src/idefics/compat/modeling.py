"""`PreTrainedModel`, the base class of the guides' models. Parameters have the released names."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.gradient_checkpointing import GradientCheckpointingMixin
from idefics.compat.loading import ModelFromPretrainedMixin
from idefics.compat.model_construction import accept_any_config_in_init, should_initialize_weights
from idefics.compat.modeling_attention import AttentionImplementationMixin
from idefics.compat.modeling_embeddings import EmbeddingAccessMixin
from idefics.compat.saving import SavingMixin
from idefics.compat.training import initialize_module
from idefics.compat.transformers_instance import TransformersInstanceMixin
from idefics.errors import UnsupportedModel
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.quant import memory_footprint


class PreTrainedModel(
    TransformersInstanceMixin,
    ModelFromPretrainedMixin,
    SavingMixin,
    EmbeddingAccessMixin,
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

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

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
