"""Threads of the native step: several engines at once, a change of their number, forks; what is refused."""

import multiprocessing
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref, c_int
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.native_rows import Pages, expected, read, rows_of, sequences
from idefics.engine.native import NativeDecode, instruction_sets, library, why_not
from models.tiny import IDEFICS1, IDEFICS3, model_of

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the native step was not compiled")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def system_threads():
    """How many threads this process has, as Linux counts them."""
    return len(list(TASKS.iterdir())) if TASKS.exists() else 0


def step_of(model, rows):
    return NativeDecode(model.stack(), Pages.of(model.layout, 1 + sum(len(row.pages) for row in rows)))


def agree(model, rows):
    for row in rows:
        torch.testing.assert_close(torch.stack(row.logits), expected(model, row), rtol=0, atol=2e-4)


def test_several_engines_at_once():
    models = [model_of(raw) for raw in (IDEFICS1, IDEFICS3, IDEFICS1, IDEFICS3)]

    def answer(model):
        rows = sequences(model, [40, 7, 20])
        read(step_of(model, rows), rows)
        agree(model, rows)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(answer, models))


def test_one_engine_for_several_callers():
    model = model_of(IDEFICS3)
    rows = sequences(model, [30] * 6)
    step = step_of(model, rows)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: read(step, [row]), rows))
    agree(model, rows)


def test_threads_are_torchs():
    model = model_of(IDEFICS3)
    rows = sequences(model, [12])
    step = step_of(model, rows)
    there = {}
    for count in (1, 4, 2, 1, 3):
        torch.set_num_threads(count)
        rows[0].logits.append(step(rows_of(rows))[0])
        there[count] = system_threads()
    rows[0].ids = rows[0].ids[:5]
    agree(model, rows)
    if TASKS.exists():
        assert {count: many - there[1] for count, many in there.items()} == {1: 0, 2: 1, 3: 2, 4: 3}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_reads_on_by_itself():
    model = model_of(IDEFICS3)
    rows = sequences(model, [12])
    step = step_of(model, rows)
    rows[0].logits.append(step(rows_of(rows))[0])
    wanted = step(rows_of(rows))
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def child():
        off = (step(rows_of(rows)) - wanted).abs().max().item()
        sending.send((off, step._process == os.getpid()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert receiving.poll(60), "the child hangs"
    off, has_begun_anew = receiving.recv()
    assert off == 0
    assert has_begun_anew, "the threads of the process that was forked are not there"
    process.join()


def test_threads_that_start_do_nothing_before_the_step(tmp_path):
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
    model = model_of(IDEFICS1)
    rows = sequences(model, [3])
    for wrong in (-1, model.layout.vocabulary):
        rows[0].ids[0] = wrong
        with pytest.raises(IndexError, match=str(wrong)):
            step_of(model, rows)(rows_of(rows))


def another_kind(model):
    model.stack().layers[0].self_attn.q_proj = nn.Identity()
    return "Identity"


def a_bias(model):
    model.stack().layers[0].mlp.up_proj.bias = nn.Parameter(torch.zeros(80))
    return "bias"


def a_hook(model):
    model.stack().layers[0].mlp.register_forward_hook(lambda *_: None)
    return "hook"


def another_dtype(model):
    model.half()
    return "float16"


def transposed(model):
    head = model.stack().heads[0]
    head.weight = nn.Parameter(head.weight.t().contiguous().t())
    return "one piece"


def scattered(model):
    """Of the right kind and size, but every second number of a larger one."""
    layer = model.stack().layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().repeat_interleave(2, dim=1)[:, ::2])
    return "one piece"


@pytest.mark.parametrize("change", [another_kind, a_bias, a_hook, another_dtype, transposed, scattered])
def test_what_cannot_be_read_is_said(change):
    model = model_of(IDEFICS3)
    assert why_not(model, Pages.of(model.layout, 2)) is None
    assert change(model) in why_not(model, Pages.of(model.layout, 2))


def test_a_library_of_other_files_is_not_used(tmp_path):
    source = tmp_path / "other.c"
    source.write_text("int native_layout(void) { return -1; }")
    made = tmp_path / "other.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", made], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    assert CDLL(made).native_layout() == -1
    assert library.declared(made) is None
    assert library.declared(source) is None  # no library at all
