"""`FusedDecoder`: equal to the modules, and no weight is stored twice."""

import pytest
import torch
from torch import nn

from idefics.nn import fused as module
from idefics.nn.attention import DenseAttn
from idefics.nn.fused import FusedDecoder, concatenate_weights_as_views
from idefics.quant.linear import Int8Linear
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, make_random_model, merge_config

CONFIG_BY_KIND = {
    "beside": IDEFICS1,
    "beside, a gate for each number": merge_config(IDEFICS1, alpha_type="vector", qk_layer_norms=False),
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    "tanh": merge_config(IDEFICS3, text_config={"hidden_act": "gelu_pytorch_tanh"}),
    "rotation scaled": merge_config(
        IDEFICS3,
        text_config={
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
}


@torch.no_grad()
def run_both_decoders(model, stack):
    """The outputs of both for tokens of which a third have no picture; relative to the largest number."""
    count = 21
    cross_kv, image_index = (), None
    if model.layout.num_cross_attention_layers:
        features = torch.randn(2, model.config.resampler.num_latents, model.config.vision.hidden_size)
        cross_kv, image_index = model.compute_cross_kv(features), torch.arange(count) % 3 - 1
    x, positions = model.embed(torch.randint(model.layout.vocab_size, (count,))), torch.arange(count)
    actual, expected = (
        forward(x, positions, DenseAttn(1, cross_kv, image_index, sliding_window=model.layout.sliding_window))
        for forward in (stack, model.forward)
    )
    assert (actual - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", CONFIG_BY_KIND)
def test_equals_the_modules(kind):
    model = make_random_model(CONFIG_BY_KIND[kind])
    run_both_decoders(model, FusedDecoder(model.decoder_parts()))


def test_weights_are_fused_and_stored_once():
    model = make_random_model(IDEFICS3)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    parameters = dict(model.named_parameters())
    FusedDecoder(model.decoder_parts())
    assert {name: id(weight) for name, weight in model.named_parameters()} == {
        name: id(weight) for name, weight in parameters.items()
    }
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.is_contiguous()
    attention = model.model.text_model.layers[0].self_attn
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    (storage,) = {weight.untyped_storage().data_ptr() for weight in projections}
    assert sum(weight.nbytes for weight in projections) == projections[0].untyped_storage().nbytes()
    FusedDecoder(model.decoder_parts())
    assert storage == projections[1].untyped_storage().data_ptr(), "joined a second time"


def test_a_fused_weight_follows_its_parts():
    layers = [nn.Linear(4, outputs, bias=False) for outputs in (3, 2)]
    whole = concatenate_weights_as_views([layer.weight for layer in layers])
    with torch.no_grad():
        layers[1].weight.fill_(7)
    assert torch.equal(whole, torch.cat([layer.weight for layer in layers]))


@pytest.mark.parametrize("change", ["int8", "bias", "hook"])
def test_other_layers_are_called(change):
    """Layers that are more than a weight compute their outputs themselves."""
    model = make_random_model(IDEFICS3)
    called = []
    for layer in model.model.text_model.layers:
        attention = layer.self_attn
        if change == "int8":
            attention.k_proj = Int8Linear.from_linear(attention.k_proj, attention.k_proj.weight)
            layer.mlp.down_proj = Int8Linear.from_linear(layer.mlp.down_proj, layer.mlp.down_proj.weight)
        elif change == "bias":
            attention.o_proj.bias = nn.Parameter(torch.randn(attention.o_proj.out_features))
        else:
            attention.v_proj.register_forward_pre_hook(lambda *_: called.append(1))
    run_both_decoders(model, FusedDecoder(model.decoder_parts()))
    assert len(called) == (2 * len(model.model.text_model.layers) if change == "hook" else 0)


def test_one_product_replaces_three(monkeypatch):
    """Counts the products of one layer."""
    model, counted = make_random_model(IDEFICS1), []
    linear = module.functional.linear
    monkeypatch.setattr(module.functional, "linear", lambda *args: counted.append(1) or linear(*args))
    stack = FusedDecoder(model.decoder_parts())
    text, crosses = model.config.text, model.layout.num_cross_attention_layers
    with torch.no_grad():
        attn = DenseAttn(1)
        stack(torch.randn(3, text.hidden_size), torch.arange(3), attn)
    plain = 3 * crosses  # a cross block's q, o and down, called as they are
    assert len(counted) == 2 * text.num_layers + crosses + plain
