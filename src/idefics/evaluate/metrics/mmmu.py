"""Reading the answers of MMMU: the letter of a multiple-choice question, the number or words of an open one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from idefics.evaluate.metrics.vqa_words import NUMBERS

_LETTER_MARKS = ",.!?;:'"
_MIN_WORDS_OF_TEXT = 6

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 1.5, .5, 15
)
_M4_DIGITS = {word: digit for word, digit in NUMBERS.items() if word not in ("none", "ten")}

_Normalized = str | float


def parse_mmmu_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Reads the letter of the chosen option from a response.

    The last of the options in parentheses, "(B)", else the last that stands alone, " B ", else, in a response of at
    least six words, the last whose text it contains, in any case.

    Source: `parse_multi_choice_response` in github.com/MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py.

    What is odd about it:
        - Only marks at the ends of the response are removed, so "B, since ..." and "**B**" have no letter.
        - The article in "A dog" is the option A.
        - Where nothing is found, the script takes an option at random, so that its figure depends upon its random
          state. Here the result is None, which counts as wrong; a random guess would be right once in as many cases
          as there are options.

    Args:
        response: the generated text.
        options: the text of each option by its letter, in order.

    Returns:
        The letter; None if there is none.
    """
    for mark in _LETTER_MARKS:
        response = response.strip(mark)
    response = f" {response} "
    found = _last_of({letter: response.rfind(f"({letter})") for letter in options})
    found = found or _last_of({letter: response.rfind(f" {letter} ") for letter in options})
    if found is None and len(response.split()) >= _MIN_WORDS_OF_TEXT:
        text = response.lower()
        found = _last_of({letter: text.rfind(option.lower()) for letter, option in options.items()})
    return found


def _last_of(positions: Mapping[str, int]) -> str | None:
    """The letter with the highest position, the first of equal ones; None if all are -1, which means not found."""
    letter = max(positions, key=positions.__getitem__, default=None)
    return None if letter is None or positions[letter] < 0 else letter


def mmmu_choice_accuracy(response: str, options: Mapping[str, str], correct: str) -> float:
    """1 if `parse_mmmu_choice` reads the letter `correct`, 0 otherwise."""
    return float(parse_mmmu_choice(response, options) == correct)


def mmmu_open_accuracy(response: str, references: Sequence[str]) -> float:
    """1 if a response to an open question has one of the references in it, 0 otherwise.

    Of each line, the shortest text after a word such as "is" or "answer" is taken, and the numbers in it; of a
    response without such a word, all of it. Numbers are equal if they are after rounding to two decimals; a text
    only has to contain the reference.

    Source: `parse_open_response` and `eval_open` in github.com/MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py.

    What is odd about it:
        - "is " is also found in "this ". Sentences are not split, since the text is in lower case by then and the
          script expects a capital.
        - A reference of one letter has to stand at a space.
        - A reference that is a number is compared with numbers alone, one that is not with texts alone.
    """
    expected = [value for text in references for value in _normalize(text)]
    return _contains_any(_read_open_response(response, _INDICATORS, _normalize), expected)


def mmmu_open_accuracy_m4(response: str, references: Sequence[str]) -> float:
    """`mmmu_open_accuracy` as the authors of Idefics changed it.

    Source: `parse_open_response_mmmu` and `normalize_str_mmmu` in github.com/huggingface/smollm,
    vision/m4/evaluation/custom_metrics/utils.py, and `_compute_mmmu_style_vqa_accuracy` in
    open_ended_vqa_metrics.py there.

    What is odd about it: "answer: " introduces an answer too; number words become digits, "two" 2, if the whole is
    a number then; a reference of one letter may stand within a word.
    """
    expected = [value for text in references for value in _normalize_m4(text)]
    return _contains_any(_read_open_response(response, (*_INDICATORS, "answer: "), _normalize_m4), expected)


def _read_open_response(
    response: str, indicators: Sequence[str], normalize: Callable[[str], list[_Normalized]]
) -> list[_Normalized]:
    """The answers that a response to an open question may mean."""
    response = response.strip().strip(".").lower()
    *lines, last_line = response.split("\n")
    parts = [_after_indicator(line, indicators) for line in lines]
    parts.append(_after_indicator(last_line, (*indicators, "=")))
    found = [part for part in parts if part and part not in _TRIVIAL] or [response]
    numbers = [number for part in found for pattern in _NUMBERS for number in pattern.findall(part)]
    return [value for text in (*found, *numbers) for value in normalize(text)]


def _after_indicator(line: str, indicators: Iterable[str]) -> str:
    """The shortest text after the last occurrence of an indicator, "" if there is none.

    Where a line ends with an indicator, the text after the next indicator of the list is taken, however long it is.
    """
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            tail = line.rpartition(indicator)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalize(text: str) -> list[_Normalized]:
    """A number rounded to two decimals, or the text in lower case; a single letter with a space on either side."""
    text = text.strip()
    number = _parse_number(text)
    if number is not None:
        return [number]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _normalize_m4(text: str) -> list[_Normalized]:
    """A number, also in words, rounded to two decimals, or the text in lower case; without "Answer: " in front."""
    text = text.strip()
    if text.startswith("Answer: "):
        text = text.replace("Answer: ", "")
    text = text.lower()
    digits = text
    for word, digit in _M4_DIGITS.items():
        digits = digits.replace(word, digit)
    number = _parse_number(digits)
    return [text if number is None else number]


def _parse_number(text: str) -> float | None:
    """The number rounded to two decimals; commas are left out. None if the text is no number."""
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def _contains_any(found: Iterable[_Normalized], expected: Sequence[_Normalized]) -> float:
    """1 if a found text contains an expected text, or a found number equals an expected number; 0 otherwise."""
    return float(
        any(
            value in text if isinstance(text, str) and isinstance(value, str) else value == text
            for text in found
            for value in expected
        )
    )
