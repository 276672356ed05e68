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
from idefics.quant.products import onednn

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


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    if request.param > 1 and module.parallel() is None:
        pytest.skip("torch works with another OpenMP")
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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
def test_four_bits_are_widened_as_torch_widens_them(shape, dtype, width, threads, monkeypatch):
    layer = drawn(shape, dtype)
    assert module.can_widen(layer.weight, layer.scale, torch.float32)
    ours = module.widen(layer.weight, layer.scale, layer.in_features, width)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_it_cannot_do_stays_with_torch(dtype, monkeypatch):
    monkeypatch.setattr(LAYERS, "widen", lambda *_: pytest.fail("not for C"))
    assert drawn((4, 64), torch.float32).dequantised(dtype).dtype == dtype
    assert drawn((4, 64), torch.float16).dequantised(torch.float32).dtype == torch.float32


def test_a_layer_of_four_bits_multiplies_by_what_is_quickest():
    layer, x = drawn((40, 70), torch.float32), torch.randn(3, 70)
    before = layer(x)
    tune(nn.Sequential(layer), Verdict(onednn=True))
    assert layer.product is onednn
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), before)


def test_a_library_of_another_machine_is_none(tmp_path, monkeypatch):
    (tmp_path / ("_passes" + module.EXTENSION_SUFFIXES[0])).write_bytes(b"no library")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "passes.py"))
    assert FOUND() is None
