"""Lazy attributes and lazily imported modules in processes that fork while other threads run."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

LAZY_MODULES = (
    "av",
    "httpx",
    "jinja2",
    "llguidance",
    "pillow_heif",
)  # imported when first needed, in any thread


def _wait_for_lazy_imports_before_fork() -> None:
    """Waits until no other thread is importing a lazy module: a process forked meanwhile would deadlock."""
    for name in LAZY_MODULES:
        if name in sys.modules:
            with suppress(ImportError):
                import_module(name)


if sys.platform != "win32":
    os.register_at_fork(before=_wait_for_lazy_imports_before_fork)


if TYPE_CHECKING:
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property):
        """`functools.cached_property` without the lock that it has before Python 3.12.

        All instances share that lock: a process forked while another thread computes any of them would deadlock.
        Threads that read an attribute at the same time may each compute it; all get the value that is stored first.
        """

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return self
            return vars(instance).setdefault(self.attrname, self.func(instance))
