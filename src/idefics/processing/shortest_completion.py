"""The shortest way to bring a text to an end that its form allows. Bytes only: knows no tokens and no models.

llguidance says which bytes may follow and whether a text may end; it does not say how far the end is. So ends are
searched for: of a regular expression by asking for texts of bounded length; of a JSON schema by walking on, what closes
first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from idefics.processing.grammar import lark_grammar
from idefics.processing.token_bytes import create_llguidance_tokenizer
from idefics.structured import OutputConstraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

TokenCosts = Callable[[bytes], Sequence[float]]

# Limits of one form, so that a stranger's takes a moment and some megabytes at most.
LEXER_FUEL = 100_000  # work before the first token, and for each
MAX_LEXER_STATES = 10_000  # of the lexer, at 2 kB; a text of N characters with a bound has N at least
MAX_GRAMMAR_SIZE = 50_000  # of the grammar
MAX_COMPLETION_BYTES = 8192  # bytes: ends further away are not found
MAX_REGEX_CHARACTERS = 2048  # characters, the bound of a regular expression
MAX_WALK_BYTES = 256  # of a walk while an answer is being generated, or of the first that looks ahead
MAX_LATER_LOOKAHEAD_BYTES = 64  # of a later one that looks ahead
MAX_DROPPED_BYTES = 64  # bytes of an earlier end
MAX_CYCLE_POSITIONS = 100  # places where circles are looked for
MAX_SHORTENING_ATTEMPTS = 200  # other ways that are tried to shorten the first end
END_TOKEN = 256  # the "token" that ends a text of bytes
ALL_BYTES_MASK = (1 << 256) - 1
OPEN_STRING_MIN_BYTES = 40  # where more bytes than these may follow, a string is open: its quote closes
CLOSING_BYTES = b'"}]0123456789' + bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
OPENING_BYTES = b'"-{[(,:.\\ \t\n\r'


def _order_bytes(first: bytes) -> bytes:
    """All bytes: some first, those that open something last."""
    middle = bytes(byte for byte in range(256) if byte not in first and byte not in OPENING_BYTES)
    return first + middle + bytes(byte for byte in OPENING_BYTES if byte not in first)


STRING_CLOSING_ORDER = _order_bytes(CLOSING_BYTES)
BRACKET_CLOSING_ORDER = _order_bytes(CLOSING_BYTES[1:])


@cache
def byte_tokenizer() -> LLTokenizer:
    """A token a byte, and one for the end."""
    return create_llguidance_tokenizer([*(bytes([byte]) for byte in range(256)), b""], [END_TOKEN], list)


def create_matcher(lark_grammar: str, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """What may follow in a text of a grammar: which tokens, or byte by byte.

    A grammar that is too much work is an error of the matcher, at once or at the token that would make it so.
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


def allowed_byte_mask(state: LLMatcher) -> int:
    """The bytes that may follow, a bit for each."""
    return int.from_bytes(state.compute_bitmask(), "little") & ALL_BYTES_MASK


def find_short_completion(
    output_constraint: OutputConstraint, state: LLMatcher, allow_leading_space: bool, token_costs: TokenCosts
) -> bytes | None:
    """What a text of a form consists of at least, or as good as; None where no end was found.

    Args:
        state: the place before it.
        allow_leading_space: as in `grammar`.
        token_costs: in tokens, of what follows each place of one of the choices.
    """
    if output_constraint.choices is not None or (
        output_constraint.regex is not None
        and (choice_end := _shortest_regex_completion(output_constraint, b"")) is not None
    ):
        return (
            next(find_completions(output_constraint, state, b"", allow_leading_space, token_costs))
            if output_constraint.choices is not None
            else choice_end
        )
    completion = walk_to_end(state, MAX_COMPLETION_BYTES)
    if completion is None:
        completion = _walk_without_cycles(state, MAX_WALK_BYTES)
    return None if completion is None else _shorten_completion(state, completion)


def find_completions(
    output_constraint: OutputConstraint,
    state: LLMatcher,
    generated: bytes,
    allow_leading_space: bool,
    token_costs: TokenCosts,
) -> Iterator[bytes]:
    """Ways to end after what has been said, those that are found quickly first. Arguments as in `first_end`."""
    constrained_text = generated[1:] if allow_leading_space and generated.startswith(b" ") else generated
    if output_constraint.choices is not None:
        choices = [
            choice
            for choice in map(str.encode, output_constraint.choices)
            if choice.startswith(constrained_text)
        ]
        if choices:
            yield min(choices, key=lambda choice: token_costs(choice)[len(constrained_text)])[
                len(constrained_text) :
            ]
        return
    if (completion := walk_to_end(state, MAX_WALK_BYTES)) is not None:
        yield completion
    if (
        output_constraint.regex is not None
        and (completion := _shortest_regex_completion(output_constraint, constrained_text)) is not None
    ):
        yield completion
        return
    if (completion := _walk_without_cycles(state, MAX_LATER_LOOKAHEAD_BYTES)) is not None:
        yield completion


