"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE_INDEX = -100  # a label that asks for nothing; torch's own default


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    token_mask: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean negative log-likelihood of each token after those before it, over the whole vocabulary, in float32.

    As the released Idefics was trained with: labels that `token_mask` calls padding are left out, and so are those of -100.

    Args:
        logits: (B, T, V).
        labels: (B, T), the tokens themselves; the first is never asked for.
        token_mask: (B, T) or longer at its beginning (a past), true where a token stands; None: everywhere.

        num_items_in_batch: of how many labels the mean is, where these are only a part of a larger batch; None: of those here.

    Returns:
        A scalar; NaN where no label is left and `num_items_in_batch` is not given.
    """
    targets = labels[:, 1:].to(logits.device)
    if token_mask is not None:
        is_token = token_mask[:, token_mask.shape[1] - targets.shape[1] :].to(logits.device).bool()
        targets = targets.masked_fill(~is_token, IGNORE_INDEX)
    scores, ids = logits[:, :-1].float().flatten(0, 1), targets.flatten()
    if num_items_in_batch is None:
        return cross_entropy(scores, ids, ignore_index=IGNORE_INDEX)
    total = cross_entropy(scores, ids, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / torch.as_tensor(num_items_in_batch, device=total.device)
