"""Drafts from the prompt: the same tokens and log-probabilities, bit for bit, in fewer decode steps."""

import random
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

import idefics
from engine.fakes import VOCAB_SIZE, make_engine, make_request, wait_until_idle
from engine.test_engine_token_constraints import ParityConstraint
from idefics.config import Sampling
from idefics.engine import drafts
from idefics.engine.request import Request
from idefics.native.library import available_instruction_sets
from models import tiny
from models.tiny_adapters import write_random_adapter

pytestmark = pytest.mark.skipif(
    not available_instruction_sets("decode step"), reason="the native step was not compiled"
)
RAW_BY_KIND = {
    "cross_attention": tiny.IDEFICS1,
    "window": tiny.IDEFICS2,
    "inline": tiny.merge_config(
        tiny.IDEFICS3, text_config={"vocab_size": VOCAB_SIZE}, image_token_id=VOCAB_SIZE - 1
    ),
}


class CountingDecode:
    """A decode step whose calls and rows are counted."""

    def __init__(self, step):
        self.step, self.batch_sizes = step, []

    def __call__(self, inputs):
        self.batch_sizes.append(len(inputs.ids))
        return self.step(inputs)


class KnownAnswers:
    """Drafts made of what the answers are without drafts, with a wrong id here and there."""

    def __init__(self, answers, seed):
        self.answers, self.chance = answers, random.Random(seed)

    def find_draft(self, ids, max_tokens):
        answer = next(answer for answer in self.answers if answer[: len(ids)] == ids)
        draft = answer[len(ids) :][: self.chance.randint(0, max_tokens)]
        if draft and self.chance.random() < 0.5:
            draft[self.chance.randrange(len(draft))] = self.chance.randrange(20)
        return draft


def draft_known_answers(monkeypatch, requests, results, seed):
    """Every step has drafts, of the answers of an earlier run."""
    answers = [[*one.prompt.ids, *ids] for one, (ids, *_) in zip(requests, results, strict=True)]
    known = KnownAnswers(answers, seed)
    make_drafts = partial(drafts.SequenceDrafts, budget=1e9, max_tokens=15)
    monkeypatch.setattr(
        drafts.SequenceDrafts, "find_draft", lambda self, ids, max_tokens: known.find_draft(ids, max_tokens)
    )
    monkeypatch.setattr(drafts, "SequenceDrafts", make_drafts)
    monkeypatch.setattr(drafts, "MAX_BUDGET", 1e9)


@pytest.fixture
def unmeasured(monkeypatch):
    """Drafts do not depend on how long steps take."""
    monkeypatch.setattr(drafts.PromptLookup, "record_step", lambda *_: None)


def run(model, requests, has_drafts, **config):
    """What the caller sees of each request, the number of preemptions, and the rows of each decode step."""
    engine = make_engine(model, **config)
    if not has_drafts:
        engine.model_runner.prompt_lookup = None
    step = engine.model_runner.decode_step = CountingDecode(engine.model_runner.decode_step)
    preempted, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda state: (preempted.append(state), preempt(state))
    with engine.condition:  # all arrive before the first step
        handles = [engine.submit(one) for one in requests]
    for handle in handles:
        handle.wait()
    wait_until_idle(engine)
    results = [
        (one.ids, one.logprobs, one.top_logprobs, one.finish_reason, one.usage, repr(one.error))
        for one in handles
    ]
    return results, len(preempted), step.batch_sizes


