"""A `Stack` computed in fewer and larger steps: for devices where starting a step costs more than a small one takes.

Query, key and value are one product, so are gate and up; residuals are added by the product before them; queries and
keys are rotated together. The numbers are those of the modules, but for the order in which sums are rounded.
N packed tokens, D width, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import TextConfig
from idefics.nn.attention import Attn
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.norm import RMSNorm
from idefics.nn.rope import frequencies
from idefics.nn.stack import Cross, Stack

Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, (N, 1, K) each


class JoinedStack:
    """The blocks and the last norm of a decoder: what `VLM.forward` does.

    Weights that are joined become parts of one tensor, under the names that they had: nothing is kept twice.
    """

    def __init__(self, stack: Stack) -> None:
        config = stack.config
        device = stack.norm.weight.device
        rates = frequencies(config.rope, config.head_size, device)
        self.turns = torch.cat((rates, rates)), torch.cat((-rates, rates))
        self.layers = [_Layer(config, layer) for layer in stack.layers]
        self.crosses = [None if cross is None else _Cross(config, cross) for cross in stack.crosses]
        self.norm = stack.norm

    def __call__(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """(N, D), (N,) -> (N, D)."""
        places = positions.float()[:, None, None]
        cosines, sines = (places * rates for rates in self.turns)
        rotary = cosines.cos().to(x.dtype), sines.sin().to(x.dtype)
        number = 0
        for index, (layer, cross) in enumerate(zip(self.layers, self.crosses, strict=True)):
            if cross is not None:
                x = cross(number, x, attn)
                number += 1
            x = layer(index, x, rotary, attn)
        return _normed(self.norm, x)


class _Layer:
    def __init__(self, config: TextConfig, layer: DecoderLayer) -> None:
        attention = layer.self_attn
        self.heads, self.kv_heads, self.size = config.heads, config.kv_heads, config.head_size
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = together((attention.q_proj, attention.k_proj, attention.v_proj))
        self.o = added(attention.o_proj)
        self.mlp = _Mlp(layer.mlp)

    def __call__(self, index: int, x: Tensor, rotary: Rotary, attn: Attn) -> Tensor:
        heads = self.qkv(_normed(self.norm, x)).unflatten(-1, (-1, self.size))  # (N, H + 2h, K)
        turned = _turned(heads[:, : self.heads + self.kv_heads], rotary)
        q, k, v = turned[:, : self.heads], turned[:, self.heads :], heads[:, self.heads + self.kv_heads :]
        x = self.o(attn.self_(index, q, k, v).flatten(1), x)
        return self.mlp.down(self.mlp.inner(_normed(self.mlp_norm, x)), x)


class _Cross:
    def __init__(self, config: TextConfig, cross: Cross) -> None:
        self.size, self.cross = config.head_size, cross
        self.mlp = _Mlp(cross.mlp)

    def __call__(self, number: int, x: Tensor, attn: Attn) -> Tensor:
        cross = self.cross
        q = cross.q(_normed(cross.norm, x)).unflatten(-1, (-1, self.size))
        if cross.q_norm is not None:
            q = _normed(cross.q_norm, q)
        seen = cross.o(attn.cross(number, q).flatten(1))
        x = torch.addcmul(x, cross.gate.flatten().tanh(), seen)
        inner = self.mlp.inner(_normed(cross.mlp_norm, x))
        return torch.addcmul(x, cross.mlp_gate.flatten().tanh(), cross.mlp.down_proj(inner))


class _Mlp:
    def __init__(self, mlp: GatedMLP) -> None:
        self.both, self.down = together((mlp.gate_proj, mlp.up_proj)), added(mlp.down_proj)
        self.act = mlp.act

    def inner(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.act(gate) * up


def together(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """What several layers make of one input, side by side: one product where all are plain."""
    if not all(map(is_plain, layers)):
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    whole = joined([layer.weight for layer in layers])
    return lambda x: functional.linear(x, whole)


def added(layer: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """What a layer makes of its input, added to a second argument: one product where it is plain."""
    if not is_plain(layer):
        return lambda x, residual: residual + layer(x)
    across = layer.weight.detach().t()
    return lambda x, residual: torch.addmm(residual, x, across)


def is_plain(layer: nn.Linear) -> bool:
    """Whether a layer is its weight and nothing else."""
    has_hooks = bool(layer._forward_hooks or layer._forward_pre_hooks)
    is_usual = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return is_usual and not has_hooks and layer.bias is None


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Weights as one, (O, I) each -> (sum of O, I): from then on they are parts of it, if they were not before."""
    first, inputs = weights[0], weights[0].shape[1]
    starts = [weight.storage_offset() for weight in weights]
    ends = [start + weight.numel() for start, weight in zip(starts, weights, strict=True)]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) > 1 or starts[1:] != ends[:-1]:
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return first.detach().as_strided((sum(map(len, weights)), inputs), (inputs, 1))


def _normed(norm: RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.epsilon)


def _turned(x: Tensor, rotary: Rotary) -> Tensor:
    """As `nn.rope.rotate`: (N, H, K) -> (N, H, K)."""
    cosines, sines = rotary
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cosines, torch.cat((high, low), dim=-1), sines)
