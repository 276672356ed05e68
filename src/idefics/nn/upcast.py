"""Weights stored in 16 bits and upcast to the dtype of the inputs while they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.nn.native_kernels import (
    NativeLinear,
    NativeWeight,
    can_use_float32_products,
    can_use_native_inputs,
    can_use_native_weight,
    float32_linear,
    native_linear,
)

# Input (..., I), weight (O, I), bias (O,) or None -> (..., O).
LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]

MAX_UPCAST_WEIGHTS = 2**21  # weights upcast at a time: 8 MiB in float32, which fit a CPU's cache


class TokenEmbedding(nn.Embedding):
    """A token embedding whose weight may be stored in 16 bits; the model's `embed` upcasts the looked-up rows."""


class UpcastLinear(NativeLinear):
    """A linear layer whose weight may be stored in 16 bits; bias and outputs have the inputs' dtype.

    Attributes:
        linear_function: computes the product with the upcast weight.
        multiplies_bfloat16: whether inputs are rounded to bfloat16 for a weight in bfloat16, instead of upcasting the
            weight, where C kernels support it: sums, bias and outputs stay float32.
        uses_float32_kernel: whether a C kernel upcasts a weight in bfloat16 while it multiplies a few rows.
    """

    linear_function: LinearFunction = staticmethod(functional.linear)
    multiplies_bfloat16 = False
    uses_float32_kernel = False

    def native_weight(self) -> NativeWeight | None:
        """The weight for the C kernels; None if the layer does not multiply in bfloat16 or they do not support it."""
        is_native = self.multiplies_bfloat16 and self.weight.dtype == torch.bfloat16
        return NativeWeight(self.weight) if is_native and can_use_native_weight(self.weight) else None

    def forward(self, input: Tensor) -> Tensor:
        """Applies the linear layer: (..., I) -> (..., O) in the dtype of `input`."""
        if can_use_native_inputs(input) and (weight := self.native_weight()):
            return native_linear(input, weight, self.bias)
        if self.uses_float32_kernel and can_use_float32_products(input, self.weight):
            return float32_linear(input, self.weight, self.bias)
        return upcast_linear(input, self.weight, self.bias, self.linear_function)


def upcast_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    linear_function: LinearFunction = functional.linear,
) -> Tensor:
    """A linear layer that computes in the dtype of its input: (..., I) -> (..., O).

    Args:
        weight: (O, I), upcast to the input's dtype if it has another.
        bias: (O,) or None.
        linear_function: computes the product.
    """
    if weight.dtype == input.dtype:
        return linear_function(input, weight, bias)
    if torch.is_grad_enabled() and not weight.requires_grad:
        out: Tensor = _FrozenLinear.apply(input, weight, linear_function)  # type: ignore[no-untyped-call]
        return out if bias is None else out + bias
    return linear_by_blocks(
        input, weight.shape, lambda rows: weight[rows].to(input.dtype), bias, linear_function
    )


class _FrozenLinear(torch.autograd.Function):
    """A product with a frozen weight, which is upcast once more in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, linear_function: LinearFunction) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.linear_function = linear_function
        return linear_by_blocks(
            input, weight.shape, lambda rows: weight[rows].to(input.dtype), None, linear_function
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        columns = weight.t()  # of the transposed product, which is computed by blocks of its outputs
        product = linear_by_blocks(
            gradient,
            columns.shape,
            lambda rows: columns[rows].to(gradient.dtype),
            None,
            ctx.linear_function,
        )
        return product, None, None


def linear_by_blocks(
    input: Tensor,
    weight_shape: tuple[int, ...],
    upcast_rows: Callable[[slice], Tensor],
    bias: Tensor | None,
    linear_function: LinearFunction = functional.linear,
) -> Tensor:
    """A linear layer whose weight is upcast block by block, at most `MAX_UPCAST_WEIGHTS` numbers at a time.

    Args:
        input: (..., I).
        weight_shape: (O, I).
        upcast_rows: returns some rows of the weight, in the input's dtype.
        bias: (O,).
        linear_function: computes the product of a block.

    Returns:
        (..., O).
    """
    outputs, inputs = weight_shape
    rows = max(1, MAX_UPCAST_WEIGHTS // inputs)
    if rows >= outputs:
        return linear_function(input, upcast_rows(slice(None)), bias)
    out = input.new_empty(*input.shape[:-1], outputs)
    for start in range(0, outputs, rows):
        block = slice(start, start + rows)
        out[..., block] = linear_function(input, upcast_rows(block), None if bias is None else bias[block])
    return out
