"""How likely each of many endings is after one prompt: they are read side by side as trees, common beginnings once.

Knows ids; does not know labels. A node of a tree is a token after the tokens that lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics.engine.request import Continuation
from idefics.messages import Alternative

MAX_GROUP_TOKENS = 2048  # so many tokens of endings are read at once
MAX_LOGIT_ROWS = 256  # rows of float32 logits at once: 128 MiB for a vocabulary of 128 Ki


class CandidateTrie:
    """Some endings whose common beginnings are read once. N nodes: all tokens that others come after.

    Attributes:
        ids: (N,) int64.
        depths: (N,) how far each stands after the prompt, from 0.
        ancestor_mask: (N, N) which nodes each of them sees: those that lead to it, and itself.
    """

    def __init__(self) -> None:
        self._node_by_path: dict[tuple[int, ...], int] = {}
        self._parents: list[int] = []

    def __len__(self) -> int:
        return len(self._node_by_path)

    def count_new_nodes(self, continuation: Continuation) -> int:
        """How many nodes an ending would add."""
        return sum(tuple(continuation[:end]) not in self._node_by_path for end in range(1, len(continuation)))

    def add(self, continuation: Continuation) -> None:
        """Takes an ending in."""
        for end in range(1, len(continuation)):
            path = tuple(continuation[:end])
            if path not in self._node_by_path:
                self._parents.append(self._node_by_path[path[:-1]] if end > 1 else -1)
                self._node_by_path[path] = len(self._node_by_path)

    def node_index(self, path: Continuation) -> int:
        """The number of the node at the end of a path."""
        return self._node_by_path[tuple(path)]

    @property
    def ids(self) -> Tensor:
        return torch.tensor([path[-1] for path in self._node_by_path])

    @property
    def depths(self) -> Tensor:
        return torch.tensor([len(path) - 1 for path in self._node_by_path])

    @property
    def ancestor_mask(self) -> Tensor:
        mask = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask


class ContinuationScores:
    """The endings of one prompt, and what is known of them so far.

    The prompt's last token predicts every ending's first, and no ending's last token need be read.

    Args:
        prompt_logits: (V,) logits after the prompt.
        num_top_logprobs: so many of the most likely tokens in the place of each are kept.
        max_group_tokens: so many tokens are read at once; a longer ending alone.

    Attributes:
        logprobs: of each ending the natural-log probability of each token.
        top_logprobs: of each ending the most likely tokens in the place of each token, the likeliest first.
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
        self._record_logprobs(
            prompt_logits[None],
            0,
            [(0, continuation[0], i, 0) for i, continuation in enumerate(continuations) if continuation],
        )
        self.trie_by_group: dict[int, CandidateTrie] = {}
        self._indices_by_group: dict[int, list[int]] = {}
        self._build_tries(max_group_tokens)

    def score_group(
        self,
        group: int,
        h: Tensor,
        compute_logits: Callable[[Tensor], Tensor],
        max_rows: int = MAX_LOGIT_ROWS,
    ) -> None:
        """(N, D) hidden states after the nodes of a tree, which is done with then."""
        trie = self.trie_by_group.pop(group)
        targets = [  # after which node which id: whose score is it
            (
                trie.node_index(self.continuations[index][:position]),
                self.continuations[index][position],
                index,
                position,
            )
            for index in self._indices_by_group.pop(group)
            for position in range(1, len(self.continuations[index]))
        ]
        targets.sort(key=lambda one: one[0])
        for start in range(0, len(h), max_rows):
            batch = [target for target in targets if start <= target[0] < start + max_rows]
            self._record_logprobs(compute_logits(h[start : start + max_rows]), start, batch)

    def _record_logprobs(
        self, logits: Tensor, start: int, targets: Sequence[tuple[int, int, int, int]]
    ) -> None:
        """Notes what (n, V) logits after the nodes from `start` on say of (node, id, ending, its place)."""
        logprobs = logits.float().log_softmax(-1)
        pairs = [(node - start, id) for node, id, *_ in targets]
        rows, ids = torch.tensor(pairs, dtype=torch.long, device=logits.device).view(-1, 2).T
        top_logprobs = _top_logprobs(logprobs, self.num_top_logprobs)
        for (node, _, index, position), logprob in zip(targets, logprobs[rows, ids].tolist(), strict=True):
            self.logprobs[index][position] = logprob
            self.top_logprobs[index][position] = top_logprobs[node - start]

    def _build_tries(self, max_group_tokens: int) -> None:
        """Neighbours in the order of the alphabet share most."""
        trie: CandidateTrie | None = None
        for index in sorted(
            range(len(self.continuations)), key=lambda index: tuple(self.continuations[index])
        ):
            continuation = self.continuations[index]
            if len(continuation) < 2:
                continue
            if trie is None or (
                len(trie)
                and (num_new_nodes := trie.count_new_nodes(continuation))
                and len(trie) + num_new_nodes > max_group_tokens
            ):
                trie = self.trie_by_group[len(self.trie_by_group)] = CandidateTrie()
            trie.add(continuation)
            self._indices_by_group.setdefault(len(self.trie_by_group) - 1, []).append(index)


def _top_logprobs(logprobs: Tensor, count: int) -> list[tuple[Alternative, ...]]:
    """The `count` most likely tokens of each row of (n, V) log-probabilities."""
    if not count:
        return [()] * len(logprobs)
    values, ids = logprobs.topk(count)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [tuple(map(Alternative, *pair)) for pair in pairs]
