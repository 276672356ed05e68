"""Rotary embedding: against transformers, against float64, and in float32 for every dtype of the model."""

import math

import numpy as np
import pytest
import torch

from idefics.config import RopeConfig
from idefics.nn.rope import apply_rotary, rope_frequencies, rotary_cos_sin

CPU = torch.device("cpu")
PLAIN_ROPE = RopeConfig(theta=10000.0)
SMOLVLM_ROPE = RopeConfig(theta=273768.0)
LLAMA3_ROPE = RopeConfig(
    theta=500000.0,
    factor=8.0,
    low_frequency_factor=1.0,
    high_frequency_factor=4.0,
    original_max_positions=8192,
)


def exact_frequencies(rope, size):
    """Frequencies in float64, one after another, as Llama 3.1 defines them."""
    out = []
    for pair in range(size // 2):
        rate = rope.theta ** (-2 * pair / size)
        wavelength = 2 * math.pi / rate
        longest = rope.original_max_positions / rope.low_frequency_factor
        shortest = rope.original_max_positions / rope.high_frequency_factor
        if rope.factor == 1 or wavelength < shortest:
            out.append(rate)
        elif wavelength > longest:
            out.append(rate / rope.factor)
        else:
            span = rope.high_frequency_factor - rope.low_frequency_factor
            blend = (rope.original_max_positions / wavelength - rope.low_frequency_factor) / span
            out.append((1 - blend) * rate / rope.factor + blend * rate)
    return np.array(out)


@pytest.mark.parametrize("rope", [PLAIN_ROPE, SMOLVLM_ROPE, LLAMA3_ROPE], ids=["plain", "smolvlm", "llama3"])
@pytest.mark.parametrize("size", [8, 64, 128])
def test_frequencies(rope, size):
    got = rope_frequencies(rope, size, CPU)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), exact_frequencies(rope, size), rtol=2e-6)


def test_llama3_has_all_three_kinds_of_frequencies():
    """So that the test above covers the interpolation."""
    ratio = exact_frequencies(RopeConfig(theta=LLAMA3_ROPE.theta), 128) / exact_frequencies(LLAMA3_ROPE, 128)
    assert (np.isclose(ratio, 1)).any()
    assert (np.isclose(ratio, 8)).any()
    assert ((ratio > 1.01) & (ratio < 7.99)).any()


@pytest.mark.parametrize("rope", [PLAIN_ROPE, LLAMA3_ROPE], ids=["plain", "llama3"])
def test_frequencies_and_tables_equal_transformers(rope):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = {
        "factor": rope.factor,
        "low_freq_factor": rope.low_frequency_factor,
        "high_freq_factor": rope.high_frequency_factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }
    kind = {"rope_type": "llama3", **scaling} if rope.factor > 1 else {"rope_type": "default"}
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": rope.theta, **kind},
    )
    reference = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(rope_frequencies(rope, 128, CPU), reference.inv_freq, atol=0, rtol=1e-6)
    positions = torch.arange(300)
    for dtype, tolerance in ((torch.float32, 2e-4), (torch.bfloat16, 4e-3)):
        expected = reference(torch.zeros(1, dtype=dtype), positions[None])
        for ours, theirs in zip(rotary_cos_sin(positions, rope, 128, dtype), expected, strict=True):
            torch.testing.assert_close(ours[:, 0], theirs[0], atol=tolerance, rtol=0)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
def test_tables_are_computed_in_float32(default):
    """In bfloat16 positions above 256 would not be distinct."""
    positions = torch.arange(0, 16384, 7)
    torch.set_default_dtype(default)
    try:
        tables = rotary_cos_sin(positions, PLAIN_ROPE, 64, torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    angles = positions.numpy()[:, None] * exact_frequencies(PLAIN_ROPE, 64)
    for table, curve in zip(tables, (np.cos, np.sin), strict=True):
        assert table.dtype == torch.bfloat16
        assert table.shape == (len(positions), 1, 64)
        wanted = np.tile(curve(angles), 2)
        assert (
            np.abs(table[:, 0].float().numpy() - wanted).max() < 2**-8 + 2e-3
        )  # half a unit, and float32's angle


def test_pairs_half_a_head_apart_are_rotated():
    """Each pair (i, i + K/2) as a complex number, rotated by its angle."""
    x, positions = torch.randn(5, 2, 8), torch.tensor([0, 1, 2, 30, 500])
    turned = apply_rotary(x, rotary_cos_sin(positions, PLAIN_ROPE, 8, torch.float32))
    spin = torch.polar(torch.ones(5, 4), positions[:, None] * rope_frequencies(PLAIN_ROPE, 8, CPU))[:, None]
    wanted = torch.complex(x[..., :4], x[..., 4:]) * spin
    torch.testing.assert_close(turned, torch.cat((wanted.real, wanted.imag), dim=-1), atol=1e-5, rtol=1e-5)


def test_only_the_distance_matters():
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(at, to):
        return (
            apply_rotary(q, rotary_cos_sin(torch.tensor([at]), PLAIN_ROPE, 16, torch.float32))
            * apply_rotary(k, rotary_cos_sin(torch.tensor([to]), PLAIN_ROPE, 16, torch.float32))
        ).sum()

    torch.testing.assert_close(score(7, 3), score(107, 103), atol=1e-4, rtol=1e-4)
    assert (score(7, 3) - score(8, 3)).abs() > 1e-2
