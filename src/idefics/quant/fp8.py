"""Linear layers with 8-bit floating-point weights: sign, 4 bits of exponent, 3 of mantissa.

The format is E4M3 of "FP8 Formats for Deep Learning" (arXiv 2209.05433), which GPUs multiply from compute capability
8.9 on. Weights are (O, I): O outputs, I inputs.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from idefics.quant.quantized_linear import QuantizedLinear

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8_DTYPE).max  # 448
SIZE_MULTIPLE = 16  # GPUs' products require sizes that are multiples of this


class Float8Linear(QuantizedLinear):
    """fp8 weights with a scale for each output.

    Attributes:
        levels: (O, I) float8_e4m3fn, the largest of each output at 448.
        scale: (O,) float32.
    """

    @classmethod
    def from_linear(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer that replaces `layer`, with its bias and this (O, I) weight."""
        levels, scale = quantize_fp8(weight)
        return cls.from_quantized(layer, levels, scale[:, 0])

    @staticmethod
    def dequantize_levels(levels: Tensor, scale: Tensor, num_inputs: int, dtype: torch.dtype) -> Tensor:
        """The weights, multiplied by their scales in float32."""
        return levels.float().mul_(scale[:, None]).to(dtype)


def quantize_fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises to fp8 with one scale for each row of the last dimension.

    Returns:
        (..., I) float8_e4m3fn levels, and (..., 1) float32 scales.
    """
    scale = values.abs().amax(dim=-1, keepdim=True).float().div_(FP8_MAX)
    scale.clamp_(min=torch.finfo(torch.float32).tiny)  # zeros stay zeros
    # Clamped, since the format has no infinity: larger values would become NaN.
    return (values.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8_DTYPE), scale


def fp8_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A `QuantizedMatmul` in fp8 on a GPU: each row of the input is quantised with a scale of its own.

    Sums are float32 and are scaled here: torch's product supports scales of rows and outputs on some devices only, and
    on a CPU silently uses the first scale for all.
    """
    rows, row_scales = quantize_fp8(input.reshape(-1, input.shape[-1]))
    one = row_scales.new_ones(())
    out = torch._scaled_mm(rows, weight.t(), one, one, out_dtype=torch.float32) * row_scales * scale
    out = out.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def can_use_fp8_matmul(weight: Tensor) -> bool:
    """Whether `fp8_matmul` supports this weight on the GPU that holds it."""
    if not weight.is_cuda or any(size % SIZE_MULTIPLE for size in weight.shape):
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)
