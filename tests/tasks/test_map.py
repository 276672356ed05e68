"""`map`: rows in, results out, lazily and with a bounded number in hand."""

import asyncio
import threading
import time

import PIL.Image
import pytest

import idefics
from idefics.demo import pictures
from idefics.errors import BadPicture, BadPrompt, BadSetting, ModelClosed, RequestTimeout, UnknownArgument

PICTURES = pictures()
LABELS = ["puppy", "tower", "statue"]


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


def becomes_idle(vlm):
    """Whether the engine has nothing to do, at the latest after the step that is running."""
    deadline = time.monotonic() + 20
    while vlm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.01)
    return not vlm.engine.is_busy


def texts(results):
    return [str(done.result) for done in results]


def test_results_equal_those_of_the_task(vlm):
    assert texts(vlm.map(PICTURES)) == [str(one) for one in vlm.caption(PICTURES)]
    question = "Is it day or night?"
    assert texts(vlm.map(PICTURES, "ask", prompt=question)) == [
        str(one) for one in vlm.ask(PICTURES, question)
    ]
    begun = list(vlm.map(PICTURES[:2], "complete", prompt="This is an image of"))
    assert texts(begun) == [str(one) for one in vlm.complete(PICTURES[:2], "This is an image of")]
    for calibrated in (False, True):
        rankings = vlm.map(PICTURES, "classify", labels=LABELS, calibrated=calibrated)
        expected = vlm.classify(PICTURES, LABELS, calibrated=calibrated)
        for done, one in zip(rankings, expected, strict=True):
            scores = {label.label: label.logprob for label in one.labels}
            assert done.result.best == one.best
            # Rounding depends on which rows were computed together.
            assert {label.label: label.logprob for label in done.result} == pytest.approx(scores, abs=1e-3)


def test_shots_and_options_are_those_of_the_tasks(vlm):
    shots = idefics.read_shots(PICTURES[0].with_name("shots.jsonl"))
    with_shots = vlm.with_shots(shots)
    assert texts(with_shots.map(PICTURES[:2])) == [str(one) for one in with_shots.caption(PICTURES[:2])]
    answers = [done.result for done in vlm.map(PICTURES[:2], max_new_tokens=3, logprobs=True)]
    expected = vlm.caption(PICTURES[:2], max_new_tokens=3, logprobs=True)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert all(len(one.logprobs) == 3 for one in answers)


def test_a_row_may_have_a_prompt_of_its_own(vlm):
    rows = [
        {"image": PICTURES[0], "prompt": "Is it day or night?", "sku": 7},
        {"image": PICTURES[0]},
        PICTURES[0],
    ]
    results = list(vlm.map(rows, "ask", prompt="What color is the ground?"))
    assert texts(results) == ["Night.", "Gray.", "Gray."]
    assert [done.index for done in results] == [0, 1, 2]
    assert results[0].row is rows[0]


def test_unordered_results_name_their_rows(vlm):
    results = list(vlm.map(PICTURES * 3, ordered=False))
    assert sorted(done.index for done in results) == list(range(len(PICTURES) * 3))
    expected = [str(one) for one in vlm.caption(PICTURES)]
    assert all(str(done.result) == expected[done.index % len(PICTURES)] for done in results)


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_are_taken_only_as_results_are_read(vlm, ordered):
    taken = 0

    def rows():
        nonlocal taken
        while True:
            taken += 1
            yield PICTURES[taken % len(PICTURES)]

    results = vlm.map(rows(), max_new_tokens=2, ordered=ordered)
    assert taken == 0
    most = 2 * vlm.engine.config.batch_rows + 4
    for number in range(1, 101):
        next(results)
        assert taken <= number + most
    results.close()
    assert becomes_idle(vlm)


def test_rows_are_computed_together(vlm):
    """Some answers are ready before the last row is taken, and several are in the engine at once."""
    busy = []

    def rows():
        for picture in PICTURES * 3:
            busy.append(len(vlm.engine._state_by_handle))
            yield picture

    list(vlm.map(rows()))
    assert max(busy) >= vlm.engine.config.batch_rows


def test_an_error_about_a_row_is_returned_or_raised_with_its_number(vlm):
    rows = [PICTURES[0], "missing.png", b"no picture", {"picture": 1}, {"image": PICTURES[1], "prompt": " "}]
    results = list(vlm.map(rows, "ask", prompt="Is it day or night?", on_error="return"))
    assert [type(done.result).__name__ for done in results] == [
        "Answer",
        "BadPicture",
        "BadPicture",
        "BadPrompt",
        "BadPrompt",
    ]
    assert "its keys are picture" in str(results[3].result)
    assert results[1].result.__traceback__ is None
    with pytest.raises(BadPicture, match=r"row 2: missing.png: no such file"):
        list(vlm.map(rows, "ask", prompt="Is it day or night?"))
    assert becomes_idle(vlm)


