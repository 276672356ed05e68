"""What only training needs: first weights, new vocabulary rows, frozen parameters, dropout, the loss, checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

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


IGNORE_INDEX = -100  # a label that does not count in the loss; torch's own default
FREEZABLE_CLASSES = {"LayerNorm": nn.LayerNorm, "Linear": nn.Linear, "Embedding": nn.Embedding}


def initialize_module(module: nn.Module, std: float) -> None:
    """Draws the weights of linear layers, convolutions and embeddings from N(0, std^2) and sets biases to zero.

    Norms and parameters of other modules keep the values that their constructors gave them.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.no_grad()
def resize_rows(weight: Tensor, num_rows: int, *, init_with_mean: bool, std: float) -> nn.Parameter:
    """Cuts or extends an embedding matrix to `num_rows` rows: (R, D) -> (num_rows, D).

    Args:
        init_with_mean: new rows are the mean of the old ones; otherwise they are drawn from N(0, std^2).
    """
    old_rows = weight[:num_rows]
    new_rows = weight.new_empty(num_rows - len(old_rows), weight.shape[1]).normal_(std=std)
    if init_with_mean:
        new_rows[:] = weight.float().mean(dim=0).to(weight.dtype)
    return nn.Parameter(torch.cat((old_rows, new_rows)), requires_grad=weight.requires_grad)


def freeze_except(module: nn.Module, exceptions: Sequence[str]) -> None:
    """Freezes all parameters but those of the classes named in `exceptions` (keys of `FREEZABLE_CLASSES`).

    Raises:
        BadSetting: no such class.
    """
    if unknown := set(exceptions) - set(FREEZABLE_CLASSES):
        raise BadSetting(
            f"modules of class {', '.join(sorted(unknown))} cannot be excepted from freezing; "
            f"give {', '.join(FREEZABLE_CLASSES)}"
        )
    excepted_classes = tuple(FREEZABLE_CLASSES[name] for name in exceptions)
    module.requires_grad_(False)
    for submodule in module.modules():
        if isinstance(submodule, excepted_classes):
            submodule.requires_grad_(True)


def add_output_dropout(module: nn.Module, probability: float) -> None:
    """Applies dropout (arXiv 1207.0580) to the output of a module, in training mode only, by a forward hook."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return dropout(output, probability, module.training)

    module.register_forward_hook(drop)


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    token_mask: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of each token given those before it, over the whole vocabulary, in float32.

    Args:
        logits: (B, T, V).
        labels: (B, T) token ids, not shifted: the logits of position t are compared with label t + 1. Labels of
            `IGNORE_INDEX` do not count.
        token_mask: (B, T), or longer where it begins with cached tokens: nonzero for tokens, 0 for padding, which
            does not count, as in the released Idefics. None: no padding.
        num_items_in_batch: the sum is divided by this number, for batches accumulated over several passes.
            None: by the number of labels that count.

    Returns:
        A scalar; NaN where no label counts and `num_items_in_batch` is None.
    """
    targets = labels[:, 1:].to(logits.device)
    if token_mask is not None:
        is_token = token_mask[:, token_mask.shape[1] - targets.shape[1] :].to(logits.device).bool()
        targets = targets.masked_fill(~is_token, IGNORE_INDEX)
    scores, ids = logits[:, :-1].float().flatten(0, 1), targets.flatten()
    if num_items_in_batch is None:
        return cross_entropy(scores, ids)
    total = cross_entropy(scores, ids, reduction="sum")
    return total / torch.as_tensor(num_items_in_batch, device=total.device)
