"""The dense cache, an oracle, against the uncached reference."""

from dataclasses import replace

import pytest
import torch

from engine.dense import Cache, DecodeAttn, PrefillAttn
from idefics.config import CacheLayout
from idefics.nn.attention import DenseAttn, LayerMemory

HEADS, KV_HEADS, SIZE, PLACES = 4, 2, 8, 3
LAYOUT = CacheLayout(
    layers=1, kv_heads=KV_HEADS, head_size=SIZE, cross_layers=1, max_positions=64, vocabulary=9
)


windows = pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 6, 100])


def qkv(tokens):
    return (
        torch.randn(tokens, HEADS, SIZE),
        torch.randn(tokens, KV_HEADS, SIZE),
        torch.randn(tokens, KV_HEADS, SIZE),
    )


def memory():
    return [LayerMemory(torch.randn(1, PLACES, HEADS, SIZE), torch.randn(1, PLACES, HEADS, SIZE))]


@windows
@pytest.mark.parametrize("lengths", [[5, 1, 3], [9], [4, 4]])
def test_prefill_and_decode_equal_dense_attention(lengths, window):
    parts = [qkv(length + 2) for length in lengths]  # two more tokens each, one at a time
    cache = Cache(replace(LAYOUT, window=window), lengths, [()] * len(lengths), like=parts[0][0])
    expected = [DenseAttn(1, window=window).self_(0, *part) for part in parts]

    packed = [torch.cat([part[i][:n] for part, n in zip(parts, lengths, strict=True)]) for i in range(3)]
    out = PrefillAttn(cache, [()] * sum(lengths)).self_(0, *packed).split(lengths)
    for got, want, n in zip(out, expected, lengths, strict=True):
        torch.testing.assert_close(got, want[:n])
    for step in range(2):
        new = [
            torch.stack([part[i][n + step] for part, n in zip(parts, lengths, strict=True)]) for i in range(3)
        ]
        out = DecodeAttn(cache, cache.advance()).self_(0, *new)
        want = torch.stack([one[n + step] for one, n in zip(expected, lengths, strict=True)])
        torch.testing.assert_close(out, want)


@windows
def test_rows_of_unequal_length_see_their_own_windows(window):
    """A row that is much shorter than another, which sees further back than its beginning."""
    lengths = [2, 11, 7]
    parts = [qkv(length + 1) for length in lengths]
    cache = Cache(replace(LAYOUT, window=window), lengths, [()] * 3, like=parts[0][0])
    packed = [torch.cat([part[i][:-1] for part in parts]) for i in range(3)]
    PrefillAttn(cache, [()] * sum(lengths)).self_(0, *packed)
    cache.select([2, 0, 1])
    parts = [parts[2], parts[0], parts[1]]
    out = DecodeAttn(cache, cache.advance()).self_(
        0, *(torch.stack([p[i][-1] for p in parts]) for i in range(3))
    )
    for got, part in zip(out, parts, strict=True):
        torch.testing.assert_close(got, DenseAttn(1, window=window).self_(0, *part)[-1])


def test_prefill_looks_at_one_picture_a_token_or_gives_zero():
    cat, dog = memory(), memory()
    looks = [(), (), cat, cat, dog, (), (), dog, dog, cat]
    cache = Cache(LAYOUT, [7, 3], [looks[6], looks[9]], like=torch.empty(0))
    q = torch.randn(10, HEADS, SIZE)
    out = PrefillAttn(cache, looks).cross(0, q)

    both = [LayerMemory(*map(torch.cat, zip(cat[0], dog[0], strict=True)))]
    sees = torch.tensor([-1, -1, 0, 0, 1, -1, -1, 1, 1, 0])
    torch.testing.assert_close(out, DenseAttn(1, both, sees).cross(0, q))
    assert not out[[0, 1, 5, 6]].any()
    assert out[[2, 3, 4, 7, 8, 9]].any(dim=(1, 2)).all()


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0], [2], [1, 1, 3, 3, 0]])
def test_decode_looks_at_each_rows_own_picture(rows):
    cat, dog = memory(), memory()
    cache = Cache(LAYOUT, [2, 2, 2, 2], [(), cat, (), dog], like=torch.empty(0))
    cache.select(rows)
    q = torch.randn(len(rows), HEADS, SIZE)
    out = DecodeAttn(cache, cache.advance()).cross(0, q)

    both = [LayerMemory(*map(torch.cat, zip(cat[0], dog[0], strict=True)))]
    sees = torch.tensor([-1, 0, -1, 1])[rows]
    torch.testing.assert_close(out, DenseAttn(1, both, sees).cross(0, q))
    assert not out[sees < 0].any()


def test_pictures_are_laid_side_by_side_once_for_a_set_of_rows():
    cat = memory()
    cache = Cache(LAYOUT, [2, 3], [cat, ()], like=torch.empty(0))
    cross = cache.cross
    cache.advance()
    cache.select([0, 1])
    assert cache.cross is cross
    cache.select([0])
    assert cache.cross is not cross
    cache.select([0, 0])
    cross = cache.cross
    cache.select([1, 0])  # beams trade places, their picture stays
    assert cache.cross is cross


def test_selecting_rows_takes_their_past_along():
    cache = Cache(LAYOUT, [2, 4, 3], [(), (), ()], like=torch.empty(0))
    for row in range(3):
        keys, values = cache.layer(0, like=torch.empty(0, KV_HEADS, SIZE))
        keys[row], values[row] = row, -row
    cache.select([2, 0, 0])
    assert cache.lengths == [3, 2, 2]
    assert cache.keys[0][:, 0, 0, 0].tolist() == [2, 0, 0]
    assert cache.values[0][:, 0, 0, 0].tolist() == [-2, 0, 0]
