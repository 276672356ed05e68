"""Products of many rows in C equal products of the rounded inputs, whatever the sizes, rows and threads."""

import pytest
import torch
from torch import nn

from idefics.native import library
from idefics.nn.native_kernels import (
    NativeWeight,
    can_use_float32_products,
    can_use_native_weight,
    float32_linear,
    native_linear,
)
from idefics.nn.upcast import UpcastLinear
from idefics.quant import apply_kernel_choice
from idefics.quant.autotune import KernelChoice
from idefics.quant.linear import (
    Int4Linear,
    Int8Linear,
    int4_bfloat16_matmul,
    quantize_symmetric,
)
from idefics.quant.matmul import w8a8_matmul, w8a8_matmul_torch
from native_builds import MATMUL_SOURCES, load_sources

# rows, inputs, outputs
SIZES = [(1, 1, 1), (5, 7, 3), (12, 33, 31), (13, 64, 65), (37, 101, 130), (100, 96, 200)]


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    code = load_sources(tmp_path_factory.mktemp("kernel"), MATMUL_SOURCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: code)
        if library.best_instruction_set("int8 products") is None:
            pytest.skip("this machine has no dot products of bytes")
        yield


@pytest.fixture
def needs_bfloat16(kernels):
    if library.best_instruction_set("bfloat16 products") is None:
        pytest.skip("this machine has no dot products of bfloat16")


def quantized(weight, dtype=torch.float32):
    levels, scale = quantize_symmetric(weight, 127, dtype)
    return NativeWeight(levels, scale[:, 0].contiguous())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [True, False])
