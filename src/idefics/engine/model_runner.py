"""Executes the scheduler's plan with the model: encodes pictures, prefills prompts, runs decode steps.

N packed tokens, D width, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from idefics.engine.decode import DecodeStep
from idefics.engine.decode_inputs import DecodeInputBuilder
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.prefill_inputs import PrefillInputBuilder
from idefics.engine.request_state import RequestState, SequenceState
from idefics.engine.scheduler_output import PrefillChunk, SchedulerOutput


@dataclass(slots=True)
class StepOutput:
    """What the model computed in a step.

    Attributes:
        sequences: the R sequences whose next token is to be sampled.
        logits: (R, V) float32, the next-token logits of each.
        continuation_states: groups of continuations with the hidden states (n, D) of their n tokens.
        error_by_request: the requests that failed.
    """

    sequences: list[SequenceState] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    continuation_states: list[tuple[PrefillChunk, Tensor]] = field(default_factory=list)
    error_by_request: dict[RequestState, Exception] = field(default_factory=dict)


class ModelRunner:
    """Runs a model step by step.

    Args:
        device: the device on which ids are embedded.

    Attributes:
        is_async: whether the next decode step is launched as soon as tokens are sampled, before the host has read them:
            otherwise a GPU would wait for the host. If a sequence turns out to be finished, its row was computed in
            vain, and written to a page that no other sequence references yet.
    """

    def __init__(
        self,
        model: VLM,
        cache: PagedKVCache,
        decode_step: DecodeStep,
        encoder_cache: EncoderCache,
        device: torch.device,
        *,
        is_async: bool,
    ) -> None:
        self.model, self.cache, self.decode_step = model, cache, decode_step
        self.encoder_cache, self.is_async = encoder_cache, is_async
        self._decode_inputs = DecodeInputBuilder(cache.layout, encoder_cache, device)
        self._prefill_inputs = PrefillInputBuilder(model, cache, encoder_cache, device)
        self._sampled: tuple[list[SequenceState], Tensor] | None = (
            None  # sequences and last ids, on the device
        )
        self._launched: tuple[list[SequenceState], Tensor] | None = None  # sequences and their logits

    def run(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Executes one step. If it fails, each of its requests is run separately to find out which one fails."""
        errors = self._encode_images(scheduler_output)
        if copies := scheduler_output.copy_source_by_page:
            self.cache.copy_pages(list(copies.values()), list(copies))
        decode_sequences, chunks = scheduler_output.decode_sequences, scheduler_output.prefill_chunks
        if errors:
            decode_sequences = [s for s in decode_sequences if s.request_state not in errors]
            chunks = [chunk for chunk in chunks if chunk.sequence.request_state not in errors]
        try:
            output = self._run(decode_sequences, chunks, scheduler_output.has_page_changes)
        except Exception as error:
            self._decode_inputs.reset()
            sequences = chain(decode_sequences, (chunk.sequence for chunk in chunks))
            states = list(dict.fromkeys(sequence.request_state for sequence in sequences))
            if len(states) == 1:
                output = StepOutput(error_by_request={states[0]: error})
            else:
                output = self._run_separately(states, decode_sequences, chunks)
        output.error_by_request |= errors
        return output

    def launch_next_step(self, sequences: list[SequenceState], ids: Tensor) -> None:
        """Records the sampled ids, (R,) on the device, and if `is_async` starts the decode step that computes them.

        The step is launched if `sequences` are those of the last decode step and have pages for it. Its logits are used
        by the next `run`, for the sequences that decode then.
        """
        self._sampled = sequences, ids
        if (
            self.is_async
            and sequences == self._decode_inputs.sequences
            and all(map(_has_page_for_next_token, sequences))
        ):
            try:
                self._launched = sequences, self._decode(sequences, has_page_changes=False)
            except Exception:  # the next `run` computes the step again and reports its error
                self._decode_inputs.reset()

    def discard_launched_step(self) -> None:
        """Discards a launched step, because a sampled id was replaced by another one (`TokenConstraint`)."""
        self._decode_inputs.reset()
        self._launched = None

    def _encode_images(self, scheduler_output: SchedulerOutput) -> dict[RequestState, Exception]:
        """Encodes the planned frames; returns the errors of the requests that need them."""
        if not scheduler_output.encoder_inputs:
            return {}
        errors = self.encoder_cache.encode(scheduler_output.encoder_inputs)
        return {
            state: errors[image.content_hash]
            for state in scheduler_output.requests_awaiting_images
            for image in state.request.prompt.pictures
            if image.content_hash in errors
        }

    def _run_separately(
        self,
        states: Sequence[RequestState],
        decode_sequences: Sequence[SequenceState],
        chunks: Sequence[PrefillChunk],
    ) -> StepOutput:
        """Runs each request of a failed step separately; keys and values of the failed step are overwritten."""
        output, logits = StepOutput(), []
        for state in states:
            try:
                request_output = self._run(
                    [sequence for sequence in decode_sequences if sequence.request_state is state],
                    [chunk for chunk in chunks if chunk.sequence.request_state is state],
                    has_page_changes=True,
                )
            except Exception as error:
                output.error_by_request[state] = error
            else:
                output.sequences += request_output.sequences
                output.continuation_states += request_output.continuation_states
                if request_output.sequences:
                    logits.append(request_output.logits)
        if logits:
            output.logits = torch.cat(logits)
        self._decode_inputs.reset()
        return output

    def _run(
        self, decode_sequences: list[SequenceState], chunks: Sequence[PrefillChunk], has_page_changes: bool
    ) -> StepOutput:
        """Computes the decoding sequences, then all prefill chunks in one packed pass."""
        sequences, logits, continuation_states = decode_sequences, [], []
        if decode_sequences:
            logits.append(self._decode_logits(decode_sequences, has_page_changes))
        else:
            self._launched = None
        if chunks:
            inputs = self._prefill_inputs.build(chunks)
            h = self.model.forward(inputs.embeddings, inputs.positions, inputs.attn)  # (N, D)
            ends = list(zip(chunks, inputs.chunk_ends, strict=True))
            if sampled := [(chunk, end) for chunk, end in ends if chunk.is_final_chunk]:
                sequences = sequences + [chunk.sequence for chunk, _ in sampled]
                rows = torch.tensor([end - 1 for _, end in sampled], device=h.device)
                logits.append(self.model.logits(h[rows]).float())
            continuation_states = [
                (chunk, h[end - chunk.end : end])
                for chunk, end in ends
                if chunk.continuation_group is not None
            ]
        if not logits:
            return StepOutput(continuation_states=continuation_states)
        return StepOutput(
            sequences, logits[0] if len(logits) == 1 else torch.cat(logits), continuation_states
        )

    def _decode_logits(self, sequences: list[SequenceState], has_page_changes: bool) -> Tensor:
        """(R, V) next-token logits; from the launched step if it computed these sequences, else from a new one."""
        if self._launched is None:
            return self._decode(sequences, has_page_changes)
        (launched, logits), self._launched = self._launched, None
        if sequences == launched:
            if has_page_changes:
                self._decode_inputs.update_page_tables()
            return logits
        row_by_sequence = {sequence: row for row, sequence in enumerate(launched)}
        if row_by_sequence.keys() >= set(sequences):
            rows = [row_by_sequence[sequence] for sequence in sequences]
            return logits[torch.tensor(rows, device=logits.device)]
        return self._decode(sequences, has_page_changes)

    def _decode(self, sequences: list[SequenceState], has_page_changes: bool) -> Tensor:
        """(R, V) logits of a new decode step; uses the sampled ids on the device if they belong to these sequences."""
        ids = None
        if self._sampled is not None and self._sampled[0] == sequences:
            ids = self._sampled[1]
        return self.decode_step(self._decode_inputs.build(sequences, has_page_changes, ids))


def _has_page_for_next_token(sequence: SequenceState) -> bool:
    """Whether a sequence has a page for the token after the one that is being computed."""
    return (sequence.num_computed_tokens + 1) // PAGE_SIZE < len(sequence.pages)
