"""Which ids may follow, as guides say it in bits, as a mask over logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forbidden_ids(allowed: Sequence[bytes], vocabulary: int, device: torch.device) -> Tensor:
    """(G, V) which ids may not follow in each of G rows.

    Args:
        allowed: of each row a bit for each id that may follow, the lowest first.
        vocabulary: V.
    """
    eights = torch.frombuffer(bytearray(b"".join(allowed)), dtype=torch.uint8).view(len(allowed), -1, 1)
    may = (eights.to(device) >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return may.flatten(1)[:, :vocabulary] == 0