def make_requests(model):
    """Greedy, sampled and beam requests, different lengths, stop ids, penalties, constraints, `on_token`."""
    prompts = [
        tiny.make_random_prompt(model, scene) for scene in ("t", "ttttt", "1tt", "t1t1tttt", "ttt2ttt")
    ]
    watched = []
    kinds = [
        {"logprobs": True},
        {"temperature": 0.7, "seed": 3, "logprobs": True, "top_logprobs": 4},
        {"temperature": 1.3, "seed": 4, "top_p": 0.8},
        {"repetition_penalty": 1.4, "logprobs": True},
        {"frequency_penalty": 0.3, "presence_penalty": 0.2, "temperature": 0.5, "seed": 5},
        {"stop_ids": {7, 8, 9, 10, 11}},
        {"on_token": lambda id: watched.append(id) or len(watched) % 13 == 0},
        {"num_beams": 2},
        {"logit_bias": {5: 3.0, 6: -2.0}, "banned_ids": {1, 2, 4}},
    ]
    requests = [
        make_request(prompts[number % 5], max_new_tokens=(60, 33, 9, 60)[number % 4], **kind)
        for number, kind in enumerate(kinds * 2)
    ]
    if model.layout.vocab_size == VOCAB_SIZE:
        requests += [
            Request(prompts[number], Sampling(max_new_tokens=30, **kinds[number]), constraint=constraint)
            for number, constraint in enumerate([ParityConstraint(), ParityConstraint(), ParityConstraint(7)])
        ]
    return requests


@pytest.mark.parametrize(
    "config", [{"batch_rows": 4}, {"batch_rows": 2}, {"batch_rows": 6, "cache_pages": 12}, {"batch_rows": 1}]
)
@pytest.mark.parametrize("kind", RAW_BY_KIND)
def test_all_requests_have_the_same_results(kind, config, monkeypatch):
    """Drafts that end anywhere: at a wrong id, a stop, a page, the last token; requests come, go and are preempted."""
    model = tiny.make_random_model(RAW_BY_KIND[kind])
    expected, num_preempted, plain_batches = run(model, make_requests(model), False, **config)
    assert bool(num_preempted) == ("cache_pages" in config)
    for seed in range(3):
        with monkeypatch.context() as patch:
            requests = make_requests(model)
            draft_known_answers(patch, requests, expected, seed)
            actual, num_drafted_preempted, batches = run(model, requests, True, **config)
        assert actual == expected
        assert num_drafted_preempted == num_preempted
        assert sum(batches) > sum(plain_batches), "rows were drafted"
        if config == {"batch_rows": 1}:
            assert len(batches) < 0.6 * len(plain_batches)


def run_one(model, prompt, has_drafts, **sampling):
    """The ids of an answer, and how many decode steps and rows they took."""
    results, _, batches = run(model, [make_request(prompt, **sampling)], has_drafts)
    return results[0][0], len(batches), sum(batches)


def test_an_answer_that_repeats_itself_takes_few_steps(unmeasured):
    """A step for each page of 16 positions, after the first drafts, which are short."""
    model = tiny.make_random_model(tiny.IDEFICS3)
    prompt = tiny.make_random_prompt(model, "t" * 8)
    sampling = {"max_new_tokens": 200, "logit_bias": {5: 100.0}}
    assert run_one(model, prompt, False, **sampling) == ([5] * 200, 199, 199)
    ids, num_steps, _ = run_one(model, prompt, True, **sampling)
    assert ids == [5] * 200
    assert num_steps < 200 / 16 + 8


def test_drafts_that_are_wrong_become_rare(unmeasured, monkeypatch):
    """The n-grams of a repeated prompt occur again and again, but a random answer goes on in other ways."""
    monkeypatch.setattr(drafts.SequenceDrafts, "find_draft", lambda self, ids, max_tokens: [1] * max_tokens)
    model = tiny.make_random_model(tiny.IDEFICS3)
    sampling = {"max_new_tokens": 300, "temperature": 3.0, "seed": 1, "logit_bias": {1: -100.0}}
    _, num_steps, num_rows = run_one(model, tiny.make_random_prompt(model, "t" * 9), True, **sampling)
    assert num_steps == 299
    lost_time = (num_rows - num_steps) * drafts.ROW_COST
    assert 0 < lost_time <= drafts.FIRST_BUDGET + 299 * drafts.MAX_LOSS


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], [4, 5, 6, 1, 2]),
        ([1, 2, 3, 4, 1, 2, 3, 9, 8, 1, 2, 3], [9, 8, 1, 2, 3]),  # the latest occurrence
        ([5, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ([8, 1, 2, 3, 1, 2, 3], [1, 2, 3, 1, 2]),
        ([1, 2, 3, 4, 5, 6], []),
        ([1, 2], []),
    ],
)
def test_the_draft_follows_the_latest_occurrence(ids, draft):
    for length in range(len(ids)):  # the index grows with the ids
        one = drafts.SequenceDrafts()
        one.find_draft(ids[:length], 5)
        assert one.find_draft(ids, 5) == draft
        assert one.find_draft(ids, 2) == draft[:2]


