"""The passes in C over weights of few bits: the numbers that torch computes, bit for bit."""

import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from idefics.quant import passes as module
from idefics.quant import tune
from idefics.quant.integers import GROUP, Int4Linear
from idefics.quant.measure import Verdict
from idefics.quant.products import integers, integers_in_torch

LAYERS = import_module("idefics.quant.integers")  # a function of this name hides it in the package
SOURCE = Path(module.__file__).parent / "native" / "passes.c"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
FOUND = module.library.__wrapped__
SANITIZERS = ["-g", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
SHAPES = [(40, 96), (1, 32), (1, 1), (5, 33), (3, 31), (67, 130)]  # outputs, inputs


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("passes") / "_passes.so"
    subprocess.run([compiler, *FLAGS, *SANITIZERS, "-o", path, SOURCE], check=True)
    found = module.declared(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "library", lambda: found)
        yield found


@pytest.fixture(params=[0, 1, 2], ids=["any machine", "AVX2", "AVX-512"])
def width(request, code):
    if code.idefics_passes_width(request.param) < request.param:
        pytest.skip("this machine has no such vectors")
    return request.param


def drawn(shape, dtype):
    """Every level of four bits, those that nothing is rounded to as well."""
    torch.manual_seed(0)
    outputs, inputs = shape
    groups = -(-inputs // GROUP)
    levels = torch.randint(0, 256, (outputs, groups * GROUP // 2), dtype=torch.uint8)
    layer = nn.Linear(inputs, outputs)
    return Int4Linear.holding(layer, levels, torch.randn(outputs, groups).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bits_are_widened_as_torch_widens_them(shape, dtype, width, openmp_threads, monkeypatch):
    layer = drawn(shape, dtype)
    assert module.can_widen(layer.levels, layer.scale, torch.float32)
    ours = module.widen(layer.levels, layer.scale, layer.in_features, width)
    monkeypatch.setattr(module, "library", lambda: None)
    assert torch.equal(ours, layer.dequantised(torch.float32))


def test_a_layer_takes_it(monkeypatch):
    layer, x = drawn((40, 70), torch.bfloat16), torch.randn(3, 70)
    seen = []
    monkeypatch.setattr(LAYERS, "widen", lambda *args: seen.append(args) or module.widen(*args))
    ours = layer(x)
    assert len(seen) == 1
    monkeypatch.setattr(module, "library", lambda: None)
    assert torch.equal(ours, layer(x))


def test_gradients_go_through_it():
    layer, x = drawn((40, 70), torch.float32), torch.randn(3, 70, requires_grad=True)
    tune(nn.Sequential(layer), Verdict(onednn=True))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantised(torch.float32).sum(0).expand(3, 70))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 17, 50])
@pytest.mark.parametrize("shape", [(16, 32), (40, 96), (24, 1100)], ids=str)
@torch.inference_mode()
def test_rows_are_rounded_and_sums_scaled_as_in_torch(shape, rows, bias, width, openmp_threads):
    outputs, inputs = shape
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[:, 0] = 127 * 2.5 / 8  # halves are among them
    x[-1, :5] = torch.arange(5) / 4 - 0.5
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale, added = torch.rand(outputs).bfloat16(), torch.randn(outputs) if bias else None
    ours, theirs = torch.empty(2, rows, outputs)
    module.multiply_rounded(x, weight, scale, added, ours, width)
    integers_in_torch(x, weight, scale, added, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_rows_that_are_no_numbers_become_none(value, width):
    x, weight, out = torch.randn(20, 32), torch.ones(8, 32, dtype=torch.int8), torch.empty(20, 8)
    x[3, 7], x[5], x[6] = value, 0.0, 1e-42
    module.multiply_rounded(x, weight, torch.ones(8), None, out, width)
    assert not out[3].isfinite().any()
    assert torch.equal(out.isfinite().all(1), torch.arange(20) != 3)
    assert not out[5].any() and out[6].abs().max() < 1e-37


@torch.inference_mode()
def test_products_of_whole_numbers_take_it(monkeypatch):
    plain = nn.Linear(64, 40)
    layer, x = LAYERS.Int8Linear.of(plain, plain.weight.detach()), torch.randn(2, 3, 64)
    layer.product = integers
    seen = []
    monkeypatch.setattr(
        "idefics.quant.products.multiply_rounded",
        lambda *args: seen.append(args) or module.multiply_rounded(*args),
    )
    ours = layer(x)
    assert len(seen) == 1 and ours.shape == (2, 3, 40)
    monkeypatch.setattr(module, "library", lambda: None)
    torch.testing.assert_close(ours, layer(x), rtol=1e-6, atol=1e-6)
    assert len(seen) == 1
    assert layer(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_it_cannot_do_stays_with_torch(dtype, monkeypatch):
    monkeypatch.setattr(LAYERS, "widen", lambda *_: pytest.fail("not for C"))
    assert drawn((4, 64), torch.float32).dequantised(dtype).dtype == dtype
    assert drawn((4, 64), torch.float16).dequantised(torch.float32).dtype == torch.float32


def test_a_layer_of_four_bits_multiplies_by_what_is_quickest(monkeypatch):
    layer, x = drawn((40, 70), torch.float32), torch.randn(3, 70)
    before = layer(x)
    seen = []
    monkeypatch.setattr(
        "idefics.quant.onednn", lambda *args: seen.append(args) or nn.functional.linear(*args)
    )
    tune(nn.Sequential(layer), Verdict(onednn=True))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), before)
    assert len(seen) == 1


@pytest.fixture
def vnni(code):
    if not code.idefics_multiply_works():
        pytest.skip("this machine has no dot products of bytes in AVX-512")


def in_groups(layer, x):
    """The product of rounded inputs, in float64: nothing is rounded after the inputs."""
    groups = nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    whole = (groups * (127.0 / most)).round().clamp(-127, 127)
    rounded = (whole.double() * (most / 127).double()).flatten(-2)[..., : x.shape[-1]]
    return rounded @ layer.dequantised(torch.float64).T + layer.bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 12, 13, 125, 250])
