"""The torch decode step over pages against uncached attention and an uncached model."""

from dataclasses import replace

import pytest
import torch

from engine.fakes import make_fake_model
from idefics.config import KVCacheLayout
from idefics.engine.decode import BatchedCrossKV, GatheredPages, TorchDecode
from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PAGE_SIZE, PagedKVCache
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
CPU = torch.device("cpu")


def make_decode_inputs(positions, tables, memories=None, ids=None):
    return DecodeInputs(
        ids=torch.tensor([0] * len(positions) if ids is None else ids),
        positions=torch.tensor(positions),
        page_tables=torch.tensor(tables, dtype=torch.int32),
        cross_kvs=[()] * len(positions) if memories is None else memories,
        max_position=max(positions),
        min_position=min(positions),
    )


def make_attn(cache, inputs):
    """As `TorchDecode` does."""
    backend = DenseAttn(1).backend
    cross_attend = BatchedCrossKV(inputs.cross_kvs).cross_attend
    position_range = inputs.min_position, inputs.max_position
    return GatheredPages(cache, inputs.page_tables, inputs.positions, cross_attend, backend, position_range)


def make_paged_cache(layout, k, v, tables):
    """A cache with each row's (N, h, K) keys and values in its pages, and zeros elsewhere."""
    cache = PagedKVCache(layout, 40, torch.float32, CPU)
    for keys, values, table in zip(k, v, tables, strict=True):
        for place in range(len(keys)):
            cache.keys[0][table[place // PAGE_SIZE], :, place % PAGE_SIZE] = keys[place]
            cache.values[0][table[place // PAGE_SIZE], :, place % PAGE_SIZE] = values[place]
    return cache


@pytest.mark.parametrize("window", [None, 1, 3, 16, 17, 40, 100])
@pytest.mark.parametrize("lengths", [[5, 1, 33], [32], [31, 31], [16, 15, 17], [64, 2]])
def test_a_step_over_pages_equals_dense_attention(lengths, window):
    q, k, v = ([torch.randn(n, heads, HEAD_SIZE) for n in lengths] for heads in (HEADS, KV_HEADS, KV_HEADS))
    free = iter(torch.randperm(39, generator=torch.Generator().manual_seed(0)).add(1).tolist())
    tables = [[next(free) if PAGE_SIZE * j < n else 0 for j in range(5)] for n in lengths]
    layout = replace(LAYOUT, sliding_window=window)
    cache = make_paged_cache(layout, [x[:-1] for x in k], [x[:-1] for x in v], tables)
    rows = make_decode_inputs([n - 1 for n in lengths], tables)

    out = make_attn(cache, rows).self_attention(0, *(torch.stack([one[-1] for one in x]) for x in (q, k, v)))
    for row, actual in enumerate(out):
        expected = DenseAttn(1, sliding_window=window).self_attention(0, q[row], k[row], v[row])[-1]
        torch.testing.assert_close(actual, expected)
    assert not cache.keys[0][0].any(), "page 0 is nobody's"


@pytest.mark.parametrize("sees", [[-1, 0, -1, 1], [1], [0, 0, 1], [-1, -1]])
def test_each_row_attends_to_its_own_picture_or_gives_zero(sees):
    cat, dog = (
        [
            LayerCrossKV(
                torch.randn(1, FEATURES_PER_IMAGE, HEADS, HEAD_SIZE),
                torch.randn(1, FEATURES_PER_IMAGE, HEADS, HEAD_SIZE),
            )
        ]
        for _ in range(2)
    )
    memories = [() if one < 0 else (cat, dog)[one] for one in sees]
    rows = make_decode_inputs([0] * len(sees), [[1 + row] for row in range(len(sees))], memories)
    q = torch.randn(len(sees), HEADS, HEAD_SIZE)

    cache = PagedKVCache(LAYOUT, 9, torch.float32, CPU)
    out = make_attn(cache, rows).cross_attention(0, q)
    both = [LayerCrossKV(*map(torch.cat, zip(cat[0], dog[0], strict=True)))]
    torch.testing.assert_close(out, DenseAttn(1, both, torch.tensor(sees)).cross_attention(0, q))
    assert not out[torch.tensor(sees) < 0].any()


@pytest.mark.parametrize("kind", ["inline", "cross_attention"])
@torch.inference_mode()
def test_token_by_token_equals_one_pass(kind):
    model = make_fake_model(kind)
    cache = PagedKVCache(model.layout, 20, torch.float32, CPU)
    step = TorchDecode(model, cache)
    ids = torch.randint(47, (2, 40), generator=torch.Generator().manual_seed(3))
    tables = [[3, 7, 1], [2, 19, 5]]
    logits = [
        step(make_decode_inputs([place] * 2, tables, ids=ids[:, place].tolist()))
        for place in range(ids.shape[1])
    ]
    for row in range(2):
        whole = model.forward(model.embed(ids[row]), torch.arange(40), DenseAttn(1))
        torch.testing.assert_close(torch.stack(logits)[:, row], model.logits(whole), rtol=1e-4, atol=1e-4)


def test_pages_are_copied_in_every_layer():
    cache = PagedKVCache(replace(LAYOUT, num_layers=2), 5, torch.bfloat16, CPU)
    for layer in (0, 1):
        cache.keys[layer][1], cache.values[layer][2] = 1 + layer, 3 + layer
    cache.copy_pages({3: 1, 4: 2})
    assert [float(x[3].mean()) for x in cache.keys] == [1, 2]
    assert [float(x[4].mean()) for x in cache.values] == [3, 4]
