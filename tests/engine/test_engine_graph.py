"""The decode step with CUDA graphs, recorded and replayed: against the uncached model, `TorchDecode` and the reference.

`FakeCudaGraphs` replays operations on the same memory, as a CUDA graph does.
"""

from types import SimpleNamespace

import pytest
import torch

from engine import fakes, random_sequences
from engine.fake_cuda_graphs import FakeCudaGraphs
from engine.random_sequences import make_sequences, run_decode_steps, uncached_logits
from engine.reference_decoding import reference_greedy
from idefics.config import KVCacheLayout
from idefics.engine import engine as engine_module
from idefics.engine.cuda_graphs import CudaGraphDecode, CudaGraphRecorder, pad_num_pages, pad_num_rows
from idefics.engine.decode import (
    GatheredPages,
    PagedInPlace,
    TorchDecode,
    choose_decode_attention,
    choose_decode_step,
    probe_in_place_attention,
)
from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PAGE_SIZE, PagedKVCache
from idefics.engine.native.decode import NativeDecode
from idefics.native.library import available_instruction_sets
from idefics.nn.attention import DenseAttn
from idefics.nn.attention_backends import (
    ATTENTION_BACKENDS,
    eager_attention,
    sdpa_attention,
    set_attention_backend,
)
from models import tiny

CPU = torch.device("cpu")
WINDOW_3 = tiny.merge_config(tiny.IDEFICS2, text_config={"sliding_window": 3})
WINDOW_20 = tiny.merge_config(tiny.IDEFICS2, text_config={"sliding_window": 20})
CONFIG_BY_KIND = {
    "cross_attention": tiny.IDEFICS1,
    "window 3": WINDOW_3,
    "window 8": tiny.IDEFICS2,
    "window 20": WINDOW_20,
    "grouped": tiny.IDEFICS3,
}
FAMILIES = pytest.mark.parametrize("raw", CONFIG_BY_KIND.values(), ids=CONFIG_BY_KIND)


def make_cache(model, rows):
    return PagedKVCache(model.layout, 1 + sum(len(row.pages) for row in rows), torch.float32, CPU)


def make_decode_inputs(some):
    """`DecodeInputs` for the next token of these sequences."""
    rows = random_sequences.make_decode_inputs(some)
    places = rows.positions.tolist()
    return DecodeInputs(rows.ids, rows.positions, rows.page_tables, rows.cross_kvs, max(places), min(places))


def run_step_on_fake_inputs(step):
    """The step as a function of `FakeDecodeInputs`."""

    def call(rows):
        places = rows.positions.tolist()
        return step(
            DecodeInputs(rows.ids, rows.positions, rows.page_tables, rows.cross_kvs, max(places), min(places))
        )

    return call


def assert_equals_uncached(model, rows):
    for row in rows:
        expected, actual = uncached_logits(model, row), torch.stack(row.logits)
        assert (actual - expected).abs().max() < 2e-5 * expected.abs().max()


@FAMILIES
@torch.inference_mode()
def test_equals_the_models_own_pass(raw):
    """Batches change in every step, and the padded sizes with them."""
    model = tiny.make_random_model(raw)
    rows = make_sequences(model, [1, 2, 5, 17, 18, 33, 40, 9, 9])
    tapes = FakeCudaGraphs()
    run_decode_steps(run_step_on_fake_inputs(CudaGraphDecode(model, make_cache(model, rows), tapes)), rows)
    assert_equals_uncached(model, rows)
    assert tapes.num_recorded < tapes.num_replayed / 3


@pytest.mark.parametrize("raw", [WINDOW_20, tiny.IDEFICS3], ids=["window 20", "grouped"])
@torch.inference_mode()
def test_long_and_short_rows_in_one_batch(raw):
    """More pages than the smallest sizes; with a window, some are outside it."""
    model = tiny.make_random_model(tiny.merge_config(raw, text_config={"max_position_embeddings": 700}))
    rows = make_sequences(model, [530, 300, 20])
    tapes = FakeCudaGraphs()
    run_decode_steps(run_step_on_fake_inputs(CudaGraphDecode(model, make_cache(model, rows), tapes)), rows)
    assert_equals_uncached(model, rows)
    assert tapes.num_recorded > 3


