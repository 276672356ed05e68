"""Drops Pillow's warnings for a moment: the filters are global, so that a lock is held meanwhile."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

WARNING_FILTERS_LOCK = threading.Lock()  # held while warnings are dropped, so that no other thread's is
# Fork only while no other thread holds the lock, which the child could not release.
if sys.platform != "win32":
    os.register_at_fork(
        before=WARNING_FILTERS_LOCK.acquire,
        after_in_parent=WARNING_FILTERS_LOCK.release,
        after_in_child=WARNING_FILTERS_LOCK.release,
    )


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Context that drops Pillow's warnings about damaged and large files. Holds a lock: warning filters are global."""
    with WARNING_FILTERS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
