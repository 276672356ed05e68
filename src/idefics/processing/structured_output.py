"""Which tokens may follow in an answer of a forced form, or in one that avoids some words.

A guide is one answer's: it is asked before each token and told each token. Knows no tensors and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from idefics.errors import BadSetting
from idefics.lazy import cached_property
from idefics.processing import shortest_completion
from idefics.processing.grammar import lark_grammar, summarize_error
from idefics.processing.token_bytes import MAX_TOKEN_BYTES, TokenBytes
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from llguidance import LLMatcher


class CompiledGrammar:
    """A form, ready for a checkpoint's tokens.

    Attributes:
        allows_leading_space: whether one blank before the form is allowed, and left out of the text: most models begin an
            answer with one. Not where the form itself may begin with a blank.
        shortest_completion: the shortest text of the form that a search found.

    Raises:
        BadSetting: it is no form, or no text of it was found.
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, output_constraint: OutputConstraint, token_bytes: TokenBytes) -> None:
        tokenizer = token_bytes.llguidance_tokenizer
        self.output_constraint, self.token_bytes = output_constraint, token_bytes
        self.token_costs = cache(
            token_bytes.min_token_counts
        )  # of choices: they are asked for again after each token
        unspaced_matcher = shortest_completion.create_matcher(
            lark_grammar(output_constraint, allow_leading_space=False)
        )
        if unspaced_matcher.is_error():
            raise BadSetting(
                f"{output_constraint.kind} cannot be used: {summarize_error(unspaced_matcher.get_error())}"
            )
        self.allows_leading_space = (
            not shortest_completion.allowed_byte_mask(unspaced_matcher) >> ord(" ") & 1
        )
        lark_text = lark_grammar(output_constraint, allow_leading_space=self.allows_leading_space)
        self.token_matcher, self.byte_matcher = (
            shortest_completion.create_matcher(lark_text, tokenizer),
            shortest_completion.create_matcher(lark_text),
        )
        completion = shortest_completion.find_short_completion(
            output_constraint, self.byte_matcher, self.allows_leading_space, self.token_costs
        )
        if completion is None or self._tokenize(completion) is None:
            raise BadSetting(f"no text of the given {output_constraint.kind} was found: give a simpler one")
        self.shortest_completion = completion

    @cached_property
    def min_tokens(self) -> int:
        """How many tokens an answer takes at least."""
        return len(self._tokenize(self.shortest_completion) or ())

    def _tokenize(self, completion: bytes) -> list[int] | None:
        return self.token_bytes.tokenize(completion)

    def create_constraint(self, max_new_tokens: int) -> GrammarConstraint:
        """For an answer of at most `max_new_tokens` tokens.

        Raises:
            BadSetting: no text of the form is so short.
        """
        if self.min_tokens > max_new_tokens:
            raise BadSetting(
                f"the shortest answer of the given {self.output_constraint.kind} that was found has {self.min_tokens} tokens, and "
                f"there is room for {max_new_tokens}: give a larger max_new_tokens, a shorter prompt or a shorter form"
            )
        return GrammarConstraint(self)


class GrammarConstraint:
    """Sees to it that an answer has its form when it ends, and ends in time.

    It knows at every moment one way to end that fits into the room that is left. A token after which it finds none is
    not taken: the answer goes the known way instead.

    Attributes:
        is_finished: nothing can follow.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar, self._token_bytes = grammar, grammar.token_bytes
        self._token_matcher, self._byte_matcher = (
            grammar.token_matcher.deep_copy(),
            grammar.byte_matcher.deep_copy(),
        )
        self._generated, self._completion, self._num_completion_tokens = (
            b"",
            grammar.shortest_completion,
            grammar.min_tokens,
        )
        self.is_finished = False

    def compute_token_bitmask(self) -> bytes:
        """A bit for each id that may follow, the lowest first."""
        bits = self._token_matcher.compute_bitmask()
        self._raise_matcher_error(self._token_matcher)
        return bits[: -(-len(self._token_bytes.bytes_by_id) // 8)]

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Takes the id that was chosen, or another one after which `max_remaining_tokens` tokens are enough: -> the one taken."""
        if id in self._token_bytes.stop_ids:
            return id
        next_matcher = self._byte_matcher.deep_copy()
        completion = self._completion_after(next_matcher, id, max_remaining_tokens)
        if completion is None:
            if not self._completion:
                return min(self._token_bytes.stop_ids)
            tokens = self._token_bytes.tokenize(self._completion)
            assert tokens, "it fits, so it can be spelled"
            id = tokens[0]
            id_bytes = self._token_bytes.bytes_by_id[id]
            next_matcher, completion = self._byte_matcher, self._completion[len(id_bytes) :]
            next_matcher.consume_tokens(list(id_bytes))
        self._token_matcher.consume_token(id)
        self._raise_matcher_error(next_matcher)
        self._byte_matcher, self._completion = next_matcher, completion
        self._generated += self._token_bytes.bytes_by_id[id]
        self.is_finished = self._byte_matcher.is_stopped()
        return id

    def _raise_matcher_error(self, matcher: LLMatcher) -> None:
        """A matcher with an error says that a text is over."""
        if matcher.is_error():
            raise BadSetting(
                f"the given {self._grammar.output_constraint.kind} is too complex: {summarize_error(matcher.get_error())}; give a simpler one"
            )

    def _completion_after(self, matcher: LLMatcher, id: int, max_remaining_tokens: int) -> bytes | None:
        """An end that follows an id and fits, if one is found."""
        id_bytes = self._token_bytes.bytes_by_id[id]
        matcher.consume_tokens(list(id_bytes))
        completion = (
            self._completion[len(id_bytes) :]
            if self._completion.startswith(id_bytes)
            else shortest_completion.reuse_completion(matcher, self._completion)
        )
        if completion is not None:
            # It ends what has been counted: the token that is cut may take as many as it has bytes, and no more do.
            is_short_enough = (
                self._token_bytes.has_all_bytes
                and self._num_completion_tokens + MAX_TOKEN_BYTES <= max_remaining_tokens
            )
            return completion if is_short_enough or self._fits(completion, max_remaining_tokens) else None
        generated, grammar = self._generated + id_bytes, self._grammar
        completions = shortest_completion.find_completions(
            grammar.output_constraint, matcher, generated, grammar.allows_leading_space, grammar.token_costs
        )
        return next(
            (completion for completion in completions if self._fits(completion, max_remaining_tokens)), None
        )

    def _fits(self, completion: bytes, max_remaining_tokens: int) -> bool:
        count = self._token_bytes.min_token_count(completion)
        if count <= max_remaining_tokens:
            self._num_completion_tokens = int(count)
        return count <= max_remaining_tokens


