"""`GenerationConfigConstraint`: the ids that a generation_config.json bans at each step."""

import numpy as np
import pytest

from idefics.processing.checkpoint_generation_config import (
    CheckpointGenerationConfig,
    GenerationConfigConstraint,
)

VOCAB_SIZE, STOP_IDS = 12, (10, 11)
ALL_IDS = set(range(VOCAB_SIZE))


def make_constraint(prompt=(1, 2, 3), max_new_tokens=8, inner=None, **rules):
    return GenerationConfigConstraint(
        CheckpointGenerationConfig(**rules), prompt, max_new_tokens, VOCAB_SIZE, STOP_IDS, inner
    )


def forbidden_ids(constraint):
    bits = np.frombuffer(constraint.compute_token_bitmask(), np.uint8)
    return ALL_IDS - set(np.flatnonzero(np.unpackbits(bits, count=VOCAB_SIZE, bitorder="little")).tolist())


def forbidden_ids_by_step(constraint, *ids):
    """The banned ids before each id and after the last."""
    found = [forbidden_ids(constraint)]
    for id in ids:
        assert constraint.accept_token(id, 100) == id
        found.append(forbidden_ids(constraint))
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
    found = forbidden_ids_by_step(make_constraint(**rules), 4, 5, 6, 7)
    assert found == [set(STOP_IDS) if step < count else set() for step in range(5)]


def test_what_may_not_begin_may_follow():
    assert forbidden_ids_by_step(make_constraint(begin_suppress_tokens=frozenset({4, 5})), 6, 7) == [
        {4, 5},
        set(),
        set(),
    ]


def test_no_ngram_twice_the_prompts_among_them():
    assert forbidden_ids_by_step(
        make_constraint(prompt=(1, 2, 3, 1), no_repeat_ngram_size=2), 4, 1, 5, 4
    ) == [
        {2},
        set(),
        {2, 4},
        set(),
        {1},
    ]
    assert forbidden_ids_by_step(make_constraint(prompt=(1, 2), no_repeat_ngram_size=1), 7) == [
        {1, 2},
        {1, 2, 7},
    ]
    assert forbidden_ids_by_step(make_constraint(prompt=(1, 2, 3, 1, 2), no_repeat_ngram_size=3), 4) == [
        {3},
        set(),
    ]
    assert forbidden_ids_by_step(make_constraint(prompt=(1,), no_repeat_ngram_size=4), 1, 1, 1, 1) == [
        set(),
        set(),
        set(),
        {1},
        {1},
    ]


def test_no_bad_word_is_complete_wherever_it_began():
    words = ((3, 7), (4, 5, 6), (9,))
    assert forbidden_ids_by_step(make_constraint(bad_words_ids=words), 4, 5, 3) == [{7}, set(), {6}, {7}]
    assert forbidden_ids_by_step(make_constraint(prompt=(5,), bad_words_ids=words), 6) == [set(), set()]


def test_the_last_id_is_forced():
    assert forbidden_ids_by_step(make_constraint(max_new_tokens=3, forced_eos_token_id=(10, 11)), 4, 5) == [
        set(),
        set(),
        ALL_IDS - {10},
    ]


@pytest.mark.parametrize(("prompt", "first"), [((1,), ALL_IDS - {6}), ((1, 2), set())])
def test_the_first_id_after_a_single_one_is_forced(prompt, first):
    assert forbidden_ids_by_step(make_constraint(prompt=prompt, forced_bos_token_id=6), 6) == [first, set()]


class InnerConstraint:
    """Bans the id 0, and replaces 7 by 8."""

    is_finished = False

    def compute_token_bitmask(self):
        return bytes([0b11111110, 0b11111111])

    def accept_token(self, id, max_remaining_tokens):
        self.is_finished = max_remaining_tokens == 0
        return 8 if id == 7 else id


def test_the_inner_constraint_applies_too():
    both = make_constraint(
        inner=InnerConstraint(), begin_suppress_tokens=frozenset({4}), bad_words_ids=((8, 5),)
    )
    assert forbidden_ids(both) == {0, 4} and not both.is_finished
    assert both.accept_token(7, 0) == 8
    assert forbidden_ids(both) == {0, 5} and both.is_finished


def test_a_stop_id_alone_is_no_bad_word():
    rules = CheckpointGenerationConfig(bad_words_ids=((10,), (4,), (5, 6)), suppress_tokens=frozenset({11}))
    assert rules.banned_ids(STOP_IDS) == {4, 11}
    assert rules.step_dependent_fields == ("bad_words_ids",)
    assert (
        CheckpointGenerationConfig(
            bad_words_ids=((4,),), repetition_penalty=2.0, stop_strings=("a",)
        ).step_dependent_fields
        == ()
    )
