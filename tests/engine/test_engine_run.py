"""Generation: the engine against the reference implementation; stop ids, limits, seeds, chunks, log-probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import (
    IMAGE_TOKEN_ID,
    TEXT_CONFIG,
    VOCAB_SIZE,
    make_engine,
    make_fake_model,
    make_mixed_prompts,
    make_prompt,
    make_request,
    make_tiles,
    run_requests,
)
from engine.reference_decoding import reference_greedy
from idefics.errors import BadPrompt, PromptTooLong

KINDS = ["inline", "cross_attention"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def run_rows(engine, rows):
    return [handle.ids for handle in run_requests(engine, rows)]


@pytest.mark.parametrize("batch_rows", [1, 3, 10])
def test_the_engine_equals_the_reference(kind, batch_rows):
    engine = make_engine(kind, batch_rows=batch_rows, encode_frames=2)
    prompts = make_mixed_prompts(kind)
    fast = run_rows(engine, [make_request(prompt, max_new_tokens=20, stop_ids={3, 31}) for prompt in prompts])
    slow = [reference_greedy(engine.model, prompt, 20, stop_ids={3, 31}) for prompt in prompts]
    assert fast == slow
    assert len({len(ids) for ids in fast}) > 1, "rows should leave the batch at different times"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_any_batch_equals_the_reference(data, kind):
    item = st.integers(3, IMAGE_TOKEN_ID - 1) | st.sampled_from("abc").map(make_tiles) | st.none()
    prompts = [
        make_prompt(kind, *items)
        for items in data.draw(st.lists(st.lists(item, min_size=1, max_size=9), min_size=1, max_size=5))
    ]
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(prompts), max_size=len(prompts)))
    engine = make_engine(kind, batch_rows=data.draw(st.integers(1, 4)))
    rows = [make_request(prompt, max_new_tokens=n) for prompt, n in zip(prompts, lengths, strict=True)]
    slow = [reference_greedy(engine.model, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    assert run_rows(engine, rows) == slow


def test_a_picture_changes_the_answer(kind):
    engine = make_engine(kind)
    prompts = [make_prompt(kind, make_tiles(name), 4, 5) for name in ("cat", "dog", "bird")]
    answers = run_rows(engine, [make_request(one, max_new_tokens=8) for one in prompts])
    assert len(set(map(tuple, answers))) == 3


def test_a_token_sees_the_picture_before_it_and_no_other():
    engine = make_engine("cross_attention")
    both = engine.logits(make_prompt("cross_attention", 7, make_tiles("cat"), 4, make_tiles("dog"), 5))
    cat = engine.logits(make_prompt("cross_attention", 7, make_tiles("cat"), 4, make_tiles("bird"), 5))
    none = engine.logits(make_prompt("cross_attention", 7))
    torch.testing.assert_close(both[:3], cat[:3])
    torch.testing.assert_close(both[:1], none)
    assert (both[4] - cat[4]).abs().max() > 0.1


def test_a_picture_is_encoded_once(kind):
    engine = make_engine(kind, batch_rows=2)
    cat, dog = make_tiles("cat"), make_tiles("dog")
    prompts = [
        make_prompt(kind, cat, 4, make_tiles("cat"), 5),
        make_prompt(kind, 6, cat),
        make_prompt(kind, dog, 7),
        make_prompt(kind, 8),
        make_prompt(kind, cat, 9, dog),
    ]
    run_rows(engine, [make_request(prompt, max_new_tokens=6) for prompt in prompts])
    assert sum(engine.model.frames_per_encode) == 2
    assert sum(engine.model.images_per_cross_kv) == (2 if kind == "cross_attention" else 0)


def test_text_only_prompts_never_enter_the_vision_tower(kind):
    engine = make_engine(kind)
    run_rows(
        engine,
        [
            make_request(make_prompt(kind, 4, 5), max_new_tokens=4),
            make_request(make_prompt(kind, 6), max_new_tokens=4),
        ],
    )
    assert engine.model.frames_per_encode == engine.model.images_per_cross_kv == []


def test_banned_ids_never_appear(kind):
    engine = make_engine(kind)
    free = reference_greedy(engine.model, make_prompt(kind, 5, 6), 8)
    banned = {*free, IMAGE_TOKEN_ID}
    greedy = make_request(make_prompt(kind, 5, 6), max_new_tokens=30, banned_ids=banned)
    wild = [
        make_request(make_prompt(kind, 5, 6), max_new_tokens=30, banned_ids=banned, temperature=5.0, seed=n)
        for n in range(6)
    ]
    answers = run_rows(engine, [greedy, *wild])
    assert not banned & {token for ids in answers for token in ids}
    assert answers[0] == reference_greedy(engine.model, make_prompt(kind, 5, 6), 30, banned_ids=banned)


def test_a_seed_repeats_an_answer_whatever_its_neighbours(kind):
    engine = make_engine(kind)
    prompts = make_mixed_prompts(kind)

    def seeded(seed=11):
        return make_request(prompts[4], max_new_tokens=15, temperature=1.5, seed=seed)

    alone = run_rows(engine, [seeded()])[0]
    company = [
        make_request(prompts[1], max_new_tokens=2, temperature=2.0),
        make_request(prompts[6], max_new_tokens=15),
    ]
    rows = [company[0], seeded(), company[1], seeded(), seeded(12)]
    answers = run_rows(engine, rows)
    assert answers[1] == answers[3] == alone
    assert answers[4] != alone
    assert answers[2] == reference_greedy(engine.model, prompts[6], 15)


def test_without_a_seed_answers_differ(kind):
    engine = make_engine(kind)
    rows = [make_request(make_prompt(kind, 5), max_new_tokens=20, temperature=2.0) for _ in range(4)]
    assert len(set(map(tuple, run_rows(engine, rows)))) == 4


def test_a_repetition_penalty_acts_on_prompt_and_answer(kind):
    engine = make_engine(kind)
    prompt = make_prompt(kind, make_tiles("cat"), 5, 6)
    harsh = make_request(prompt, max_new_tokens=20, repetition_penalty=10.0, banned_ids={IMAGE_TOKEN_ID})
    free, penalised = run_rows(engine, [make_request(prompt, max_new_tokens=20), harsh])
    assert len(set(free)) < len(free)
    assert len(set(penalised)) == 20
    assert not set(penalised) & set(prompt.ids)


def test_logits_are_the_uncached_models(kind):
    engine = make_engine(kind)
    prompts = make_mixed_prompts(kind)[4]
    logits = engine.logits(prompts)
    assert logits.shape == (len(prompts), VOCAB_SIZE)
    assert logits.dtype == torch.float32
    assert not logits.is_inference()
    assert logits[-1].argmax() == reference_greedy(engine.model, prompts, 1)[0]


@pytest.mark.parametrize("step_tokens", [1, 5, 16, 17])
def test_long_prompts_are_computed_in_chunks(kind, step_tokens, monkeypatch):
    monkeypatch.setattr("idefics.engine.scheduler.IDLE_PREFILL_FACTOR", 1)
    engine = make_engine(kind, step_tokens=step_tokens)
    prompts = make_mixed_prompts(kind)
    assert run_rows(engine, [make_request(prompt, max_new_tokens=21) for prompt in prompts]) == [
        reference_greedy(engine.model, prompt, 21) for prompt in prompts
    ]


def test_frames_are_encoded_in_batches_by_size():
    engine = make_engine("inline", encode_frames=7)
    prompt = make_prompt(
        "inline", make_tiles("wide", frames=4), 5, make_tiles("odd", frames=2, size=9), make_tiles("cat")
    )
    assert run_rows(engine, [make_request(prompt, max_new_tokens=6)]) == [
        reference_greedy(make_fake_model("inline"), prompt, 6)
    ]
    assert engine.model.frames_per_encode == [5, 2]


def test_few_frames_are_encoded_in_a_step():
    engine = make_engine("inline", encode_frames=3)
    prompt = make_prompt(
        "inline", make_tiles("wide", frames=4), 5, make_tiles("odd", frames=2, size=9), make_tiles("cat")
    )
    assert run_rows(engine, [make_request(prompt, max_new_tokens=6)]) == [
        reference_greedy(make_fake_model("inline"), prompt, 6)
    ]
    assert engine.model.frames_per_encode == [3, 1, 2, 1]


def test_a_stop_id_ends_the_answer_and_is_no_part_of_it(kind):
    engine = make_engine(kind)
    prompt = make_prompt(kind, 5, 6, 7)
    free = reference_greedy(engine.model, prompt, 12)
    stop = free[5]
    (one,) = run_requests(engine, [make_request(prompt, max_new_tokens=12, stop_ids={stop}, logprobs=True)])
    assert one.ids == free[: free.index(stop)]
    assert one.finish_reason == "stop"
    assert len(one.logprobs) == len(one.ids)


def test_a_stop_id_may_come_first(kind):
    engine = make_engine(kind)
    first, other = make_prompt(kind, 5, 6, 7), make_prompt(kind, 5, make_tiles("cat"))
    stop = reference_greedy(engine.model, first, 1)[0]
    rows = run_requests(
        engine,
        [make_request(first, max_new_tokens=4, stop_ids={stop}), make_request(other, max_new_tokens=4)],
    )
    assert [one.ids for one in rows] == [[], reference_greedy(engine.model, other, 4)]
    assert [one.finish_reason for one in rows] == ["stop", "length"]


def test_each_answer_has_its_own_length(kind):
    rows = run_requests(
        make_engine(kind), [make_request(make_prompt(kind, 5, 6), max_new_tokens=n) for n in (1, 7, 3)]
    )
    assert [len(one.ids) for one in rows] == [1, 7, 3]
    assert {one.finish_reason for one in rows} == {"length"}


def test_a_full_context_ends_the_answer(kind):
    engine = make_engine(kind)
    long = make_prompt(kind, make_tiles("cat"), *[5 + n % 30 for n in range(TEXT_CONFIG.max_positions - 10)])
    one, _ = run_requests(engine, [make_request(long), make_request(make_prompt(kind, 5), max_new_tokens=3)])
    assert len(long) + len(one.ids) == TEXT_CONFIG.max_positions
    assert one.finish_reason == "length"
    assert one.ids == reference_greedy(engine.model, long, 100)


def test_a_prompt_that_leaves_no_new_tokens_is_refused_before_any_work(kind):
    engine = make_engine(kind)
    too_long = make_prompt(kind, *[5] * TEXT_CONFIG.max_positions)
    with pytest.raises(PromptTooLong, match=r"has 160 tokens.*reads 159"):
        engine.submit(make_request(too_long))
    assert len(engine.logits(too_long)) == TEXT_CONFIG.max_positions


def test_an_empty_prompt_and_foreign_ids_are_refused(kind):
    engine = make_engine(kind)
    with pytest.raises(BadPrompt, match="empty"):
        engine.submit(make_request(make_prompt(kind)))
    with pytest.raises(BadPrompt, match=f"token {VOCAB_SIZE}.*0 to {VOCAB_SIZE - 1}"):
        engine.logits(make_prompt(kind, 5, VOCAB_SIZE))


def test_on_token_ends_its_answer_at_once(kind):
    engine = make_engine(kind, batch_rows=3)
    prompts = make_mixed_prompts(kind)[1:4]
    seen = []
    watch = lambda id: seen.append(id) or len(seen) == 3  # noqa: E731
    rows = run_requests(
        engine,
        [
            make_request(prompt, max_new_tokens=8, on_token=w)
            for prompt, w in zip(prompts, (None, watch, None), strict=True)
        ],
    )
    slow = [reference_greedy(engine.model, prompt, 8) for prompt in prompts]
    assert [one.ids for one in rows] == [slow[0], slow[1][:3], slow[2]]
    assert seen == rows[1].ids
    assert [one.finish_reason for one in rows] == ["length", "stop", "length"]


def test_on_token_may_end_the_answer_at_the_last_token():
    """A stop string may be seen in the last token that the limit allows."""
    seen = []
    watch = lambda id: seen.append(id) or len(seen) == 2  # noqa: E731
    (one,) = run_requests(
        make_engine("inline"), [make_request(make_prompt("inline", 5), max_new_tokens=2, on_token=watch)]
    )
    assert one.finish_reason == "stop"


def test_log_probabilities_are_the_models_own(kind):
    """Before temperature and penalty, after banning, and only for requests with `logprobs`."""
    engine = make_engine(kind)
    prompt = make_prompt(kind, make_tiles("cat"), 5, 6)
    sampling = {"max_new_tokens": 6, "temperature": 0.7, "repetition_penalty": 1.3, "top_k": 5, "seed": 3}
    one, other = run_requests(
        engine,
        [
            make_request(prompt, banned_ids={IMAGE_TOKEN_ID, 8}, logprobs=True, **sampling),
            make_request(prompt, max_new_tokens=6),
        ],
    )
    whole = make_prompt(kind, make_tiles("cat"), 5, 6, *one.ids)
    logits = engine.logits(whole)[len(prompt) - 1 : -1]
    logits[:, [IMAGE_TOKEN_ID, 8]] = -torch.inf
    expected = logits.log_softmax(-1)[range(6), one.ids]
    torch.testing.assert_close(torch.tensor(one.logprobs), expected, rtol=0, atol=1e-4)
    assert other.logprobs == []


def test_half_precision_models_run_in_their_own_dtype(kind):
    model = make_fake_model(kind).to(torch.bfloat16)
    engine = make_engine(model)
    prompt = make_prompt(kind, make_tiles("cat"), 5, 6)
    (one,) = run_requests(engine, [make_request(prompt, max_new_tokens=5, logprobs=True)])
    assert one.ids == reference_greedy(model, prompt, 5)
    assert engine.logits(prompt).dtype == torch.float32


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(kind):
    prompts = make_mixed_prompts(kind)
    rows = [[make_request(prompt, max_new_tokens=12) for prompt in prompts] for _ in range(2)]
    on_cpu = run_rows(make_engine(kind), rows[0])
    on_gpu = run_rows(make_engine(make_fake_model(kind).cuda()), rows[1])
    assert on_cpu == on_gpu
