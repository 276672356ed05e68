"""Keys and values in 16 bits: every instruction set against torch over pages of the same dtype; who has such pages."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import idefics
from engine.native_rows import SHAPES, Pages, read, sequences
from idefics.config import EngineConfig
from idefics.engine import memory
from idefics.engine.attention import Chunk, PagedAttn
from idefics.engine.cache import PAGE, PagedCache, narrowed
from idefics.engine.decode import DecodeRows, TorchDecode
from idefics.engine.native import NativeDecode, instruction_sets, why_not
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, model_of

native = pytest.mark.skipif(not instruction_sets(), reason="the native step was not compiled")
KINDS = {
    "beside": IDEFICS1,
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    **SHAPES,
}
LARGEST = torch.finfo(torch.float16).max


@pytest.fixture(params=instruction_sets())
def instructions(request):
    return request.param


def in_torch(model, rows):
    """Reads sequences over pages of float16: -> the pages, and the logits of each."""
    cache = PagedCache(
        model.layout, 1 + sum(len(row.pages) for row in rows), torch.float16, torch.device("cpu")
    )
    step = TorchDecode(model, cache)

    def call(some):
        places = some.positions.tolist()
        return step(
            DecodeRows(some.ids, some.positions, some.tables, some.memories, max(places), min(places))
        )

    with torch.inference_mode():
        read(call, rows)
    return cache


def in_c(model, rows, instructions):
    cache = Pages.of(model.layout, 1 + sum(len(row.pages) for row in rows))
    cache.keys, cache.values = ([pages.half() for pages in kind] for kind in (cache.keys, cache.values))
    assert why_not(model, cache) is None
    read(NativeDecode(model.stack(), cache, instructions), rows)
    return cache


def twice(model, lengths):
    return sequences(model, lengths), sequences(model, lengths)


def written(rows, pages):
    """What stands at the positions that rows have read."""
    found = [pages[torch.tensor(row.pages)].transpose(1, 2).flatten(0, 1)[: len(row.ids)] for row in rows]
    return torch.cat(found).float()


def agree(ours, wanted):
    """Where a number lies between two halves it may have become the other one, which is felt from there on."""
    for row, other in zip(ours, wanted, strict=True):
        got, expected = torch.stack(row.logits), torch.stack(other.logits)
        assert got.isfinite().all()
        assert (got - expected).abs().max() < 5e-4 * expected.abs().max()


@native
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_over_the_same_pages(kind, instructions):
    model = model_of(KINDS[kind])
    ours, wanted = twice(model, [1, 2, 5, 17, 18, 33, 40, 9, 9])
    in_c(model, ours, instructions)
    in_torch(model, wanted)
    agree(ours, wanted)


@native
@pytest.mark.parametrize("kind", ["beside", "window", "grouped"])
def test_long_contexts(kind, instructions):
    model = model_of(KINDS[kind])
    ours, wanted = twice(model, [420, 130, 257])
    in_c(model, ours, instructions)
    in_torch(model, wanted)
    agree(ours, wanted)


@native
@pytest.mark.parametrize("factor", [1e-7, 1e-5, 1.0, 1e6])
def test_numbers_are_rounded_as_torch_rounds_them(factor, instructions):
    """Those below a half's normal range too; those above it become the largest half, not an infinity."""
    model = model_of(IDEFICS3)
    for layer in model.stack().layers:
        layer.self_attn.v_proj.weight.data.mul_(factor)
        layer.self_attn.k_proj.weight.data.mul_(factor)
        layer.self_attn.o_proj.weight.data.div_(factor)
    ours, wanted = twice(model, [20, 7])
    pages, others = in_c(model, ours, instructions), in_torch(model, wanted)
    for one, other in ((pages.keys[0], others.keys[0]), (pages.values[0], others.values[0])):
        found, expected = written(ours, one), written(wanted, other)
        assert found.isfinite().all() and found.abs().max() > 0
        step = expected.abs().clamp(min=2.0**-14) * 2.0**-10
        assert ((found - expected).abs() <= step).all()
        assert (found == expected).float().mean() > 0.99
        assert (found.abs().max() == LARGEST) == (factor == 1e6)
    assert all(torch.stack(row.logits).isfinite().all() for row in ours + wanted)


@native
def test_what_is_no_number_stays_seen(instructions):
    model = model_of(IDEFICS3)
    model.stack().layers[0].self_attn.v_proj.weight.data.fill_(torch.nan)
    rows = sequences(model, [3])
    pages = in_c(model, rows, instructions)
    assert written(rows, pages.values[0]).isnan().all() and rows[0].logits[-1].isnan().all()


def test_torch_keeps_the_largest_number_for_larger_ones():
    x = torch.tensor([1e6, -torch.inf, 65519.0, 1.0, torch.nan])
    kept = narrowed(x, torch.float16)
    assert kept.dtype == torch.float16
    assert kept[:4].tolist() == [LARGEST, -LARGEST, LARGEST, 1.0] and kept[4].isnan()
    assert narrowed(x, torch.float32) is x


@pytest.mark.parametrize("kind", ["window", "grouped"])
@torch.inference_mode()
def test_answers_do_not_depend_on_where_a_prompt_is_cut(kind):
    """What a token sees in its own chunk is what later ones see of it: rounded."""
    model = model_of(KINDS[kind])
    count = 45
    ids, pages = torch.arange(count) % model.layout.vocabulary, list(range(1, 5))
    read_in = []
    for cuts in ([0, count], [0, 7, 16, 30, count]):
        cache = PagedCache(model.layout, 6, torch.float16, torch.device("cpu"))
        found = []
        for start, end in pairwise(cuts):
            attn = PagedAttn(cache, [Chunk(slice(0, end - start), start, pages)], ())
            found.append(model.forward(model.embed(ids[start:end]), torch.arange(start, end), attn))
        read_in.append(torch.cat(found))
    torch.testing.assert_close(*read_in, rtol=0, atol=1e-4 * read_in[0].abs().max().item())


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_a_decoder_of_integers_has_such_a_cache_on_a_cpu(model):
    kinds = {"int8": torch.float16, "int4": torch.float16, None: torch.float32}
    for kind, expected in kinds.items():
        vlm = idefics.load(model, device="cpu", quantize=kind)
        cache = vlm.engine.cache
        assert {pages.dtype for pages in (*cache.keys, *cache.values)} == {expected}
    assert idefics.load(model, device="cpu", dtype="float32").engine.cache.dtype == torch.float32


def test_half_the_bytes_are_twice_the_pages(monkeypatch):
    layout = replace(model_of(IDEFICS3).layout, max_positions=10**6)
    room = 10**7
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        page = 2 * layout.layers * layout.kv_heads * layout.head_size * PAGE * size
        assert (
            memory.page_count(layout, dtype, torch.device("cpu"), EngineConfig(kv_cache=room), 10**8)
            == 1 + room // page
        )
