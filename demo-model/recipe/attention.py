"""The trainer's two `Attn`: for cross-attention and for inline images. Both supervise where some heads attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from idefics.nn.attention import CrossKV, DenseAttn


class AttentionTarget(NamedTuple):
    """The supervision of one head of one layer: S tokens should attend to some cells of a picture and a rest position.

    Each of the n cells and the rest position should get 1/(n + 1) of the attention; the share of the rest position then
    tells the model how many cells there are.

    Attributes:
        token_positions: (S,) positions in the packed batch.
        image_indices: (S,) indices among all pictures.
        cell_mask: (S, 9) which of the nine cells.
    """

    layer: int
    head: int
    token_positions: Tensor
    image_indices: Tensor
    cell_mask: Tensor


def attention_divergence(scores: Tensor, target_mask: Tensor) -> Tensor:
    """Scores (S, T), mask (S, T) -> the mean KL divergence from equal attention to the masked positions."""
    num_targets = target_mask.sum(-1)
    mean_log_share = scores.masked_fill(~target_mask, 0.0).sum(-1) / num_targets - scores.logsumexp(
        -1
    )  # mean of their logarithms
    return (-mean_log_share - num_targets.log()).mean()


class SupervisedCrossAttention(DenseAttn):
    """Cross-attention with supervision by `targets`; the latent after the nine cells is the rest position.

    Each sequence attends to a window of its own pictures only. With all pictures of the batch as keys, sixteen
    sequences of four pictures would compute sixty scores for each one that is used.

    Args:
        num_sequences: B rows of T tokens.
        cross_kv: keys and values of all P pictures for each cross layer; the pictures of a sequence are consecutive.
        image_index: (B*T,) for each token the index of its picture among the P, or -1.
    """

    def __init__(
        self,
        num_sequences: int,
        cross_kv: CrossKV,
        image_index: Tensor,
        targets: Sequence[AttentionTarget] = (),
    ) -> None:
        super().__init__(num_sequences)
        self.cross_kv, self.targets = cross_kv, targets
        self.loss = torch.zeros(())
        image_index = image_index.unflatten(0, (num_sequences, -1))  # (B, T)
        features_per_image = cross_kv[0].keys.shape[1]
        first_image_of_row = torch.where(image_index >= 0, image_index, image_index.max()).amin(
            1, keepdim=True
        )
        max_images_per_row = int((image_index.amax(1, keepdim=True) - first_image_of_row).max()) + 1
        window = first_image_of_row + torch.arange(
            max_images_per_row
        )  # (B, p): of the row, and perhaps of the next
        is_visible = image_index[:, :, None] == window[:, None]  # (B, T, p)
        self.token_has_image = is_visible.any(-1)[:, None, :, None]  # (B, 1, T, 1)
        self.visible_features = (is_visible | ~is_visible.any(-1, keepdim=True)).repeat_interleave(
            features_per_image, dim=2
        )[:, None]
        self.image_window = window.clamp(max=len(cross_kv[0].keys) - 1)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        for target in self.targets:
            if target.layer == layer and len(target.token_positions):
                self.loss = self.loss + self._target_divergence(layer, q[:, target.head], target)
        keys, values = (x[self.image_window].flatten(1, 2).transpose(1, 2) for x in self.cross_kv[layer])
        q = q.unflatten(0, (self.num_sequences, -1)).transpose(1, 2)  # (B, H, T, K)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=self.visible_features)
        return (out * self.token_has_image).transpose(1, 2).flatten(0, 1)

    def _target_divergence(self, layer: int, q: Tensor, target: AttentionTarget) -> Tensor:
        keys = self.cross_kv[layer].keys[:, :, target.head][target.image_indices]  # (S, M, K)
        scores = torch.einsum("sk,smk->sm", q[target.token_positions], keys) * q.shape[-1] ** -0.5
        target_mask = torch.zeros_like(scores, dtype=torch.bool)
        target_mask[:, :9], target_mask[:, 9] = target.cell_mask, True
        return attention_divergence(scores, target_mask)


class SupervisedSelfAttention(DenseAttn):
    """Causal self-attention over text with inline images, with supervision by `targets`.

    Args:
        num_sequences: B rows of T tokens.
        rest_positions: (P,) the position in its sequence of the token before each picture's nine cells.
    """

    def __init__(
        self, num_sequences: int, targets: Sequence[AttentionTarget], rest_positions: Tensor
    ) -> None:
        super().__init__(num_sequences)
        self.targets, self.rest_positions = targets, rest_positions
        self.loss = torch.zeros(())

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for target in self.targets:
            if target.layer == layer and len(target.token_positions):
                self.loss = self.loss + self._target_divergence(q[:, target.head], k[:, target.head], target)
        return super().self_attention(layer, q, k, v)

    def _target_divergence(self, q: Tensor, k: Tensor, target: AttentionTarget) -> Tensor:
        token_positions, length = target.token_positions, len(q) // self.num_sequences
        keys = k.unflatten(0, (self.num_sequences, length))[token_positions // length]  # (S, T, K)
        scores = torch.einsum("sk,stk->st", q[token_positions], keys) * q.shape[-1] ** -0.5
        is_future = torch.arange(length) > (token_positions % length)[:, None]
        rest_and_cells = torch.cat(
            (torch.ones(len(token_positions), 1, dtype=torch.bool), target.cell_mask), dim=1
        )
        target_positions = self.rest_positions[target.image_indices][:, None] + torch.arange(10)
        target_mask = torch.zeros(len(token_positions), length, dtype=torch.bool).scatter(
            1, target_positions, rest_and_cells
        )
        return attention_divergence(scores.masked_fill(is_future, -torch.inf), target_mask)
