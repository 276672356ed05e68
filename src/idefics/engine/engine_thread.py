"""The thread that drives an engine: it lives while there is work and a second longer. No torch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import Protocol

IDLE_SECONDS = 1.0  # seconds: whoever asks again at once finds the thread running


class SteppedEngine(Protocol):
    """What a thread drives.

    Attributes:
        condition: held while `is_busy` is asked, and told when there is something to do.
    """

    condition: threading.Condition

    @property
    def is_busy(self) -> bool: ...

    def reset_after_fork(self) -> None:
        """Called in a forked process, which has none of the threads and whose locks may be held for ever."""
        ...

    def step(self) -> None:
        """Does some of what there is to do; raises nothing."""
        ...


class EngineThread:
    """Sees to it that an engine has a thread while there is work. The thread does not keep the engine alive."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = weakref.ref(engine)
        self._condition = engine.condition
        self._thread: threading.Thread | None = None
        self._is_closed = False
        weakref.finalize(engine, self._notify_waiters).atexit = False
        ENGINE_THREADS.add(self)

    def ensure_running(self) -> None:
        """There is work. The caller holds `work`."""
        if self._thread is None or not self._thread.is_alive():  # in a forked process it is not
            self._thread = threading.Thread(target=self._run_steps, name="idefics-engine", daemon=True)
            self._thread.start()
        self._condition.notify_all()

    def close(self) -> bool:
        """Ends the thread after the step that it is in, whatever is left to do.

        Returns:
            Whether it has ended: not where it is this thread.
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
        """In a forked process: begins anew, without a thread."""
        self._thread, self._is_closed = None, False
        if (engine := self._engine()) is not None:
            engine.reset_after_fork()
            self._condition = engine.condition

    def _notify_waiters(self) -> None:
        """The engine is gone: threads that wait for it return."""
        with self._condition:
            self._condition.notify_all()

    def _run_steps(self) -> None:
        has_idled = False
        while True:
            engine = self._engine()
            with self._condition:
                if engine is None or self._is_closed or (has_idled and not engine.is_busy):
                    self._thread = None
                    return
                if not engine.is_busy:
                    del engine  # nobody else may want it any more
                    has_idled = not self._condition.wait(IDLE_SECONDS)
                    continue
            has_idled = False
            engine.step()
            del engine


ENGINE_THREADS: weakref.WeakSet[EngineThread] = weakref.WeakSet()


def _reset_engines_after_fork() -> None:
    for engine_thread in list(ENGINE_THREADS):
        engine_thread.reset_after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_reset_engines_after_fork)


@atexit.register
def _close_engine_threads() -> None:
    """A thread that still computes while the interpreter goes down would bring it down hard."""
    for engine_thread in list(ENGINE_THREADS):
        engine_thread.close()
