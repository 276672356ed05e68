"""Beam search over a batch against exhaustive search. `tests/compat` compares it with transformers."""

import itertools

import pytest
import torch

from idefics.engine.beam_search import BeamSearch, BeamSearchConfig

VOCAB_SIZE, STOP_ID, MAX_NEW_TOKENS = 4, 3, 4


def make_bigram_logprobs(seed):
    """Log-probabilities of the next id after each id: (V, V)."""
    return (
        2 * torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    ).log_softmax(-1)


def enumerate_sequences(logprobs, first, penalty):
    """All sequences after `first`, the best first: (score, ids)."""
    for length in range(1, MAX_NEW_TOKENS + 1):
        for ids in itertools.product(range(VOCAB_SIZE), repeat=length):
            if STOP_ID in ids[:-1] or (length < MAX_NEW_TOKENS and ids[-1] != STOP_ID):
                continue
            pairs = zip((first, *ids), ids, strict=False)
            yield sum(float(logprobs[one, other]) for one, other in pairs) / length**penalty, list(ids)


def run_beam_search(logprobs, prompts, **rules):
    def ends(ids):
        return (ids[:, -1] == STOP_ID) | (ids.shape[1] == prompts.shape[1] + MAX_NEW_TOKENS)

    rules = {
        "num_beams": 40,
        "max_new_tokens": MAX_NEW_TOKENS,
        "num_candidates": 80,
        "early_stopping": "never",
        **rules,
    }
    beams = BeamSearch(prompts, BeamSearchConfig(**rules), pad_id=9)
    while not beams.is_done:
        beams.advance(logprobs[beams.ids[:, -1]], ends)
    return beams


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all(seed, penalty):
    logprobs, prompts = make_bigram_logprobs(seed), torch.tensor([[1, 0], [0, 1], [2, 2]])
    best = run_beam_search(logprobs, prompts, length_penalty=penalty).best_beams(3)
    rows = iter(zip(best.ids.tolist(), best.scores.tolist(), best.parent_rows.tolist(), strict=True))
    for prompt in prompts.tolist():
        scores = {tuple(ids): score for score, ids in enumerate_sequences(logprobs, prompt[-1], penalty)}
        for expected in sorted(scores.values(), reverse=True)[:3]:
            row, score, parents = next(rows)
            length = sum(parent >= 0 for parent in parents)
            said, rest = tuple(row[2 : 2 + length]), row[2 + length :]
            assert row[:2] == prompt and set(rest) <= {9}
            assert score == pytest.approx(expected, abs=1e-4) == scores.pop(said)


def test_parents_lead_back_to_the_prompt():
    prompts = torch.tensor([[1, 0], [0, 1]])
    beams = BeamSearch(
        prompts, BeamSearchConfig(num_beams=3, max_new_tokens=MAX_NEW_TOKENS, num_candidates=6), pad_id=9
    )
    for _ in range(MAX_NEW_TOKENS):
        before = beams.ids
        rows = beams.advance(
            make_bigram_logprobs(0)[beams.ids[:, -1]], lambda ids: torch.zeros(len(ids), dtype=torch.bool)
        )
        assert beams.ids[:, :-1].tolist() == before[rows].tolist()
        assert (rows // 3).tolist() == [0, 0, 0, 1, 1, 1]


def test_early_stopping_needs_as_many_finished_beams_as_beams():
    """Every id is a stop id: with two beams the search ends with the first two."""
    over = []
    for early_stopping in (True, False, "never"):
        beams = BeamSearch(
            torch.tensor([[0]]),
            BeamSearchConfig(
                num_beams=2,
                max_new_tokens=9,
                num_candidates=4,
                early_stopping=early_stopping,
                length_penalty=9.0,
            ),
            pad_id=9,
        )
        logprobs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(2, 1)
        beams.advance(logprobs, lambda ids: ids[:, -1] < 2)
        over.append(beams.is_done)
    assert over == [True, True, False]
