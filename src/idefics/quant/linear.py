"""Linear layers whose weights are integers and scales, in plain torch: on every device, with no extra.

Weights are (O, I): O outputs, I inputs. Products are computed in the inputs' dtype with the weights as they were
before they were rounded, to half a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.native.structures import GROUP_SIZE
from idefics.nn.upcast import LinearFunction as WideProduct
from idefics.nn.upcast import linear_by_blocks
from idefics.quant.int4_kernels import can_dequantize_int4, dequantize_int4
from idefics.quant.packed import QuantizedLinear

MAX_WEIGHTS_AT_ONCE = (
    2**19
)  # weights whose steps are looked for together: each has some bytes of its own meanwhile
SCALE_DTYPE = torch.bfloat16  # of these: a tenth of the memory less than in float32, and its range
L = TypeVar("L", bound=nn.Linear)
SCALE_CANDIDATES = tuple(
    1 - step / 40 for step in range(1, 13)
)  # of a group's step in four bits, which are tried
QuantizedMatmul = Callable[
    [Tensor, Tensor, Tensor, Tensor | None], Tensor
]  # inputs, levels, scales, bias -> outputs


class Int8Linear(QuantizedLinear):
    """Eight bits a weight and a scale for each output: symmetric, as Quanto and torchao have it.

    Attributes:
        levels: (O, I) int8 from -127 to 127.
        scale: (O,) the largest weight of each output, divided by 127, in the dtype that the weights had.
        matmul: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    matmul: QuantizedMatmul

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        levels, scale = quantize_symmetric(weight, 127, weight.dtype)
        return cls.from_quantized(layer, levels, scale[:, 0])

    @classmethod
    def from_quantized(cls, layer: nn.Linear, levels: Tensor, scale: Tensor) -> Self:
        """A layer's place taker, with what has been rounded before."""
        quantized_layer = empty_layer(cls, layer)
        quantized_layer.weight, quantized_layer.scale, quantized_layer.matmul = (
            frozen_parameter(levels),
            frozen_parameter(scale),
            int8_dequantized_matmul,
        )
        return quantized_layer

    @classmethod
    def empty(cls, layer: nn.Linear) -> Self:
        """A layer's place taker on the meta device, whose numbers are still to come."""
        outputs, inputs = layer.weight.shape
        levels = torch.empty(outputs, inputs, dtype=torch.int8, device="meta")
        return cls.from_quantized(layer, levels, torch.empty(outputs, device="meta"))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return self.levels.to(dtype) * self.scale.to(dtype)[:, None]

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        matmul = int8_dequantized_matmul if torch.is_grad_enabled() else self.matmul
        return matmul(input, self.levels, self.scale, self.bias)


def int8_dequantized_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of eight-bit weights in the input's dtype, on every device."""
    dtype = input.dtype

    def dequantize_rows(
        rows: slice,
    ) -> Tensor:  # scaled before the sum, which would leave the range of float16
        return weight[rows].to(dtype).mul_(scale[rows, None].to(dtype))

    return linear_by_blocks(input, weight.shape, dequantize_rows, bias)


