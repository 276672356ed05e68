"""Threads of the native step: several engines, changes of their number, forks; and refused models."""

import multiprocessing
import os
import subprocess
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref, c_int
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.random_sequences import (
    UnwrittenPages,
    make_decode_inputs,
    make_sequences,
    run_decode_steps,
    uncached_logits,
)
from idefics.engine.native.decode import NativeDecode, unsupported_reason
from idefics.native import library
from idefics.native.library import available_instruction_sets
from models.tiny import IDEFICS1, IDEFICS3, make_random_model

THREADS_FOLDER = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)


@pytest.fixture(autouse=True)
def restore_num_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def count_system_threads():
    """How many threads this process has, as Linux counts them, once none has begun or ended for a fifth of a second."""
    if not THREADS_FOLDER.exists():
        return 0
    counts = deque(maxlen=20)
    while len(counts) < 20 or len(set(counts)) > 1:
        counts.append(len(list(THREADS_FOLDER.iterdir())))
        time.sleep(0.01)
    return counts[0]


def make_native_step(model, rows):
    return NativeDecode(
        model.decoder_parts(), UnwrittenPages.allocate(model.layout, 1 + sum(len(row.pages) for row in rows))
    )


def assert_equals_uncached(model, rows):
    for row in rows:
        torch.testing.assert_close(torch.stack(row.logits), uncached_logits(model, row), rtol=0, atol=2e-4)


def test_several_engines_at_once():
    models = [make_random_model(raw) for raw in (IDEFICS1, IDEFICS3, IDEFICS1, IDEFICS3)]

    def answer(model):
        rows = make_sequences(model, [40, 7, 20])
        run_decode_steps(make_native_step(model, rows), rows)
        assert_equals_uncached(model, rows)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(answer, models))


def test_one_engine_for_several_callers():
    model = make_random_model(IDEFICS3)
    rows = make_sequences(model, [30] * 6)
    step = make_native_step(model, rows)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: run_decode_steps(step, [row]), rows))
    assert_equals_uncached(model, rows)


def test_number_of_threads_is_torchs():
    model = make_random_model(IDEFICS3)
    rows = make_sequences(model, [12])
    step = make_native_step(model, rows)
    there = {}
    for count in (1, 4, 2, 1, 3):
        torch.set_num_threads(count)
        rows[0].logits.append(step(make_decode_inputs(rows))[0])
        there[count] = count_system_threads()
    rows[0].ids = rows[0].ids[:5]
    assert_equals_uncached(model, rows)
    if THREADS_FOLDER.exists():
        assert {count: many - there[1] for count, many in there.items()} == {1: 0, 2: 1, 3: 2, 4: 3}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads():
    model = make_random_model(IDEFICS3)
    rows = make_sequences(model, [12])
    step = make_native_step(model, rows)
    rows[0].logits.append(step(make_decode_inputs(rows))[0])
    wanted = step(make_decode_inputs(rows))
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def child():
        off = (step(make_decode_inputs(rows)) - wanted).abs().max().item()
        sending.send((off, step._process_id == os.getpid()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert receiving.poll(60), "the child hangs"
    off, has_begun_anew = receiving.recv()
    assert off == 0
    assert has_begun_anew, "the threads of the process that was forked are not there"
    process.join()


def test_starting_threads_do_nothing_before_the_step(tmp_path):
    """A thread that starts while a step is prepared must not take a piece of it: the step would count it twice."""
    made, sources = tmp_path / "pool.so", Path(library.__file__).parent
    command = ["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", f"-I{sources}", "-o", made]
    try:
        subprocess.run(
            [*command, Path(__file__).with_name("pool_start.c"), *sources.glob("*.c"), "-lm"], check=True
        )
    except FileNotFoundError:
        pytest.skip("no C compiler")
    before, in_step = c_int(), c_int()
    CDLL(made).pool_start(3, 12, byref(before), byref(in_step))
    assert (before.value, in_step.value) == (0, 12)


def test_ids_beyond_the_vocabulary_are_refused():
    model = make_random_model(IDEFICS1)
    rows = make_sequences(model, [3])
    for wrong in (-1, model.layout.vocab_size):
        rows[0].ids[0] = wrong
        with pytest.raises(IndexError, match=str(wrong)):
            make_native_step(model, rows)(make_decode_inputs(rows))


def with_other_layer_kind(model):
    model.decoder_parts().layers[0].self_attn.q_proj = nn.Identity()
    return "Identity"


def with_bias(model):
    model.decoder_parts().layers[0].mlp.up_proj.bias = nn.Parameter(torch.zeros(80))
    return "bias"


def with_hook(model):
    model.decoder_parts().layers[0].mlp.register_forward_hook(lambda *_: None)
    return "hook"


def with_other_dtype(model):
    model.half()
    return "float16"


def with_transposed_weight(model):
    head = model.decoder_parts().lm_heads[0]
    head.weight = nn.Parameter(head.weight.t().contiguous().t())
    return "not contiguous"


def with_strided_weight(model):
    """Of the right dtype and size, but every second number of a larger tensor."""
    layer = model.decoder_parts().layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().repeat_interleave(2, dim=1)[:, ::2])
    return "not contiguous"


@pytest.mark.parametrize(
    "change",
    [
        with_other_layer_kind,
        with_bias,
        with_hook,
        with_other_dtype,
        with_transposed_weight,
        with_strided_weight,
    ],
)
def test_unsupported_models_are_explained(change):
    model = make_random_model(IDEFICS3)
    assert unsupported_reason(model, UnwrittenPages.allocate(model.layout, 2)) is None
    assert change(model) in unsupported_reason(model, UnwrittenPages.allocate(model.layout, 2))
