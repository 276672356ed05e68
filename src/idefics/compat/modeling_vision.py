"""Vision towers that are called as transformers calls them: `model.model.vision_model(pixels).last_hidden_state`.

P frames, S patches of a frame, D' width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from idefics.compat.outputs import BaseModelOutputWithPooling
from idefics.errors import BadPrompt
from idefics.models import idefics1, in_text
from idefics.nn.kernels import Attending, Explicit, give_kernel


class SiglipVisionTransformer(in_text.VisionTower):
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
        with _recorded(self.encoder.layers, bool(output_hidden_states), bool(output_attentions)) as record:
            last = in_text.VisionTower.forward(self, pixel_values)
        return record.output(last, None, return_dict)


class IdeficsVisionTransformer(idefics1.VisionTower):
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
        side = self.embeddings.grid * patch
        if (height, width) != (side, side) and not interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {side} x {side}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
        with _recorded(self.encoder.layers, bool(output_hidden_states), bool(output_attentions)) as record:
            last = idefics1.VisionTower.forward(self, pixel_values)
        return record.output(last, self.post_layernorm(last[:, 0]), return_dict)


class _Record:
    """What the layers of a tower gave in one call, for each of the groups of frames that went through together."""

    def __init__(self, depth: int, explicit: Explicit | None) -> None:
        self.depth, self.explicit = depth, explicit
        self.states: list[Tensor] = []  # for each group the embeddings, then each layer's output

    def output(self, last: Tensor, pooled: Tensor | None, return_dict: bool | None) -> Any:
        out = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=_by_layer(self.states, self.depth + 1),
            attentions=_by_layer(self.explicit.weights, self.depth) if self.explicit else None,
        )
        return out.to_tuple() if return_dict is False else out


@contextmanager
def _recorded(layers: nn.ModuleList, states: bool, weights: bool) -> Iterator[_Record]:
    """Records the hidden states and attention weights of a tower's layers while this lasts."""
    record = _Record(len(layers), Explicit() if weights else None)
    hooks = []
    if states:
        hooks.append(layers[0].register_forward_pre_hook(lambda _, inputs: record.states.append(inputs[0])))
        hooks += [
            layer.register_forward_hook(lambda _, inputs, out: record.states.append(out)) for layer in layers
        ]
    kernels = [module.kernel for module in layers.modules() if isinstance(module, Attending)]
    if record.explicit is not None:
        give_kernel(layers, record.explicit)
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        attending = (module for module in layers.modules() if isinstance(module, Attending))
        for module, kernel in zip(attending, kernels, strict=True):
            module.kernel = kernel


def _by_layer(steps: list[Tensor], depth: int) -> tuple[Tensor, ...] | None:
    """Tensors of group after group, each with those of all layers -> one tensor of all frames for each layer."""
    return tuple(torch.cat(steps[layer::depth]) for layer in range(depth)) if steps else None
