"""Linear layers whose weights are eight-bit floating-point numbers: sign, four bits of exponent, three of fraction.

The format is E4M3 of "FP8 Formats for Deep Learning" (arXiv 2209.05433), which GPUs multiply from
compute capability 8.9 on.
Weights are (O, I): O outputs, I inputs.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from idefics.nn.stored import by_blocks
from idefics.quant.integers import Product, kept, shell
from idefics.quant.packed import QuantizedLinear

KIND = torch.float8_e4m3fn
MOST = torch.finfo(KIND).max  # 448
TILE = 16  # of which the products of GPUs want multiples


class Float8Linear(QuantizedLinear):
    """Eight bits a weight and a scale for each output.

    Attributes:
        levels: (O, I) float8_e4m3fn, the largest of each output at 448.
        scale: (O,) float32.
        product: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    product: Product

    @classmethod
    def of(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        made = shell(cls, layer)
        levels, scale = in_eight(weight)
        made.weight, made.scale, made.product = kept(levels), kept(scale[:, 0]), widened_back
        return made

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return (self.levels.float() * self.scale[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        product = widened_back if torch.is_grad_enabled() else self.product
        return product(input, self.levels, self.scale, self.bias)


def in_eight(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest eight-bit numbers and float32 scales (..., 1) over the last dimension."""
    scale = values.abs().amax(dim=-1, keepdim=True).float().div_(MOST)
    scale.clamp_(min=torch.finfo(torch.float32).tiny)  # zeros stay zeros
    # Beyond the largest number there is only NaN.
    return (values.float() / scale).clamp_(-MOST, MOST).to(KIND), scale


def widened_back(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product in the input's dtype, on every device."""

    def wide(rows: slice) -> Tensor:
        return weight[rows].float().mul_(scale[rows, None]).to(input.dtype)

    return by_blocks(input, weight.shape, wide, bias)


def scaled(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of eight-bit numbers: each row of the input is rounded to them by a scale of its own.

    (..., I), (O, I), (O,), (O,) or None -> (..., O). Sums are in float32 and scaled here: scales of rows and outputs
    are not everywhere heeded by torch's product, which without a word takes the first for all on a CPU.
    """
    rows, steps = in_eight(input.reshape(-1, input.shape[-1]))
    one = steps.new_ones(())
    out = torch._scaled_mm(rows, weight.t(), one, one, out_dtype=torch.float32) * steps * scale
    out = out.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def can_multiply(weight: Tensor) -> bool:
    """Whether a GPU multiplies such a weight."""
    if not weight.is_cuda or any(size % TILE for size in weight.shape):
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)
