"""The training forward: losses of the learned tokens of packed rows.

N tokens, T learned tokens, F frames, M features of a frame, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from idefics.models.vision_language_model import VisionLanguageModel
from idefics.nn.attention import CrossKV
from idefics.train.packing import PackedBatch, TrainingAttn
from idefics.train.pictures import Frames, PictureStore

MAX_LOGITS_AT_ONCE = 1 << 22  # numbers: 16 MiB in float32


class TokenLosses(NamedTuple):
    """What the model makes of the T learned tokens of a batch.

    Attributes:
        losses: (T,) float32 cross-entropies in nats.
        is_most_likely: (T,) bool: the token is the most likely one.
    """

    losses: Tensor
    is_most_likely: Tensor


def compute_token_losses(
    model: VisionLanguageModel,
    batch: PackedBatch,
    store: PictureStore,
    frames_by_key: Mapping[str, Frames] | None = None,
) -> TokenLosses:
    """The losses of a batch; logits are computed for learned tokens only.

    Args:
        store: gives what is kept of the pictures.
        frames_by_key: frames that were read before, as of `PictureStore.read_missing`.

    Raises:
        BadPicture: a picture cannot be read.
    """
    device = next(model.parameters()).device
    x = model.embed(batch.ids.to(device))
    frame_tensors = [store.frame_tensors(picture, frames_by_key or {}) for picture in batch.pictures]
    cross_kv: CrossKV = ()
    if frame_tensors:
        features = store.encode([tensor for tensors in frame_tensors for tensor in tensors])  # (F, M, D')
        if model.layout.num_cross_attention_layers:
            cross_kv = model.compute_cross_kv(features) or ()  # one frame a picture
        else:
            frames = _frames_in_order(batch, [len(tensors) for tensors in frame_tensors])
            values = features.index_select(0, frames.to(device)).flatten(0, 1)
            x = x.index_copy(0, batch.image_token_positions.to(device), values.to(x.dtype))
    attn = TrainingAttn(
        batch.lengths,
        cross_kv,
        batch.image_index,
        sliding_window=model.layout.sliding_window,
        device=device,
        backend=model.attention_backend,
    )
    hidden = model.forward(x, batch.positions.to(device), attn)
    learned = hidden.index_select(0, batch.predicting_positions.to(device))
    return _head_losses(model, learned, batch.target_ids.to(device))


def _frames_in_order(batch: PackedBatch, num_frames: list[int]) -> Tensor:
    """The number of each frame that stands in the rows, among those of the batch's pictures."""
    starts = np.cumsum([0, *num_frames])
    ranges = [np.arange(starts[picture], starts[picture + 1]) for picture in batch.shown_pictures]
    return torch.from_numpy(np.concatenate(ranges))


def _head_losses(model: VisionLanguageModel, hidden: Tensor, target_ids: Tensor) -> TokenLosses:
    """The losses of T tokens, from the hidden states (T, D) before them; logits are computed a part at a time.

    A head that learns computes the logits of parts again in the backward pass.
    """
    num_rows = max(1, MAX_LOGITS_AT_ONCE // model.layout.vocab_size)
    compute: Callable[[VisionLanguageModel, Tensor, Tensor], TokenLosses] = _losses
    if model.logits(hidden[:1].detach()).requires_grad:
        if len(hidden) > num_rows:
            compute = partial(checkpoint, _losses, use_reentrant=False)
    elif hidden.requires_grad:
        compute = _losses_of_frozen_head
    parts = [
        compute(model, some, ids)
        for some, ids in zip(hidden.split(num_rows), target_ids.split(num_rows), strict=True)
    ]
    return TokenLosses(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _losses(model: VisionLanguageModel, hidden: Tensor, target_ids: Tensor) -> TokenLosses:
    """The losses of tokens from the hidden states before them."""
    logits = model.logits(hidden).float()
    losses = cross_entropy(logits, target_ids, reduction="none")
    return TokenLosses(losses, logits.detach().argmax(-1) == target_ids)


def _losses_of_frozen_head(model: VisionLanguageModel, hidden: Tensor, target_ids: Tensor) -> TokenLosses:
    """As `_losses`, with the gradients computed at once, so that no logits are kept for the backward pass."""
    leaf = hidden.detach().requires_grad_()
    losses, is_most_likely = _losses(model, leaf, target_ids)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    known: Tensor = _LossesWithGradient.apply(hidden, losses.detach(), gradient)  # type: ignore[no-untyped-call]
    return TokenLosses(known, is_most_likely)


class _LossesWithGradient(torch.autograd.Function):
    """Losses (T,) whose gradients by the hidden states (T, D) are known: each loss depends on its own state alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (loss_gradient[:, None] * gradient).to(gradient.dtype), None, None
