"""Beam search over a batch of prompts, as tensors.

Gives the same tokens as beam search in transformers 5, with its length penalty, its three settings of `early_stopping`
and its sampled beams. With n beams and s stop ids:

- Every step considers C candidates, usually the best max(2, 1 + s) * n continuations of all beams by the sum of their
  log-probabilities.
- Candidates among the best n that are finished (by a stop id or the length limit) compete for the n finished beams by
  their mean log-probability, stop id included; finished candidates beyond the best n are dropped.
- The best n unfinished candidates are the next running beams.
- The search is done at the length limit, or when n beams are finished and the mean of the best running beam is no
  better than the worst finished one. `length_penalty` and `early_stopping` modify both rules.

B prompts, n beams of each, C candidates, T ids so far, G at most generated, V vocabulary. Independent of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Added to the scores of excluded candidates. Finite, so that they keep an order if fewer than n are finished.
EXCLUDED_SCORE = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchConfig:
    """The parameters of a beam search.

    Attributes:
        num_beams: n.
        max_new_tokens: G, the maximum number of generated ids.
        num_candidates: C, how many continuations of a prompt are considered in a step.
        length_penalty: finished beams compete by score / length ** length_penalty.
        early_stopping: True: done as soon as n beams are finished. False: done when the best running beam, finished at
            its present length, would be no better than the worst finished one. "never": the same, at the length that is
            most favourable for it.
        do_sample: whether candidates are sampled without replacement instead of the best being taken.
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
        ids: (B, n, prompt length + G) prompt and generated ids, padded on the right.
        parent_rows: (B, n, G) for each generated id the row of (B * n) that it continued; -1 beyond the last.
        scores: (B, n) sums of log-probabilities, or with length penalty for finished beams.
        logprobs: (B, n, G) for each generated id the log-probability given to `advance`; 0 beyond the last.
    """

    ids: Tensor
    parent_rows: Tensor
    scores: Tensor
    logprobs: Tensor

    def select(self, index: Tensor) -> Beams:
        """The beams at `index` (B, m) of each prompt."""
        return Beams(
            self.ids.take_along_dim(index[..., None], 1),
            self.parent_rows.take_along_dim(index[..., None], 1),
            self.scores.take_along_dim(index, 1),
            self.logprobs.take_along_dim(index[..., None], 1),
        )


class BeamSearch:
    """The state of a beam search for B prompts.

    Attributes:
        running: the n beams of each prompt that are continued.
        finished: the best n finished beams, the best first; placeholders if fewer are finished.
        finished_mask: (B, n) which of `finished` are not placeholders.
        improvable_mask: (B, 1) whether a running beam of the prompt may still become better than a finished one.
        is_done: whether the search has ended.

    Args:
        ids: (B, T) the prompts, of one length.
        pad_id: pads `ids` on the right.
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
            0  # all beams equal the prompt at first: only one is continued, the others would repeat it
        )
        self.running = Beams(padded_ids, parents, scores, logprobs)
        self.finished_mask = torch.zeros(batch_shape, dtype=torch.bool, device=ids.device)
        self.improvable_mask = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
        self.is_done = False

    @property
    def ids(self) -> Tensor:
        """(B * n, T) the ids of the running beams, prompt included."""
        return self.running.ids[..., : self.length].flatten(0, 1)

    def advance(
        self, scores: Tensor, stopping_criteria: Callable[[Tensor], Tensor], logprobs: Tensor | None = None
    ) -> Tensor:
        """Extends the running beams by one id.

        Args:
            scores: (B * n, V) log-probabilities of the next id, by which candidates compete.
            stopping_criteria: which candidates are finished, (B * C, T + 1) ids -> (B * C,) bool.
            logprobs: (B * n, V) log-probabilities to record for the chosen ids.

        Returns:
            (B * n,) for each running beam the row of the beam that it continues.
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
        """The best `count` finished beams of each prompt, (B * count, ...), cut to the longest of them."""
        ids, parents, scores, logprobs = (x[:, :count].flatten(0, 1) for x in self.finished)
        max_generated = int((parents >= 0).sum(1).max())
        return Beams(
            ids[:, : self.prompt_length + max_generated],
            parents[:, :max_generated],
            scores,
            logprobs[:, :max_generated],
        )

    def _propose_candidates(self, scores: Tensor, step: int, logprobs: Tensor | None) -> Beams:
        """The C best continuations of each prompt, or C sampled ones."""
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
        """Merges the finished ones among the first n candidates into `finished`."""
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
        """Updates `improvable_mask` and `is_done`; `all_finished`: whether all candidates of this step are."""
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
