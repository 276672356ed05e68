"""Nothing twice: beginnings that are shared are read once, pictures are encoded once, and what is kept is bounded."""

import pytest
import torch

from engine.fakes import answered, engine_for, fake, picture, prompt, request, settled
from idefics.engine.slow import slow_greedy

KINDS = ["text", "beside"]
SHOTS = list(range(3, 40))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def counting(kind, monkeypatch, **config):
    """An engine, and how many tokens each pass over prompts reads."""
    model = fake(kind)
    passes, forward = [], model.forward

    def read(x, positions, attn):
        if type(attn).__name__ == "PagedAttn":
            passes.append(len(x))
        return forward(x, positions, attn)

    monkeypatch.setattr(model, "forward", read)
    return engine_for(model, **config), passes


def same(engine, asked, tokens=8):
    (one,) = answered(engine, [request(asked, max_new_tokens=tokens)])
    assert one.ids == slow_greedy(fake("beside" if engine.model.beside else "text"), asked, tokens)
    return one


def test_a_second_question_reads_the_picture_no_more(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    shown = picture("wide", frames=1 if kind == "beside" else 12)
    begin = [*range(3, 17), shown, *range(3, 17)]
    same(engine, prompt(kind, *begin, 40, 41))
    first = sum(passes)
    same(engine, prompt(kind, *begin, 42))
    assert sum(passes) - first < 17
    assert sum(engine.model.encoded) == len(shown.frames)


@pytest.mark.parametrize("frames", range(1, 7))
def test_only_the_question_is_read_wherever_the_picture_ends(kind, frames, monkeypatch):
    """Though its last page holds the first question too, or is not full, or is still being written."""
    engine, passes = counting(kind, monkeypatch)
    shown = picture("wide", frames=1 if kind == "beside" else frames)
    begin = [*range(3, 3 + frames), shown]
    same(engine, prompt(kind, *begin, 40, 41))
    before = sum(passes)
    same(engine, prompt(kind, *begin, 42, 43, 44))
    assert sum(passes) - before == 3
    rows = [prompt(kind, *begin, 40, 45 - n) for n in range(3)]
    for row, asked in zip(
        answered(engine, [request(one, max_new_tokens=20) for one in rows]), rows, strict=True
    ):
        assert row.ids == slow_greedy(fake(kind), asked, 20)
    assert sum(passes) - before == 3 + 3


def test_the_picture_is_kept_though_its_pages_are_not(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    shown = picture("cat")
    same(engine, prompt(kind, shown, *range(3, 30)))
    same(engine, prompt(kind, 44, shown, *range(3, 30)))
    assert len(passes) == 2 and passes[1] == passes[0] + 1, "another place is another text"
    assert sum(engine.model.encoded) == 1
    assert sum(engine.model.remembered) == (kind == "beside")


def test_another_picture_in_the_same_place_is_no_match(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    for name in ("cat", "dog", "cat"):
        same(engine, prompt(kind, picture(name), *range(3, 40)))
    assert passes[0] == passes[1] > passes[2] == 1


def test_shots_are_read_once_by_all_who_come_together(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch, batch_rows=6)
    asked = [prompt(kind, *SHOTS, picture("cat"), 5, *SHOTS, n, picture("dog"), n) for n in range(3, 9)]
    rows = answered(engine, [request(one, max_new_tokens=5) for one in asked])
    assert [row.ids for row in rows] == [slow_greedy(fake(kind), one, 5) for one in asked]
    assert sum(passes) < len(asked[0]) + 5 * 25
    assert sum(engine.model.encoded) == 2


def test_many_answers_to_one_prompt_share_it(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch, batch_rows=8)
    asked = prompt(kind, *SHOTS, picture("cat"), *SHOTS)
    rows = answered(engine, [request(asked, max_new_tokens=9, temperature=1.5, seed=n) for n in range(8)])
    assert len({tuple(row.ids) for row in rows}) > 1
    assert sum(passes) <= len(asked) + 7 * 32


def test_the_turns_of_a_chat_are_read_once(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    turn = [picture("cat"), *SHOTS]
    said = same(engine, prompt(kind, *turn), tokens=30).ids
    before = sum(passes)
    same(engine, prompt(kind, *turn, *said, *range(3, 8)))
    assert sum(passes) - before <= 5 + 1 + 16


def test_labels_after_a_picture_that_was_talked_about(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    asked = prompt(kind, *SHOTS, picture("cat"), *SHOTS)
    same(engine, asked)
    before = sum(passes)
    scores = engine.score(asked, [[5, 6], [5, 7]])
    fresh = engine_for(kind).score(asked, [[5, 6], [5, 7]])
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(fresh), rtol=0, atol=1e-5)
    assert sum(passes) - before <= 16 + 1


def test_what_is_forgotten_is_read_again(kind, monkeypatch):
    engine, passes = counting(kind, monkeypatch)
    asked = prompt(kind, picture("cat"), *SHOTS)
    for _ in range(2):
        same(engine, asked)
        engine.forget()
    assert passes == [len(asked)] * 2
    assert sum(engine.model.encoded) == 2


def test_pictures_are_kept_within_their_bytes():
    engine = engine_for("text", picture_bytes=2 * 3 * 32 * 4)  # two pictures of three rows
    for id, name in enumerate(("cat", "dog", "cat", "bird", "cat", "dog"), start=10):
        same(engine, prompt("text", id, picture(name), 6))
        assert engine.pictures.size <= engine.pictures.most
    assert sum(engine.model.encoded) == 4, "the dog went when the bird came, for the cat had been seen since"


def whole_size(engine):
    """The bytes of what is kept of pictures, counted anew."""
    kept = engine.pictures.kept.values()
    tensors = [x for one in kept for x in (*one.frames, *(() if one.features is None else (one.features,)))]
    tensors += [x for one in kept for layer in one.memory for x in layer]
    return sum(x.nbytes for x in tensors)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_picture_that_fails_is_not_kept_half_made(kind, times, monkeypatch):
    """The next request for it encodes it anew and sees it, and the bytes that are kept are counted right."""
    engine, failed = engine_for(kind), []
    finish = type(engine.pictures)._finished

    def fails(pictures, tiles, frames):
        if tiles.key.startswith("dog") and len(failed) < times:
            failed.append(tiles.key)
            raise ValueError("no memory")
        return finish(pictures, tiles, frames)

    monkeypatch.setattr(type(engine.pictures), "_finished", fails)
    same(engine, prompt(kind, picture("cat"), 5))
    for _ in range(3):
        asked = prompt(kind, 7, picture("dog"), 6, picture("bird"), 8)
        handle = engine.submit(request(asked, max_new_tokens=8))
        try:
            assert handle.result().ids == slow_greedy(fake(kind), asked, 8)
        except ValueError:
            assert times > 1
        settled(engine)
        assert engine.pictures.size == whole_size(engine) > 0
    assert len(failed) == times
    same(engine, prompt(kind, 7, picture("dog"), 9))
    engine.forget()
    assert engine.pictures.size == 0


def test_no_page_no_reuse():
    """With room for one request only, the next one takes the pages that were kept."""
    engine = engine_for("text", cache_pages=5)
    asked = [prompt("text", n, *SHOTS) for n in (3, 4, 3)]
    for one in asked:
        same(engine, one)
    assert engine.scheduler.pages.room == 4