def test_arguments_are_checked_before_a_row_is_taken(vlm):
    def no_rows():
        raise AssertionError("a row was taken")
        yield

    for arguments, options, error, text in (
        (["paint"], {}, BadSetting, "task is 'paint'"),
        (["ask"], {"prompt": " "}, BadPrompt, "question"),
        (["caption"], {"prompt": "Hi"}, BadPrompt, "caption takes no prompt"),
        (["classify"], {}, BadSetting, "no labels given"),
        (["classify"], {"labels": ["one"]}, BadSetting, "needs 2 to"),
        (["classify"], {"labels": LABELS, "seed": 3}, BadSetting, "seed is an option of tasks that write"),
        (["caption"], {"labels": LABELS}, BadSetting, "labels is an option of 'classify'"),
        (["caption"], {"temperature": -1}, BadSetting, "temperature"),
        (["caption"], {"on_error": "ignore"}, BadSetting, "on_error"),
        (["caption"], {"ordered": 1}, BadSetting, "ordered"),
        (["caption"], {"max_tokens": 1}, UnknownArgument, "did you mean"),
    ):
        with pytest.raises(error, match=text):
            vlm.map(no_rows(), *arguments, **options)
    with pytest.raises(BadPrompt, match="no question given"):
        list(vlm.map(PICTURES[:1], "ask"))


def test_the_time_limit_is_of_each_row(vlm):
    started = time.monotonic()
    results = list(vlm.map([PICTURES[0]] * 40, "write", max_new_tokens=60, timeout=30.0, on_error="return"))
    assert not any(isinstance(done.result, RequestTimeout) for done in results)
    late = list(vlm.map(PICTURES, "write", timeout=1e-6, on_error="return"))
    assert all(isinstance(done.result, RequestTimeout) for done in late)
    assert time.monotonic() - started < 60


def test_closing_ends_the_rows_in_hand(vlm):
    results = vlm.map(iter([PICTURES[0]] * 100), "write", max_new_tokens=400)
    next(results)
    results.close()
    assert becomes_idle(vlm)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("idefics-prepare")]


def test_an_error_of_the_rows_ends_it_after_the_rows_before(vlm):
    def rows():
        yield from PICTURES * 3
        raise KeyError("lost")

    results = vlm.map(rows(), max_new_tokens=2)
    assert sum(1 for _ in zip(range(3 * len(PICTURES)), results, strict=False)) == 3 * len(PICTURES)
    with pytest.raises(KeyError, match="lost"):
        next(results)
    assert becomes_idle(vlm)


@pytest.mark.parametrize("rows", [5, None, "a.png", b"bytes", {"image": "a.png"}, {"a.png", "b.png"}])
def test_rows_are_an_iterable_in_order(vlm, rows):
    with pytest.raises(BadSetting, match="give an iterable of pictures or of dicts"):
        vlm.map(rows)


def test_memory_is_flat(vlm):
    """Of thousands of rows only a few pictures are alive at any time."""
    alive = set()

    class Row(dict):
        def __del__(self):
            alive.discard(id(self))

    def rows():
        for _ in range(300):
            row = Row(image=PIL.Image.new("RGB", (8, 8)))
            alive.add(id(row))
            yield row

    most = 0
    for _ in vlm.map(rows(), max_new_tokens=1):
        most = max(most, len(alive))
    assert 1 < most <= 2 * vlm.engine.config.batch_rows + 8


def test_a_closed_model_ends_it():
    model = idefics.load("demo")
    results = model.map([PICTURES[0]] * 50, "write")
    next(results)
    model.close()
    with pytest.raises(ModelClosed):
        list(results)


def test_asyncio(vlm):
    expected = [str(one) for one in vlm.caption(PICTURES)]

    async def read(rows):
        return [str(done.result) async for done in vlm.map_async(rows)]

    async def rows():
        for picture in PICTURES:
            await asyncio.sleep(0)
            yield picture

    async def both():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        results = await read(rows()), await read(PICTURES)
        ticker.cancel()
        assert ticks > 3  # the loop was free meanwhile
        return results

    assert asyncio.run(both()) == (expected, expected)


def test_leaving_the_loop_of_asyncio_ends_the_rows_in_hand(vlm):
    async def read_one():
        results = vlm.map_async([PICTURES[0]] * 100, "write", max_new_tokens=400)
        async for _ in results:
            break
        await results.aclose()

    asyncio.run(read_one())
    assert becomes_idle(vlm)

    async def read_wrong():
        async for _ in vlm.map_async(["missing.png"]):
            pass

    with pytest.raises(BadPicture, match="row 1: missing"):
        asyncio.run(read_wrong())
