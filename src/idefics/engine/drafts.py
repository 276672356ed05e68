"""Drafts from the prompt (n-gram speculation, "prompt lookup"): tokens that followed the same n-gram earlier.

A native decode step reads each weight once for all of its rows, so the rows of a few drafted tokens cost little more.
Each token is sampled from its own logits as without drafts, one in each step of the engine. If it is the drafted one,
its row has been computed ahead: the next step finds the logits here and runs no model. Outputs are the same, bit for
bit, because a row's bits do not depend on the rows with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.request_state import SequenceState
from idefics.native.structures import MAX_ROWS

NGRAM_SIZE = 3
ROW_TILE = 4  # rows that the fastest kernels multiply together
MIN_DRAFT_TOKENS = ROW_TILE - 1  # and the last id
# Time is counted in steps without drafts.
FIRST_BUDGET = 0.5
MAX_BUDGET = 4.0
MAX_LOSS = 0.02  # of the time of a text that never repeats itself
ROW_COST = 0.15  # of a drafted row, until it has been measured
ROW_COST_RANGE = 0.02, 1.0


@dataclass(eq=False)
class SequenceDrafts:
    """What is known of one decoding sequence.

    Attributes:
        budget: the time that its drafts may take: what earlier ones saved, and a little for each step.
        max_tokens: of the next draft. Longer after a draft that was accepted completely.
        logits_ahead: position -> drafted id, and the (1, V) logits after it.
        num_accepted: how many of the latest draft's tokens have been accepted.
    """

    budget: float = FIRST_BUDGET
    max_tokens: int = MIN_DRAFT_TOKENS
    logits_ahead: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    num_accepted: int = 0

    def __post_init__(self) -> None:
        self._position_by_ngram: dict[tuple[int, ...], int] = {}  # of the id after its latest occurrence
        self._num_indexed_ids = NGRAM_SIZE

    def find_logits(self, sequence: SequenceState) -> Tensor | None:
        """The (1, V) logits after the sequence's last id, if they have been computed ahead."""
        id, logits = self.logits_ahead.get(sequence.num_computed_tokens, (-1, None))
        if id == sequence.ids[-1]:
            self.num_accepted += 1
            return logits
        if self.logits_ahead:
            is_complete = self.num_accepted == len(self.logits_ahead)
            self.max_tokens = self.max_tokens + ROW_TILE if is_complete else MIN_DRAFT_TOKENS
            self.max_tokens = min(self.max_tokens, MAX_ROWS - 1)
            self.logits_ahead, self.num_accepted = {}, 0
        return None

    def find_draft(self, ids: list[int], max_tokens: int) -> list[int]:
        """The ids that followed the last n-gram when it occurred before; at the end of `ids` they start again."""
        for position in range(self._num_indexed_ids, len(ids)):
            self._position_by_ngram[tuple(ids[position - NGRAM_SIZE : position])] = position
        self._num_indexed_ids = max(self._num_indexed_ids, len(ids))
        start = self._position_by_ngram.get(tuple(ids[-NGRAM_SIZE:]), len(ids))
        period = len(ids) - start
        return [ids[start + index % period] for index in range(max_tokens)] if period else []


class PromptLookup:
    """The drafts of all sequences that decode.

    Attributes:
        num_drafted_tokens, num_accepted_tokens: so far.
        row_cost: the measured time of a drafted row, in steps without drafts.
    """

    def __init__(self) -> None:
        self.num_drafted_tokens = self.num_accepted_tokens = 0
        self.row_cost = ROW_COST
        self._drafts_by_sequence: dict[SequenceState, SequenceDrafts] = {}
        self._plain_seconds_by_num_rows: dict[int, float] = {}  # of steps without drafts

    def find_logits(self, sequences: list[SequenceState]) -> dict[SequenceState, Tensor]:
        """The (1, V) logits of those sequences of a step whose logits have been computed ahead."""
        known = self._drafts_by_sequence
        self._drafts_by_sequence = {
            sequence: known.get(sequence) or SequenceDrafts() for sequence in sequences
        }
        found = {}
        for sequence, drafts in self._drafts_by_sequence.items():
            if (logits := drafts.find_logits(sequence)) is not None:
                found[sequence] = logits
        self.num_accepted_tokens += len(found)
        time_saved = 1 / len(sequences) if len(found) == len(sequences) else self.row_cost
        for sequence, drafts in self._drafts_by_sequence.items():
            income = time_saved if sequence in found else MAX_LOSS / len(sequences)
            drafts.budget = min(drafts.budget + income, MAX_BUDGET)
        return found

    def find_drafts(self, sequences: list[SequenceState]) -> list[list[int]]:
        """For each sequence, of which a step computes the last id, the ids to compute after it; often none.

        Their positions are in the page of the last id, so drafts need no pages. With many sequences there are none,
        because steps that run no model for any of them would be rare.
        """
        max_tokens = MAX_ROWS // len(sequences) - 1
        if max_tokens < MIN_DRAFT_TOKENS:
            return [[] for _ in sequences]
        found = [self._find_draft(sequence, max_tokens) for sequence in sequences]
        self.num_drafted_tokens += sum(map(len, found))
        return found

    def _find_draft(self, sequence: SequenceState, max_tokens: int) -> list[int]:
        """The draft of one sequence, as far as its budget, its page and `max_new_tokens` reach."""
        state, drafts = sequence.request_state, self._drafts_by_sequence[sequence]
        max_tokens = min(
            max_tokens,
            drafts.max_tokens,
            int(drafts.budget / self.row_cost),
            PAGE_SIZE - 1 - sequence.num_computed_tokens % PAGE_SIZE,
            state.max_new_tokens - len(state.handle.ids) - 1,
        )
        if max_tokens <= 0 or not state.request.is_sampled:
            return []
        draft = drafts.find_draft(sequence.ids, max_tokens)
        drafts.budget -= self.row_cost * len(draft)
        return draft

    def store_logits(
        self, sequences: list[SequenceState], drafts: list[list[int]], logits: Tensor
    ) -> dict[SequenceState, Tensor]:
        """Keeps the logits after drafted ids for later steps, and returns those after each sequence's last id, (1, V).

        Args:
            drafts: of each sequence.
            logits: for each sequence the row of its last id, then those of its draft.
        """
        rows = iter(logits[:, None])
        last_logits = {}
        for sequence, draft in zip(sequences, drafts, strict=True):
            last_logits[sequence] = next(rows)
            self._drafts_by_sequence[sequence].logits_ahead = {
                position: (id, next(rows))
                for position, id in enumerate(draft, start=sequence.num_computed_tokens + 1)
            }
        return last_logits

    def record_step(self, num_sequences: int, num_drafted_tokens: int, seconds: float) -> None:
        """Updates what a drafted row costs by the time that a step took."""
        known = self._plain_seconds_by_num_rows.get(num_sequences)
        if not num_drafted_tokens:  # nearly the shortest: steps that were interrupted do not count
            self._plain_seconds_by_num_rows[num_sequences] = min(seconds, 1.05 * (known or seconds))
        elif known is not None:
            cost = (seconds / known - 1) / num_drafted_tokens
            low, high = ROW_COST_RANGE
            self.row_cost += (min(max(cost, low), high) - self.row_cost) / 8
