"""Gradient checkpointing (arXiv 1604.06174): in training, activations of layers are recomputed instead of stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from idefics.errors import BadSetting


class GradientCheckpointingMixin(nn.Module):
    """The calls by which trainers turn gradient checkpointing on and off."""

    supports_gradient_checkpointing = True

    def _checkpointable_blocks(self) -> Iterator[nn.Module]:
        """The layers whose activations can be recomputed: every member of a ModuleList."""
        for module in self.modules():
            if isinstance(module, nn.ModuleList):
                yield from (block for block in module if not isinstance(block, nn.ModuleList))

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes the activations of layers in training, instead of storing them.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`.
            every_n_layers: only every n-th layer; the others store their activations.
            offload: must be False: activations are not moved to CPU memory.

        Raises:
            BadSetting: `offload`, or `every_n_layers` below 1.
        """
        if offload:
            raise BadSetting("offload is True; activations stay on their device: leave it out")
        if every_n_layers < 1:
            raise BadSetting(f"every_n_layers is {every_n_layers}; give at least 1")
        self.gradient_checkpointing_disable()
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for index, block in enumerate(self._checkpointable_blocks()):
            if index % every_n_layers == 0:
                block.forward = partial(_checkpointed_forward, block, block.forward, options)

    def gradient_checkpointing_disable(self) -> None:
        """Stores the activations of all layers again."""
        for block in self._checkpointable_blocks():
            if _is_checkpointed(block):
                block.forward = block.forward.args[1]  # type: ignore

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the activations of any layer are recomputed."""
        return any(_is_checkpointed(block) for block in self._checkpointable_blocks())

    gradient_checkpointing = is_gradient_checkpointing  # its name in transformers' models without a head

    # The names of transformers 5.23.

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """`gradient_checkpointing_enable` by its name in transformers 5.23."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    activation_checkpointing_disable = gradient_checkpointing_disable
    is_activation_checkpointing = is_gradient_checkpointing


def _checkpointed_forward(
    block: nn.Module, forward: Callable[..., Any], options: dict[str, Any], *inputs: Any
) -> Any:
    """Calls a layer's `forward`; in training it recomputes activations (`torch.utils.checkpoint`, with `options`)."""
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, **options)
    return forward(*inputs)


def _is_checkpointed(block: nn.Module) -> bool:
    """Whether the activations of a layer are recomputed in training."""
    return isinstance(block.forward, partial) and block.forward.func is _checkpointed_forward