@torch.inference_mode()
def test_bfloat16_equals_rounded_inputs(needs_bfloat16, size, has_bias, set_openmp_threads):
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs).bfloat16(), torch.randn(outputs)
    bias = bias if has_bias else None
    expected = nn.functional.linear(
        x.bfloat16().double(), weight.double(), None if bias is None else bias.double()
    )
    found = native_linear(x, NativeWeight(weight), bias)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * inputs**0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_int8_equals_rounded_inputs(size, scale_dtype, set_openmp_threads):
    rows, inputs, outputs = size
    x, bias = torch.randn(rows, inputs), torch.randn(outputs)
    weight = quantized(torch.randn(outputs, inputs), scale_dtype)
    expected = torch.empty(rows, outputs)
    w8a8_matmul_torch(x, weight.weight, weight.scale.float(), bias, expected)
    torch.testing.assert_close(native_linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 32, 3), (13, 70, 65), (37, 101, 130)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_int4_is_dequantized_into_bfloat16(needs_bfloat16, size, scale_dtype, set_openmp_threads):
    rows, inputs, outputs = size
    x, plain = torch.randn(rows, inputs), nn.Linear(inputs, outputs)
    layer = Int4Linear.from_linear(plain, plain.weight)
    layer.scale.data = layer.scale.to(scale_dtype)
    apply_kernel_choice(layer, KernelChoice(bfloat16=True, integers=True, onednn=True))
    weight = layer.native_weight()
    assert layer.matmul is int4_bfloat16_matmul and weight is not None
    dequantized = layer.dequantize(torch.float32).bfloat16()
    found = layer(x)
    assert torch.equal(found, native_linear(x, NativeWeight(dequantized), layer.bias))
    assert torch.equal(found, native_linear(x, weight, layer.bias))
    exact = Int4Linear.default_matmul(x, layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


@torch.inference_mode()
def test_extreme_levels_do_not_overflow():
    """The largest sum: all inputs and weights at 127, of as many inputs as are allowed."""
    inputs = 2**16
    weight = NativeWeight(torch.full((3, inputs), 127, dtype=torch.int8), torch.ones(3))
    found = native_linear(torch.full((2, inputs), -127.0), weight, None)
    assert torch.equal(found, torch.full((2, 3), -127.0 * 127 * inputs))
    assert not can_use_native_weight(torch.empty(1, inputs + 1, dtype=torch.int8))


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others(kind, request):
    if kind == "bfloat16":
        request.getfixturevalue("needs_bfloat16")
    x, weight = torch.randn(50, 70), torch.randn(90, 70)
    weight = NativeWeight(weight.bfloat16()) if kind == "bfloat16" else quantized(weight)
    whole = native_linear(x, weight, None)
    for rows in (slice(0, 1), slice(3, 17), slice(49, 50)):
        assert torch.equal(native_linear(x[rows], weight, None), whole[rows])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_what_is_no_number_stays_in_its_row(needs_bfloat16, bad):
    x, weight = torch.randn(20, 33), torch.randn(40, 33)
    x[7, 32] = bad
    for native in (NativeWeight(weight.bfloat16()), quantized(weight)):
        found = native_linear(x, native, None)
        assert not found[7].isfinite().any()
        assert found[:7].isfinite().all() and found[8:].isfinite().all()


@torch.inference_mode()
def test_rows_of_zeros_and_no_rows():
    weight = quantized(torch.randn(8, 16))
    assert torch.equal(native_linear(torch.zeros(3, 16), weight, None), torch.zeros(3, 8))
    assert native_linear(torch.zeros(0, 16), weight, None).shape == (0, 8)
    assert native_linear(torch.zeros(2, 0, 16), weight, torch.ones(8)).shape == (2, 0, 8)


@torch.inference_mode()
def test_leading_dimensions_and_strides(needs_bfloat16):
    x, weight = torch.randn(6, 5, 32).transpose(0, 1), torch.randn(12, 32).bfloat16()
    found = native_linear(x, NativeWeight(weight), None)
    assert found.shape == (5, 6, 12)
    assert torch.equal(found, native_linear(x.contiguous(), NativeWeight(weight), None))


def test_layers_use_the_kernels_where_they_were_told_to(needs_bfloat16):
    """A weight in bfloat16, float32 inputs, no gradients, and not the head."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.lm_head = (UpcastLinear(32, 16) for _ in range(2))
            for layer in (self.inner, self.lm_head):
                layer.weight = nn.Parameter(layer.weight.bfloat16())

    model, x = Model(), torch.randn(4, 32)
    with torch.inference_mode():
        exact = model.inner(x)
        apply_kernel_choice(model, KernelChoice(bfloat16=True))
        rounded = model.inner(x)
        assert torch.equal(rounded, native_linear(x, NativeWeight(model.inner.weight), model.inner.bias))
        assert not torch.equal(rounded, exact)
        assert model.lm_head.native_weight() is None
    assert torch.equal(model.inner(x), exact), "with gradients enabled torch's own product is used"
    model.inner.weight = nn.Parameter(model.inner.weight.float())
    with torch.inference_mode():
        assert torch.equal(model.inner(x), exact), "a weight in float32 is multiplied in float32"


@torch.inference_mode()
def test_int8_layers_use_the_kernel():
    plain = nn.Linear(33, 20)
    layer, x = Int8Linear.from_linear(plain, plain.weight.detach()), torch.randn(9, 33)
    assert layer.native_weight() is None, "nothing was chosen yet"
    layer.matmul = w8a8_matmul
    assert torch.equal(layer(x), native_linear(x, layer.native_weight(), layer.bias))


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 33, 70), (16, 64, 130)])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.inference_mode()
def test_few_rows_in_float32(size, has_bias, set_openmp_threads):
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs).bfloat16(), torch.randn(outputs)
    bias = bias if has_bias else None
    assert can_use_float32_products(x, weight)
    expected = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(float32_linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_head_multiplies_few_rows_in_float32_by_the_kernel():
    layer = UpcastLinear(32, 16)
    layer.weight = nn.Parameter(layer.weight.bfloat16())
    apply_kernel_choice(model := nn.ModuleDict({"lm_head": layer}), KernelChoice(bfloat16=True))
    x = torch.randn(3, 32)
    assert torch.equal(model["lm_head"](x), float32_linear(x, layer.weight, layer.bias))
    assert not can_use_float32_products(torch.randn(17, 32), layer.weight)
    assert not can_use_float32_products(x, layer.weight.float())


@torch.inference_mode()
def test_a_residual_is_added(needs_bfloat16):
    x, weight, residual = torch.randn(20, 33), torch.randn(40, 33).bfloat16(), torch.randn(20, 40)
    plain = native_linear(x, NativeWeight(weight), None)
    assert torch.equal(native_linear(x, NativeWeight(weight), None, residual), plain + residual)
