"""`submit` never waits, and its stream gives deltas in asyncio: the interface that the server uses."""

import asyncio
import contextlib
import gc
import threading
from dataclasses import replace

import PIL.Image
import pytest

import idefics
from idefics.errors import BadSetting, EngineBusy, PromptTooLong
from idefics.messages import user
from idefics.prompt import Prompt

LONG_OPTIONS = {"max_new_tokens": 200, "temperature": 2.0, "seed": 1}


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.fixture(scope="module")
def prompt(vlm):
    shown = PIL.Image.new("RGB", (96, 96), "white")
    shown.paste("red", (30, 30, 60, 60))
    return vlm.prompt([user(idefics.Picture(shown), "What is this?")])


@pytest.fixture
def step_semaphore(vlm, monkeypatch):
    """The engine takes a step for each release of the semaphore, and answers end at their limit alone."""
    allowed, run = threading.Semaphore(0), vlm.engine.model_runner.run

    def slowly(plan):
        allowed.acquire(timeout=10)
        return run(plan)

    monkeypatch.setattr(vlm.engine.model_runner, "run", slowly)
    monkeypatch.setattr(vlm.loaded_model, "stop_ids", frozenset())
    yield allowed
    allowed.release(1000)
    wait_until_idle(vlm)


def wait_until_idle(vlm):
    with vlm.engine.condition:
        assert vlm.engine.condition.wait_for(lambda: not vlm.engine.is_busy, timeout=10)
    assert not any(vlm.engine.scheduler.page_pool.ref_counts)


def drain_stream(stream):
    for _ in stream:
        pass
    return stream.answer


async def collect_deltas(stream):
    return [delta async for delta in stream.deltas()]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 40, "logprobs": True, "top_logprobs": 2},
        {**LONG_OPTIONS, "logprobs": True},
        {**LONG_OPTIONS, "stop": [" a", "e t"], "logprobs": True},
        {"num_beams": 3, "logprobs": True, "max_new_tokens": 20},
    ],
    ids=["greedy", "drawn", "stopped", "beams"],
)
def test_concatenated_deltas_are_the_answer(vlm, prompt, options):
    stream = vlm.submit(prompt, **options)
    deltas, answer = asyncio.run(collect_deltas(stream)), stream.answer
    assert (
        "".join(delta.text for delta in deltas)
        == answer.text
        == drain_stream(vlm.submit(prompt, **options)).text
    )
    assert sum((delta.tokens for delta in deltas), ()) == answer.tokens
    assert sum((delta.logprobs for delta in deltas), ()) == answer.logprobs
    if answer.top_logprobs is not None:
        assert sum((delta.top_logprobs for delta in deltas), ()) == answer.top_logprobs
        best = [alternatives[0] for alternatives in answer.top_logprobs]
        assert [(one.token, one.logprob) for one in best] == list(
            zip(answer.tokens, answer.logprobs, strict=True)
        ), "greedy"
    assert all(delta.text for delta in deltas[:-1])
    assert answer.usage.completion_tokens == len(answer.tokens)


def test_without_logprobs_there_are_none(vlm, prompt):
    deltas = asyncio.run(collect_deltas(vlm.submit(prompt, max_new_tokens=4)))
    assert deltas
    assert all(delta.logprobs is None for delta in deltas)


def test_tokens_without_text_are_not_lost(vlm, prompt):
    stream = vlm.submit(prompt, stop=["."], max_new_tokens=40)
    deltas = asyncio.run(collect_deltas(stream))
    assert stream.answer.finish == "stop"
    assert deltas[-1].text == "", "the token of the stop string"
    assert deltas[-1].tokens == stream.answer.tokens[-1:]


def test_many_asyncio_tasks_read_at_once(vlm, prompt):
    async def all_of_them():
        return await asyncio.gather(
            *(collect_deltas(vlm.submit(prompt, **{**LONG_OPTIONS, "seed": n})) for n in range(5))
        )

    together = asyncio.run(all_of_them())
    for seed, deltas in enumerate(together):
        alone = drain_stream(vlm.submit(prompt, **{**LONG_OPTIONS, "seed": seed}))
        assert "".join(delta.text for delta in deltas) == alone.text


def test_a_task_that_is_cancelled_cancels_its_answer(vlm, prompt, step_semaphore):
    stream = vlm.submit(prompt, **LONG_OPTIONS)

    async def leave():
        task = asyncio.create_task(collect_deltas(stream))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert stream.answer.finish == "cancelled"
    assert stream.answer.tokens == ()


def test_close_ends_an_answer_that_another_task_reads(vlm, prompt, step_semaphore):
    stream = vlm.submit(prompt, **LONG_OPTIONS)
    step_semaphore.release(6)

    async def close_after_two():
        seen = []
        async for delta in stream.deltas():
            seen.append(delta)
            if len(seen) == 2:
                stream.close()
        return seen

    seen = asyncio.run(close_after_two())
    assert stream.answer.finish == "cancelled"
    assert "".join(delta.text for delta in seen) == stream.answer.text
    step_semaphore.release(1000)
    wait_until_idle(vlm)


def test_an_abandoned_stream_keeps_the_text_so_far(vlm, prompt):
    stream = vlm.submit(prompt, **LONG_OPTIONS)

    async def leave():
        async with contextlib.aclosing(stream.deltas()) as deltas:
            return await anext(deltas)

    delta = asyncio.run(leave())
    assert stream.answer.text == delta.text
    assert stream.answer.tokens == delta.tokens
    assert stream.answer.finish == "cancelled"
    wait_until_idle(vlm)


def test_deltas_keep_their_stream_alive(vlm, prompt):
    async def read():
        deltas = vlm.submit(prompt, **LONG_OPTIONS).deltas()
        gc.collect()
        return [delta async for delta in deltas]

    assert (
        "".join(delta.text for delta in asyncio.run(read()))
        == drain_stream(vlm.submit(prompt, **LONG_OPTIONS)).text
    )


def test_a_full_queue_raises_at_once(vlm, prompt, step_semaphore, monkeypatch):
    monkeypatch.setattr(vlm.engine.scheduler, "config", replace(vlm.engine.scheduler.config, waiting=1))
    streams = [vlm.submit(prompt, **LONG_OPTIONS)]
    with pytest.raises(EngineBusy):
        streams += [vlm.submit(prompt, **LONG_OPTIONS) for _ in range(2)]
    for stream in streams:
        stream.close()
        assert stream.answer.finish == "cancelled"


def test_wrong_options_raise_at_once(vlm, prompt):
    with pytest.raises(BadSetting, match="temperature is 9"):
        vlm.submit(prompt, temperature=9)
    with pytest.raises(TypeError, match="detail"):
        vlm.submit(prompt, detail="low")
    with pytest.raises(PromptTooLong):
        vlm.prompt(["word " * 3000])
    longest = vlm.engine.model.layout.max_positions  # no room for an answer
    with pytest.raises(PromptTooLong):
        vlm.submit(Prompt((prompt.ids * longest)[:longest], (), (), (-1,) * longest))


def test_an_error_comes_after_the_text_so_far(vlm, prompt, monkeypatch, step_semaphore):
    stream = vlm.submit(prompt, **LONG_OPTIONS)
    detokenizer, count = stream._generation.detokenizer, 0
    push = detokenizer.push_token

    def third(token):
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("broken")
        return push(token)

    monkeypatch.setattr(detokenizer, "push_token", third)
    step_semaphore.release(10)
    seen = []

    async def read():
        async for delta in stream.deltas():
            seen.append(delta)

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(read())
    assert len(sum((delta.tokens for delta in seen), ())) <= 2
