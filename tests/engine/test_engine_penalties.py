"""Presence and frequency penalties, biases and top log-probabilities against plain arithmetic on the reference."""

import pytest
import torch

from engine.fakes import (
    VOCAB_SIZE,
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_request,
    run_requests,
)
from idefics.engine.reference import ReferenceModel
from idefics.errors import BadSetting

KINDS = pytest.mark.parametrize("kind", ["inline", "cross_attention"])
MAX_NEW_TOKENS = 12
SETTINGS = [
    {},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 1.5},
    {"presence_penalty": -2.0, "frequency_penalty": 0.5},
    {"logit_bias": {7: 4.0, 11: -100.0, 46: 100.0}},
    {"logit_bias": {3: 5.0}, "frequency_penalty": 2.0, "repetition_penalty": 1.3},
    {"frequency_penalty": -2.0, "logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 20, "logit_bias": {5: 100.0}},
    {"logprobs": True},
]


@torch.inference_mode()
def reference_decode(model, prompt, banned=(), tokens=MAX_NEW_TOKENS, **sampling):
    """Token by token without a batch: ids, log-probabilities, and the top ones at each position."""
    reference, ids, logprobs, tops = ReferenceModel(model, prompt), [], [], []
    for _ in range(tokens):
        logits = model.logits(reference.hidden_states(tuple(ids))[-1:])[0].float()
        for id in banned:
            logits[id] = -torch.inf
        log_probabilities = logits.log_softmax(-1)
        scores = logits.tolist()
        for id in {*prompt.ids, *ids}:
            penalty = sampling.get("repetition_penalty", 1.0)
            scores[id] = scores[id] * penalty if scores[id] < 0 else scores[id] / penalty
        for id in range(VOCAB_SIZE):
            scores[id] -= sampling.get("presence_penalty", 0.0) * (id in ids)
            scores[id] -= sampling.get("frequency_penalty", 0.0) * ids.count(id)
            scores[id] += sampling.get("logit_bias", {}).get(id, 0.0)
        id = max(range(VOCAB_SIZE), key=scores.__getitem__)
        ids.append(id)
        logprobs.append(log_probabilities[id].item())
        order = sorted(range(VOCAB_SIZE), key=lambda one: -log_probabilities[one].item())
        tops.append(
            [(one, log_probabilities[one].item()) for one in order[: sampling.get("top_logprobs", 0)]]
        )
    return ids, logprobs, tops


@KINDS
@pytest.mark.parametrize("banned", [(), (1, 9, 30)])
def test_rows_of_a_batch_equal_plain_arithmetic(kind, banned):
    engine = make_engine(kind)
    pairs = list(zip(make_mixed_prompts(kind), SETTINGS, strict=False))
    handles = run_requests(
        engine,
        [
            make_request(p, max_new_tokens=MAX_NEW_TOKENS, banned_ids=banned, **settings)
            for p, settings in pairs
        ],
    )
    for handle, (prompt, settings) in zip(handles, pairs, strict=True):
        ids, logprobs, tops = reference_decode(engine.model, prompt, banned, **settings)
        assert handle.ids == ids
        assert handle.logprobs == (pytest.approx(logprobs, abs=1e-4) if settings.get("logprobs") else [])
        assert len(handle.top_logprobs) == (MAX_NEW_TOKENS if settings.get("top_logprobs") else 0)
        for found, expected in zip(handle.top_logprobs, tops, strict=False):
            assert [one.token for one in found] == [id for id, _ in expected]
            assert [one.logprob for one in found] == pytest.approx([p for _, p in expected], abs=1e-4)


def test_penalties_change_answers():
    prompt = make_prompt("inline", 5, 6, 7)
    free, *others = (
        reference_decode(make_fake_model("inline"), prompt, **settings)[0] for settings in SETTINGS[:6]
    )
    assert all(other != free for other in others), "a setting that changes nothing tests nothing"


@KINDS
def test_counts_survive_changes_of_the_batch_and_preemption(kind):
    """Pages for little more than one of them: they preempt one another, and finish one after another."""
    settings = {"frequency_penalty": 1.5, "presence_penalty": 0.5}
    engine = make_engine(kind, cache_pages=8)
    sent_away, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    prompts = make_mixed_prompts(kind)[:4]
    handles = run_requests(
        engine,
        [make_request(p, max_new_tokens=44 - n, **settings) for n, p in enumerate(prompts)],
    )
    assert sent_away
    for n, (handle, prompt) in enumerate(zip(handles, prompts, strict=True)):
        assert handle.ids == reference_decode(engine.model, prompt, tokens=44 - n, **settings)[0]


def test_seeded_draws_with_penalties_do_not_depend_on_neighbours():
    requests = [
        make_request(p, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=n, **SETTINGS[n % 6])
        for n, p in enumerate(make_mixed_prompts("inline"))
    ]
    together = [handle.ids for handle in run_requests(make_engine("inline"), requests)]
    assert together == [run_requests(make_engine("inline"), [one])[0].ids for one in requests]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; give a number from -2.0 to 2.0"),
        ({"frequency_penalty": "much"}, "frequency_penalty is 'much'"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101; give a number from -100.0 to 100.0"),
        ({"logit_bias": {"5": 1}}, "logit_bias names the token '5'"),
        ({"logit_bias": {-1: 1}}, "logit_bias names the token -1"),
        ({"logit_bias": [5]}, "give a dict"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias of token 5 is nan"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs is 21; give a whole number from 0 to 20"),
        ({"top_logprobs": 1.5, "logprobs": True}, "top_logprobs is 1.5"),
        ({"top_logprobs": 2}, "give logprobs=True too"),
        (
            {"num_beams": 2, "presence_penalty": 1.0},
            "beam search has no presence_penalty .num_beams is 2, presence_penalty 1.0",
        ),
        (
            {"num_beams": 2, "top_logprobs": 1, "logprobs": True},
            "beam search has no top_logprobs .num_beams is 2, top_logprobs 1",
        ),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BadSetting, match=message):
        make_request(make_prompt("inline", 5), **settings)


def test_a_bias_of_a_token_outside_the_vocabulary_raises():
    with pytest.raises(
        BadSetting, match=f"token {VOCAB_SIZE}; this model's tokens are 0 to {VOCAB_SIZE - 1}"
    ):
        make_engine("inline").submit(make_request(make_prompt("inline", 5), logit_bias={VOCAB_SIZE: 1.0}))
