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

from idefics.engine.logits_processors import (
    apply_repetition_penalty,
    forbidden_token_mask,
    present_ids_mask,
    token_mask,
)
from idefics.engine.request import BeamConstraint, Request
from idefics.engine.request_state import BeamSearchResult, NextBeams

# Added to the scores of excluded candidates. Finite, so that they keep an order if fewer than n are finished.
EXCLUDED_SCORE = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchConfig:
    """The parameters of a beam search.

    Attributes:
        num_beams: n, the number of running and of finished beams of each prompt.
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
    """n beams of each of B prompts: their ids, where each id comes from, and scores.

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
        """Selects m beams of each prompt; `index`: (B, m) indices among the prompt's n beams."""
        return Beams(*(x.take_along_dim(index if x.dim() == 2 else index[..., None], 1) for x in self))


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
        """The best `count` finished beams of each prompt, best first: (B * count, ...), cut to the longest of them."""
        ids, parents, scores, logprobs = (x[:, :count].flatten(0, 1) for x in self.finished)
        max_generated = int((parents >= 0).sum(1).max())
        return Beams(
            ids[:, : self.prompt_length + max_generated],
            parents[:, :max_generated],
            scores,
            logprobs[:, :max_generated],
        )

    def _propose_candidates(self, scores: Tensor, step: int, logprobs: Tensor | None) -> Beams:
        """The C best continuations of each prompt's running beams by one id, or C sampled ones.

        Args:
            scores: (B * n, V) log-probabilities of the next id.
            step: how many ids have been generated before it.
            logprobs: (B * n, V) log-probabilities to record; None: none are recorded.
        """
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
        """Merges the finished ones among each prompt's first n candidates into `finished`.

        Args:
            candidate_finished: (B, C) which candidates are finished.
            num_generated: how many ids they have after the prompt.
        """
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
        """Updates `improvable_mask` and `is_done`; `all_finished`: whether all candidates of this step are finished."""
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


class RequestBeamSearch:
    """The beam search of one request: a `BeamSearch` for its prompt, with its penalty, banned ids and constraint.

    n beams, C candidates, T ids so far, V vocabulary.

    As in transformers' `generate(num_beams=n)` the repetition penalty is applied to log-probabilities, and banned ids
    are masked afterwards. Reported `logprobs` are of the model's distribution with banned ids masked, as in sampling.
    """

    def __init__(self, request: Request, max_new_tokens: int, vocab_size: int, device: torch.device) -> None:
        self.request, self.max_new_tokens = request, max_new_tokens
        self.stop_ids = torch.tensor(sorted(request.stop_ids), dtype=torch.long, device=device)
        self.banned_mask = token_mask(request.banned_ids, vocab_size, device)  # (V,)
        num_beams = request.sampling.num_beams
        config = BeamSearchConfig(
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            num_candidates=min(max(2, 1 + len(request.stop_ids)) * num_beams, num_beams * vocab_size),
        )
        self.beam_search = BeamSearch(torch.tensor([request.prompt.ids], device=device), config, pad_id=0)

    def advance(self, logits: Tensor) -> NextBeams | BeamSearchResult:
        """Extends the beams by one id.

        Args:
            logits: (n, V) of the running beams; (1, V) after the prompt.

        Returns:
            The running beams, or the best finished one if the search is done.
        """
        request, search = self.request, self.beam_search
        is_first = len(logits) == 1
        logits = logits.expand(request.sampling.num_beams, -1)
        scores = logits.log_softmax(-1)
        if request.sampling.repetition_penalty != 1:
            starts = torch.zeros(len(search.ids), dtype=torch.long, device=logits.device)
            present_mask = present_ids_mask(search.ids, logits.shape[1], starts)
            scores = apply_repetition_penalty(scores, present_mask, request.sampling.repetition_penalty)
        scores = scores.masked_fill(self.banned_mask, -torch.inf)
        if request.beam_constraint is not None:
            scores = self._apply_constraint(scores, request.beam_constraint)
        logprobs = None
        if request.sampling.logprobs:
            logprobs = logits.masked_fill(self.banned_mask, -torch.inf).log_softmax(-1)
        parent_rows = search.advance(scores, self._finished_mask, logprobs)
        if search.is_done:
            return self._best_result()
        parents = [0] * len(parent_rows) if is_first else parent_rows.tolist()
        return NextBeams(search.ids[:, -1].tolist(), parents)

    def _apply_constraint(self, scores: Tensor, constraint: BeamConstraint) -> Tensor:
        """(n, V) log-probabilities with the ids that the constraint forbids at -inf; a forced id gets 0."""
        num_prompt_tokens = len(self.request.prompt)
        bitmasks = [
            constraint.compute_beam_bitmask(ids[num_prompt_tokens:]) for ids in self.beam_search.ids.tolist()
        ]
        forbidden_mask = forbidden_token_mask(
            [bitmask for bitmask, _ in bitmasks], scores.shape[1], scores.device
        )
        forced = torch.tensor([[is_forced] for _, is_forced in bitmasks], device=scores.device)
        scores = scores.masked_fill(forced, 0).masked_fill(forbidden_mask, -torch.inf)
        return scores.log_softmax(-1) if constraint.is_renormalized else scores

    def _finished_mask(self, ids: Tensor) -> Tensor:
        """Which candidates end with a stop id or are at the length limit: (C, T) ids -> (C,) bool."""
        if ids.shape[1] == len(self.request.prompt) + self.max_new_tokens:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        return torch.isin(ids[:, -1], self.stop_ids)

    def _best_result(self) -> BeamSearchResult:
        """The best finished beam, without its stop id."""
        best = self.beam_search.best_beams(1)
        ids = best.ids[0, len(self.request.prompt) :].tolist()
        has_stop_id = ids[-1] in self.request.stop_ids
        answer = slice(len(ids) - has_stop_id)
        logprobs = best.logprobs[0, answer].tolist() if self.request.sampling.logprobs else []
        return BeamSearchResult(ids[answer], logprobs, "stop" if has_stop_id else "length")
