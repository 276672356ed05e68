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

from idefics.form import Form
from idefics.processing.grammar import grammar
from idefics.processing.spelling import guidance

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Costs = Callable[[bytes], Sequence[float]]

# Limits of one form, so that a stranger's takes a moment and some megabytes at most.
FUEL = 100_000  # work before the first token, and for each
STATES = 10_000  # of the lexer, at 2 kB; a text of N characters with a bound has N at least
SYMBOLS = 50_000  # of the grammar
MOST = 8192  # bytes: ends further away are not found
WIDEST = 2048  # characters, the bound of a regular expression
STEPS = 256  # of a walk while an answer is being generated, or of the first that looks ahead
SOUGHT = 64  # of a later one that looks ahead
DROPPED = 64  # bytes of an earlier end
CIRCLES = 100  # places where circles are looked for
ATTEMPTS = 200  # other ways that are tried to shorten the first end
END = 256  # the "token" that ends a text of bytes
ANY_BYTE = (1 << 256) - 1
IN_TEXT = 40  # where more bytes than these may follow, a string is open: its quote closes
CLOSING = b'"}]0123456789' + bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
OPENING = b'"-{[(,:.\\ \t\n\r'


def _ordered(first: bytes) -> bytes:
    """All bytes: some first, those that open something last."""
    middle = bytes(byte for byte in range(256) if byte not in first and byte not in OPENING)
    return first + middle + bytes(byte for byte in OPENING if byte not in first)


STRING_FIRST = _ordered(CLOSING)
BRACKET_FIRST = _ordered(CLOSING[1:])


@cache
def byte_tokens() -> LLTokenizer:
    """A token a byte, and one for the end."""
    return guidance([*(bytes([byte]) for byte in range(256)), b""], [END], list)


def matcher(lark: str, tokens: LLTokenizer | None = None) -> LLMatcher:
    """What may follow in a text of a grammar: which tokens, or byte by byte.

    A grammar that is too much work is an error of the matcher, at once or at the token that would make it so.
    """
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=FUEL, step_lexer_fuel=FUEL, max_lexer_states=STATES, max_grammar_size=SYMBOLS
    )
    return llguidance.LLMatcher(byte_tokens() if tokens is None else tokens, lark, log_level=0, limits=limits)


def allowed(at: LLMatcher) -> int:
    """The bytes that may follow, a bit for each."""
    return int.from_bytes(at.compute_bitmask(), "little") & ANY_BYTE


def first_end(form: Form, at: LLMatcher, is_spaced: bool, costs: Costs) -> bytes | None:
    """What a text of a form consists of at least, or as good as; None where no end was found.

    Args:
        at: the place before it.
        is_spaced: as in `grammar`.
        costs: in tokens, of what follows each place of one of the choices.
    """
    if form.choices is not None or (form.regex is not None and (end := _regex_end(form, b"")) is not None):
        return next(ends(form, at, b"", is_spaced, costs)) if form.choices is not None else end
    found = walk(at, MOST)
    if found is None:
        found = _sought(at, STEPS)
    return None if found is None else _shortened(at, found)


def ends(form: Form, at: LLMatcher, said: bytes, is_spaced: bool, costs: Costs) -> Iterator[bytes]:
    """Ways to end after what has been said, those that are found quickly first. Arguments as in `first_end`."""
    own = said[1:] if is_spaced and said.startswith(b" ") else said
    if form.choices is not None:
        choices = [choice for choice in map(str.encode, form.choices) if choice.startswith(own)]
        if choices:
            yield min(choices, key=lambda choice: costs(choice)[len(own)])[len(own) :]
        return
    if (end := walk(at, STEPS)) is not None:
        yield end
    if form.regex is not None and (end := _regex_end(form, own)) is not None:
        yield end
        return
    if (end := _sought(at, SOUGHT)) is not None:
        yield end


def _sought(at: LLMatcher, most: int) -> bytes | None:
    """An end of a form in which what closes first goes round in circles."""
    if (end := walk(at, most, seeks=True)) is None:
        return None
    at, place = at.deep_copy(), 0
    while place < min(len(end), CIRCLES):
        rest = reused(at, end[place:])
        end = end if rest is None else end[:place] + rest
        if place < len(end):
            at.consume_token(end[place])
        place += 1
    return end


def walk(at: LLMatcher, most: int, *, seeks: bool = False) -> bytes | None:
    """Bytes from a place to an end, what closes first; None where there are more than `most`.

    Args:
        seeks: look one byte ahead, and go where the fewest steps have led: what may follow there tells places apart.
    """
    at, said, met = at.deep_copy(), bytearray(), Counter[int]()

    def times(byte: int) -> int:
        ahead = at.deep_copy()
        ahead.consume_token(byte)
        return -1 if ahead.is_accepting() else met[allowed(ahead)]

    while not at.is_accepting():
        there = allowed(at)
        if not there or len(said) >= most:
            return None
        met[there] += 1
        order = STRING_FIRST if there.bit_count() > IN_TEXT else BRACKET_FIRST
        may = (byte for byte in order if there >> byte & 1)
        byte = min(may, key=times) if seeks else next(may)
        at.consume_token(byte)
        said.append(byte)
    return bytes(said)


def _shortened(at: LLMatcher, end: bytes) -> bytes:
    """Turns off from an end to one that is nearer, wherever there is a choice of few bytes."""
    at, place, attempts = at.deep_copy(), 0, ATTEMPTS
    while place < len(end):
        there = allowed(at)
        others = [byte for byte in range(256) if there >> byte & 1 and byte != end[place]]
        for byte in others if len(others) < IN_TEXT else ():
            if not attempts:
                return end
            attempts -= 1
            other = at.deep_copy()
            other.consume_token(byte)
            rest = walk(other, len(end) - place - 2)
            if rest is not None and len(rest) < len(end) - place - 1:
                end = end[:place] + bytes([byte]) + rest
        at.consume_token(end[place])
        place += 1
    return end


def _regex_end(form: Form, said: bytes) -> bytes | None:
    """As few characters as there can be; None where llguidance does not see that a bound is too narrow."""
    length = sum(byte & 0xC0 != 0x80 for byte in said)  # characters, one that has only begun among them

    def within(most: int) -> LLMatcher | None:
        at = matcher(grammar(form, is_spaced=False, most=most))
        is_alive = at.try_consume_tokens(list(said)) == len(said) and (at.is_accepting() or allowed(at))
        return at if is_alive else None

    low, more = length, 0  # `low` is too few, or nothing has been said of it
    while (found := within(length + more)) is None:
        if more > WIDEST:
            return None
        low, more = length + more + 1, 2 * more + 1
    high = length + more
    while low < high:
        middle = (low + high) // 2
        if (at := within(middle)) is None:
            low = middle + 1
        else:
            found, high = at, middle
    return walk(found, 4 * WIDEST)


def reused(at: LLMatcher, end: bytes) -> bytes | None:
    """The shortest rest of an earlier end that leads to one from here too; of a long one only its first bytes go."""
    if at.is_accepting():
        return b""
    for start in range(min(len(end), DROPPED), -1, -1):
        rest = end[start:]
        other = at.deep_copy()
        if other.try_consume_tokens(list(rest)) == len(rest) and other.is_accepting():
            return rest
    return None
