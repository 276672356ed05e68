"""A decoder in fewer steps: the numbers of its modules, and no weight twice."""

import pytest
import torch
from torch import nn

from idefics.nn import joined as module
from idefics.nn.attention import DenseAttn
from idefics.nn.joined import JoinedStack, joined
from idefics.quant.integers import Int8Linear
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, changed, model_of

KINDS = {
    "beside": IDEFICS1,
    "beside, a gate for each number": changed(IDEFICS1, alpha_type="vector", qk_layer_norms=False),
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    "tanh": changed(IDEFICS3, text_config={"hidden_act": "gelu_pytorch_tanh"}),
    "rotation scaled": changed(
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
def compared(model, stack):
    """Both make the same of tokens, a third of which see no picture; rounding is relative to the largest number."""
    count = 21
    memory, sees = (), None
    if model.layout.cross_layers:
        features = torch.randn(2, model.config.resampler.latents, model.config.vision.width)
        memory, sees = model.memory(features), torch.arange(count) % 3 - 1
    x, positions = model.embed(torch.randint(model.layout.vocabulary, (count,))), torch.arange(count)
    got, wanted = (
        forward(x, positions, DenseAttn(1, memory, sees, window=model.layout.window))
        for forward in (stack, model.forward)
    )
    assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_modules(kind):
    model = model_of(KINDS[kind])
    compared(model, JoinedStack(model.stack()))


def test_weights_are_joined_and_kept_once():
    model = model_of(IDEFICS3)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    parameters = dict(model.named_parameters())
    JoinedStack(model.stack())
    assert {name: id(weight) for name, weight in model.named_parameters()} == {
        name: id(weight) for name, weight in parameters.items()
    }
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.is_contiguous()
    attention = model.model.text_model.layers[0].self_attn
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    (storage,) = {weight.untyped_storage().data_ptr() for weight in projections}
    assert sum(weight.nbytes for weight in projections) == projections[0].untyped_storage().nbytes()
    JoinedStack(model.stack())
    assert storage == projections[1].untyped_storage().data_ptr(), "joined a second time"


def test_a_joined_weight_follows_its_parts():
    layers = [nn.Linear(4, outputs, bias=False) for outputs in (3, 2)]
    whole = joined([layer.weight for layer in layers])
    with torch.no_grad():
        layers[1].weight.fill_(7)
    assert torch.equal(whole, torch.cat([layer.weight for layer in layers]))


@pytest.mark.parametrize("change", ["int8", "bias", "hook"])
def test_layers_of_a_kind_of_their_own_are_called(change):
    """What is more than a weight is computed by the layer itself."""
    model = model_of(IDEFICS3)
    called = []
    for layer in model.model.text_model.layers:
        attention = layer.self_attn
        if change == "int8":
            attention.k_proj = Int8Linear.of(attention.k_proj, attention.k_proj.weight)
            layer.mlp.down_proj = Int8Linear.of(layer.mlp.down_proj, layer.mlp.down_proj.weight)
        elif change == "bias":
            attention.o_proj.bias = nn.Parameter(torch.randn(attention.o_proj.out_features))
        else:
            attention.v_proj.register_forward_pre_hook(lambda *_: called.append(1))
    compared(model, JoinedStack(model.stack()))
    assert len(called) == (2 * len(model.model.text_model.layers) if change == "hook" else 0)


def test_one_product_takes_the_place_of_three(monkeypatch):
    """The point of it: fewer products."""
    model, counted = model_of(IDEFICS1), []
    linear = module.functional.linear
    monkeypatch.setattr(module.functional, "linear", lambda *args: counted.append(1) or linear(*args))
    stack = JoinedStack(model.stack())
    text, crosses = model.config.text, model.layout.cross_layers
    with torch.no_grad():
        attn = DenseAttn(1)
        stack(torch.randn(3, text.width), torch.arange(3), attn)
    plain = 3 * crosses  # a cross block's q, o and down, called as they are
    assert len(counted) == 2 * text.layers + crosses + plain
