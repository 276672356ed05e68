"""How a model class is built: with first weights, or without memory where a checkpoint is about to be read into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from idefics.compat.configuration_auto import as_config
from idefics.models import meta_device

_is_loading_checkpoint = ContextVar("_reads_files", default=False)
_initializes_weights = ContextVar("_draws", default=True)


@contextmanager
def loading_checkpoint() -> Iterator[None]:
    """Modules of this package that are built while this lasts stand on the meta device; those of subclasses do not."""
    token = _is_loading_checkpoint.set(True)
    try:
        yield
    finally:
        _is_loading_checkpoint.reset(token)


@contextmanager
def without_weight_init() -> Iterator[None]:
    """A model built while this lasts is a part of another one, which draws first weights for all of it."""
    token = _initializes_weights.set(False)
    try:
        yield
    finally:
        _initializes_weights.reset(token)


def should_initialize_weights() -> bool:
    """Whether a model that is being built shall have first weights of its own."""
    return _initializes_weights.get() and not _is_loading_checkpoint.get()


def model_constructor(init: Callable[..., None]) -> Callable[..., None]:
    """Marks the `__init__` of a model class of this package: inside `from_files` it takes no memory.

    Its config may be whatever `config_from` takes: a config of transformers, the content of a config.json.
    """

    @wraps(init)
    def init_model(self: Any, config: Any, *arguments: Any, **keywords: Any) -> None:
        with ExitStack() as stack:
            if _is_loading_checkpoint.get():
                stack.enter_context(meta_device())
            init(self, as_config(config), *arguments, **keywords)

    return init_model
