"""The beam search of one request."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.engine.beam_search import BeamSearch, BeamSearchConfig
from idefics.engine.logits_processors import apply_repetition_penalty, present_ids_mask
from idefics.engine.request import BeamConstraint, Request
from idefics.engine.request_output import BeamSearchResult, NextBeams
from idefics.engine.token_masks import forbidden_token_mask, token_mask


class RequestBeamSearch:
    """A `BeamSearch` with the request's settings. n beams, C candidates, T ids so far, V vocabulary.

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
        """Masks the ids that the constraint forbids in each beam, in (n, V) scores."""
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
        """Which candidates are finished: (C, T) ids -> (C,)."""
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
