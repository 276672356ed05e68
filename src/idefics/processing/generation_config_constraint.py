"""Token constraints that apply the rules of a checkpoint's generation_config.json, as transformers' `generate` does.

Independent of tensors and models.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from idefics.errors import BadSetting
from idefics.processing.checkpoint_generation_config import GENERATION_CONFIG_FILE, CheckpointGenerationConfig
from idefics.processing.structured_output import BannedStrings, GrammarConstraint

InnerConstraint = GrammarConstraint | BannedStrings  # of the caller's options


class GenerationConfigConstraint:
    """Applies the rules of a generation_config.json to one answer, or to the beams of a beam search.

    It is a `TokenConstraint` and a `BeamConstraint` of `engine.request`.

    Attributes:
        is_renormalized: whether the probabilities of the allowed tokens of a beam are scaled to sum to 1.

    Args:
        config: the rules.
        prompt: the ids before the answer.
        max_new_tokens: how many ids the answer may have.
        vocab_size: V, how many ids the model has.
        stop_ids: ids that end an answer.
        inner: another constraint on the tokens that is applied too; not for beams.
    """

    def __init__(
        self,
        config: CheckpointGenerationConfig,
        prompt: Sequence[int],
        max_new_tokens: int,
        vocab_size: int,
        stop_ids: Collection[int],
        inner: InnerConstraint | None,
    ) -> None:
        self._config, self._inner = config, inner
        self._max_new_tokens, self._vocab_size = max_new_tokens, vocab_size
        self._prompt, self._ids = list(prompt), list(prompt)
        self._stop_ids = list(stop_ids)
        min_new_tokens = config.min_new_tokens
        self._min_new_tokens = config.min_length - len(prompt) if min_new_tokens is None else min_new_tokens
        self.is_renormalized = config.renormalize_logits

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete by the inner constraint; the rules themselves never end one."""
        return self._inner is not None and self._inner.is_finished

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids, one bit for each, the lowest id first.

        Raises:
            BadSetting: no id is allowed.
        """
        allowed = self._allowed_mask(self._ids)
        if self._inner is not None:
            inner_bits = np.frombuffer(self._inner.compute_token_bitmask(), np.uint8)
            allowed &= np.unpackbits(inner_bits, count=self._vocab_size, bitorder="little").astype(bool)
        return self._to_bitmask(allowed)

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by one token: by `id`, or by the id that the inner constraint returns for it."""
        accepted_id = id if self._inner is None else self._inner.accept_token(id, max_remaining_tokens)
        self._ids.append(accepted_id)
        return accepted_id

    def compute_beam_bitmask(self, generated_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The allowed next ids of a beam, one bit for each, and whether one id is forced (which costs no probability).

        Raises:
            BadSetting: no id is allowed.
        """
        ids = [*self._prompt, *generated_ids]
        return self._to_bitmask(self._allowed_mask(ids)), self._forced_next_id(ids) is not None

    def _to_bitmask(self, allowed: np.ndarray) -> bytes:
        """One bit for each id of a mask (V,); raises BadSetting if no id is allowed."""
        if not allowed.any():
            names = ", ".join(self._config.step_dependent_fields)
            raise BadSetting(
                f"no token may follow: {GENERATION_CONFIG_FILE} of this checkpoint ({names}) leaves none"
            )
        return np.packbits(allowed, bitorder="little").tobytes()

    def _forced_next_id(self, ids: Sequence[int]) -> int | None:
        """The one id that must follow `ids`; None if no id is forced."""
        config = self._config
        if config.forced_bos_token_id is not None and len(ids) == 1:
            return config.forced_bos_token_id
        is_last = len(ids) - len(self._prompt) == self._max_new_tokens - 1
        return min(config.forced_eos_token_id, default=None) if is_last else None

    def _allowed_mask(self, ids: list[int]) -> np.ndarray:
        """(V,): whether an id may follow `ids` by the rules, without the inner constraint."""
        config, num_ids = self._config, len(ids)
        if (forced := self._forced_next_id(ids)) is not None:
            allowed = np.zeros(self._vocab_size, dtype=bool)
            allowed[forced] = True
            return allowed
        allowed = np.ones(self._vocab_size, dtype=bool)
        if num_ids - len(self._prompt) < self._min_new_tokens:
            allowed[self._stop_ids] = False
        if num_ids == len(self._prompt) + (config.forced_bos_token_id is not None and len(self._prompt) == 1):
            allowed[list(config.begin_suppress_tokens)] = False
        if size := config.no_repeat_ngram_size:
            last_ids = ids[num_ids - size + 1 :]
            for end in range(size - 1, num_ids):
                if ids[end - size + 1 : end] == last_ids:
                    allowed[ids[end]] = False
        for word in config.bad_words_ids:
            if 1 < len(word) <= num_ids + 1 and ids[num_ids - len(word) + 1 :] == list(word[:-1]):
                allowed[word[-1]] = False
        return allowed


AnswerConstraint = InnerConstraint | GenerationConfigConstraint
