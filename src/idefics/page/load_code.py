"""How a model with its adapter is loaded, as code for "Show code"."""

from __future__ import annotations


def format_load(model: str, adapter: str | None) -> str:
    """The line of Python that loads a model, with its adapter if it has one."""
    return f"vlm = idefics.load({model!r}{'' if adapter is None else f', adapter={adapter!r}'})"


def model_flags(model: str, adapter: str | None) -> list[str]:
    """The flags of the command line that name a model, and its adapter if it has one."""
    return ["--model", model, *(() if adapter is None else ("--adapter", adapter))]
