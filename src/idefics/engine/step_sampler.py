"""Samples the next tokens of all requests of a step that do not use beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idefics.engine.model_runner import StepOutput
from idefics.engine.request_output import SampledToken
from idefics.engine.request_state import SequenceState
from idefics.engine.sampler import Sampler, make_generator
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

    def sample(self, step_output: StepOutput) -> SampledBatch | None:
        """Samples after each sequence of a step, except those of beam searches and scored prompts; None: no other."""
        sequences, logits = step_output.sequences, step_output.logits
        rows = [row for row, sequence in enumerate(sequences) if sequence.request_state.request.is_sampled]
        if not rows:
            return None
        if len(rows) < len(sequences):
            sequences, logits = [sequences[row] for row in rows], logits[rows]
        if self._sampler is None or sequences != self._sequences:
            self._sampler, self._sequences = self._make_sampler(sequences, logits.device), sequences
        tokens = self._sampler.sample(logits)
        read_fields = [self._copy_to_host(values) for values in tokens if values is not None]

        def read_tokens() -> list[SampledToken]:
            return _make_sampled_tokens(sequences, *(read() for read in read_fields))

        return SampledBatch(sequences, logits, self._sampler, tokens.ids, read_tokens)

    def reset(self) -> None:
        """Discards the sampler, whose token counts are wrong after a sampled id was replaced by another one."""
        self._sampler = None

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


def _make_sampled_tokens(
    sequences: Sequence[SequenceState],
    ids: list[int],
    logprobs: list[float] | None = None,
    *top_ids_and_logprobs: list[list[Any]],
) -> list[SampledToken]:
    """The token of each row, with as many of the batch's log-probabilities as the request's settings ask for."""
    if logprobs is None:
        return list(map(SampledToken, ids))
    tokens = []
    for row, sequence in enumerate(sequences):
        sampling = sequence.request_state.request.sampling
        pairs = zip(*(values[row] for values in top_ids_and_logprobs), strict=True)
        alternatives = tuple(starmap(Alternative, islice(pairs, sampling.top_logprobs)))
        tokens.append(SampledToken(ids[row], logprobs[row] if sampling.logprobs else None, alternatives))
    return tokens


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
