"""KV caches in float16: every instruction set against torch with the same pages; which models have such a cache."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import idefics
from engine.random_sequences import UNUSUAL_CONFIGS, UnwrittenPages, make_sequences, run_decode_steps
from idefics.config import EngineConfig
from idefics.engine import kv_cache_size
from idefics.engine.decode import TorchDecode
from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PAGE_SIZE, PagedKVCache, cast_to_cache_dtype
from idefics.engine.native.decode import NativeDecode, unsupported_reason
from idefics.engine.prefill import PrefillAttn
from idefics.engine.request_state import PrefillChunk
from idefics.native.library import available_instruction_sets
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, make_random_model

native = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)
CONFIG_BY_KIND = {
    "cross_attention": IDEFICS1,
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    **UNUSUAL_CONFIGS,
}
MAX_FLOAT16 = torch.finfo(torch.float16).max


@pytest.fixture(params=available_instruction_sets("decode step"), ids=lambda one: one.label)
def instruction_set(request):
    return request.param


def run_in_torch(model, rows):
    """Decodes sequences with float16 pages: -> the pages, and the logits of each sequence."""
    cache = PagedKVCache(
        model.layout, 1 + sum(len(row.pages) for row in rows), torch.float16, torch.device("cpu")
    )
    step = TorchDecode(model, cache)

    def call(some):
        places = some.positions.tolist()
        return step(
            DecodeInputs(some.ids, some.positions, some.page_tables, some.cross_kvs, max(places), min(places))
        )

    with torch.inference_mode():
        run_decode_steps(call, rows)
    return cache


def run_in_native_step(model, rows, instructions):
    cache = UnwrittenPages.allocate(model.layout, 1 + sum(len(row.pages) for row in rows))
    cache.keys, cache.values = ([pages.half() for pages in kind] for kind in (cache.keys, cache.values))
    assert unsupported_reason(model, cache) is None
    run_decode_steps(NativeDecode(model.decoder_parts(), cache, instructions), rows)
    return cache


def make_equal_sequences(model, lengths):
    return make_sequences(model, lengths), make_sequences(model, lengths)


def written_values(rows, pages):
    """The cached values at the positions of the rows."""
    found = [pages[torch.tensor(row.pages)].transpose(1, 2).flatten(0, 1)[: len(row.ids)] for row in rows]
    return torch.cat(found).float()


def assert_close_to_float16(ours, reference):
    """A number between two float16 values may have been rounded to the other one, which affects later layers."""
    for row, other in zip(ours, reference, strict=True):
        got, expected = torch.stack(row.logits), torch.stack(other.logits)
        assert got.isfinite().all()
        assert (got - expected).abs().max() < 5e-4 * expected.abs().max()


@native
@pytest.mark.parametrize("kind", CONFIG_BY_KIND)
def test_equals_torch_over_the_same_pages(kind, instruction_set):
    model = make_random_model(CONFIG_BY_KIND[kind])
    ours, wanted = make_equal_sequences(model, [1, 2, 5, 17, 18, 33, 40, 9, 9])
    run_in_native_step(model, ours, instruction_set)
    run_in_torch(model, wanted)
    assert_close_to_float16(ours, wanted)


@native
@pytest.mark.parametrize("kind", ["cross_attention", "window", "grouped"])
def test_long_contexts(kind, instruction_set):
    model = make_random_model(CONFIG_BY_KIND[kind])
    ours, wanted = make_equal_sequences(model, [420, 130, 257])
    run_in_native_step(model, ours, instruction_set)
    run_in_torch(model, wanted)
    assert_close_to_float16(ours, wanted)


@native
@pytest.mark.parametrize("factor", [1e-7, 1e-5, 1.0, 1e6])
def test_float16_rounding_equals_torchs(factor, instruction_set):
    """Subnormal numbers too; larger ones become the largest float16, not infinity."""
    model = make_random_model(IDEFICS3)
    for layer in model.decoder_parts().layers:
        layer.self_attn.v_proj.weight.data.mul_(factor)
        layer.self_attn.k_proj.weight.data.mul_(factor)
        layer.self_attn.o_proj.weight.data.div_(factor)
    ours, wanted = make_equal_sequences(model, [20, 7])
    pages, others = run_in_native_step(model, ours, instruction_set), run_in_torch(model, wanted)
    for one, other in ((pages.keys[0], others.keys[0]), (pages.values[0], others.values[0])):
        found, expected = written_values(ours, one), written_values(wanted, other)
        assert found.isfinite().all() and found.abs().max() > 0
        step = expected.abs().clamp(min=2.0**-14) * 2.0**-10
        assert ((found - expected).abs() <= step).all()
        assert (found == expected).float().mean() > 0.99
        assert (found.abs().max() == MAX_FLOAT16) == (factor == 1e6)
    assert all(torch.stack(row.logits).isfinite().all() for row in ours + wanted)


@native
def test_nan_stays_visible_in_its_row(instruction_set):
    model = make_random_model(IDEFICS3)
    model.decoder_parts().layers[0].self_attn.v_proj.weight.data.fill_(torch.nan)
    rows = make_sequences(model, [3])
    pages = run_in_native_step(model, rows, instruction_set)
    assert written_values(rows, pages.values[0]).isnan().all() and rows[0].logits[-1].isnan().all()


def test_torch_clamps_larger_numbers_to_the_largest_float16():
    x = torch.tensor([1e6, -torch.inf, 65519.0, 1.0, torch.nan])
    kept = cast_to_cache_dtype(x, torch.float16)
    assert kept.dtype == torch.float16
    assert kept[:4].tolist() == [MAX_FLOAT16, -MAX_FLOAT16, MAX_FLOAT16, 1.0] and kept[4].isnan()
    assert cast_to_cache_dtype(x, torch.float32) is x


@pytest.mark.parametrize("kind", ["window", "grouped"])
@torch.inference_mode()
def test_logits_do_not_depend_on_the_chunks_of_a_prompt(kind):
    """A token attends to rounded keys and values in its own chunk too, as later chunks do."""
    model = make_random_model(CONFIG_BY_KIND[kind])
    count = 45
    ids, pages = torch.arange(count) % model.layout.vocab_size, list(range(1, 5))
    read_in = []
    for cuts in ([0, count], [0, 7, 16, 30, count]):
        cache = PagedKVCache(model.layout, 6, torch.float16, torch.device("cpu"))
        found = []
        for start, end in pairwise(cuts):
            attn = PrefillAttn(cache, [PrefillChunk(SimpleNamespace(pages=pages), start, end)], ())
            found.append(model.forward(model.embed(ids[start:end]), torch.arange(start, end), attn))
        read_in.append(torch.cat(found))
    torch.testing.assert_close(*read_in, rtol=0, atol=1e-4 * read_in[0].abs().max().item())


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_a_quantised_decoder_has_a_float16_cache_on_a_cpu(model):
    kinds = {"int8": torch.float16, "int4": torch.float16, None: torch.float32}
    for kind, expected in kinds.items():
        vlm = idefics.load(model, device="cpu", quantize=kind)
        cache = vlm.engine.kv_cache
        assert {pages.dtype for pages in (*cache.keys, *cache.values)} == {expected}
    assert idefics.load(model, device="cpu", dtype="float32").engine.kv_cache.dtype == torch.float32


def test_a_float16_cache_has_twice_the_pages(monkeypatch):
    layout = replace(make_random_model(IDEFICS3).layout, max_positions=10**6)
    room = 10**7
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        page = 2 * layout.num_layers * layout.num_kv_heads * layout.head_size * PAGE_SIZE * size
        assert (
            kv_cache_size.compute_num_pages(
                layout, dtype, torch.device("cpu"), EngineConfig(kv_cache=room), 10**8
            )
            == 1 + room // page
        )
