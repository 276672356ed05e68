"""Functions run in a temporary thread, which keeps no objects and no memory."""

import gc
import threading
import weakref

from idefics.server import server_state
from idefics.server.server_state import run_in_thread_and_trim


class LargeObject:
    pass


def test_the_thread_has_ended_when_the_call_returns():
    seen = []
    assert run_in_thread_and_trim(lambda: seen.append(threading.current_thread()) or 7, lambda: False) == 7
    assert seen[0] is not threading.current_thread()
    assert not seen[0].is_alive()


def test_memory_is_returned_if_requested(monkeypatch):
    trimmed = []
    monkeypatch.setattr(server_state, "release_free_heap", lambda: trimmed.append(0))
    for asked in (True, False):
        run_in_thread_and_trim(int, lambda asked=asked: asked)
    assert trimmed == [0]


def test_an_error_is_raised_and_keeps_no_objects_alive():
    """Not even until the next garbage collection: the frames of an error refer to megabytes of text."""
    kept = []

    def fails():
        large = LargeObject()
        kept.append(weakref.ref(large))
        raise ValueError("wrong")

    gc.collect()
    gc.disable()
    try:
        try:
            run_in_thread_and_trim(fails, lambda: True)
        except ValueError:
            assert kept[0]() is not None, "as long as the error is handled"
        assert kept[0]() is None
    finally:
        gc.enable()
