"""The thread that drives an engine: it lives while there is work and a second longer. No torch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import Protocol

LINGER = 1.0  # seconds: whoever asks again at once finds the thread running


class Driven(Protocol):
    """What a thread drives.

    Attributes:
        work: held while `is_busy` is asked, and told when there is something to do.
    """

    work: threading.Condition

    @property
    def is_busy(self) -> bool: ...

    def forked(self) -> None:
        """Called in a forked process, which has none of the threads and whose locks may be held for ever."""
        ...

    def step(self) -> None:
        """Does some of what there is to do; raises nothing."""
        ...


class Driver:
    """Sees to it that an engine has a thread while there is work. The thread does not keep the engine alive."""

    def __init__(self, engine: Driven) -> None:
        self._engine = weakref.ref(engine)
        self._work = engine.work
        self._thread: threading.Thread | None = None
        self._is_closed = False
        weakref.finalize(engine, self._tell).atexit = False
        DRIVERS.add(self)

    def wake(self) -> None:
        """There is work. The caller holds `work`."""
        if self._thread is None or not self._thread.is_alive():  # in a forked process it is not
            self._thread = threading.Thread(target=self._drive, name="idefics-engine", daemon=True)
            self._thread.start()
        self._work.notify_all()

    def close(self) -> bool:
        """Ends the thread after the step that it is in, whatever is left to do.

        Returns:
            Whether it has ended: not where it is this thread.
        """
        with self._work:
            self._is_closed, thread = True, self._thread
            self._work.notify_all()
        if thread is threading.current_thread():
            return False
        if thread is not None:
            thread.join()
        self._is_closed = False
        return True

    def forked(self) -> None:
        """In a forked process: begins anew, without a thread."""
        self._thread, self._is_closed = None, False
        if (engine := self._engine()) is not None:
            engine.forked()
            self._work = engine.work

    def _tell(self) -> None:
        """The engine is gone: threads that wait for it return."""
        with self._work:
            self._work.notify_all()

    def _drive(self) -> None:
        has_waited = False
        while True:
            engine = self._engine()
            with self._work:
                if engine is None or self._is_closed or (has_waited and not engine.is_busy):
                    self._thread = None
                    return
                if not engine.is_busy:
                    del engine  # nobody else may want it any more
                    has_waited = not self._work.wait(LINGER)
                    continue
            has_waited = False
            engine.step()
            del engine


DRIVERS: weakref.WeakSet[Driver] = weakref.WeakSet()


def _forked() -> None:
    for driver in list(DRIVERS):
        driver.forked()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _close() -> None:
    """A thread that still computes while the interpreter goes down would bring it down hard."""
    for driver in list(DRIVERS):
        driver.close()
