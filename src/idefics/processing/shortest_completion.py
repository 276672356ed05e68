"""Searches for short completions: bytes after which a text satisfies its output constraint.

llguidance says which bytes may follow and whether a text may end here, but not how far away an end is. A short end of a
regular expression is found by bisection over bounds on the length; one of a JSON schema by a walk that prefers bytes
which close something. Works on bytes; independent of tokens and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from idefics.processing.grammar import lark_grammar
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from idefics.processing.structured_output import CompiledGrammar

# Limits of one constraint, so that one of an untrusted sender takes a moment and some megabytes at most.
LEXER_FUEL = 100_000  # lexer work before the first token, and for each token
MAX_LEXER_STATES = 10_000  # 2 kB each; a bounded text of N characters has at least N
MAX_GRAMMAR_SIZE = 50_000
MAX_COMPLETION_BYTES = 8192  # of the completion of an empty text; longer ones are not found
MAX_REGEX_CHARACTERS = 2048  # the largest bound tried for a regular expression
MAX_WALK_BYTES = 256  # of a greedy completion during generation, and of the first one with lookahead
MAX_LATER_LOOKAHEAD_BYTES = 64  # of a greedy completion with lookahead during generation
MAX_DROPPED_BYTES = 64  # leading bytes of an earlier completion that may be dropped when it is reused
MAX_CYCLE_POSITIONS = 100  # positions where a completion is checked for cycles
MAX_SHORTENING_ATTEMPTS = 200  # other bytes that are tried to shorten the first completion
ALL_BYTES_MASK = (1 << 256) - 1
OPEN_STRING_MIN_BYTES = 40  # where more bytes may follow, a string is open, which a quote closes
CLOSING_BYTES = b'"}]0123456789' + bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
OPENING_BYTES = b'"-{[(,:.\\ \t\n\r'


def _order_bytes(first: bytes) -> bytes:
    """All 256 bytes in the order in which a completion prefers them: `first`, then the others, then `OPENING_BYTES`."""
    others = [byte for byte in range(256) if byte not in OPENING_BYTES]
    return bytes(dict.fromkeys([*first, *others, *OPENING_BYTES]))


STRING_CLOSING_ORDER = _order_bytes(CLOSING_BYTES)
BRACKET_CLOSING_ORDER = _order_bytes(CLOSING_BYTES[1:])


@cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer of llguidance whose first 256 tokens are single bytes."""
    import llguidance

    return llguidance.LLTokenizer("byte")


def create_matcher(lark_grammar: str, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """Creates a matcher of llguidance for a grammar, at the beginning of a text.

    A grammar that takes too much work puts the matcher into an error state, at once or at a later token.

    Args:
        tokenizer: the tokens that the matcher consumes; None: single bytes.
    """
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=LEXER_FUEL,
        step_lexer_fuel=LEXER_FUEL,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SIZE,
    )
    return llguidance.LLMatcher(
        byte_tokenizer() if tokenizer is None else tokenizer, lark_grammar, log_level=0, limits=limits
    )


def allowed_byte_mask(matcher: LLMatcher) -> int:
    """The bytes that may follow, as an integer in which bit b stands for byte b.

    Args:
        matcher: one of `byte_tokenizer`, whose tokens are bytes.
    """
    return int.from_bytes(matcher.compute_bitmask(), "little") & ALL_BYTES_MASK


def find_short_completion(grammar: CompiledGrammar) -> bytes | None:
    """The shortest text satisfying a constraint that a quick search finds; None if it finds none."""
    output_constraint, matcher = grammar.output_constraint, grammar.byte_matcher
    if output_constraint.choices is not None:
        return next(find_completions(grammar, matcher, b""))
    if output_constraint.regex is not None:
        completion = _shortest_regex_completion(output_constraint, b"")
        if completion is not None:
            return completion
    completion = greedy_completion(matcher, MAX_COMPLETION_BYTES)
    if completion is None:
        completion = _completion_without_cycles(matcher, MAX_WALK_BYTES)
    return None if completion is None else _shorten_completion(matcher, completion)


def find_completions(grammar: CompiledGrammar, matcher: LLMatcher, generated: bytes) -> Iterator[bytes]:
    """Yields completions of a partly generated text, those that are found quickly first.

    Args:
        matcher: after `generated`.
        generated: the text so far.
    """
    output_constraint = grammar.output_constraint
    has_leading_space = grammar.allows_leading_space and generated.startswith(b" ")
    constrained_text = generated[1:] if has_leading_space else generated
    if output_constraint.choices is not None:
        choices = [
            choice
            for choice in map(str.encode, output_constraint.choices)
            if choice.startswith(constrained_text)
        ]
        if choices:
            cheapest = min(choices, key=lambda choice: grammar.token_costs(choice)[len(constrained_text)])
            yield cheapest[len(constrained_text) :]
        return
    if (completion := greedy_completion(matcher, MAX_WALK_BYTES)) is not None:
        yield completion
    if (
        output_constraint.regex is not None
        and (completion := _shortest_regex_completion(output_constraint, constrained_text)) is not None
    ):
        yield completion
        return
    if (completion := _completion_without_cycles(matcher, MAX_LATER_LOOKAHEAD_BYTES)) is not None:
        yield completion


