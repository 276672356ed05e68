"""Which ids may follow, as guides say it in bits, as a mask over logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forbidden_token_mask(bitmasks: Sequence[bytes], vocab_size: int, device: torch.device) -> Tensor:
    """(G, V) which ids may not follow in each of G rows.

    Args:
        bitmasks: of each row a bit for each id that may follow, the lowest first.
        vocab_size: V.
    """
    bitmask_bytes = torch.frombuffer(bytearray(b"".join(bitmasks)), dtype=torch.uint8).view(
        len(bitmasks), -1, 1
    )
    allowed = (bitmask_bytes.to(device) >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return allowed.flatten(1)[:, :vocab_size] == 0
