"""How likely each of many endings is after one prompt: they are read side by side as trees, common beginnings once.

Knows ids; does not know labels. A node of a tree is a token after the tokens that lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics.engine.request import Ending
from idefics.messages import Alternative

GROUP_TOKENS = 2048  # so many tokens of endings are read at once
LOGIT_ROWS = 256  # rows of float32 logits at once: 128 MiB for a vocabulary of 128 Ki


class Tree:
    """Some endings whose common beginnings are read once. N nodes: all tokens that others come after.

    Attributes:
        ids: (N,) int64.
        depths: (N,) how far each stands after the prompt, from 0.
        sees: (N, N) which nodes each of them sees: those that lead to it, and itself.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, ...], int] = {}
        self._parents: list[int] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def new(self, ending: Ending) -> int:
        """How many nodes an ending would add."""
        return sum(tuple(ending[:end]) not in self._nodes for end in range(1, len(ending)))

    def add(self, ending: Ending) -> None:
        """Takes an ending in."""
        for end in range(1, len(ending)):
            path = tuple(ending[:end])
            if path not in self._nodes:
                self._parents.append(self._nodes[path[:-1]] if end > 1 else -1)
                self._nodes[path] = len(self._nodes)

    def node(self, path: Ending) -> int:
        """The number of the node at the end of a path."""
        return self._nodes[tuple(path)]

    @property
    def ids(self) -> Tensor:
        return torch.tensor([path[-1] for path in self._nodes])

    @property
    def depths(self) -> Tensor:
        return torch.tensor([len(path) - 1 for path in self._nodes])

    @property
    def sees(self) -> Tensor:
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


class Scores:
    """The endings of one prompt, and what is known of them so far.

    The prompt's last token predicts every ending's first, and no ending's last token need be read.

    Args:
        after_prompt: (V,) logits after the prompt.
        top: so many of the most likely tokens in the place of each are kept.
        most: so many tokens are read at once; a longer ending alone.

    Attributes:
        scores: of each ending the natural-log probability of each token.
        tops: of each ending the most likely tokens in the place of each token, the likeliest first.
    """

    def __init__(
        self, endings: Sequence[Ending], after_prompt: Tensor, top: int, most: int = GROUP_TOKENS
    ) -> None:
        self.scores: list[list[float]] = [[0.0] * len(ending) for ending in endings]
        self.tops: list[list[tuple[Alternative, ...]]] = [[()] * len(ending) for ending in endings]
        self.endings, self.top = endings, top
        self._write(after_prompt[None], 0, [(0, one[0], i, 0) for i, one in enumerate(endings) if one])
        self.trees: dict[int, Tree] = {}
        self._members: dict[int, list[int]] = {}
        self._group(most)

    def read(
        self, number: int, h: Tensor, logits: Callable[[Tensor], Tensor], rows: int = LOGIT_ROWS
    ) -> None:
        """(N, D) hidden states after the nodes of a tree, which is done with then."""
        tree = self.trees.pop(number)
        asked = [  # after which node which id: whose score is it
            (tree.node(self.endings[index][:place]), self.endings[index][place], index, place)
            for index in self._members.pop(number)
            for place in range(1, len(self.endings[index]))
        ]
        asked.sort(key=lambda one: one[0])
        for start in range(0, len(h), rows):
            some = [one for one in asked if start <= one[0] < start + rows]
            self._write(logits(h[start : start + rows]), start, some)

    def _write(self, logits: Tensor, start: int, asked: Sequence[tuple[int, int, int, int]]) -> None:
        """Notes what (n, V) logits after the nodes from `start` on say of (node, id, ending, its place)."""
        logprobs = logits.float().log_softmax(-1)
        pairs = [(node - start, id) for node, id, *_ in asked]
        rows, ids = torch.tensor(pairs, dtype=torch.long, device=logits.device).view(-1, 2).T
        tops = _likeliest(logprobs, self.top)
        for (node, _, index, place), logprob in zip(asked, logprobs[rows, ids].tolist(), strict=True):
            self.scores[index][place] = logprob
            self.tops[index][place] = tops[node - start]

    def _group(self, most: int) -> None:
        """Neighbours in the order of the alphabet share most."""
        tree: Tree | None = None
        for index in sorted(range(len(self.endings)), key=lambda index: tuple(self.endings[index])):
            ending = self.endings[index]
            if len(ending) < 2:
                continue
            if tree is None or (len(tree) and (new := tree.new(ending)) and len(tree) + new > most):
                tree = self.trees[len(self.trees)] = Tree()
            tree.add(ending)
            self._members.setdefault(len(self.trees) - 1, []).append(index)


def _likeliest(logprobs: Tensor, top: int) -> list[tuple[Alternative, ...]]:
    """The `top` most likely tokens of each row of (n, V) log-probabilities."""
    if not top:
        return [()] * len(logprobs)
    values, ids = logprobs.topk(top)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [tuple(map(Alternative, *pair)) for pair in pairs]
