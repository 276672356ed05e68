"""Matrix products beside torch's own. Which is quickest on a CPU differs by machine, so `measure` chooses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics.quant.passes import can_round, multiply_rounded

FEW, MORE = 16, 32  # CUDA's product of whole numbers takes more than 16 rows
TILE = 8  # and sizes that are multiples of this
ROOM = 2**22  # sums that are held at once: 16 MiB


def onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., I), (O, I), (O,) or None -> (..., O): oneDNN's float32 product. It has no gradient: torch's own then."""
    if torch.is_grad_enabled():
        return functional.linear(input, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out


def integers(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of whole numbers: each row of the input is rounded to eight bits by a scale of its own.

    (..., I), (O, I) int8, (O,), (O,) or None -> (..., O). Sums are exact.
    """
    rows = input.reshape(-1, input.shape[-1])
    out = rows.new_empty(len(rows), len(weight))
    multiply = multiply_rounded if can_round(rows) else integers_in_torch
    for some, found in zip(rows.split(step := max(1, ROOM // len(weight))), out.split(step), strict=True):
        multiply(some, weight, scale, bias, found)
    return out.view(*input.shape[:-1], len(weight))


def integers_in_torch(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The slow twin of `multiply_rounded`, for every dtype."""
    step_of = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    levels = (rows / step_of).round_().to(torch.int8)
    torch.mul(torch._int_mm(levels, weight.t()), step_of, out=out)
    if bias is None:
        out.mul_(scale)
    else:
        torch.addcmul(bias, out, scale, out=out)


def integers_on_cuda(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`integers` as CUDA computes them: few rows are padded, and sums scaled in float32, or halves would overflow.

    A weight is read as it lies, once: rounding it back would write and read it twice over in sixteen bits.
    """
    rows = input.reshape(-1, input.shape[-1]).float()
    if (count := len(rows)) <= FEW:
        rows = functional.pad(rows, (0, 0, 0, MORE - count))
    step_of = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    levels = (rows / step_of).round_().to(torch.int8)
    found = torch._int_mm(levels, weight.t())[:count] * step_of[:count] * scale.float()
    out = found.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def cuda_takes(weight: Tensor) -> bool:
    """Whether CUDA multiplies a weight of eight-bit whole numbers."""
    return weight.is_cuda and not any(size % TILE for size in weight.shape)
