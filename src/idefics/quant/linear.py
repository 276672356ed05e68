"""Linear layers with int8 or int4 weights, in plain torch: on every device, without an extra.

Weights are (O, I): O outputs, I inputs. The default products dequantise the weights into the dtype of the inputs.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.native.structures import GROUP_SIZE
from idefics.nn.native_kernels import (
    NativeWeight,
    can_use_native_inputs,
    can_use_native_weight,
    native_linear,
)
from idefics.quant.matmul import can_dequantize_int4, dequantize_int4, w8a8_matmul
from idefics.quant.quantized_linear import QuantizedLinear

MAX_WEIGHTS_AT_ONCE = 2**19  # weights whose scales are searched together: each takes some bytes meanwhile
INT4_SCALE_DTYPE = (
    torch.bfloat16
)  # a tenth less memory for a model than with float32 scales, and the same range
SCALE_CANDIDATES = tuple(
    1 - step / 40 for step in range(1, 13)
)  # of an int4 group, relative to its largest scale


def int4_bfloat16_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A `QuantizedMatmul` of int4 weights in bfloat16, on a CPU with instructions for it (`native_linear`)."""
    if can_use_native_inputs(input) and can_use_native_weight(weight, scale):
        return native_linear(input, NativeWeight(weight, scale, input.shape[-1]), bias)
    return Int4Linear.default_matmul(input, weight, scale, bias)


