"""How models are constructed: with initial weights, or on the meta device where a checkpoint is loaded into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal

from idefics.compat.configuration_auto import as_config
from idefics.models import meta_device_without_init

# A model is built to be used, as a part of another one, or to be filled with the weights of a checkpoint.
Purpose = Literal["use", "part", "load"]
_purpose: ContextVar[Purpose] = ContextVar("_purpose", default="use")


@contextmanager
def building_models(purpose: Purpose) -> Iterator[None]:
    """Context manager: sets for which purpose models are built, which decides who initialises their weights.

    "use", the default: the model itself. "part": the model around it initialises the weights of both. "load": nobody;
    modules of this package are built on the meta device, and those that subclasses add are not.
    """
    token = _purpose.set(purpose)
    try:
        yield
    finally:
        _purpose.reset(token)


def should_initialize_weights() -> bool:
    """Whether the model that is being built initialises its weights."""
    return _purpose.get() == "use"


def accept_any_config_in_init(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates the `__init__` of a model class: its config may be anything that `as_config` takes.

    In a context of `building_models("load")`, the model is built on the meta device.
    """

    @wraps(init)
    def init_model(self: Any, config: Any, *arguments: Any, **keywords: Any) -> None:
        with ExitStack() as stack:
            if _purpose.get() == "load":
                stack.enter_context(meta_device_without_init())
            init(self, as_config(config), *arguments, **keywords)

    return init_model
