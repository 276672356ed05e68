"""The choice of products: timed once and cached, whatever happens to the cache file."""

import json

import pytest
import torch
from torch import nn

from idefics.errors import BadSetting
from idefics.generation.load_settings import resolve_dtypes, set_num_threads
from idefics.native import library
from idefics.nn.upcast import UpcastLinear
from idefics.quant import apply_kernel_choice, autotune
from idefics.quant.autotune import KernelChoice, autotune_kernels, choose_kernels
from idefics.quant.linear import Int8Linear
from idefics.quant.matmul import onednn_linear, w8a8_matmul, w8a8_matmul_torch

SECONDS_BY_KERNEL = {"float32": 100, "onednn": 120, "integers": 50, "bfloat16": 40}
EXPECTED_CHOICE = KernelChoice(onednn=False, integers=True, bfloat16=True)


class WideModel(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.ModuleList(nn.Linear(8192, 8192, bias=False) for _ in range(2))


@pytest.fixture
def measured_shapes(monkeypatch, tmp_path):
    """The shapes that would be timed; nothing is."""
    shapes = []

    def products(rows, outputs, inputs):
        shapes.append((rows, outputs, inputs))
        return {}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "_candidate_matmuls", products)
    monkeypatch.setattr(autotune, "_fastest_call_times", lambda products: SECONDS_BY_KERNEL)
    return shapes


def test_a_choice_is_cached(measured_shapes):
    assert autotune_kernels(WideModel()) == autotune_kernels(WideModel()) == EXPECTED_CHOICE
    assert measured_shapes == [(autotune.TIMED_ROWS, autotune.MAX_TIMED_OUTPUTS, 8192)]


def test_other_shapes_are_timed_and_both_are_cached(measured_shapes):
    other = WideModel()
    other.layers.append(nn.Linear(16384, 8192, device="meta"))
    for model in (WideModel(), other, WideModel(), other):
        autotune_kernels(model)
    assert len(measured_shapes) == 3  # one shape, then two


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": 1}', '{"KEY": {"onednn": 1}}', "\x00"])
def test_with_a_damaged_cache_products_are_timed_again(measured_shapes, content):
    autotune_kernels(WideModel())
    key = next(iter(json.loads(autotune.kernel_choice_cache_file().read_text())))
    autotune.kernel_choice_cache_file().write_text(content.replace("KEY", key))
    assert autotune_kernels(WideModel()) == EXPECTED_CHOICE
    assert len(measured_shapes) == 2
    assert autotune_kernels(WideModel()) == EXPECTED_CHOICE
    assert len(measured_shapes) == 2


def test_a_read_only_cache_folder_is_not_an_error(measured_shapes, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert autotune_kernels(WideModel()) == autotune_kernels(WideModel()) == EXPECTED_CHOICE
    assert len(measured_shapes) == 2


def test_a_small_model_is_not_timed(measured_shapes):
    assert choose_kernels(nn.Linear(64, 64), "autotune") == KernelChoice()
    assert measured_shapes == []


def test_every_product_is_timed():
    found = autotune._fastest_call_times(autotune._candidate_matmuls(4, 32, 16))
    has_bfloat16 = library.best_instruction_set("bfloat16 products") is not None
    expected = SECONDS_BY_KERNEL.keys() - ({"bfloat16"} if not has_bfloat16 else set())
    assert found.keys() == expected and min(found.values()) > 0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"onednn": 50}, KernelChoice(onednn=True, integers=False, bfloat16=True)),
        ({"onednn": 95, "integers": 99}, KernelChoice(bfloat16=True)),
        ({"bfloat16": 95}, KernelChoice(integers=True)),
    ],
)
def test_only_clearly_faster_products_are_chosen(measured_shapes, monkeypatch, times, expected):
    monkeypatch.setattr(autotune, "_fastest_call_times", lambda products: SECONDS_BY_KERNEL | times)
    assert autotune.time_kernels([(8, 8)]) == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 40])
