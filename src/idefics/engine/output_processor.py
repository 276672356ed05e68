"""Samples from the logits of a step, and makes the outputs of requests: tokens, beams and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idefics.engine.adapters import NO_ADAPTERS, ModelAdapters
from idefics.engine.beam_search import RequestBeamSearch
from idefics.engine.continuation_scores import CandidateTrie, ContinuationScores
from idefics.engine.model_interface import VLM
from idefics.engine.model_runner import StepOutput
from idefics.engine.request_state import (
    RequestOutput,
    RequestOutputs,
    RequestState,
    SampledToken,
    SequenceState,
)
from idefics.engine.sampler import Sampler
from idefics.messages import Alternative


class SampledBatch(NamedTuple):
    """Sequences that were sampled together. R rows, V vocabulary.

    Attributes:
        sequences: one for each row.
        logits: (R, V).
        sampler: the sampler of these rows.
        ids: (R,) the sampled ids, on the device.
        read_tokens: waits for the copies of the samples to the host and returns a token for each row.
    """

    sequences: list[SequenceState]
    logits: Tensor
    sampler: Sampler
    ids: Tensor
    read_tokens: Callable[[], list[SampledToken]]


class OutputProcessor:
    """Samples, applies constraints to the samples, advances beam searches and computes scores of continuations.

    One `Sampler` is kept while the sequences stay the same.

    Args:
        adapters: of the model.
        is_async: whether ids are copied to the host while a GPU goes on computing.

    Attributes:
        has_replaced_tokens: whether a constraint replaced a sampled token by another one in the last step.
    """

    def __init__(self, model: VLM, adapters: ModelAdapters = NO_ADAPTERS, *, is_async: bool) -> None:
        self.model, self.adapters = model, adapters
        self._copy_to_host = start_async_copy_to_host if is_async else copy_to_host
        self.has_replaced_tokens = False
        self._sampler: Sampler | None = None

    def sample(self, step_output: StepOutput) -> SampledBatch | None:
        """Samples the next token of each of a step's sequences, beam searches and scored prompts left out.

        Returns:
            The samples; None if there is no such sequence.
        """
        sequences, logits = step_output.sequences, step_output.logits
        rows = [row for row, sequence in enumerate(sequences) if sequence.request_state.request.is_sampled]
        if not rows:
            return None
        if len(rows) < len(sequences):
            sequences, logits = [sequences[row] for row in rows], logits[rows]
        if self._sampler is None or sequences != self._sampler.sequences:
            self._sampler = Sampler(sequences, self.model.layout.vocab_size, logits.device)
        tokens = self._sampler.sample(logits)
        read_fields = [self._copy_to_host(values) for values in tokens if values is not None]

        def read_tokens() -> list[SampledToken]:
            return _make_sampled_tokens(sequences, *(read() for read in read_fields))

        return SampledBatch(sequences, logits, self._sampler, tokens.ids, read_tokens)

    def reset_sampler(self) -> None:
        """Discards the sampler, whose token counts are wrong after a sampled id was replaced by another one."""
        self._sampler = None

    def process(self, step_output: StepOutput, batch: SampledBatch | None) -> RequestOutputs:
        """The output, or the error, of each request of a step. Waits until the sampled ids are on the host."""
        outputs: RequestOutputs = {}
        num_sampled, self.has_replaced_tokens = 0, False
        if batch is not None:
            tokens, num_sampled = batch.read_tokens(), len(batch.sequences)
            states = [sequence.request_state for sequence in batch.sequences]
            if not batch.sampler.constraints:
                outputs.update(zip(states, tokens, strict=True))
            else:
                for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
                    _record(outputs, state, partial(self._accept_token, state, token, batch, row))
        rows_by_request: dict[RequestState, list[int]] = {}
        if num_sampled < len(step_output.sequences):
            for row, sequence in enumerate(step_output.sequences):
                if not sequence.request_state.request.is_sampled:
                    rows_by_request.setdefault(sequence.request_state, []).append(row)
        for state, rows in rows_by_request.items():
            _record(outputs, state, partial(self._extend_beams_or_start_scoring, state, step_output, rows))
        for chunk, h in step_output.continuation_states:
            assert chunk.trie is not None
            state = chunk.sequence.request_state
            _record(outputs, state, partial(self._score_continuations, state, chunk.trie, h))
        return outputs

    def _accept_token(
        self, state: RequestState, token: SampledToken, batch: SampledBatch, row: int
    ) -> SampledToken:
        """Advances the request's constraint, if it has one, by a sampled token; returns the token that it accepts."""
        if (constraint := state.request.constraint) is None:
            return token
        accepted_id = constraint.accept_token(token.id, state.max_new_tokens - len(state.handle.ids) - 1)
        if accepted_id == token.id:
            return token
        self.has_replaced_tokens = True
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

        Returns:
            The request's output; None if groups of continuations are still to be scored.
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
        """Scores a group of continuations from the (N, D) hidden states of its N tokens.

        Returns:
            All scores of the request; None if further groups are still to be computed.
        """
        scores = state.continuation_scores
        assert scores is not None
        self.adapters.select(state.request.prompt.adapter)
        scores.score_trie(trie, h, self.model.logits)
        return _finished_scores(scores)


def _record(
    outputs: RequestOutputs,
    state: RequestState,
    compute_output: Callable[[], RequestOutput | None],
) -> None:
    """Records what `compute_output` returns, unless None, or the error that it raises, as the output of a request."""
    try:
        output = compute_output()
    except Exception as error:
        output = error
    if output is not None:
        outputs[state] = output


def _finished_scores(scores: ContinuationScores) -> ContinuationScores | None:
    """Returns `scores` if all continuations are scored; None while some are still to be computed."""
    return None if scores.pending_tries else scores


def _make_sampled_tokens(
    sequences: Sequence[SequenceState],
    ids: list[int],
    logprobs: list[float] | None = None,
    *top_ids_and_logprobs: list[list[Any]],
) -> list[SampledToken]:
    """Makes one `SampledToken` per row, with the log-probabilities that its request's sampling settings ask for.

    Args:
        ids, logprobs: of the sampled tokens; no `logprobs` if no row needs them.
        top_ids_and_logprobs: the lists `top_ids` and `top_logprobs` of `SampledTokens`, or nothing.
    """
    if logprobs is None:
        return list(map(SampledToken, ids))
    tokens = []
    for row, sequence in enumerate(sequences):
        sampling = sequence.request_state.request.sampling
        pairs = zip(*(values[row] for values in top_ids_and_logprobs), strict=True)
        alternatives = tuple(starmap(Alternative, islice(pairs, sampling.top_logprobs)))
        tokens.append(SampledToken(ids[row], logprobs[row] if sampling.logprobs else None, alternatives))
    return tokens


def copy_to_host(values: Tensor) -> Callable[[], list[Any]]:
    """Copies values to the host at once; returns a function that returns them, as `start_async_copy_to_host` does."""
    host_values = values.tolist()
    return lambda: host_values


def start_async_copy_to_host(values: Tensor) -> Callable[[], list[Any]]:
    """Starts a copy from a CUDA device; returns a function that waits for this copy alone and returns the values."""
    host_values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copy_done = torch.cuda.Event()
    copy_done.record(torch.cuda.current_stream(values.device))

    def wait_for_values() -> list[Any]:
        copy_done.synchronize()
        return host_values.tolist()

    return wait_for_values
