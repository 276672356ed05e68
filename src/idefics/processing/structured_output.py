"""Token constraints for structured output (regex, choices, JSON schema) and for banned strings.

A constraint belongs to one answer: the engine calls `compute_token_bitmask` before each token and `accept_token` after
it. Independent of tensors and models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from idefics.errors import BadSetting
from idefics.lazy import cached_property
from idefics.processing import shortest_completion
from idefics.processing.grammar import lark_grammar, summarize_llguidance_error
from idefics.processing.token_bytes import MAX_TOKEN_BYTES, TOKEN_START, TokenBytes
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from llguidance import LLMatcher


class CompiledGrammar:
    """An output constraint, compiled for a checkpoint's tokens.

    Attributes:
        allows_leading_space: whether the answer may begin with one space, as most models do, which is then removed from
            its text; False if the constraint itself allows a space there.
        byte_matcher: a matcher of llguidance over bytes, at the beginning of an answer; `token_matcher` over tokens.
        token_costs: returns for each position of a text the fewest tokens that spell the rest of it.
        shortest_completion: the shortest answer that a search found, in bytes; a still shorter one may exist.
        num_shortest_completion_tokens: its number of tokens.

    Args:
        output_constraint: what the whole answer must match.
        token_bytes: the tokens of the model.

    Raises:
        BadSetting: the constraint is invalid, or no text that satisfies it was found.
        MissingExtra: llguidance is not installed.
    """

    def __init__(self, output_constraint: OutputConstraint, token_bytes: TokenBytes) -> None:
        tokenizer = token_bytes.llguidance_tokenizer
        self.output_constraint, self.token_bytes = output_constraint, token_bytes
        self.token_costs = cache(
            token_bytes.min_token_counts
        )  # of choices, which are compared after each token
        unspaced_matcher = shortest_completion.create_matcher(
            lark_grammar(output_constraint, allow_leading_space=False)
        )
        if unspaced_matcher.is_error():
            raise BadSetting(
                f"{output_constraint.kind} cannot be used: {summarize_llguidance_error(unspaced_matcher.get_error())}"
            )
        self.allows_leading_space = (
            not shortest_completion.allowed_byte_mask(unspaced_matcher) >> ord(" ") & 1
        )
        lark_text = lark_grammar(output_constraint, allow_leading_space=self.allows_leading_space)
        self.token_matcher = shortest_completion.create_matcher(lark_text, tokenizer)
        self.byte_matcher = shortest_completion.create_matcher(lark_text)
        completion = shortest_completion.find_short_completion(self)
        completion_tokens = None if completion is None else token_bytes.tokenize(completion)
        if completion is None or completion_tokens is None:
            raise BadSetting(f"no text of the given {output_constraint.kind} was found: give a simpler one")
        self.shortest_completion = completion
        self.num_shortest_completion_tokens = len(completion_tokens)

    def create_constraint(self, max_new_tokens: int) -> GrammarConstraint:
        """The constraint of one answer of at most `max_new_tokens` tokens.

        Raises:
            BadSetting: the shortest text has more tokens.
        """
        if (num_tokens := self.num_shortest_completion_tokens) > max_new_tokens:
            raise BadSetting(
                f"the shortest answer found for the given {self.output_constraint.kind} has {num_tokens} tokens, "
                f"and there is room for {max_new_tokens}: give a larger max_new_tokens, a shorter prompt or a simpler "
                f"{self.output_constraint.kind}"
            )
        return GrammarConstraint(self)


class GrammarConstraint:
    """Makes one answer satisfy an output constraint within the allowed number of tokens.

    It always stores one completion that fits into the remaining tokens. A sampled token after which no completion that
    fits is found is replaced by the next token of the stored completion.

    Attributes:
        is_finished: whether the answer is complete, so that no token can follow.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar, self._token_bytes = grammar, grammar.token_bytes
        self._token_matcher = grammar.token_matcher.deep_copy()
        self._byte_matcher = grammar.byte_matcher.deep_copy()
        self._generated = b""
        self._completion = grammar.shortest_completion
        self._num_completion_tokens = grammar.num_shortest_completion_tokens
        self.is_finished = False

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids: one bit for each id, the lowest id first."""
        bits = self._token_matcher.compute_bitmask()
        self._raise_matcher_error(self._token_matcher)
        return bits[: -(-len(self._token_bytes.bytes_by_id) // 8)]

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by one token, and returns it: the sampled `id`, or one that replaces it.

        A token is replaced if no completion after it fits into `max_remaining_tokens`.
        """
        if id in self._token_bytes.stop_ids:
            return id
        next_matcher = self._byte_matcher.deep_copy()
        completion = self._completion_after(next_matcher, id, max_remaining_tokens)
        if completion is None:
            if not self._completion:
                return min(self._token_bytes.stop_ids)
            tokens = self._token_bytes.tokenize(self._completion)
            assert tokens, "a completion that fits can be spelled"
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
        """Raises BadSetting if a matcher is in an error state, in which it would report that the text is complete."""
        if matcher.is_error():
            raise BadSetting(
                f"the given {self._grammar.output_constraint.kind} is too complex: "
                f"{summarize_llguidance_error(matcher.get_error())}; give a simpler one"
            )

    def _completion_after(self, matcher: LLMatcher, id: int, max_remaining_tokens: int) -> bytes | None:
        """A completion after the token `id` that fits into the remaining tokens, or None if none is found.

        Args:
            matcher: over bytes, before the token; advanced by it.
        """
        id_bytes = self._token_bytes.bytes_by_id[id]
        matcher.consume_tokens(list(id_bytes))
        completion = (
            self._completion[len(id_bytes) :]
            if self._completion.startswith(id_bytes)
            else shortest_completion.shortest_completing_suffix(matcher, self._completion)
        )
        if completion is not None:
            # This completion is a suffix of one whose tokens were counted. Re-tokenizing the token that is cut in two
            # adds at most one token for each of its bytes.
            is_short_enough = (
                self._token_bytes.has_all_bytes
                and self._num_completion_tokens + MAX_TOKEN_BYTES <= max_remaining_tokens
            )
            return (
                completion
                if is_short_enough or self._fits_and_store_count(completion, max_remaining_tokens)
                else None
            )
        for completion in shortest_completion.find_completions(
            self._grammar, matcher, self._generated + id_bytes
        ):
            if self._fits_and_store_count(completion, max_remaining_tokens):
                return completion
        return None

    def _fits_and_store_count(self, completion: bytes, max_remaining_tokens: int) -> bool:
        """Whether a completion fits into the remaining tokens; if so, stores its number of tokens."""
        count = self._token_bytes.min_token_counts(completion)[0]
        if count <= max_remaining_tokens:
            self._num_completion_tokens = int(count)
        return count <= max_remaining_tokens


