"""Linear layers whose weights are integers and scales, in plain torch: on every device, with no extra.

Weights are (O, I): O outputs, I inputs. Products are computed in the inputs' dtype with the weights as they were
before they were rounded, to half a step.
"""

from __future__ import annotations

from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 32  # neighbouring inputs that share a scale in four bits
L = TypeVar("L", bound=nn.Linear)

FEW_ROWS = 4  # up to here a CPU is quicker with the kernel that reads integers


class Int8Linear(nn.Linear):
    """Eight bits a weight and a scale for each output: symmetric, as Quanto and torchao have it.

    Attributes:
        weight: (O, I) int8 from -127 to 127.
        scale: (O,) the largest weight of each output, divided by 127, in the dtype that the weights had.
    """

    scale: nn.Parameter

    @classmethod
    def of(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        made = _shell(cls, layer)
        levels, scale = rounded(weight, 127)
        made.weight, made.scale = _kept(levels), _kept(scale[:, 0])
        return made

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        return self.weight.to(dtype) * self.scale.to(dtype)[:, None]

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        if input.device.type == "cpu" and input.numel() <= FEW_ROWS * self.in_features and not _learning():
            rows = input.flatten(0, -2)
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale.to(input.dtype))
            out = out.view(*input.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias
        return functional.linear(input, self.dequantised(input.dtype), self.bias)


class Int4Linear(nn.Linear):
    """Four bits a weight and a scale for each `GROUP` inputs of each output: symmetric.

    Attributes:
        weight: (O, ceil(I / GROUP) * GROUP / 2) uint8, two weights a byte, the even one in the low half, each from
            1 to 15 with 8 for zero.
        scale: (O, ceil(I / GROUP)) the largest weight of each group, divided by 7, in the dtype that the weights had.
    """

    scale: nn.Parameter

    @classmethod
    def of(cls, layer: nn.Linear, weight: Tensor) -> Self:
        """A layer's place taker, with this (O, I) weight and the layer's bias."""
        made = _shell(cls, layer)
        groups = functional.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        levels, scale = rounded(groups, 7)
        halves = (levels + 8).to(torch.uint8).flatten(1)
        made.weight, made.scale = _kept(halves[:, ::2] | halves[:, 1::2] << 4), _kept(scale[..., 0])
        return made

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(O, I) the weights that are computed with."""
        halves = torch.stack((self.weight & 15, self.weight >> 4), dim=-1).flatten(1)
        groups = (halves.to(dtype) - 8).unflatten(1, (-1, GROUP)) * self.scale.to(dtype)[..., None]
        weights: Tensor = groups.flatten(1)[:, : self.in_features]
        return weights

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        return functional.linear(input, self.dequantised(input.dtype), self.bias)


def rounded(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Integers from -most to most, as int8, and scales (..., 1), symmetric over the last dimension.

    Integers are chosen for the scale as it is stored, not as it was before its own rounding.
    """
    largest = torch.linalg.vector_norm(weight, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (largest / most).to(weight.dtype).clamp(min=torch.finfo(weight.dtype).tiny)  # zeros stay zeros
    levels = weight.float().div(scale.float()).round_().clamp_(-most, most)
    return levels.to(torch.int8), scale


def _shell(kind: type[L], layer: nn.Linear) -> L:
    """A layer of this kind without a weight yet, with the shape and the bias of another."""
    made = kind(layer.in_features, layer.out_features, bias=False, device="meta")
    made.bias = layer.bias
    return made


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _learning() -> bool:
    return torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
