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
EXCLUDED_SCORE = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchConfig:
    """How beams compete.

    Attributes:
        num_beams: n.
        max_new_tokens: at most so many ids are generated.
        num_candidates: C, how many continuations of a prompt are looked at.
        length_penalty: a beam that has ended competes by score / length ** length_penalty.
        early_stopping: True: over as soon as n have ended. False: over when the best that goes on, ended here,
            would be no better than the worst that has ended. "never": the same, at the length that suits it best.
        do_sample: whether candidates are drawn, without replacement, rather than the best.
    """

    num_beams: int
    max_new_tokens: int
    num_candidates: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False


class Beams(NamedTuple):
    """Some beams of each prompt.

    Attributes:
        ids: (B, n, T + room) prompt and answer, filled up on the right.
        parent_rows: (B, n, room) for each id of the answer the row of (B * n) that it continued; -1 where none is.
        scores: (B, n) sums of log-probabilities, or what ended beams compete by.
        logprobs: (B, n, room) of each id of the answer what `advance` was told of it; 0 where none is.
    """

    ids: Tensor
    parent_rows: Tensor
    scores: Tensor
    logprobs: Tensor

    def select(self, index: Tensor) -> Beams:
        """Of each prompt the beams in `index` (B, m)."""
        return Beams(
            self.ids.take_along_dim(index[..., None], 1),
            self.parent_rows.take_along_dim(index[..., None], 1),
            self.scores.take_along_dim(index, 1),
            self.logprobs.take_along_dim(index[..., None], 1),
        )


class BeamSearch:
    """The beams of B prompts.

    Attributes:
        running: those that go on.
        finished: the best n that have ended, the best first; not yet beams where fewer have.
        finished_mask: (B, n) which of `finished` are beams.
        is_done: whether nothing can get better.

    Args:
        ids: (B, T) the prompts.
        pad_id: the id to the right of an answer.
    """

    def __init__(self, ids: Tensor, config: BeamSearchConfig, pad_id: int) -> None:
        self.config, self.prompt_length, self.length = config, ids.shape[1], ids.shape[1]
        batch_shape = (len(ids), config.num_beams)
        padding = ids.new_full((len(ids), config.max_new_tokens), pad_id)
        padded_ids = torch.cat((ids, padding), dim=1)[:, None].repeat(1, config.num_beams, 1)
        parents = torch.full((*batch_shape, config.max_new_tokens), -1, dtype=torch.int32, device=ids.device)
        scores = torch.full(batch_shape, EXCLUDED_SCORE, device=ids.device)
        logprobs = torch.zeros(parents.shape, device=ids.device)
        self.finished = Beams(padded_ids, parents, scores, logprobs)
        scores = scores.clone()
        scores[:, 0] = (
            0  # all beams are the prompt still: one of them has continuations, the rest would repeat
        )
        self.running = Beams(padded_ids, parents, scores, logprobs)
        self.finished_mask = torch.zeros(batch_shape, dtype=torch.bool, device=ids.device)
        self.improvable_mask = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)  # (B, 1)
        self.is_done = False

    @property
    def ids(self) -> Tensor:
        """(B * n, T) the beams that go on."""
        return self.running.ids[..., : self.length].flatten(0, 1)

    def advance(
        self, scores: Tensor, stopping_criteria: Callable[[Tensor], Tensor], logprobs: Tensor | None = None
    ) -> Tensor:
        """One id more.

        Args:
            scores: (B * n, V) log-probabilities of the next id, by which beams compete.
            stopping_criteria: which candidates end, (B * C, T + 1) ids -> (B * C,).
            logprobs: (B * n, V) what shall be kept of each id that is chosen.

        Returns:
            (B * n,) the row that each running beam continues.
        """
        step = self.length - self.prompt_length
        candidates = self._propose_candidates(scores, step, logprobs)
        self.length += 1
        candidate_finished = stopping_criteria(candidates.ids[..., : self.length].flatten(0, 1)).view(
            candidates.scores.shape
        )  # (B, C)
        unfinished = candidates._replace(
            scores=candidates.scores + candidate_finished.float() * EXCLUDED_SCORE
        )
        self.running = unfinished.select(unfinished.scores.topk(self.config.num_beams).indices)
        self._update_finished(candidates, candidate_finished, step + 1)
        self._update_is_done(step + 1, bool(candidate_finished.all()))
        return self.running.parent_rows[..., step].flatten()

    def best_beams(self, count: int) -> Beams:
        """The best `count` of each prompt, one after another, cut to the longest: (B * count, ...)."""
        ids, parents, scores, logprobs = (x[:, :count].flatten(0, 1) for x in self.finished)
        max_generated = int((parents >= 0).sum(1).max())
        return Beams(
            ids[:, : self.prompt_length + max_generated],
            parents[:, :max_generated],
            scores,
            logprobs[:, :max_generated],
        )

    def _propose_candidates(self, scores: Tensor, step: int, logprobs: Tensor | None) -> Beams:
        """C continuations of each prompt: the best ones, or drawn ones."""
        batch_size, num_beams = self.running.scores.shape
        totals = (scores.view(batch_size, num_beams, -1) + self.running.scores[..., None]).flatten(
            1
        )  # (B, n * V)
        if self.config.do_sample:
            chosen = totals.softmax(-1).multinomial(self.config.num_candidates)
        else:
            chosen = totals.topk(self.config.num_candidates).indices
        vocab_size = scores.shape[1]
        parents = chosen // vocab_size
        candidates = self.running.select(parents)._replace(scores=totals.gather(1, chosen))
        candidates.ids[..., self.length] = chosen % vocab_size
        rows = torch.arange(0, batch_size * num_beams, num_beams, device=scores.device)[:, None] + parents
        candidates.parent_rows[..., step] = rows.int()
        if logprobs is not None:
            candidates.logprobs[..., step] = logprobs[rows, chosen % vocab_size]
        return candidates

    def _update_finished(self, candidates: Beams, candidate_finished: Tensor, num_generated: int) -> None:
        """Those of the first n candidates that end compete for n places; those beyond them are lost."""
        newly_finished = candidate_finished.clone()
        newly_finished[:, self.config.num_beams :] = False
        is_closed = ~self.improvable_mask | (
            self.finished_mask.all(1, keepdim=True) & (self.config.early_stopping is True)
        )
        scores = candidates.scores / num_generated**self.config.length_penalty
        scores = scores + is_closed.float() * EXCLUDED_SCORE + (~newly_finished).float() * EXCLUDED_SCORE
        pairs = zip(self.finished, candidates._replace(scores=scores), strict=True)
        combined = Beams(*(torch.cat(pair, dim=1) for pair in pairs))
        best = combined.scores.topk(self.config.num_beams).indices
        self.finished = combined.select(best)
        self.finished_mask = torch.cat((self.finished_mask, newly_finished), dim=1).take_along_dim(best, 1)

    def _update_is_done(self, num_generated: int, all_finished: bool) -> None:
        rules = self.config
        best_length = (
            rules.max_new_tokens
            if rules.early_stopping == "never" and rules.length_penalty > 0
            else num_generated
        )
        best_running_score = self.running.scores[:, :1] / best_length**rules.length_penalty  # (B, 1)
        worst_finished_score = torch.where(
            self.finished_mask, self.finished.scores.amin(1, keepdim=True), EXCLUDED_SCORE
        )  # (B, n)
        self.improvable_mask &= (best_running_score > worst_finished_score).any(1, keepdim=True)
        is_early_stopped = rules.early_stopping is True and bool(self.finished_mask.all())
        self.is_done = is_early_stopped or all_finished or not bool(self.improvable_mask.any())
