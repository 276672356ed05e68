"""Rows that are read further before the host knows what was chosen: the same answers, whatever happens meanwhile."""

import pytest
import torch

from engine.fakes import engine_for, mixed, prompt, request, settled
from idefics.engine.decode import TorchDecode
from idefics.engine.pages import PAGE
from idefics.engine.picker import sent


class Late:
    """A decode step whose calls are counted, which can be told to fail.

    Attributes:
        rows: of each call.
        fails: the numbers of calls that fail.
        early: how many calls were made before the host knew the ids.
    """

    def __init__(self, step):
        self.step, self.rows, self.fails, self.early = step, [], set(), 0

    def __call__(self, rows):
        self.rows.append(len(rows.ids))
        if len(self.rows) in self.fails:
            raise RuntimeError("no luck")
        return self.step(rows)


def engine_of(kind, *, ahead, **config):
    """An engine as on a GPU, and its steps."""
    engine = engine_for(kind, **config)
    engine.scheduler.limits = type(engine.scheduler.limits)(
        **{
            name: getattr(engine.scheduler.limits, name)
            for name in ("rows", "tokens", "alone", "frames", "queue")
        },
        ahead=ahead,
    )
    engine.runner.ahead = ahead
    steps = engine.runner.decode = Late(TorchDecode(engine.model, engine.cache))
    chose = engine.runner.chose

    def choosing(branches, ids):
        before = len(steps.rows)
        chose(branches, ids)
        steps.early += len(steps.rows) - before

    engine.runner.chose = choosing
    return engine, steps


def requests_of(kind):
    """Every way to choose, lengths that end at different times, stop ids, one that is watched."""
    seen = []
    asked = [
        request(
            one,
            max_new_tokens=3 + 7 * number % 40,
            stop_ids={number, 11},
            temperature=number % 2,
            seed=number,
        )
        for number, one in enumerate(mixed(kind))
    ]
    asked.append(request(prompt(kind, 5, 6), max_new_tokens=40, num_beams=3))
    asked.append(request(prompt(kind, 5, 7), max_new_tokens=40, repetition_penalty=1.7, logprobs=True))
    asked.append(
        request(prompt(kind, 8, 7), max_new_tokens=40, watch=lambda id: seen.append(id) or len(seen) > 20)
    )
    return asked


def answers(kind, *, ahead, **config):
    engine, steps = engine_of(kind, ahead=ahead, **config)
    handles = [engine.submit(one) for one in requests_of(kind)]
    found = [(handle.result().ids, handle.logprobs) for handle in handles]
    settled(engine)
    return found, steps.rows


@pytest.mark.parametrize("kind", ["text", "beside"])
@pytest.mark.parametrize(
    "config",
    [{}, {"batch_rows": 3}, {"cache_pages": 12, "batch_rows": 4}, {"step_tokens": 5}],
    ids=["wide", "narrow", "few pages", "short steps"],
)
def test_answers_are_the_same(kind, config):
    plain, _ = answers(kind, ahead=False, **config)
    ahead, _ = answers(kind, ahead=True, **config)
    for (ids, logprobs), (wanted, thought) in zip(ahead, plain, strict=True):
        assert ids == wanted
        assert logprobs == pytest.approx(thought, abs=1e-4)


def test_a_token_is_read_once():
    """One row alone: each step is begun ahead, and none is computed twice; one is in vain at its end."""
    engine, steps = engine_of("text", ahead=True)
    length = 3 * PAGE
    engine.submit(request(prompt("text", 5, 6, 7), max_new_tokens=length)).result()
    settled(engine)
    assert len(steps.rows) in (length - 1, length)
    assert steps.early >= length - 2  # all but the first


def test_who_is_left_needs_no_second_step():
    """A row that has ended takes nothing from the others, which were read with it."""
    engine, steps = engine_of("text", ahead=True)
    short, long = (request(prompt("text", 5, 6 + n), max_new_tokens=5 + 20 * n) for n in range(2))
    with engine.work:
        handles = [engine.submit(short), engine.submit(long)]
    for handle in handles:
        handle.result()
    settled(engine)
    assert len(steps.rows) <= 25
    assert steps.rows.count(2) == 5 and set(steps.rows) == {1, 2}
    assert steps.early >= 20


def test_a_cpu_waits():
    """It would compute in vain what it could compute later."""
    engine, steps = engine_of("text", ahead=False)
    engine.submit(request(prompt("text", 5, 6, 7), max_new_tokens=9)).result()
    settled(engine)
    assert not steps.early and len(steps.rows) == 8
    assert not engine_for("text").runner.ahead


def test_a_step_that_fails_ahead_fails_in_its_place():
    """An error is told to the request that it is of, and the next one is answered."""
    engine, steps = engine_of("text", ahead=True)
    steps.fails = {3, 4}
    handle = engine.submit(request(prompt("text", 5, 6), max_new_tokens=20))
    with pytest.raises(RuntimeError, match="no luck"):
        handle.result()
    steps.fails = set()
    wanted = engine_for("text").submit(request(prompt("text", 5, 6), max_new_tokens=20)).result().ids
    assert engine.submit(request(prompt("text", 5, 6), max_new_tokens=20)).result().ids == wanted
    settled(engine)


def test_a_step_that_fails_once_is_made_again():
    engine, steps = engine_of("text", ahead=True)
    wanted = engine_for("text").submit(request(prompt("text", 5, 6), max_new_tokens=20)).result().ids
    steps.fails = {4}
    assert engine.submit(request(prompt("text", 5, 6), max_new_tokens=20)).result().ids == wanted
    settled(engine)


def test_what_is_read_in_vain_spoils_no_beginning():
    """Pages that are kept for later requests hold what they say, though rows were read beyond their ends."""
    engine, _ = engine_of("text", ahead=True)
    for length in range(1, 2 * PAGE + 3):
        ids = [5 + n % 7 for n in range(20)]
        got = engine.submit(request(prompt("text", *ids), max_new_tokens=length)).result().ids
        again = prompt("text", *ids, *got)
        wanted = engine_for("text").submit(request(again, max_new_tokens=3)).result().ids
        assert engine.submit(request(again, max_new_tokens=3)).result().ids == wanted
    settled(engine)


@pytest.mark.gpu
def test_numbers_arrive_from_a_gpu():
    numbers = torch.arange(5, device="cuda")
    received = sent(numbers)
    numbers.zero_()
    assert received() == [0, 1, 2, 3, 4]