@torch.inference_mode()
def test_padding_rows_write_to_page_0_only():
    """Page 0 is never allocated."""
    model = tiny.make_random_model(tiny.IDEFICS3)
    rows = make_sequences(model, [40, 33, 20])
    cache, plain_cache = make_cache(model, rows), make_cache(model, rows)
    step, plain = CudaGraphDecode(model, cache, FakeCudaGraphs()), TorchDecode(model, plain_cache)
    for some in (rows, rows[:1], rows[1:], rows):
        torch.testing.assert_close(
            step(make_decode_inputs(some)), plain(make_decode_inputs(some)), rtol=1e-4, atol=1e-4
        )
        for row in some:
            row.logits.append(None)
    for actual, expected in zip(
        (*cache.keys, *cache.values), (*plain_cache.keys, *plain_cache.values), strict=True
    ):
        torch.testing.assert_close(actual[1:], expected[1:], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_static_inputs_are_cleared_for_shorter_rows():
    """A row of inputs that held a long sequence is cleared when a batch of short ones has fewer pages."""
    model = tiny.make_random_model(tiny.IDEFICS3)
    rows = make_sequences(model, [20, 20, 20, 300])
    cache, plain_cache = make_cache(model, rows), make_cache(model, rows)
    step, plain = CudaGraphDecode(model, cache, FakeCudaGraphs()), TorchDecode(model, plain_cache)
    rows[3].logits = [None] * 290
    for some in (rows, rows[:3]):
        torch.testing.assert_close(
            step(make_decode_inputs(some)), plain(make_decode_inputs(some)), rtol=1e-4, atol=1e-4
        )


@torch.inference_mode()
def test_rows_without_a_picture_get_zero():
    """The same row of inputs may have held a sequence with a picture before."""
    model = tiny.make_random_model(tiny.IDEFICS1)
    blind, *seeing = make_sequences(model, [30] * 4)
    assert not blind.cross_kv and all(row.cross_kv for row in seeing[:2])
    step = CudaGraphDecode(model, make_cache(model, [blind, *seeing]), FakeCudaGraphs())
    for some in ([*seeing, blind], [blind, *seeing], [seeing[0], blind], [blind, seeing[0]], [blind]):
        for row, logits in zip(some, step(make_decode_inputs(some)), strict=True):
            row.logits.append(logits)
    for row in (blind, *seeing):
        row.ids = row.ids[: len(row.logits)]
    assert_equals_uncached(model, [blind, *seeing])


@torch.inference_mode()
def test_logits_outlive_the_next_step():
    model = tiny.make_random_model(tiny.IDEFICS3)
    rows = make_sequences(model, [9, 9])
    step = CudaGraphDecode(model, make_cache(model, rows), FakeCudaGraphs())
    first = step(make_decode_inputs(rows))
    before = first.clone()
    rows[0].logits = rows[1].logits = [None]
    step(make_decode_inputs(rows))
    assert torch.equal(first, before)


def test_sizes():
    assert [pad_num_rows(count) for count in (1, 2, 3, 4, 5, 8, 9, 33)] == [1, 2, 4, 4, 8, 8, 16, 64]
    assert [pad_num_pages(count) for count in (1, 8, 9, 17, 32, 33, 64, 65, 128, 182)] == [
        *(8, 8, 16, 32, 32, 64, 64, 128, 128, 192)
    ]


@FAMILIES
def test_the_engine_equals_the_reference(raw, monkeypatch):
    """Requests of unequal length that end at different times, with and without pictures, in one engine."""
    tapes = FakeCudaGraphs()
    monkeypatch.setattr(
        engine_module, "choose_decode_step", lambda model, cache, **_: CudaGraphDecode(model, cache, tapes)
    )
    model = tiny.make_random_model(raw)
    scenes = (
        ("t", "ttttt", "1tt", "tt1t1", "1te1te", "tte")
        if model.config.cross_attention
        else ("t", "1tt", "tt3", "4t1t")
    )
    prompts = [tiny.make_random_prompt(model, scene) for scene in scenes]
    engine = fakes.make_engine(model, batch_rows=3)
    requests = [fakes.make_request(prompt, max_new_tokens=15, stop_ids={7, 8, 9}) for prompt in prompts]
    actual = [handle.ids for handle in fakes.run_requests(engine, requests)]
    assert actual == [reference_greedy(model, prompt, 15, stop_ids={7, 8, 9}) for prompt in prompts]
    assert tapes.num_replayed > 10


def test_beams_in_the_engine(monkeypatch):
    model = tiny.make_random_model(tiny.IDEFICS1)
    prompts = [tiny.make_random_prompt(model, scene) for scene in ("ttt", "1tt")]
    requests = [fakes.make_request(prompt, max_new_tokens=12, num_beams=3) for prompt in prompts]
    expected = [handle.ids for handle in fakes.run_requests(fakes.make_engine(model), requests)]
    monkeypatch.setattr(
        engine_module,
        "choose_decode_step",
        lambda model, cache, **_: CudaGraphDecode(model, cache, FakeCudaGraphs()),
    )
    assert [handle.ids for handle in fakes.run_requests(fakes.make_engine(model), requests)] == expected


def make_paged_case(layout, lengths, heads):
    """Random pages, page tables, last positions and queries, and the result of dense attention."""
    rng = torch.Generator().manual_seed(0)
    count = sum(-(-n // PAGE_SIZE) for n in lengths)
    numbers = iter((torch.randperm(count, generator=rng) + 1).tolist())
    width = max(-(-n // PAGE_SIZE) for n in lengths)
    tables = [[next(numbers) if PAGE_SIZE * j < n else 0 for j in range(width)] for n in lengths]
    shape = (count + 1, layout.num_kv_heads, PAGE_SIZE, layout.head_size)
    keys, values = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    q = torch.randn(len(lengths), heads, layout.head_size, generator=rng)
    expected = []
    for row, n in enumerate(lengths):
        k, v = (x[tables[row]].transpose(1, 2).flatten(0, 1)[:n] for x in (keys, values))
        queries = torch.zeros(n, heads, layout.head_size)
        queries[-1] = q[row]
        expected.append(
            DenseAttn(1, sliding_window=layout.sliding_window).self_attention(0, queries, k, v)[-1]
        )
    positions = torch.tensor(lengths) - 1
    return q, keys, values, torch.tensor(tables, dtype=torch.int32), positions, torch.stack(expected)


def fake_varlen_attention(q, k, v, starts, cu_seq_k, max_q, max_k, **given):
    """`varlen_attn` with pages as torch documents it, one row after another."""
    assert (
        cu_seq_k is None
        and max_q == 1
        and k.shape[1] == PAGE_SIZE
        and starts.tolist() == list(range(len(q) + 1))
    )
    assert given["enable_gqa"] and given["block_table"].dtype == given["seqused_k"].dtype == torch.int32
    back, ahead = given["window_size"]
    assert ahead in (-1, 0)
    out = []
    for query, length, pages in zip(
        q, given["seqused_k"].tolist(), given["block_table"].tolist(), strict=True
    ):
        assert length <= max_k
        first = 0 if back < 0 else max(0, length - 1 - back)
        own = [x[pages].flatten(0, 1)[first:length].transpose(0, 1)[None] for x in (k, v)]
        out.append(sdpa_attention(query[None, :, None], *own)[0, :, 0])
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 5, 16, 17, 40])
@pytest.mark.parametrize("way", [GatheredPages, PagedInPlace])
def test_rows_attend_to_their_pages(way, window, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen_attention)
    layout = KVCacheLayout(
        num_layers=1,
        num_kv_heads=2,
        head_size=8,
        num_cross_attention_layers=0,
        max_positions=99,
        vocab_size=9,
        sliding_window=window,
    )
    q, keys, values, tables, positions, expected = make_paged_case(layout, [1, 16, 17, 70, 33], heads=6)
    cache = SimpleNamespace(layout=layout)
    actual = way(cache, tables, positions, None, sdpa_attention).attend(q, keys, values)
    torch.testing.assert_close(actual, expected)


def test_pages_are_read_in_place_where_torch_does_it_right(monkeypatch):
    """The kernel is tried: one that raises or is wrong is not used."""
    layout = KVCacheLayout(
        num_layers=1,
        num_kv_heads=2,
        head_size=8,
        num_cross_attention_layers=0,
        max_positions=99,
        vocab_size=9,
    )
    assert not probe_in_place_attention(PagedKVCache(layout, 9, torch.float32, CPU))
    assert (
        choose_decode_attention(PagedKVCache(layout, 9, torch.bfloat16, CPU), sdpa_attention) is GatheredPages
    ), "a CPU has no such kernel"
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(9, 2, PAGE_SIZE, 8))
    cache = SimpleNamespace(keys=[on_gpu], layout=layout)
    for name in ("randn", "tensor"):
        made = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, made=made, device=None, **kwargs: made(*args, **kwargs)
        )

    def attend_as(kernel):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
        return choose_decode_attention(cache, sdpa_attention)

    def old(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, -1)):
        return q

    def wrong(q, k, v, *args, block_table, **given):
        return torch.zeros_like(q)

    def refusing(*args, block_table, **given):
        raise RuntimeError("pages of 256 positions")

    def right(*args, block_table, **given):
        return fake_varlen_attention(*args, block_table=block_table, **given)

    assert [attend_as(kernel) for kernel in (old, wrong, refusing, right)] == [
        *(GatheredPages, GatheredPages, GatheredPages, PagedInPlace)
    ]
    assert choose_decode_attention(cache, eager_attention) is GatheredPages, "a chosen backend is used"


