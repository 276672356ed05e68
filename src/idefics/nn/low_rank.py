"""What adapters add to the outputs of linear layers: products of low rank, for the rows that use them.

r rank, O outputs, I inputs. Source: LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LowRankTerm:
    """The product of two matrices that an adapter adds to a layer's weight.

    Attributes:
        a: (r, I), contiguous.
        b: (r, O), contiguous, multiplied by the adapter's scale.
    """

    a: Tensor
    b: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The product of the matrices with inputs: (..., I) -> (..., O)."""
        return functional.linear(x, self.a) @ self.b


@dataclass(slots=True)
class AdapterRows:
    """Which rows of the current pass use which adapter. One object for all layers of a model.

    Attributes:
        groups: numbers of adapters, and the rows of their inputs: along the first dimension.
    """

    groups: Sequence[tuple[int, slice | Tensor]] = ()


class LowRankHook:
    """A forward hook of a linear layer, which adds the terms of adapters to its outputs.

    Args:
        terms: for each adapter its term, or None.
        adapter_rows: which rows use which adapter when the layer is called.
    """

    def __init__(self, terms: Sequence[LowRankTerm | None], adapter_rows: AdapterRows) -> None:
        self.terms, self.adapter_rows = terms, adapter_rows

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Adds the terms of the current pass to `output`, (..., O) or longer, in place."""
        (x,) = inputs
        for adapter, rows in self.adapter_rows.groups:
            if (term := self.terms[adapter]) is not None:
                output[..., : term.b.shape[1]][rows] += term(x[rows])
        return output

    @property
    def is_idle(self) -> bool:
        """Whether the hook leaves outputs as they are in the current pass."""
        return not self.adapter_rows.groups


def low_rank_terms(layer: nn.Module) -> Sequence[LowRankTerm | None]:
    """For each adapter what it adds to a layer's outputs, or None; empty if no adapter changes the layer."""
    hooks = layer._forward_hooks.values()
    return next((hook.terms for hook in hooks if isinstance(hook, LowRankHook)), ())


def has_other_hooks(layer: nn.Module) -> bool:
    """Whether calling the layer calls other functions than the hook of adapters before or after."""
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    return not all(isinstance(hook, LowRankHook) for hook in hooks)
