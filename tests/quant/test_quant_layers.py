"""Quantised layers: equal to float layers with the dequantised weights, which are close to the original ones."""

import importlib
import sys

import pytest
import torch
from torch import nn

from idefics.config import QuantizationConfig
from idefics.errors import BadSetting, MissingExtra
from idefics.nn.upcast import TokenEmbedding
from idefics.quant import memory_footprint, quantizable_layer_names, quantizers_by_name
from idefics.quant.fp8 import Float8Linear
from idefics.quant.linear import (
    GROUP_SIZE,
    Int4Linear,
    Int8Linear,
    quantize_least_squares,
    quantize_symmetric,
)

QUANT_KINDS = ("int8", "int4", "fp8", "nf4", "fp4")
kinds = pytest.mark.parametrize("kind", QUANT_KINDS)
FOUR_BIT = ("nf4", "fp4")


class LinearHolder(nn.Module):
    def __init__(self, inputs=96, outputs=64, bias=True):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, bias=bias)


def quantize_layer(layer, kind, **how):
    """The quantised layer of a float layer."""
    holder = LinearHolder()
    holder.layer = layer
    for name, pack in quantizers_by_name(holder, QuantizationConfig(kind=kind, **how)).items():
        pack(holder.get_parameter(name).detach())
    return holder.layer


def dequantize_layer(layer):
    """The (O, I) dequantised weights of a layer."""
    if isinstance(layer, (Int8Linear, Int4Linear, Float8Linear)):
        return layer.dequantize(torch.float32)
    functional = importlib.import_module("bitsandbytes.functional")
    return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def make_reference_layer(layer, dtype=torch.float32):
    """The reference: a float layer with the dequantised weights."""
    out, inputs = layer.out_features, layer.in_features
    plain = nn.Linear(inputs, out, bias=layer.bias is not None, dtype=dtype)
    with torch.no_grad():
        plain.weight.copy_(dequantize_layer(layer))
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


@kinds
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_layer_equals_its_reference(kind, rows, bias):
    layer = quantize_layer(nn.Linear(96, 64, bias=bias), kind)
    x = torch.randn(2, rows, 96)
    torch.testing.assert_close(layer(x), make_reference_layer(layer)(x), rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_16_bit_inputs_are_computed_in_16_bits(kind, dtype):
    layer = quantize_layer(nn.Linear(96, 64, dtype=dtype), kind)
    for rows in (1, 16):
        x = torch.randn(rows, 96, dtype=dtype)
        out = layer(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), make_reference_layer(layer)(x.float()), rtol=0.02, atol=0.02)


@torch.inference_mode()
def test_large_weights_of_half_precision_do_not_overflow():
    """Sums of 127 times the inputs would overflow in float16 before they are scaled."""
    layer = quantize_layer(nn.Linear(4096, 2, bias=False, dtype=torch.float16), "int8")
    out = layer(torch.full((8, 4096), 8.0, dtype=torch.float16))
    assert out.isfinite().all()


def test_each_weight_is_rounded_to_the_nearest_level():
    plain = nn.Linear(96, 64)
    found = dequantize_layer(quantize_layer(plain, "int8"))
    step = plain.weight.abs().amax(-1, keepdim=True) / 127
    assert ((found - plain.weight).abs() <= 0.5001 * step).all()


def test_least_squares_scales_have_less_error():
    plain = nn.Linear(96, 64)
    nn.init.normal_(plain.weight)
    groups = plain.weight.detach().unflatten(1, (-1, GROUP_SIZE))
    levels, scale = quantize_symmetric(groups, 7, torch.bfloat16)
    scale = scale.float()
    largest = (levels * scale - groups).square().sum(-1)  # (O, groups)
    layer = quantize_layer(plain, "int4")
    least = (dequantize_layer(layer) - plain.weight).unflatten(1, (-1, GROUP_SIZE)).square().sum(-1)
    assert (least <= largest * 1.0001).all() and least.sum() < 0.95 * largest.sum()
    assert (layer.scale >= 0.69 * scale[..., 0]).all() and (layer.scale <= scale[..., 0]).all()


@pytest.mark.parametrize(
    ("kind", "error"), [("int8", 0.01), ("int4", 0.1), ("fp8", 0.03), ("nf4", 0.11), ("fp4", 0.13)]
)
@pytest.mark.parametrize("inputs", [256, 160, 4304])
def test_quantisation_errors(kind, error, inputs):
    """Relative to the weights, for normally distributed ones; each bound is about a tenth above the measured error.

    Whatever the width: blocks that run over the end of a row have come out wrong.
    """
    plain = nn.Linear(inputs, 64)
    nn.init.normal_(plain.weight)
    found = dequantize_layer(quantize_layer(plain, kind))
    assert 0.5 * error < (found - plain.weight).norm() / plain.weight.norm() < error


