"""What adapters change in a layer: low-rank terms are added to its output, and its gates are replaced, row by row.

r rank, O outputs, I inputs, N tokens, D width. Source: LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True, eq=False)
class LowRankHook:
    """A forward hook of a linear layer, which adds the terms of adapters to its outputs.

    Args:
        terms: for each adapter its term, or None.
        adapter_rows: which rows use which adapter when the layer is called.
    """

    terms: Sequence[LowRankTerm | None]
    adapter_rows: AdapterRows

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


@dataclass(frozen=True, slots=True)
class AdapterGates:
    """The gates of adapters for a layer.

    Attributes:
        gates: by name, for each adapter the gate that replaces the layer's, or None.
        adapter_rows: which rows use which adapter when the layer is called.
    """

    gates: Mapping[str, Sequence[Tensor | None]]
    adapter_rows: AdapterRows


class GatedLayer(nn.Module):
    """Base of layers with gates: parameters of one number or of D, whose tanh their outputs are multiplied by.

    Attributes:
        adapter_gates: the gates of adapters; None: no adapter changes the layer's.
    """

    adapter_gates: AdapterGates | None = None

    def gate_factor(self, name: str, gate: Tensor, x: Tensor) -> Tensor:
        """What a gate multiplies by, (1,) or (D,); where rows use adapters, (N, 1) or (N, D).

        Args:
            name, gate: the name and the value of the gate.
            x: the inputs of the layer, (N, D).
        """
        factor = gate_to_factor(gate, x)
        if self.adapter_gates is None or not self.adapter_gates.adapter_rows.groups:
            return factor
        factors = factor.repeat(len(x), 1)
        for adapter, rows in self.adapter_gates.adapter_rows.groups:
            if (replaced := self.adapter_gates.gates[name][adapter]) is not None:
                factors[rows] = gate_to_factor(replaced, x)
        return factors


def gate_to_factor(gate: Tensor, x: Tensor) -> Tensor:
    """The factor of a gate, (1,) or (D,), in the dtype of `x`: gates that are trained are float32 in any model."""
    return gate.flatten().tanh().to(x.dtype)
