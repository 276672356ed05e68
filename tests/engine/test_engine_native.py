"""The native decode step: every instruction set of this machine, against the models' own forward pass."""

import pytest
import torch

from engine.random_sequences import (
    UNUSUAL_CONFIGS,
    UnwrittenPages,
    make_decode_inputs,
    make_sequences,
    run_decode_steps,
    uncached_logits,
)
from idefics.engine.native.decode import NativeDecode, unsupported_reason
from idefics.native.library import available_instruction_sets
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, make_random_model, merge_config

pytestmark = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)

CONFIG_BY_KIND = {
    "cross_attention": IDEFICS1,
    "cross-attention, a gate for each number": merge_config(
        IDEFICS1, alpha_type="vector", qk_layer_norms=False
    ),
    "cross-attention, one table": merge_config(IDEFICS1, additional_vocab_size=0),
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    "tied": merge_config(IDEFICS3, tie_word_embeddings=True),
    "gelu": merge_config(IDEFICS3, text_config={"hidden_act": "gelu"}),
    "tanh": merge_config(IDEFICS3, text_config={"hidden_act": "gelu_pytorch_tanh"}),
    "relu": merge_config(IDEFICS1, hidden_act="relu"),
    **UNUSUAL_CONFIGS,
}


@pytest.fixture(params=available_instruction_sets("decode step"), ids=lambda one: one.label)
def instruction_set(request):
    return request.param


@pytest.fixture(params=[1, 3])
def restore_num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_equals_uncached(model, rows, tolerance=2e-5):
    for row in rows:
        expected = uncached_logits(model, row)
        actual = torch.stack(row.logits)
        assert actual.isfinite().all()
        worst = (actual - expected).abs().max() / expected.abs().max()
        assert worst < tolerance


def make_native_step(model, rows, instructions=None):
    cache = UnwrittenPages.allocate(model.layout, 1 + sum(len(row.pages) for row in rows))
    assert unsupported_reason(model, cache) is None
    return NativeDecode(model.decoder_parts(), cache, instructions)


def test_the_given_instruction_set_is_used(instruction_set):
    model = make_random_model(CONFIG_BY_KIND["window"])
    step = make_native_step(model, make_sequences(model, [3]), instruction_set)
    assert str(step).startswith(f"C ({instruction_set.label}, ")


@pytest.mark.parametrize("kind", CONFIG_BY_KIND)
def test_equals_the_models_forward(kind, instruction_set):
    model = make_random_model(CONFIG_BY_KIND[kind])
    rows = make_sequences(model, [1, 2, 5, 17, 18, 33, 40, 9, 9])
    run_decode_steps(make_native_step(model, rows, instruction_set), rows)
    assert_equals_uncached(model, rows)


@pytest.mark.parametrize("kind", ["cross_attention", "window", "grouped"])
def test_any_number_of_rows_and_threads(kind, restore_num_threads, instruction_set):
    model = make_random_model(CONFIG_BY_KIND[kind])
    # Five kinds of image inputs: a call takes 16 rows, and row 16 must not use those of row 0.
    rows = make_sequences(model, [3] * 18, num_images=4)
    step = make_native_step(model, rows, instruction_set)
    for count in (17, 1, 16, 18, 2):
        some = rows[:count]
        for row, logits in zip(some, step(make_decode_inputs(some)), strict=True):
            row.logits = [*row.logits, logits] if len(row.logits) < 2 else row.logits
    for row in rows:
        row.ids = row.ids[: len(row.logits)]
    assert_equals_uncached(model, rows)


@pytest.mark.parametrize("kind", ["cross_attention", "window", "grouped"])
def test_long_contexts(kind, restore_num_threads, instruction_set):
    """Several splits of positions, whose parts are merged; with a window, some that no query attends to."""
    model = make_random_model(CONFIG_BY_KIND[kind])
    rows = make_sequences(model, [420, 130, 257])
    run_decode_steps(make_native_step(model, rows, instruction_set), rows)
    assert_equals_uncached(model, rows)