@kinds
def test_zeros_stay_zeros(kind):
    plain = nn.Linear(64, 64)
    nn.init.zeros_(plain.weight)
    assert not dequantize_layer(quantize_layer(plain, kind)).any()


def test_a_width_that_is_no_multiple_of_the_group():
    layer = quantize_layer(nn.Linear(70, 8), "int4")
    assert layer.weight.shape == (8, 3 * GROUP_SIZE // 2) and layer.scale.shape == (8, 3)
    x = torch.randn(5, 70)
    torch.testing.assert_close(layer(x), make_reference_layer(layer)(x))


@kinds
def test_gradients_pass_through(kind):
    layer = quantize_layer(nn.Linear(96, 64), kind)
    x, y = (torch.ones(1, 96, requires_grad=True) for _ in range(2))
    layer(x).sum().backward()
    make_reference_layer(layer)(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert {name for name, weight in layer.named_parameters() if weight.requires_grad} == {"bias"}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_layer_is_restored_from_its_state_dict(kind):
    one, other = quantize_layer(nn.Linear(96, 64), kind), quantize_layer(nn.Linear(96, 64), kind)
    other.load_state_dict(one.state_dict())
    x = torch.randn(7, 96)
    assert torch.equal(one(x), other(x))


def test_int8_is_symmetric_with_a_scale_for_each_output():
    plain = nn.Linear(96, 64)
    scale = plain.weight.abs().amax(1) / 127
    expected = (plain.weight / scale[:, None]).round().to(torch.int8)
    layer = quantize_layer(plain, "int8")
    assert torch.equal(layer.weight, expected) and torch.equal(layer.scale, scale)


@pytest.mark.parametrize(
    ("kind", "how", "size"),
    [
        ("int8", {}, 64 * 256 + 4 * 64),
        ("int4", {}, 64 * 256 // 2 + 2 * 64 * 256 // GROUP_SIZE),
        ("nf4", {}, 64 * 256 // 2 + 4 * 64 * 256 // 64 + 4 * 16),
        ("nf4", {"double": True}, 64 * 256 // 2 + 64 * 256 // 64 + 4 * 16 + 4 * 256 + 4 + 4),
    ],
)
def test_memory_is_counted_to_the_byte(kind, how, size):
    layer = quantize_layer(nn.Linear(256, 64), kind, **how)
    assert memory_footprint(layer) == size + 4 * 64  # the bias


def test_memory_counts_tied_tensors_once_and_buffers_on_request():
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    model[1].weight = model[0].weight
    model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    assert memory_footprint(model) == 64 + 24
    assert memory_footprint(model, include_buffers=False) == 64


class NamedLayers(nn.Module):
    """A model with the module names of checkpoints."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "vision_model": nn.Linear(8, 8),
                "connector": nn.ModuleDict({"proj": nn.Linear(8, 8)}),
                "perceiver_resampler": nn.Linear(8, 8),
                "embed_tokens": TokenEmbedding(8, 8),
                "layers": nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(8, 8)}) for _ in range(2)),
                "tied": nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2)),
            }
        )
        self.lm_head = nn.Linear(8, 8)
        self.connectors = nn.Linear(8, 8)
        self.lm_head.weight = self.model["embed_tokens"].weight  # a table of tokens keeps it
        self.model["tied"][1].weight = self.model["tied"][0].weight  # nobody would


LAYERS = ["model.layers.0.q_proj", "model.layers.1.q_proj"]


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (None, ["model.vision_model", *LAYERS, "lm_head", "connectors"]),
        (("connectors", "vision_model", "connector", "perceiver_resampler", "lm_head"), LAYERS),
        (("model.layers.1", "model.vision_model", "model.connector"), None),
        (
            (),
            [
                "model.vision_model",
                "model.connector.proj",
                "model.perceiver_resampler",
                *LAYERS,
                "lm_head",
                "connectors",
            ],
        ),
    ],
)
def test_which_layers_are_quantised(skip, expected):
    how = QuantizationConfig(kind="int8") if skip is None else QuantizationConfig(kind="int8", skip=skip)
    expected = expected or ["model.perceiver_resampler", LAYERS[0], "lm_head", "connectors"]
    assert quantizable_layer_names(NamedLayers(), how) == expected


def test_int4_models_have_int8_vision_and_output_layers():
    model = NamedLayers()
    for name, pack in quantizers_by_name(model, QuantizationConfig(kind="int4")).items():
        pack(model.get_parameter(name).detach())
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kinds["model.layers.0.q_proj"] is Int4Linear
    assert kinds["lm_head"] is kinds["model.vision_model"] is Int8Linear
    assert kinds["model.connector.proj"] is nn.Linear
    assert isinstance(model.model["embed_tokens"].weight, nn.Parameter)
    assert model.model["embed_tokens"].weight.dtype == torch.float32


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_bitsandbytes_quantises_the_decoder_only(kind):
    assert quantizable_layer_names(NamedLayers(), QuantizationConfig(kind=kind)) == [*LAYERS, "connectors"]


def test_training_mode_is_kept():
    assert not quantize_layer(nn.Linear(64, 64).eval(), "int8").training
    assert quantize_layer(nn.Linear(64, 64), "nf4").training


def test_options_of_nf4():
    layer = quantize_layer(nn.Linear(64, 64), "fp4", double=True, compute_dtype="bfloat16")
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, layer.compute_dtype) == ("fp4", True, torch.bfloat16)
    assert quantize_layer(nn.Linear(64, 64, dtype=torch.float16), "nf4").compute_dtype == torch.float16


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_a_missing_extra_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'idefics\[quant\]'") as caught:
        quantizers_by_name(LinearHolder(), QuantizationConfig(kind=kind))
    assert kind in str(caught.value) and "\n" not in str(caught.value)


def test_integers_need_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in ("int8", "int4"):
        quantizers_by_name(LinearHolder(), QuantizationConfig(kind=kind))


@pytest.mark.parametrize("wrong", [{"kind": "int3"}, {"kind": "nf4", "compute_dtype": "int8"}])
def test_settings_are_checked(wrong):
    with pytest.raises(BadSetting, match="give"):
        QuantizationConfig(**wrong)


@pytest.mark.parametrize("most", [127, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_levels_are_chosen_for_the_stored_scale(most, dtype):
    """No weight is further than half a level from its own, whose scale bfloat16 rounds by up to 1 in 256."""
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(1)).to(dtype)
    levels, scale = quantize_symmetric(weight, most, dtype)
    assert levels.abs().max() == most
    off = (levels.double() * scale.double() - weight.double()).abs()
    assert (off <= scale.double() * (0.5 + 1e-6)).all()


def test_least_squares_is_never_worse():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))

    def error(levels, scale):
        return (levels * scale.float() - weight).square().sum(-1)

    plain, best = (
        error(*way(weight, 7, torch.bfloat16)) for way in (quantize_symmetric, quantize_least_squares)
    )
    assert (best <= plain).all()
    assert best.sum() < 0.95 * plain.sum()


class AdaptedLayer(nn.Module):
    is_loaded_in_4bit = True  # peft asks for it

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def round_to_four_bits(weight, kind):
    """(O, I) weights quantised as in bitsandbytes: one sequence of blocks of 64 across rows."""
    functional = importlib.import_module("bitsandbytes.functional")
    flat = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64))[None]
    packed, state = functional.quantize_4bit(flat, blocksize=64, quant_type=kind)
    return functional.dequantize_4bit(packed, state).flatten()[: weight.numel()].view_as(weight)


@pytest.mark.filterwarnings("ignore:(Merge|Unmerge) lora module to 4-bit:UserWarning")
@pytest.mark.parametrize("kind", FOUR_BIT)
@pytest.mark.parametrize("inputs", [128, 160, 48, 33])
def test_an_adapter_is_merged_into_4_bit_weights(kind, inputs):
    """Merged: the dequantised weights plus the adapter, quantised again; unmerged again: close to the original."""
    peft = pytest.importorskip("peft")
    layer = quantize_layer(nn.Linear(inputs, 64), kind)
    before = dequantize_layer(layer)
    options = {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["layer"],
        "init_lora_weights": False,
        "lora_bias": True,
    }
    model = peft.get_peft_model(AdaptedLayer(layer), peft.LoraConfig(**options))
    x = torch.randn(3, inputs)
    lora = model.base_model.model.layer
    delta = lora.get_delta_weight("default").detach()
    bias = (layer.bias + lora.lora_B["default"].bias).detach()
    model.merge_adapter()
    assert layer.weight.quant_state.shape == (64, inputs)
    torch.testing.assert_close(
        dequantize_layer(layer), round_to_four_bits(before + delta, kind), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(layer(x), nn.functional.linear(x, dequantize_layer(layer), bias))
    merged = dequantize_layer(layer)
    model.unmerge_adapter()
    torch.testing.assert_close(
        dequantize_layer(layer), round_to_four_bits(merged - delta, kind), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_bitsandbytes_weights_of_any_width(kind):
    pytest.importorskip("bitsandbytes")
    plain = nn.Linear(160, 64)
    layer = quantize_layer(plain, kind)
    torch.testing.assert_close(dequantize_layer(layer), round_to_four_bits(plain.weight.detach(), kind))
