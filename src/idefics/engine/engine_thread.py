"""The thread that calls an engine's `step`: started when there is work, ended after an idle second. No torch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.engine.engine import Engine

IDLE_SECONDS = 1.0  # a request that follows within this time need not start a thread


class EngineThread:
    """Runs an engine's steps in a daemon thread while there is work. Holds only a weak reference to the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)
        self._condition = engine.condition
        self._thread: threading.Thread | None = None
        self._is_closed = False
        weakref.finalize(engine, self._wake_thread_to_end).atexit = False
        ENGINE_THREADS.add(self)

    def ensure_running(self) -> None:
        """Starts the thread unless it runs, and wakes it if it is idle. The caller holds the engine's `condition`."""
        if self._thread is None or not self._thread.is_alive():  # in a forked process it is not
            self._thread = threading.Thread(target=self._run_steps, name="idefics-engine", daemon=True)
            self._thread.start()
        self._condition.notify_all()

    def close(self) -> bool:
        """Ends the thread after its current step, even if work is left, and waits for it.

        Returns:
            Whether the thread has ended; false if the thread itself calls this, as it ends after the call.
        """
        with self._condition:
            self._is_closed, thread = True, self._thread
            self._condition.notify_all()
        if thread is threading.current_thread():
            return False
        if thread is not None:
            thread.join()
        self._is_closed = False
        return True

    def reset_after_fork(self) -> None:
        """In a forked process: drops the thread, which exists only in the parent, and resets the engine."""
        self._thread, self._is_closed = None, False
        if (engine := self._engine()) is not None:
            engine.reset_after_fork()
            self._condition = engine.condition

    def _wake_thread_to_end(self) -> None:
        """Wakes the thread after the engine was garbage-collected, so that it ends."""
        with self._condition:
            self._condition.notify_all()

    def _run_steps(self) -> None:
        """The thread's loop: steps while there is work; ends if idle, closed, or the engine was garbage-collected.

        Without work it touches the pages that come next, a layer at a time, so that a request hardly waits for it.
        """
        has_idled = False
        while True:
            engine = self._engine()
            with self._condition:
                if engine is None or self._is_closed or (has_idled and not engine.is_busy):
                    self._thread = None
                    return
                is_busy = engine.is_busy
                if not is_busy and not engine.page_toucher.has_work:
                    del engine  # so that it can be garbage-collected meanwhile
                    has_idled = not self._condition.wait(IDLE_SECONDS)
                    continue
            has_idled = False
            if is_busy:
                engine.step()
            else:
                engine.page_toucher.touch_layer()
            del engine


ENGINE_THREADS: weakref.WeakSet[EngineThread] = weakref.WeakSet()


def _reset_engines_after_fork() -> None:
    """Resets all engines in a forked process; a hook of `os.register_at_fork`."""
    for engine_thread in list(ENGINE_THREADS):
        engine_thread.reset_after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_reset_engines_after_fork)


@atexit.register
def _close_engine_threads() -> None:
    """Ends the threads of all engines before the interpreter shuts down: one still in C code then could crash it."""
    for engine_thread in list(ENGINE_THREADS):
        engine_thread.close()
