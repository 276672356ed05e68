"""Generation: the fast engine against its slow twin, and the manners of a run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fakes import IMAGE, TEXT, VOCABULARY, engine_for, fake, mixed, picture, prompt
from engine.fakes import answered as handles_of
from engine.fakes import request as row
from idefics.engine.slow import slow_greedy
from idefics.errors import BadPrompt, PromptTooLong

KINDS = ["text", "beside"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def answered(engine, rows):
    return [handle.ids for handle in handles_of(engine, rows)]


@pytest.mark.parametrize("batch_rows", [1, 3, 10])
def test_the_engine_equals_its_slow_twin(kind, batch_rows):
    engine = engine_for(kind, batch_rows=batch_rows, encode_frames=2)
    prompts = mixed(kind)
    fast = answered(engine, [row(asked, max_new_tokens=20, stop_ids={3, 31}) for asked in prompts])
    slow = [slow_greedy(engine.model, asked, 20, stop_ids={3, 31}) for asked in prompts]
    assert fast == slow
    assert len({len(ids) for ids in fast}) > 1, "rows should leave the batch at different times"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_any_batch_equals_its_slow_twin(data, kind):
    item = st.integers(3, IMAGE - 1) | st.sampled_from("abc").map(picture) | st.none()
    prompts = [
        prompt(kind, *items)
        for items in data.draw(st.lists(st.lists(item, min_size=1, max_size=9), min_size=1, max_size=5))
    ]
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(prompts), max_size=len(prompts)))
    engine = engine_for(kind, batch_rows=data.draw(st.integers(1, 4)))
    rows = [row(asked, max_new_tokens=n) for asked, n in zip(prompts, lengths, strict=True)]
    slow = [slow_greedy(engine.model, asked, n) for asked, n in zip(prompts, lengths, strict=True)]
    assert answered(engine, rows) == slow


def test_a_picture_changes_the_answer(kind):
    engine = engine_for(kind)
    asked = [prompt(kind, picture(name), 4, 5) for name in ("cat", "dog", "bird")]
    answers = answered(engine, [row(one, max_new_tokens=8) for one in asked])
    assert len(set(map(tuple, answers))) == 3


def test_a_token_sees_the_picture_before_it_and_no_other():
    engine = engine_for("beside")
    both = engine.logits(prompt("beside", 7, picture("cat"), 4, picture("dog"), 5))
    cat = engine.logits(prompt("beside", 7, picture("cat"), 4, picture("bird"), 5))
    none = engine.logits(prompt("beside", 7))
    torch.testing.assert_close(both[:3], cat[:3])
    torch.testing.assert_close(both[:1], none)
    assert (both[4] - cat[4]).abs().max() > 0.1


def test_a_picture_is_read_once_a_run(kind):
    engine = engine_for(kind, batch_rows=2)
    cat, dog = picture("cat"), picture("dog")
    prompts = [
        prompt(kind, cat, 4, picture("cat"), 5),
        prompt(kind, 6, cat),
        prompt(kind, dog, 7),
        prompt(kind, 8),
        prompt(kind, cat, 9, dog),
    ]
    answered(engine, [row(asked, max_new_tokens=6) for asked in prompts])
    assert sum(engine.model.encoded) == 2
    assert sum(engine.model.remembered) == (2 if kind == "beside" else 0)


def test_words_alone_never_enter_the_vision_tower(kind):
    engine = engine_for(kind)
    answered(engine, [row(prompt(kind, 4, 5), max_new_tokens=4), row(prompt(kind, 6), max_new_tokens=4)])
    assert engine.model.encoded == engine.model.remembered == []


def test_banned_ids_never_appear(kind):
    engine = engine_for(kind)
    free = slow_greedy(engine.model, prompt(kind, 5, 6), 8)
    banned = {*free, IMAGE}
    greedy = row(prompt(kind, 5, 6), max_new_tokens=30, banned_ids=banned)
    wild = [
        row(prompt(kind, 5, 6), max_new_tokens=30, banned_ids=banned, temperature=5.0, seed=n)
        for n in range(6)
    ]
    answers = answered(engine, [greedy, *wild])
    assert not banned & {token for ids in answers for token in ids}
    assert answers[0] == slow_greedy(engine.model, prompt(kind, 5, 6), 30, banned_ids=banned)


def test_a_seed_repeats_an_answer_whatever_its_neighbours(kind):
    engine = engine_for(kind)
    prompts = mixed(kind)

    def seeded(seed=11):
        return row(prompts[4], max_new_tokens=15, temperature=1.5, seed=seed)

    alone = answered(engine, [seeded()])[0]
    company = [row(prompts[1], max_new_tokens=2, temperature=2.0), row(prompts[6], max_new_tokens=15)]
    rows = [company[0], seeded(), company[1], seeded(), seeded(12)]
    answers = answered(engine, rows)
    assert answers[1] == answers[3] == alone
    assert answers[4] != alone
    assert answers[2] == slow_greedy(engine.model, prompts[6], 15)


def test_without_a_seed_answers_differ(kind):
    engine = engine_for(kind)
    rows = [row(prompt(kind, 5), max_new_tokens=20, temperature=2.0) for _ in range(4)]
    assert len(set(map(tuple, answered(engine, rows)))) == 4


def test_a_repetition_penalty_acts_on_prompt_and_answer(kind):
    engine = engine_for(kind)
    asked = prompt(kind, picture("cat"), 5, 6)
    harsh = row(asked, max_new_tokens=20, repetition_penalty=10.0, banned_ids={IMAGE})
    free, penalised = answered(engine, [row(asked, max_new_tokens=20), harsh])
    assert len(set(free)) < len(free)
    assert len(set(penalised)) == 20
    assert not set(penalised) & set(asked.ids)


def test_logits_are_the_uncached_models(kind):
    engine = engine_for(kind)
    asked = mixed(kind)[4]
    logits = engine.logits(asked)
    assert logits.shape == (len(asked), VOCABULARY)
    assert logits.dtype == torch.float32
    assert not logits.is_inference()
    assert logits[-1].argmax() == slow_greedy(engine.model, asked, 1)[0]


@pytest.mark.parametrize("step_tokens", [1, 5, 16, 17])
def test_long_prompts_are_read_in_chunks(kind, step_tokens, monkeypatch):
    monkeypatch.setattr("idefics.engine.engine.ALONE", 1)
    engine = engine_for(kind, step_tokens=step_tokens)
    prompts = mixed(kind)
    assert answered(engine, [row(asked, max_new_tokens=21) for asked in prompts]) == [
        slow_greedy(engine.model, asked, 21) for asked in prompts
    ]


def test_frames_are_read_together_by_size():
    engine = engine_for("text", encode_frames=7)
    asked = prompt("text", picture("wide", frames=4), 5, picture("odd", frames=2, side=9), picture("cat"))
    assert answered(engine, [row(asked, max_new_tokens=6)]) == [slow_greedy(fake("text"), asked, 6)]
    assert engine.model.encoded == [5, 2]


def test_few_frames_are_encoded_in_a_step():
    engine = engine_for("text", encode_frames=3)
    asked = prompt("text", picture("wide", frames=4), 5, picture("odd", frames=2, side=9), picture("cat"))
    assert answered(engine, [row(asked, max_new_tokens=6)]) == [slow_greedy(fake("text"), asked, 6)]
    assert engine.model.encoded == [3, 1, 2, 1]


def test_a_stop_id_ends_the_answer_and_is_no_part_of_it(kind):
    engine = engine_for(kind)
    asked = prompt(kind, 5, 6, 7)
    free = slow_greedy(engine.model, asked, 12)
    stop = free[5]
    (one,) = handles_of(engine, [row(asked, max_new_tokens=12, stop_ids={stop}, logprobs=True)])
    assert one.ids == free[: free.index(stop)]
    assert one.finish_reason == "stop"
    assert len(one.logprobs) == len(one.ids)


def test_a_stop_id_may_come_first(kind):
    engine = engine_for(kind)
    first, other = prompt(kind, 5, 6, 7), prompt(kind, 5, picture("cat"))
    stop = slow_greedy(engine.model, first, 1)[0]
    rows = handles_of(engine, [row(first, max_new_tokens=4, stop_ids={stop}), row(other, max_new_tokens=4)])
    assert [one.ids for one in rows] == [[], slow_greedy(engine.model, other, 4)]
    assert [one.finish_reason for one in rows] == ["stop", "length"]


def test_each_answer_has_its_own_length(kind):
    rows = handles_of(engine_for(kind), [row(prompt(kind, 5, 6), max_new_tokens=n) for n in (1, 7, 3)])
    assert [len(one.ids) for one in rows] == [1, 7, 3]
    assert {one.finish_reason for one in rows} == {"length"}


def test_a_full_context_ends_the_answer(kind):
    engine = engine_for(kind)
    long = prompt(kind, picture("cat"), *[5 + n % 30 for n in range(TEXT.max_positions - 10)])
    one, _ = handles_of(engine, [row(long), row(prompt(kind, 5), max_new_tokens=3)])
    assert len(long) + len(one.ids) == TEXT.max_positions
    assert one.finish_reason == "length"
    assert one.ids == slow_greedy(engine.model, long, 100)


def test_a_prompt_that_leaves_no_room_is_refused_before_any_work(kind):
    engine = engine_for(kind)
    too_long = prompt(kind, *[5] * TEXT.max_positions)
    with pytest.raises(PromptTooLong, match=r"has 160 tokens.*reads 159"):
        engine.submit(row(too_long))
    assert len(engine.logits(too_long)) == TEXT.max_positions


def test_an_empty_prompt_and_foreign_ids_are_refused(kind):
    engine = engine_for(kind)
    with pytest.raises(BadPrompt, match="empty"):
        engine.submit(row(prompt(kind)))
    with pytest.raises(BadPrompt, match=f"token {VOCABULARY}.*0 to {VOCABULARY - 1}"):
        engine.logits(prompt(kind, 5, VOCABULARY))


def test_a_watcher_ends_its_answer_at_once(kind):
    engine = engine_for(kind, batch_rows=3)
    prompts = mixed(kind)[1:4]
    seen = []
    watch = lambda id: seen.append(id) or len(seen) == 3  # noqa: E731
    rows = handles_of(
        engine,
        [
            row(asked, max_new_tokens=8, watch=w)
            for asked, w in zip(prompts, (None, watch, None), strict=True)
        ],
    )
    slow = [slow_greedy(engine.model, asked, 8) for asked in prompts]
    assert [one.ids for one in rows] == [slow[0], slow[1][:3], slow[2]]
    assert seen == rows[1].ids
    assert [one.finish_reason for one in rows] == ["length", "stop", "length"]


def test_a_watcher_may_end_the_last_token():
    """A stop string may be seen in the last token that the limit allows."""
    seen = []
    watch = lambda id: seen.append(id) or len(seen) == 2  # noqa: E731
    (one,) = handles_of(engine_for("text"), [row(prompt("text", 5), max_new_tokens=2, watch=watch)])
    assert one.finish_reason == "stop"


def test_log_probabilities_are_the_models_own(kind):
    """Before the temperature and the penalty, after banning, and for the rows that asked."""
    engine = engine_for(kind)
    asked = prompt(kind, picture("cat"), 5, 6)
    sampling = {"max_new_tokens": 6, "temperature": 0.7, "repetition_penalty": 1.3, "top_k": 5, "seed": 3}
    one, other = handles_of(
        engine,
        [row(asked, banned_ids={IMAGE, 8}, logprobs=True, **sampling), row(asked, max_new_tokens=6)],
    )
    whole = prompt(kind, picture("cat"), 5, 6, *one.ids)
    logits = engine.logits(whole)[len(asked) - 1 : -1]
    logits[:, [IMAGE, 8]] = -torch.inf
    expected = logits.log_softmax(-1)[range(6), one.ids]
    torch.testing.assert_close(torch.tensor(one.logprobs), expected, rtol=0, atol=1e-4)
    assert other.logprobs == []


def test_half_precision_models_run_in_their_own_dtype(kind):
    model = fake(kind).to(torch.bfloat16)
    engine = engine_for(model)
    asked = prompt(kind, picture("cat"), 5, 6)
    (one,) = handles_of(engine, [row(asked, max_new_tokens=5, logprobs=True)])
    assert one.ids == slow_greedy(model, asked, 5)
    assert engine.logits(asked).dtype == torch.float32


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(kind):
    prompts = mixed(kind)
    rows = [[row(asked, max_new_tokens=12) for asked in prompts] for _ in range(2)]
    on_cpu = answered(engine_for(kind), rows[0])
    on_gpu = answered(engine_for(fake(kind).cuda()), rows[1])
    assert on_cpu == on_gpu
