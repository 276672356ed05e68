"""Models without and with a head: subclasses of those in `models` with transformers' `forward`.

B rows, T new tokens, L cached and new tokens, D width, N = B * T packed tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.generation import GenerationMixin
from idefics.compat.keyword_arguments import split_kwargs
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.model_construction import accept_any_config_in_init, building_models
from idefics.compat.modeling import PreTrainedModel
from idefics.compat.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    DecoderInputs,
    record_module_outputs,
)
from idefics.compat.padded_attention import CrossAttentionInputs, PaddedAttn, make_attention_mask
from idefics.compat.training import next_token_loss
from idefics.errors import BadPrompt, BadSetting
from idefics.models.vision_language_model import ModelBackbone, VisionLanguageModel
from idefics.nn.attention_backends import EagerAttention


class BaseModelWithoutHead(PreTrainedModel, ModelBackbone):
    """A model without a head: `forward` returns hidden states.

    Attributes:
        backbone_class: the class in `idefics.models` that this one extends.
        attention_dropout: probability with which an attention weight of the decoder is dropped in training.
    """

    base_model_prefix = ""
    backbone_class: ClassVar[type[ModelBackbone]]
    output_class: ClassVar[type[BaseModelOutputWithPast]]
    attention_dropout = 0.0

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        model_config = config.to_model_config()
        self.backbone_class.__init__(self, model_config)
        self._sliding_window = model_config.text.sliding_window
        self._init_from_config(config)
        self.post_init()

    def _resolve_flags(self, flags: Sequence[bool | None]) -> Iterator[bool]:
        """The flags of a call, in the order of `_run_decoder`, and where they are None the config's."""
        config = self.config
        # With gradient checkpointing, a cache would keep the activations that are to be freed.
        uses_cache = config.use_cache and not (self.training and self.is_gradient_checkpointing)
        defaults = (uses_cache, config.output_attentions, config.output_hidden_states, config.return_dict)
        return (default if flag is None else flag for flag, default in zip(flags, defaults, strict=True))

    def _run_decoder(
        self,
        inputs: DecoderInputs,
        flags: Sequence[bool | None],
        image_features: Tensor | None,
        cross_attention_inputs: CrossAttentionInputs | None = None,
    ) -> Any:
        """Runs the decoder on new tokens.

        Args:
            flags: `use_cache`, `output_attentions`, `output_hidden_states` and `return_dict` of `forward`. For
                attentions, eager attention is used.
            image_features: the features that this pass has read.
            cross_attention_inputs: the images of a cross-attention model.

        Returns:
            The output of `forward`.
        """
        use_cache, output_attentions, output_hidden_states, return_dict = self._resolve_flags(flags)
        embeds, past = inputs.inputs_embeds, inputs.past
        num_rows, num_new_tokens = embeds.shape[:2]
        eager_attention = EagerAttention()
        attention_mask = make_attention_mask(
            inputs.attention_mask, num_new_tokens, past.get_seq_length(), self._sliding_window, embeds.device
        )
        attn = PaddedAttn(
            num_rows,
            attention_mask,
            past.layers,
            cross_attention_inputs,
            backend=eager_attention if output_attentions else self.attention_backend,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        with record_module_outputs(self.decoder.layers if output_hidden_states else ()) as states:
            packed = self.backbone_class.forward(
                self, embeds.flatten(0, 1), inputs.position_ids.flatten(), attn
            )
        # The last one is replaced by that after the last norm.
        hidden_states = [state.unflatten(0, (num_rows, num_new_tokens)) for state in (*states[:-1], packed)]
        cache = None
        if use_cache:
            cache = KeyValueCache(
                [attn.present_kv[layer] for layer in range(len(attn.present_kv))],
                cross_attention_inputs
                and cross_attention_inputs._replace(image_mask=cross_attention_inputs.image_mask[:, -1:]),
                has_read_images=past.has_read_images or image_features is not None,
            )
        return self.output_class(
            last_hidden_state=hidden_states[-1],
            past_key_values=cache,
            hidden_states=(embeds, *hidden_states) if output_hidden_states else None,
            attentions=tuple(eager_attention.attention_weights) if output_attentions else None,
            image_hidden_states=image_features,
        ).as_return_type(return_dict)


class ModelWithHead(PreTrainedModel, GenerationMixin, VisionLanguageModel):
    """A model with a head: logits, a loss, and `generate`.

    Attributes:
        base_class: the class of the model without the head, which is in the attribute `model`.
        architecture_class: the class in `idefics.models` that this one extends.
    """

    config: PretrainedConfig  # type: ignore[assignment]  # not that of `models`
    model: BaseModelWithoutHead
    base_class: ClassVar[type[BaseModelWithoutHead]]
    architecture_class: ClassVar[type[VisionLanguageModel]] = VisionLanguageModel
    output_class: ClassVar[type[CausalLMOutputWithPast]]

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        with building_models("part"):
            base_model = self.base_class(config)
        self.architecture_class.__init__(self, config.to_model_config(), base_model)
        self._init_from_config(config)
        self.post_init()

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

    def _compute_logits_and_loss(
        self,
        base_inputs: dict[str, Any],
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Runs the base model on its inputs, and the head on its output; the other arguments are those of `forward`."""
        if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
            raise BadSetting(
                f"logits_to_keep is {logits_to_keep}, but labels need the logits of all tokens: give 0"
            )
        return_dict = base_inputs.get("return_dict")
        outputs = dict(self.model(**base_inputs | {"return_dict": True}))
        last_hidden_state = outputs.pop("last_hidden_state")
        tokens = last_hidden_state.shape[:2]
        if labels is not None and labels.shape != tokens:
            raise BadPrompt(
                f"labels are of {tuple(labels.shape)}: give {tuple(tokens)}, one for each new token of each row"
            )
        kept_positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        outputs["logits"] = logits = self.lm_head(last_hidden_state[:, kept_positions])
        if labels is not None:
            outputs["loss"] = next_token_loss(
                logits, labels, base_inputs.get("attention_mask"), num_items_in_batch=num_items_in_batch
            )
        return self.output_class(outputs).as_return_type(
            self.config.return_dict if return_dict is None else return_dict
        )


def make_forward_with_head(base_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the `forward` of a model with a head, which takes the arguments of `base_forward` and those of the head."""

    def forward(self: ModelWithHead, *args: Any, **kwargs: Any) -> Any:
        """Computes the logits of a batch, and the loss where there are labels.

        Args:
            args, kwargs: those of the model without its head, and these.
            labels: (B, T) token ids, -100 where there is no loss.
            logits_to_keep: logits of so many last tokens, or of those whose indices a tensor holds; 0: of all.
            num_items_in_batch: divides the summed loss; None: the loss is the mean.

        Returns:
            An output with `logits` and `loss`, or with `return_dict=False` the tuple of its values.

        Raises:
            BadPrompt: arguments contradict each other, or there are more or fewer image tokens than features.
        """
        arguments = signature.bind(self, *args, **kwargs).arguments
        del arguments["self"]
        base_inputs, head_inputs = split_kwargs(arguments, base_parameters)
        return self._compute_logits_and_loss(base_inputs, **head_inputs)

    base_parameters = inspect.signature(base_forward).parameters
    _, _, *head_parameters = inspect.signature(ModelWithHead._compute_logits_and_loss).parameters.values()
    signature = inspect.Signature([*base_parameters.values(), *head_parameters])
    forward.__signature__ = signature  # type: ignore[attr-defined]  # read by trainers and by `generate`
    return forward
