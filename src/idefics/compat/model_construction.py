"""How models are constructed: with initial weights, or on the meta device where a checkpoint is loaded into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from idefics.compat.configuration_auto import as_config
from idefics.models import meta_device_without_init

_is_loading_checkpoint = ContextVar("_is_loading_checkpoint", default=False)
_initializes_weights = ContextVar("_initializes_weights", default=True)


@contextmanager
def own_modules_on_meta_device() -> Iterator[None]:
    """In this context, modules of this package are built on the meta device; those that subclasses add are not."""
    token = _is_loading_checkpoint.set(True)
    try:
        yield
    finally:
        _is_loading_checkpoint.reset(token)


@contextmanager
def without_weight_init() -> Iterator[None]:
    """In this context, a model is built as a part of another, which initialises the weights of both."""
    token = _initializes_weights.set(False)
    try:
        yield
    finally:
        _initializes_weights.reset(token)


def should_initialize_weights() -> bool:
    """Whether the model that is being built initialises its weights."""
    return _initializes_weights.get() and not _is_loading_checkpoint.get()


def accept_any_config_in_init(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates the `__init__` of a model class: its config may be anything that `as_config` takes.

    In the context of `own_modules_on_meta_device`, the model is built on the meta device.
    """

    @wraps(init)
    def init_model(self: Any, config: Any, *arguments: Any, **keywords: Any) -> None:
        with ExitStack() as stack:
            if _is_loading_checkpoint.get():
                stack.enter_context(meta_device_without_init())
            init(self, as_config(config), *arguments, **keywords)

    return init_model
