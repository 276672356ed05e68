"""The shortest way to bring a text to an end that its form allows. Bytes only: knows no tokens and no models.

llguidance says which bytes may follow and whether a text may end; it does not say how far the end is. So ends are
searched for: of a regular expression exactly, by asking for texts of bounded length; of a JSON schema by walking on,
what closes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from idefics.form import Form
from idefics.processing.grammar import grammar
from idefics.processing.spelling import guidance

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Cost = Callable[[bytes], float]

MOST = 8192  # bytes, or characters of a regular expression: ends further away are not found
STEPS = 1024  # of a walk while an answer is being generated
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


def matcher(lark: str) -> LLMatcher:
    """What follows a text byte by byte."""
    import llguidance

    return llguidance.LLMatcher(byte_tokens(), lark, log_level=0)


def allowed(at: LLMatcher) -> int:
    """The bytes that may follow, a bit for each."""
    return int.from_bytes(at.compute_bitmask(), "little") & ANY_BYTE


def first_end(form: Form, at: LLMatcher, is_spaced: bool, cost: Cost) -> bytes | None:
    """What a text of a form consists of at least, or as good as; None where no end was found."""
    if form.schema is None:
        return next_end(form, at, b"", is_spaced, cost)
    end = _schema_end(at, MOST)
    return None if end is None else _shortened(at, end)


def next_end(form: Form, at: LLMatcher, said: bytes, is_spaced: bool, cost: Cost) -> bytes | None:
    """What has at least to follow what has been said; None where no end was found.

    Args:
        at: the place after it.
        is_spaced: as in `grammar`.
        cost: in tokens, of one of the choices.
    """
    own = said[1:] if is_spaced and said.startswith(b" ") else said
    if form.choices is not None:
        rests = [choice[len(own) :] for choice in map(str.encode, form.choices) if choice.startswith(own)]
        return min(rests, key=cost, default=None)
    if form.regex is not None:
        return _regex_end(form, own)
    return _schema_end(at, STEPS)


def _schema_end(at: LLMatcher, most: int) -> bytes | None:
    """What closes first; where that goes round in circles, something else each time, and the circles cut out."""
    if (end := walk(at, most)) is not None:
        return end
    if (end := walk(at, most, turns=True)) is None:
        return None
    at, place = at.deep_copy(), 0
    while place < min(len(end), CIRCLES):
        rest = reused(at, end[place:])
        end = end if rest is None else end[:place] + rest
        if place < len(end):
            at.consume_token(end[place])
        place += 1
    return end


def walk(at: LLMatcher, most: int, *, turns: bool = False) -> bytes | None:
    """Bytes from a place to an end, what closes first; None where there are more than `most`.

    Args:
        turns: where the same bytes may follow as before, take another one than before.
    """
    at, said, met = at.deep_copy(), bytearray(), Counter[int]()
    while not at.is_accepting():
        there = allowed(at)
        if not there or len(said) >= most:
            return None
        order = STRING_FIRST if there.bit_count() > IN_TEXT else BRACKET_FIRST
        if turns:
            order = bytes(byte for byte in order if there >> byte & 1)
            order = order[met[there] % len(order) :]
            met[there] += 1
        byte = next(byte for byte in order if there >> byte & 1)
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
    """Exactly: as few characters as there can be."""
    length = sum(byte & 0xC0 != 0x80 for byte in said)  # characters, one that has only begun among them

    def within(most: int) -> LLMatcher | None:
        at = matcher(grammar(form, is_spaced=False, most=most))
        is_alive = at.try_consume_tokens(list(said)) == len(said) and (at.is_accepting() or allowed(at))
        return at if is_alive else None

    low, more = length, 0  # `low` is too few, or nothing has been said of it
    while (found := within(length + more)) is None:
        if more > MOST:
            return None
        low, more = length + more + 1, 2 * more + 1
    high = length + more
    while low < high:
        middle = (low + high) // 2
        if (at := within(middle)) is None:
            low = middle + 1
        else:
            found, high = at, middle
    return walk(found, 4 * MOST)


def reused(at: LLMatcher, end: bytes) -> bytes | None:
    """An earlier end, or the shortest end of it, that still leads to one."""
    for start in range(len(end), -1, -1):
        rest = end[start:]
        other = at.deep_copy()
        if other.try_consume_tokens(list(rest)) == len(rest) and other.is_accepting():
            return rest
    return None
