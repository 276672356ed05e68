"""Attention over padded batches and what came before them: the way of trainers and of callers who bring whole batches.

B rows, T new tokens a row, L positions in all (those of the past included), H query heads, h key/value heads, K head
size, S feature rows that stand beside a row's text, P pictures. Packed tokens are row after row: N is B * T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.nn.attention import CrossKV, causal_window_mask
from idefics.nn.attention_backends import AttentionBackend, sdpa_attention


class LayerKV(NamedTuple):
    """What one layer attends to: (B, h, L, K) each, keys after rotation; beside the text (B, H, S, K)."""

    keys: Tensor
    values: Tensor


class AttentionMask(NamedTuple):
    """What the new tokens see of their rows.

    Attributes:
        mask: (B, 1, T, L), or None where all rows see alike.
        is_causal: with no mask: whether a token sees those up to itself, or all.
        fully_masked: (B, T) padding, which sees nothing; None where there is none among the new tokens.
    """

    mask: Tensor | None
    is_causal: bool
    fully_masked: Tensor | None


def make_attention_mask(
    token_mask: Tensor | None, num_new: int, num_past: int, sliding_window: int | None, device: torch.device
) -> AttentionMask:
    """What `num_new` tokens see after `num_past` others.

    Args:
        token_mask: (B, past + new), true where a token stands and false for padding; None: no padding.
        sliding_window: a token sees so many tokens, itself the last of them; None: all before it.
    """
    total = num_past + num_new
    exceeds_window = sliding_window is not None and total > sliding_window
    has_padding = token_mask is not None and not bool(token_mask.all())
    if not has_padding and not exceeds_window and (num_past == 0 or num_new == 1):
        return AttentionMask(None, is_causal=num_new > 1, fully_masked=None)
    positions = torch.arange(total, device=device)
    mask = causal_window_mask(positions[num_past:], positions, sliding_window)[None, None]  # (1, 1, T, L)
    if not has_padding or token_mask is None:
        return AttentionMask(mask, is_causal=False, fully_masked=None)
    mask = mask & token_mask[:, None, None].bool()
    fully_masked = ~mask.any(dim=-1)  # (B, 1, T)
    # A row of a softmax that may look nowhere would be NaN: it looks everywhere, and what it saw is dropped.
    return AttentionMask(
        mask | fully_masked[..., None],
        is_causal=False,
        fully_masked=fully_masked[:, 0] if bool(fully_masked.any()) else None,
    )


class CrossAttentionInputs(NamedTuple):
    """Pictures beside the text.

    Attributes:
        cross_kv: (B, H, S, K) keys and values for each cross layer; S is P pictures of equally many feature rows.
        image_mask: (B, T, P), which pictures a token sees.
    """

    cross_kv: Sequence[LayerKV]
    image_mask: Tensor


def group_cross_kv_by_row(cross_kv: CrossKV, num_rows: int) -> tuple[LayerKV, ...]:
    """Keys and values of all pictures, those of one row after those of another, laid out by rows.

    (B*P, M, H, K) for each cross layer -> (B, H, P*M, K).
    """

    def group_rows(x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(0, (num_rows, -1)).flatten(1, 2).transpose(1, 2)
        return out

    return tuple(LayerKV(group_rows(keys), group_rows(values)) for keys, values in cross_kv)


class PaddedAttn:
    """Rows of one length, padded on either side, after their past.

    Attributes:
        present_kv: for each layer the keys and values of past and new tokens.

    Args:
        num_rows: how many; N is a multiple of it.
        past_kv: for each layer what came before; empty where nothing did.
        cross_inputs: the pictures of cross layers; None where there are none.
        dropout_p: probability with which a weight is dropped, in training.
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
        self.num_rows, self.attention_mask, self.past_kv, self.backend, self.dropout_p = (
            num_rows,
            attention_mask,
            past_kv,
            backend,
            dropout_p,
        )
        self.present_kv: dict[int, LayerKV] = {}
        self.cross_kv: Sequence[LayerKV] = ()
        if cross_inputs is not None:
            self.cross_kv = cross_inputs.cross_kv
            features_per_image = cross_inputs.cross_kv[0].keys.shape[2] // cross_inputs.image_mask.shape[2]
            self.has_image = cross_inputs.image_mask.any(dim=2)  # (B, T)
            visible_images = (cross_inputs.image_mask | ~self.has_image[..., None])[
                :, None
            ]  # no row may look nowhere
            self.cross_mask = visible_images.repeat_interleave(features_per_image, dim=3)  # (B, 1, T, S)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self._unpack_rows(q), self._unpack_rows(k), self._unpack_rows(v)
        if self.past_kv:
            k = torch.cat((self.past_kv[layer].keys, k), dim=2)
            v = torch.cat((self.past_kv[layer].values, v), dim=2)
        self.present_kv[layer] = LayerKV(k, v)
        mask, causal, fully_masked = self.attention_mask
        mask = mask if mask is None else mask.to(q.device)  # layers may lie on several devices
        out = self.backend(q, k, v, mask=mask, causal=causal, dropout_p=self.dropout_p).transpose(
            1, 2
        )  # (B, T, H, K)
        if fully_masked is not None:
            out = out.masked_fill(fully_masked.to(q.device)[..., None, None], 0)
        return out.flatten(0, 1)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        if not self.cross_kv:
            return torch.zeros_like(q)
        keys, values = self.cross_kv[layer]
        q = self._unpack_rows(q)
        out = sdpa_attention(
            q, keys, values, mask=self.cross_mask.to(q.device), causal=False, dropout_p=self.dropout_p
        )
        out = out.transpose(1, 2) * self.has_image.to(q.device)[..., None, None]
        return out.flatten(0, 1)

    def _unpack_rows(self, x: Tensor) -> Tensor:
        """(N, H, K) -> (B, H, T, K)."""
        out: Tensor = x.unflatten(0, (self.num_rows, -1)).transpose(1, 2)
        return out
