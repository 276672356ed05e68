"""What the ids so far forbid or make less likely: ids in, masks of the next id out.

R rows, T ids so far, V vocabulary. Rows are padded on the left. Does not know scores or settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.engine.sampler import ids_mask


def present_ids(ids: Tensor, vocabulary: int, starts: Tensor) -> Tensor:
    """Which ids a row has already, its padding left out: (R, T) ids, (R,) where each row starts -> (R, V)."""
    padding = torch.arange(ids.shape[1], device=ids.device) < starts[:, None]
    counts = torch.zeros(len(ids), vocabulary, dtype=torch.long, device=ids.device)
    return counts.scatter_add_(1, ids, (~padding).long()) > 0


def repeated_ngrams(ids: Tensor, size: int, vocabulary: int, among: Tensor | None = None) -> Tensor:
    """Which ids would complete an n-gram of `size` ids that the row has already: (R, T) -> (R, V).

    Args:
        among: (R, P) the ids whose n-grams count; None: those of the row itself.
    """
    banned = torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device)
    among = ids if among is None else among
    if ids.shape[1] >= size - 1 and among.shape[1] >= size:
        begun = ids[:, ids.shape[1] - size + 1 :]  # (R, size - 1)
        ngrams = among.unfold(1, size, 1)  # (R, P - size + 1, size)
        rows, places = (ngrams[..., :-1] == begun[:, None]).all(-1).nonzero(as_tuple=True)
        banned[rows, ngrams[rows, places, -1]] = True
    return banned


class BannedWords:
    """Sequences of ids that shall never be complete. An empty one bans nothing.

    Args:
        words: ids of each; one of a single id is banned everywhere.
        vocabulary: V.
    """

    def __init__(self, words: Sequence[Sequence[int]], vocabulary: int, device: torch.device) -> None:
        self.always = ids_mask([word[0] for word in words if len(word) == 1], vocabulary, device)  # (V,)
        self.after = [
            (torch.tensor(word[:-1], device=device), word[-1]) for word in map(list, words) if len(word) > 1
        ]

    def mask(self, ids: Tensor) -> Tensor:
        """Which ids would complete one: (R, T) -> (R, V)."""
        banned = self.always.repeat(len(ids), 1)
        for beginning, last in self.after:
            if len(beginning) <= ids.shape[1]:
                banned[:, last] |= (ids[:, -len(beginning) :] == beginning).all(-1)
        return banned
