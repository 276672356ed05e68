"""Logits processors: repetition penalty, top-k, top-p, min-p, typical sampling, repeated n-grams, banned sequences.

R rows, S of them sampled, T ids so far, V vocabulary. Ids are padded on the left. Dropped tokens get -inf.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

TOP_P_CANDIDATES = 4096  # the most likely tokens, among which the nucleus of nearly every row lies


def present_ids_mask(ids: Tensor, vocab_size: int, starts: Tensor) -> Tensor:
    """Which ids occur in each row: (R, T) ids padded on the left -> (R, V) bool.

    Args:
        starts: (R,) the index of each row's first id after its padding.
    """
    padding = torch.arange(ids.shape[1], device=ids.device) < starts[:, None]
    counts = torch.zeros(len(ids), vocab_size, dtype=torch.long, device=ids.device)
    return counts.scatter_add_(1, ids, (~padding).long()) > 0


def repeated_ngrams_mask(
    ids: Tensor, ngram_size: int, vocab_size: int, source_ids: Tensor | None = None
) -> Tensor:
    """Which next ids would repeat an n-gram of `ngram_size` ids: (R, T) ids so far -> (R, V) bool.

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


def apply_repetition_penalty(scores: Tensor, present_mask: Tensor, penalty: Tensor | float) -> Tensor:
    """Penalizes the ids in `present_mask` (R, V), which have occurred: (R, V) scores -> (R, V).

    Positive scores are divided by `penalty`, (R, 1) or one number, and negative ones multiplied by it (CTRL,
    arXiv 1909.05858): above 1 the ids become less likely, below 1 more likely.
    """
    return torch.where(present_mask, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(logits: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """Sets all logits but the `top_k` largest of each row to -inf: (S, V) -> (S, V).

    Logits equal to the last of those are kept too.

    Args:
        top_k: (S, 1); 0 keeps all.
        max_top_k: the largest of `top_k`, known to the host.
    """
    largest = logits.topk(min(max_top_k, logits.shape[1])).values
    threshold = largest.gather(1, (top_k - 1).clamp(0, largest.shape[1] - 1))
    return logits.masked_fill(logits < threshold.masked_fill(top_k == 0, -torch.inf), -torch.inf)


def keep_top_p(logits: Tensor, tail_probability: Tensor | float, min_tokens_to_keep: int = 1) -> Tensor:
    """Keeps each row's smallest set of most likely tokens whose probabilities add up to p; others get -inf.

    Nucleus sampling, arXiv 1904.09751: (S, V) logits -> (S, V).

    Args:
        tail_probability: 1 - p, (S, 1) or one number.
        min_tokens_to_keep: how many of the most likely tokens are kept in any case.
    """
    ascending, order, probability = _sort_by_cumulative_probability(logits, tail_probability)
    drop = probability <= tail_probability
    drop[:, -min_tokens_to_keep:] = False
    filtered = ascending.masked_fill(drop, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(1, order, filtered)


def _sort_by_cumulative_probability(
    logits: Tensor, tail_probability: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's logits ascending, their ids, and the cumulative probability of each logit and all smaller ones.

    On a CPU only the `TOP_P_CANDIDATES` largest are returned if all others together have at most `tail_probability`:
    sorting 49,000 tokens takes as long as a small model's decode step, `topk` takes almost no time. On a GPU all are
    sorted, which is fast there, since the test would make the host wait for the GPU.
    """
    if logits.device.type == "cpu" and logits.shape[1] > TOP_P_CANDIDATES:
        largest, ids = (x.flip(-1) for x in logits.topk(TOP_P_CANDIDATES))
        probabilities = (largest - logits.logsumexp(-1, keepdim=True)).exp()
        remaining_probability = 1 - probabilities.sum(-1, keepdim=True)
        if (remaining_probability <= tail_probability).all():
            return largest, ids, remaining_probability + probabilities.cumsum(-1)
    ascending, order = logits.sort()
    return ascending, order, ascending.softmax(-1).cumsum(-1)


def keep_min_p(logits: Tensor, min_p: Tensor | float, min_tokens_to_keep: int = 1) -> Tensor:
    """Sets tokens less likely than `min_p` times the row's most likely one to -inf: (S, V) logits -> (S, V).

    Keeps at least the `min_tokens_to_keep` most likely tokens. `min_p` is (S, 1) or one number. Min-p sampling,
    arXiv 2407.01082.
    """
    probabilities = logits.softmax(-1)
    drop = probabilities < min_p * probabilities.amax(-1, keepdim=True)
    drop.scatter_(1, probabilities.topk(min(min_tokens_to_keep, logits.shape[1])).indices, False)
    return logits.masked_fill(drop, -torch.inf)


def keep_typical(logits: Tensor, p: float, min_tokens_to_keep: int = 1) -> Tensor:
    """Keeps each row's most typical tokens whose probabilities add up to p; others get -inf: (S, V) -> (S, V).

    Locally typical sampling, arXiv 2202.00666: a token is more typical the nearer its information is to the entropy.

    Args:
        min_tokens_to_keep: how many of the most typical tokens are kept in any case.
    """
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)
    entropy_distance, order = (-logprobs - entropy).abs().sort()
    cumulative = logits.gather(1, order).softmax(-1).cumsum(-1)
    last_index = (cumulative < p).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    drop = entropy_distance > entropy_distance.gather(1, last_index)
    drop[:, :min_tokens_to_keep] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def forbidden_token_mask(bitmasks: Sequence[bytes], vocab_size: int, device: torch.device) -> Tensor:
    """The ids that G constraints forbid, from the bitmasks of those that they allow.

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
