"""Gradient checkpointing (arXiv 1604.06174): in training, activations of layers are recomputed instead of stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointable_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The layers whose activations can be recomputed: every member of a ModuleList."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (block for block in module if not isinstance(block, nn.ModuleList))


def enable_checkpointing(block: nn.Module, options: Mapping[str, Any] | None = None) -> None:
    """Recomputes a layer's activations in training.

    Args:
        options: of `torch.utils.checkpoint.checkpoint`, which is not reentrant unless they say so.
    """
    block.forward = partial(
        _checkpointed_forward, block, block.forward, {"use_reentrant": False, **(options or {})}
    )


def disable_checkpointing(block: nn.Module) -> None:
    """Stores a layer's activations again."""
    if is_checkpointed(block):
        block.forward = block.forward.args[1]  # type: ignore


def is_checkpointed(block: nn.Module) -> bool:
    """Whether the activations of a layer are recomputed in training."""
    return isinstance(block.forward, partial) and block.forward.func is _checkpointed_forward


def _checkpointed_forward(
    block: nn.Module, forward: Callable[..., Any], options: dict[str, Any], *inputs: Any
) -> Any:
    """Calls a layer's `forward`; in training it recomputes activations (`torch.utils.checkpoint`, with `options`)."""
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, **options)
    return forward(*inputs)
