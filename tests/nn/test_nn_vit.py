"""Vision transformers: the position of each patch in every dtype, and the embedding of pixels."""

import math

import numpy as np
import pytest
import torch

from idefics.config import VisionConfig
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.vit import ClipEmbeddings, SiglipEmbeddings, VisionEncoder, position_ids

CPU = torch.device("cpu")
GRIDS = [26, 27, 32, 70]  # Idefics3-8B, SmolVLM 2.2B, SmolVLM 256M and 500M, Idefics2


def make_vision_tower(**changes):
    numbers = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 2,
        "image_size": 24,
        "patch_size": 4,
        "norm_epsilon": 1e-6,
    }
    return VisionConfig(**{**numbers, "activation": "gelu", **changes})


def position_buckets(count, grid):
    """The bucket of each of `count` rows."""
    return (position_ids(count, 1, grid, CPU) // grid).tolist()


def exact_position_buckets(count, grid):
    """The definition with scalars, each product and quotient rounded to float32 once."""
    step = np.float32(1) / np.float32(count)
    places = [min(np.float32(index) * step, np.float32(1 - 1e-6)) for index in range(count)]
    boundaries = [np.float32(bucket / grid) for bucket in range(1, grid)]
    return [sum(place >= boundary for boundary in boundaries) for place in places]


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_equal_the_float32_definition(grid):
    for count in range(1, grid + 1):
        assert position_buckets(count, grid) == exact_position_buckets(count, grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_full_grid_is_the_identity(grid):
    assert torch.equal(position_ids(grid, grid, grid, CPU), torch.arange(grid * grid))


# Rows where index * (1 / count), rounded to float32, falls just below its bucket. transformers from 5.21 on computes
# what we do. The first release built its coordinates with `torch.arange(0, 1 - 1e-6, 1 / count)`, whose rounding is
# torch's own affair and has changed with its versions: which of these rows fall below cannot be had back.
BUCKET_BOUNDARIES_BELOW = {
    70: {25: [5, 10, 15, 20], 49: [7, 14, 28, 35], 50: [5, 10, 15, 20, 30, 40], 55: [11, 22, 33, 44]},
}


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_equal_integer_division_with_few_exceptions(grid):
    for count in range(1, grid + 1):
        below = BUCKET_BOUNDARIES_BELOW.get(grid, {}).get(count, [])
        assert position_buckets(count, grid) == [
            index * grid // count - (index in below) for index in range(count)
        ]


def test_rounding_can_only_move_rows_on_a_border():
    """Rows whose index * grid is a multiple of their count, to the bucket before."""
    grid, boundaries = 70, torch.arange(1 / 70, 1, 1 / 70)
    for count in range(1, grid + 1):
        first_release = torch.arange(0, 1 - 1e-6, 1 / count)
        divided = torch.arange(count) / count
        for places in (first_release, divided):
            rows = torch.bucketize(places.clamp(max=1 - 1e-6), boundaries, right=True).tolist()
            for index, (one, other) in enumerate(zip(rows, position_buckets(count, grid), strict=True)):
                assert one == other or (abs(one - other) == 1 and index * grid % count == 0)


def test_rows_and_columns_have_their_own_count():
    ids = position_ids(3, 5, 27, CPU).reshape(3, 5)
    assert (ids // 27).tolist() == [[row] * 5 for row in position_buckets(3, 27)]
    assert (ids % 27).tolist() == [position_buckets(5, 27)] * 3


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("grid", GRIDS)
def test_positions_do_not_depend_on_the_default_dtype(grid, default):
    expected = position_ids(grid, grid - 1, grid, CPU)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(position_ids(grid, grid - 1, grid, CPU), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("short", [0, 3], ids=["full", "shorter"])
def test_positions_in_half_precision_are_right(grid, dtype, short):
    """With a patch embedding of zeros the output is the position table."""
    embeddings = SiglipEmbeddings(
        make_vision_tower(hidden_size=4, num_heads=1, image_size=grid, patch_size=1)
    ).to(dtype)
    torch.nn.init.zeros_(embeddings.patch_embedding.weight)
    torch.nn.init.zeros_(embeddings.patch_embedding.bias)
    rows = grid - short
    out = embeddings(torch.randn(1, 3, rows, grid).to(dtype))[0]
    table = embeddings.position_embedding.weight.unflatten(0, (grid, grid))
    assert torch.equal(out, table[exact_position_buckets(rows, grid)].flatten(0, 1))


@pytest.mark.parametrize("embeddings", [SiglipEmbeddings, ClipEmbeddings])
def test_pixels_beyond_the_last_patch_are_ignored(embeddings):
    """384 pixels are 27 patches of 14, and 6 pixels more."""
    embed = embeddings(make_vision_tower(image_size=27, patch_size=4))
    frames = torch.randn(2, 3, 27, 27)
    other = frames.clone()
    other[..., 24:, :] = 9
    other[..., 24:] = 9
    assert embed(frames).shape == (2, 36 + (embeddings is ClipEmbeddings), 16)
    assert torch.equal(embed(frames), embed(other))
    other[0, 0, 23, 23] = 9
    assert not torch.equal(embed(frames), embed(other))


def test_clip_begins_with_the_class_embedding():
    embed = ClipEmbeddings(make_vision_tower())
    out = embed(torch.randn(2, 3, 24, 24))
    assert out.shape == (2, 37, 16)
    for frame in out:
        torch.testing.assert_close(frame[0], embed.class_embedding + embed.position_embedding.weight[0])


def test_patches_are_ordered_row_by_row():
    """The patch embedding sums a patch; one bright patch shows its position."""
    embed = SiglipEmbeddings(make_vision_tower())
    torch.nn.init.ones_(embed.patch_embedding.weight)
    torch.nn.init.zeros_(embed.patch_embedding.bias)
    torch.nn.init.zeros_(embed.position_embedding.weight)
    frames = torch.zeros(1, 3, 24, 24)
    frames[:, :, 8:12, 16:20] = 1
    assert embed(frames)[0].any(dim=1).nonzero().flatten().tolist() == [2 * 6 + 4]


def test_gelu_and_its_tanh_approximation():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    erf = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    tanh = [
        0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
        for value in x.tolist()
    ]
    assert max(abs(a - b) for a, b in zip(erf, tanh, strict=True)) > 4e-4
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), torch.tensor(erf, dtype=x.dtype), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        ACTIVATIONS["gelu_pytorch_tanh"](x), torch.tensor(tanh, dtype=x.dtype), atol=1e-12, rtol=0
    )


def test_frames_do_not_attend_to_each_other():
    encoder = VisionEncoder(make_vision_tower(num_heads=4))
    x = torch.randn(3, 9, 16)
    alone = torch.cat([encoder(frame[None]) for frame in x])
    torch.testing.assert_close(encoder(x), alone, atol=1e-5, rtol=1e-5)
