"""`IdeficsPreTrainedModel`: initial weights, the size of the vocabulary, and frozen parts of the Idefics classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.modeling import PreTrainedModel
from idefics.compat.training import freeze_except
from idefics.errors import BadSetting
from idefics.models.idefics1 import DecoupledHead, GatedCrossAttentionLayer, Idefics1Backbone
from idefics.nn.vit import ClipEmbeddings


class IdeficsPreTrainedModel(PreTrainedModel):
    """What the Idefics classes share: initial weights, resizing of the vocabulary, freezing."""

    config: IdeficsConfig
    config_class = IdeficsConfig
    model_types = ("idefics",)

    @property
    def backbone(self) -> Idefics1Backbone:
        """The model without its head, with the modules of `models.idefics1`."""
        return cast(Idefics1Backbone, self.base_model)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedCrossAttentionLayer):
            for alpha in (module.alpha_cross_attn, module.alpha_dense):
                _initialize_alpha(alpha, self.config)
        if isinstance(module, ClipEmbeddings):
            nn.init.normal_(module.class_embedding)

    def tie_weights(self) -> None:
        """Ties the head to the embedding where the config says so, additional tokens included."""
        super().tie_weights()
        head, embeddings = self.get_output_embeddings(), self.backbone.embed_tokens
        if (
            self.config.tie_word_embeddings
            and embeddings.num_additional_embeddings
            and isinstance(head, DecoupledHead)
        ):
            head.additional_fc.weight = embeddings.additional_embedding.weight

    @property
    def vocab_size(self) -> int:
        """The number of tokens without additional ones, as the config has it."""
        return self.config.vocab_size

    @property
    def total_vocab_size(self) -> int:
        """The number of tokens, additional ones included."""
        embeddings = self.backbone.embed_tokens
        return embeddings.num_embeddings + embeddings.num_additional_embeddings

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        """Resizes the matrices of additional tokens where there are any, else those of the vocabulary."""
        embeddings, head = self.backbone.embed_tokens, self.get_output_embeddings()
        if not embeddings.num_additional_embeddings:
            super()._resize_vocabulary(size, mean_resizing=mean_resizing)
            return
        num_additional = size - embeddings.num_embeddings
        if num_additional < 1:
            raise BadSetting(
                f"new_num_tokens is {size}; give more than vocab_size, "
                f"{embeddings.num_embeddings}: the additional tokens come after those"
            )
        self._resize_rows(embeddings.additional_embedding, num_additional, mean_resizing=mean_resizing)
        embeddings.num_additional_embeddings = self.config.additional_vocab_size = num_additional
        if isinstance(head, DecoupledHead):
            self._resize_rows(head.additional_fc, num_additional, mean_resizing=mean_resizing)
            head.num_additional_outputs = num_additional

    def freeze_relevant_params(self, config: IdeficsConfig | None = None) -> None:
        """Freezes the parts that the config names; never the gated layers, the resampler and additional tokens."""
        config = config or self.config
        if config.freeze_text_layers:
            self.backbone.embed_tokens.weight.requires_grad_(False)
            self.freeze_text_layers(config.freeze_text_module_exceptions)
        if config.freeze_vision_layers:
            self.freeze_vision_layers(config.freeze_vision_module_exceptions)

    def freeze_text_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the decoder's layers and last norm, except modules of these classes (`FREEZABLE_CLASSES`)."""
        freeze_except(self.backbone.layers, module_exceptions)
        freeze_except(self.backbone.norm, module_exceptions)

    def freeze_vision_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the vision tower, except modules of these classes (`FREEZABLE_CLASSES`)."""
        freeze_except(self.backbone.vision_model, module_exceptions)


def _initialize_alpha(alpha: nn.Parameter, config: IdeficsConfig) -> None:
    match config.alpha_initializer:
        case "zeros":
            nn.init.zeros_(alpha)
        case "ones":
            nn.init.ones_(alpha)
        case "normal" | "gaussian" | "random":
            nn.init.normal_(alpha, std=config.alphas_initializer_range)
        case other:
            raise BadSetting(f"alpha_initializer is {other!r}; give zeros, ones, normal, gaussian or random")