class Int8Linear(QuantizedLinear):
    """int8 weights with a scale for each output, symmetric, as in Quanto and torchao.

    Attributes:
        levels: (O, I) int8 from -127 to 127.
        scale: (O,) the largest absolute weight of each output, divided by 127, in the dtype that the weights had.
    """

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer that replaces `layer`, with its bias and this (O, I) weight."""
        levels, scale = quantize_symmetric(weight, 127, weight.dtype)
        return cls.from_quantized(layer, levels, scale[:, 0])

    @classmethod
    def empty(cls, layer: nn.Linear) -> Self:
        """A layer that replaces `layer`, on the meta device: its levels and scales are loaded later."""
        outputs, inputs = layer.weight.shape
        levels = torch.empty(outputs, inputs, dtype=torch.int8, device="meta")
        return cls.from_quantized(layer, levels, torch.empty(outputs, device="meta"))

    def native_weight(self) -> NativeWeight | None:
        """The weight for the C kernels; None if the layer does not round inputs to int8 or they do not support it."""
        is_native = self.matmul is w8a8_matmul and can_use_native_weight(self.levels, self.scale)
        return NativeWeight(self.levels, self.scale) if is_native else None

    @staticmethod
    def dequantize_levels(levels: Tensor, scale: Tensor, num_inputs: int, dtype: torch.dtype) -> Tensor:
        """The weights, scaled before they are multiplied: sums of levels would overflow in float16."""
        return levels.to(dtype).mul_(scale[:, None].to(dtype))


class Int4Linear(QuantizedLinear):
    """int4 weights with a scale for each `GROUP_SIZE` consecutive inputs of each output, symmetric.

    Attributes:
        levels: (O, ceil(I / GROUP_SIZE) * GROUP_SIZE / 2) uint8: two weights in a byte, the even one in the low half,
            each from 1 to 15, where 8 is zero.
        scale: (O, ceil(I / GROUP_SIZE)) bfloat16, or float32 in folders of older versions.
    """

    def native_weight(self) -> NativeWeight | None:
        """The weight for the C kernels; None if the layer does not multiply in bfloat16 or they do not support it."""
        if self.matmul is not int4_bfloat16_matmul or not can_use_native_weight(self.levels, self.scale):
            return None
        return NativeWeight(self.levels, self.scale, self.in_features)

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer that replaces `layer`, with its bias and this (O, I) weight."""
        groups = functional.pad(weight, (0, -weight.shape[1] % GROUP_SIZE)).unflatten(1, (-1, GROUP_SIZE))
        quantized_parts = [
            _pack_int4(*quantize_least_squares(some, 7, INT4_SCALE_DTYPE))
            for some in groups.split(max(1, MAX_WEIGHTS_AT_ONCE // layer.in_features))
        ]
        levels, scales = (torch.cat(parts) for parts in zip(*quantized_parts, strict=True))
        return cls.from_quantized(layer, levels, scales)

    @classmethod
    def empty(cls, layer: nn.Linear) -> Self:
        """A layer that replaces `layer`, on the meta device: its levels and scales are loaded later."""
        outputs, groups = layer.out_features, -(-layer.in_features // GROUP_SIZE)
        levels = torch.empty(outputs, groups * GROUP_SIZE // 2, dtype=torch.uint8, device="meta")
        scale = torch.empty(outputs, groups, dtype=INT4_SCALE_DTYPE, device="meta")
        return cls.from_quantized(layer, levels, scale)

    @staticmethod
    def dequantize_levels(levels: Tensor, scale: Tensor, num_inputs: int, dtype: torch.dtype) -> Tensor:
        """The weights, by the C kernel where it can be used, else in torch."""
        if can_dequantize_int4(levels, scale, dtype):
            return dequantize_int4(levels, scale, num_inputs)
        unpacked = torch.empty(*levels.shape, 2, dtype=dtype, device=levels.device)  # (O, bytes, halves)
        unpacked[..., 0], unpacked[..., 1] = levels & 15, levels >> 4
        groups = unpacked.flatten(1).unflatten(1, (-1, GROUP_SIZE)).sub_(8).mul_(scale.to(dtype)[..., None])
        weights: Tensor = groups.flatten(1)[:, :num_inputs]
        return weights


def _pack_int4(levels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Converts levels and scales to the storage format of `Int4Linear`, two levels in a byte.

    Args:
        levels: (O, groups, GROUP_SIZE) from -7 to 7.
        scale: (O, groups, 1).
    """
    nibbles = levels.add_(8).to(torch.uint8).flatten(1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale[..., 0]


def quantize_symmetric(weight: Tensor, max_level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantises to integers with one scale for each row of the last dimension, zero staying zero.

    Args:
        weight: (..., I).
        max_level: levels are from -max_level to max_level.
        dtype: of the scales. Levels are chosen for the scale after it was rounded to this dtype.

    Returns:
        (..., I) int8 levels, and (..., 1) scales.
    """
    max_abs = weight.abs().amax(dim=-1, keepdim=True)  # twenty times as fast as torch's norm
    scale = (max_abs.float() / max_level).to(dtype).clamp(min=torch.finfo(dtype).tiny)  # zeros stay zeros
    return _round_to_levels(weight, scale, max_level), scale


def quantize_least_squares(weight: Tensor, max_level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantises as `quantize_symmetric`, but with the scale that gives the least squared error of each group.

    Candidates are the scale of `quantize_symmetric` and smaller ones down to seven tenths of it: clipping a group's few
    largest weights may be worth the smaller error of all others.
    """
    best_levels, scale = quantize_symmetric(weight, max_level, dtype)
    error = _squared_error(weight, best_levels, scale)
    largest_scale = scale
    for factor in SCALE_CANDIDATES:
        candidate_scale = (largest_scale.float() * factor).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        levels = _round_to_levels(weight, candidate_scale, max_level)
        candidate_error = _squared_error(weight, levels, candidate_scale)
        is_better = candidate_error < error
        best_levels = torch.where(is_better, levels, best_levels)
        scale = torch.where(is_better, candidate_scale, scale)
        error = torch.where(is_better, candidate_error, error)
    return best_levels, scale


def _round_to_levels(weight: Tensor, scale: Tensor, max_level: int) -> Tensor:
    """The nearest int8 levels of a weight for given scales."""
    return weight.float().div(scale.float()).round_().clamp_(-max_level, max_level).to(torch.int8)


def _squared_error(weight: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """The sum over the last dimension of (levels * scale - weight)^2."""
    return levels.float().mul_(scale.float()).sub_(weight.float()).square_().sum(dim=-1, keepdim=True)
