"""Requests of every kind, in any order, with few pages: each answer equals the reference, and nothing leaks."""

import random
import threading
import time

import pytest
import torch

from engine.fakes import (
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_request,
    make_tiles,
    wait_until_idle,
)
from engine.reference_decoding import reference_greedy
from idefics.engine.decode import TorchDecode
from idefics.engine.reference import ReferenceModel
from idefics.engine.request import Request
from models import tiny

WINDOW_3 = tiny.merge_config(tiny.IDEFICS2, text_config={"sliding_window": 3})
CROSS_ATTENTION_SCENES = ["t", "ttttt", "1tt", "tt1t1", "t1t1tet1t", "1te1te", "1t1t1t1t1t", "tte"]
INLINE_SCENES = ["t", "ttttt", "1tt", "tt3", "t1tt2ttt", "4t1t", "1t1t1t1t1t", "5"]
MODEL_AND_PROMPTS_BY_KIND = {
    "inline": lambda: (make_fake_model("inline"), make_mixed_prompts("inline")),
    "cross_attention": lambda: (make_fake_model("cross_attention"), make_mixed_prompts("cross_attention")),
    "idefics1": lambda: make_tiny_model_and_prompts(tiny.IDEFICS1, CROSS_ATTENTION_SCENES),
    "idefics2": lambda: make_tiny_model_and_prompts(tiny.IDEFICS2, INLINE_SCENES),
    "idefics2, window 3": lambda: make_tiny_model_and_prompts(WINDOW_3, INLINE_SCENES),
    "idefics3": lambda: make_tiny_model_and_prompts(tiny.IDEFICS3, INLINE_SCENES),
}


def make_tiny_model_and_prompts(raw, scenes):
    model = tiny.make_random_model(raw)
    return model, [tiny.make_random_prompt(model, scene) for scene in scenes]


@torch.inference_mode()
def reference_scores(model, prompt, continuations):
    reference, scores = ReferenceModel(model, prompt), []
    for ending in continuations:
        h = reference.hidden_states(tuple(ending))[len(prompt) - 1 :][: len(ending)]
        scores.append(model.logits(h).float().log_softmax(-1)[range(len(ending)), ending].tolist())
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODEL_AND_PROMPTS_BY_KIND)
def test_any_order_equals_the_reference(name, seed, monkeypatch):
    chance = random.Random(f"{name} {seed}")
    monkeypatch.setattr("idefics.engine.scheduler.IDLE_PREFILL_FACTOR", chance.choice([1, 8]))
    model, prompts = MODEL_AND_PROMPTS_BY_KIND[name]()
    engine = make_engine(
        model,
        batch_rows=chance.randint(1, 5),
        step_tokens=chance.choice([1, 3, 7, 16, 33, 512]),
        encode_frames=chance.randint(1, 5),
        cache_pages=chance.choice([14, 20, 40]),
        picture_bytes=chance.choice([0, 2000, 1 << 20]),
    )
    if seed % 2:  # else the native step, where there is one
        engine.model_runner.decode_step = TorchDecode(model, engine.kv_cache)
    handles, seeded = [], {}
    for number in range(24):
        prompt = prompts[number % len(prompts)] if number < 8 else chance.choice(prompts)
        length = chance.choice([1, 9, 20, 40])
        kind = chance.choice(["greedy", "greedy", "seeded", "beams", "endings"])
        if kind == "endings":
            ending = [[chance.randrange(3, 40) for _ in range(chance.randint(0, 4))] for _ in range(5)]
            one = Request(prompt, continuations=tuple(map(tuple, ending)))
        elif kind == "beams":
            one = make_request(prompt, max_new_tokens=min(length, 9), num_beams=2)
        elif kind == "seeded":
            one = make_request(prompt, max_new_tokens=length, temperature=1.3, seed=number, top_p=0.9)
        else:
            one = make_request(prompt, max_new_tokens=length, stop_ids={7, 8})
        handles.append((kind, engine.submit(one)))
        if chance.random() < 0.2:
            handles[chance.randrange(len(handles))][1].cancel()
        time.sleep(chance.choice([0, 0, 0.003, 0.02]))
    for kind, handle in handles:
        handle.result()
        prompt, length = handle.request.prompt, handle.request.sampling.max_new_tokens
        is_whole = handle.finish_reason != "cancelled"
        if kind == "greedy":
            slow = reference_greedy(model, prompt, length, stop_ids={7, 8})
            assert handle.ids == (slow if is_whole else slow[: len(handle.ids)])
        elif kind == "endings" and is_whole:
            expected = reference_scores(model, prompt, handle.request.continuations)
            assert [len(one) for one in handle.continuation_logprobs] == [len(one) for one in expected]
            for actual, want in zip(handle.continuation_logprobs, expected, strict=True):
                torch.testing.assert_close(torch.tensor(actual), torch.tensor(want), rtol=0, atol=1e-4)
        else:
            seeded[handle] = is_whole
    wait_until_idle(engine)
    assert (
        sum(kept.size_bytes for kept in engine.encoder_cache.image_by_key.values())
        == engine.encoder_cache.size_bytes
        <= engine.encoder_cache.max_bytes
    )
    for handle, is_whole in seeded.items():  # alone, with room for all
        alone = make_engine(model).submit(handle.request).result().ids
        assert handle.ids == (alone if is_whole else alone[: len(handle.ids)])


def test_requests_are_preempted_and_resumed():
    """The test above relies on it: with so few pages, requests are preempted."""
    engine = make_engine("inline", batch_rows=4, cache_pages=8)
    sent_away, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    prompts = [make_prompt("inline", n, make_tiles("cat"), 4) for n in (5, 6, 7, 8)]
    requests = [
        make_request(prompt, max_new_tokens=60, temperature=1.2, seed=n) for n, prompt in enumerate(prompts)
    ]
    handles = [engine.submit(one) for one in requests]
    ids = [handle.result().ids for handle in handles]
    assert sent_away
    assert [handle.num_cached_tokens for handle in handles] == [0] * 4, (
        "what it finds of its own is no gift of others"
    )
    assert ids == [make_engine("inline").submit(one).result().ids for one in requests]
    wait_until_idle(engine)


@pytest.mark.parametrize("kind", ["inline", "cross_attention"])
def test_threads_may_submit_at_the_same_time(kind):
    engine, prompts = make_engine(kind, batch_rows=4, cache_pages=60), make_mixed_prompts(kind)
    wrong = []

    def ask(number):
        prompt = prompts[number % len(prompts)]
        for _ in range(3):
            ids = engine.submit(make_request(prompt, max_new_tokens=12), wait=True).result().ids
            scores = engine.score(prompt, [[5], [6, 7]])
            if ids != slow[number % len(prompts)] or [len(one) for one in scores] != [1, 2]:
                wrong.append(number)
            engine.logits(prompt)

    slow = [reference_greedy(engine.model, prompt, 12) for prompt in prompts]
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    wait_until_idle(engine)