class Int4Linear(QuantizedLinear):
    """Four bits a weight and a scale for each `GROUP_SIZE` inputs of each output: symmetric.

    Attributes:
        levels: (O, ceil(I / GROUP) * GROUP / 2) uint8, two weights a byte, the even one in the low half, each from
            1 to 15 with 8 for zero.
        scale: (O, ceil(I / GROUP)) bfloat16, a step of each group; float32 from folders of older versions.
        matmul: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    matmul: QuantizedMatmul

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        groups = functional.pad(weight, (0, -weight.shape[1] % GROUP_SIZE)).unflatten(1, (-1, GROUP_SIZE))
        quantized_parts = [
            _pack_int4(*quantize_least_squares(some, 7, SCALE_DTYPE))
            for some in groups.split(max(1, MAX_WEIGHTS_AT_ONCE // layer.in_features))
        ]
        levels, scales = (torch.cat(parts) for parts in zip(*quantized_parts, strict=True))
        return cls.from_quantized(layer, levels, scales)

    @classmethod
    def from_quantized(cls, layer: nn.Linear, levels: Tensor, scale: Tensor) -> Self:
        """A layer's place taker, with what has been rounded before."""
        quantized_layer = empty_layer(cls, layer)
        quantized_layer.weight, quantized_layer.scale, quantized_layer.matmul = (
            frozen_parameter(levels),
            frozen_parameter(scale),
            int4_dequantized_matmul,
        )
        return quantized_layer

    @classmethod
    def empty(cls, layer: nn.Linear) -> Self:
        """A layer's place taker on the meta device, whose numbers are still to come."""
        outputs, groups = layer.out_features, -(-layer.in_features // GROUP_SIZE)
        levels = torch.empty(outputs, groups * GROUP_SIZE // 2, dtype=torch.uint8, device="meta")
        return cls.from_quantized(
            layer, levels, torch.empty(outputs, groups, dtype=SCALE_DTYPE, device="meta")
        )

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return _dequantize_int4(self.levels, self.scale, self.in_features, dtype)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        matmul = int4_dequantized_matmul if torch.is_grad_enabled() else self.matmul
        return matmul(input, self.levels, self.scale, self.bias)


def int4_dequantized_matmul(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    linear_function: WideProduct = functional.linear,
) -> Tensor:
    """A product of four-bit weights in the input's dtype, on every device.

    Args:
        linear_function: what computes with some outputs' wide weights.
    """
    inputs, dtype = input.shape[-1], input.dtype

    def dequantize_rows(rows: slice) -> Tensor:
        return _dequantize_int4(weight[rows], scale[rows], inputs, dtype)

    return linear_by_blocks(input, (len(weight), inputs), dequantize_rows, bias, linear_function)


def _dequantize_int4(levels: Tensor, scale: Tensor, num_inputs: int, dtype: torch.dtype) -> Tensor:
    """(O, inputs) four-bit weights as they are computed with."""
    if can_dequantize_int4(levels, scale, dtype):
        return dequantize_int4(levels, scale, num_inputs)
    unpacked = torch.empty(*levels.shape, 2, dtype=dtype, device=levels.device)  # (O, bytes, halves)
    unpacked[..., 0], unpacked[..., 1] = levels & 15, levels >> 4
    groups = unpacked.flatten(1).unflatten(1, (-1, GROUP_SIZE)).sub_(8).mul_(scale.to(dtype)[..., None])
    weights: Tensor = groups.flatten(1)[:, :num_inputs]
    return weights


def quantize_symmetric(weight: Tensor, max_level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers from -most to most, as int8, and scales (..., 1) in a dtype, symmetric over the last dimension.

    Integers are chosen for the scale as it is stored, not as it was before its own rounding.
    """
    max_abs = weight.abs().amax(dim=-1, keepdim=True)  # twenty times as quick as torch's norm
    scale = (max_abs.float() / max_level).to(dtype).clamp(min=torch.finfo(dtype).tiny)  # zeros stay zeros
    return _round_to_levels(weight, scale, max_level), scale


def _pack_int4(levels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(O, groups, GROUP) integers and scales as they are stored in four bits."""
    nibbles = levels.add_(8).to(torch.uint8).flatten(1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale[..., 0]


def quantize_least_squares(weight: Tensor, max_level: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `rounded`, but of each group's steps that which leaves the least squared error.

    Steps are tried from that of `rounded` down to seven tenths of it: a group's few largest weights are cut off where
    the many others gain more.
    """
    best_levels, scale = quantize_symmetric(weight, max_level, dtype)
    error = _squared_error(weight, best_levels, scale)
    largest_scale = scale
    for factor in SCALE_CANDIDATES:
        candidate_scale = (largest_scale.float() * factor).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        levels = _round_to_levels(weight, candidate_scale, max_level)
        candidate_error = _squared_error(weight, levels, candidate_scale)
        is_better = candidate_error < error
        best_levels, scale = (
            torch.where(is_better, levels, best_levels),
            torch.where(is_better, candidate_scale, scale),
        )
        error = torch.where(is_better, candidate_error, error)
    return best_levels, scale


def _round_to_levels(weight: Tensor, scale: Tensor, max_level: int) -> Tensor:
    return weight.float().div(scale.float()).round_().clamp_(-max_level, max_level).to(torch.int8)


def _squared_error(weight: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return levels.float().mul_(scale.float()).sub_(weight.float()).square_().sum(dim=-1, keepdim=True)


def empty_layer(layer_class: type[L], layer: nn.Linear) -> L:
    """A layer of this kind without a weight yet, with the shape and the bias of another."""
    empty = layer_class(layer.in_features, layer.out_features, bias=False, device="meta")
    empty.bias = layer.bias
    return empty


def frozen_parameter(tensor: Tensor) -> nn.Parameter:
    """A tensor as a parameter that is not learned."""
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
