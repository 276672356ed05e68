"""Beam search over a batch, held against every sentence there is. `tests/compat` holds it against transformers."""

import itertools

import pytest
import torch

from idefics.engine.beams import BeamRules, BeamSearch

VOCABULARY, STOP, ROOM = 4, 3, 4


def table(seed):
    """Log-probabilities of the next id after each id: (V, V)."""
    return (
        2 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    ).log_softmax(-1)


def sentences(logprobs, first, penalty):
    """All that can be said after `first`, the best first: (score, ids)."""
    for length in range(1, ROOM + 1):
        for ids in itertools.product(range(VOCABULARY), repeat=length):
            if STOP in ids[:-1] or (length < ROOM and ids[-1] != STOP):
                continue
            pairs = zip((first, *ids), ids, strict=False)
            yield sum(float(logprobs[one, other]) for one, other in pairs) / length**penalty, list(ids)


def search(logprobs, prompts, **rules):
    def ends(ids):
        return (ids[:, -1] == STOP) | (ids.shape[1] == prompts.shape[1] + ROOM)

    rules = {"width": 40, "room": ROOM, "candidates": 80, "early_stopping": "never", **rules}
    beams = BeamSearch(prompts, BeamRules(**rules), fill=9)
    while not beams.is_over:
        beams.advance(logprobs[beams.ids[:, -1]], ends)
    return beams


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all(seed, penalty):
    logprobs, prompts = table(seed), torch.tensor([[1, 0], [0, 1], [2, 2]])
    best = search(logprobs, prompts, length_penalty=penalty).best(3)
    rows = iter(zip(best.ids.tolist(), best.scores.tolist(), best.parents.tolist(), strict=True))
    for prompt in prompts.tolist():
        scores = {tuple(ids): score for score, ids in sentences(logprobs, prompt[-1], penalty)}
        for expected in sorted(scores.values(), reverse=True)[:3]:
            row, score, parents = next(rows)
            length = sum(parent >= 0 for parent in parents)
            said, rest = tuple(row[2 : 2 + length]), row[2 + length :]
            assert row[:2] == prompt and set(rest) <= {9}
            assert score == pytest.approx(expected, abs=1e-4) == scores.pop(said)


def test_parents_lead_back_to_the_prompt():
    prompts = torch.tensor([[1, 0], [0, 1]])
    beams = BeamSearch(prompts, BeamRules(width=3, room=ROOM, candidates=6), fill=9)
    for _ in range(ROOM):
        before = beams.ids
        rows = beams.advance(table(0)[beams.ids[:, -1]], lambda ids: torch.zeros(len(ids), dtype=torch.bool))
        assert beams.ids[:, :-1].tolist() == before[rows].tolist()
        assert (rows // 3).tolist() == [0, 0, 0, 1, 1, 1]


def test_stopping_early_asks_for_as_many_as_there_are_beams():
    """Every id ends: with two beams two end at once, and the third is not waited for."""
    over = []
    for early_stopping in (True, False, "never"):
        beams = BeamSearch(
            torch.tensor([[0]]),
            BeamRules(width=2, room=9, candidates=4, early_stopping=early_stopping, length_penalty=9.0),
            fill=9,
        )
        logprobs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(2, 1)
        beams.advance(logprobs, lambda ids: ids[:, -1] < 2)
        over.append(beams.is_over)
    assert over == [True, True, False]
