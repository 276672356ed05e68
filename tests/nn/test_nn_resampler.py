"""The perceiver resampler, against its definition in loops."""

import pytest
import torch

from idefics.config import ResamplerConfig
from idefics.nn.perceiver import Resampler


def make_resampler(depth=2, qk_norms=True):
    config = ResamplerConfig(depth=depth, num_heads=2, head_size=6, num_latents=5, has_qk_norms=qk_norms)
    made = Resampler(16, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(mean=float("norm.weight" in name or "ln.weight" in name), std=0.4)
    return made


def reference_norm(x, module, epsilon=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return scaled * module.weight + module.bias


def reference_resampler(module, context, epsilon=1e-5):
    """Loops over frames, heads and latents. Every block normalises the same context itself."""
    latents = module.latents
    for attention, mlp in module.blocks:
        queries = reference_norm(latents, attention.latents_layer_norm, epsilon)
        context_and_latents = torch.cat(
            (reference_norm(context, attention.context_layer_norm, epsilon), queries)
        )
        heads = []
        for head in range(attention.num_heads):
            rows = slice(head * 6, head * 6 + 6)
            q = queries @ attention.q_proj.weight[rows].T
            k, v = (
                context_and_latents @ attention.k_proj.weight[rows].T,
                context_and_latents @ attention.v_proj.weight[rows].T,
            )
            if isinstance(attention.q_layer_norm, torch.nn.LayerNorm):
                q, k = (
                    reference_norm(q, attention.q_layer_norm, epsilon),
                    reference_norm(k, attention.k_layer_norm, epsilon),
                )
            heads.append((q @ k.T * 6**-0.5).softmax(-1) @ v)
        latents = latents + torch.cat(heads, dim=1) @ attention.output_proj.weight.T
        wide = reference_norm(latents, mlp.ln, epsilon) @ mlp.fc.weight.T
        latents = latents + wide.clamp(min=0) @ mlp.c_proj.weight.T
    return reference_norm(latents, module.layer_norm, epsilon)


@pytest.mark.parametrize("qk_norms", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_resampler_equals_its_definition(depth, qk_norms):
    made, context = make_resampler(depth, qk_norms), torch.randn(3, 9, 16)
    wanted = torch.stack([reference_resampler(made, frame) for frame in context])
    torch.testing.assert_close(made(context), wanted, atol=1e-5, rtol=1e-5)


def test_norm_epsilon_is_torchs_default():
    """With small inputs the epsilon decides their size after the norm."""
    made, context = make_resampler(), 2e-3 * torch.randn(9, 16)
    got = made(context[None])[0]
    torch.testing.assert_close(got, reference_resampler(made, context, 1e-5), atol=1e-5, rtol=1e-5)
    assert (got - reference_resampler(made, context, 1e-6)).abs().max() > 1e-2


def test_each_block_normalises_the_context_itself():
    """With its own norm, from the same unnormalised context."""
    made, context = make_resampler(), torch.randn(9, 16)
    second = made.blocks[1][0]
    seen = []
    second.context_layer_norm.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    made(context[None])
    assert torch.equal(seen[0][0], context)


def test_latents_do_not_depend_on_the_batch():
    made, context = make_resampler(), torch.randn(4, 9, 16)
    alone = torch.cat([made(frame[None]) for frame in context])
    torch.testing.assert_close(made(context), alone, atol=1e-5, rtol=1e-5)
