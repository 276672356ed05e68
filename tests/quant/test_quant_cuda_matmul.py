"""The CUDA products for int8 and fp8 weights, called on the CPU: close to the float product."""

import pytest
import torch
from torch import nn

from idefics import quant
from idefics.quant.autotune import KernelChoice
from idefics.quant.fp8 import Float8Linear, can_use_fp8_matmul, fp8_matmul
from idefics.quant.linear import Int8Linear
from idefics.quant.matmul import can_use_cuda_int8_matmul, w8a8_matmul_cuda

# Relative errors of products of normal numbers; each bound is a tenth or so above what is measured.
LAYER_FUNCTION_AND_ERROR = [(Int8Linear, w8a8_matmul_cuda, 0.013), (Float8Linear, fp8_matmul, 0.04)]
ways = pytest.mark.parametrize(("kind", "product", "error"), LAYER_FUNCTION_AND_ERROR)


def make_layer(kind, product, **how):
    plain = nn.Linear(160, 64, **how)
    nn.init.normal_(plain.weight)
    made = kind.from_linear(plain, plain.weight.detach())
    made.matmul = product
    return plain, made


@ways
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_inputs_and_weights_are_quantised(kind, product, error, rows, bias):
    plain, layer = make_layer(kind, product, bias=bias)
    x = torch.randn(2, rows, 160)[:, : rows if rows > 1 else 1]
    got, wanted = layer(x), plain(x)
    assert got.shape == wanted.shape
    assert 0.3 * error < (got - wanted).norm() / wanted.norm() < error


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_float16_and_bfloat16_inputs(kind, product, error, dtype):
    """Sums would overflow in float16 before they are scaled."""
    plain, layer = make_layer(kind, product, dtype=dtype)
    x = torch.randn(3, 160, dtype=dtype)
    got, wanted = layer(x), plain(x)
    assert got.dtype == dtype
    assert (got.float() - wanted.float()).norm() / wanted.float().norm() < error + 0.01


@ways
@torch.inference_mode()
def test_rows_are_independent(kind, product, error):
    """Each row has its own scale; a row of zeros stays zero."""
    _, layer = make_layer(kind, product, bias=False)
    x = torch.randn(4, 160)
    x[1] *= 1e4
    x[2] = 0
    together = layer(x)
    assert not together[2].any()
    for row in range(4):
        torch.testing.assert_close(together[row], layer(x[row : row + 1])[0])


@ways
def test_gradients_reach_the_inputs(kind, product, error):
    _, layer = make_layer(kind, product)
    x = torch.randn(3, 160, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantize(torch.float32).sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


@ways
def test_a_cpu_keeps_its_product(kind, product, error):
    _, layer = make_layer(kind, None)
    layer.matmul = before = object()
    quant.apply_kernel_choice(nn.Sequential(layer), KernelChoice())
    assert layer.matmul is before
    assert not can_use_cuda_int8_matmul(layer.weight) and not can_use_fp8_matmul(layer.weight)


@pytest.mark.gpu
@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_on_a_gpu(kind, product, error, dtype):
    plain, layer = make_layer(kind, None, dtype=dtype)
    layer = kind.from_linear(plain, plain.weight.detach()).cuda()
    quant.apply_kernel_choice(nn.Sequential(layer), KernelChoice())
    x = torch.randn(3, 160, dtype=dtype)
    got, wanted = layer(x.cuda()).cpu().float(), plain(x).float()
    assert (got - wanted).norm() / wanted.norm() < error + 0.01
