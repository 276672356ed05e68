"""Requests of every kind, in any order, with little room: each answer is its slow twin's, and nothing is left."""

import random
import threading
import time

import pytest
import torch

from engine.fakes import engine_for, fake, mixed, picture, prompt, request, settled
from idefics.engine.decode import TorchDecode
from idefics.engine.request import Request
from idefics.engine.slow import SlowTwin, slow_greedy
from models import tiny

WINDOW_3 = tiny.changed(tiny.IDEFICS2, text_config={"sliding_window": 3})
BESIDE = ["t", "ttttt", "1tt", "tt1t1", "t1t1tet1t", "1te1te", "1t1t1t1t1t", "tte"]
TEXT = ["t", "ttttt", "1tt", "tt3", "t1tt2ttt", "4t1t", "1t1t1t1t1t", "5"]
MODELS = {
    "text": lambda: (fake("text"), mixed("text")),
    "beside": lambda: (fake("beside"), mixed("beside")),
    "idefics1": lambda: real(tiny.IDEFICS1, BESIDE),
    "idefics2": lambda: real(tiny.IDEFICS2, TEXT),
    "idefics2, window 3": lambda: real(WINDOW_3, TEXT),
    "idefics3": lambda: real(tiny.IDEFICS3, TEXT),
}


def real(raw, scenes):
    model = tiny.model_of(raw)
    return model, [tiny.prompt(model, scene) for scene in scenes]


@torch.inference_mode()
def slow_scores(model, asked, endings):
    twin, scores = SlowTwin(model, asked), []
    for ending in endings:
        h = twin.hidden(tuple(ending))[len(asked) - 1 :][: len(ending)]
        scores.append(model.logits(h).float().log_softmax(-1)[range(len(ending)), ending].tolist())
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_any_order_equals_the_slow_twin(name, seed, monkeypatch):
    chance = random.Random(f"{name} {seed}")
    monkeypatch.setattr("idefics.engine.engine.ALONE", chance.choice([1, 8]))
    model, prompts = MODELS[name]()
    engine = engine_for(
        model,
        batch_rows=chance.randint(1, 5),
        step_tokens=chance.choice([1, 3, 7, 16, 33, 512]),
        encode_frames=chance.randint(1, 5),
        cache_pages=chance.choice([14, 20, 40]),
        picture_bytes=chance.choice([0, 2000, 1 << 20]),
    )
    if seed % 2:  # else the native step, where there is one
        engine.runner.decode = TorchDecode(model, engine.cache)
    handles, seeded = [], {}
    for number in range(24):
        asked = prompts[number % len(prompts)] if number < 8 else chance.choice(prompts)
        length = chance.choice([1, 9, 20, 40])
        kind = chance.choice(["greedy", "greedy", "seeded", "beams", "endings"])
        if kind == "endings":
            ending = [[chance.randrange(3, 40) for _ in range(chance.randint(0, 4))] for _ in range(5)]
            one = Request(asked, endings=tuple(map(tuple, ending)))
        elif kind == "beams":
            one = request(asked, max_new_tokens=min(length, 9), num_beams=2)
        elif kind == "seeded":
            one = request(asked, max_new_tokens=length, temperature=1.3, seed=number, top_p=0.9)
        else:
            one = request(asked, max_new_tokens=length, stop_ids={7, 8})
        handles.append((kind, engine.submit(one)))
        if chance.random() < 0.2:
            handles[chance.randrange(len(handles))][1].cancel()
        time.sleep(chance.choice([0, 0, 0.003, 0.02]))
    for kind, handle in handles:
        handle.result()
        asked, length = handle.request.prompt, handle.request.sampling.max_new_tokens
        is_whole = handle.finish_reason != "cancelled"
        if kind == "greedy":
            slow = slow_greedy(model, asked, length, stop_ids={7, 8})
            assert handle.ids == (slow if is_whole else slow[: len(handle.ids)])
        elif kind == "endings" and is_whole:
            expected = slow_scores(model, asked, handle.request.endings)
            assert [len(one) for one in handle.scores] == [len(one) for one in expected]
            for got, want in zip(handle.scores, expected, strict=True):
                torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=0, atol=1e-4)
        else:
            seeded[handle] = is_whole
    settled(engine)
    assert (
        sum(kept.size for kept in engine.pictures.kept.values())
        == engine.pictures.size
        <= engine.pictures.most
    )
    for handle, is_whole in seeded.items():  # alone, with room for all
        alone = engine_for(model).submit(handle.request).result().ids
        assert handle.ids == (alone if is_whole else alone[: len(handle.ids)])


def test_rows_are_sent_away_and_come_back():
    """What the test above relies on: with so little room, it happens."""
    engine = engine_for("text", batch_rows=4, cache_pages=8)
    sent_away, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    prompts = [prompt("text", n, picture("cat"), 4) for n in (5, 6, 7, 8)]
    requests = [request(asked, max_new_tokens=60, temperature=1.2, seed=n) for n, asked in enumerate(prompts)]
    handles = [engine.submit(one) for one in requests]
    ids = [handle.result().ids for handle in handles]
    assert sent_away
    assert [handle.cached for handle in handles] == [0] * 4, "what it finds of its own is no gift of others"
    assert ids == [engine_for("text").submit(one).result().ids for one in requests]
    settled(engine)


@pytest.mark.parametrize("kind", ["text", "beside"])
def test_threads_may_ask_for_everything_at_once(kind):
    engine, prompts = engine_for(kind, batch_rows=4, cache_pages=60), mixed(kind)
    wrong = []

    def ask(number):
        asked = prompts[number % len(prompts)]
        for _ in range(3):
            ids = engine.submit(request(asked, max_new_tokens=12), wait=True).result().ids
            scores = engine.score(asked, [[5], [6, 7]])
            if ids != slow[number % len(prompts)] or [len(one) for one in scores] != [1, 2]:
                wrong.append(number)
            engine.logits(asked)

    slow = [slow_greedy(engine.model, asked, 12) for asked in prompts]
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    settled(engine)
