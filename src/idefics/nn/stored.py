"""Matrices stored in fewer bits than are computed with: sixteen in memory, and widened where they are used."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (..., I), (O, I), (O,) or None -> (..., O)

WIDE = 2**21  # weights that are wide at once: 8 MiB in float32, which stay in a processor's cache


class TokenEmbedding(nn.Embedding):
    """A vocabulary's table. It may be stored in fewer bits: the model's `embed` widens the rows that it looks up."""


class StoredLinear(nn.Linear):
    """A layer whose weight may be stored in sixteen bits; bias and products have the inputs' dtype.

    Attributes:
        product: what computes with the wide weight.
    """

    product: Product = staticmethod(functional.linear)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        return widened(input, self.weight, self.bias, self.product)


def widened(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, product: Product = functional.linear
) -> Tensor:
    """(..., I), (O, I) -> (..., O): a product in the input's dtype, whatever that of the weight."""
    if weight.dtype == input.dtype:
        return product(input, weight, bias)
    return by_blocks(input, weight.shape, lambda rows: weight[rows].to(input.dtype), bias, product)


def by_blocks(
    input: Tensor,
    shape: tuple[int, ...],
    wide: Callable[[slice], Tensor],
    bias: Tensor | None,
    product: Product = functional.linear,
) -> Tensor:
    """A product with a weight of (O, I), of which no more than `WIDE` are wide at once.

    Args:
        wide: some rows of the weight, in the input's dtype.
    """
    outputs, inputs = shape
    rows = max(1, WIDE // inputs)
    if rows >= outputs:
        return product(input, wide(slice(None)), bias)
    out = input.new_empty(*input.shape[:-1], outputs)
    for start in range(0, outputs, rows):
        some = slice(start, start + rows)
        out[..., some] = product(input, wide(some), None if bias is None else bias[some])
    return out
