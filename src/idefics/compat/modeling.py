"""What all model classes of the guides have in common, around this package's own modules.

Each class is a model of `models/` whose `forward` takes what the guides give. Parameters have the released names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.decoder_forward import DecoderResult
from idefics.compat.generation import GenerationMixin
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.gradient_checkpointing import GradientCheckpointingMixin
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.loading import ModelLoader
from idefics.compat.model_construction import model_constructor, should_initialize_weights
from idefics.compat.modeling_embeddings import EmbeddingAccessMixin
from idefics.compat.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput
from idefics.compat.saving import SavingMixin
from idefics.compat.training import initialize_module, next_token_loss
from idefics.compat.transformers_instance import TransformersInstanceMixin
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from idefics.nn.attention import Attn
from idefics.nn.attention_backends import (
    ATTENTION_BACKENDS,
    AttentionBackend,
    AttentionModule,
    get_attention_backend,
    set_attention_backend,
)
from idefics.quant import memory_footprint

# The config of a part -> the children of the base model that are built by it; the decoder itself is told by the model.
PART_MODULES = {
    "text_config": frozenset[str](),
    "vision_config": frozenset({"vision_model"}),
    "perceiver_config": frozenset({"perceiver_resampler", "connector"}),
}


class ForwardOptions(NamedTuple):
    """What one call wants back: its own words, else the config's."""

    use_cache: bool
    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool


class PreTrainedModel(
    TransformersInstanceMixin,
    ModelLoader,
    SavingMixin,
    EmbeddingAccessMixin,
    GradientCheckpointingMixin,
    AttentionModule,
):
    """What every model class has.

    Attributes:
        config: the guides' kind; what this package makes of it is `config.settings()`.
        attn_implementation: "sdpa", "eager" or "flash_attention_2".
        base_model_prefix: the attribute under which a model with a head keeps everything else.
        main_input_name, accepts_loss_kwargs: what trainers ask: that `forward` takes `num_items_in_batch`.
    """

    config: PretrainedConfig
    config_class: ClassVar[type[PretrainedConfig]]
    model_types: ClassVar[tuple[str, ...]]
    base_model_prefix: ClassVar[str] = "model"
    attn_implementation: str
    main_input_name = "input_ids"
    accepts_loss_kwargs = True

    @model_constructor
    def __init__(self, config: Any) -> None:
        """For a subclass that makes the parts of the model itself, and calls `post_init` when it has."""
        AttentionModule.__init__(self)
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
        """The last step of every constructor: first weights, and how attention is computed."""
        self._set_config(config)
        self.post_init()

    def post_init(self) -> None:
        """First weights, and how attention is computed: a subclass calls it at the end of its constructor."""
        wanted = self.config._attn_implementation or "sdpa"
        self.set_attn_implementation(wanted)
        if not should_initialize_weights():  # the model around this one, or `from_pretrained`, chooses again
            self.config._attn_implementation = wanted
        if self.config.gradient_checkpointing:
            self.gradient_checkpointing_enable()
        if should_initialize_weights():
            self.init_weights()

    def init_weights(self) -> None:
        """Draws first weights for every module."""
        for module in self.modules():
            self._init_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        """Gives one module first weights, its own parts left aside."""
        initialize_module(module, self.init_std)

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The `forward` of `models/`, which the classes override: packed tokens, (N, D) and (N,) -> (N, D)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter that is a floating-point number."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def base_model(self) -> nn.Module:
        """Everything but the head; in a model without one, itself."""
        return self.get_submodule(self.base_model_prefix)

    def get_decoder(self) -> nn.Module:
        """Everything but the head, which takes the same arguments."""
        return self.base_model

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters have, tied ones counted once."""
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
        """Bytes that it takes, in however many bits weights are kept; of buffers too unless told otherwise."""
        return memory_footprint(self, return_buffers)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether it has `generate`."""
        return False

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        """Chooses how attention is computed.

        Args:
            attn_implementation: "sdpa", "eager" or "flash_attention_2"; or one for each part, by the name of its
                config ("vision_config"), and "" for the rest. Parts that are not named stay as they are.

        Raises:
            BadSetting: no such implementation or part, or flash attention where it cannot be: it needs a CUDA device
                of compute capability 8.0 (the requirement of FlashAttention-2) and 16-bit weights.
        """
        named = {"": attn_implementation} if isinstance(attn_implementation, str) else {**attn_implementation}
        sub_configs = {name: getattr(self.config, name) for name in self.config.parts}
        if unknown := [name for name in named if name and name not in sub_configs]:
            raise BadSetting(
                f"attn_implementation names {unknown[0]!r}; give {', '.join(sub_configs)}, or '' for the rest"
            )
        if not isinstance(self.config._attn_implementation, str):
            named.setdefault("", "sdpa")
        kernels = {name: self._kernel(one) for name, one in named.items()}
        if "" in named:
            set_attention_backend(self, kernels[""])
            for config in (self.config, *sub_configs.values()):
                config._attn_implementation = named[""]
            self._attend_by(kernels[""], named[""])
        children = dict(self.base_model.named_children())
        for name in named.keys() & sub_configs.keys():
            sub_configs[name]._attn_implementation = named[name]
            if name == "text_config":
                self._attend_by(kernels[name], named.get("", self.attn_implementation))
            for child in children.keys() & PART_MODULES[name]:
                set_attention_backend(children[child], kernels[name])

    def _kernel(self, attn_implementation: str) -> AttentionBackend:
        if attn_implementation not in ATTENTION_BACKENDS:  # the words that callers of transformers match
            raise BadSetting(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported: give {", ".join(ATTENTION_BACKENDS)}'
            )
        dtype = next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), None)
        return get_attention_backend(attn_implementation, dtype or torch.float32, torch.device("cuda"))

    def _attend_by(self, kernel: AttentionBackend, attn_implementation: str) -> None:
        """The decoder's attention implementation, which the whole model sets."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.attention_backend, module.attn_implementation = kernel, attn_implementation

    def _resolve_forward_options(
        self,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> ForwardOptions:
        config = self.config
        # A cache would keep what checkpointing shall not keep.
        uses_cache = config.use_cache and not (self.training and self.is_gradient_checkpointing)
        return ForwardOptions(
            uses_cache if use_cache is None else use_cache,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.return_dict if return_dict is None else return_dict,
        )


class BaseModelWithoutHead(PreTrainedModel):
    """A model without a head."""

    base_model_prefix = ""
    output_class: ClassVar[type[BaseModelOutputWithPast]]

    @property
    def base_model(self) -> nn.Module:
        return self

    def _make_output(
        self, result: DecoderResult, past: KeyValueCache, features: Tensor | None, options: ForwardOptions
    ) -> Any:
        """The output of `forward`; `features` are the pictures that were read in this pass."""
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
    """A model that speaks: logits, a loss, and `generate`."""

    lm_head: nn.Linear
    output_class: ClassVar[type[CausalLMOutputWithPast]]

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @classmethod
    def can_generate(cls) -> bool:
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
        """Head and loss. Of `logits_to_keep` last tokens, or of all where it is 0; a tensor holds their indices."""
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
    """The output as the caller wants it: by names, or the tuple of what is there."""
    return out if options.return_dict else out.to_tuple()
