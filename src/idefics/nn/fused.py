"""A decoder in fewer, larger operations, for devices on which launching a small kernel takes longer than running it.

Query, key and value are one matrix product, as are gate and up; residuals are added by the product before them; queries
and keys are rotated together. Results equal those of the modules up to rounding.

N packed tokens, D width, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import TextConfig
from idefics.nn.attention import Attn
from idefics.nn.decoder import CrossAttentionBlock, DecoderLayer, DecoderParts, GatedMLP
from idefics.nn.norm import RMSNorm
from idefics.nn.rope import rope_frequencies

Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, (N, 1, K) each


class FusedDecoder:
    """Decoder layers, cross-attention blocks and final norm of `DecoderParts`, as in `VLM.forward`.

    Weights that are fused become views of one tensor and keep their names, so that no memory is used twice.
    """

    def __init__(self, parts: DecoderParts) -> None:
        config = parts.config
        device = parts.norm.weight.device
        rotary_rates = rope_frequencies(config.rope, config.head_size, device)
        self.rotary_frequencies = (
            torch.cat((rotary_rates, rotary_rates)),
            torch.cat((-rotary_rates, rotary_rates)),
        )
        self.layers = [_FusedLayer(config, layer) for layer in parts.layers]
        self.cross_blocks = [
            None if cross is None else _FusedCrossBlock(config, cross) for cross in parts.cross_blocks
        ]
        self.norm = parts.norm

    def __call__(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """Embedded tokens (N, D) at `positions` (N,) -> hidden states (N, D)."""
        float_positions = positions.float()[:, None, None]
        cosines, sines = (float_positions * rates for rates in self.rotary_frequencies)
        rotary = cosines.cos().to(x.dtype), sines.sin().to(x.dtype)
        cross_index = 0
        for index, (layer, cross) in enumerate(zip(self.layers, self.cross_blocks, strict=True)):
            if cross is not None:
                x = cross(cross_index, x, attn)
                cross_index += 1
            x = layer(index, x, rotary, attn)
        return _rms_norm(self.norm, x)


class _FusedLayer:
    """A `DecoderLayer` with fused projections and residuals."""

    def __init__(self, config: TextConfig, layer: DecoderLayer) -> None:
        attention = layer.self_attn
        self.num_heads, self.head_size = config.num_heads, config.head_size
        self.num_rotated = config.num_heads + config.num_kv_heads
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = fuse_linears((attention.q_proj, attention.k_proj, attention.v_proj))
        self.o = fuse_residual_add(attention.o_proj)
        self.mlp = _FusedMLP(layer.mlp)

    def __call__(self, index: int, x: Tensor, rotary: Rotary, attn: Attn) -> Tensor:
        heads = self.qkv(_rms_norm(self.norm, x)).unflatten(-1, (-1, self.head_size))  # (N, H + 2h, K)
        rotated = _rotate(heads[:, : self.num_rotated], rotary)
        q, k, v = rotated[:, : self.num_heads], rotated[:, self.num_heads :], heads[:, self.num_rotated :]
        x = self.o(attn.self_attention(index, q, k, v).flatten(1), x)
        return self.mlp.down(self.mlp.activate(_rms_norm(self.mlp_norm, x)), x)


class _FusedCrossBlock:
    """A `CrossAttentionBlock` with fused MLP projections, gates and residuals."""

    def __init__(self, config: TextConfig, cross: CrossAttentionBlock) -> None:
        self.head_size, self.block = config.head_size, cross
        self.mlp = _FusedMLP(cross.mlp)

    def __call__(self, cross_index: int, x: Tensor, attn: Attn) -> Tensor:
        cross = self.block
        q = cross.q(_rms_norm(cross.norm, x)).unflatten(-1, (-1, self.head_size))
        if cross.q_norm is not None:
            q = _rms_norm(cross.q_norm, q)
        attended = cross.o(attn.cross_attention(cross_index, q).flatten(1))
        x = torch.addcmul(x, cross.gate.flatten().tanh(), attended)
        inner = self.mlp.activate(_rms_norm(cross.mlp_norm, x))
        return torch.addcmul(x, cross.mlp_gate.flatten().tanh(), cross.mlp.down_proj(inner))


class _FusedMLP:
    """A `GatedMLP` whose gate and up projections are one product; `down(activate(x), residual)` computes it."""

    def __init__(self, mlp: GatedMLP) -> None:
        self.gate_up, self.down = fuse_linears((mlp.gate_proj, mlp.up_proj)), fuse_residual_add(mlp.down_proj)
        self.act = mlp.act

    def activate(self, x: Tensor) -> Tensor:
        """act(gate(x)) * up(x): (N, D) -> (N, intermediate size)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.act(gate) * up


def fuse_linears(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """Returns a function x -> concatenated outputs of layers: one matrix product if all are plain linear layers."""
    if not all(map(is_plain_linear, layers)):
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    fused_weight = concatenate_weights_as_views([layer.weight for layer in layers])
    return lambda x: functional.linear(x, fused_weight)


def fuse_residual_add(layer: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function (x, residual) -> residual + layer(x): one operation for a plain linear layer."""
    if not is_plain_linear(layer):
        return lambda x, residual: residual + layer(x)
    transposed_weight = layer.weight.detach().t()
    return lambda x, residual: torch.addmm(residual, x, transposed_weight)


def is_plain_linear(layer: nn.Linear) -> bool:
    """Whether a layer computes a product with its weight and nothing else: no bias, hook, subclass or quantisation."""
    has_hooks = bool(layer._forward_hooks or layer._forward_pre_hooks)
    is_torch_linear = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return is_torch_linear and not has_hooks and layer.bias is None


def concatenate_weights_as_views(weights: Sequence[Tensor]) -> Tensor:
    """Concatenates weights, (O, I) each -> (sum of O, I), and makes them views of the result.

    Nothing is copied if they are consecutive views of one tensor already.
    """
    first, inputs = weights[0], weights[0].shape[1]
    starts = [weight.storage_offset() for weight in weights]
    ends = [start + weight.numel() for start, weight in zip(starts, weights, strict=True)]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) > 1 or starts[1:] != ends[:-1]:
        merged = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, merged.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return first.detach().as_strided((sum(map(len, weights)), inputs), (inputs, 1))


def _rms_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)` by torch's fused kernel."""
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.epsilon)


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding, as `rope.apply_rotary`: (N, H, K) -> (N, H, K).

    Args:
        rotary: cosines, and sines with the signs of the rotation, so that one operation adds both terms.
    """
    cosines, sines = rotary
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cosines, torch.cat((high, low), dim=-1), sines)
