"""The prefix cache and the encoder cache: nothing is computed twice, and their memory is bounded."""

import pytest
import torch

from engine.fakes import (
    make_engine,
    make_fake_model,
    make_prompt,
    make_request,
    make_tiles,
    run_requests,
    wait_until_idle,
)
from engine.reference_decoding import reference_greedy

KINDS = ["inline", "cross_attention"]
SHOT_IDS = list(range(3, 40))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make_counting_engine(kind, monkeypatch, **config):
    """An engine, and the number of tokens of each prefill pass."""
    model = make_fake_model(kind)
    passes, forward = [], model.forward

    def read(x, positions, attn):
        if type(attn).__name__ == "PrefillAttn":
            passes.append(len(x))
        return forward(x, positions, attn)

    monkeypatch.setattr(model, "forward", read)
    return make_engine(model, **config), passes


def assert_equals_reference(engine, prompt, tokens=8):
    (one,) = run_requests(engine, [make_request(prompt, max_new_tokens=tokens)])
    assert one.ids == reference_greedy(
        make_fake_model("cross_attention" if engine.model.uses_cross_attention else "inline"), prompt, tokens
    )
    return one


def test_a_second_question_reuses_the_picture(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    shown = make_tiles("wide", frames=1 if kind == "cross_attention" else 12)
    begin = [*range(3, 17), shown, *range(3, 17)]
    assert_equals_reference(engine, make_prompt(kind, *begin, 40, 41))
    first = sum(passes)
    assert_equals_reference(engine, make_prompt(kind, *begin, 42))
    assert sum(passes) - first < 17
    assert sum(engine.model.frames_per_encode) == len(shown.frames)


@pytest.mark.parametrize("frames", range(1, 7))
def test_only_the_question_is_computed_wherever_the_picture_ends(kind, frames, monkeypatch):
    """Although its last page holds the first question too, or is not full, or is still being written."""
    engine, passes = make_counting_engine(kind, monkeypatch)
    shown = make_tiles("wide", frames=1 if kind == "cross_attention" else frames)
    begin = [*range(3, 3 + frames), shown]
    assert_equals_reference(engine, make_prompt(kind, *begin, 40, 41))
    before = sum(passes)
    assert_equals_reference(engine, make_prompt(kind, *begin, 42, 43, 44))
    assert sum(passes) - before == 3
    rows = [make_prompt(kind, *begin, 40, 45 - n) for n in range(3)]
    for row, prompt in zip(
        run_requests(engine, [make_request(one, max_new_tokens=20) for one in rows]), rows, strict=True
    ):
        assert row.ids == reference_greedy(make_fake_model(kind), prompt, 20)
    assert sum(passes) - before == 3 + 3


def test_the_picture_is_cached_although_its_pages_are_not(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    shown = make_tiles("cat")
    assert_equals_reference(engine, make_prompt(kind, shown, *range(3, 30)))
    assert_equals_reference(engine, make_prompt(kind, 44, shown, *range(3, 30)))
    assert len(passes) == 2 and passes[1] == passes[0] + 1, "another place is another text"
    assert sum(engine.model.frames_per_encode) == 1
    assert sum(engine.model.images_per_cross_kv) == (kind == "cross_attention")


def test_another_picture_in_the_same_place_is_no_match(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    for name in ("cat", "dog", "cat"):
        assert_equals_reference(engine, make_prompt(kind, make_tiles(name), *range(3, 40)))
    assert passes[0] == passes[1] > passes[2] == 1


def test_shots_are_computed_once_for_concurrent_requests(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch, batch_rows=6)
    prompts = [
        make_prompt(kind, *SHOT_IDS, make_tiles("cat"), 5, *SHOT_IDS, n, make_tiles("dog"), n)
        for n in range(3, 9)
    ]
    rows = run_requests(engine, [make_request(one, max_new_tokens=5) for one in prompts])
    assert [row.ids for row in rows] == [reference_greedy(make_fake_model(kind), one, 5) for one in prompts]
    assert sum(passes) < len(prompts[0]) + 5 * 25
    assert sum(engine.model.frames_per_encode) == 2


def test_many_answers_to_one_prompt_share_it(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch, batch_rows=8)
    prompt = make_prompt(kind, *SHOT_IDS, make_tiles("cat"), *SHOT_IDS)
    rows = run_requests(
        engine, [make_request(prompt, max_new_tokens=9, temperature=1.5, seed=n) for n in range(8)]
    )
    assert len({tuple(row.ids) for row in rows}) > 1
    assert sum(passes) <= len(prompt) + 7 * 32


def test_the_turns_of_a_chat_are_computed_once(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    turn = [make_tiles("cat"), *SHOT_IDS]
    said = assert_equals_reference(engine, make_prompt(kind, *turn), tokens=30).ids
    before = sum(passes)
    assert_equals_reference(engine, make_prompt(kind, *turn, *said, *range(3, 8)))
    assert sum(passes) - before <= 5 + 1 + 16


def test_scoring_reuses_the_cached_prompt(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    prompt = make_prompt(kind, *SHOT_IDS, make_tiles("cat"), *SHOT_IDS)
    assert_equals_reference(engine, prompt)
    before = sum(passes)
    scores = engine.score(prompt, [[5, 6], [5, 7]])
    fresh = make_engine(kind).score(prompt, [[5, 6], [5, 7]])
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(fresh), rtol=0, atol=1e-5)
    assert sum(passes) - before <= 16 + 1


def test_cleared_caches_are_computed_again(kind, monkeypatch):
    engine, passes = make_counting_engine(kind, monkeypatch)
    prompt = make_prompt(kind, make_tiles("cat"), *SHOT_IDS)
    for _ in range(2):
        assert_equals_reference(engine, prompt)
        engine.clear_caches()
    assert passes == [len(prompt)] * 2
    assert sum(engine.model.frames_per_encode) == 2


def test_pictures_are_kept_within_their_bytes():
    engine = make_engine("inline", picture_bytes=2 * 3 * 32 * 4)  # two pictures of three rows
    for id, name in enumerate(("cat", "dog", "cat", "bird", "cat", "dog"), start=10):
        assert_equals_reference(engine, make_prompt("inline", id, make_tiles(name), 6))
        assert engine.encoder_cache.size_bytes <= engine.encoder_cache.max_bytes
    assert sum(engine.model.frames_per_encode) == 4, (
        "the dog went when the bird came, for the cat had been seen since"
    )


def recount_cached_bytes(engine):
    """The bytes of the encoder cache, recounted."""
    kept = engine.encoder_cache.image_by_key.values()
    tensors = [x for one in kept for x in one.features]
    tensors += [x for one in kept for layer in one.cross_kv for x in layer]
    return sum(x.nbytes for x in tensors)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_picture_that_fails_is_not_cached(kind, times, monkeypatch):
    """The next request encodes it again, and the cache's size is counted correctly."""
    engine, failed = make_engine(kind), []
    finish = type(engine.encoder_cache)._complete_image

    (frame,) = make_tiles("dog").frames
    dog_features = engine.model.encode(torch.from_numpy(frame)[None])[0]

    def fails(encoder_cache, frames):
        if torch.allclose(frames[0], dog_features) and len(failed) < times:
            failed.append("dog")
            raise ValueError("no memory")
        return finish(encoder_cache, frames)

    monkeypatch.setattr(type(engine.encoder_cache), "_complete_image", fails)
    assert_equals_reference(engine, make_prompt(kind, make_tiles("cat"), 5))
    for _ in range(3):
        prompt = make_prompt(kind, 7, make_tiles("dog"), 6, make_tiles("bird"), 8)
        handle = engine.submit(make_request(prompt, max_new_tokens=8))
        try:
            assert handle.result().ids == reference_greedy(make_fake_model(kind), prompt, 8)
        except ValueError:
            assert times > 1
        wait_until_idle(engine)
        assert engine.encoder_cache.size_bytes == recount_cached_bytes(engine) > 0
    assert len(failed) == times
    assert_equals_reference(engine, make_prompt(kind, 7, make_tiles("dog"), 9))
    engine.clear_caches()
    assert engine.encoder_cache.size_bytes == 0


def test_no_page_no_reuse():
    """With pages for one request only, the next one evicts the cached pages."""
    engine = make_engine("inline", cache_pages=5)
    prompts = [make_prompt("inline", n, *SHOT_IDS) for n in (3, 4, 3)]
    for one in prompts:
        assert_equals_reference(engine, one)
    assert engine.scheduler.page_pool.num_free_pages == 4
