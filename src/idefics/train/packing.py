"""`PackedBatch`: rows one after another without padding; `TrainingAttn`: attention within each of them.

N tokens of all rows, T learned tokens, P distinct pictures, M features of a picture, H heads, h key/value heads,
K head size, B padded sequences of W places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from idefics.nn.attention import CrossKV, causal_window_mask
from idefics.nn.attention_backends import AttentionBackend
from idefics.train.rows import TrainingRow

# Sequences are padded together if the shortest has this share of the longest's tokens, or lacks so few.
MIN_FILLED, MAX_PADDING = 0.8, 16


class PictureSource(NamedTuple):
    """A picture of a batch: its key, and a row that shows it."""

    key: str
    row: TrainingRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """Rows that are computed together, as tensors on the CPU.

    Attributes:
        names: of the rows.
        lengths: their numbers of tokens.
        ids: (N,) token ids.
        positions: (N,) of each token in its row.
        image_index: (N,) for each token the index of its picture among `pictures`, or -1.
        pictures: the P distinct pictures.
        shown_pictures: the index of each picture that stands in the rows, in their order; one may occur twice.
        image_token_positions: for each of the shown pictures the positions of its image tokens among the N.
        predicting_positions: (T,) the tokens whose next one is learned.
        target_ids: (T,) the ids of those next ones.
        target_rows: (T,) the row of each.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    ids: Tensor
    positions: Tensor
    image_index: Tensor
    pictures: tuple[PictureSource, ...]
    shown_pictures: tuple[int, ...]
    image_token_positions: Tensor
    predicting_positions: Tensor
    target_ids: Tensor
    target_rows: Tensor

    def names_of(self, is_chosen: Tensor) -> list[str]:
        """The names of the rows with a learned token for which `is_chosen`, (T,) bool, is True."""
        return [self.names[row] for row in self.target_rows[is_chosen.cpu()].unique().tolist()]


def split_by_tokens(rows: Sequence[TrainingRow], max_tokens: int) -> Iterator[list[TrainingRow]]:
    """Splits rows into lists of at most `max_tokens` tokens, the longest rows first; a longer row is alone."""
    batch: list[TrainingRow] = []
    num_tokens = 0
    for row in sorted(rows, key=len, reverse=True):
        if batch and num_tokens + len(row) > max_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(row)
        num_tokens += len(row)
    if batch:
        yield batch


def pack_rows(rows: Sequence[TrainingRow]) -> PackedBatch:
    """Packs rows one after another; those of similar length should follow each other."""
    starts = np.cumsum([0, *(len(row) for row in rows)])
    pictures: dict[str, int] = {}
    sources: list[PictureSource] = []
    shown: list[int] = []
    image_index: list[np.ndarray] = []
    token_positions: list[np.ndarray] = []
    for row, start in zip(rows, starts, strict=False):
        for key in row.picture_keys:
            if key not in pictures:
                pictures[key] = len(pictures)
                sources.append(PictureSource(key, row))
        indices = [pictures[key] for key in row.picture_keys]
        shown += indices
        image_index.append(np.array([*indices, -1])[row.image_index])  # -1 takes the last
        token_positions += [positions + start for positions in row.image_token_positions]
    is_target = np.concatenate([_without_first(row.is_target) for row in rows])
    targets = np.flatnonzero(is_target)
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    row_of_token = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return PackedBatch(
        names=tuple(row.name for row in rows),
        lengths=tuple(len(row) for row in rows),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.arange(len(ids)) - starts[row_of_token]),
        image_index=torch.from_numpy(np.concatenate(image_index)),
        pictures=tuple(sources),
        shown_pictures=tuple(shown),
        image_token_positions=torch.from_numpy(
            np.concatenate([*token_positions, np.zeros(0, np.int64)]).astype(np.int64)
        ),
        predicting_positions=torch.from_numpy(targets - 1),
        target_ids=torch.from_numpy(ids[targets]),
        target_rows=torch.from_numpy(row_of_token[targets]),
    )


def _without_first(is_target: np.ndarray) -> np.ndarray:
    """A row's learned tokens; its first token cannot be one, since nothing predicts it."""
    copied = is_target.copy()
    copied[:1] = False
    return copied


