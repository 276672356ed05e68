"""Lifetimes: `close`, `with`, `timeout=`, and processes that are forked from one with a loaded model."""

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import idefics
from idefics import BadCall, BadSetting, ModelClosed, RequestTimeout
from idefics.processing import picture_expansion

PIXELS = np.zeros((20, 30, 3), np.uint8)
STEP_SECONDS = 0.03  # seconds that a step of the slow model takes


@pytest.fixture
def vlm():
    with idefics.load("demo") as vlm:
        yield vlm


@pytest.fixture
def slow_model(vlm, monkeypatch):
    """A model whose answers take seconds."""
    step = vlm.engine.step

    def slowly():
        time.sleep(STEP_SECONDS)  # before it is looked at the time: what one step would do is late as well
        step()

    monkeypatch.setattr(vlm.engine, "step", slowly)
    return vlm


def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name == "idefics-engine"]


def endless_call(vlm):
    return dict.fromkeys(vlm.loaded_model.stop_ids, -100.0)


def wait_until_pages_are_free(engine):
    """Waits until nothing is running; returns whether all pages are free."""
    pages, until = engine.scheduler.page_pool, time.monotonic() + 5
    while time.monotonic() < until:
        with engine.condition:
            if not engine.is_busy:
                return pages.num_free_pages == pages.num_pages - 1
        time.sleep(STEP_SECONDS)
    return False


CALLS = [
    lambda vlm, **options: vlm.caption(PIXELS, max_new_tokens=400, stop=[], banned=["."], **options),
    lambda vlm, **options: vlm.ask([PIXELS] * 3, "What?", max_new_tokens=400, banned=["."], **options),
    lambda vlm, **options: vlm.generate(["The"], max_new_tokens=900, logit_bias=endless_call(vlm), **options),
    lambda vlm, **options: vlm.chat([idefics.user("Hi")], max_new_tokens=900, num_beams=2, **options),
    lambda vlm, **options: list(
        vlm.generate(["The"], max_new_tokens=900, logit_bias=endless_call(vlm), stream=True, **options)
    ),
    lambda vlm, **options: list(
        vlm.submit(vlm.prompt(["The"]), max_new_tokens=900, logit_bias=endless_call(vlm), **options)
    ),
    lambda vlm, **options: vlm.classify([PIXELS] * 40, ["a", "b"], **options),
    lambda vlm, **options: vlm.score(["word " * 500], [" a", " b"], **options),
]
NAMES = ["caption", "ask", "generate", "chat", "stream", "submit", "classify", "score"]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_a_call_ends_in_time_and_frees_what_it_used(slow_model, call):
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match=r"not finished after 0\.02 seconds \(timeout=0\.02\)") as caught:
        call(slow_model, timeout=0.02)
    assert time.monotonic() - began < 0.02 + 10 * STEP_SECONDS
    assert isinstance(caught.value, TimeoutError) and caught.value.seconds == 0.02
    assert wait_until_pages_are_free(slow_model.engine)
    assert slow_model.caption(PIXELS, max_new_tokens=2).usage.completion_tokens > 0  # and works on


def test_a_stream_gives_what_came_in_time(slow_model):
    stream = slow_model.generate(
        ["The"], max_new_tokens=900, logit_bias=endless_call(slow_model), stream=True, timeout=0.5
    )
    pieces = []
    with pytest.raises(RequestTimeout):
        pieces.extend(stream)
    assert stream.answer.text and 0 < len(stream.answer.tokens) < 40


def test_a_stream_in_asyncio_ends_in_time(slow_model):
    async def read():
        stream = slow_model.submit(
            slow_model.prompt(["The"]), max_new_tokens=900, logit_bias=endless_call(slow_model), timeout=0.2
        )
        async for _ in stream.deltas():
            pass

    began = time.monotonic()
    with pytest.raises(RequestTimeout):
        asyncio.run(read())
    assert time.monotonic() - began < 1.5


def test_a_stream_that_nobody_reads_ends_in_time(slow_model):
    stream = slow_model.generate(
        ["The"], max_new_tokens=900, logit_bias=endless_call(slow_model), stream=True, timeout=0.2
    )
    time.sleep(0.2 + 10 * STEP_SECONDS)
    assert wait_until_pages_are_free(slow_model.engine)
    with pytest.raises(RequestTimeout):
        list(stream)


def test_a_request_that_waits_ends_in_time(slow_model):
    """Neither its turn nor room in the queue comes before its time is over."""
    rows = slow_model.engine.config.batch_rows
    running = [
        slow_model.submit(slow_model.prompt(["The"]), max_new_tokens=900, logit_bias=endless_call(slow_model))
        for _ in range(rows)
    ]
    with pytest.raises(RequestTimeout):
        slow_model.generate(["The"], timeout=0.2)
    for stream in running:
        stream.close()


def test_a_picture_that_takes_too_long_is_left_behind(vlm, monkeypatch):
    monkeypatch.setattr(picture_expansion, "open_and_preprocess", lambda *_: time.sleep(2))
    began = time.monotonic()
    with pytest.raises(RequestTimeout):
        vlm.caption(PIXELS, timeout=0.1)
    with pytest.raises(RequestTimeout):
        vlm.caption(PIXELS, stream=True, timeout=0.1)
    with pytest.raises(RequestTimeout):
        vlm.classify(PIXELS, ["a", "b"], timeout=0.1)
    with pytest.raises(RequestTimeout):
        vlm.score([PIXELS, "x"], [" a"], timeout=0.1)
    assert time.monotonic() - began < 1.5


def test_enough_time_changes_nothing(vlm):
    assert vlm.caption(PIXELS, timeout=60).tokens == vlm.caption(PIXELS).tokens
    assert vlm.classify(PIXELS, ["a", "b"], timeout=60).best == vlm.classify(PIXELS, ["a", "b"]).best
    assert not vlm.engine._state_by_handle


