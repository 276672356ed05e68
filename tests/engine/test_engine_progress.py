"""The progress of requests that have no token yet, reported to those callers that gave `on_progress`."""

from dataclasses import replace

import pytest

from engine.fakes import make_engine, make_prompt, make_request, make_tiles, run_requests, wait_until_idle


def reporting_request(prompt, events, **sampling):
    return replace(
        make_request(prompt, **sampling), on_progress=lambda progress: events.append(tuple(progress))
    )


@pytest.mark.parametrize("kind", ["inline", "cross_attention"])
def test_tiles_are_encoded_a_few_at_a_time_then_the_prompt_is_computed(kind):
    prompt = make_prompt(kind, 5, make_tiles("big", frames=9), 6)
    engine, events = make_engine(kind), []
    (handle,) = run_requests(engine, [reporting_request(prompt, events, max_new_tokens=2)])
    tiles = [("tiles", done, 9) for done in (0, 4, 8)]
    assert events == [("queued", 0, 0), *tiles, ("prompt", len(prompt), len(prompt))]
    (plain,) = run_requests(make_engine(kind), [make_request(prompt, max_new_tokens=2)])
    assert handle.ids == plain.ids


def test_a_text_has_no_tiles_and_its_cached_tokens_are_done_at_once():
    prompt = make_prompt("inline", *range(3, 43))
    engine, events = make_engine("inline"), []
    run_requests(engine, [reporting_request(prompt, events, max_new_tokens=1)])
    assert events == [("queued", 0, 0), ("prompt", 0, 40), ("prompt", 40, 40)]
    events.clear()
    run_requests(engine, [reporting_request(prompt, events, max_new_tokens=1)])
    assert events == [("queued", 0, 0), ("prompt", 39, 40), ("prompt", 40, 40)]


def test_an_encoded_picture_has_no_tiles_to_encode():
    cat = make_tiles("cat", frames=3)
    engine, events = make_engine("inline"), []
    run_requests(engine, [make_request(make_prompt("inline", cat, 5), max_new_tokens=1)])
    run_requests(engine, [reporting_request(make_prompt("inline", 7, cat, 6), events, max_new_tokens=1)])
    assert {stage for stage, *_ in events} == {"queued", "prompt"}


def test_a_long_prompt_is_reported_chunk_by_chunk():
    prompt = make_prompt("inline", *([3, 4, 5] * 10))
    engine, events = make_engine("inline", step_tokens=1), []  # times 8 while nothing is decoded
    run_requests(engine, [reporting_request(prompt, events, max_new_tokens=3)])
    assert events[1:] == [("prompt", done, 30) for done in (0, 8, 16, 24, 30)]


def test_beams_report_their_prompt_and_no_tokens():
    prompt, events = make_prompt("inline", 5, 6, 7), []
    run_requests(make_engine("inline"), [reporting_request(prompt, events, max_new_tokens=4, num_beams=3)])
    assert events == [("queued", 0, 0), ("prompt", 0, 3), ("prompt", 3, 3)]


def test_a_waiting_request_hears_how_many_are_before_it():
    engine, events, prompt = make_engine("inline", batch_rows=1), [], make_prompt("inline", 5, 6)
    with engine.condition:  # no step begins before all are submitted
        handles = [engine.submit(make_request(prompt, max_new_tokens=2)) for _ in range(2)]
        handles.append(engine.submit(reporting_request(prompt, events, max_new_tokens=2)))
    for handle in handles:
        handle.result()
    positions = [total for stage, _, total in events if stage == "queued"]
    assert positions == [2, 1, 0]
    assert [stage for stage, *_ in events[3:]] == ["prompt", "prompt"]


def test_an_error_of_the_caller_fails_its_request_alone():
    def fail(progress):
        raise ZeroDivisionError

    engine, prompt = make_engine("inline"), make_prompt("inline", 5, 6)
    bad = engine.submit(replace(make_request(prompt), on_progress=fail))
    good = engine.submit(make_request(prompt, max_new_tokens=2))
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert len(good.result().ids) == 2
    wait_until_idle(engine)
