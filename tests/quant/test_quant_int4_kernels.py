"""The C kernels of int8 and int4 layers, against torch."""

from importlib import import_module

import pytest
import torch
from torch import nn

from idefics.native import library
from idefics.native.structures import GROUP_SIZE
from idefics.quant import apply_kernel_choice
from idefics.quant import matmul as module
from idefics.quant.autotune import KernelChoice
from idefics.quant.linear import Int4Linear
from idefics.quant.matmul import w8a8_matmul, w8a8_matmul_torch
from native_builds import MATMUL_SOURCES, load_sources

LAYERS = import_module("idefics.quant.linear")  # a function of this name hides it in the package
SHAPES = [(40, 96), (1, 32), (1, 1), (5, 33), (3, 31), (67, 130)]  # outputs, inputs


@pytest.fixture(scope="module", autouse=True)
def compiled_library(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    found = load_sources(tmp_path_factory.mktemp("quantized"), MATMUL_SOURCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: found)
        yield found


@pytest.fixture(params=library.VARIANTS["int8 and int4"], ids=lambda one: one.label)
def instruction_set(request, compiled_library):
    if request.param not in library.available_instruction_sets("int8 and int4"):
        pytest.skip("this processor has no such instructions")
    return request.param


def random_int4_layer(shape, dtype):
    """Every int4 level occurs, also the one that no weight is rounded to."""
    torch.manual_seed(0)
    outputs, inputs = shape
    groups = -(-inputs // GROUP_SIZE)
    levels = torch.randint(0, 256, (outputs, groups * GROUP_SIZE // 2), dtype=torch.uint8)
    layer = nn.Linear(inputs, outputs)
    return Int4Linear.from_quantized(layer, levels, torch.randn(outputs, groups).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4_is_dequantised_as_by_torch(shape, dtype, instruction_set, set_openmp_threads, monkeypatch):
    layer = random_int4_layer(shape, dtype)
    assert module.can_dequantize_int4(layer.levels, layer.scale, torch.float32)
    ours = module.dequantize_int4(layer.levels, layer.scale, layer.in_features, instruction_set)
    monkeypatch.setattr(library, "load_library", lambda: None)
    assert torch.equal(ours, layer.dequantize(torch.float32))


def test_a_layer_uses_the_kernel(monkeypatch):
    layer, x = random_int4_layer((40, 70), torch.bfloat16), torch.randn(3, 70)
    seen = []
    monkeypatch.setattr(
        LAYERS, "dequantize_int4", lambda *args: seen.append(args) or module.dequantize_int4(*args)
    )
    ours = layer(x)
    assert len(seen) == 1
    monkeypatch.setattr(library, "load_library", lambda: None)
    assert torch.equal(ours, layer(x))


def test_gradients_reach_the_inputs():
    layer, x = random_int4_layer((40, 70), torch.float32), torch.randn(3, 70, requires_grad=True)
    apply_kernel_choice(nn.Sequential(layer), KernelChoice(onednn=True))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize(torch.float32).sum(0).expand(3, 70))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 17, 50])
@pytest.mark.parametrize("shape", [(16, 32), (40, 96), (24, 1100)], ids=str)
@torch.inference_mode()
def test_rows_are_rounded_and_sums_scaled_as_in_torch(shape, rows, bias, instruction_set, set_openmp_threads):
    outputs, inputs = shape
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[:, 0] = 127 * 2.5 / 8  # halves are among them
    x[-1, :5] = torch.arange(5) / 4 - 0.5
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale, added = torch.rand(outputs).bfloat16(), torch.randn(outputs) if bias else None
    ours, theirs = torch.empty(2, rows, outputs)
    module.w8a8_matmul_native(x, weight, scale, added, ours, instruction_set)
    w8a8_matmul_torch(x, weight, scale, added, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_rows_with_nan_or_infinity_become_nan(value, instruction_set):
    x, weight, out = torch.randn(20, 32), torch.ones(8, 32, dtype=torch.int8), torch.empty(20, 8)
    x[3, 7], x[5], x[6] = value, 0.0, 1e-42
    module.w8a8_matmul_native(x, weight, torch.ones(8), None, out, instruction_set)
    assert not out[3].isfinite().any()
    assert torch.equal(out.isfinite().all(1), torch.arange(20) != 3)
    assert not out[5].any() and out[6].abs().max() < 1e-37


@torch.inference_mode()
def test_int8_products_use_the_kernel(monkeypatch):
    plain = nn.Linear(64, 40)
    layer, x = LAYERS.Int8Linear.from_linear(plain, plain.weight.detach()), torch.randn(2, 3, 64)
    layer.matmul = w8a8_matmul
    # As on a processor without dot products of bytes, for which there is another kernel.
    monkeypatch.setattr("idefics.quant.matmul.can_use_native_weight", lambda *_: False)
    seen = []
    matmul_native = module.w8a8_matmul_native
    monkeypatch.setattr(
        "idefics.quant.matmul.w8a8_matmul_native",
        lambda *args: seen.append(args) or matmul_native(*args),
    )
    ours = layer(x)
    assert len(seen) == 1 and ours.shape == (2, 3, 40)
    monkeypatch.setattr(library, "load_library", lambda: None)
    torch.testing.assert_close(ours, layer(x), rtol=1e-6, atol=1e-6)
    assert len(seen) == 1
    assert layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_use_torch(dtype, monkeypatch):
    monkeypatch.setattr(LAYERS, "dequantize_int4", lambda *_: pytest.fail("not for C"))
    assert random_int4_layer((4, 64), torch.float32).dequantize(dtype).dtype == dtype
    assert random_int4_layer((4, 64), torch.float16).dequantize(torch.float32).dtype == torch.float32


def test_an_int4_layer_uses_the_chosen_product(monkeypatch):
    layer, x = random_int4_layer((40, 70), torch.float32), torch.randn(3, 70)
    before = layer(x)
    seen = []
    monkeypatch.setattr(
        "idefics.quant.onednn_linear", lambda *args: seen.append(args) or nn.functional.linear(*args)
    )
    apply_kernel_choice(nn.Sequential(layer), KernelChoice(onednn=True))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), before)
    assert len(seen) == 1


@pytest.fixture
def requires_vnni(compiled_library):
    if library.best_instruction_set("int4 products") is None:
        pytest.skip("this machine has no dot products of bytes in AVX-512")


def reference_product(layer, x):
    """The product with quantised inputs in float64."""
    groups = nn.functional.pad(x, (0, -x.shape[-1] % GROUP_SIZE)).unflatten(-1, (-1, GROUP_SIZE))
    most = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    whole = (groups * (127.0 / most)).round().clamp(-127, 127)
    rounded = (whole.double() * (most / 127).double()).flatten(-2)[..., : x.shape[-1]]
    return rounded @ layer.dequantize(torch.float64).T + layer.bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 12, 13, 125, 250])