@pytest.mark.parametrize("timeout", [0, -1, "x", float("nan"), True, float("inf")])
def test_a_timeout_is_a_number_above_0(vlm, timeout):
    with pytest.raises(BadSetting, match="timeout is"):
        vlm.caption(PIXELS, timeout=timeout)
    with pytest.raises(BadSetting, match="timeout is"):
        vlm.classify(PIXELS, ["a", "b"], timeout=timeout)


def test_closing_frees_the_thread_and_the_memory():
    before = len(engine_threads())
    vlm = idefics.load("demo")
    stream = vlm.caption(PIXELS, stream=True)
    assert next(stream)
    vlm.caption(PIXELS, choices=["yes", "no"])
    weights, cache = weakref.ref(vlm.engine.model), weakref.ref(vlm.engine.kv_cache)
    assert len(engine_threads()) == before + 1
    vlm.close()
    vlm.close()
    gc.collect()
    assert len(engine_threads()) == before
    assert weights() is None and cache() is None  # though `vlm` and `stream` are still there
    assert stream.answer.text


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_calls_of_a_closed_model_say_so(call):
    with idefics.load("demo") as vlm:
        other, prompt, biases = vlm.with_shots([]), vlm.prompt(["The"]), endless_call(vlm)
    with pytest.raises(ModelClosed, match="the model is closed: load it again"):
        call(vlm)
    with pytest.raises(ModelClosed):
        other.caption(PIXELS)
    with pytest.raises(ModelClosed):
        vlm.logits(prompt)
    with pytest.raises(ModelClosed):
        _ = vlm.memory
    with pytest.raises(ModelClosed):
        vlm.engine.clear_caches()
    assert biases


def test_closing_fails_what_is_under_way(slow_model):
    """An answer that was cut short would be taken for a whole one."""
    found = []

    def ask():
        try:
            slow_model.generate(["The"], max_new_tokens=900, logit_bias=endless_call(slow_model))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(5 * STEP_SECONDS)
    slow_model.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in found] == [ModelClosed] * 3


def test_a_stream_in_a_with_block_is_closed_after_it(slow_model):
    with slow_model.generate(
        ["The"], max_new_tokens=900, logit_bias=endless_call(slow_model), stream=True
    ) as stream:
        first = next(stream)
    assert stream.answer.finish == "cancelled" and stream.answer.text.startswith(first)
    assert wait_until_pages_are_free(slow_model.engine)
    assert list(stream) == []


def test_a_model_that_is_closed_by_an_error():
    with pytest.raises(KeyError), idefics.load("demo") as vlm:
        raise KeyError("x")
    with pytest.raises(ModelClosed):
        vlm.caption(PIXELS)


def test_a_forked_process_is_told_that_it_cannot_use_the_gpu(vlm):
    vlm.engine._device = torch.device("cuda")
    vlm.engine.reset_after_fork()
    with pytest.raises(
        ModelClosed, match="on a GPU, which a forked process cannot use: start the process with"
    ):
        vlm.caption(PIXELS)


FORK_SCRIPT = """
import os, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
import idefics
torch.set_num_threads(2)
pixels = np.zeros((20, 30, 3), np.uint8)
vlm = idefics.load("demo")
expected = vlm.caption(pixels).tokens
biases = dict.fromkeys(vlm.loaded_model.stop_ids, -100.0)
if sys.argv[1] == "busy":
    stream = vlm.generate(["The"], max_new_tokens=900, logit_bias=biases, stream=True)
    more = [vlm.caption([pixels] * 4, max_new_tokens=30) for _ in range(2)]
    other = threading.Thread(target=lambda: vlm.caption([pixels] * 64, max_new_tokens=30), daemon=True)
    other.start()
    next(stream)
for turn in range(5):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if sys.argv[1] == "busy":
                try:
                    list(stream)
                    assert len(stream.answer.tokens) == 900  # it was done by then
                except idefics.ModelClosed as error:
                    assert "submit the request again" in str(error)
            assert vlm.caption(pixels).tokens == expected
            assert vlm.classify(pixels, ["a", "b"]).best
            assert vlm.logits(vlm.prompt(["The"])).shape[0]
            again = idefics.load("demo")
            assert again.caption(pixels).tokens == expected
            vlm.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    until = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(pid, 9)
            print("hangs")
            break
        time.sleep(0.01)
    print(os.waitstatus_to_exitcode(status) if done else "killed")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_forked_process_answers_by_itself(when):
    done = subprocess.run(
        [sys.executable, "-c", FORK_SCRIPT, when], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.stdout.split() == ["0"] * 5, done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_is_not_pickled_but_what_goes_in_and_comes_out_is(vlm):
    stream = vlm.caption(PIXELS, stream=True)
    for what in (vlm, stream):
        with pytest.raises(BadCall, match="cannot be pickled or copied: load it in each process"):
            pickle.dumps(what)
    with pytest.raises(BadCall):
        copy.deepcopy(vlm)
    given = [idefics.user(idefics.Picture("a.png", detail="low"), "Hi"), idefics.Sampling(seed=3)]
    given += [idefics.Shot(idefics.Picture("a.png"), "b").answer, idefics.EngineConfig(batch_rows=3)]
    answer, ranking = vlm.caption(PIXELS, logprobs=True, top_logprobs=1), vlm.classify(PIXELS, ["a", "b"])
    assert pickle.loads(pickle.dumps([answer, ranking])) == [answer, ranking]
    back = pickle.loads(pickle.dumps(given))
    assert back[0].parts[0].source == "a.png" and back[1:] == given[1:]