def _walk_without_cycles(state: LLMatcher, max_bytes: int) -> bytes | None:
    """An end of a form in which what closes first goes round in circles."""
    if (completion := walk_to_end(state, max_bytes, with_lookahead=True)) is None:
        return None
    state, position = state.deep_copy(), 0
    while position < min(len(completion), MAX_CYCLE_POSITIONS):
        rest = reuse_completion(state, completion[position:])
        completion = completion if rest is None else completion[:position] + rest
        if position < len(completion):
            state.consume_token(completion[position])
        position += 1
    return completion


def walk_to_end(state: LLMatcher, max_bytes: int, *, with_lookahead: bool = False) -> bytes | None:
    """Bytes from a place to an end, what closes first; None where there are more than `max_bytes`.

    Args:
        with_lookahead: look one byte ahead, and go where the fewest steps have led: what may follow there tells places apart.
    """
    state, walked, num_visits = state.deep_copy(), bytearray(), Counter[int]()

    def count_visits(byte: int) -> int:
        next_state = state.deep_copy()
        next_state.consume_token(byte)
        return -1 if next_state.is_accepting() else num_visits[allowed_byte_mask(next_state)]

    while not state.is_accepting():
        byte_mask = allowed_byte_mask(state)
        if not byte_mask or len(walked) >= max_bytes:
            return None
        num_visits[byte_mask] += 1
        order = (
            STRING_CLOSING_ORDER if byte_mask.bit_count() > OPEN_STRING_MIN_BYTES else BRACKET_CLOSING_ORDER
        )
        candidates = (byte for byte in order if byte_mask >> byte & 1)
        byte = min(candidates, key=count_visits) if with_lookahead else next(candidates)
        state.consume_token(byte)
        walked.append(byte)
    return bytes(walked)


def _shorten_completion(state: LLMatcher, completion: bytes) -> bytes:
    """Turns off from an end to one that is nearer, wherever there is a choice of few bytes."""
    state, position, attempts = state.deep_copy(), 0, MAX_SHORTENING_ATTEMPTS
    while position < len(completion):
        byte_mask = allowed_byte_mask(state)
        others = [byte for byte in range(256) if byte_mask >> byte & 1 and byte != completion[position]]
        for byte in others if len(others) < OPEN_STRING_MIN_BYTES else ():
            if not attempts:
                return completion
            attempts -= 1
            other_state = state.deep_copy()
            other_state.consume_token(byte)
            rest = walk_to_end(other_state, len(completion) - position - 2)
            if rest is not None and len(rest) < len(completion) - position - 1:
                completion = completion[:position] + bytes([byte]) + rest
        state.consume_token(completion[position])
        position += 1
    return completion


def _shortest_regex_completion(output_constraint: OutputConstraint, generated: bytes) -> bytes | None:
    """As few characters as there can be; None where llguidance does not see that a bound is too narrow."""
    length = sum(byte & 0xC0 != 0x80 for byte in generated)  # characters, one that has only begun among them

    def state_within(most: int) -> LLMatcher | None:
        state = create_matcher(
            lark_grammar(output_constraint, allow_leading_space=False, max_characters=most)
        )
        is_alive = state.try_consume_tokens(list(generated)) == len(generated) and (
            state.is_accepting() or allowed_byte_mask(state)
        )
        return state if is_alive else None

    low, more = length, 0  # `low` is too few, or nothing has been said of it
    while (shortest_state := state_within(length + more)) is None:
        if more > MAX_REGEX_CHARACTERS:
            return None
        low, more = length + more + 1, 2 * more + 1
    high = length + more
    while low < high:
        middle = (low + high) // 2
        if (state := state_within(middle)) is None:
            low = middle + 1
        else:
            shortest_state, high = state, middle
    return walk_to_end(shortest_state, 4 * MAX_REGEX_CHARACTERS)


def reuse_completion(state: LLMatcher, completion: bytes) -> bytes | None:
    """The shortest rest of an earlier end that leads to one from here too; of a long one only its first bytes go."""
    if state.is_accepting():
        return b""
    for start in range(min(len(completion), MAX_DROPPED_BYTES), -1, -1):
        rest = completion[start:]
        other_state = state.deep_copy()
        if other_state.try_consume_tokens(list(rest)) == len(rest) and other_state.is_accepting():
            return rest
    return None