class BannedStrings:
    """Words that shall not stand in an answer, whatever tokens they are made of.

    Args:
        strings: as they are written; upper and lower case are different.

    Raises:
        BadSetting: a word is empty.
    """

    def __init__(self, strings: Sequence[str], token_bytes: TokenBytes) -> None:
        if not all(strings):
            raise BadSetting("a banned word is empty: give at least one character")
        self.strings, self.token_bytes = [word.encode() for word in strings], token_bytes
        self._completing_ids_cache: dict[tuple[bytes, int], list[int]] = {}

    @cached_property
    def base_allowed_mask(self) -> np.ndarray:
        """(V,) False for tokens that have one of them inside."""
        allowed = np.ones(len(self.token_bytes.bytes_by_id), dtype=bool)
        for word in self.strings:
            allowed[list(self.token_bytes.ids_containing(word))] = False
        return allowed

    def create_constraint(self, max_new_tokens: int) -> BannedStringsConstraint:
        """For one answer, however long."""
        return BannedStringsConstraint(self)

    def completing_ids(self, string: bytes, num_matched_bytes: int) -> list[int]:
        """Ids of tokens that complete a word of which so many bytes are there."""
        ids = self._completing_ids_cache.get((string, num_matched_bytes))
        if ids is None:
            ids = self._completing_ids_cache[string, num_matched_bytes] = list(
                self.token_bytes.ids_starting_with(string[num_matched_bytes:])
            )
        return ids


class BannedStringsConstraint:
    """Leaves out tokens that would complete a banned word. What has been said is as in `GrammarConstraint`."""

    is_finished = False

    def __init__(self, banned: BannedStrings) -> None:
        self._banned, self._last_bytes = banned, b""
        self._max_string_bytes = max(map(len, banned.strings))

    def compute_token_bitmask(self) -> bytes:
        """A bit for each id that may follow, the lowest first."""
        allowed = self._banned.base_allowed_mask.copy()
        for word in self._banned.strings:
            for num_matched_bytes in range(1, len(word)):
                if self._last_bytes.endswith(word[:num_matched_bytes]):
                    allowed[self._banned.completing_ids(word, num_matched_bytes)] = False
        return np.packbits(allowed, bitorder="little").tobytes()

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Takes an id."""
        self._last_bytes = (self._last_bytes + self._banned.token_bytes.bytes_by_id[id])[
            -self._max_string_bytes :
        ]
        return id


def compile_output_constraint(
    output_constraint: OutputConstraint | None,
    banned: Sequence[str],
    token_bytes: TokenBytes,
    compile_grammar: Callable[[OutputConstraint], CompiledGrammar],
) -> CompiledGrammar | BannedStrings:
    """What holds answers to a form, or keeps words out of them.

    Args:
        compile_grammar: gets a form ready, or has it ready.

    Raises:
        BadSetting: as these two, or both are asked for.
    """
    if output_constraint is None:
        return BannedStrings(banned, token_bytes)
    if banned:
        raise BadSetting(
            f"banned goes with free answers, and {output_constraint.kind} is given: leave one of the two out; "
            "a form says itself what may stand in it"
        )
    return compile_grammar(output_constraint)
