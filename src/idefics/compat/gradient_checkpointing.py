"""The calls of transformers by which trainers turn gradient checkpointing on and off (arXiv 1604.06174)."""

from __future__ import annotations

from typing import Any

from torch import nn

from idefics.errors import BadSetting
from idefics.nn.checkpointing import (
    checkpointable_blocks,
    disable_checkpointing,
    enable_checkpointing,
    is_checkpointed,
)


class GradientCheckpointingMixin(nn.Module):
    """The calls by which trainers turn gradient checkpointing on and off."""

    supports_gradient_checkpointing = True

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
        for index, block in enumerate(checkpointable_blocks(self)):
            if index % every_n_layers == 0:
                enable_checkpointing(block, gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Stores the activations of all layers again."""
        for block in checkpointable_blocks(self):
            disable_checkpointing(block)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the activations of any layer are recomputed."""
        return any(map(is_checkpointed, checkpointable_blocks(self)))

    gradient_checkpointing = is_gradient_checkpointing  # its name in transformers' models without a head

    # The names of transformers 5.23.

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """`gradient_checkpointing_enable` by its name in transformers 5.23."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    activation_checkpointing_disable = gradient_checkpointing_disable
    is_activation_checkpointing = is_gradient_checkpointing
