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

from idefics.nn.stored import Product as WideProduct
from idefics.nn.stored import by_blocks
from idefics.quant.packed import QuantizedLinear
from idefics.quant.passes import GROUP, can_widen, widen

AT_ONCE = 2**19  # weights whose steps are looked for together: each has some bytes of its own meanwhile
SCALE = torch.bfloat16  # of these: a tenth of the memory less than in float32, and its range
L = TypeVar("L", bound=nn.Linear)
SHRINKINGS = tuple(1 - step / 40 for step in range(1, 13))  # of a group's step in four bits, which are tried
Product = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # inputs, levels, scales, bias -> outputs


class Int8Linear(QuantizedLinear):
    """Eight bits a weight and a scale for each output: symmetric, as Quanto and torchao have it.

    Attributes:
        levels: (O, I) int8 from -127 to 127.
        scale: (O,) the largest weight of each output, divided by 127, in the dtype that the weights had.
        product: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    product: Product

    @classmethod
    def of(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        levels, scale = rounded(weight, 127, weight.dtype)
        return cls.holding(layer, levels, scale[:, 0])

    @classmethod
    def holding(cls, layer: nn.Linear, levels: Tensor, scale: Tensor) -> Self:
        """A layer's place taker, with what has been rounded before."""
        made = shell(cls, layer)
        made.weight, made.scale, made.product = kept(levels), kept(scale), rounded_back
        return made

    @classmethod
    def hollow(cls, layer: nn.Linear) -> Self:
        """A layer's place taker on the meta device, whose numbers are still to come."""
        outputs, inputs = layer.weight.shape
        levels = torch.empty(outputs, inputs, dtype=torch.int8, device="meta")
        return cls.holding(layer, levels, torch.empty(outputs, device="meta"))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return self.levels.to(dtype) * self.scale.to(dtype)[:, None]

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        product = rounded_back if torch.is_grad_enabled() else self.product
        return product(input, self.levels, self.scale, self.bias)


def rounded_back(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of eight-bit weights in the input's dtype, on every device."""
    dtype = input.dtype

    def wide(rows: slice) -> Tensor:  # scaled before the sum, which would leave the range of float16
        return weight[rows].to(dtype).mul_(scale[rows, None].to(dtype))

    return by_blocks(input, weight.shape, wide, bias)


class Int4Linear(QuantizedLinear):
    """Four bits a weight and a scale for each `GROUP` inputs of each output: symmetric.

    Attributes:
        levels: (O, ceil(I / GROUP) * GROUP / 2) uint8, two weights a byte, the even one in the low half, each from
            1 to 15 with 8 for zero.
        scale: (O, ceil(I / GROUP)) bfloat16, a step of each group; float32 from folders of older versions.
        product: what multiplies where no gradient is wanted.
    """

    scale: nn.Parameter
    product: Product

    @classmethod
    def of(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        groups = functional.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        found = [
            _halves(*nearest(some, 7, SCALE)) for some in groups.split(max(1, AT_ONCE // layer.in_features))
        ]
        levels, scales = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls.holding(layer, levels, scales)

    @classmethod
    def holding(cls, layer: nn.Linear, levels: Tensor, scale: Tensor) -> Self:
        """A layer's place taker, with what has been rounded before."""
        made = shell(cls, layer)
        made.weight, made.scale, made.product = kept(levels), kept(scale), packed_widened
        return made

    @classmethod
    def hollow(cls, layer: nn.Linear) -> Self:
        """A layer's place taker on the meta device, whose numbers are still to come."""
        outputs, groups = layer.out_features, -(-layer.in_features // GROUP)
        levels = torch.empty(outputs, groups * GROUP // 2, dtype=torch.uint8, device="meta")
        return cls.holding(layer, levels, torch.empty(outputs, groups, dtype=SCALE, device="meta"))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return _wide(self.levels, self.scale, self.in_features, dtype)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        product = packed_widened if torch.is_grad_enabled() else self.product
        return product(input, self.levels, self.scale, self.bias)


def packed_widened(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    product: WideProduct = functional.linear,
) -> Tensor:
    """A product of four-bit weights in the input's dtype, on every device.

    Args:
        product: what computes with some outputs' wide weights.
    """
    inputs, dtype = input.shape[-1], input.dtype

    def wide(rows: slice) -> Tensor:
        return _wide(weight[rows], scale[rows], inputs, dtype)

    return by_blocks(input, (len(weight), inputs), wide, bias, product)


def _wide(levels: Tensor, scale: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """(O, inputs) four-bit weights as they are computed with."""
    if can_widen(levels, scale, dtype):
        return widen(levels, scale, inputs)
    wide = torch.empty(*levels.shape, 2, dtype=dtype, device=levels.device)  # (O, bytes, halves)
    wide[..., 0], wide[..., 1] = levels & 15, levels >> 4
    groups = wide.flatten(1).unflatten(1, (-1, GROUP)).sub_(8).mul_(scale.to(dtype)[..., None])
    weights: Tensor = groups.flatten(1)[:, :inputs]
    return weights


def rounded(weight: Tensor, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers from -most to most, as int8, and scales (..., 1) in a dtype, symmetric over the last dimension.

    Integers are chosen for the scale as it is stored, not as it was before its own rounding.
    """
    largest = weight.abs().amax(dim=-1, keepdim=True)  # twenty times as quick as torch's norm
    scale = (largest.float() / most).to(dtype).clamp(min=torch.finfo(dtype).tiny)  # zeros stay zeros
    return _levels(weight, scale, most), scale


def _halves(levels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(O, groups, GROUP) integers and scales as they are stored in four bits."""
    halves = levels.add_(8).to(torch.uint8).flatten(1)
    return halves[:, ::2] | halves[:, 1::2] << 4, scale[..., 0]


def nearest(weight: Tensor, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `rounded`, but of each group's steps that which leaves the least squared error.

    Steps are tried from that of `rounded` down to seven tenths of it: a group's few largest weights are cut off where
    the many others gain more.
    """
    best, scale = rounded(weight, most, dtype)
    error = _squares(weight, best, scale)
    widest = scale
    for tenths in SHRINKINGS:
        tried = (widest.float() * tenths).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        levels = _levels(weight, tried, most)
        found = _squares(weight, levels, tried)
        better = found < error
        best, scale = torch.where(better, levels, best), torch.where(better, tried, scale)
        error = torch.where(better, found, error)
    return best, scale


def _levels(weight: Tensor, scale: Tensor, most: int) -> Tensor:
    return weight.float().div(scale.float()).round_().clamp_(-most, most).to(torch.int8)


def _squares(weight: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return levels.float().mul_(scale.float()).sub_(weight.float()).square_().sum(dim=-1, keepdim=True)


def shell(kind: type[L], layer: nn.Linear) -> L:
    """A layer of this kind without a weight yet, with the shape and the bias of another."""
    made = kind(layer.in_features, layer.out_features, bias=False, device="meta")
    made.bias = layer.bias
    return made


def kept(tensor: Tensor) -> nn.Parameter:
    """A tensor as a parameter that is not learned."""
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