@dataclass(frozen=True, slots=True)
class PaddedGroup:
    """Sequences of similar length that are padded together.

    Attributes:
        sequences: (B,) which ones.
        width: W, the length of the longest.
        tokens: (n,) their tokens among the N.
        token_of_place: (B * W,) the token at each place; padding repeats a sequence's last token. None: the sequences
            need no padding and follow each other in the packed tokens, from `start` on.
        place_of_token: (n,) the place of each of `tokens`.
        start: the first of `tokens`.
    """

    sequences: Tensor
    width: int
    tokens: Tensor
    token_of_place: Tensor | None
    place_of_token: Tensor
    start: int

    def pad(self, x: Tensor) -> Tensor:
        """(N, H, K) -> (B, H, W, K)."""
        if self.token_of_place is None:
            padded = x[self.start : self.start + len(self.tokens)]
        else:
            padded = x.index_select(0, self.token_of_place)
        out: Tensor = padded.unflatten(0, (-1, self.width)).transpose(1, 2)
        return out

    def unpad(self, x: Tensor) -> Tensor:
        """(B, H, W, K) -> (n, H, K)."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.token_of_place is None else flat.index_select(0, self.place_of_token)


class PaddedSequences:
    """Sequences of packed tokens, grouped by length so that little padding is needed.

    Args:
        sequences: the tokens of each among the N, in ascending order.
        num_tokens: N.
        device: of the tokens.
    """

    def __init__(self, sequences: Sequence[np.ndarray], num_tokens: int, device: torch.device) -> None:
        by_length = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        members: list[list[int]] = []
        for index in by_length:
            length, longest = len(sequences[index]), len(sequences[members[-1][0]]) if members else 0
            if members and (length >= MIN_FILLED * longest or length >= longest - MAX_PADDING):
                members[-1].append(index)
            else:
                members.append([index])
        self.groups = [_pad_together(sequences, sorted(indices), device) for indices in members]
        tokens = torch.cat([group.tokens for group in self.groups]) if self.groups else torch.zeros(0)
        is_in_order = torch.equal(tokens.cpu(), torch.arange(num_tokens))
        self.order = None if is_in_order else tokens

    def put_back(self, q: Tensor, outs: Sequence[Tensor]) -> Tensor:
        """The (n, H, K) results of all groups at their tokens, and 0 at tokens that are in none: (N, H, K) as `q`."""
        if not outs:
            return torch.zeros_like(q)
        joined = outs[0] if len(outs) == 1 else torch.cat(list(outs))
        return joined if self.order is None else torch.zeros_like(q).index_copy(0, self.order, joined)


def _pad_together(
    sequences: Sequence[np.ndarray], indices: Sequence[int], device: torch.device
) -> PaddedGroup:
    """The group of these sequences."""
    lengths = np.array([len(sequences[index]) for index in indices])
    width = int(lengths.max())
    places = np.minimum(np.arange(width), lengths[:, None] - 1)  # (B, W) within each sequence
    tokens = np.concatenate([sequences[index] for index in indices])
    token_of_place = tokens[(np.cumsum(lengths) - lengths)[:, None] + places].reshape(-1)
    start, is_as_packed = int(tokens[0]), np.array_equal(token_of_place, np.arange(len(tokens)) + tokens[0])
    arrays = (
        np.array(indices),
        tokens,
        token_of_place,
        np.flatnonzero(np.arange(width) < lengths[:, None]),
    )
    numbers, token_tensor, from_place, from_token = (
        torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays
    )
    return PaddedGroup(numbers, width, token_tensor, None if is_as_packed else from_place, from_token, start)


class TrainingAttn:
    """`Attn` of packed rows, with gradients: padding exists inside one call of the attention backend only.

    Args:
        lengths: numbers of tokens of the rows.
        cross_kv: for each cross-attention layer the keys and values of the P pictures; empty without pictures.
        image_index: (N,) on the CPU: for each token the index of its picture, or -1.
        sliding_window: number of positions that a token attends to, its own included; None: all before it.
        device: of the hidden states.
        backend: computes the attention.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        cross_kv: CrossKV,
        image_index: Tensor,
        *,
        sliding_window: int | None,
        device: torch.device,
        backend: AttentionBackend,
    ) -> None:
        self.cross_kv, self.backend = cross_kv, backend
        ends = np.cumsum(lengths)
        rows = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.rows = PaddedSequences(rows, len(image_index), device)
        self.masks = [_window_mask(group.width, sliding_window, device) for group in self.rows.groups]
        index = image_index.numpy()
        num_pictures = len(cross_kv[0].keys) if cross_kv else 0
        tokens_by_picture = {picture: np.flatnonzero(index == picture) for picture in range(num_pictures)}
        seen = {picture: tokens for picture, tokens in tokens_by_picture.items() if len(tokens)}
        self.tokens_of_pictures = PaddedSequences(list(seen.values()), len(index), device)
        self.pictures = torch.tensor(list(seen), dtype=torch.long, device=device)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each row: q (N, H, K), k and v (N, h, K) -> (N, H, K); `layer` is not used."""
        outs = []
        for group, mask in zip(self.rows.groups, self.masks, strict=True):
            padded_q, padded_k, padded_v = (group.pad(x) for x in (q, k, v))
            outs.append(
                group.unpad(self.backend(padded_q, padded_k, padded_v, mask=mask, causal=mask is None))
            )
        return self.rows.put_back(q, outs)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attention to the image features of each token's picture: (N, H, K) -> (N, H, K); 0 for tokens without one."""
        outs = []
        for group in self.tokens_of_pictures.groups:
            pictures = self.pictures[group.sequences]
            keys, values = (x.index_select(0, pictures).transpose(1, 2) for x in self.cross_kv[layer])
            outs.append(group.unpad(self.backend(group.pad(q), keys, values)))
        return self.tokens_of_pictures.put_back(q, outs)


def _window_mask(width: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """The (W, W) mask of a sliding window; None if causal attention is all that is needed."""
    if sliding_window is None or width <= sliding_window:
        return None
    positions = torch.arange(width, device=device)
    return causal_window_mask(positions, positions, sliding_window)
