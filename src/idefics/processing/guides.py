"""Which tokens may follow in an answer of a forced form, or in one that avoids some words.

A guide is one answer's: it is asked before each token and told each token. Knows no tensors and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from idefics.errors import BadSetting
from idefics.form import Form
from idefics.lazy import cached_property
from idefics.processing import closing
from idefics.processing.grammar import complaint, grammar
from idefics.processing.spelling import LONGEST, Spelling

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Shape:
    """A form, ready for a checkpoint's tokens.

    Attributes:
        is_spaced: whether one blank before the form is allowed, and left out of the text: most models begin an
            answer with one. Not where the form itself may begin with a blank.
        end: the shortest text of the form that a search found.

    Raises:
        BadSetting: it is no form, or no text of it was found.
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, form: Form, spelling: Spelling) -> None:
        tokens = spelling.guidance
        self.form, self.spelling = form, spelling
        self.costs = cache(spelling.counts)  # of choices: they are asked for again after each token
        bare = closing.matcher(grammar(form, is_spaced=False))
        if bare.is_error():
            raise BadSetting(f"{form.name} cannot be used: {complaint(bare.get_error())}")
        self.is_spaced = not closing.allowed(bare) >> ord(" ") & 1
        lark = grammar(form, is_spaced=self.is_spaced)
        self.matcher, self.bytes = closing.matcher(lark, tokens), closing.matcher(lark)
        end = closing.first_end(form, self.bytes, self.is_spaced, self.costs)
        if end is None or self._tokens(end) is None:
            raise BadSetting(f"no text of the given {form.name} was found: give a simpler one")
        self.end = end

    @cached_property
    def length(self) -> int:
        """How many tokens an answer takes at least."""
        return len(self._tokens(self.end) or ())

    def _tokens(self, end: bytes) -> list[int] | None:
        return self.spelling.tokens(end)

    def guide(self, room: int) -> FormGuide:
        """For an answer of at most `room` tokens.

        Raises:
            BadSetting: no text of the form is so short.
        """
        if self.length > room:
            raise BadSetting(
                f"the shortest answer of the given {self.form.name} that was found has {self.length} tokens, and "
                f"there is room for {room}: give a larger max_new_tokens, a shorter prompt or a shorter form"
            )
        return FormGuide(self)


class FormGuide:
    """Sees to it that an answer has its form when it ends, and ends in time.

    It knows at every moment one way to end that fits into the room that is left. A token after which it finds none is
    not taken: the answer goes the known way instead.

    Attributes:
        is_over: nothing can follow.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape, self._spelling = shape, shape.spelling
        self._matcher, self._bytes = shape.matcher.deep_copy(), shape.bytes.deep_copy()
        self._said, self._end, self._counted = b"", shape.end, shape.length
        self.is_over = False

    def allowed(self) -> bytes:
        """A bit for each id that may follow, the lowest first."""
        bits = self._matcher.compute_bitmask()
        self._check(self._matcher)
        return bits[: -(-len(self._spelling.bytes_of) // 8)]

    def settle(self, id: int, room: int) -> int:
        """Takes the id that was chosen, or another one after which `room` tokens are enough: -> the one taken."""
        if id in self._spelling.stop_ids:
            return id
        after = self._bytes.deep_copy()
        end = self._end_after(after, id, room)
        if end is None:
            if not self._end:
                return min(self._spelling.stop_ids)
            tokens = self._spelling.tokens(self._end)
            assert tokens, "it fits, so it can be spelled"
            id = tokens[0]
            spelled = self._spelling.bytes_of[id]
            after, end = self._bytes, self._end[len(spelled) :]
            after.consume_tokens(list(spelled))
        self._matcher.consume_token(id)
        self._check(after)
        self._bytes, self._end = after, end
        self._said += self._spelling.bytes_of[id]
        self.is_over = self._bytes.is_stopped()
        return id

    def _check(self, at: LLMatcher) -> None:
        """A matcher with an error says that a text is over."""
        if at.is_error():
            raise BadSetting(
                f"the given {self._shape.form.name} is too complex: {complaint(at.get_error())}; give a simpler one"
            )

    def _end_after(self, at: LLMatcher, id: int, room: int) -> bytes | None:
        """An end that follows an id and fits, if one is found."""
        spelled = self._spelling.bytes_of[id]
        at.consume_tokens(list(spelled))
        end = self._end[len(spelled) :] if self._end.startswith(spelled) else closing.reused(at, self._end)
        if end is not None:
            # It ends what has been counted: the token that is cut may take as many as it has bytes, and no more do.
            has_room = self._spelling.has_all_bytes and self._counted + LONGEST <= room
            return end if has_room or self._fits(end, room) else None
        said, shape = self._said + spelled, self._shape
        ends = closing.ends(shape.form, at, said, shape.is_spaced, shape.costs)
        return next((end for end in ends if self._fits(end, room)), None)

    def _fits(self, end: bytes, room: int) -> bool:
        count = self._spelling.count(end)
        if count <= room:
            self._counted = int(count)
        return count <= room


class BannedWords:
    """Words that shall not stand in an answer, whatever tokens they are made of.

    Args:
        words: as they are written; upper and lower case are different.

    Raises:
        BadSetting: a word is empty.
    """

    def __init__(self, words: Sequence[str], spelling: Spelling) -> None:
        if not all(words):
            raise BadSetting("a banned word is empty: give at least one character")
        self.words, self.spelling = [word.encode() for word in words], spelling
        self._completing: dict[tuple[bytes, int], list[int]] = {}

    @cached_property
    def always(self) -> np.ndarray:
        """(V,) False for tokens that have one of them inside."""
        may = np.ones(len(self.spelling.bytes_of), dtype=bool)
        for word in self.words:
            may[list(self.spelling.holding(word))] = False
        return may

    def guide(self, room: int) -> BannedGuide:
        """For one answer, however long."""
        return BannedGuide(self)

    def completing(self, word: bytes, begun: int) -> list[int]:
        """Ids of tokens that complete a word of which so many bytes are there."""
        known = self._completing.get((word, begun))
        if known is None:
            known = self._completing[word, begun] = list(self.spelling.beginning(word[begun:]))
        return known


class BannedGuide:
    """Leaves out tokens that would complete a banned word. What has been said is as in `FormGuide`."""

    is_over = False

    def __init__(self, banned: BannedWords) -> None:
        self._banned, self._tail = banned, b""
        self._longest = max(map(len, banned.words))

    def allowed(self) -> bytes:
        """A bit for each id that may follow, the lowest first."""
        may = self._banned.always.copy()
        for word in self._banned.words:
            for begun in range(1, len(word)):
                if self._tail.endswith(word[:begun]):
                    may[self._banned.completing(word, begun)] = False
        return np.packbits(may, bitorder="little").tobytes()

    def settle(self, id: int, room: int) -> int:
        """Takes an id."""
        self._tail = (self._tail + self._banned.spelling.bytes_of[id])[-self._longest :]
        return id


def limits(
    form: Form | None, banned: Sequence[str], spelling: Spelling, shape: Callable[[Form], Shape]
) -> Shape | BannedWords:
    """What holds answers to a form, or keeps words out of them.

    Args:
        shape: gets a form ready, or has it ready.

    Raises:
        BadSetting: as these two, or both are asked for.
    """
    if form is None:
        return BannedWords(banned, spelling)
    if banned:
        raise BadSetting(
            f"banned goes with free answers, and {form.name} is given: leave one of the two out; "
            "a form says itself what may stand in it"
        )
    return shape(form)
