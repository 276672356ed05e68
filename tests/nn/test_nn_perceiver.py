"""The perceiver of Idefics2, against its definition in loops."""

import pytest
import torch
from torch.nn.functional import gelu, silu

from idefics.config import PerceiverConfig
from idefics.nn.perceiver import Perceiver

WIDTH, SIZE = 16, 6
CONFIG = {
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": SIZE,
    "num_latents": 5,
    "norm_epsilon": 1e-5,
    "activation": "silu",
}


def make_perceiver(**changes):
    made = Perceiver(WIDTH, PerceiverConfig(**{**CONFIG, **changes}))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(mean=float("norm" in name), std=0.4)
    return made


def reference_norm(x, module, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * module.weight


def reference_perceiver(module, context, heads=4, kv_heads=2, epsilon=1e-5, act=silu):
    """Loops over frames and heads. Every layer normalises the same context itself."""
    latents = module.latents
    for layer in module.layers:
        attention, mlp = layer.self_attn, layer.mlp
        queries = reference_norm(latents, layer.input_latents_norm, epsilon)
        context_and_latents = torch.cat((reference_norm(context, layer.input_context_norm, epsilon), queries))
        mixed = []
        for head in range(heads):
            own = slice(head * SIZE, head * SIZE + SIZE)
            start = head // (heads // kv_heads) * SIZE  # neighbouring query heads share a key head
            shared = slice(start, start + SIZE)
            q = queries @ attention.q_proj.weight[own].T
            k, v = (
                context_and_latents @ attention.k_proj.weight[shared].T,
                context_and_latents @ attention.v_proj.weight[shared].T,
            )
            mixed.append((q @ k.T * SIZE**-0.5).softmax(-1) @ v)
        latents = latents + torch.cat(mixed, dim=1) @ attention.o_proj.weight.T
        x = reference_norm(latents, layer.post_attention_layernorm, epsilon)
        wide = act(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
        latents = latents + wide @ mlp.down_proj.weight.T
    return reference_norm(latents, module.norm, epsilon)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 3])
def test_perceiver_equals_its_definition(depth, kv_heads):
    made, context = make_perceiver(depth=depth, num_kv_heads=kv_heads), torch.randn(3, 9, WIDTH)
    wanted = torch.stack([reference_perceiver(made, frame, kv_heads=kv_heads) for frame in context])
    torch.testing.assert_close(made(context), wanted, atol=1e-4, rtol=1e-4)


def test_its_activation():
    made, context = make_perceiver(activation="gelu"), torch.randn(9, WIDTH)
    torch.testing.assert_close(
        made(context[None])[0], reference_perceiver(made, context, act=gelu), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_its_epsilon(epsilon):
    """With small inputs the epsilon decides their size after the norm."""
    made, context = make_perceiver(norm_epsilon=epsilon), 2e-3 * torch.randn(9, WIDTH)
    got = made(context[None])[0]
    torch.testing.assert_close(got, reference_perceiver(made, context, epsilon=epsilon), atol=1e-4, rtol=1e-4)
    assert (got - reference_perceiver(made, context, epsilon=1e-6)).abs().max() > 1e-2


def test_its_mlp_is_four_times_as_wide():
    shapes = {name: tuple(weight.shape) for name, weight in make_perceiver().layers[0].named_parameters()}
    assert shapes["mlp.gate_proj.weight"] == shapes["mlp.up_proj.weight"] == (4 * WIDTH, WIDTH)
    assert shapes["self_attn.q_proj.weight"] == (24, WIDTH)
    assert shapes["self_attn.k_proj.weight"] == shapes["self_attn.v_proj.weight"] == (12, WIDTH)
    assert not any("bias" in name for name in shapes)


def test_latents_are_initialised_as_ones():
    assert torch.equal(Perceiver(WIDTH, PerceiverConfig(**CONFIG)).latents, torch.ones(5, WIDTH))


@pytest.mark.parametrize("patches", [1, 4, 50])
def test_any_number_of_patches_gives_the_same_number_of_latents(patches):
    made, context = make_perceiver(), torch.randn(4, patches, WIDTH)
    assert made(context).shape == (4, 5, WIDTH)
    alone = torch.cat([made(frame[None]) for frame in context])
    torch.testing.assert_close(made(context), alone, atol=1e-5, rtol=1e-5)
