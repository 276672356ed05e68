"""The vision encoder in C equals its layers in torch with the same roundings; and is only used where it is the same."""

from functools import partial

import pytest
import torch
from torch import nn

from idefics.config import VisionConfig
from idefics.native import library
from idefics.nn import vit
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.attention_backends import (
    bfloat16_or_sdpa_attention,
    native_or_sdpa_attention,
    set_attention_backend,
)
from idefics.nn.native_layers import find_native_layers
from idefics.nn.upcast import UpcastLinear
from idefics.nn.vit import VisionEncoder
from idefics.quant import apply_kernel_choice
from idefics.quant.autotune import KernelChoice
from idefics.quant.linear import Int4Linear, Int8Linear
from native_builds import MATMUL_SOURCES, load_sources

# frames, patches, heads, head size, intermediate size
SIZES = {
    "even": (3, 64, 4, 16, 128),
    "CLIP": (2, 257, 2, 80, 100),
    "odd": (5, 37, 3, 6, 35),
    "one patch": (2, 1, 1, 8, 9),
    "many patches": (1, 1100, 1, 72, 64),
}


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    code = load_sources(tmp_path_factory.mktemp("kernel"), MATMUL_SOURCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: code)
        if library.best_instruction_set("bfloat16 products") is None:
            pytest.skip("this machine has no dot products of bfloat16")
        yield


def create_encoder(kind, size, activation="gelu_pytorch_tanh", num_layers=2):
    _, _, heads, head_size, intermediate_size = size
    config = VisionConfig(
        hidden_size=heads * head_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=heads,
        image_size=64,
        patch_size=8,
        norm_epsilon=1e-6,
        activation=activation,
    )
    torch.manual_seed(0)
    encoder = VisionEncoder(config).requires_grad_(False)
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.LayerNorm):
            module.weight.copy_(torch.randn_like(module.weight) / 4 + 1)
            module.bias.copy_(torch.randn_like(module.bias) / 4)
        if isinstance(module, nn.Linear) and kind in ("int8", "int4"):
            quantized_class = Int8Linear if kind == "int8" else Int4Linear
            encoder.set_submodule(name, quantized_class.from_linear(module, module.weight))
        elif isinstance(module, nn.Linear):
            module.__class__ = UpcastLinear
            module.weight.data = module.weight.data.bfloat16()
    apply_kernel_choice(encoder, KernelChoice(bfloat16=True, integers=True))
    set_attention_backend(encoder, bfloat16_or_sdpa_attention)
    return encoder


def reference_encode(encoder, x):
    """The layers in torch, one after the other: their products and attention are the kernels that other tests check."""
    for layer in encoder.layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@torch.inference_mode()
def test_equals_layers_with_the_same_roundings(monkeypatch, size, kind, set_openmp_threads):
    """Numbers on the border between two rounded ones may fall to either side: hence the tolerance."""
    frames, patches, heads, head_size, _ = size
    encoder, x = create_encoder(kind, size), torch.randn(frames, patches, heads * head_size)
    monkeypatch.setattr("idefics.nn.native_kernels.MIN_QUERIES", 1)
    expected, before = reference_encode(encoder, x), x.clone()
    found = encoder(x)
    assert torch.equal(x, before)
    difference = (found - expected).norm() / expected.norm()
    assert difference < (4e-3 if kind == "int8" else 1e-3)
    assert find_native_layers(encoder.config, encoder.layers) is not None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_every_activation(activation):
    encoder = create_encoder("bfloat16", SIZES["even"], activation, num_layers=1)
    x = torch.randn(2, 16, 64) * 3
    expected = reference_encode(encoder, x)
    assert (encoder(x) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_nan_stays_in_its_frame(activation):
    encoder, x = create_encoder("bfloat16", SIZES["even"], activation), torch.randn(3, 64, 64)
    x[1, 5, 3] = float("nan")
    found = encoder(x)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@torch.inference_mode()
def test_a_frame_does_not_depend_on_the_others():
    encoder, x = create_encoder("int8", SIZES["even"]), torch.randn(40, 64, 64)
    whole = encoder(x)
    assert torch.equal(encoder(x[17:18]), whole[17:18])
    assert encoder(x[:0]).shape == (0, 64, 64)


def make_unsupported(encoder, reason):
    layer = encoder.layers[1]
    match reason:
        case "hook":
            layer.mlp.fc1.register_forward_hook(lambda *_: None)
        case "attention backend":
            layer.self_attn.attention_backend = native_or_sdpa_attention
        case "float32 weight":
            layer.mlp.fc2.weight.data = layer.mlp.fc2.weight.data.float()
        case "other layer":
            layer.self_attn.k_proj = nn.Linear(64, 64)
        case "not chosen":
            apply_kernel_choice(encoder, KernelChoice())
        case "bfloat16 norm":
            layer.layer_norm1.bfloat16()


@pytest.mark.parametrize(
    "reason", ["hook", "attention backend", "float32 weight", "other layer", "not chosen", "bfloat16 norm"]
)
def test_what_the_kernel_does_not_support_is_left_to_torch(reason):
    encoder = create_encoder("bfloat16", SIZES["even"])
    assert find_native_layers(encoder.config, encoder.layers) is not None
    make_unsupported(encoder, reason)
    assert find_native_layers(encoder.config, encoder.layers) is None


def test_gradients_are_torchs(monkeypatch):
    encoder = create_encoder("bfloat16", SIZES["even"])
    monkeypatch.setattr(vit, "native_vision_encode", partial(pytest.fail, "the kernel has no gradients"))
    x = torch.randn(1, 64, 64, requires_grad=True)
    encoder(x).sum().backward()
    assert x.grad.abs().sum() > 0


@torch.inference_mode()
def test_norms_of_constant_and_of_large_rows():
    encoder = create_encoder("bfloat16", SIZES["even"], num_layers=1)
    x = torch.randn(1, 64, 64)
    x[0, 3], x[0, 5] = 7.0, 1e4 * torch.randn(64)
    expected = reference_encode(encoder, x)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-2, atol=3e-2)
