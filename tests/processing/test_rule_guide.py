"""What a generation_config.json asks of each step, step by step."""

import numpy as np
import pytest

from idefics.processing.generation_rules import GenerationRules
from idefics.processing.rule_guide import RuleGuide

VOCABULARY, STOPS = 12, (10, 11)
EVERY = set(range(VOCABULARY))


def guide(prompt=(1, 2, 3), room=8, inner=None, **rules):
    return RuleGuide(GenerationRules(**rules), prompt, room, VOCABULARY, STOPS, inner)


def forbidden(guide):
    bits = np.frombuffer(guide.allowed(), np.uint8)
    return EVERY - set(np.flatnonzero(np.unpackbits(bits, count=VOCABULARY, bitorder="little")).tolist())


def steps(guide, *ids):
    """What is forbidden before each id and after the last."""
    found = [forbidden(guide)]
    for id in ids:
        assert guide.settle(id, 100) == id
        found.append(forbidden(guide))
    return found


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({"min_new_tokens": 3}, 3),
        ({"min_length": 5}, 2),
        ({"min_length": 3}, 0),
        ({"min_length": 2}, 0),
        ({"min_length": 99, "min_new_tokens": 1}, 1),
        ({"min_length": 6, "min_new_tokens": 0}, 0),
    ],
)
def test_no_stop_id_before_the_least_length(rules, count):
    found = steps(guide(**rules), 4, 5, 6, 7)
    assert found == [set(STOPS) if step < count else set() for step in range(5)]


def test_what_may_not_begin_may_follow():
    assert steps(guide(begin_suppress_tokens=frozenset({4, 5})), 6, 7) == [{4, 5}, set(), set()]


def test_no_ngram_twice_the_prompts_among_them():
    assert steps(guide(prompt=(1, 2, 3, 1), no_repeat_ngram_size=2), 4, 1, 5, 4) == [
        {2},
        set(),
        {2, 4},
        set(),
        {1},
    ]
    assert steps(guide(prompt=(1, 2), no_repeat_ngram_size=1), 7) == [{1, 2}, {1, 2, 7}]
    assert steps(guide(prompt=(1, 2, 3, 1, 2), no_repeat_ngram_size=3), 4) == [{3}, set()]
    assert steps(guide(prompt=(1,), no_repeat_ngram_size=4), 1, 1, 1, 1) == [set(), set(), set(), {1}, {1}]


def test_no_bad_word_is_complete_wherever_it_began():
    words = ((3, 7), (4, 5, 6), (9,))
    assert steps(guide(bad_words_ids=words), 4, 5, 3) == [{7}, set(), {6}, {7}]
    assert steps(guide(prompt=(5,), bad_words_ids=words), 6) == [set(), set()]


def test_the_last_id_is_forced():
    assert steps(guide(room=3, forced_eos_token_id=(10, 11)), 4, 5) == [set(), set(), EVERY - {10}]


@pytest.mark.parametrize(("prompt", "first"), [((1,), EVERY - {6}), ((1, 2), set())])
def test_the_first_id_after_a_single_one_is_forced(prompt, first):
    assert steps(guide(prompt=prompt, forced_bos_token_id=6), 6) == [first, set()]


class Inner:
    """Forbids 0, and takes 8 in place of 7."""

    is_over = False

    def allowed(self):
        return bytes([0b11111110, 0b11111111])

    def settle(self, id, room):
        self.is_over = room == 0
        return 8 if id == 7 else id


def test_another_guide_has_its_say():
    both = guide(inner=Inner(), begin_suppress_tokens=frozenset({4}), bad_words_ids=((8, 5),))
    assert forbidden(both) == {0, 4} and not both.is_over
    assert both.settle(7, 0) == 8
    assert forbidden(both) == {0, 5} and both.is_over


def test_a_stop_id_alone_is_no_bad_word():
    rules = GenerationRules(bad_words_ids=((10,), (4,), (5, 6)), suppress_tokens=frozenset({11}))
    assert rules.banned_ids(STOPS) == {4, 11}
    assert rules.stepwise == ("bad_words_ids",)
    assert GenerationRules(bad_words_ids=((4,),), repetition_penalty=2.0, stop_strings=("a",)).stepwise == ()
