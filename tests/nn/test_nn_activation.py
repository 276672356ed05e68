"""Activations with a gate: gradients are those of plain operations, of first and second order."""

import pytest
import torch
from torch.nn import functional

from idefics.nn.activation import ACTIVATIONS, gated


@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh"])
def test_gated_equals_plain_operations(name):
    found = []
    for function in (gated, lambda activation, gate, up: activation(gate) * up):
        torch.manual_seed(0)
        gate, up = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
        out = function(ACTIVATIONS[name], gate, up)
        first = torch.autograd.grad(out.sin().sum(), (gate, up), create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), (gate, up))
        found.append([out, *first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_activated_gate_is_not_kept():
    gate, up = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        gated(functional.silu, gate, up)
    assert [one.data_ptr() for one in kept] == [gate.data_ptr(), up.data_ptr()]
