"""Token constraints: allowed ids, replaced ids, and unconstrained requests in the same batch."""

import numpy as np
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
    wait_until_idle,
)
from engine.test_engine_launched_steps import make_engine_launching_ahead
from idefics.config import Sampling
from idefics.engine.reference import ReferenceModel
from idefics.engine.request import Request
from idefics.errors import BadSetting

KINDS = pytest.mark.parametrize("kind", ["inline", "cross_attention"])
MAX_NEW_TOKENS = 20
STOP_ID = 46


class ParityConstraint:
    """Allows ids of the parity of the number of ids so far; replaces every fifth sampled id by another one."""

    def __init__(self, fails_at=-1):
        self.ids, self.remaining_tokens, self.fails_at = [], [], fails_at

    def allowed_ids(self, num_ids):
        return [id for id in range(VOCAB_SIZE) if id % 2 == num_ids % 2]

    def compute_token_bitmask(self):
        if len(self.ids) == self.fails_at:
            raise BadSetting("no way on")
        is_allowed = np.zeros(VOCAB_SIZE, dtype=bool)
        is_allowed[self.allowed_ids(len(self.ids))] = True
        return np.packbits(is_allowed, bitorder="little").tobytes()

    def accept_token(self, id, max_remaining_tokens):
        assert id % 2 == len(self.ids) % 2
        self.remaining_tokens.append(max_remaining_tokens)
        self.ids.append((id + 2) % 40 if len(self.ids) % 5 == 4 else id)
        return self.ids[-1]


@torch.inference_mode()
def reference_constrained_decode(model, prompt, tokens=MAX_NEW_TOKENS, banned=(), frequency_penalty=0.0):
    """The reference, token by token: ids and their log-probabilities."""
    reference, rule, logprobs = ReferenceModel(model, prompt), ParityConstraint(), []
    for _ in range(tokens):
        logits = model.logits(reference.hidden_states(tuple(rule.ids))[-1:])[0].float()
        logits[list(banned)] = -torch.inf
        log_probabilities = logits.log_softmax(-1)
        scores = logits - frequency_penalty * torch.tensor([rule.ids.count(id) for id in range(VOCAB_SIZE)])
        may = [id for id in rule.allowed_ids(len(rule.ids)) if id not in banned]
        rule.accept_token(may[scores[may].argmax().item()], 0)
        logprobs.append(log_probabilities[rule.ids[-1]].item())
    return rule.ids, logprobs


def make_constrained_request(prompt, constraint, banned=(), **sampling):
    sampling = Sampling(**{"max_new_tokens": MAX_NEW_TOKENS, "logprobs": True, **sampling})
    return Request(prompt, sampling, banned_ids=frozenset(banned), constraint=constraint)


@KINDS
@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
@pytest.mark.parametrize("config", [{}, {"batch_rows": 4, "cache_pages": 10}], ids=["wide", "few pages"])
def test_every_row_follows_its_own_constraint_and_other_rows_none(kind, ahead, config):
    engine, _ = make_engine_launching_ahead(kind, ahead=ahead, **config)
    sent_away, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    prompts, guides = make_mixed_prompts(kind), [ParityConstraint() for _ in make_mixed_prompts(kind)]
    tokens = [MAX_NEW_TOKENS + 2 * n for n in range(len(prompts))]
    requests = [
        make_constrained_request(p, g, max_new_tokens=n)
        for p, g, n in zip(prompts, guides, tokens, strict=True)
    ]
    free = [make_request(p, max_new_tokens=n, logprobs=True) for p, n in zip(prompts, tokens, strict=True)]
    handles = run_requests(engine, [one for pair in zip(requests, free, strict=True) for one in pair])
    assert bool(sent_away) == bool(config)
    for handle, asked_for, guide, n in zip(handles[::2], prompts, guides, tokens, strict=True):
        ids, logprobs = reference_constrained_decode(engine.model, asked_for, tokens=n)
        assert handle.ids == guide.ids == ids
        assert handle.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert guide.remaining_tokens == list(range(n - 1, -1, -1))
    alone = make_engine(engine.model)
    for handle, one in zip(handles[1::2], free, strict=True):
        assert handle.ids == run_requests(alone, [one])[0].ids


@KINDS
def test_penalties_and_banned_ids_hold_too(kind):
    """Penalties count the replaced id, not the sampled one."""
    engine, prompts = make_engine(kind), make_mixed_prompts(kind)[:4]
    banned = (0, 1, 8, 21)
    requests = [
        make_constrained_request(p, ParityConstraint(), banned=banned, frequency_penalty=1.0) for p in prompts
    ]
    for handle, one in zip(run_requests(engine, requests), prompts, strict=True):
        ids, logprobs = reference_constrained_decode(engine.model, one, banned=banned, frequency_penalty=1.0)
        assert handle.ids == ids
        assert handle.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_a_constraint_that_fails_ends_its_own_request_only(ahead):
    engine, _ = make_engine_launching_ahead("inline", ahead=ahead)
    good, bad, worse = ParityConstraint(), ParityConstraint(fails_at=3), ParityConstraint()
    worse.accept_token = lambda id, room: 1 / 0
    prompts = make_mixed_prompts("inline")[:4]
    requests = [make_constrained_request(p, g) for p, g in zip(prompts[:3], (good, bad, worse), strict=True)]
    with engine.condition:
        handles = [
            engine.submit(one) for one in [*requests, make_request(prompts[3], max_new_tokens=MAX_NEW_TOKENS)]
        ]
    with pytest.raises(BadSetting, match="no way on"):
        handles[1].result()
    with pytest.raises(ZeroDivisionError):
        handles[2].result()
    assert handles[0].result().ids == reference_constrained_decode(engine.model, prompts[0])[0]
    assert len(handles[3].result().ids) == MAX_NEW_TOKENS
    wait_until_idle(engine)


def test_drawn_answers_follow_it_and_are_repeatable():
    prompts = make_mixed_prompts("inline")[:3]

    def drawn():
        rules = [ParityConstraint() for _ in prompts]
        handles = run_requests(
            make_engine("inline"),
            [
                make_constrained_request(p, r, temperature=1.5, seed=4)
                for p, r in zip(prompts, rules, strict=True)
            ],
        )
        assert all(id % 2 == n % 2 for handle in handles for n, id in enumerate(handle.ids))
        return [handle.ids for handle in handles]

    assert drawn() == drawn()


def test_a_constraint_may_end_an_answer():
    rule = ParityConstraint()
    settle = rule.accept_token
    rule.accept_token = lambda id, room: STOP_ID if len(rule.ids) == 6 else settle(id, room)
    one = Request(
        make_prompt("inline", 5, 6),
        Sampling(max_new_tokens=MAX_NEW_TOKENS),
        frozenset({STOP_ID}),
        constraint=rule,
    )
    (handle,) = run_requests(make_engine(make_fake_model("inline")), [one])
    assert (len(handle.ids), handle.finish_reason) == (6, "stop")


def test_beam_search_takes_no_constraint():
    with pytest.raises(BadSetting, match="num_beams is 2, but beam search does not support regex"):
        make_constrained_request(make_prompt("inline", 5), ParityConstraint(), num_beams=2, logprobs=False)
