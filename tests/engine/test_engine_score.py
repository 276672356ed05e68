"""Scores of continuations: one pass for all against one uncached pass for each."""

import pytest
import torch

from engine.fakes import (
    TEXT_CONFIG,
    VOCAB_SIZE,
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_tiles,
)
from idefics.engine import continuation_scores
from idefics.engine.reference import ReferenceModel
from idefics.errors import BadPrompt, PromptTooLong

KINDS = ["inline", "cross_attention"]
CONTINUATIONS = [[5], [6, 7, 8], [5, 9], [], [30, 31, 32, 33, 34, 35, 36, 37], [6, 7, 9], [5]]


@torch.inference_mode()
def reference_scores(model, prompt, continuations):
    """Each continuation by itself, without a cache."""
    scores = []
    for continuation in continuations:
        h = ReferenceModel(model, prompt).hidden_states(tuple(continuation))[len(prompt) - 1 :][
            : len(continuation)
        ]
        scores.append(
            model.logits(h).float().log_softmax(-1)[range(len(continuation)), continuation].tolist()
        )
    return scores


def assert_same(scores, expected):
    assert [len(one) for one in scores] == [len(one) for one in expected]
    flat = [torch.tensor([x for one in each for x in one]) for each in (scores, expected)]
    torch.testing.assert_close(*flat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", range(10))
def test_scores_equal_the_slow_reference(kind, which):
    model, prompt = make_fake_model(kind), make_mixed_prompts(kind)[which]
    assert_same(
        make_engine(model).score(prompt, CONTINUATIONS), reference_scores(model, prompt, CONTINUATIONS)
    )


def count_forward_passes(model, monkeypatch):
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, *rest: passes.append(len(x)) or forward(x, *rest))
    return passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 5, 9])
def test_groups_and_logits_may_be_cut(kind, most, monkeypatch):
    model, prompt = make_fake_model(kind), make_mixed_prompts(kind)[4]
    whole = make_engine(kind).score(prompt, CONTINUATIONS)
    monkeypatch.setattr(continuation_scores.ContinuationScores.__init__, "__defaults__", (most,))
    monkeypatch.setattr(continuation_scores.ContinuationScores.score_trie, "__defaults__", (2,))
    passes = count_forward_passes(model, monkeypatch)
    assert_same(make_engine(model, step_tokens=max(most, len(prompt))).score(prompt, CONTINUATIONS), whole)
    # 5, then 6 7 for two endings, then the longest ending's 7 tokens, alone where it is too long.
    read = {1: [1, 2, 7], 5: [3, 7], 9: [3, 7]}[most]
    assert sum(passes[1:]) == sum(read)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prefixes_are_computed_once(kind, monkeypatch):
    model = make_fake_model(kind)
    passes = count_forward_passes(model, monkeypatch)
    prompt = make_prompt(kind, make_tiles("cat"), 4, 5)
    endings = [[n % VOCAB_SIZE, n % 7, n % 11, n % 13] for n in range(300)]
    scores = make_engine(model).score(prompt, endings)
    beginnings = {tuple(ending[:n]) for ending in endings for n in (1, 2, 3)}
    assert passes == [len(prompt), len(beginnings)]
    assert len(beginnings) < 3 * 300
    assert sum(model.frames_per_encode) == 1
    assert_same(scores[200:210], reference_scores(model, prompt, endings[200:210]))


def test_single_tokens_need_no_second_pass(monkeypatch):
    model = make_fake_model("inline")
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda x, *rest: passes.append(len(x)) or forward(x, *rest))
    prompt = make_prompt("inline", 4, 5)
    scores = make_engine(model).score(prompt, [[n] for n in range(VOCAB_SIZE)])
    assert passes == [2]
    assert sum(torch.tensor(scores).exp()).item() == pytest.approx(1)


def test_no_continuations_no_scores():
    engine = make_engine("inline")
    assert engine.score(make_prompt("inline", 4), []) == []
    assert engine.score(make_prompt("inline", 4), [[], []]) == [[], []]


def test_continuations_must_fit_and_be_in_the_vocabulary():
    engine = make_engine("inline")
    long = make_prompt("inline", *[5] * (TEXT_CONFIG.max_positions - 3))
    assert len(engine.score(long, [[1, 2, 3]])[0]) == 3
    with pytest.raises(PromptTooLong, match=r"has 157 tokens.*reads 156"):
        engine.score(long, [[1], [1, 2, 3, 4]])
    with pytest.raises(BadPrompt, match=f"token {VOCAB_SIZE}"):
        engine.score(make_prompt("inline", 4), [[1, VOCAB_SIZE]])


@pytest.mark.parametrize("most", [1, 5, 12, 100])
def test_groups_have_at_most_max_group_tokens(most):
    """Unless one continuation alone is longer."""
    endings = [(7,) * 3, (7, 7, 8, 9), (5, 6), *((n, n, n, n) for n in range(10, 16)), (4,) * 20, (3,)]
    found = continuation_scores.ContinuationScores(endings, torch.zeros(47), 0, max_group_tokens=most)
    for trie in found.pending_tries:
        members = trie.continuation_indices
        assert (
            len(trie) <= most
            or len(members) == 1
            or len(trie) == max(len(endings[index]) - 1 for index in members)
        )
    all_members = [index for trie in found.pending_tries for index in trie.continuation_indices]
    assert sorted(all_members) == list(range(len(endings) - 1))
    assert len(found.pending_tries) > 1 or most == 100
