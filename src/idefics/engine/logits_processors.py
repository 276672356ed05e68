"""Masks over the next id that follow from the ids so far: presence, repeated n-grams, banned sequences.

R rows, T ids so far, V vocabulary. Rows are padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.engine.sampler import token_mask


def present_ids_mask(ids: Tensor, vocab_size: int, starts: Tensor) -> Tensor:
    """Which ids occur in each row: (R, T) ids, (R,) index of each row's first id after its padding -> (R, V)."""
    padding = torch.arange(ids.shape[1], device=ids.device) < starts[:, None]
    counts = torch.zeros(len(ids), vocab_size, dtype=torch.long, device=ids.device)
    return counts.scatter_add_(1, ids, (~padding).long()) > 0


def repeated_ngrams_mask(
    ids: Tensor, ngram_size: int, vocab_size: int, source_ids: Tensor | None = None
) -> Tensor:
    """Which next ids would repeat an n-gram of `ngram_size` ids: (R, T) -> (R, V).

    Args:
        source_ids: (R, P) the ids whose n-grams must not be repeated; None: `ids`.
    """
    banned = torch.zeros(len(ids), vocab_size, dtype=torch.bool, device=ids.device)
    source_ids = ids if source_ids is None else source_ids
    if ids.shape[1] >= ngram_size - 1 and source_ids.shape[1] >= ngram_size:
        last_ids = ids[:, ids.shape[1] - ngram_size + 1 :]  # (R, size - 1)
        ngrams = source_ids.unfold(1, ngram_size, 1)  # (R, P - size + 1, size)
        rows, starts = (ngrams[..., :-1] == last_ids[:, None]).all(-1).nonzero(as_tuple=True)
        banned[rows, ngrams[rows, starts, -1]] = True
    return banned


class BannedIdSequences:
    """Bans sequences of ids: the last id of each is masked where the ids before it have just been generated.

    Args:
        sequences: the ids of each; one of a single id is banned everywhere, an empty one bans nothing.
        vocab_size: V.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        self.single_id_mask = token_mask(
            [word[0] for word in sequences if len(word) == 1], vocab_size, device
        )  # (V,)
        self.last_id_by_prefix = [
            (torch.tensor(word[:-1], device=device), word[-1])
            for word in map(list, sequences)
            if len(word) > 1
        ]

    def mask(self, ids: Tensor) -> Tensor:
        """Which next ids would complete a banned sequence: (R, T) ids so far -> (R, V)."""
        banned = self.single_id_mask.repeat(len(ids), 1)
        for prefix, last in self.last_id_by_prefix:
            if len(prefix) <= ids.shape[1]:
                banned[:, last] |= (ids[:, -len(prefix) :] == prefix).all(-1)
        return banned
