"""Linear layers whose weights are eight-bit floating-point numbers: sign, four bits of exponent, three of fraction.

The format is E4M3 of "FP8 Formats for Deep Learning" (arXiv 2209.05433), which GPUs multiply from
compute capability 8.9 on.
Weights are (O, I): O outputs, I inputs.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from idefics.nn.upcast import linear_by_blocks
from idefics.quant.linear import QuantizedMatmul, empty_layer, frozen_parameter
from idefics.quant.packed import QuantizedLinear

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8_DTYPE).max  # 448
SIZE_MULTIPLE = 16  # of which the products of GPUs want multiples


class Float8Linear(QuantizedLinear):
    """Eight bits a weight and a scale for each output.

    Attributes:
        levels: (O, I) float8_e4m3fn, the largest of each output at 448.
        scale: (O,) float32.
        matmul: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    matmul: QuantizedMatmul

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        quantized_layer = empty_layer(cls, layer)
        quantized, scale = quantize_fp8(weight)
        quantized_layer.weight, quantized_layer.scale, quantized_layer.matmul = (
            frozen_parameter(quantized),
            frozen_parameter(scale[:, 0]),
            fp8_dequantized_matmul,
        )
        return quantized_layer

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return (self.levels.float() * self.scale[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        matmul = fp8_dequantized_matmul if torch.is_grad_enabled() else self.matmul
        return matmul(input, self.levels, self.scale, self.bias)


def quantize_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest eight-bit numbers and float32 scales (..., 1) over the last dimension."""
    scale = values.abs().amax(dim=-1, keepdim=True).float().div_(FP8_MAX)
    scale.clamp_(min=torch.finfo(torch.float32).tiny)  # zeros stay zeros
    # Beyond the largest number there is only NaN.
    return (values.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8_DTYPE), scale


def fp8_dequantized_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product in the input's dtype, on every device."""

    def dequantize_rows(rows: slice) -> Tensor:
        return weight[rows].float().mul_(scale[rows, None]).to(input.dtype)

    return linear_by_blocks(input, weight.shape, dequantize_rows, bias)


def fp8_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of eight-bit numbers: each row of the input is rounded to them by a scale of its own.

    (..., I), (O, I), (O,), (O,) or None -> (..., O). Sums are in float32 and scaled here: scales of rows and outputs
    are not everywhere heeded by torch's product, which without a word takes the first for all on a CPU.
    """
    rows, row_scales = quantize_fp8(input.reshape(-1, input.shape[-1]))
    one = row_scales.new_ones(())
    out = torch._scaled_mm(rows, weight.t(), one, one, out_dtype=torch.float32) * row_scales * scale
    out = out.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def can_use_fp8_matmul(weight: Tensor) -> bool:
    """Whether a GPU multiplies such a weight."""
    if not weight.is_cuda or any(size % SIZE_MULTIPLE for size in weight.shape):
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)
