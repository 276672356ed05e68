"""The dense cache, an oracle, against the uncached reference."""

from dataclasses import replace

import pytest
import torch

from engine.dense_cache import DenseCache, DenseDecodeAttention, DensePrefillAttention
from idefics.config import KVCacheLayout
from idefics.nn.attention import DenseAttn, LayerCrossKV

HEADS, KV_HEADS, HEAD_SIZE, FEATURES_PER_IMAGE = 4, 2, 8, 3
LAYOUT = KVCacheLayout(
    num_layers=1,
    num_kv_heads=KV_HEADS,
    head_size=HEAD_SIZE,
    num_cross_attention_layers=1,
    max_positions=64,
    vocab_size=9,
)


windows = pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 6, 100])


def random_qkv(tokens):
    return (
        torch.randn(tokens, HEADS, HEAD_SIZE),
        torch.randn(tokens, KV_HEADS, HEAD_SIZE),
        torch.randn(tokens, KV_HEADS, HEAD_SIZE),
    )


def random_cross_kv():
    return [
        LayerCrossKV(
            torch.randn(1, FEATURES_PER_IMAGE, HEADS, HEAD_SIZE),
            torch.randn(1, FEATURES_PER_IMAGE, HEADS, HEAD_SIZE),
        )
    ]


@windows
@pytest.mark.parametrize("lengths", [[5, 1, 3], [9], [4, 4]])
def test_prefill_and_decode_equal_dense_attention(lengths, window):
    parts = [random_qkv(length + 2) for length in lengths]  # two more tokens each, one at a time
    cache = DenseCache(replace(LAYOUT, sliding_window=window), lengths, [()] * len(lengths), like=parts[0][0])
    expected = [DenseAttn(1, sliding_window=window).self_attention(0, *part) for part in parts]

    packed = [torch.cat([part[i][:n] for part, n in zip(parts, lengths, strict=True)]) for i in range(3)]
    out = DensePrefillAttention(cache, [()] * sum(lengths)).self_attention(0, *packed).split(lengths)
    for actual, want, n in zip(out, expected, lengths, strict=True):
        torch.testing.assert_close(actual, want[:n])
    for step in range(2):
        new = [
            torch.stack([part[i][n + step] for part, n in zip(parts, lengths, strict=True)]) for i in range(3)
        ]
        out = DenseDecodeAttention(cache, cache.append_position()).self_attention(0, *new)
        want = torch.stack([one[n + step] for one, n in zip(expected, lengths, strict=True)])
        torch.testing.assert_close(out, want)


@windows
def test_rows_of_unequal_length_see_their_own_windows(window):
    """A row that is much shorter than another, which sees further back than its beginning."""
    lengths = [2, 11, 7]
    parts = [random_qkv(length + 1) for length in lengths]
    cache = DenseCache(replace(LAYOUT, sliding_window=window), lengths, [()] * 3, like=parts[0][0])
    packed = [torch.cat([part[i][:-1] for part in parts]) for i in range(3)]
    DensePrefillAttention(cache, [()] * sum(lengths)).self_attention(0, *packed)
    cache.select_rows([2, 0, 1])
    parts = [parts[2], parts[0], parts[1]]
    out = DenseDecodeAttention(cache, cache.append_position()).self_attention(
        0, *(torch.stack([p[i][-1] for p in parts]) for i in range(3))
    )
    for actual, part in zip(out, parts, strict=True):
        torch.testing.assert_close(actual, DenseAttn(1, sliding_window=window).self_attention(0, *part)[-1])


def test_prefill_attends_to_one_image_per_token_or_gives_zero():
    cat, dog = random_cross_kv(), random_cross_kv()
    looks = [(), (), cat, cat, dog, (), (), dog, dog, cat]
    cache = DenseCache(LAYOUT, [7, 3], [looks[6], looks[9]], like=torch.empty(0))
    q = torch.randn(10, HEADS, HEAD_SIZE)
    out = DensePrefillAttention(cache, looks).cross_attention(0, q)

    both = [LayerCrossKV(*map(torch.cat, zip(cat[0], dog[0], strict=True)))]
    sees = torch.tensor([-1, -1, 0, 0, 1, -1, -1, 1, 1, 0])
    torch.testing.assert_close(out, DenseAttn(1, both, sees).cross_attention(0, q))
    assert not out[[0, 1, 5, 6]].any()
    assert out[[2, 3, 4, 7, 8, 9]].any(dim=(1, 2)).all()


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0], [2], [1, 1, 3, 3, 0]])
def test_decode_attends_to_each_rows_own_image(rows):
    cat, dog = random_cross_kv(), random_cross_kv()
    cache = DenseCache(LAYOUT, [2, 2, 2, 2], [(), cat, (), dog], like=torch.empty(0))
    cache.select_rows(rows)
    q = torch.randn(len(rows), HEADS, HEAD_SIZE)
    out = DenseDecodeAttention(cache, cache.append_position()).cross_attention(0, q)

    both = [LayerCrossKV(*map(torch.cat, zip(cat[0], dog[0], strict=True)))]
    sees = torch.tensor([-1, 0, -1, 1])[rows]
    torch.testing.assert_close(out, DenseAttn(1, both, sees).cross_attention(0, q))
    assert not out[sees < 0].any()


def test_pictures_are_laid_side_by_side_once_for_a_set_of_rows():
    cat = random_cross_kv()
    cache = DenseCache(LAYOUT, [2, 3], [cat, ()], like=torch.empty(0))
    cross = cache.batched_cross_kv
    cache.append_position()
    cache.select_rows([0, 1])
    assert cache.batched_cross_kv is cross
    cache.select_rows([0])
    assert cache.batched_cross_kv is not cross
    cache.select_rows([0, 0])
    cross = cache.batched_cross_kv
    cache.select_rows([1, 0])  # beams trade places, their picture stays
    assert cache.batched_cross_kv is cross


def test_selecting_rows_takes_their_past_along():
    cache = DenseCache(LAYOUT, [2, 4, 3], [(), (), ()], like=torch.empty(0))
    for row in range(3):
        keys, values = cache.layer_keys_values(0, like=torch.empty(0, KV_HEADS, HEAD_SIZE))
        keys[row], values[row] = row, -row
    cache.select_rows([2, 0, 0])
    assert cache.lengths == [3, 2, 2]
    assert cache.keys[0][:, 0, 0, 0].tolist() == [2, 0, 0]
    assert cache.values[0][:, 0, 0, 0].tolist() == [-2, 0, 0]
