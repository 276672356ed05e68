"""Weights stored in 16 bits: equal to an upcast copy, block by block."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from idefics.nn import upcast
from idefics.nn.upcast import UpcastLinear, upcast_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wide", [2**22, 40])
def test_equals_a_product_with_the_upcast_weight(monkeypatch, dtype, bias, wide):
    monkeypatch.setattr(upcast, "MAX_UPCAST_WEIGHTS", wide)
    layer = UpcastLinear(16, 7, bias=bias)
    layer.weight = nn.Parameter(layer.weight.to(dtype))
    x = torch.randn(2, 3, 16)
    expected = functional.linear(x, layer.weight.float(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


def test_weights_are_upcast_in_blocks(monkeypatch):
    monkeypatch.setattr(upcast, "MAX_UPCAST_WEIGHTS", 40)
    seen = []

    def product(x, weight, bias):
        seen.append((weight.dtype, *weight.shape))
        return functional.linear(x, weight, bias)

    weight = torch.randn(7, 16).bfloat16()
    assert upcast_linear(torch.randn(3, 16), weight, linear_function=product).shape == (3, 7)
    assert seen == [(torch.float32, rows, 16) for rows in (2, 2, 2, 1)]


def test_gradients_pass_through():
    layer, plain = UpcastLinear(16, 7), nn.Linear(16, 7)
    layer.weight = nn.Parameter(layer.weight.bfloat16())
    plain.weight, plain.bias = nn.Parameter(layer.weight.float()), layer.bias
    x, y = (torch.ones(2, 16, requires_grad=True) for _ in range(2))
    layer(x).sum().backward()
    plain(y).sum().backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wide", [2**22, 40])
def test_a_frozen_weight_is_upcast_again_for_gradients_instead_of_kept(monkeypatch, bias, wide):
    monkeypatch.setattr(upcast, "MAX_UPCAST_WEIGHTS", wide)
    layer = UpcastLinear(16, 7, bias=bias)
    layer.weight = nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
    x, y = (torch.linspace(-1, 1, 96).view(2, 3, 16).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        out = layer(x)
    assert [one.dtype for one in kept] == [torch.bfloat16]
    expected = functional.linear(y, layer.weight.float(), layer.bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    weights = torch.randn(2, 3, 7)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-6)
    if bias:
        torch.testing.assert_close(layer.bias.grad, 2 * weights.sum((0, 1)), rtol=1e-5, atol=1e-5)
