"""Beam search over a batch of prompts, as tensors: what goes on, what has ended, when it is over.

Token for token the search of transformers 5 with its length penalty, its three ways of stopping early and its
sampled beams. Its rules, n beams and s stop ids:

- Every step looks at some continuations of all beams, usually the best max(2, 1 + s) * n. Their score is the sum of
  their log-probabilities.
- Those among the best n that end (with a stop id, or at the length limit) compete for n places by their mean
  log-probability, the stop id counted; those beyond the best n that end are lost.
- The best n that do not end go on.
- The search is over at the length limit, or when n have ended and the mean of the best that goes on is no better than
  the worst of them. Length penalties and ways to stop early change the mean and this.

B prompts, n beams of each, C candidates looked at, T ids so far, V vocabulary. Knows ids and scores; no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Added to what is out of the race. Finite: where fewer than n have ended, the rest must still have an order.
OUT = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamRules:
    """How beams compete.

    Attributes:
        width: n.
        room: at most so many ids are generated.
        candidates: C, how many continuations of a prompt are looked at.
        length_penalty: a beam that has ended competes by score / length ** length_penalty.
        early_stopping: True: over as soon as n have ended. False: over when the best that goes on, ended here,
            would be no better than the worst that has ended. "never": the same, at the length that suits it best.
        draws: whether candidates are drawn, without replacement, rather than the best.
    """

    width: int
    room: int
    candidates: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    draws: bool = False


class Beams(NamedTuple):
    """Some beams of each prompt.

    Attributes:
        ids: (B, n, T + room) prompt and answer, filled up on the right.
        parents: (B, n, room) for each id of the answer the row of (B * n) that it continued; -1 where none is.
        scores: (B, n) sums of log-probabilities, or what ended beams compete by.
        logprobs: (B, n, room) of each id of the answer what `advance` was told of it; 0 where none is.
    """

    ids: Tensor
    parents: Tensor
    scores: Tensor
    logprobs: Tensor

    def take(self, index: Tensor) -> Beams:
        """Of each prompt the beams in `index` (B, m)."""
        return Beams(
            self.ids.take_along_dim(index[..., None], 1),
            self.parents.take_along_dim(index[..., None], 1),
            self.scores.take_along_dim(index, 1),
            self.logprobs.take_along_dim(index[..., None], 1),
        )


class BeamSearch:
    """The beams of B prompts.

    Attributes:
        running: those that go on.
        ended: the best n that have ended, the best first; not yet beams where fewer have.
        is_ended: (B, n) which of `ended` are beams.
        is_over: whether nothing can get better.

    Args:
        ids: (B, T) the prompts.
        fill: the id to the right of an answer.
    """

    def __init__(self, ids: Tensor, rules: BeamRules, fill: int) -> None:
        self.rules, self.prompt, self.length = rules, ids.shape[1], ids.shape[1]
        beams = (len(ids), rules.width)
        room = ids.new_full((len(ids), rules.room), fill)
        whole = torch.cat((ids, room), dim=1)[:, None].repeat(1, rules.width, 1)
        parents = torch.full((*beams, rules.room), -1, dtype=torch.int32, device=ids.device)
        scores = torch.full(beams, OUT, device=ids.device)
        logprobs = torch.zeros(parents.shape, device=ids.device)
        self.ended = Beams(whole, parents, scores, logprobs)
        scores = scores.clone()
        scores[:, 0] = (
            0  # all beams are the prompt still: one of them has continuations, the rest would repeat
        )
        self.running = Beams(whole, parents, scores, logprobs)
        self.is_ended = torch.zeros(beams, dtype=torch.bool, device=ids.device)
        self.improvable = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)  # (B, 1)
        self.is_over = False

    @property
    def ids(self) -> Tensor:
        """(B * n, T) the beams that go on."""
        return self.running.ids[..., : self.length].flatten(0, 1)

    def advance(
        self, scores: Tensor, ends: Callable[[Tensor], Tensor], logprobs: Tensor | None = None
    ) -> Tensor:
        """One id more.

        Args:
            scores: (B * n, V) log-probabilities of the next id, by which beams compete.
            ends: which candidates end, (B * C, T + 1) ids -> (B * C,).
            logprobs: (B * n, V) what shall be kept of each id that is chosen.

        Returns:
            (B * n,) the row that each running beam continues.
        """
        step = self.length - self.prompt
        candidates = self._candidates(scores, step, logprobs)
        self.length += 1
        ending = ends(candidates.ids[..., : self.length].flatten(0, 1)).view(
            candidates.scores.shape
        )  # (B, C)
        on = candidates._replace(scores=candidates.scores + ending.float() * OUT)
        self.running = on.take(on.scores.topk(self.rules.width).indices)
        self._end(candidates, ending, step + 1)
        self._look_ahead(step + 1, bool(ending.all()))
        return self.running.parents[..., step].flatten()

    def best(self, count: int) -> Beams:
        """The best `count` of each prompt, one after another, cut to the longest: (B * count, ...)."""
        ids, parents, scores, logprobs = (x[:, :count].flatten(0, 1) for x in self.ended)
        longest = int((parents >= 0).sum(1).max())
        return Beams(ids[:, : self.prompt + longest], parents[:, :longest], scores, logprobs[:, :longest])

    def _candidates(self, scores: Tensor, step: int, logprobs: Tensor | None) -> Beams:
        """C continuations of each prompt: the best ones, or drawn ones."""
        prompts, width = self.running.scores.shape
        totals = (scores.view(prompts, width, -1) + self.running.scores[..., None]).flatten(1)  # (B, n * V)
        if self.rules.draws:
            chosen = totals.softmax(-1).multinomial(self.rules.candidates)
        else:
            chosen = totals.topk(self.rules.candidates).indices
        vocabulary = scores.shape[1]
        parents = chosen // vocabulary
        candidates = self.running.take(parents)._replace(scores=totals.gather(1, chosen))
        candidates.ids[..., self.length] = chosen % vocabulary
        rows = torch.arange(0, prompts * width, width, device=scores.device)[:, None] + parents
        candidates.parents[..., step] = rows.int()
        if logprobs is not None:
            candidates.logprobs[..., step] = logprobs[rows, chosen % vocabulary]
        return candidates

    def _end(self, candidates: Beams, ending: Tensor, generated: int) -> None:
        """Those of the first n candidates that end compete for n places; those beyond them are lost."""
        is_ended = ending.clone()
        is_ended[:, self.rules.width :] = False
        closed = ~self.improvable | (self.is_ended.all(1, keepdim=True) & (self.rules.early_stopping is True))
        scores = candidates.scores / generated**self.rules.length_penalty
        scores = scores + closed.float() * OUT + (~is_ended).float() * OUT
        pairs = zip(self.ended, candidates._replace(scores=scores), strict=True)
        both = Beams(*(torch.cat(pair, dim=1) for pair in pairs))
        best = both.scores.topk(self.rules.width).indices
        self.ended = both.take(best)
        self.is_ended = torch.cat((self.is_ended, is_ended), dim=1).take_along_dim(best, 1)

    def _look_ahead(self, generated: int, all_end: bool) -> None:
        rules = self.rules
        at_best = rules.room if rules.early_stopping == "never" and rules.length_penalty > 0 else generated
        hope = self.running.scores[:, :1] / at_best**rules.length_penalty  # (B, 1)
        worst = torch.where(self.is_ended, self.ended.scores.amin(1, keepdim=True), OUT)  # (B, n)
        self.improvable &= (hope > worst).any(1, keepdim=True)
        settled = rules.early_stopping is True and bool(self.is_ended.all())
        self.is_over = settled or all_end or not bool(self.improvable.any())
