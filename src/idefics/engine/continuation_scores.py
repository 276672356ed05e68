"""Log-probabilities of many continuations of one prompt, computed together: each shared prefix is computed once.

Continuations are stored as tries, in which a node is a token after the path of tokens that leads to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.request import Continuation
from idefics.messages import Alternative

MAX_GROUP_TOKENS = 2048  # tokens of continuations in one forward pass
MAX_LOGIT_ROWS = 256  # rows of float32 logits computed at once: 128 MiB for a vocabulary of 128 Ki


class CandidateTrie:
    """A trie of a group of continuations: each node is a token after a path of tokens, and continuations share nodes.

    It has N nodes, for all tokens but the last of each continuation, which is never fed to the model.

    Attributes:
        continuation_indices: the indices of the group's continuations among all.
    """

    def __init__(self) -> None:
        self.continuation_indices: list[int] = []
        self._node_by_path: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._node_by_path)

    def find_new_nodes(self, continuation: Continuation) -> list[tuple[int, ...]]:
        """The nodes that `add` would create for a continuation, as paths: one for every token but the last."""
        paths = (tuple(continuation[:end]) for end in range(1, len(continuation)))
        return [path for path in paths if path not in self._node_by_path]

    def add(self, index: int, continuation: Continuation) -> None:
        """Adds the continuation number `index`, with its nodes."""
        self.continuation_indices.append(index)
        for path in self.find_new_nodes(continuation):
            self._node_by_path[path] = len(self)

    def node_index(self, path: Continuation) -> int:
        """The index of the node at the end of a path of token ids, in order of creation; KeyError if there is none."""
        return self._node_by_path[tuple(path)]

    @property
    def ids(self) -> Tensor:
        """(N,) int64: the token id of each node, in order of creation."""
        return torch.tensor([path[-1] for path in self._node_by_path])

    @property
    def depths(self) -> Tensor:
        """(N,) int64: how many tokens lie between the prompt and each node; 0 for first tokens."""
        return torch.tensor([len(path) - 1 for path in self._node_by_path])

    @property
    def ancestor_mask(self) -> Tensor:
        """(N, N) bool: the nodes that each node attends to, its ancestors and itself."""
        mask = torch.eye(len(self), dtype=torch.bool)
        for path, node in self._node_by_path.items():
            if len(path) > 1:
                mask[node] |= mask[self._node_by_path[path[:-1]]]
        return mask


class ScoringTarget(NamedTuple):
    """A token to score: the logits after trie node `node` give the log-probability of the token at `position` of a
    continuation."""

    node: int
    continuation_index: int
    position: int


class ContinuationScores:
    """The scores of one prompt's continuations, filled group by group.

    The logits after the prompt score the first token of every continuation; the last token of a continuation is never
    fed to the model.

    Args:
        prompt_logits: (V,) logits after the prompt.
        num_top_logprobs: how many of the most likely tokens are recorded at each position.
        max_group_tokens: the maximum number of nodes of a group, unless a single continuation is longer.

    Attributes:
        logprobs: for each continuation the natural-log probability of each token.
        top_logprobs: for each continuation the most likely tokens at the position of each token, the likeliest first.
        pending_tries: the groups that are still to be scored.
    """

    def __init__(
        self,
        continuations: Sequence[Continuation],
        prompt_logits: Tensor,
        num_top_logprobs: int,
        max_group_tokens: int = MAX_GROUP_TOKENS,
    ) -> None:
        self.logprobs: list[list[float]] = [[0.0] * len(continuation) for continuation in continuations]
        self.top_logprobs: list[list[tuple[Alternative, ...]]] = [
            [()] * len(continuation) for continuation in continuations
        ]
        self.continuations, self.num_top_logprobs = continuations, num_top_logprobs
        first_tokens = [ScoringTarget(0, index, 0) for index, ids in enumerate(continuations) if ids]
        self._record_logprobs(prompt_logits[None], 0, first_tokens)
        self.pending_tries: list[CandidateTrie] = []
        self._build_tries(max_group_tokens)

    def score_trie(
        self,
        trie: CandidateTrie,
        h: Tensor,
        compute_logits: Callable[[Tensor], Tensor],
    ) -> None:
        """Scores a group's continuations from their second token on, and removes the group from `pending_tries`.

        Args:
            h: (N, D) hidden states, a row for each node.
            compute_logits: (n, D) -> (n, V).
        """
        self.pending_tries.remove(trie)
        targets = [
            ScoringTarget(trie.node_index(self.continuations[index][:position]), index, position)
            for index in trie.continuation_indices
            for position in range(1, len(self.continuations[index]))
        ]
        targets.sort(key=lambda target: target.node)
        for start in range(0, len(h), MAX_LOGIT_ROWS):
            batch = [target for target in targets if start <= target.node < start + MAX_LOGIT_ROWS]
            self._record_logprobs(compute_logits(h[start : start + MAX_LOGIT_ROWS]), start, batch)

    def _record_logprobs(self, logits: Tensor, start: int, targets: Sequence[ScoringTarget]) -> None:
        """Records the scores of `targets`, given the (n, V) logits of nodes `start` to `start + n - 1`."""
        logprobs = logits.float().log_softmax(-1)
        pairs = [(node - start, self.continuations[index][position]) for node, index, position in targets]
        rows, ids = torch.tensor(pairs, dtype=torch.long, device=logits.device).view(-1, 2).T
        top_logprobs = _top_logprobs(logprobs, self.num_top_logprobs)
        for (node, index, position), logprob in zip(targets, logprobs[rows, ids].tolist(), strict=True):
            self.logprobs[index][position] = logprob
            self.top_logprobs[index][position] = top_logprobs[node - start]

    def _build_tries(self, max_group_tokens: int) -> None:
        """Splits the continuations into groups of at most `max_group_tokens` nodes, a trie each.

        They are taken in sorted order, in which neighbours share the longest prefixes.
        """
        continuations = sorted(enumerate(self.continuations), key=lambda item: tuple(item[1]))
        trie = CandidateTrie()
        for index, continuation in continuations:
            if len(continuation) < 2:
                continue
            num_new_nodes = len(trie.find_new_nodes(continuation))
            if not self.pending_tries or (num_new_nodes and len(trie) + num_new_nodes > max_group_tokens):
                trie = CandidateTrie()
                self.pending_tries.append(trie)
            trie.add(index, continuation)


def _top_logprobs(logprobs: Tensor, count: int) -> list[tuple[Alternative, ...]]:
    """The `count` most likely tokens of each row of (n, V) log-probabilities."""
    values, ids = logprobs.topk(count)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [tuple(map(Alternative, *pair)) for pair in pairs]
