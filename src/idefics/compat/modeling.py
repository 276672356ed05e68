"""The base classes of the guides' models, which are subclasses of those in `models` with transformers' `forward`.

Parameters have the released names.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.decoder_forward import DecoderResult, ForwardOptions
from idefics.compat.generation import GenerationMixin
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.gradient_checkpointing import GradientCheckpointingMixin
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.loading import ModelLoader
from idefics.compat.model_construction import accept_any_config_in_init, should_initialize_weights
from idefics.compat.modeling_attention import AttentionImplementationMixin
from idefics.compat.modeling_embeddings import EmbeddingAccessMixin
from idefics.compat.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput
from idefics.compat.saving import SavingMixin
from idefics.compat.training import initialize_module, next_token_loss
from idefics.compat.transformers_instance import TransformersInstanceMixin
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from idefics.nn.attention import Attn
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.quant import memory_footprint


class PreTrainedModel(
    TransformersInstanceMixin,
    ModelLoader,
    SavingMixin,
    EmbeddingAccessMixin,
    GradientCheckpointingMixin,
    AttentionImplementationMixin,
):
    """What every model class has.

    Attributes:
        config: the config of the guides; `config.to_model_config()` is that of `models`.
        config_class, model_types: the class of the config, and the model_types of checkpoints that the class loads.
        base_model_prefix: the attribute that holds everything but the head; "" in a model without a head.
        name_or_path: where the weights were loaded from; "" where they were not.
        main_input_name, accepts_loss_kwargs: read by trainers; the second says that `forward` takes
            `num_items_in_batch`.
    """

    config: PretrainedConfig
    config_class: ClassVar[type[PretrainedConfig]]
    model_types: ClassVar[tuple[str, ...]]
    base_model_prefix: ClassVar[str] = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        """For a subclass that builds the parts of the model itself, and then calls `post_init`."""
        HasAttentionBackend.__init__(self)
        self._set_config(config)

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        if config.model_type in cls.model_types:
            return cls
        raise UnsupportedModel(
            f"the config is of model_type {config.model_type!r} and {cls.__name__} reads "
            f"{', '.join(cls.model_types)}: use AutoModelForImageTextToText"
        )

    def _set_config(self, config: PretrainedConfig) -> None:
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config.to_dict())
        self.name_or_path = ""
        self._set_quantization(None)

    def _finish_init(self, config: PretrainedConfig) -> None:
        """The last step of every constructor."""
        self._set_config(config)
        self.post_init()

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

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder on packed tokens: embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def base_model(self) -> nn.Module:
        """Everything but the head; in a model without a head, itself."""
        return self.get_submodule(self.base_model_prefix)

    def get_decoder(self) -> nn.Module:
        """The base model, which takes the same arguments."""
        return self.base_model

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters, tied ones counted once."""
        embeddings = (
            {
                id(w)
                for m in self.modules()
                if isinstance(m, nn.Embedding)
                for w in m.parameters(recurse=False)
            }
            if exclude_embeddings
            else set()
        )
        return sum(
            weight.numel()
            for weight in self.parameters()
            if id(weight) not in embeddings and (weight.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, quantised or not, and of buffers unless `return_buffers` is False."""
        return memory_footprint(self, return_buffers)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model has `generate`: only with a head."""
        return False

    def _resolve_forward_options(
        self,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> ForwardOptions:
        config = self.config
        # With gradient checkpointing, a cache would keep the activations that are to be freed.
        uses_cache = config.use_cache and not (self.training and self.is_gradient_checkpointing)
        return ForwardOptions(
            uses_cache if use_cache is None else use_cache,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.return_dict if return_dict is None else return_dict,
        )


class BaseModelWithoutHead(PreTrainedModel):
    """A model without a head: `forward` returns hidden states."""

    base_model_prefix = ""
    output_class: ClassVar[type[BaseModelOutputWithPast]]

    @property
    def base_model(self) -> nn.Module:
        """The model itself, which has no head."""
        return self

    def _make_output(
        self, result: DecoderResult, past: KeyValueCache, features: Tensor | None, options: ForwardOptions
    ) -> Any:
        """The output of `forward`; `features` are the image features that this pass read."""
        if result.cache is not None:
            result.cache.has_read_images = past.has_read_images or features is not None
        out = self.output_class(
            last_hidden_state=result.last_hidden_state,
            past_key_values=result.cache,
            hidden_states=result.hidden_states,
            attentions=result.attentions,
            image_hidden_states=features,
        )
        return as_return_type(out, options)


class ModelWithHead(PreTrainedModel, GenerationMixin):
    """A model with a head: logits, a loss, and `generate`."""

    lm_head: nn.Linear
    output_class: ClassVar[type[CausalLMOutputWithPast]]

    def get_output_embeddings(self) -> nn.Linear:
        """The head of the model, which computes logits from hidden states."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the head of the model by another linear layer."""
        self.lm_head = new_embeddings

    @classmethod
    def can_generate(cls) -> bool:
        """True: the model has `generate`."""
        return True

    def _make_output_with_logits(
        self,
        base_output: BaseModelOutputWithPast,
        options: ForwardOptions,
        labels: Tensor | None,
        attention_mask: Tensor | None,
        logits_to_keep: int | Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> Any:
        """The output of `forward` with logits and loss.

        Args:
            logits_to_keep: logits of so many last tokens, or of those whose indices a tensor holds; 0: of all.
        """
        if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
            raise BadSetting(
                f"logits_to_keep is {logits_to_keep}, but labels need the logits of all tokens: give 0"
            )
        tokens = base_output.last_hidden_state.shape[:2]
        if labels is not None and labels.shape != tokens:
            raise BadPrompt(
                f"labels are of {tuple(labels.shape)}: give {tuple(tokens)}, one for each new token of each row"
            )
        kept_positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(base_output.last_hidden_state[:, kept_positions])
        out = self.output_class(
            loss=None
            if labels is None
            else next_token_loss(logits, labels, attention_mask, num_items_in_batch=num_items_in_batch),
            logits=logits,
            past_key_values=base_output.past_key_values,
            hidden_states=base_output.hidden_states,
            attentions=base_output.attentions,
            image_hidden_states=base_output.image_hidden_states,
        )
        return as_return_type(out, options)


def as_return_type(out: ModelOutput, options: ForwardOptions) -> Any:
    """The output itself, or with `return_dict=False` the tuple of its values."""
    return out if options.return_dict else out.to_tuple()
