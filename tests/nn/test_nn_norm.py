"""`RMSNorm` against both norms that the checkpoints were trained with, bit for bit."""

import pytest
import torch

from idefics.nn.norm import RMSNorm


def make_norms(width, epsilon, dtype):
    pytest.importorskip("transformers")
    from transformers.models.idefics.modeling_idefics import IdeficsRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    weight = torch.randn(width).to(dtype)
    made = [RMSNorm(width, epsilon), IdeficsRMSNorm(width, eps=epsilon), LlamaRMSNorm(width, eps=epsilon)]
    for norm in made:
        norm.to(dtype).weight.data.copy_(weight)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_both_norms_bit_for_bit(dtype, epsilon, scale):
    """Idefics casts to the weight's dtype before it multiplies, Llama to the input's: equal dtypes here."""
    ours, idefics, llama = make_norms(96, epsilon, dtype)
    x = (scale * torch.randn(50, 96)).to(dtype)
    assert torch.equal(ours(x), idefics(x))
    assert torch.equal(ours(x), llama(x))
    assert ours(x).dtype == dtype


def test_the_cast_is_before_the_weight():
    """Everything in float32 with one cast at the end gives other numbers in a third of the places."""
    ours, *_ = make_norms(96, 1e-6, torch.bfloat16)
    x = torch.randn(50, 96).to(torch.bfloat16)
    wide = x.float()
    late = (ours.weight.float() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    assert (ours(x) != late).float().mean() > 0.1


def test_the_mean_is_computed_in_float32():
    """Squares of large float16 numbers would overflow."""
    norm = RMSNorm(64, 1e-6).to(torch.float16)
    out = norm(torch.full((1, 64), 1000.0, dtype=torch.float16))
    torch.testing.assert_close(out, torch.ones_like(out))


def test_epsilon_has_an_effect():
    x = torch.full((1, 8), 1e-3)
    assert (RMSNorm(8, 1e-5)(x) - RMSNorm(8, 1e-6)(x)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_plain_operations_and_x_alone_is_kept(dtype):
    norm = RMSNorm(96, 1e-5).to(dtype)
    norm.weight.data.normal_()
    x, y = (torch.linspace(-3, 2, 480).view(5, 96).sin().to(dtype).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        out = norm.requires_grad_(False)(x)
    assert [(one.shape, one.dtype) for one in kept] == [
        ((5, 96), dtype),
        ((5, 1), torch.float32),
        ((96,), dtype),
    ]
    wide = y.float()
    expected = norm.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(dtype)
    assert torch.equal(out, expected)
    found = [gradients_of(one, leaf) for one, leaf in ((out, x), (expected, y))]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def gradients_of(out, leaf):
    """The gradient of a function of the outputs, and that of its squares."""
    (first,) = torch.autograd.grad(out.float().sin().sum(), leaf, create_graph=True)
    return first, *torch.autograd.grad(first.float().square().sum(), leaf)
