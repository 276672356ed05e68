"""Logits processors against plain Python."""

import pytest
import torch

from idefics.engine.logits_processors import (
    BannedIdSequences,
    keep_min_p,
    keep_top_p,
    keep_typical,
    present_ids_mask,
    repeated_ngrams_mask,
)

VOCAB_SIZE = 6
CPU = torch.device("cpu")


def make_random_rows(length, seed=0):
    return torch.randint(VOCAB_SIZE, (4, length), generator=torch.Generator().manual_seed(seed))


def banned_ids(mask):
    return [row.nonzero()[:, 0].tolist() for row in mask]


def test_present_ids_leave_padding_out():
    ids = torch.tensor([[0, 0, 3, 5], [0, 1, 1, 2]])
    assert banned_ids(present_ids_mask(ids, VOCAB_SIZE, torch.tensor([2, 0]))) == [[3, 5], [0, 1, 2]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 12, 40])
def test_repeated_ngrams(size, length):
    ids = make_random_rows(length)
    expected = []
    for row in ids.tolist():
        there = {tuple(row[start : start + size]) for start in range(length - size + 1)}
        begun = row[length - size + 1 :]
        # Before there are size - 1 ids, nothing can be complete.
        expected.append([id for id in range(VOCAB_SIZE) if (*begun, id) in there])
    assert banned_ids(repeated_ngrams_mask(ids, size, VOCAB_SIZE)) == expected


@pytest.mark.parametrize("length", [1, 2, 3, 30])
def test_banned_words(length):
    words = [[4], [1, 2], [2, 2, 3], [0, 1, 5], [], (3, 3)]
    banned, ids = BannedIdSequences(words, VOCAB_SIZE, CPU), make_random_rows(length, seed=1)
    expected = [
        [
            id
            for id in range(VOCAB_SIZE)
            if any(word and [*row, id][-len(word) :] == list(word) for word in words)
        ]
        for row in ids.tolist()
    ]
    assert banned_ids(banned.mask(ids)) == expected


def test_the_best_are_kept_whatever_the_rule():
    logits = torch.tensor([[3.0, 9.0, 1.0, 2.0, 0.0, -1.0]])
    for keep in (lambda n: keep_top_p(logits, 0.99999, n), lambda n: keep_min_p(logits, 1.0, n)):
        assert [banned_ids(keep(n).isfinite()) for n in (1, 2, 3)] == [[[1]], [[0, 1]], [[0, 1, 3]]]
        assert banned_ids(keep(9).isfinite()) == [[0, 1, 2, 3, 4, 5]]


def test_typical_ids_come_before_likely_ones():
    logits = torch.tensor([[0.9, 0.06, 0.04]]).log()  # entropy 0.39: informations 0.11, 2.81, 3.22
    assert banned_ids(keep_typical(logits, 0.5).isfinite()) == [[0]]
    logits = torch.tensor(
        [[0.45, 0.25, 0.15, 0.15]]
    ).log()  # entropy 1.27: informations 0.80, 1.39, 1.90, 1.90
    assert banned_ids(keep_typical(logits, 0.2).isfinite()) == [[1]]
    assert banned_ids(keep_typical(logits, 0.6).isfinite()) == [[0, 1]]
    assert banned_ids(keep_typical(logits, 0.2, min_tokens_to_keep=2).isfinite()) == [[0, 1]]
    assert banned_ids(keep_typical(logits, 0.99).isfinite()) == [[0, 1, 2, 3]]
