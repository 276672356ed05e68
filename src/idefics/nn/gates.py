"""The gates of cross-attention layers, which adapters may replace for the rows that use them. N tokens, D width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from idefics.nn.low_rank import AdapterRows

# Name and value of a gate, and the inputs (N, D) of its layer -> what is multiplied: (1,), (D,), (N, 1) or (N, D).
GateFactor = Callable[[str, Tensor, Tensor], Tensor]


class GatedLayer(nn.Module):
    """Base of layers with gates: parameters of one number or of D, whose tanh their outputs are multiplied by.

    Attributes:
        gate_factor: what a gate multiplies by.
    """

    gate_factor: GateFactor

    def __init__(self) -> None:
        super().__init__()
        self.gate_factor = plain_gate_factor


def plain_gate_factor(name: str, gate: Tensor, x: Tensor) -> Tensor:
    """The factor of a gate, (1,) or (D,), in the dtype of `x`: gates that are trained are float32 in any model."""
    return gate.flatten().tanh().to(x.dtype)


class AdapterGates:
    """A `GateFactor` with the gates of adapters.

    Args:
        gates: by name, for each adapter the gate that replaces the layer's, or None.
        adapter_rows: which rows use which adapter when the layer is called.
    """

    def __init__(self, gates: Mapping[str, Sequence[Tensor | None]], adapter_rows: AdapterRows) -> None:
        self.gates, self.adapter_rows = gates, adapter_rows

    def __call__(self, name: str, gate: Tensor, x: Tensor) -> Tensor:
        """The factor of a gate for each row that uses an adapter."""
        factor = plain_gate_factor(name, gate, x)
        if not self.adapter_rows.groups:
            return factor
        factors = factor.repeat(len(x), 1)
        for adapter, rows in self.adapter_rows.groups:
            if (replaced := self.gates[name][adapter]) is not None:
                factors[rows] = plain_gate_factor(name, replaced, x)
        return factors