def test_steps_show_what_a_drafted_row_costs():
    lookup = drafts.PromptLookup()
    lookup.record_step(1, 3, 9.0)  # nothing to compare it with
    assert lookup.row_cost == drafts.ROW_COST
    for _ in range(50):
        lookup.record_step(1, 0, 1.0)
        lookup.record_step(1, 3, 1.6)
    assert lookup.row_cost == pytest.approx(0.2, abs=0.02)


def answer_with_and_without_drafts(vlm, ask):
    """The answers of `ask(vlm)` without and with drafts, from empty caches; and how many tokens were accepted."""
    answers = []
    for lookup in (None, drafts.PromptLookup()):
        vlm.engine.clear_caches()
        vlm.engine.model_runner.prompt_lookup = lookup
        answers.append([replace(one, timings=None) for one in ask(vlm)])
        wait_until_idle(vlm.engine)
    return *answers, lookup.num_accepted_tokens


@pytest.mark.parametrize(
    "options", [{}, {"quantize": "int8"}, {"quantize": "int4"}, {"dtype": "float32"}], ids=str
)
def test_answers_of_the_demo(options, unmeasured):
    """Structured output, stop strings, penalties and seeds, from text to text."""
    item = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "size": {"enum": [1, 2]}},
    }
    given = [
        {"schema": {"type": "array", "items": item, "minItems": 6, "maxItems": 6}},
        {
            "schema": {"type": "array", "items": item, "minItems": 6, "maxItems": 6},
            "temperature": 0.9,
            "seed": 1,
        },
        {"stop": ["e a"]},
        {"repetition_penalty": 1.2, "temperature": 0.4, "seed": 2},
    ]
    picture = Image.new("RGB", (40, 30), "red")

    def ask(vlm):
        text = "Say again: one red cat, one blue cat, one red dog, one red cat, one blue cat, one red dog"
        return [
            vlm.ask(picture, text, max_new_tokens=150, logprobs=True, top_logprobs=2, **one) for one in given
        ]

    with idefics.load("demo", device="cpu", feature_cache=False, **options) as vlm:
        plain, drafted, num_accepted = answer_with_and_without_drafts(vlm, ask)
    assert drafted == plain
    assert num_accepted > 20


def test_answers_with_adapters(tmp_path, unmeasured):
    base = tiny.write_complete_checkpoint(tmp_path / "base", tiny.IDEFICS3)
    model = tiny.load_checkpoint(base)
    for seed, name in enumerate("ab"):
        write_random_adapter(tmp_path / name, model, ("q_proj", "down_proj", "lm_head"), rank=3, seed=seed)

    def ask(vlm):
        options = {"max_new_tokens": 60, "logprobs": True, "logit_bias": {5: 6.0, 6: 6.0}}
        views = [vlm.with_adapter(name) for name in ("a", None, "b", "a")]
        with vlm.engine.condition:  # all arrive before the first step
            streams = [view.submit(view.prompt(["word word word"]), **options) for view in views]
        for stream in streams:
            list(stream)
        return [stream.answer for stream in streams]

    adapters = {name: tmp_path / name for name in "ab"}
    with idefics.load(base, adapters=adapters, device="cpu", feature_cache=False) as vlm:
        plain, drafted, num_accepted = answer_with_and_without_drafts(vlm, ask)
    assert drafted == plain
    assert len({one.tokens for one in plain}) == 3
    assert num_accepted > 20
