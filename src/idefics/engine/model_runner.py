"""Executes the scheduler's plan with the model: encodes pictures, prefills prompts, runs decode steps.

N packed tokens, D width, R rows, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.decode import DecodeStep
from idefics.engine.decode_inputs import DecodeInputBuilder
from idefics.engine.drafts import PromptLookup
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.native.decode import NativeDecode
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.prefill import PrefillRunner
from idefics.engine.request_state import PrefillChunk, SchedulerOutput, SequenceState


class StepOutput(NamedTuple):
    """What the model computed in a step.

    Attributes:
        sequences: the R sequences whose next token is to be sampled.
        logits: (R, V) float32, the next-token logits of each.
        continuation_states: groups of continuations with the hidden states (n, D) of their n tokens.
    """

    sequences: list[SequenceState]
    logits: Tensor
    continuation_states: list[tuple[PrefillChunk, Tensor]]


@dataclass(eq=False)
class ModelRunner:
    """Runs a model step by step.

    Attributes:
        device: the device on which ids are embedded.
        is_async: whether the next decode step is launched as soon as tokens are sampled, before the host has read them;
            without it a GPU waits for the host. If a sequence turns out to be finished, the launched step's row for it
            is ignored; its keys and values are in a page that no other sequence references.
    """

    model: VLM
    cache: PagedKVCache
    decode_step: DecodeStep
    encoder_cache: EncoderCache
    device: torch.device
    is_async: bool

    def __post_init__(self) -> None:
        self._decode_inputs = DecodeInputBuilder(self.encoder_cache, self.device)
        self._prefill = PrefillRunner(self.model, self.cache, self.encoder_cache, self.device)
        self._sampled: tuple[list[SequenceState], Tensor] | None = (
            None  # sequences and last ids, on the device
        )
        self._launched: tuple[list[SequenceState], Tensor] | None = None  # sequences and their logits
        self._adapters = self.encoder_cache.adapters
        self.prompt_lookup = PromptLookup() if isinstance(self.decode_step, NativeDecode) else None

    def run(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """Encodes the planned frames, computes the decoding sequences, then all prefill chunks in one packed pass."""
        self.encoder_cache.encode(scheduler_output.encoder_inputs)
        sequences, chunks = scheduler_output.decode_sequences, scheduler_output.prefill_chunks
        logits, continuation_states = [], []
        if sequences:
            logits.append(self._decode_logits(sequences, scheduler_output.has_page_changes))
        else:
            self._launched = None
        if chunks:
            self._adapters.select_chunks(chunks)
            h = self._prefill.compute_hidden_states(chunks)  # (N, D)
            states = h.split([chunk.num_tokens for chunk in chunks])
            final_states = [states[index][-1:] for index, chunk in enumerate(chunks) if chunk.is_final_chunk]
            if final_states:
                final_sequences = [chunk.sequence for chunk in chunks if chunk.is_final_chunk]
                sequences = sequences + final_sequences
                self._adapters.select_sequences(final_sequences)
                logits.append(self.model.logits(torch.cat(final_states)).float())
            continuation_states = [
                pair for pair in zip(chunks, states, strict=True) if pair[0].trie is not None
            ]
        all_logits = logits[0] if len(logits) == 1 else torch.cat(logits or [torch.empty(0, 0)])
        return StepOutput(sequences, all_logits, continuation_states)

    def launch_next_step(self, sequences: list[SequenceState], ids: Tensor) -> None:
        """Stores the sampled ids, (R,) on the device, and if `is_async` launches the decode step that computes them.

        The step is launched if `sequences` are those of the last decode step and have pages for it. Its logits are used
        by the next `run`, for the sequences that decode then.
        """
        self._sampled = sequences, ids
        if (
            self.is_async
            and sequences == self._decode_inputs.sequences
            and all((one.num_computed_tokens + 1) // PAGE_SIZE < len(one.pages) for one in sequences)
        ):
            try:
                self._launched = sequences, self._decode(sequences, has_page_changes=False)
            except Exception:  # the next `run` computes the step again and reports its error
                self._decode_inputs.reset()

    def discard_launched_step(self) -> None:
        """Discards a launched step: a step failed, or a sampled id was replaced by another one (`TokenConstraint`)."""
        self._decode_inputs.reset()
        self._launched = None

    def _decode_logits(self, sequences: list[SequenceState], has_page_changes: bool) -> Tensor:
        """(R, V) next-token logits: of the step launched ahead if it was for these sequences, else of a new step."""
        if self.prompt_lookup is not None:
            return self._decode_with_drafts(sequences, has_page_changes, self.prompt_lookup)
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

    def _decode_with_drafts(
        self, sequences: list[SequenceState], has_page_changes: bool, prompt_lookup: PromptLookup
    ) -> Tensor:
        """(R, V) next-token logits: of rows computed ahead, and of a step for the other sequences and their drafts."""
        logits_ahead = prompt_lookup.find_logits(sequences)
        others = [sequence for sequence in sequences if sequence not in logits_ahead]
        if others:
            drafts, started = prompt_lookup.find_drafts(others), time.perf_counter()
            if any(drafts):
                logits = self.decode_step(self._decode_inputs.build_with_drafts(others, drafts))
            else:
                logits = self._decode(others, has_page_changes)
            prompt_lookup.record_step(len(others), len(logits) - len(others), time.perf_counter() - started)
            if not logits_ahead and not any(drafts):
                return logits
            logits_ahead |= prompt_lookup.store_logits(others, drafts, logits)
        return torch.cat([logits_ahead[sequence] for sequence in sequences])

    def _decode(self, sequences: list[SequenceState], has_page_changes: bool) -> Tensor:
        """Runs a decode step: (R, V) next-token logits.

        The sequences' last ids are read from the device if they were sampled there in the step before.
        """
        ids = None
        if self._sampled is not None and self._sampled[0] == sequences:
            ids = self._sampled[1]
        self._adapters.select_sequences(sequences)
        return self.decode_step(self._decode_inputs.build(sequences, has_page_changes, ids))
