"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100  # a label that asks for nothing; torch's own default


def next_token_loss(
    logits: Tensor, labels: Tensor, tokens: Tensor | None = None, *, items: Tensor | int | None = None
) -> Tensor:
    """Mean negative log-likelihood of each token after those before it, over the whole vocabulary, in float32.

    As the released Idefics was trained with: labels that `tokens` calls padding are left out, and so are those of -100.

    Args:
        logits: (B, T, V).
        labels: (B, T), the tokens themselves; the first is never asked for.
        tokens: (B, T) or longer at its beginning (a past), true where a token stands; None: everywhere.

        items: of how many labels the mean is, where these are only a part of a larger batch; None: of those here.

    Returns:
        A scalar; NaN where no label is left and `items` is not given.
    """
    wanted = labels[:, 1:].to(logits.device)
    if tokens is not None:
        stands = tokens[:, tokens.shape[1] - wanted.shape[1] :].to(logits.device).bool()
        wanted = wanted.masked_fill(~stands, IGNORED)
    scores, ids = logits[:, :-1].float().flatten(0, 1), wanted.flatten()
    if items is None:
        return cross_entropy(scores, ids, ignore_index=IGNORED)
    total = cross_entropy(scores, ids, ignore_index=IGNORED, reduction="sum")
    return total / torch.as_tensor(items, device=total.device)
