"""Sample rows that are answered again and again, so that a person sees what a training changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from idefics.config import EngineConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.request import Request
from idefics.prompt import Prompt
from idefics.train.records import SampleRecord
from idefics.train.rows import TrainingRow

if TYPE_CHECKING:
    from idefics.engine.model_interface import VLM
    from idefics.processing.tokenizer import Tokenizer

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """A row, split where its last answer begins.

    Attributes:
        row: the row.
        start, end: the first token of its last answer, and the one after its last: the last run of learned tokens. In
            a document, all of whose text is learned, the answer is what follows the last picture.
    """

    row: TrainingRow
    start: int
    end: int

    @classmethod
    def of(cls, row: TrainingRow) -> SampleRow:
        """Splits a row, which has a learned token."""
        targets = np.flatnonzero(row.is_target)
        end = int(targets[-1]) + 1
        before = np.flatnonzero(~row.is_target[:end])
        return cls(row, max(int(before[-1]) + 1 if len(before) else 0, 1), end)

    def read_prompt(self) -> Prompt:
        """The row up to its last answer, as a prompt; reads its pictures."""
        num_pictures = sum(int(positions[0]) < self.start for positions in self.row.image_token_positions)
        return Prompt(
            tuple(self.row.ids[: self.start].tolist()),
            self.row.read_pictures()[:num_pictures],
            tuple(tuple(one.tolist()) for one in self.row.image_token_positions[:num_pictures]),
            tuple(self.row.image_index[: self.start].tolist()),
        )


class SampleAnswerer:
    """Answers sample rows with a model in training: greedily, with at most 64 tokens.

    The model's weights, modes and random generators are afterwards what they were before.

    Args:
        model: the model in training.
        rows: the sample rows, in their order.
        tokenizer: of the model.
        stop_ids: ids that end an answer.
        banned_ids: ids that no answer contains.
    """

    def __init__(
        self,
        model: VLM,
        rows: Sequence[TrainingRow],
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        banned_ids: frozenset[int],
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._rows = [SampleRow.of(row) for row in rows]
        self._stop_ids, self._banned_ids = stop_ids, banned_ids

    def answer(self, step: int) -> Iterator[SampleRecord]:
        """Answers all rows, one after another.

        Args:
            step: how many optimizer steps were done.

        Raises:
            BadPicture: a picture cannot be read.
        """
        if not self._rows:
            return
        longest = max(one.start for one in self._rows) + MAX_NEW_TOKENS
        # Page 0 is never allocated, and one page more than a prompt fills is partly filled by its answer.
        config = EngineConfig(
            cache_pages=2 + longest // PAGE_SIZE, batch_rows=1, picture_bytes=0, reference=True
        )
        with _evaluation_mode(self._model):  # type: ignore[arg-type]  # a module
            engine = Engine(self._model, config)
            try:
                for one in self._rows:
                    yield self._answer_row(engine, one, step)
            finally:
                engine.close()

    def _answer_row(self, engine: Engine, sample: SampleRow, step: int) -> SampleRecord:
        request = Request(
            sample.read_prompt(),
            Sampling(max_new_tokens=MAX_NEW_TOKENS),
            stop_ids=self._stop_ids,
            banned_ids=self._banned_ids,
        )
        handle = engine.submit(request).result()
        ids = sample.row.ids
        return SampleRecord(
            step=step,
            row=sample.row.name,
            prompt=self._decode(ids[: sample.start].tolist()),
            reference=self._decode(ids[sample.start : sample.end].tolist()),
            answer=self._decode(handle.ids),
        )

    def _decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        return self._tokenizer.decode(ids).strip()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which no module drops anything out; afterwards each has the mode that it had."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
