"""Vision towers that are called as transformers calls them: `model.model.vision_model(pixels).last_hidden_state`.

P frames, S patches of a frame, D' width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from idefics.compat.modeling_outputs import BaseModelOutputWithPooling
from idefics.errors import BadPrompt
from idefics.models import idefics1, inline
from idefics.nn.attention_backends import AttentionModule, EagerAttention, set_attention_backend


class SiglipVisionTransformer(inline.SiglipVisionTower):
    """SigLIP's transformer, of Idefics2, Idefics3 and SmolVLM."""

    def forward(
        self,
        pixel_values: Tensor,
        patch_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """(P, 3, h, w) -> an output whose `last_hidden_state` is (P, S, D').

        Args:
            patch_attention_mask: (P, rows of patches, columns of patches); all frames are read whole, so that a mask
                that leaves some patch out is refused.
            output_attentions, output_hidden_states: whether the output has those of each layer.
            return_dict: False gives a tuple.

        Raises:
            BadPrompt: the mask leaves patches out.
        """
        if patch_attention_mask is not None and not bool(patch_attention_mask.all()):
            raise BadPrompt(
                "patch_attention_mask leaves patches out: cut the frames to their pictures instead"
            )
        with _record_layer_outputs(
            self.encoder.layers, bool(output_hidden_states), bool(output_attentions)
        ) as record:
            last = inline.SiglipVisionTower.forward(self, pixel_values)
        return record.to_model_output(last, None, return_dict)


class IdeficsVisionTransformer(idefics1.ClipVisionTower):
    """CLIP's transformer, of Idefics."""

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = False,
        return_dict: bool | None = None,
    ) -> Any:
        """(P, 3, h, w) -> an output whose `last_hidden_state` is (P, 1 + S, D') and `pooler_output` (P, D').

        Args:
            output_attentions, output_hidden_states: whether the output has those of each layer.
            interpolate_pos_encoding: whether frames may have another size than the trained one.
            return_dict: False gives a tuple.

        Raises:
            BadPrompt: frames of another size, and `interpolate_pos_encoding` is not set.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.embeddings.patch_embedding.kernel_size[0]
        side = self.embeddings.patches_per_side * patch
        if (height, width) != (side, side) and not interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {side} x {side}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
        with _record_layer_outputs(
            self.encoder.layers, bool(output_hidden_states), bool(output_attentions)
        ) as record:
            last = idefics1.ClipVisionTower.forward(self, pixel_values)
        return record.to_model_output(last, self.post_layernorm(last[:, 0]), return_dict)


class _LayerOutputs:
    """What the layers of a tower gave in one call, for each of the groups of frames that went through together."""

    def __init__(self, num_layers: int, eager_attention: EagerAttention | None) -> None:
        self.num_layers, self.eager_attention = num_layers, eager_attention
        self.hidden_states: list[Tensor] = []  # for each group the embeddings, then each layer's output

    def to_model_output(self, last: Tensor, pooled: Tensor | None, return_dict: bool | None) -> Any:
        out = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=_concatenate_by_layer(self.hidden_states, self.num_layers + 1),
            attentions=_concatenate_by_layer(self.eager_attention.attention_weights, self.num_layers)
            if self.eager_attention
            else None,
        )
        return out.to_tuple() if return_dict is False else out


@contextmanager
def _record_layer_outputs(
    layers: nn.ModuleList, records_hidden_states: bool, records_attentions: bool
) -> Iterator[_LayerOutputs]:
    """Records the hidden states and attention weights of a tower's layers while this lasts."""
    record = _LayerOutputs(len(layers), EagerAttention() if records_attentions else None)
    hooks = []
    if records_hidden_states:
        hooks.append(
            layers[0].register_forward_pre_hook(lambda _, inputs: record.hidden_states.append(inputs[0]))
        )
        hooks += [
            layer.register_forward_hook(lambda _, inputs, out: record.hidden_states.append(out))
            for layer in layers
        ]
    original_backends = [
        module.attention_backend for module in layers.modules() if isinstance(module, AttentionModule)
    ]
    if record.eager_attention is not None:
        set_attention_backend(layers, record.eager_attention)
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        attention_modules = (module for module in layers.modules() if isinstance(module, AttentionModule))
        for module, kernel in zip(attention_modules, original_backends, strict=True):
            module.attention_backend = kernel


def _concatenate_by_layer(tensors: list[Tensor], num_outputs: int) -> tuple[Tensor, ...] | None:
    """Tensors of group after group, each with those of all layers -> one tensor of all frames for each layer."""
    return tuple(torch.cat(tensors[layer::num_outputs]) for layer in range(num_outputs)) if tensors else None
