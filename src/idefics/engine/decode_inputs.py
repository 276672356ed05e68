"""The inputs of decode steps as tensors, kept on the device while the same sequences decode.

R rows, P pages of the longest row, M feature rows of a picture, H query heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.request_state import SequenceState
from idefics.nn.attention import CrossKV


@dataclass(slots=True)
class DecodeInputs:
    """The inputs of one step. `page_tables` and `cross_kvs` are the same objects until they change.

    Attributes:
        ids: (R,) int64 the token of each row: the last one of a sequence, or one drafted after it, in a row after it.
        positions: (R,) int64 the position of that token.
        page_tables: (R, P) int32 the row's pages, page j with positions 16j to 16j + 15; 0 beyond the row's end. The
            page of `positions`, which is written, is referenced by no other sequence.
        cross_kvs: for each row the picture that it attends to: (1, M, H, K) keys and values for each cross-attention
            layer, or an empty sequence.
        max_position, min_position: the highest and the lowest of `positions`, known to the host.
        adapters: (R,) int32 the number of each row's adapter, -1 for none; None if no row has one.
    """

    ids: Tensor
    positions: Tensor
    page_tables: Tensor
    cross_kvs: Sequence[CrossKV]
    max_position: int
    min_position: int
    adapters: Tensor | None = None


@dataclass(eq=False)
class DecodeInputBuilder:
    """Builds `DecodeInputs`; updates those of the step before if the sequences are the same.

    Attributes:
        encoder_cache: has the cross-attention keys and values of the sequences' pictures.
        device: the device of the inputs.
        sequences: the sequences of the last inputs.
    """

    encoder_cache: EncoderCache
    device: torch.device

    def __post_init__(self) -> None:
        self.sequences: list[SequenceState] = []
        self._inputs: DecodeInputs | None = None

    def build(
        self, sequences: list[SequenceState], has_page_changes: bool, ids: Tensor | None = None
    ) -> DecodeInputs:
        """The inputs of the next decode step: the last id of each sequence, at its position.

        Args:
            has_page_changes: whether any sequence has other pages than in the step before.
            ids: (R,) the last ids of the sequences, if they are on the device already.
        """
        inputs = self._inputs
        if inputs is None or sequences != self.sequences:
            self.sequences = sequences
            self._inputs = self._make_inputs(sequences, [[]] * len(sequences))
            return self._inputs
        inputs.positions += 1
        inputs.max_position, inputs.min_position = inputs.max_position + 1, inputs.min_position + 1
        if has_page_changes:
            inputs.page_tables = self._page_tables(sequences)
        inputs.ids = self._last_ids(sequences) if ids is None else ids
        return inputs

    def build_with_drafts(self, sequences: list[SequenceState], drafts: list[list[int]]) -> DecodeInputs:
        """The inputs of a step that also computes ids drafted after the last id of each sequence."""
        self.reset()
        return self._make_inputs(sequences, drafts)

    def _make_inputs(self, sequences: list[SequenceState], drafts: list[list[int]]) -> DecodeInputs:
        """New inputs: for each sequence a row of its last id, then those of its draft."""
        rows: list[int] = []  # indices of sequences
        ids: list[int] = []
        positions: list[int] = []
        for index, (sequence, draft) in enumerate(zip(sequences, drafts, strict=True)):
            row_ids = [sequence.ids[-1], *draft]
            rows += [index] * len(row_ids)
            ids += row_ids
            positions += range(sequence.num_computed_tokens, sequence.num_computed_tokens + len(row_ids))
        row_sequences = [sequences[index] for index in rows]
        return DecodeInputs(
            ids=torch.tensor(ids, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            page_tables=self._page_tables(sequences)[rows],
            cross_kvs=self._cross_kvs(row_sequences),
            max_position=max(positions),
            min_position=min(positions),
            adapters=self.encoder_cache.adapters.row_numbers(row_sequences),
        )

    def update_page_tables(self) -> None:
        """Rebuilds the page tables of the last inputs after the pages of their sequences have changed."""
        if self._inputs is not None:
            self._inputs.page_tables = self._page_tables(self.sequences)

    def reset(self) -> None:
        """Discards the last inputs, because they no longer match the sequences' state."""
        self.sequences = []

    def _last_ids(self, sequences: Sequence[SequenceState]) -> Tensor:
        """(R,) int64: the last id of each sequence."""
        return torch.tensor([sequence.ids[-1] for sequence in sequences], device=self.device)

    def _page_tables(self, sequences: Sequence[SequenceState]) -> Tensor:
        """(R, P) int32 pages of each sequence, padded on the right with page 0."""
        max_pages = max(len(sequence.pages) for sequence in sequences)
        tables = [sequence.pages + [0] * (max_pages - len(sequence.pages)) for sequence in sequences]
        return torch.tensor(tables, dtype=torch.int32, device=self.device)

    def _cross_kvs(self, sequences: Sequence[SequenceState]) -> list[CrossKV]:
        """For each sequence the keys and values of the picture that its prompt's last token attends to; () if none."""
        if not self.encoder_cache.model.layout.num_cross_attention_layers:
            return [()] * len(sequences)
        prompts = [sequence.request_state.request.prompt for sequence in sequences]
        return [
            self.encoder_cache.cross_kv(prompt.pictures[prompt.image_index[-1]])
            if prompt.image_index[-1] >= 0
            else ()
            for prompt in prompts
        ]
