"""The adapters of a model: before each pass the engine says which rows use which of them.

The terms that adapters add are with the layers (`nn.low_rank`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from idefics.engine.request_state import PrefillChunk, SequenceState
from idefics.errors import BadPrompt, BadSetting
from idefics.nn.adapter_terms import AdapterRows
from idefics.prompt import Prompt, PromptAdapter
from idefics.validation import short_repr

NO_ADAPTER = -1  # in place of an adapter's number


@dataclass(frozen=True, eq=False)
class ModelAdapters:
    """The adapters of a model. If it has none, nothing has to be done before a pass.

    Attributes:
        adapters: by their numbers.
        adapter_rows: read by the layers.
        num_bytes: the memory that they take.
    """

    adapters: Sequence[PromptAdapter]
    adapter_rows: AdapterRows
    num_bytes: int

    def find(self, name: str) -> PromptAdapter:
        """The adapter of a name; raises BadSetting if there is none."""
        by_name = {adapter.name: adapter for adapter in self.adapters}
        if name not in by_name:
            known = (
                f"give {', '.join(by_name)}"
                if by_name
                else "this model has no adapters: load(..., adapters=)"
            )
            raise BadSetting(f"name is {short_repr(name)}; {known}")
        return by_name[name]

    def check(self, prompt: Prompt) -> None:
        """Raises BadPrompt if a prompt was made for an adapter that this model does not have."""
        if prompt.adapter is not None and prompt.adapter not in self.adapters:
            raise BadPrompt(
                f"the prompt was made for the adapter {prompt.adapter.name!r} of another model: make it with this one"
            )

    def select(self, adapter: PromptAdapter | None) -> None:
        """All rows of the next pass use one adapter, or none."""
        self.adapter_rows.groups = () if adapter is None else ((adapter.index, slice(None)),)

    def select_sequences(self, sequences: Sequence[SequenceState]) -> None:
        """Each row of the next pass belongs to one of the sequences."""
        self._select((sequence.adapter, 1) for sequence in sequences)

    def select_chunks(self, chunks: Sequence[PrefillChunk]) -> None:
        """The rows of the next pass are the tokens of the chunks."""
        self._select((chunk.sequence.adapter, chunk.num_tokens) for chunk in chunks)

    def row_numbers(self, sequences: Sequence[SequenceState]) -> Tensor | None:
        """(R,) int32 the number of each sequence's adapter, or `NO_ADAPTER`; None if no sequence has one."""
        numbers = [_number_of(sequence.adapter) for sequence in sequences]
        return None if set(numbers) == {NO_ADAPTER} else torch.tensor(numbers, dtype=torch.int32)

    def _select(self, counted: Iterable[tuple[PromptAdapter | None, int]]) -> None:
        """Rows one after another use adapters, as many as the numbers say."""
        if not self.adapters:
            return
        slices_by_number: dict[int, list[slice]] = {}
        end = 0
        for number, run in groupby(counted, key=lambda pair: _number_of(pair[0])):
            start, end = end, end + sum(count for _, count in run)
            slices_by_number.setdefault(number, []).append(slice(start, end))
        slices_by_number.pop(NO_ADAPTER, None)
        self.adapter_rows.groups = tuple(
            (
                number,
                slices[0]
                if len(slices) == 1
                else torch.cat([torch.arange(one.start, one.stop) for one in slices]),
            )
            for number, slices in slices_by_number.items()
        )


NO_ADAPTERS = ModelAdapters((), AdapterRows(), 0)


def _number_of(adapter: PromptAdapter | None) -> int:
    """The number of an adapter; `NO_ADAPTER` for None."""
    return NO_ADAPTER if adapter is None else adapter.index
