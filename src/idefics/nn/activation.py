"""Activation functions by the names in `config.json`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,  # exact, by erf
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up, of tensors of one shape; for gradients SiLU of the gate is computed again, not kept."""
    if activation is functional.silu and torch.is_grad_enabled() and gate.requires_grad:
        out: Tensor = _GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call]
        return out
    return activation(gate) * up


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up, with gradients of any order."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        activated = gradient * functional.silu(gate)
        if (
            torch.is_grad_enabled()
        ):  # a gradient of this gradient will be needed, and the fused operation has none
            sigmoid = gate.sigmoid()
            return gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), activated
        return torch.ops.aten.silu_backward(gradient * up, gate), activated
