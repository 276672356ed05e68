"""Matrices stored in fewer bits than are computed with: sixteen in memory, and widened where they are used."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

LinearFunction = Callable[
    [Tensor, Tensor, Tensor | None], Tensor
]  # (..., I), (O, I), (O,) or None -> (..., O)

MAX_UPCAST_WEIGHTS = (
    2**21
)  # weights that are wide at once: 8 MiB in float32, which stay in a processor's cache


class TokenEmbedding(nn.Embedding):
    """A vocabulary's table. It may be stored in fewer bits: the model's `embed` widens the rows that it looks up."""


class UpcastLinear(nn.Linear):
    """A layer whose weight may be stored in sixteen bits; bias and products have the inputs' dtype.

    Attributes:
        linear_function: what computes with the wide weight.
    """

    linear_function: LinearFunction = staticmethod(functional.linear)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        return upcast_linear(input, self.weight, self.bias, self.linear_function)


def upcast_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    linear_function: LinearFunction = functional.linear,
) -> Tensor:
    """(..., I), (O, I) -> (..., O): a product in the input's dtype, whatever that of the weight."""
    if weight.dtype == input.dtype:
        return linear_function(input, weight, bias)
    return linear_by_blocks(
        input, weight.shape, lambda rows: weight[rows].to(input.dtype), bias, linear_function
    )


def linear_by_blocks(
    input: Tensor,
    weight_shape: tuple[int, ...],
    upcast_rows: Callable[[slice], Tensor],
    bias: Tensor | None,
    linear_function: LinearFunction = functional.linear,
) -> Tensor:
    """A product with a weight of (O, I), of which no more than `WIDE` are wide at once.

    Args:
        upcast_rows: some rows of the weight, in the input's dtype.
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