class BannedStrings:
    """Bans the tokens that would complete one of some strings in an answer, however the strings are split into tokens.

    Attributes:
        is_finished: False, as the strings never complete an answer.

    Args:
        strings: the strings; case matters.
        token_bytes: the tokens of the model.

    Raises:
        BadSetting: a string is empty.
    """

    is_finished = False

    def __init__(self, strings: Sequence[str], token_bytes: TokenBytes) -> None:
        if not all(strings):
            raise BadSetting("a banned string is empty: give at least one character")
        self._strings, self._token_bytes = [string.encode() for string in strings], token_bytes
        self._find_ids = cache(token_bytes.find_ids)
        self._last_bytes = b""

    @cached_property
    def _base_allowed_mask(self) -> np.ndarray:
        """(V,) bool: False for the tokens that contain a whole banned string, which are never allowed."""
        allowed = np.ones(len(self._token_bytes.bytes_by_id), dtype=bool)
        for string in self._strings:
            allowed[self._find_ids(string)] = False
        return allowed

    def create_constraint(self, max_new_tokens: int) -> BannedStrings:
        """The constraint of one answer; `max_new_tokens` has no effect."""
        _ = self._base_allowed_mask  # computed once for all answers
        return copy.copy(self)

    def compute_token_bitmask(self) -> bytes:
        """The allowed next ids: one bit for each id, the lowest id first."""
        allowed = self._base_allowed_mask.copy()
        for string in self._strings:
            for num_matched_bytes in range(1, len(string)):
                if self._last_bytes.endswith(string[:num_matched_bytes]):
                    allowed[self._find_ids(TOKEN_START + string[num_matched_bytes:])] = False
        return np.packbits(allowed, bitorder="little").tobytes()

    def accept_token(self, id: int, max_remaining_tokens: int) -> int:
        """Advances by the token `id` and returns it unchanged."""
        max_string_bytes = max(map(len, self._strings))
        self._last_bytes = (self._last_bytes + self._token_bytes.bytes_by_id[id])[-max_string_bytes:]
        return id
