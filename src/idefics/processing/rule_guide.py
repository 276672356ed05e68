"""Holds an answer to what a checkpoint's generation_config.json asks of each step.

A guide is one answer's: it is asked before each token and told each token. Knows no tensors and no models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from idefics.errors import BadSetting
from idefics.processing.generation_rules import FILE, GenerationRules


class Guide(Protocol):
    """As `engine.request.Guide`, and whether it lets nothing follow."""

    is_over: bool

    def allowed(self) -> bytes: ...

    def settle(self, id: int, room: int) -> int: ...


class RuleGuide:
    """Which ids may follow in one answer, as transformers' `generate` computes it.

    Attributes:
        is_over: nothing can follow.

    Args:
        rules: of the checkpoint.
        prompt: the ids before the answer.
        room: how many ids the answer may have.
        vocabulary: V, how many ids the model has.
        stop_ids: ids that end an answer.
        inner: another guide, which says too what may follow.
    """

    def __init__(
        self,
        rules: GenerationRules,
        prompt: Sequence[int],
        room: int,
        vocabulary: int,
        stop_ids: Collection[int],
        inner: Guide | None,
    ) -> None:
        self._rules, self._room, self._vocabulary, self._inner = rules, room, vocabulary, inner
        self._prompt, self._ids = len(prompt), list(prompt)
        self._stops = sorted(stop_ids)
        least = rules.min_new_tokens
        self._least = max(0, rules.min_length - len(prompt)) if least is None else least
        self._following: dict[tuple[int, ...], set[int]] = defaultdict(
            set
        )  # ids after an n-gram but its last
        for end in range(1, len(prompt) + 1):
            self._note(end)

    @property
    def is_over(self) -> bool:
        return self._inner is not None and self._inner.is_over

    @property
    def forced(self) -> Sequence[int]:
        """The id that must follow, if there is one."""
        if self._rules.forced_bos_token_id is not None and len(self._ids) == 1:
            return (self._rules.forced_bos_token_id,)
        is_last = len(self._ids) - self._prompt == self._room - 1
        return self._rules.forced_eos_token_id[:1] if is_last else ()

    def allowed(self) -> bytes:
        """A bit for each id that may follow, the lowest first.

        Raises:
            BadSetting: none may.
        """
        may = self._may()
        if self._inner is not None:
            inner = np.frombuffer(self._inner.allowed(), np.uint8)
            may &= np.unpackbits(inner, count=self._vocabulary, bitorder="little").astype(bool)
        if not may.any():
            names = ", ".join(self._rules.stepwise)
            raise BadSetting(f"no token may follow: {FILE} of this checkpoint ({names}) leaves none")
        return np.packbits(may, bitorder="little").tobytes()

    def settle(self, id: int, room: int) -> int:
        """Takes the id that was chosen, or the inner guide's: -> the one taken."""
        taken = id if self._inner is None else self._inner.settle(id, room)
        self._ids.append(taken)
        self._note(len(self._ids))
        return taken

    def _may(self) -> np.ndarray:
        """(V,) whether an id may follow by the rules alone."""
        rules, count = self._rules, len(self._ids) - self._prompt
        if forced := self.forced:
            may = np.zeros(self._vocabulary, dtype=bool)
            may[list(forced)] = True
            return may
        may = np.ones(self._vocabulary, dtype=bool)
        if count < self._least:
            may[self._stops] = False
        if len(self._ids) == (
            2 if rules.forced_bos_token_id is not None and self._prompt == 1 else self._prompt
        ):
            may[list(rules.begin_suppress_tokens)] = False
        if size := rules.no_repeat_ngram_size:
            may[list(self._following.get(self._last(size - 1), ()))] = False
        for word in rules.bad_words_ids:
            if len(word) > 1 and self._last(len(word) - 1) == word[:-1]:
                may[word[-1]] = False
        return may

    def _last(self, count: int) -> tuple[int, ...]:
        return tuple(self._ids[len(self._ids) - count :]) if count <= len(self._ids) else ()

    def _note(self, end: int) -> None:
        """Remembers the n-gram that ends before a place."""
        size = self._rules.no_repeat_ngram_size
        if size and end >= size:
            *before, last = self._ids[end - size : end]
            self._following[tuple(before)].add(last)


class BeamRuleGuide:
    """Which ids may follow in each beam of a search, by the same rules.

    Attributes:
        renormalizes: what is left of each beam's distribution adds up to 1 again.

    Args:
        rules, prompt, room, vocabulary, stop_ids: as for `RuleGuide`.
    """

    def __init__(
        self,
        rules: GenerationRules,
        prompt: Sequence[int],
        room: int,
        vocabulary: int,
        stop_ids: Collection[int],
    ) -> None:
        self.renormalizes = rules.renormalize_logits
        self._guide = partial(RuleGuide, rules, prompt, room, vocabulary, stop_ids, None)

    def allowed_after(self, answer: Sequence[int]) -> tuple[bytes, bool]:
        """A bit for each id that may follow in a beam, and whether one is forced, which then costs the beam nothing.

        Raises:
            BadSetting: none may.
        """
        guide = self._guide()
        for id in answer:
            guide.settle(id, 0)
        return guide.allowed(), bool(guide.forced)
