"""A planned step as tensors: pictures are encoded, prompts read, rows read one token further.

Knows the model and the cache; chooses no tokens. N packed tokens, D width, R rows, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.continuation_scores import CandidateTrie
from idefics.engine.decode import DecodeInputs, DecodeStep
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.prefill_attention import PackedChunk, PrefillAttn
from idefics.engine.request_state import RequestState, SequenceState
from idefics.engine.scheduler_output import PrefillChunk, SchedulerOutput
from idefics.nn.attention import CrossKV

NO_CROSS_KV: CrossKV = ()  # what a token sees that sees no picture


class StepOutput(NamedTuple):
    """What a step has read.

    Attributes:
        sequences: the R rows after which a token is chosen.
        logits: (R, V) float32.
        continuation_states: of spans that are endings the hidden states (n, D).
    """

    sequences: list[SequenceState]
    logits: list[Tensor]
    continuation_states: list[tuple[PrefillChunk, Tensor]]


class ModelRunner:
    """Runs plans. While the same rows are read one token further, their tensors stay.

    Attributes:
        is_async: whether rows are read further as soon as their ids are chosen, before the host knows which they are: for
            a device that computes by itself, which would wait for the host else. A row that turns out to have ended has
            then been read in vain, on a page that nobody else had yet.

    Args:
        device: where ids are looked up.
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
        self.model, self.cache, self.decode_step, self.encoder_cache = (
            model,
            cache,
            decode_step,
            encoder_cache,
        )
        self.device, self.is_async = device, is_async
        self._launched: tuple[list[SequenceState], Tensor] | None = (
            None  # rows that were read ahead, and their logits
        )
        self._decode_sequences: list[SequenceState] = []  # the rows of `_rows`
        self._decode_inputs: DecodeInputs | None = None
        self._sampled: tuple[list[SequenceState], Tensor] = ([], torch.empty(0))

    def launch_next_step(self, sequences: list[SequenceState], ids: Tensor) -> None:
        """(R,) the ids that follow: where the same rows go on, they need not leave the device."""
        self._sampled = sequences, ids
        if (
            self.is_async
            and sequences == self._decode_sequences
            and all(map(_has_page_for_next_token, sequences))
        ):
            try:
                self._launched = (
                    sequences,
                    self.decode_step(self._prepare_decode_inputs(sequences, has_page_changes=False)),
                )
            except Exception:  # it comes again in the step itself, where it is told
                self._decode_sequences = []

    def discard_launched_step(self) -> None:
        """Some row takes another id than was `chosen`: what was read ahead is read again."""
        self._decode_sequences, self._launched = [], None

    def run(self, scheduler_output: SchedulerOutput) -> StepOutput:
        """One step. An error of one job is written into the plan, and the others go on."""
        if scheduler_output.encoder_inputs:
            errors = self.encoder_cache.encode(scheduler_output.encoder_inputs)
            for state in scheduler_output.requests_awaiting_images:
                for tiles in state.request.prompt.pictures:
                    if tiles.content_hash in errors:
                        scheduler_output.error_by_request[state] = errors[tiles.content_hash]
        if scheduler_output.copy_source_by_page:
            self.cache.copy_pages(
                list(scheduler_output.copy_source_by_page.values()),
                list(scheduler_output.copy_source_by_page),
            )
        decode_sequences = [
            sequence
            for sequence in scheduler_output.decode_sequences
            if sequence.request_state not in scheduler_output.error_by_request
        ]
        chunks = [
            chunk
            for chunk in scheduler_output.prefill_chunks
            if chunk.sequence.request_state not in scheduler_output.error_by_request
        ]
        try:
            return self._run(decode_sequences, chunks, scheduler_output.has_page_changes)
        except Exception as error:
            self._decode_sequences = []
            states = list(
                dict.fromkeys(
                    b.request_state for b in (*decode_sequences, *(chunk.sequence for chunk in chunks))
                )
            )
            if len(states) == 1:
                scheduler_output.error_by_request[states[0]] = error
                return StepOutput([], [], [])
            return self._run_separately(states, decode_sequences, chunks, scheduler_output)

    def _run_separately(
        self,
        states: Sequence[RequestState],
        decode_sequences: list[SequenceState],
        chunks: list[PrefillChunk],
        scheduler_output: SchedulerOutput,
    ) -> StepOutput:
        """Each job by itself, after they have failed together. What they have written is written again."""
        output = StepOutput([], [], [])
        for state in states:
            try:
                request_output = self._run(
                    [sequence for sequence in decode_sequences if sequence.request_state is state],
                    [chunk for chunk in chunks if chunk.sequence.request_state is state],
                    has_page_changes=True,
                )
            except Exception as error:
                scheduler_output.error_by_request[state] = error
            else:
                output.sequences.extend(request_output.sequences)
                output.logits.extend(request_output.logits)
                output.continuation_states.extend(request_output.continuation_states)
        self._decode_sequences = []
        return output

    def _run(
        self, decode_sequences: list[SequenceState], chunks: Sequence[PrefillChunk], has_page_changes: bool
    ) -> StepOutput:
        output = StepOutput([], [], [])
        if decode_sequences:
            output.sequences.extend(decode_sequences)
            output.logits.append(self._decode_logits(decode_sequences, has_page_changes))
        else:
            self._launched = None
        if chunks:
            h, chunk_ends = self._prefill(chunks)
            final_chunks = [
                (chunk, end) for chunk, end in zip(chunks, chunk_ends, strict=True) if chunk.is_final_chunk
            ]
            if final_chunks:
                output.sequences.extend(chunk.sequence for chunk, _ in final_chunks)
                rows = torch.tensor([end - 1 for _, end in final_chunks], device=h.device)
                output.logits.append(self.model.logits(h[rows]).float())
            output.continuation_states.extend(
                (chunk, h[end - chunk.end : end])
                for chunk, end in zip(chunks, chunk_ends, strict=True)
                if chunk.continuation_group is not None
            )
        return output

    def _decode_logits(self, sequences: list[SequenceState], has_page_changes: bool) -> Tensor:
        """(R, V): the rows read one token further, if they have not been."""
        if self._launched is None:
            return self.decode_step(self._prepare_decode_inputs(sequences, has_page_changes))
        (launched, logits), self._launched = self._launched, None
        if sequences == launched:
            if has_page_changes and self._decode_inputs is not None:
                self._decode_inputs.page_tables = self._page_tables(sequences)
            return logits
        row_by_sequence = {sequence: row for row, sequence in enumerate(launched)}
        if row_by_sequence.keys() >= set(sequences):
            return logits[
                torch.tensor([row_by_sequence[sequence] for sequence in sequences], device=logits.device)
            ]
        return self.decode_step(self._prepare_decode_inputs(sequences, has_page_changes))

    def _prepare_decode_inputs(self, sequences: list[SequenceState], has_page_changes: bool) -> DecodeInputs:
        """Rows as tensors; those of the step before where they have not changed."""
        inputs = self._decode_inputs
        if inputs is None or sequences != self._decode_sequences:
            positions = [sequence.num_computed_tokens for sequence in sequences]
            cross_kvs = (
                [self._last_token_cross_kv(sequence) for sequence in sequences]
                if self.cache.layout.num_cross_attention_layers
                else ()
            )
            inputs = DecodeInputs(
                ids=torch.tensor([sequence.ids[-1] for sequence in sequences], device=self.device),
                positions=torch.tensor(positions, device=self.device),
                page_tables=self._page_tables(sequences),
                cross_kvs=cross_kvs or [NO_CROSS_KV] * len(sequences),
                max_position=max(positions),
                min_position=min(positions),
            )
            self._decode_sequences, self._decode_inputs = sequences, inputs
            return inputs
        inputs.positions += 1
        inputs.max_position, inputs.min_position = inputs.max_position + 1, inputs.min_position + 1
        if has_page_changes:
            inputs.page_tables = self._page_tables(sequences)
        sampled, ids = self._sampled
        if sampled == sequences:
            inputs.ids = ids
        else:
            inputs.ids = torch.tensor([sequence.ids[-1] for sequence in sequences], device=self.device)
        return inputs

    def _page_tables(self, sequences: Sequence[SequenceState]) -> Tensor:
        max_pages = max(len(sequence.pages) for sequence in sequences)
        tables = [sequence.pages + [0] * (max_pages - len(sequence.pages)) for sequence in sequences]
        return torch.tensor(tables, dtype=torch.int32, device=self.device)

    def _last_token_cross_kv(self, sequence: SequenceState) -> CrossKV:
        """What a row's next token sees: what the last of its prompt saw."""
        prompt = sequence.request_state.request.prompt
        image_index = prompt.image_index[-1]
        return self.encoder_cache.cross_kv(prompt.pictures[image_index]) if image_index >= 0 else NO_CROSS_KV

    def _prefill(self, prefill_chunks: Sequence[PrefillChunk]) -> tuple[Tensor, list[int]]:
        """Reads spans, packed, in one pass: -> (N, D) and where each ends."""
        offsets = list(
            accumulate(
                (prefill_chunk.end - prefill_chunk.start for prefill_chunk in prefill_chunks), initial=0
            )
        )
        ids, positions, chunks, cross_attention_spans = [], [], [], []
        for prefill_chunk, (start, end) in zip(prefill_chunks, pairwise(offsets), strict=True):
            sequence, tokens = prefill_chunk.sequence, slice(start, end)
            if prefill_chunk.continuation_group is None:
                ids.append(torch.tensor(sequence.ids[prefill_chunk.start : prefill_chunk.end]))
                positions.append(torch.arange(prefill_chunk.start, prefill_chunk.end))
                chunks.append(PackedChunk(tokens, prefill_chunk.start, sequence.pages))
                cross_attention_spans += list(self._cross_attention_spans(prefill_chunk, start))
            else:
                trie: CandidateTrie = sequence.request_state.beam_or_scoring_state.trie_by_group[
                    prefill_chunk.continuation_group
                ]
                ids.append(trie.ids)
                positions.append(sequence.num_computed_tokens + trie.depths)
                chunks.append(
                    PackedChunk(
                        tokens, sequence.num_computed_tokens, sequence.pages, trie.ancestor_mask, trie.depths
                    )
                )
                if self.cache.layout.num_cross_attention_layers and (
                    cross_kv := self._last_token_cross_kv(sequence)
                ):
                    cross_attention_spans.append((tokens, cross_kv))
        x = self.model.embed(torch.cat(ids).to(self.device))  # (N, D)
        if not self.cache.layout.num_cross_attention_layers:
            for prefill_chunk, start in zip(prefill_chunks, offsets, strict=False):
                if prefill_chunk.continuation_group is None:
                    self._insert_image_features(x, prefill_chunk, start)
        attn = PrefillAttn(self.cache, chunks, cross_attention_spans, self.model.attention_backend)
        return self.model.forward(x, torch.cat(positions).to(x.device), attn), offsets[1:]

    def _insert_image_features(self, x: Tensor, chunk: PrefillChunk, start: int) -> None:
        """Writes what of pictures stands in a span over its part of (N, D) embeddings."""
        prompt = chunk.sequence.request_state.request.prompt
        for tiles, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
            first, last = bisect_left(positions, chunk.start), bisect_left(positions, chunk.end)
            if first < last:
                rows = torch.tensor(positions[first:last], device=x.device) + (start - chunk.start)
                x[rows] = self.encoder_cache.features(tiles)[first:last].to(x.device)

    def _cross_attention_spans(self, chunk: PrefillChunk, start: int) -> Iterator[tuple[slice, CrossKV]]:
        """Stretches of a span's packed tokens that see one picture beside the text, and what they see."""
        if not self.cache.layout.num_cross_attention_layers:
            return
        prompt = chunk.sequence.request_state.request.prompt
        image_indices = [
            prompt.image_index[min(token, len(prompt) - 1)] for token in range(chunk.start, chunk.end)
        ]
        for index, token_run in groupby(image_indices):
            count = len(list(token_run))
            if index >= 0:
                yield slice(start, start + count), self.encoder_cache.cross_kv(prompt.pictures[index])
            start += count


def _has_page_for_next_token(sequence: SequenceState) -> bool:
    """Whether a row has a page for the token after the one that is being read."""
    return (sequence.num_computed_tokens + 1) // PAGE_SIZE < len(sequence.pages)
