"""Decode steps launched before the sampled ids are on the host: the same answers in every case."""

import pytest
import torch

from engine.fakes import make_engine, make_mixed_prompts, make_prompt, make_request, wait_until_idle
from idefics.engine.decode import TorchDecode
from idefics.engine.output_processor import start_async_copy_to_host
from idefics.engine.page_pool import PAGE_SIZE


class CountingDecode:
    """A decode step whose calls are counted, which can be told to fail.

    Attributes:
        batch_sizes: of each call.
        failing_calls: the numbers of calls that fail.
        num_early_calls: how many calls were made before the host knew the ids.
    """

    def __init__(self, step):
        self.step, self.batch_sizes, self.failing_calls, self.num_early_calls = step, [], set(), 0

    def __call__(self, rows):
        self.batch_sizes.append(len(rows.ids))
        if len(self.batch_sizes) in self.failing_calls:
            raise RuntimeError("no luck")
        return self.step(rows)


def make_engine_launching_ahead(kind, *, ahead, **config):
    """An engine that launches steps as on a GPU, and its counted decode step."""
    engine = make_engine(kind, **config)
    engine.scheduler.uses_lookahead_pages = ahead
    engine.model_runner.is_async = ahead
    steps = engine.model_runner.decode_step = CountingDecode(TorchDecode(engine.model, engine.kv_cache))
    launch_next_step = engine.model_runner.launch_next_step

    def choosing(branches, ids):
        before = len(steps.batch_sizes)
        launch_next_step(branches, ids)
        steps.num_early_calls += len(steps.batch_sizes) - before

    engine.model_runner.launch_next_step = choosing
    return engine, steps


def make_requests(kind):
    """Greedy, sampled and beam requests, different lengths, stop ids, penalties, `on_token`."""
    watched_ids = []
    requests = [
        make_request(
            one,
            max_new_tokens=3 + 7 * number % 40,
            stop_ids={number, 11},
            temperature=number % 2,
            seed=number,
        )
        for number, one in enumerate(make_mixed_prompts(kind))
    ]
    requests.append(make_request(make_prompt(kind, 5, 6), max_new_tokens=40, num_beams=3))
    requests.append(
        make_request(make_prompt(kind, 5, 7), max_new_tokens=40, repetition_penalty=1.7, logprobs=True)
    )
    requests.append(
        make_request(
            make_prompt(kind, 8, 7),
            max_new_tokens=40,
            on_token=lambda id: watched_ids.append(id) or len(watched_ids) > 20,
        )
    )
    return requests


def run_requests_in_engine(kind, *, ahead, **config):
    engine, steps = make_engine_launching_ahead(kind, ahead=ahead, **config)
    handles = [engine.submit(one) for one in make_requests(kind)]
    results = [(handle.result().ids, handle.logprobs) for handle in handles]
    wait_until_idle(engine)
    return results, steps.batch_sizes


@pytest.mark.parametrize("kind", ["inline", "cross_attention"])
@pytest.mark.parametrize(
    "config",
    [{}, {"batch_rows": 3}, {"cache_pages": 12, "batch_rows": 4}, {"step_tokens": 5}],
    ids=["wide", "narrow", "few pages", "short steps"],
)
def test_answers_are_the_same(kind, config):
    plain, _ = run_requests_in_engine(kind, ahead=False, **config)
    ahead, _ = run_requests_in_engine(kind, ahead=True, **config)
    for (ids, logprobs), (expected, thought) in zip(ahead, plain, strict=True):
        assert ids == expected
        assert logprobs == pytest.approx(thought, abs=1e-4)


def test_a_token_is_computed_once():
    """One sequence: each step is launched ahead, none is computed twice; the last one is in vain."""
    engine, steps = make_engine_launching_ahead("inline", ahead=True)
    length = 3 * PAGE_SIZE
    engine.submit(make_request(make_prompt("inline", 5, 6, 7), max_new_tokens=length)).result()
    wait_until_idle(engine)
    assert len(steps.batch_sizes) in (length - 1, length)
    assert steps.num_early_calls >= length - 2  # all but the first


def test_remaining_sequences_use_the_launched_step():
    """When a sequence finishes, the others use the logits of the step that was launched with it."""
    engine, steps = make_engine_launching_ahead("inline", ahead=True)
    short, long = (make_request(make_prompt("inline", 5, 6 + n), max_new_tokens=5 + 20 * n) for n in range(2))
    with engine.condition:
        handles = [engine.submit(short), engine.submit(long)]
    for handle in handles:
        handle.result()
    wait_until_idle(engine)
    assert len(steps.batch_sizes) <= 25
    assert steps.batch_sizes.count(2) == 5 and set(steps.batch_sizes) == {1, 2}
    assert steps.num_early_calls >= 20


def test_no_step_is_launched_ahead_on_a_cpu():
    """It would gain nothing: the CPU computes the step itself."""
    engine, steps = make_engine_launching_ahead("inline", ahead=False)
    engine.submit(make_request(make_prompt("inline", 5, 6, 7), max_new_tokens=9)).result()
    wait_until_idle(engine)
    assert not steps.num_early_calls and len(steps.batch_sizes) == 8
    assert not make_engine("inline").model_runner.is_async


def test_a_launched_step_that_fails_fails_in_its_turn():
    """The error fails its request, and the next request is answered."""
    engine, steps = make_engine_launching_ahead("inline", ahead=True)
    steps.failing_calls = {3, 4, 5}  # the launched step, the step itself, and the second try
    handle = engine.submit(make_request(make_prompt("inline", 5, 6), max_new_tokens=20))
    with pytest.raises(RuntimeError, match="no luck"):
        handle.result()
    steps.failing_calls = set()
    expected = (
        make_engine("inline")
        .submit(make_request(make_prompt("inline", 5, 6), max_new_tokens=20))
        .result()
        .ids
    )
    assert (
        engine.submit(make_request(make_prompt("inline", 5, 6), max_new_tokens=20)).result().ids == expected
    )
    wait_until_idle(engine)


def test_a_step_that_fails_once_is_made_again():
    engine, steps = make_engine_launching_ahead("inline", ahead=True)
    expected = (
        make_engine("inline")
        .submit(make_request(make_prompt("inline", 5, 6), max_new_tokens=20))
        .result()
        .ids
    )
    steps.failing_calls = {4}
    assert (
        engine.submit(make_request(make_prompt("inline", 5, 6), max_new_tokens=20)).result().ids == expected
    )
    wait_until_idle(engine)


def test_steps_in_vain_do_not_spoil_the_prefix_cache():
    """Cached pages hold what their keys say, although steps were computed beyond the ends of answers."""
    engine, _ = make_engine_launching_ahead("inline", ahead=True)
    for length in range(1, 2 * PAGE_SIZE + 3):
        ids = [5 + n % 7 for n in range(20)]
        actual = engine.submit(make_request(make_prompt("inline", *ids), max_new_tokens=length)).result().ids
        again = make_prompt("inline", *ids, *actual)
        expected = make_engine("inline").submit(make_request(again, max_new_tokens=3)).result().ids
        assert engine.submit(make_request(again, max_new_tokens=3)).result().ids == expected
    wait_until_idle(engine)


@pytest.mark.gpu
def test_async_copies_arrive_from_a_gpu():
    numbers = torch.arange(5, device="cuda")
    received = start_async_copy_to_host(numbers)
    numbers.zero_()
    assert received() == [0, 1, 2, 3, 4]
