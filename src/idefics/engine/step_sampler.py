"""Samples the next tokens of all requests of a step that do not use beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idefics.engine.model_runner import StepOutput
from idefics.engine.request_state import RequestState, SequenceState
from idefics.engine.sampler import SampledTokens, Sampler, make_generator


class HostTokens(NamedTuple):
    """The fields of `SampledTokens` as lists on the host, one entry for each row."""

    ids: list[int]
    logprobs: list[float] | None = None
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None


class SampledBatch(NamedTuple):
    """Sequences that were sampled together. R rows, V vocabulary.

    Attributes:
        sequences: one for each row.
        logits: (R, V).
        sampler: the sampler of these rows.
        ids: (R,) the sampled ids, on the device.
        read_tokens: waits for the copies of the samples to the host and returns them.
    """

    sequences: list[SequenceState]
    logits: Tensor
    sampler: Sampler
    ids: Tensor
    read_tokens: Callable[[], HostTokens]


class SamplerOutput(NamedTuple):
    """The samples of one step.

    Attributes:
        batches: one batch with all sequences; after an error a batch for each sequence.
        error_by_request: the requests whose sampling failed.
    """

    batches: list[SampledBatch]
    error_by_request: dict[RequestState, Exception]


class StepSampler:
    """Samples with one `Sampler`, which is kept while the sequences stay the same.

    Args:
        vocab_size: the number of logits.
        is_async: whether ids are copied to the host while a GPU goes on computing.
    """

    def __init__(self, vocab_size: int, *, is_async: bool) -> None:
        self.vocab_size = vocab_size
        self._copy_to_host = async_host_copy_reader if is_async else host_copy_reader
        self._sequences: list[SequenceState] = []
        self._sampler: Sampler | None = None

    def sample(self, step_output: StepOutput) -> SamplerOutput:
        """Samples after each sequence of a step, except those of beam searches and scored prompts."""
        sequences = step_output.sequences
        rows = [row for row, sequence in enumerate(sequences) if sequence.request_state.request.is_sampled]
        output = SamplerOutput([], {})
        if rows and len(rows) == len(sequences):
            self._sample_rows(sequences, step_output.logits, output)
        elif rows:
            self._sample_rows([sequences[row] for row in rows], step_output.logits[rows], output)
        return output

    def reset(self) -> None:
        """Discards the sampler, whose token counts are wrong after a sampled id was replaced by another one."""
        self._sampler = None

    def _sample_rows(self, sequences: list[SequenceState], logits: Tensor, output: SamplerOutput) -> None:
        """Samples all rows at once; if that fails, each separately."""
        try:
            if self._sampler is None or sequences != self._sequences:
                self._sampler, self._sequences = self._make_sampler(sequences, logits.device), sequences
            tokens = self._sampler.sample(logits)
            read_tokens = self._start_copies(tokens)
        except Exception as error:
            self._sampler = None
            if len(sequences) == 1:
                output.error_by_request[sequences[0].request_state] = error
                return
            for row, sequence in enumerate(sequences):
                self._sample_rows([sequence], logits[row : row + 1], output)
            return
        output.batches.append(SampledBatch(sequences, logits, self._sampler, tokens.ids, read_tokens))

    def _start_copies(self, tokens: SampledTokens) -> Callable[[], HostTokens]:
        """Starts to copy tokens to the host; the returned function waits for the copies."""
        read_fields = [self._copy_to_host(values) for values in tokens if values is not None]
        return lambda: HostTokens(*[read() for read in read_fields])

    def _make_sampler(self, sequences: list[SequenceState], device: torch.device) -> Sampler:
        """A sampler for these sequences; creates the random generators of requests that need one."""
        states = [sequence.request_state for sequence in sequences]
        for state in states:
            sampling = state.request.sampling
            if sampling.temperature > 0 and state.rng is None:
                state.rng = make_generator(sampling.seed, device)
        return Sampler(
            [state.request for state in states],
            [sequence.ids for sequence in sequences],
            [state.rng for state in states],
            self.vocab_size,
            device,
        )


def host_copy_reader(values: Tensor) -> Callable[[], list[Any]]:
    """Copies values to the host at once; returns a function that returns them, as `async_host_copy_reader` does."""
    host_values = values.tolist()
    return lambda: host_values


def async_host_copy_reader(values: Tensor) -> Callable[[], list[Any]]:
    """Starts a copy from a CUDA device; returns a function that waits for this copy alone and returns the values."""
    host_values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copy_done = torch.cuda.Event()
    copy_done.record(torch.cuda.current_stream(values.device))

    def wait_for_values() -> list[Any]:
        copy_done.synchronize()
        return host_values.tolist()

    return wait_for_values
