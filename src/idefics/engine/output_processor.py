"""Turns logits and samples of a step into the outputs of requests: tokens, beams and scores."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from idefics.engine.continuation_scores import CandidateTrie, ContinuationScores
from idefics.engine.model_interface import VLM
from idefics.engine.model_runner import StepOutput
from idefics.engine.request_beam_search import RequestBeamSearch
from idefics.engine.request_output import RequestOutput, SampledToken, ScoringResult
from idefics.engine.request_state import RequestState
from idefics.engine.scheduler_output import StepResult
from idefics.engine.step_sampler import SampledBatch


class OutputProcessor:
    """Applies constraints to sampled tokens, advances beam searches and computes scores of continuations."""

    def __init__(self, model: VLM) -> None:
        self.model = model

    def process(self, step_output: StepOutput, batch: SampledBatch | None) -> StepResult:
        """The output, or the error, of each request of a step. Waits until the sampled ids are on the host."""
        result, num_sampled = StepResult(), 0
        if batch is not None:
            self._process_samples(batch, result)
            num_sampled = len(batch.sequences)
        rows_by_request: dict[RequestState, list[int]] = {}
        if num_sampled < len(step_output.sequences):
            for row, sequence in enumerate(step_output.sequences):
                if not sequence.request_state.request.is_sampled:
                    rows_by_request.setdefault(sequence.request_state, []).append(row)
        for state, rows in rows_by_request.items():
            result.record(state, partial(self._extend_beams_or_start_scoring, state, step_output, rows))
        for chunk, h in step_output.continuation_states:
            assert chunk.trie is not None
            state = chunk.sequence.request_state
            result.record(state, partial(self._score_continuations, state, chunk.trie, h))
        return result

    def _process_samples(self, batch: SampledBatch, result: StepResult) -> None:
        """Adds the sampled tokens to the result, replaced where a constraint requires another one."""
        tokens = batch.read_tokens()
        states = [sequence.request_state for sequence in batch.sequences]
        if not batch.sampler.constraints:
            result.output_by_request.update(zip(states, tokens, strict=True))
            return
        for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
            result.record(state, partial(self._accept_token, state, token, batch, row, result))

    def _accept_token(
        self, state: RequestState, token: SampledToken, batch: SampledBatch, row: int, result: StepResult
    ) -> SampledToken:
        """Advances the request's constraint, if it has one, by a sampled token; returns the token that it accepts."""
        if (constraint := state.request.constraint) is None:
            return token
        accepted_id = constraint.accept_token(token.id, state.max_new_tokens - len(state.handle.ids) - 1)
        if accepted_id == token.id:
            return token
        result.has_replaced_tokens = True
        logprob = token.logprob
        if logprob is not None:
            logprob = batch.sampler.token_logprob(batch.logits, row, accepted_id)
        return token._replace(id=accepted_id, logprob=logprob)

    def _extend_beams_or_start_scoring(
        self, state: RequestState, step_output: StepOutput, rows: list[int]
    ) -> RequestOutput | None:
        """Extends the beams of a request by one id, or scores the first token of each of its continuations.

        Args:
            rows: the rows of `step_output` that are the request's: its n running beams, or one after the prompt.
        """
        request, logits = state.request, step_output.logits[rows]
        if request.continuations is not None:
            state.continuation_scores = ContinuationScores(
                request.continuations, logits[0], request.sampling.top_logprobs
            )
            return _finished_scores(state.continuation_scores)
        if state.beam_search is None:
            state.beam_search = RequestBeamSearch(
                request, state.max_new_tokens, self.model.layout.vocab_size, logits.device
            )
        return state.beam_search.advance(logits)

    def _score_continuations(
        self, state: RequestState, trie: CandidateTrie, h: Tensor
    ) -> RequestOutput | None:
        """Scores a group of continuations from the (N, D) hidden states of its N tokens."""
        scores = state.continuation_scores
        assert scores is not None
        scores.score_group(trie, h, self.model.logits)
        return _finished_scores(scores)


def _finished_scores(scores: ContinuationScores) -> ScoringResult | None:
    """The scores of a request's continuations; None while some are still to be computed."""
    return None if scores.pending_tries else ScoringResult(scores.logprobs, scores.top_logprobs)
