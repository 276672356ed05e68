"""How a model class is built: with first weights, or without memory where a checkpoint is about to be read into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from idefics.compat.configuration_auto import config_from
from idefics.models import shapes_only

_reads_files = ContextVar("_reads_files", default=False)
_draws = ContextVar("_draws", default=True)


@contextmanager
def from_files() -> Iterator[None]:
    """Modules of this package that are built while this lasts stand on the meta device; those of subclasses do not."""
    token = _reads_files.set(True)
    try:
        yield
    finally:
        _reads_files.reset(token)


@contextmanager
def as_part() -> Iterator[None]:
    """A model built while this lasts is a part of another one, which draws first weights for all of it."""
    token = _draws.set(False)
    try:
        yield
    finally:
        _draws.reset(token)


def draws_first_weights() -> bool:
    """Whether a model that is being built shall have first weights of its own."""
    return _draws.get() and not _reads_files.get()


def constructor(init: Callable[..., None]) -> Callable[..., None]:
    """Marks the `__init__` of a model class of this package: inside `from_files` it takes no memory.

    Its config may be whatever `config_from` takes: a config of transformers, the content of a config.json.
    """

    @wraps(init)
    def build(self: Any, config: Any, *arguments: Any, **keywords: Any) -> None:
        with ExitStack() as stack:
            if _reads_files.get():
                stack.enter_context(shapes_only())
            init(self, config_from(config), *arguments, **keywords)

    return build
