"""Turns logits and samples of a step into the outputs of requests: tokens, beams and scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, starmap

from torch import Tensor

from idefics.config import Sampling
from idefics.engine.continuation_scores import ContinuationScores
from idefics.engine.model_interface import VLM
from idefics.engine.model_runner import StepOutput
from idefics.engine.request_beam_search import RequestBeamSearch
from idefics.engine.request_output import ContinuationGroups, RequestOutput, SampledToken, ScoringResult
from idefics.engine.request_state import RequestState
from idefics.engine.scheduler_output import PrefillChunk, StepResult
from idefics.engine.step_sampler import HostTokens, SampledBatch, SamplerOutput
from idefics.messages import Alternative


class OutputProcessor:
    """Applies constraints to sampled tokens, advances beam searches and computes scores of continuations."""

    def __init__(self, model: VLM) -> None:
        self.model = model

    def process(self, step_output: StepOutput, sampler_output: SamplerOutput) -> StepResult:
        """The output, or the error, of each request of a step. Waits until the sampled ids are on the host."""
        result = StepResult(error_by_request=step_output.error_by_request | sampler_output.error_by_request)
        num_sampled = 0
        for batch in sampler_output.batches:
            self._process_samples(batch, result)
            num_sampled += len(batch.sequences)
        if num_sampled < len(step_output.sequences):
            self._process_beams_and_scoring(step_output, result)
        for chunk, h in step_output.continuation_states:
            self._process_continuations(chunk, h, result)
        return result

    def _process_samples(self, batch: SampledBatch, result: StepResult) -> None:
        """Adds the sampled tokens to the result, replaced where a constraint requires another one."""
        host_tokens = batch.read_tokens()
        states = [sequence.request_state for sequence in batch.sequences]
        if host_tokens.logprobs is None:
            tokens = list(map(SampledToken, host_tokens.ids))
        else:
            tokens = [
                _make_sampled_token(host_tokens, row, state.request.sampling)
                for row, state in enumerate(states)
            ]
        result.output_by_request.update(zip(states, tokens, strict=True))
        if batch.sampler.constraints:
            self._apply_constraints(batch, tokens, result)

    def _apply_constraints(
        self, batch: SampledBatch, tokens: Sequence[SampledToken], result: StepResult
    ) -> None:
        """Advances the constraints by the sampled tokens, and replaces those that they do not accept."""
        for row, (sequence, token) in enumerate(zip(batch.sequences, tokens, strict=True)):
            state = sequence.request_state
            if (constraint := state.request.constraint) is None:
                continue
            try:
                accepted_id = constraint.accept_token(
                    token.id, state.max_new_tokens - len(state.handle.ids) - 1
                )
            except Exception as error:
                result.error_by_request[state] = error
                del result.output_by_request[state]
                continue
            if accepted_id != token.id:
                logprob = token.logprob
                if logprob is not None:
                    logprob = batch.sampler.token_logprob(batch.logits, row, accepted_id)
                result.output_by_request[state] = token._replace(id=accepted_id, logprob=logprob)
                result.has_replaced_tokens = True

    def _process_beams_and_scoring(self, step_output: StepOutput, result: StepResult) -> None:
        """Advances beam searches by one id, and starts the scoring of continuations whose prompt has been computed."""
        rows_by_request: dict[RequestState, list[int]] = {}
        for row, sequence in enumerate(step_output.sequences):
            if not sequence.request_state.request.is_sampled:
                rows_by_request.setdefault(sequence.request_state, []).append(row)
        for state, rows in rows_by_request.items():
            logits = step_output.logits[rows]
            try:
                if state.request.continuations is None:
                    result.output_by_request[state] = self._advance_beams(state, logits)
                else:
                    result.output_by_request[state] = self._start_scoring(state, logits[0])
            except Exception as error:
                result.error_by_request[state] = error

    def _advance_beams(self, state: RequestState, logits: Tensor) -> RequestOutput:
        """Extends the beams by one id; `logits` are (n, V) of the running beams, or (1, V) after the prompt."""
        if state.beam_search is None:
            state.beam_search = RequestBeamSearch(
                state.request, state.max_new_tokens, self.model.layout.vocab_size, logits.device
            )
        return state.beam_search.advance(logits)

    def _start_scoring(self, state: RequestState, logits: Tensor) -> RequestOutput:
        """Scores the first token of each continuation from (V,) logits after the prompt, and groups the others."""
        assert state.request.continuations is not None
        scores = ContinuationScores(state.request.continuations, logits, state.request.sampling.top_logprobs)
        state.continuation_scores = scores
        if not scores.trie_by_group:
            return ScoringResult(scores.logprobs, scores.top_logprobs)
        return ContinuationGroups({group: len(trie) for group, trie in scores.trie_by_group.items()})

    def _process_continuations(self, chunk: PrefillChunk, h: Tensor, result: StepResult) -> None:
        """Scores a group of continuations from the (N, D) hidden states of its N tokens."""
        state = chunk.sequence.request_state
        scores, group = state.continuation_scores, chunk.continuation_group
        assert scores is not None
        assert group is not None
        try:
            scores.score_group(group, h, self.model.logits)
        except Exception as error:
            result.error_by_request[state] = error
            return
        if not scores.trie_by_group:
            result.output_by_request[state] = ScoringResult(scores.logprobs, scores.top_logprobs)


def _make_sampled_token(tokens: HostTokens, row: int, sampling: Sampling) -> SampledToken:
    """The token of a row, with as many log-probabilities of the batch as the request's settings ask for."""
    logprob = tokens.logprobs[row] if tokens.logprobs is not None and sampling.logprobs else None
    alternatives: tuple[Alternative, ...] = ()
    if tokens.top_ids is not None and tokens.top_logprobs is not None:
        pairs = zip(tokens.top_ids[row], tokens.top_logprobs[row], strict=True)
        alternatives = tuple(starmap(Alternative, islice(pairs, sampling.top_logprobs)))
    return SampledToken(tokens.ids[row], logprob, alternatives)
