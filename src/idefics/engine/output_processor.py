"""What follows for every job of a step: a token of each row that samples, new beams, the scores of endings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, starmap
from typing import Any

import torch
from torch import Tensor

from idefics.engine.beam_search import BeamSearch, BeamSearchConfig
from idefics.engine.continuation_scores import ContinuationScores
from idefics.engine.logits_processors import present_ids_mask
from idefics.engine.model_interface import VLM
from idefics.engine.model_runner import ModelRunner, StepOutput
from idefics.engine.request import BeamConstraint
from idefics.engine.request_state import RequestState, SequenceState
from idefics.engine.sampler import Sampler, apply_repetition_penalty, make_generator, token_mask
from idefics.engine.scheduler_output import SamplerOutput, SchedulerOutput
from idefics.engine.token_masks import forbidden_token_mask
from idefics.messages import Alternative


class OutputProcessor:
    """Turns what has been read into what follows. While the same rows go on, their settings stay as they are.

    Args:
        model_runner: is told the ids, which it will read next.
    """

    def __init__(self, model: VLM, model_runner: ModelRunner) -> None:
        self.model, self.model_runner = model, model_runner
        self.vocab_size = model.layout.vocab_size
        self._sequences: list[SequenceState] = []
        self._sampler: Sampler | None = None
        self._copy_to_host = copy_to_host_async if model_runner.is_async else copy_to_host

    def process(self, scheduler_output: SchedulerOutput, step_output: StepOutput) -> list[SamplerOutput]:
        """One pick for each job that has something to follow. An error of one job is written into the plan."""
        outputs: list[SamplerOutput] = []
        if step_output.sequences:
            logits = step_output.logits[0] if len(step_output.logits) == 1 else torch.cat(step_output.logits)
            sampling_rows = [
                row
                for row, sequence in enumerate(step_output.sequences)
                if _is_sampling(sequence.request_state)
            ]
            if len(sampling_rows) == len(step_output.sequences):
                outputs += self._sample_rows(scheduler_output, step_output.sequences, logits)
            else:
                if sampling_rows:
                    outputs += self._sample_rows(
                        scheduler_output,
                        [step_output.sequences[row] for row in sampling_rows],
                        logits[sampling_rows],
                    )
                outputs += self._advance_searches(scheduler_output, step_output.sequences, logits)
        for chunk, h in step_output.continuation_states:
            state, group = chunk.sequence.request_state, chunk.continuation_group
            assert group is not None, "endings are read in groups"
            try:
                state.beam_or_scoring_state.score_group(group, h, self.model.logits)
            except Exception as error:
                scheduler_output.error_by_request[state] = error
            else:
                del state.pending_tokens_by_group[group]
                outputs += _finish_scoring(state)
        return outputs

    def _sample_rows(
        self, scheduler_output: SchedulerOutput, sequences: list[SequenceState], logits: Tensor
    ) -> list[SamplerOutput]:
        """Rows that sample, greedy ones among them, all at once; each alone if that fails."""
        try:
            if self._sampler is None or sequences != self._sequences:
                self._sampler, self._sequences = self._build_sampler(sequences, logits.device), sequences
            sampled = self._sampler.sample(logits)
            wait_for_ids = self._copy_to_host(sampled.ids)
            wait_for_logprobs = [None if one is None else self._copy_to_host(one) for one in sampled[1:]]
        except Exception as error:
            self._sampler = None
            if len(sequences) == 1:
                scheduler_output.error_by_request[sequences[0].request_state] = error
                return []
            return [
                output
                for row, sequence in enumerate(sequences)
                for output in self._sample_rows(scheduler_output, [sequence], logits[row : row + 1])
            ]
        self.model_runner.launch_next_step(sequences, sampled.ids)
        outputs = _build_sampler_outputs(
            sequences, wait_for_ids(), *(None if one is None else one() for one in wait_for_logprobs)
        )
        return (
            self._apply_constraints(scheduler_output, outputs, logits)
            if self._sampler.constraints
            else outputs
        )

    def _apply_constraints(
        self, scheduler_output: SchedulerOutput, outputs: list[SamplerOutput], logits: Tensor
    ) -> list[SamplerOutput]:
        """What guides say to the ids of their rows, (R, V) logits."""
        accepted_outputs, sampler = list(outputs), self._sampler
        assert sampler is not None, "it has just chosen"
        for row, output in enumerate(outputs):
            state, id = output.request_state, output.next_ids[0]
            if (constraint := state.request.constraint) is None:
                continue
            try:
                accepted_id = constraint.accept_token(id, state.max_new_tokens - len(state.handle.ids) - 1)
            except Exception as error:
                scheduler_output.error_by_request[state] = error
                continue
            if accepted_id != id:
                logprob = None if output.logprob is None else sampler.token_logprob(logits, row, accepted_id)
                accepted_outputs[row] = output._replace(next_ids=(accepted_id,), logprob=logprob)
                self._sampler = None  # it has counted the other one
                self.model_runner.discard_launched_step()
        return [
            output
            for output in accepted_outputs
            if output.request_state not in scheduler_output.error_by_request
        ]

    def _build_sampler(self, sequences: list[SequenceState], device: torch.device) -> Sampler:
        for sequence in sequences:
            sampling = sequence.request_state.request.sampling
            if sampling.temperature > 0 and sequence.request_state.rng is None:
                sequence.request_state.rng = make_generator(sampling.seed, device)
        return Sampler(
            [sequence.request_state.request for sequence in sequences],
            [sequence.ids for sequence in sequences],
            [sequence.request_state.rng for sequence in sequences],
            self.vocab_size,
            device,
        )

    def _advance_searches(
        self, scheduler_output: SchedulerOutput, sequences: list[SequenceState], logits: Tensor
    ) -> list[SamplerOutput]:
        """Beams, and prompts whose endings are to be read."""
        rows_by_request: dict[RequestState, list[int]] = {}
        for row, sequence in enumerate(sequences):
            if not _is_sampling(sequence.request_state):
                rows_by_request.setdefault(sequence.request_state, []).append(row)
        outputs: list[SamplerOutput] = []
        for state, rows in rows_by_request.items():
            try:
                outputs += self._advance_search(state, logits[rows])
            except Exception as error:
                scheduler_output.error_by_request[state] = error
        return outputs

    def _advance_search(self, state: RequestState, logits: Tensor) -> list[SamplerOutput]:
        continuations = state.request.continuations
        if continuations is not None:
            state.beam_or_scoring_state = ContinuationScores(
                continuations, logits[0], state.request.sampling.top_logprobs
            )
            state.pending_tokens_by_group = {
                number: len(tree) for number, tree in state.beam_or_scoring_state.trie_by_group.items()
            }
            return _finish_scoring(state)
        if state.beam_or_scoring_state is None:
            state.beam_or_scoring_state = RequestBeamSearch(state, self.vocab_size, logits.device)
        return [state.beam_or_scoring_state.advance(logits)]


def _build_sampler_outputs(
    sequences: Sequence[SequenceState],
    ids: list[int],
    logprobs: list[float] | None,
    top_ids: list[list[int]] | None,
    top_logprobs: list[list[float]] | None,
) -> list[SamplerOutput]:
    """A pick for each row, with what it asked for."""
    outputs = []
    for row, sequence in enumerate(sequences):
        sampling = sequence.request_state.request.sampling
        output = SamplerOutput(sequence.request_state, (ids[row],))
        if logprobs is not None and sampling.logprobs:
            output = output._replace(logprob=logprobs[row])
        if top_ids is not None and top_logprobs is not None:
            pairs = zip(top_ids[row], top_logprobs[row], strict=True)
            output = output._replace(
                top_logprobs=tuple(starmap(Alternative, islice(pairs, sampling.top_logprobs)))
            )
        outputs.append(output)
    return outputs


def copy_to_host(values: Tensor) -> Callable[[], list[Any]]:
    """What has the numbers, which the host has waited for."""
    host_values = values.tolist()
    return lambda: host_values


def copy_to_host_async(values: Tensor) -> Callable[[], list[Any]]:
    """Sends numbers from CUDA to the host: -> what waits for them, and for nothing that is computed meanwhile."""
    host_values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copy_done = torch.cuda.Event()
    copy_done.record(torch.cuda.current_stream(values.device))

    def wait_for_values() -> list[Any]:
        copy_done.synchronize()
        return host_values.tolist()

    return wait_for_values


class RequestBeamSearch:
    """One request's beams. n of them, V vocabulary.

    The search is that of transformers' `generate(num_beams=n)`: a repetition penalty acts on log-probabilities, and
    banned ids lose theirs afterwards. `logprobs` are, as in sampling, of the model's own distribution with banned ids
    left out.
    """

    def __init__(self, request_state: RequestState, vocab_size: int, device: torch.device) -> None:
        self.request_state, request = request_state, request_state.request
        self.stop_ids = torch.tensor(sorted(request.stop_ids), dtype=torch.long, device=device)
        self.banned_mask = token_mask(request.banned_ids, vocab_size, device)  # (V,)
        num_beams = request.sampling.num_beams
        config = BeamSearchConfig(
            num_beams=num_beams,
            max_new_tokens=request_state.max_new_tokens,
            num_candidates=min(max(2, 1 + len(request.stop_ids)) * num_beams, num_beams * vocab_size),
        )
        self.beam_search = BeamSearch(torch.tensor([request.prompt.ids], device=device), config, pad_id=0)

    def advance(self, logits: Tensor) -> SamplerOutput:
        """(n, V), or (1, V) after the prompt -> the next id of each beam, or the end."""
        request, search = self.request_state.request, self.beam_search
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
            return self._finish()
        parents = [0] * len(parent_rows) if is_first else parent_rows.tolist()
        return SamplerOutput(self.request_state, search.ids[:, -1].tolist(), parents)

    def _apply_constraint(self, scores: Tensor, constraint: BeamConstraint) -> Tensor:
        """(n, V) scores without the ids that may not follow in each beam."""
        num_prompt_tokens = len(self.request_state.request.prompt)
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
        """(C, T) -> (C,) which of the candidates end here."""
        if ids.shape[1] == len(self.request_state.request.prompt) + self.request_state.max_new_tokens:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        return torch.isin(ids[:, -1], self.stop_ids)

    def _finish(self) -> SamplerOutput:
        request, handle = self.request_state.request, self.request_state.handle
        best = self.beam_search.best_beams(1)
        ids = best.ids[0, len(request.prompt) :].tolist()
        has_stop_id = ids[-1] in request.stop_ids
        answer_slice = slice(len(ids) - has_stop_id)
        if request.sampling.logprobs:
            handle.logprobs = best.logprobs[0, answer_slice].tolist()
        handle.ids = ids[answer_slice]
        return SamplerOutput(self.request_state, finish_reason="stop" if has_stop_id else "length")


def _is_sampling(state: RequestState) -> bool:
    return state.request.continuations is None and state.request.sampling.num_beams == 1


def _finish_scoring(state: RequestState) -> list[SamplerOutput]:
    """The end of a ranking, once all groups of its endings have been read."""
    if state.pending_tokens_by_group:
        return []
    state.handle.continuation_logprobs, state.handle.continuation_top_logprobs = (
        state.beam_or_scoring_state.logprobs,
        state.beam_or_scoring_state.top_logprobs,
    )
    return [SamplerOutput(state, finish_reason="stop")]
