"""Boolean masks over the vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def forbidden_token_mask(bitmasks: Sequence[bytes], vocab_size: int, device: torch.device) -> Tensor:
    """Inverts and unpacks the bitmasks of G constraints.

    Args:
        bitmasks: for each constraint one bit for each allowed id, the lowest id first (`TokenConstraint`).
        vocab_size: V.

    Returns:
        (G, V) bool: the ids that may not follow.
    """
    bitmask_bytes = torch.frombuffer(bytearray(b"".join(bitmasks)), dtype=torch.uint8).view(
        len(bitmasks), -1, 1
    )
    allowed = (bitmask_bytes.to(device) >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return allowed.flatten(1)[:, :vocab_size] == 0


def token_mask(ids: Collection[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool: true at the given ids, which are below V."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[torch.tensor(list(ids), dtype=torch.long, device=device)] = True
    return mask