@pytest.mark.parametrize("shape", [*SHAPES, (17, 1100)], ids=str)
def test_int4_products_with_quantised_inputs(shape, rows, dtype, set_openmp_threads, requires_vnni):
    layer, x = random_int4_layer(shape, dtype), torch.randn(rows, shape[1])
    assert module.can_use_w4a8_matmul(layer.levels, layer.scale)
    ours = module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias)
    expected = reference_product(layer, x)
    size = expected.abs().max().clamp(min=1).item()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=3e-6 * size)
    bare = module.w4a8_matmul(x, layer.levels, layer.scale, None)
    torch.testing.assert_close(bare + layer.bias, ours, rtol=0, atol=3e-6 * size)


def test_leading_axes_and_dtypes_are_kept(requires_vnni):
    layer, x = random_int4_layer((40, 70), torch.bfloat16), torch.randn(70, 2, 3).permute(1, 2, 0)
    ours = module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(ours.double(), reference_product(layer, x), rtol=0, atol=1e-4)
    narrow = module.w4a8_matmul(x.bfloat16(), layer.levels, layer.scale, layer.bias)
    assert narrow.dtype == torch.bfloat16 and narrow.shape == (2, 3, 40)
    assert module.w4a8_matmul(x[:, :0], layer.levels, layer.scale, layer.bias).shape == (2, 0, 40)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 31, 40, 69])
def test_nan_stays_in_its_row(value, place, requires_vnni):
    layer, x = random_int4_layer((40, 70), torch.float32), torch.randn(14, 70)
    right = module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias)
    x[13, place] = value
    ours = module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias)
    assert not ours[13].isfinite().any()
    assert torch.equal(ours[:13], right[:13])


def test_zeros_and_the_smallest_floats(requires_vnni):
    layer = random_int4_layer((40, 70), torch.float32)
    for x in (torch.zeros(2, 70), torch.full((2, 70), 1e-42)):
        ours = module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias)
        torch.testing.assert_close(ours, layer.bias.expand(2, 40))


def test_inputs_are_quantised_if_integer_products_are_faster(requires_vnni):
    layer, x = random_int4_layer((40, 70), torch.float32), torch.randn(3, 70)
    whole = layer(x)
    apply_kernel_choice(nn.Sequential(layer), KernelChoice())
    with torch.inference_mode():
        assert torch.equal(layer(x), whole)
        apply_kernel_choice(nn.Sequential(layer), KernelChoice(onednn=True, integers=True))
        assert torch.equal(layer(x), module.w4a8_matmul(x, layer.levels, layer.scale, layer.bias))
    torch.testing.assert_close(layer(x), whole)  # a gradient is wanted


def test_without_the_kernel_int4_is_dequantised(compiled_library, monkeypatch):
    layer = random_int4_layer((40, 70), torch.float32)
    monkeypatch.setattr(library, "load_library", lambda: None)
    assert not module.can_use_w4a8_matmul(layer.levels, layer.scale)