@pytest.mark.parametrize("name", ATTENTION_BACKENDS)
def test_the_decode_step_on_a_cpu(name):
    """The native step if it is compiled and no other attention backend is set; else `TorchDecode`."""
    model = tiny.make_random_model(tiny.IDEFICS3)
    set_attention_backend(model, ATTENTION_BACKENDS[name])
    is_native = bool(available_instruction_sets("decode step")) and name == "sdpa"
    step = choose_decode_step(model, PagedKVCache(model.layout, 9, torch.float32, CPU))
    assert type(step) is (NativeDecode if is_native else TorchDecode)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@FAMILIES
@torch.inference_mode()
def test_cuda_graphs_equal_the_plain_step(raw, dtype):
    """On a GPU, with real CUDA graphs."""
    device = torch.device("cuda")
    model = tiny.make_random_model(raw).to(device, dtype)
    rows = make_sequences(tiny.make_random_model(raw), [1, 2, 5, 17, 33, 40, 9])
    for row in rows:
        row.cross_kv = tuple(type(layer)(*(x.to(device, dtype) for x in layer)) for layer in row.cross_kv)
    pages = 1 + sum(len(row.pages) for row in rows)
    caches = [PagedKVCache(model.layout, pages, dtype, device) for _ in range(2)]
    plain = TorchDecode(model, caches[0])
    with torch.inference_mode(False):
        graph = choose_decode_step(model, caches[1])
    assert isinstance(graph, CudaGraphDecode) and isinstance(graph.capture, CudaGraphRecorder)

    def both(some):
        places = some.positions.tolist()
        ids, positions, tables = (x.to(device) for x in (some.ids, some.positions, some.page_tables))
        inputs = DecodeInputs(ids, positions, tables, some.cross_kvs, max(places), min(places))
        expected, actual = plain(inputs), graph(inputs)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert (actual - expected).abs().max() < tolerance * expected.abs().max()
        return actual

    run_decode_steps(both, rows)


@pytest.mark.gpu
def test_the_engine_answers_on_a_gpu():
    model = tiny.make_random_model(tiny.IDEFICS3).cuda()
    prompts = [tiny.make_random_prompt(model, scene) for scene in ("t", "1tt", "tt3", "4t1t")]
    requests = [fakes.make_request(prompt, max_new_tokens=15, stop_ids={7, 8, 9}) for prompt in prompts]
    actual = [handle.ids for handle in fakes.run_requests(fakes.make_engine(model, batch_rows=3), requests)]
    assert actual == [reference_greedy(model, prompt, 15, stop_ids={7, 8, 9}) for prompt in prompts]