@pytest.mark.parametrize("shape", [*SHAPES, (17, 1100)], ids=str)
def test_four_bits_are_multiplied_with_rounded_inputs(shape, rows, dtype, openmp_threads, vnni):
    layer, x = drawn(shape, dtype), torch.randn(rows, shape[1])
    assert module.can_multiply_packed(layer.levels, layer.scale)
    ours = module.multiply_packed(x, layer.levels, layer.scale, layer.bias)
    expected = in_groups(layer, x)
    size = expected.abs().max().clamp(min=1).item()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=3e-6 * size)
    bare = module.multiply_packed(x, layer.levels, layer.scale, None)
    torch.testing.assert_close(bare + layer.bias, ours, rtol=0, atol=3e-6 * size)


def test_leading_axes_and_dtypes_are_kept(vnni):
    layer, x = drawn((40, 70), torch.bfloat16), torch.randn(70, 2, 3).permute(1, 2, 0)
    ours = module.multiply_packed(x, layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(ours.double(), in_groups(layer, x), rtol=0, atol=1e-4)
    narrow = module.multiply_packed(x.bfloat16(), layer.levels, layer.scale, layer.bias)
    assert narrow.dtype == torch.bfloat16 and narrow.shape == (2, 3, 40)
    assert module.multiply_packed(x[:, :0], layer.levels, layer.scale, layer.bias).shape == (2, 0, 40)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 31, 40, 69])
def test_what_is_no_number_shows_in_its_row_alone(value, place, vnni):
    layer, x = drawn((40, 70), torch.float32), torch.randn(14, 70)
    right = module.multiply_packed(x, layer.levels, layer.scale, layer.bias)
    x[13, place] = value
    ours = module.multiply_packed(x, layer.levels, layer.scale, layer.bias)
    assert not ours[13].isfinite().any()
    assert torch.equal(ours[:13], right[:13])


def test_zeros_and_the_smallest_numbers(vnni):
    layer = drawn((40, 70), torch.float32)
    for x in (torch.zeros(2, 70), torch.full((2, 70), 1e-42)):
        ours = module.multiply_packed(x, layer.levels, layer.scale, layer.bias)
        torch.testing.assert_close(ours, layer.bias.expand(2, 40))


def test_inputs_are_rounded_where_products_of_integers_are_quicker(vnni):
    layer, x = drawn((40, 70), torch.float32), torch.randn(3, 70)
    whole = layer(x)
    tune(nn.Sequential(layer), Verdict())
    with torch.inference_mode():
        assert torch.equal(layer(x), whole)
        tune(nn.Sequential(layer), Verdict(onednn=True, integers=True))
        assert torch.equal(layer(x), module.multiply_packed(x, layer.levels, layer.scale, layer.bias))
    torch.testing.assert_close(layer(x), whole)  # a gradient is wanted


def test_who_has_no_such_products_widens(code, monkeypatch):
    layer = drawn((40, 70), torch.float32)
    monkeypatch.setattr(module, "library", lambda: None)
    assert not module.can_multiply_packed(layer.levels, layer.scale)


def test_a_library_of_another_machine_is_none(tmp_path, monkeypatch):
    (tmp_path / ("_passes" + module.EXTENSION_SUFFIXES[0])).write_bytes(b"no library")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "passes.py"))
    assert FOUND() is None
