"""What makes processes of the command line short: imports without garbage collection, an end without teardown."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pauses the collection of cyclic garbage while modules are imported or a model is loaded.

    What they allocate stays until the process ends, and each collection would traverse all of it. It is left out of
    later collections too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class QuickExit:
    """Ends the process after its threads and `atexit` handlers, without tearing down the interpreter.

    Python would free the objects of every module one by one, which takes a third of the time of `import torch`; the
    operating system frees their memory at once. Create it before modules that register handlers: handlers run in
    reverse order, so that these precede it.

    Attributes:
        exit_code: the exit code of the process; None: the interpreter is torn down as usual.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        atexit.register(self._end_process)

    def _end_process(self) -> None:
        """Flushes the standard streams and ends the process with `exit_code`; does nothing while that is None."""
        if self.exit_code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(self.exit_code)
