"""Request handles: wait, iterate, cancel, await; and the lifetime of the engine's thread."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from engine.fakes import (
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_request,
    make_tiles,
    wait_until_idle,
)
from engine.reference_decoding import reference_greedy
from idefics.engine import engine_thread
from idefics.errors import EngineBusy

PROMPT = make_prompt("inline", 5, 6, 7)


@pytest.fixture
def engine():
    made = make_engine("inline", waiting=4)
    yield made
    made.close()


class PausedEngine:
    """Blocks the engine in its next forward pass until `set` is called."""

    def __init__(self, engine, monkeypatch):
        self.resume_event, self.reached_event, forward = (
            threading.Event(),
            threading.Event(),
            engine.model.forward,
        )
        self.set = self.resume_event.set

        def slowly(*given):
            self.reached_event.set()
            self.resume_event.wait(10)
            return forward(*given)

        monkeypatch.setattr(engine.model, "forward", slowly)

    def until_reached(self):
        assert self.reached_event.wait(10)


def test_ids_come_one_by_one(engine):
    handle = engine.submit(make_request(PROMPT, max_new_tokens=30))
    assert list(handle) == handle.ids == reference_greedy(engine.model, PROMPT, 30)
    assert list(handle) == handle.ids, "again, from the beginning"
    assert handle.finish_reason == "length"


def test_leaving_a_loop_cancels(engine):
    handle = engine.submit(make_request(PROMPT, max_new_tokens=100))
    for _ in handle:
        break
    assert handle.finish_reason == "cancelled"
    wait_until_idle(engine)


def test_waiting_and_running_requests_may_be_cancelled(monkeypatch):
    engine = make_engine("inline", batch_rows=1)
    go = PausedEngine(engine, monkeypatch)
    running, waiting, last = (engine.submit(make_request(PROMPT, max_new_tokens=5)) for _ in range(3))
    go.until_reached()
    waiting.cancel()
    running.cancel()
    assert (running.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
    go.set()
    assert last.result().ids == reference_greedy(make_fake_model("inline"), PROMPT, 5)
    assert running.ids == waiting.ids == []
    last.cancel()
    assert last.finish_reason == "length", "what is done stays as it is"
    wait_until_idle(engine)


def test_wait_with_a_timeout(engine, monkeypatch):
    go = PausedEngine(engine, monkeypatch)
    handle = engine.submit(make_request(PROMPT, max_new_tokens=5))
    assert not handle.wait(timeout=0.01)
    assert not handle.is_done
    go.set()
    assert handle.wait()


def test_an_interrupt_cancels_what_is_waited_for(engine, monkeypatch):
    go = PausedEngine(engine, monkeypatch)
    handle = engine.submit(make_request(PROMPT))

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(handle._done_event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    assert handle.finish_reason == "cancelled"
    go.set()
    wait_until_idle(engine)


def test_the_queue_is_bounded_and_may_be_waited_for(monkeypatch):
    engine = make_engine("inline", waiting=2, batch_rows=1)
    go = PausedEngine(engine, monkeypatch)
    handles = [engine.submit(make_request(PROMPT, max_new_tokens=3))]
    go.until_reached()  # it runs, and the queue is empty
    handles += [engine.submit(make_request(PROMPT, max_new_tokens=3)) for _ in range(2)]
    with pytest.raises(EngineBusy, match="2 requests"):
        engine.submit(make_request(PROMPT))
    late, is_waiting, wait = [], threading.Event(), engine.condition.wait

    def told(*given):
        is_waiting.set()
        return wait(*given)

    monkeypatch.setattr(engine.condition, "wait", told)
    thread = threading.Thread(
        target=lambda: late.append(engine.submit(make_request(PROMPT, max_new_tokens=3), wait=True))
    )
    thread.start()
    assert is_waiting.wait(10)
    assert not late
    go.set()
    thread.join(10)
    assert [len(handle.result().ids) for handle in (*handles, *late)] == [3] * 4


def test_an_error_ends_its_own_request_alone(engine, monkeypatch):
    """Errors in encoding, in the forward pass and in `on_token`: the other requests get their answers."""
    prompts = make_mixed_prompts("inline")[:6]
    bad_picture = make_prompt("inline", 5, make_tiles("bad", size=7), 6)
    encode, forward = engine.model.encode, engine.model.forward

    def picky_encode(frames):
        if frames.shape[-1] == 7:
            raise ValueError("no such picture")
        return encode(frames)

    def picky_forward(x, positions, attn):
        if (x == engine.model.embedding.weight[33]).all(-1).any():
            raise ValueError("no such token")
        return forward(x, positions, attn)

    def watch(id):
        raise ValueError("no such end")

    monkeypatch.setattr(engine.model, "encode", picky_encode)
    monkeypatch.setattr(engine.model, "forward", picky_forward)
    good = [
        engine.submit(make_request(prompt, max_new_tokens=9, banned_ids={33}), wait=True)
        for prompt in prompts
    ]
    bad = [
        engine.submit(one, wait=True)
        for one in (
            make_request(bad_picture, max_new_tokens=9),
            make_request(make_prompt("inline", 3, 33, 4), max_new_tokens=9),
            make_request(make_prompt("inline", 3), on_token=watch),
        )
    ]
    more = engine.submit(make_request(prompts[4], max_new_tokens=9, banned_ids={33}), wait=True)
    for handle, why in zip(bad, ("no such picture", "no such token", "no such end"), strict=True):
        with pytest.raises(ValueError, match=why):
            handle.result()
        assert handle.is_done and handle.finish_reason is None
    monkeypatch.undo()
    for handle in (*good, more):
        prompt = handle.request.prompt
        assert handle.result().ids == reference_greedy(engine.model, prompt, 9, banned_ids={33})
    wait_until_idle(engine)


def test_a_sampler_that_fails_fails_its_own_row_alone(engine, monkeypatch):
    from idefics.engine import sampler

    draw = sampler.Sampler._draw_tokens

    def picky(self, logits):
        if any(request.sampling.seed == 13 for request in self.requests):
            raise ValueError("unlucky")
        return draw(self, logits)

    alone = engine.submit(make_request(PROMPT, max_new_tokens=9, temperature=1.0, seed=5)).result().ids
    monkeypatch.setattr(sampler.Sampler, "_draw_tokens", picky)
    handles = [
        engine.submit(make_request(PROMPT, max_new_tokens=9, temperature=1.0, seed=n)) for n in (5, 13)
    ]
    assert handles[0].result().ids == alone
    with pytest.raises(ValueError, match="unlucky"):
        handles[1].result()
    wait_until_idle(engine)


def test_an_error_of_the_engine_itself_fails_all_requests(engine, monkeypatch):
    monkeypatch.setattr(engine.scheduler, "schedule", lambda: 1 / 0)
    handles = [engine.submit(make_request(PROMPT)) for _ in range(3)]
    for handle in handles:
        with pytest.raises(ZeroDivisionError):
            handle.result()
    monkeypatch.undo()
    assert engine.submit(make_request(PROMPT, max_new_tokens=4)).result().ids == reference_greedy(
        engine.model, PROMPT, 4
    )
    wait_until_idle(engine)


def test_asyncio_iterates_awaits_and_cancels(engine):
    slow = reference_greedy(engine.model, PROMPT, 20)

    async def iterate():
        return [id async for id in engine.submit(make_request(PROMPT, max_new_tokens=20))]

    async def wait():
        return (await engine.submit(make_request(PROMPT, max_new_tokens=20))).ids

    async def everything():
        left = engine.submit(make_request(PROMPT, max_new_tokens=150))
        task = asyncio.create_task(collect(left))
        while len(left.ids) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left.finish_reason == "cancelled"
        return await asyncio.gather(iterate(), wait())

    async def collect(handle):
        async for _ in handle:
            pass

    assert asyncio.run(everything()) == [slow, slow]
    wait_until_idle(engine)


def test_asyncio_raises_errors(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "forward", lambda *given: 1 / 0)

    async def wait():
        await engine.submit(make_request(PROMPT))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(wait())


def test_the_callers_thread_keeps_its_modes(engine):
    handle = engine.submit(make_request(PROMPT, max_new_tokens=3))
    assert [torch.is_inference_mode_enabled() for _ in handle] == [False] * 3
    assert torch.is_grad_enabled()


def engine_threads():
    return [thread for thread in threading.enumerate() if thread.name == "idefics-engine"]


def wait_until_threads_end(some, seconds=5):
    until = time.monotonic() + seconds
    while any(thread.is_alive() for thread in some) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(thread.is_alive() for thread in some)


def test_the_thread_lives_while_there_is_work(monkeypatch):
    monkeypatch.setattr(engine_thread, "IDLE_SECONDS", 0.05)
    before = set(engine_threads())
    engine = make_engine("inline")
    assert set(engine_threads()) <= before  # one of an earlier test may end now

    def thread_of_an_answer():
        seen = set()
        watch = lambda id: seen.add(threading.current_thread())  # noqa: E731 (it adds, and says no)
        assert engine.submit(make_request(PROMPT, max_new_tokens=3, on_token=watch)).result().ids
        (mine,) = seen
        return mine

    mine = thread_of_an_answer()
    assert mine not in before
    assert wait_until_threads_end([mine], 60)
    assert thread_of_an_answer() is not mine, "a new one is started"


def test_a_dropped_engine_ends_its_thread(monkeypatch):
    monkeypatch.setattr(engine_thread, "IDLE_SECONDS", 60)
    before = set(engine_threads())
    engine = make_engine("inline")
    engine.submit(make_request(PROMPT, max_new_tokens=3)).result()
    mine, dropped = set(engine_threads()) - before, weakref.ref(engine)
    wait_until_idle(engine)
    del engine
    for _ in range(100):
        gc.collect()
        if dropped() is None:
            break
        time.sleep(0.01)
    assert dropped() is None
    assert wait_until_threads_end(mine)


def test_the_interpreter_exits_during_generation():
    code = """
import sys
sys.path[:0] = {path!r}
from engine.fakes import make_engine, make_prompt, make_request
handle = make_engine("inline").submit(make_request(make_prompt("inline", 5), max_new_tokens=150))
next(iter(handle))
keep = make_engine("inline").submit(make_request(make_prompt("inline", 5), max_new_tokens=150))
print("bye")
"""
    done = subprocess.run(
        [sys.executable, "-c", code.format(path=sys.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")