@torch.inference_mode()
def test_onednn_computes_the_same(rows, bias):
    plain = nn.Linear(96, 64, bias=bias)
    x = torch.randn(2, rows, 96)
    torch.testing.assert_close(onednn_linear(x, plain.weight, plain.bias), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 96), (2, 5, 96)])
def test_onednn_has_the_same_gradients_of_first_and_second_order(shape):
    found = []
    for function in (onednn_linear, nn.functional.linear):
        torch.manual_seed(0)
        inputs = [torch.randn(size, requires_grad=True) for size in (shape, (64, 96), (64,))]
        out = function(*inputs)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
        found.append([out, *first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_onednn_keeps_inputs_only_for_weights_that_learn():
    for requires_grad, num_kept in ((True, 2), (False, 1)):
        kept = []
        weight = torch.randn(64, 96, requires_grad=requires_grad)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, kept=kept: kept.append(one) or one, lambda one: one
        ):
            onednn_linear(torch.randn(5, 96, requires_grad=True), weight, None)
        assert len(kept) == num_kept


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("room", [2**22, 64 * 7])
@torch.inference_mode()
def test_int8_products_are_exact(monkeypatch, rows, bias, room):
    """The reference: inputs and weights rounded to integers, multiplied in float64."""
    monkeypatch.setattr("idefics.quant.matmul.MAX_SUMS_AT_ONCE", room)
    plain = nn.Linear(96, 64, bias=bias)
    layer = Int8Linear.from_linear(plain, plain.weight.detach())
    x = torch.randn(2, rows, 96)
    x[0, 0] = 0
    steps = x.abs().amax(-1, keepdim=True) / 127
    levels = (x / steps).nan_to_num().round().double()
    expected = levels @ layer.levels.double().T * steps * layer.scale
    if bias:
        expected = expected + plain.bias
    found = w8a8_matmul(x, layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    near = plain(x)
    assert (found - near).norm() < 0.02 * near.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rows_of_zeros_in_torchs_int8_product(dtype):
    """`w8a8_matmul_torch`: rows of zeros give the bias."""
    plain = nn.Linear(96, 64)
    layer = Int8Linear.from_linear(plain, plain.weight.detach())
    x = torch.randn(5, 96, dtype=dtype)
    x[2] = 0
    out = x.new_empty(5, 64)
    w8a8_matmul_torch(x, layer.levels, layer.scale.to(dtype), layer.bias.to(dtype), out)
    assert torch.equal(out[2], layer.bias.to(dtype))
    expected = w8a8_matmul(x.float(), layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_layers_get_the_chosen_products():
    def model():
        plain = nn.Linear(8, 8)
        return nn.ModuleList([plain, Int8Linear.from_linear(plain, plain.weight.detach())])

    slow, quick = model(), model()
    apply_kernel_choice(slow, KernelChoice())
    apply_kernel_choice(quick, KernelChoice(onednn=True, integers=True))
    assert type(slow[0]) is nn.Linear and slow[1].matmul == Int8Linear.default_matmul
    assert (
        type(quick[0]) is UpcastLinear
        and quick[0].linear_function is onednn_linear
        and quick[1].matmul is w8a8_matmul
    )
    for layer in quick:  # where a gradient is wanted, torch's own products give it
        x = torch.ones(3, 8, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", (torch.float32, "file")),
        ("auto", "cuda", (torch.float16, None)),
        ("float32", "cpu", (torch.float32, None)),
        ("bfloat16", "cpu", (torch.float32, torch.bfloat16)),
        ("float16", "cpu", (torch.float32, torch.float16)),
        ("float16", "cuda", (torch.float16, None)),
    ],
)
def test_16_bit_dtypes_are_for_storage_on_a_cpu(dtype, device, expected):
    assert resolve_dtypes(dtype, torch.device(device), "float16") == expected


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", 100_000])
def test_threads_are_checked(count):
    with pytest.raises(BadSetting, match=r"threads is .*; give a whole number from 1"):
        set_num_threads(count)


def test_threads_are_used():
    before = torch.get_num_threads()
    try:
        set_num_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
