"""Attention over padded batches with a key/value cache: what `forward` and `generate` of the guides run with.

B rows, T new tokens of a row, L cached and new tokens of a row, H query heads, h key/value heads, K head size, P images
of a row, S image features of a row (P images of M features each). Packed tokens are row after row: N = B * T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.nn.attention import CrossKV, causal_window_mask
from idefics.nn.attention_backends import AttentionBackend, sdpa_attention


class LayerKV(NamedTuple):
    """Keys and values of one layer: (B, h, L, K) each, keys after rotation; of cross-attention (B, H, S, K)."""

    keys: Tensor
    values: Tensor


class AttentionMask(NamedTuple):
    """Which positions the new tokens attend to.

    Attributes:
        mask: (B or 1, 1, T, L), true where a token attends; None: all rows alike, as `is_causal` says.
        is_causal: without a mask, whether a token attends to itself and those before it only, or to all.
        fully_masked: (B, T), true for new tokens that are padding: their output is zero. None: there are none.
    """

    mask: Tensor | None
    is_causal: bool
    fully_masked: Tensor | None


def make_attention_mask(
    token_mask: Tensor | None, num_new: int, num_past: int, sliding_window: int | None, device: torch.device
) -> AttentionMask:
    """The causal mask of `num_new` tokens after `num_past` cached ones.

    Args:
        token_mask: (B, num_past + num_new), nonzero for tokens and 0 for padding; None: no padding.
        sliding_window: a token attends to so many tokens, itself the last of them; None: to all before it.
    """
    total = num_past + num_new
    exceeds_window = sliding_window is not None and total > sliding_window
    has_padding = token_mask is not None and not bool(token_mask.all())
    if not has_padding and not exceeds_window and (num_past == 0 or num_new == 1):
        return AttentionMask(None, is_causal=num_new > 1, fully_masked=None)
    positions = torch.arange(total, device=device)
    mask = causal_window_mask(positions[num_past:], positions, sliding_window)[None, None]  # (1, 1, T, L)
    if token_mask is not None:
        mask = mask & token_mask[:, None, None].bool()
    fully_masked = ~mask.any(dim=-1)  # (B or 1, 1, T)
    # The softmax of a fully masked row is NaN: such rows attend to everything, and their output is set to zero.
    return AttentionMask(
        mask | fully_masked[..., None],
        is_causal=False,
        fully_masked=fully_masked[:, 0] if bool(fully_masked.any()) else None,
    )


class CrossAttentionInputs(NamedTuple):
    """The images of a batch for cross-attention.

    Attributes:
        cross_kv: keys and values of each cross-attention layer, (B, H, S, K) each.
        image_mask: (B, T, P), true where a token attends to an image.
    """

    cross_kv: Sequence[LayerKV]
    image_mask: Tensor


def group_cross_kv_by_row(cross_kv: CrossKV, num_rows: int) -> tuple[LayerKV, ...]:
    """Joins the keys and values of each row's images: (B*P, M, H, K) -> (B, H, P*M, K), for each layer."""

    def group_rows(x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(0, (num_rows, -1)).flatten(1, 2).transpose(1, 2)
        return out

    return tuple(LayerKV(group_rows(keys), group_rows(values)) for keys, values in cross_kv)


class PaddedAttn:
    """Self- and cross-attention of rows of one length, padded on either side, after their cached tokens (`Attn`).

    Args:
        num_rows: B; the number of packed tokens is a multiple of it.
        past_kv: keys and values of the cached tokens, a pair for each layer; empty without a cache.
        cross_inputs: the images; None: cross-attention gives zero.
        backend: computes self-attention.
        dropout_p: probability with which an attention weight is dropped, in training.

    Attributes:
        present_kv: layer -> keys and values of cached and new tokens, filled as layers run.
    """

    def __init__(
        self,
        num_rows: int,
        attention_mask: AttentionMask,
        past_kv: Sequence[LayerKV] = (),
        cross_inputs: CrossAttentionInputs | None = None,
        *,
        backend: AttentionBackend = sdpa_attention,
        dropout_p: float = 0.0,
    ) -> None:
        self.num_rows = num_rows
        self.attention_mask = attention_mask
        self.past_kv = past_kv
        self.backend = backend
        self.dropout_p = dropout_p
        self.present_kv: dict[int, LayerKV] = {}
        self.cross_kv: Sequence[LayerKV] = ()
        if cross_inputs is not None:
            self.cross_kv, image_mask = cross_inputs
            self.has_image = image_mask.any(dim=2)  # (B, T)
            visible_images = image_mask | ~self.has_image[..., None]  # as with fully masked rows above
            features_per_image = self.cross_kv[0].keys.shape[2] // image_mask.shape[2]
            visible_images = visible_images[:, None]  # (B, 1, T, P)
            self.cross_mask = visible_images.repeat_interleave(features_per_image, dim=3)  # (B, 1, T, S)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the new tokens to cached and new ones: (N, H, K), (N, h, K), (N, h, K) -> (N, H, K).

        Keys and values of both are stored in `present_kv`.
        """
        q, k, v = self._unpack_rows(q), self._unpack_rows(k), self._unpack_rows(v)
        if self.past_kv:
            past_k, past_v = self.past_kv[layer]
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        self.present_kv[layer] = LayerKV(k, v)
        mask, causal, fully_masked = self.attention_mask
        mask = mask if mask is None else mask.to(q.device)  # layers may lie on several devices
        out = self.backend(q, k, v, mask=mask, causal=causal, dropout_p=self.dropout_p)
        out = out.transpose(1, 2)  # (B, T, H, K)
        if fully_masked is not None:
            out = out.masked_fill(fully_masked.to(q.device)[..., None, None], 0)
        return out.flatten(0, 1)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attention to the images of each row: (N, H, K) -> (N, H, K); zero for tokens that attend to no image.

        Args:
            layer: number of the cross-attention layer, from 0.
        """
        if not self.cross_kv:
            return torch.zeros_like(q)
        keys, values = self.cross_kv[layer]
        q = self._unpack_rows(q)
        mask = self.cross_mask.to(q.device)
        out = sdpa_attention(q, keys, values, mask=mask, causal=False, dropout_p=self.dropout_p)
        out = out.transpose(1, 2) * self.has_image.to(q.device)[..., None, None]
        return out.flatten(0, 1)

    def _unpack_rows(self, x: Tensor) -> Tensor:
        """Splits packed tokens into the B rows: (N, H, K) -> (B, H, T, K)."""
        out: Tensor = x.unflatten(0, (self.num_rows, -1)).transpose(1, 2)
        return out