def _completion_without_cycles(matcher: LLMatcher, max_bytes: int) -> bytes | None:
    """A greedy completion with lookahead, from which cycles are cut; None if it has no end within `max_bytes` bytes.

    For texts whose plain greedy completion never ends.
    """
    if (completion := greedy_completion(matcher, max_bytes, with_lookahead=True)) is None:
        return None
    matcher, position = matcher.deep_copy(), 0
    while position < min(len(completion), MAX_CYCLE_POSITIONS):
        rest = shortest_completing_suffix(matcher, completion[position:])
        completion = completion if rest is None else completion[:position] + rest
        if position < len(completion):
            matcher.consume_token(completion[position])
        position += 1
    return completion


def greedy_completion(matcher: LLMatcher, max_bytes: int, *, with_lookahead: bool = False) -> bytes | None:
    """Completes a text byte by byte, choosing at each position a byte that closes something if one may follow.

    Args:
        matcher: after the text so far.
        max_bytes: the longest completion.
        with_lookahead: choose the byte whose next position was visited least often, to leave cycles. Positions with
            the same set of bytes that may follow count as the same position.

    Returns:
        The completion; None if the text has no end within `max_bytes` bytes.
    """
    matcher, walked, num_visits = matcher.deep_copy(), bytearray(), Counter[int]()

    def count_visits(byte: int) -> int:
        next_matcher = matcher.deep_copy()
        next_matcher.consume_token(byte)
        return -1 if next_matcher.is_accepting() else num_visits[allowed_byte_mask(next_matcher)]

    while not matcher.is_accepting():
        byte_mask = allowed_byte_mask(matcher)
        if not byte_mask or len(walked) >= max_bytes:
            return None
        num_visits[byte_mask] += 1
        order = (
            STRING_CLOSING_ORDER if byte_mask.bit_count() > OPEN_STRING_MIN_BYTES else BRACKET_CLOSING_ORDER
        )
        candidates = (byte for byte in order if byte_mask >> byte & 1)
        byte = min(candidates, key=count_visits) if with_lookahead else next(candidates)
        matcher.consume_token(byte)
        walked.append(byte)
    return bytes(walked)


def _shorten_completion(matcher: LLMatcher, completion: bytes) -> bytes:
    """Shortens a completion: wherever few bytes may follow, tries whether another one leads to a nearer end."""
    matcher, position, attempts = matcher.deep_copy(), 0, MAX_SHORTENING_ATTEMPTS
    while position < len(completion):
        byte_mask = allowed_byte_mask(matcher)
        others = [byte for byte in range(256) if byte_mask >> byte & 1 and byte != completion[position]]
        for byte in others if len(others) < OPEN_STRING_MIN_BYTES else ():
            if not attempts:
                return completion
            attempts -= 1
            other_matcher = matcher.deep_copy()
            other_matcher.consume_token(byte)
            rest = greedy_completion(other_matcher, len(completion) - position - 2)
            if rest is not None and len(rest) < len(completion) - position - 1:
                completion = completion[:position] + bytes([byte]) + rest
        matcher.consume_token(completion[position])
        position += 1
    return completion


def _shortest_regex_completion(output_constraint: OutputConstraint, generated: bytes) -> bytes | None:
    """The shortest completion of a regular expression, by bisection over the bound on the number of characters.

    None if llguidance finds no text with at most `MAX_REGEX_CHARACTERS` characters more than `generated`.
    """
    length = sum(byte & 0xC0 != 0x80 for byte in generated)  # characters, a last incomplete one among them

    def matcher_within(most: int) -> LLMatcher | None:
        matcher = create_matcher(
            lark_grammar(output_constraint, allow_leading_space=False, max_characters=most)
        )
        is_alive = matcher.try_consume_tokens(list(generated)) == len(generated) and (
            matcher.is_accepting() or allowed_byte_mask(matcher)
        )
        return matcher if is_alive else None

    low, more = length, 0  # bounds below `low` are known to be too small
    while (shortest_matcher := matcher_within(length + more)) is None:
        if more > MAX_REGEX_CHARACTERS:
            return None
        low, more = length + more + 1, 2 * more + 1
    high = length + more
    while low < high:
        middle = (low + high) // 2
        if (matcher := matcher_within(middle)) is None:
            low = middle + 1
        else:
            shortest_matcher, high = matcher, middle
    return greedy_completion(shortest_matcher, 4 * MAX_REGEX_CHARACTERS)


def shortest_completing_suffix(matcher: LLMatcher, completion: bytes) -> bytes | None:
    """The shortest suffix of an earlier completion that completes the text of `matcher` too; None if there is none.

    Of a long completion at most `MAX_DROPPED_BYTES` leading bytes are dropped.
    """
    if matcher.is_accepting():
        return b""
    for start in range(min(len(completion), MAX_DROPPED_BYTES), -1, -1):
        rest = completion[start:]
        other_matcher = matcher.deep_copy()
        if other_matcher.try_consume_tokens(list(rest)) == len(rest) and other_matcher.is_accepting():
            return rest
    return None
