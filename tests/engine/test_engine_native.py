"""The native decode step: every instruction set that this machine has, against the models' own pass."""

import pytest
import torch

from engine.native_rows import SHAPES, Pages, expected, read, rows_of, sequences
from idefics.engine.native import NativeDecode, instruction_sets, why_not
from models.tiny import IDEFICS1, IDEFICS2, IDEFICS3, changed, model_of

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the native step was not compiled")

KINDS = {
    "beside": IDEFICS1,
    "beside, a gate for each number": changed(IDEFICS1, alpha_type="vector", qk_layer_norms=False),
    "beside, one table": changed(IDEFICS1, additional_vocab_size=0),
    "window": IDEFICS2,
    "grouped": IDEFICS3,
    "tied": changed(IDEFICS3, tie_word_embeddings=True),
    "gelu": changed(IDEFICS3, text_config={"hidden_act": "gelu"}),
    "tanh": changed(IDEFICS3, text_config={"hidden_act": "gelu_pytorch_tanh"}),
    "relu": changed(IDEFICS1, hidden_act="relu"),
    **SHAPES,
}


@pytest.fixture(params=instruction_sets())
def instructions(request):
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def agree(model, rows, tolerance=2e-5):
    for row in rows:
        wanted = expected(model, row)
        got = torch.stack(row.logits)
        assert got.isfinite().all()
        worst = (got - wanted).abs().max() / wanted.abs().max()
        assert worst < tolerance


def step_of(model, rows, instructions=None):
    cache = Pages.of(model.layout, 1 + sum(len(row.pages) for row in rows))
    assert why_not(model, cache) is None
    return NativeDecode(model.stack(), cache, instructions)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_models_own_pass(kind, instructions):
    model = model_of(KINDS[kind])
    rows = sequences(model, [1, 2, 5, 17, 18, 33, 40, 9, 9])
    read(step_of(model, rows, instructions), rows)
    agree(model, rows)


@pytest.mark.parametrize("kind", ["beside", "window", "grouped"])
def test_any_number_of_rows_and_threads(kind, threads, instructions):
    model = model_of(KINDS[kind])
    # Five kinds of what a row sees: a call takes 16 rows, and row 16 must not see what row 0 does.
    rows = sequences(model, [3] * 18, pictures=4)
    step = step_of(model, rows, instructions)
    for count in (17, 1, 16, 18, 2):
        some = rows[:count]
        for row, logits in zip(some, step(rows_of(some)), strict=True):
            row.logits = [*row.logits, logits] if len(row.logits) < 2 else row.logits
    for row in rows:
        row.ids = row.ids[: len(row.logits)]
    agree(model, rows)


@pytest.mark.parametrize("kind", ["beside", "window", "grouped"])
def test_long_contexts(kind, threads, instructions):
    """Several stretches of positions, whose parts are joined; with a window, some that nobody sees."""
    model = model_of(KINDS[kind])
    rows = sequences(model, [420, 130, 257])
    read(step_of(model, rows, instructions), rows)
    agree(model, rows)
