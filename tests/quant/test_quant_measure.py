"""Which product is chosen: by what was measured, once, whatever happens to the file that remembers it."""

import json

import pytest
import torch
from torch import nn

from idefics.errors import BadSetting
from idefics.nn.stored import StoredLinear
from idefics.pipeline.loading import dtypes_called, use_threads
from idefics.quant import measure, tune
from idefics.quant.integers import Int8Linear, rounded_back
from idefics.quant.measure import Verdict, verdict
from idefics.quant.products import integers, integers_in_torch, onednn

TIMES = {"float32": 100, "onednn": 120, "integers": 50, "bfloat16": 95, "float16": 40}
FOUND = Verdict(onednn=False, integers=True, halves=("float16",))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.ModuleList(nn.Linear(8192, 8192, bias=False) for _ in range(2))


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The shapes that were measured; nothing is timed."""
    shapes = []

    def products(rows, outputs, inputs):
        shapes.append((rows, outputs, inputs))
        return {}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "_products", products)
    monkeypatch.setattr(measure, "_quickest", lambda products: TIMES)
    return shapes


def test_a_verdict_is_remembered(asked):
    assert verdict(Wide()) == verdict(Wide()) == FOUND
    assert asked == [(measure.ROWS, measure.OUTPUTS, 8192)]


def test_other_shapes_are_measured_anew_and_both_are_remembered(asked):
    other = Wide()
    other.layers.append(nn.Linear(16384, 8192, device="meta"))
    for model in (Wide(), other, Wide(), other):
        verdict(model)
    assert len(asked) == 3  # one shape, then two


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": 1}', '{"KEY": {"onednn": 1}}', "\x00"])
def test_a_damaged_file_is_measured_again(asked, content):
    verdict(Wide())
    key = next(iter(json.loads(measure.cache_file().read_text())))
    measure.cache_file().write_text(content.replace("KEY", key))
    assert verdict(Wide()) == FOUND
    assert len(asked) == 2
    assert verdict(Wide()) == FOUND
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_is_no_error(asked, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verdict(Wide()) == verdict(Wide()) == FOUND
    assert len(asked) == 2


def test_a_small_model_is_not_measured(asked):
    assert verdict(nn.Linear(64, 64)) == Verdict()
    assert asked == []


def test_every_product_is_timed():
    found = measure._quickest(measure._products(4, 32, 16))
    assert found.keys() == TIMES.keys() and min(found.values()) > 0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"onednn": 50}, Verdict(onednn=True, integers=False, halves=("float16",))),
        ({"onednn": 95, "integers": 99}, Verdict(halves=("float16",))),
        ({"float16": 300, "bfloat16": 20}, Verdict(integers=True, halves=("bfloat16",))),
    ],
)
def test_only_what_is_clearly_quicker_is_taken(asked, monkeypatch, times, expected):
    monkeypatch.setattr(measure, "_quickest", lambda products: TIMES | times)
    assert measure.measured([(8, 8)]) == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 40])
@torch.inference_mode()
def test_oned_nn_computes_the_same(rows, bias):
    plain = nn.Linear(96, 64, bias=bias)
    x = torch.randn(2, rows, 96)
    torch.testing.assert_close(onednn(x, plain.weight, plain.bias), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("room", [2**22, 64 * 7])
@torch.inference_mode()
def test_whole_numbers_are_multiplied_exactly(monkeypatch, rows, bias, room):
    """The slow twin: inputs and weights rounded to whole numbers, multiplied in float64."""
    monkeypatch.setattr("idefics.quant.products.ROOM", room)
    plain = nn.Linear(96, 64, bias=bias)
    layer = Int8Linear.of(plain, plain.weight.detach())
    x = torch.randn(2, rows, 96)
    x[0, 0] = 0
    steps = x.abs().amax(-1, keepdim=True) / 127
    levels = (x / steps).nan_to_num().round().double()
    expected = levels @ layer.levels.double().T * steps * layer.scale
    if bias:
        expected = expected + plain.bias
    found = integers(x, layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    near = plain(x)
    assert (found - near).norm() < 0.02 * near.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rows_of_zeros_and_others_without_the_c_code(dtype):
    """The product that is taken where the C code is not: nothing times something is nothing, with the bias left."""
    plain = nn.Linear(96, 64)
    layer = Int8Linear.of(plain, plain.weight.detach())
    x = torch.randn(5, 96, dtype=dtype)
    x[2] = 0
    out = x.new_empty(5, 64)
    integers_in_torch(x, layer.levels, layer.scale.to(dtype), layer.bias.to(dtype), out)
    assert torch.equal(out[2], layer.bias.to(dtype))
    expected = integers(x.float(), layer.levels, layer.scale, layer.bias)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_layers_are_given_what_is_quick():
    def model():
        plain = nn.Linear(8, 8)
        return nn.ModuleList([plain, Int8Linear.of(plain, plain.weight.detach())])

    slow, quick = model(), model()
    tune(slow, Verdict())
    tune(quick, Verdict(onednn=True, integers=True))
    assert type(slow[0]) is nn.Linear and slow[1].product is rounded_back
    assert type(quick[0]) is StoredLinear and quick[0].product is onednn and quick[1].product is integers
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
        ("bfloat16", "cpu", (torch.bfloat16, None)),
        ("float16", "cpu", (torch.float32, torch.float16)),
        ("float16", "cuda", (torch.float16, None)),
    ],
)
def test_halves_are_computed_where_they_are_quick(dtype, device, expected):
    quick = Verdict(halves=("bfloat16",))
    assert dtypes_called(dtype, torch.device(device), "float16", quick) == expected


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", 100_000])
def test_threads_are_checked(count):
    with pytest.raises(BadSetting, match=r"threads is .*; give a whole number from 1"):
        use_threads(count)


def test_threads_are_used():
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
