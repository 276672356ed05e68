"""Token constraints that apply the rules of a checkpoint's generation_config.json, as transformers' `generate` does.

Independent of tensors and models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from idefics.errors import BadSetting
from idefics.processing.checkpoint_generation_config import GENERATION_CONFIG_FILE, CheckpointGenerationConfig


class FinishableConstraint(Protocol):
    """A `TokenConstraint` of `engine.request` that also reports when no further token can follow."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete, so that no token can follow."""
        ...

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids, one bit for each, the lowest id first."""
        ...

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by the sampled `id` and returns the id to append: see `engine.request.TokenConstraint`."""
        ...


class GenerationConfigConstraint:
    """A token constraint that applies the rules of a generation_config.json to one answer.

    Args:
        config: the rules.
        prompt: the ids before the answer.
        max_new_tokens: how many ids the answer may have.
        vocab_size: V, how many ids the model has.
        stop_ids: ids that end an answer.
        inner: another constraint that is applied too.
    """

    def __init__(
        self,
        config: CheckpointGenerationConfig,
        prompt: Sequence[int],
        max_new_tokens: int,
        vocab_size: int,
        stop_ids: Collection[int],
        inner: FinishableConstraint | None,
    ) -> None:
        self._config, self._inner = config, inner
        self._max_new_tokens, self._vocab_size = max_new_tokens, vocab_size
        self._prompt_length, self._ids = len(prompt), list(prompt)
        self._stop_ids = sorted(stop_ids)
        min_new_tokens = config.min_new_tokens
        self._min_new_tokens = (
            max(0, config.min_length - len(prompt)) if min_new_tokens is None else min_new_tokens
        )
        # The ids that have followed each (n-1)-gram.
        self._next_ids_by_ngram: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for end in range(1, len(prompt) + 1):
            self._record_ngram(end)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete by the inner constraint; the rules themselves never end one."""
        return self._inner is not None and self._inner.is_finished

    @property
    def forced_next_ids(self) -> Sequence[int]:
        """The one id that must follow, in a sequence; an empty sequence if no id is forced."""
        if self._config.forced_bos_token_id is not None and len(self._ids) == 1:
            return (self._config.forced_bos_token_id,)
        is_last = len(self._ids) - self._prompt_length == self._max_new_tokens - 1
        return self._config.forced_eos_token_id[:1] if is_last else ()

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids, one bit for each, the lowest id first.

        Raises:
            BadSetting: no id is allowed.
        """
        allowed = self._allowed_mask()
        if self._inner is not None:
            inner_bits = np.frombuffer(self._inner.compute_token_bitmask(), np.uint8)
            allowed &= np.unpackbits(inner_bits, count=self._vocab_size, bitorder="little").astype(bool)
        if not allowed.any():
            names = ", ".join(self._config.step_dependent_fields)
            raise BadSetting(
                f"no token may follow: {GENERATION_CONFIG_FILE} of this checkpoint ({names}) leaves none"
            )
        return np.packbits(allowed, bitorder="little").tobytes()

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by one token: by `id`, or by the id that the inner constraint returns for it."""
        accepted_id = id if self._inner is None else self._inner.accept_token(id, max_remaining_tokens)
        self._ids.append(accepted_id)
        self._record_ngram(len(self._ids))
        return accepted_id

    def _allowed_mask(self) -> np.ndarray:
        """(V,): whether an id is allowed by the rules, without the inner constraint."""
        config, num_new_tokens = self._config, len(self._ids) - self._prompt_length
        if forced := self.forced_next_ids:
            allowed = np.zeros(self._vocab_size, dtype=bool)
            allowed[list(forced)] = True
            return allowed
        allowed = np.ones(self._vocab_size, dtype=bool)
        if num_new_tokens < self._min_new_tokens:
            allowed[self._stop_ids] = False
        if len(self._ids) == (
            2 if config.forced_bos_token_id is not None and self._prompt_length == 1 else self._prompt_length
        ):
            allowed[list(config.begin_suppress_tokens)] = False
        if size := config.no_repeat_ngram_size:
            allowed[list(self._next_ids_by_ngram.get(self._last_ids(size - 1), ()))] = False
        for word in config.bad_words_ids:
            if len(word) > 1 and self._last_ids(len(word) - 1) == word[:-1]:
                allowed[word[-1]] = False
        return allowed

    def _last_ids(self, count: int) -> tuple[int, ...]:
        """The last `count` ids of prompt and answer; () if there are fewer."""
        return tuple(self._ids[len(self._ids) - count :]) if count <= len(self._ids) else ()

    def _record_ngram(self, end: int) -> None:
        """Records the n-gram that ends before the position `end`."""
        size = self._config.no_repeat_ngram_size
        if size and end >= size:
            *before, last = self._ids[end - size : end]
            self._next_ids_by_ngram[tuple(before)].add(last)


class GenerationConfigBeamConstraint:
    """The rules of a generation_config.json for the beams of a beam search: a `BeamConstraint` of `engine.request`.

    Attributes:
        is_renormalized: whether the probabilities of the allowed tokens are scaled to sum to 1.

    Args:
        config, prompt, max_new_tokens, vocab_size, stop_ids: as in `GenerationConfigConstraint`.
    """

    def __init__(
        self,
        config: CheckpointGenerationConfig,
        prompt: Sequence[int],
        max_new_tokens: int,
        vocab_size: int,
        stop_ids: Collection[int],
    ) -> None:
        self.is_renormalized = config.renormalize_logits
        self._create_constraint = partial(
            GenerationConfigConstraint, config, prompt, max_new_tokens, vocab_size, stop_ids, None
        )

    def compute_beam_bitmask(self, generated_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The allowed next ids of a beam, one bit for each, and whether one id is forced (which costs no probability).

        Raises:
            BadSetting: no id is allowed.
        """
        constraint = self._create_constraint()
        for id in generated_ids:
            constraint.accept_token(id, 0)
        return constraint.compute_token_bitmask(), bool(constraint.forced_next_ids)
