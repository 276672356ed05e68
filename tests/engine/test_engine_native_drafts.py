"""Drafted tokens in the native decode step: rows of one sequence in one step have the bits that each has alone."""

import pytest
import torch

from engine.random_sequences import (
    FakeDecodeInputs,
    UnwrittenPages,
    make_decode_inputs,
    make_sequences,
)
from engine.test_engine_native_adapters import add_random_adapters
from engine.test_engine_native_dtypes import LAYER_FACTORY_BY_DTYPE, replace_linear_layers
from idefics.engine.native.decode import NativeDecode
from idefics.native.library import available_instruction_sets
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, make_random_model

pytestmark = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)
RAW_BY_KIND = {"cross_attention": IDEFICS1, "window": IDEFICS2, "grouped": IDEFICS3}


@pytest.fixture(params=available_instruction_sets("decode step"), ids=lambda one: one.label)
def instruction_set(request):
    return request.param


@pytest.fixture(params=[1, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def make_step(model, rows, instruction_set, dtype=torch.float32):
    cache = UnwrittenPages.allocate(model.layout, 1 + sum(len(row.pages) for row in rows))
    cache.keys, cache.values = ([pages.to(dtype) for pages in kind] for kind in (cache.keys, cache.values))
    return NativeDecode(model.decoder_parts(), cache, instruction_set)


def decode_alone(step, rows):
    """The logits of each sequence (N, V), one row a step."""
    for row in rows:
        while len(row.logits) < len(row.ids):
            row.logits += step(make_decode_inputs([row]))
    return [torch.stack(row.logits) for row in rows]


def decode_with_drafts(step, rows):
    """The same with drafts of random lengths, of some sequences in each step, most of them wrong from some id on."""
    rng, logits = torch.Generator().manual_seed(len(rows)), [[] for _ in rows]

    def random(count):
        return int(torch.randint(count, (), generator=rng))

    while unfinished := [index for index, row in enumerate(rows) if len(logits[index]) < len(row.ids)]:
        batch = [index for index in unfinished if random(3)] or unfinished
        inputs, num_valid = [], []
        for index in batch:
            row, start = rows[index], len(logits[index])
            count = min(1 + random(9), len(row.ids) - start)
            ids = row.ids[start : start + count].clone()
            num_valid.append(1 + random(count))
            ids[num_valid[-1] :] = random(20)
            inputs += [(id, position, row) for position, id in enumerate(ids, start)]
        result = iter(step(make_inputs(inputs)))
        for index, count in zip(batch, num_valid, strict=True):
            num_rows = sum(row is rows[index] for _, _, row in inputs)
            logits[index] += [next(result) for _ in range(num_rows)][:count]
    return [torch.stack(one) for one in logits]


def make_inputs(inputs):
    """The inputs of a step over ids at positions of sequences."""
    max_pages = max(len(row.pages) for _, _, row in inputs)
    tables = [row.pages + [0] * (max_pages - len(row.pages)) for _, _, row in inputs]
    adapters = torch.tensor([row.adapter for _, _, row in inputs], dtype=torch.int32)
    return FakeDecodeInputs(
        torch.stack([id for id, _, _ in inputs]),
        torch.tensor([position for _, position, _ in inputs]),
        torch.tensor(tables, dtype=torch.int32),
        [row.cross_kv for _, _, row in inputs],
        adapters if adapters.max() >= 0 else None,
    )


def assert_same_bits(model, rows, instruction_set, dtype=torch.float32):
    alone = decode_alone(make_step(model, rows, instruction_set, dtype), rows)
    drafted = decode_with_drafts(make_step(model, rows, instruction_set, dtype), rows)
    for one, other in zip(alone, drafted, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", RAW_BY_KIND)
def test_same_bits_in_long_contexts(kind, instruction_set, num_threads):
    """Drafts cross the ends of pages and of the 128 positions that are attended to together."""
    model = make_random_model(RAW_BY_KIND[kind])
    assert_same_bits(model, make_sequences(model, [270, 140, 30]), instruction_set)


@pytest.mark.parametrize("weights", LAYER_FACTORY_BY_DTYPE)
@pytest.mark.parametrize("kind", RAW_BY_KIND)
def test_same_bits_with_every_kind_of_weight(kind, weights, instruction_set):
    raw = RAW_BY_KIND[kind] | ({"additional_vocab_size": 0} if kind == "cross_attention" else {})
    model = replace_linear_layers(
        make_random_model(raw), lambda layer: LAYER_FACTORY_BY_DTYPE[weights](layer)[0]
    )
    dtype = torch.float16 if weights.startswith("int") else torch.float32
    with torch.inference_mode():
        assert_same_bits(model, make_sequences(model, [40, 21]), instruction_set, dtype)


@pytest.mark.parametrize("kind", RAW_BY_KIND)
def test_same_bits_with_adapters(kind, instruction_set):
    model = make_random_model(RAW_BY_KIND[kind])
    add_random_adapters(model)
    rows = make_sequences(model, [40, 33, 21, 35])
    for row, adapter in zip(rows, (-1, 0, 2, 2), strict=True):
        row.adapter = adapter
    assert_same_bits(model, rows, instruction_set)
