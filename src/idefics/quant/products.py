"""Matrix products on a CPU beside torch's own: which is quickest differs by machine, so `measure` chooses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

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
    across = weight.t()
    for some, found in zip(rows.split(step := max(1, ROOM // len(weight))), out.split(step), strict=True):
        step_of = some.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(some.dtype).tiny)
        levels = (some / step_of).round_().to(torch.int8)
        torch.mul(torch._int_mm(levels, across), step_of, out=found)
        if bias is None:
            found.mul_(scale)
        else:
            torch.addcmul(bias, found, scale, out=found)
    return out.view(*input.shape[:-1], len(weight))
