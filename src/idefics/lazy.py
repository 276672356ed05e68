"""Lazy attributes and lazily imported modules in processes that fork while other threads run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")

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


class cached_property(Generic[T]):  # named as in functools
    """`functools.cached_property` without the lock that it has before Python 3.12.

    All instances share that lock: a process forked while another thread computes any of them would deadlock.
    Threads that read an attribute at the same time may each compute it; all get the value that is stored first.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = vars(instance).setdefault(self._name, self._compute(instance))
        return value
