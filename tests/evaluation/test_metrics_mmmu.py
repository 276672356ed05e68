"""Reading answers of MMMU, as the scripts of its repository and of the authors read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.evaluate.metrics.mmmu import (
    mmmu_choice_accuracy,
    mmmu_open_accuracy,
    mmmu_open_accuracy_m4,
    parse_mmmu_choice,
)

OPTIONS = {"A": "a red dog", "B": "two", "C": "x = 5", "D": "Paris"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (".,B", None),  # one kind of mark after the other, in the order , . ! ? ; : '
        (",.B", "B"),
        ("(C)", "C"),
        ("The answer is (C).", "C"),
        ("(A) or (B)? It is (A)", "A"),
        ("A then (B)", "B"),  # parentheses go first
        ("A or B or A", "A"),
        ("C, because", None),
        ("**B**", None),
        ("b", None),
        ("A dog is here", "A"),  # the article
        ("paris", None),
        ("it is the large city of paris", "D"),
        ("it is TWO or x = 5 or two", "B"),
        ("I would say it is x = 5", "C"),
        ("one two three four five", None),  # not more than five words
        ("", None),
    ],
)
def test_the_letter_of_an_option_is_read(response, letter):
    assert parse_mmmu_choice(response, OPTIONS) == letter
    assert mmmu_choice_accuracy(response, OPTIONS, "B") == float(letter == "B")


def test_without_options_there_is_no_letter():
    assert parse_mmmu_choice("A", {}) is None


@pytest.mark.parametrize(
    ("response", "references", "official", "m4"),
    [
        ("5", ["5"], 1.0, 1.0),
        ("The answer is 5.004", ["5"], 1.0, 1.0),  # rounded to two decimals
        ("5.006", ["5"], 0.0, 0.0),
        ("about 1,000 men", ["1000"], 1.0, 1.0),
        ("1.5e3", ["1500"], 1.0, 1.0),
        ("-3", ["3"], 0.0, 0.0),
        ("x = 7", ["7"], 1.0, 1.0),
        ("x = 7\nso 8", ["7"], 0.0, 0.0),  # "=" counts in the last line only
        ("x = 7\n8", ["7"], 1.0, 1.0),  # no line has such a word: the whole response counts
        ("box = pear", ["= pear"], 0.0, 0.0),  # what follows "=" is the answer
        ("this apple", ["apple"], 1.0, 1.0),
        ("so x. Then y", ["x"], 0.0, 1.0),  # sentences are not split; "x" is no word
        (
            "so x",
            ["x"],
            1.0,
            1.0,
        ),  # a single letter needs a space on either side, and gets one if it is alone
        ("box", ["x"], 0.0, 1.0),
        ("an apple pie", ["Apple"], 1.0, 1.0),
        ("apple", ["apple pie"], 0.0, 0.0),
        ("two", ["2"], 0.0, 1.0),
        ("twenty-two", ["22"], 0.0, 0.0),
        ("answer: is it apple\nis pear", ["pear"], 1.0, 1.0),
        ("answer: apple", ["apple"], 1.0, 1.0),
        ("is answer: pear", ["answer: pear"], 1.0, 0.0),  # "answer: " introduces an answer
        ("7", ["Answer: 7"], 0.0, 1.0),
        ("pear", ["apple", "pear"], 1.0, 1.0),
        ("it is \nthe result is so apple", ["apple"], 1.0, 1.0),
        ("nan", ["nan"], 0.0, 0.0),
        ("pear", [], 0.0, 0.0),
        ("", ["pear"], 0.0, 0.0),
    ],
)
def test_an_open_answer_is_found_in_a_response(response, references, official, m4):
    assert mmmu_open_accuracy(response, references) == official
    assert mmmu_open_accuracy_m4(response, references) == m4


@given(st.integers(-(10**6), 10**6))
def test_a_number_is_found_with_and_without_commas(number):
    for text in (f"{number}", f"{number:,}", f"so the answer is {number}."):
        assert mmmu_open_accuracy(text, [f"{number}"]) == 1.0


@given(st.text(), st.lists(st.text(), max_size=3), st.randoms(use_true_random=False))
def test_the_order_of_references_is_irrelevant(response, references, random):
    for accuracy in (mmmu_open_accuracy, mmmu_open_accuracy_m4):
        assert accuracy(response, random.sample(references, len(references))) == accuracy(
            response, references
        )


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "{}.", "The answer is ({})", "It must be {}!"])
)
def test_a_plain_letter_is_read(letter, wording):
    assert parse_mmmu_choice(wording.format(letter), OPTIONS) == letter
