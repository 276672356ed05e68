"""Answers with a guide: only what it allows, what it takes instead, beside free answers that notice nothing."""

import numpy as np
import pytest
import torch

from engine.fakes import VOCABULARY, answered, engine_for, fake, mixed, prompt, request, settled
from engine.test_engine_ahead import engine_of
from idefics.config import Sampling
from idefics.engine.request import Request
from idefics.engine.slow import SlowTwin
from idefics.errors import BadSetting

KINDS = pytest.mark.parametrize("kind", ["text", "beside"])
TOKENS = 20
STOP = 46


class Rule:
    """Allows ids of the same parity as there are ids so far; every fifth is another one than was chosen."""

    def __init__(self, fails_at=-1):
        self.ids, self.rooms, self.fails_at = [], [], fails_at

    def may(self, count):
        return [id for id in range(VOCABULARY) if id % 2 == count % 2]

    def allowed(self):
        if len(self.ids) == self.fails_at:
            raise BadSetting("no way on")
        may = np.zeros(VOCABULARY, dtype=bool)
        may[self.may(len(self.ids))] = True
        return np.packbits(may, bitorder="little").tobytes()

    def settle(self, id, room):
        assert id % 2 == len(self.ids) % 2
        self.rooms.append(room)
        self.ids.append((id + 2) % 40 if len(self.ids) % 5 == 4 else id)
        return self.ids[-1]


@torch.inference_mode()
def plain(model, asked, tokens=TOKENS, banned=(), frequency_penalty=0.0):
    """The same, one token after another: ids and their log-probabilities."""
    twin, rule, logprobs = SlowTwin(model, asked), Rule(), []
    for _ in range(tokens):
        logits = model.logits(twin.hidden(tuple(rule.ids))[-1:])[0].float()
        logits[list(banned)] = -torch.inf
        thoughts = logits.log_softmax(-1)
        scores = logits - frequency_penalty * torch.tensor([rule.ids.count(id) for id in range(VOCABULARY)])
        may = [id for id in rule.may(len(rule.ids)) if id not in banned]
        rule.settle(may[scores[may].argmax().item()], 0)
        logprobs.append(thoughts[rule.ids[-1]].item())
    return rule.ids, logprobs


def guided(asked, guide, banned=(), **sampling):
    sampling = Sampling(**{"max_new_tokens": TOKENS, "logprobs": True, **sampling})
    return Request(asked, sampling, banned_ids=frozenset(banned), guide=guide)


@KINDS
@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
@pytest.mark.parametrize("config", [{}, {"batch_rows": 4, "cache_pages": 10}], ids=["wide", "few pages"])
def test_every_row_follows_its_own_guide_and_free_rows_none(kind, ahead, config):
    engine, _ = engine_of(kind, ahead=ahead, **config)
    sent_away, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    prompts, guides = mixed(kind), [Rule() for _ in mixed(kind)]
    tokens = [TOKENS + 2 * n for n in range(len(prompts))]
    asked = [guided(p, g, max_new_tokens=n) for p, g, n in zip(prompts, guides, tokens, strict=True)]
    free = [request(p, max_new_tokens=n, logprobs=True) for p, n in zip(prompts, tokens, strict=True)]
    handles = answered(engine, [one for pair in zip(asked, free, strict=True) for one in pair])
    assert bool(sent_away) == bool(config)
    for handle, asked_for, guide, n in zip(handles[::2], prompts, guides, tokens, strict=True):
        ids, logprobs = plain(engine.model, asked_for, tokens=n)
        assert handle.ids == guide.ids == ids
        assert handle.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert guide.rooms == list(range(n - 1, -1, -1))
    alone = engine_for(engine.model)
    for handle, one in zip(handles[1::2], free, strict=True):
        assert handle.ids == answered(alone, [one])[0].ids


@KINDS
def test_penalties_and_banned_ids_hold_too(kind):
    """What a row takes instead is what it is counted to have said."""
    engine, prompts = engine_for(kind), mixed(kind)[:4]
    banned = (0, 1, 8, 21)
    asked = [guided(p, Rule(), banned=banned, frequency_penalty=1.0) for p in prompts]
    for handle, one in zip(answered(engine, asked), prompts, strict=True):
        ids, logprobs = plain(engine.model, one, banned=banned, frequency_penalty=1.0)
        assert handle.ids == ids
        assert handle.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_a_guide_that_fails_ends_its_own_request_alone(ahead):
    engine, _ = engine_of("text", ahead=ahead)
    good, bad, worse = Rule(), Rule(fails_at=3), Rule()
    worse.settle = lambda id, room: 1 / 0
    prompts = mixed("text")[:4]
    asked = [guided(p, g) for p, g in zip(prompts[:3], (good, bad, worse), strict=True)]
    with engine.work:
        handles = [engine.submit(one) for one in [*asked, request(prompts[3], max_new_tokens=TOKENS)]]
    with pytest.raises(BadSetting, match="no way on"):
        handles[1].result()
    with pytest.raises(ZeroDivisionError):
        handles[2].result()
    assert handles[0].result().ids == plain(engine.model, prompts[0])[0]
    assert len(handles[3].result().ids) == TOKENS
    settled(engine)


def test_drawn_answers_follow_it_and_are_repeatable():
    asked = mixed("text")[:3]

    def drawn():
        rules = [Rule() for _ in asked]
        handles = answered(
            engine_for("text"),
            [guided(p, r, temperature=1.5, seed=4) for p, r in zip(asked, rules, strict=True)],
        )
        assert all(id % 2 == n % 2 for handle in handles for n, id in enumerate(handle.ids))
        return [handle.ids for handle in handles]

    assert drawn() == drawn()


def test_a_guide_may_end_an_answer():
    rule = Rule()
    settle = rule.settle
    rule.settle = lambda id, room: STOP if len(rule.ids) == 6 else settle(id, room)
    one = Request(prompt("text", 5, 6), Sampling(max_new_tokens=TOKENS), frozenset({STOP}), guide=rule)
    (handle,) = answered(engine_for(fake("text")), [one])
    assert (len(handle.ids), handle.finish_reason) == (6, "stop")


def test_beams_take_no_guide():
    with pytest.raises(BadSetting, match="num_beams is 2, and beams know no regex"):
        guided(prompt("text", 5), Rule(), num_beams=2, logprobs=False)
