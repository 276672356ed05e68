"""Concurrency: prompts are prefetched, threads call one model at once, streams are left early."""

import gc
import threading

import PIL.Image
import pytest

import idefics
from idefics.errors import BadPicture, BadSetting
from idefics.generation.call_inputs import NUM_WORKERS, prefetch_map


def test_prefetched_prompts_come_in_order_and_not_too_early():
    made, most, lock = [], [], threading.Lock()

    def make(number):
        with lock:
            made.append(number)
        return number * number

    for count, square in enumerate(prefetch_map(make, range(50))):
        assert square == count * count
        with lock:
            most.append(len(made) - count - 1)
    assert max(most) <= NUM_WORKERS + 1
    assert sorted(made) == list(range(50))


def test_an_error_comes_in_its_place():
    def make(number):
        if number == 3:
            raise KeyError(number)
        return number

    coming = prefetch_map(make, range(100))
    assert [next(coming) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(coming)


def test_a_single_item_is_computed_in_the_calling_thread():
    assert list(prefetch_map(lambda _: threading.current_thread(), [0])) == [threading.current_thread()]


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.fixture(scope="module")
def picture():
    shown = PIL.Image.new("RGB", (96, 96), "white")
    shown.paste("red", (30, 30, 60, 60))
    return shown


def test_a_bad_picture_in_a_list_is_an_error_and_leaves_nothing_running(vlm, picture):
    with pytest.raises(BadPicture, match="nowhere"):
        vlm.caption([picture, picture, "nowhere.png", picture])
    with vlm.engine.condition:
        assert vlm.engine.condition.wait_for(lambda: not vlm.engine.is_busy, timeout=10)
    assert not any(vlm.engine.scheduler.page_pool.ref_counts)


def test_options_are_checked_before_any_work(vlm, picture):
    with pytest.raises(BadSetting, match="stop string is empty"):
        vlm.caption([picture] * 3, stop=[""])


def test_threads_get_what_they_would_get_alone(vlm, picture):
    caption, ranking = vlm.caption(picture).text, vlm.classify(picture, ["cat", "dog", "square"])
    drawn = vlm.caption(picture, temperature=1.0, seed=4).text
    wrong = []

    def ask(number):
        texts = [one.text for one in vlm.caption([picture] * 3)]
        streamed = "".join(vlm.caption(picture, stream=True))
        ranked = vlm.classify([picture] * 2, ["cat", "dog", "square"])
        seeded = vlm.caption(picture, temperature=1.0, seed=4).text
        if [*texts, streamed] != [caption] * 4 or seeded != drawn:
            wrong.append((texts, streamed, seeded))
        for one in ranked:
            if [row.label for row in one] != [row.label for row in ranking]:
                wrong.append(one)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_abandoned_stream_keeps_the_text_so_far(vlm, picture):
    stream = vlm.write(picture, stream=True, temperature=2.0, seed=1, max_new_tokens=200)
    shown = [next(stream) for _ in range(5)]
    stream.close()
    answer = stream.answer
    assert answer.text == "".join(shown)
    assert answer.finish == "cancelled"
    assert len(answer.tokens) == answer.usage.completion_tokens
    whole = vlm.write(picture, temperature=2.0, seed=1, max_new_tokens=200)
    assert answer.tokens == whole.tokens[: len(answer.tokens)] != whole.tokens


def test_a_stream_without_references_ends(vlm, picture):
    vlm.write(picture, stream=True, temperature=2.0, seed=1, max_new_tokens=2000)
    gc.collect()
    with vlm.engine.condition:
        assert vlm.engine.condition.wait_for(lambda: not vlm.engine.is_busy, timeout=5)
