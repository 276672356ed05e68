"""Llama layers and MLPs whose parts are C calls equal their modules with the same roundings."""

import pytest
import torch
from torch import nn

from idefics.config import RopeConfig, TextConfig
from idefics.native import library
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.attention import DenseAttn
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.native_layers import find_native_decoder_layer, find_native_mlp
from idefics.nn.rope import rotary_cos_sin
from idefics.nn.upcast import UpcastLinear
from idefics.quant import apply_kernel_choice
from idefics.quant.autotune import KernelChoice
from idefics.quant.linear import Int4Linear, Int8Linear
from native_builds import MATMUL_SOURCES, load_sources

KINDS = {"bfloat16": UpcastLinear, "int8": Int8Linear, "int4": Int4Linear}


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    code = load_sources(tmp_path_factory.mktemp("kernel"), MATMUL_SOURCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: code)
        if library.best_instruction_set("bfloat16 products") is None:
            pytest.skip("this machine has no dot products of bfloat16")
        yield


def text_config(heads=4, kv_heads=2, head_size=16, activation="silu"):
    return TextConfig(
        vocab_size=50,
        max_positions=64,
        hidden_size=heads * head_size,
        intermediate_size=93,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        norm_epsilon=1e-5,
        rope=RopeConfig(theta=1e4),
        activation=activation,
    )


def use_kernels(model, kind):
    """Stores the weights of a model in `kind`, with other norms than ones."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            if kind == "bfloat16":
                module.__class__ = UpcastLinear
                module.weight.data = module.weight.data.bfloat16()
            else:
                model.set_submodule(name, KINDS[kind].from_linear(module, module.weight))
        elif not isinstance(module, nn.Linear) and hasattr(module, "epsilon"):
            module.weight.copy_(torch.randn_like(module.weight) / 4 + 1)
    apply_kernel_choice(model, KernelChoice(bfloat16=True, integers=True))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(4, 2, 16), (3, 3, 6), (6, 1, 10)])
@torch.inference_mode()
def test_a_layer_equals_its_modules(monkeypatch, kind, sizes, set_openmp_threads):
    """In torch each product rounds its inputs as in C. Numbers on the border of two may fall to either side."""
    torch.manual_seed(0)
    config = text_config(*sizes)
    layer, x = use_kernels(DecoderLayer(config), kind), torch.randn(37, config.hidden_size)
    rotary = rotary_cos_sin(torch.arange(3, 40), config.rope, config.head_size, torch.float32)
    before = x.clone()
    assert find_native_decoder_layer(layer, x) is not None
    found = layer(0, x, rotary, DenseAttn(1))
    assert torch.equal(x, before)
    monkeypatch.setattr("idefics.nn.decoder.find_native_decoder_layer", lambda *_: None)
    monkeypatch.setattr("idefics.nn.decoder.find_native_mlp", lambda *_: None)
    expected = layer(0, x, rotary, DenseAttn(1))
    assert (found - expected).norm() < (5e-3 if kind == "int8" else 1e-3) * expected.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_an_mlp_with_another_width_of_outputs(monkeypatch, activation):
    """As a perceiver's and a connector's: no norm, no residual, leading dimensions."""
    torch.manual_seed(0)
    mlp = use_kernels(GatedMLP(40, 70, activation, output_size=24), "bfloat16")
    x = torch.randn(2, 9, 40)
    assert find_native_mlp(mlp, x) is not None
    found = mlp(x)
    monkeypatch.setattr("idefics.nn.decoder.find_native_mlp", lambda *_: None)
    expected = mlp(x)
    assert found.shape == (2, 9, 24) and (found - expected).norm() < 1e-3 * expected.norm()


@torch.inference_mode()
def test_a_token_does_not_depend_on_the_others():
    config = text_config()
    layer, x = use_kernels(DecoderLayer(config), "int8"), torch.randn(30, config.hidden_size)
    rotary = rotary_cos_sin(torch.zeros(30), config.rope, config.head_size, torch.float32)

    class NoAttention(DenseAttn):
        def self_attention(self, layer, q, k, v):
            return q

    whole = layer(0, x, rotary, NoAttention(1))
    part = layer(0, x[4:23], tuple(table[4:23] for table in rotary), NoAttention(1))
    assert torch.equal(part, whole[4:23])


def make_unsupported(layer, reason):
    match reason:
        case "hook":
            layer.mlp.register_forward_hook(lambda *_: None)
        case "bias":
            layer.self_attn.o_proj.bias = nn.Parameter(torch.ones(64), requires_grad=False)
        case "float32 weight":
            layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data.float()
        case "kinds of one input":
            layer.self_attn.k_proj = Int8Linear.from_linear(nn.Linear(64, 32, bias=False), torch.ones(32, 64))
            apply_kernel_choice(layer, KernelChoice(bfloat16=True, integers=True))
        case "bfloat16 norm":
            layer.input_layernorm.bfloat16()


@pytest.mark.parametrize(
    "reason", ["hook", "bias", "float32 weight", "kinds of one input", "bfloat16 norm", "gradients"]
)
def test_what_the_kernels_do_not_support_is_left_to_torch(reason):
    layer, x = use_kernels(DecoderLayer(text_config()), "bfloat16"), torch.randn(5, 64)
    with torch.inference_mode():
        assert find_native_decoder_layer(layer, x) is not None
    make_unsupported(layer, reason)
    with torch.set_grad_enabled(reason == "gradients"):
        assert find_native_decoder_layer(layer, x) is None
