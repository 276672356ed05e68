"""Structured output and banned words in every public call, on both kinds of checkpoint."""

import asyncio
import json
import re
import sys
from dataclasses import replace

import PIL.Image
import pytest

import idefics
from idefics.engine.engine import Engine
from idefics.errors import BadSetting, MissingExtra, PromptTooLong
from idefics.generation.loading import LoadedModel
from idefics.messages import user
from idefics.processing.structured_output import CompiledGrammar
from idefics.prompt import Prompt

pytest.importorskip("llguidance")

REGEX = r"[0-9]{1,3} (cats|dogs), (été|🦊)"
CHOICES = ["été 🦊", "ñandú", "它是红色的"]
SCHEMA = {
    "type": "object",
    "properties": {"what": {"type": "string"}, "colours": {"type": "array", "items": {"type": "string"}}},
    "required": ["what", "colours"],
}


def satisfies_constraint(options, text):
    if "regex" in options:
        return re.fullmatch(REGEX, text) is not None
    if "choices" in options:
        return text in CHOICES
    return json.loads(text).keys() >= set(options["schema"].get("required", ()))


OUTPUT_CONSTRAINTS = [
    {"regex": REGEX},
    {"choices": CHOICES},
    {"schema": SCHEMA},
    {"schema": {"type": "object"}},
]
HOT_SAMPLING = {"temperature": 3.0, "max_new_tokens": 40}


@pytest.fixture(scope="module", params=["demo", "demo-idefics1"])
def vlm(request):
    return idefics.load(request.param)


@pytest.fixture(scope="module")
def picture():
    shown = PIL.Image.new("RGB", (96, 96), "white")
    shown.paste("red", (30, 30, 60, 60))
    return shown


@pytest.mark.parametrize("form", OUTPUT_CONSTRAINTS, ids=["regex", "choices", "schema", "object"])
def test_answers_satisfy_their_constraint(vlm, picture, form):
    answer = vlm.ask(picture, "What is this?", **form)
    assert satisfies_constraint(form, answer.text)
    assert answer == replace(vlm.ask(picture, "What is this?", **form), timings=answer.timings)
    for seed in range(5):
        answer = vlm.ask(picture, "What is this?", seed=seed, **form, **HOT_SAMPLING)
        assert satisfies_constraint(form, answer.text), answer
        assert len(answer.tokens) <= 40
        said = vlm.processor.tokenizer.decode_bytes(answer.tokens).decode()
        assert said.removeprefix(" ") == answer.text


def test_a_grammar_is_compiled_once(vlm, picture, monkeypatch):
    made = []
    monkeypatch.setattr(
        "idefics.generation.loading.CompiledGrammar",
        lambda form, token_bytes: made.append(form) or CompiledGrammar(form, token_bytes),
    )
    fresh = idefics.Idefics(LoadedModel(vlm.processor, vlm.engine, vlm.loaded_model.stop_ids))
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    asked = [SCHEMA, json.loads(json.dumps(SCHEMA)), turned, SCHEMA]
    said = [fresh.ask(picture, "What is this?", schema=one).text for one in asked]
    assert [form.schema for form in made] == [SCHEMA, turned]
    assert said[0] == said[1] == said[3] != said[2]
    assert list(json.loads(said[2])) == ["colours", "what"]


def test_every_call_takes_the_options(vlm, picture):
    given = {"choices": CHOICES}
    assert vlm.caption(picture, **given).text in CHOICES
    assert vlm.write(picture, **given).text in CHOICES
    assert vlm.complete(picture, "This is", **given).text.removeprefix("This is").removeprefix(" ") in CHOICES
    assert vlm.chat([user(idefics.Picture(picture), "What?")], **given).text in CHOICES
    assert vlm.generate([idefics.Picture(picture), "This is"], **given).text in CHOICES
    assert [answer.text in CHOICES for answer in vlm.caption([picture] * 3, **given)] == [True] * 3
    assert "".join(vlm.caption(picture, stream=True, **given)) in CHOICES


def test_a_constraint_that_begins_with_a_space_keeps_it(vlm, picture):
    assert re.fullmatch(" [0-9]", vlm.caption(picture, regex=" [0-9]").text)
    assert re.fullmatch("It is [0-9]", vlm.complete(picture, "It is", regex=" [0-9]").text)


def test_constrained_and_free_answers_in_one_batch(vlm, picture):
    """Six kinds of requests at once, in an engine with so few pages that they preempt one another."""
    asked = vlm.prompt([user(idefics.Picture(picture), "What is this?")])
    option_sets = [*OUTPUT_CONSTRAINTS, {"banned": ["re", "a"]}, {}, {"num_beams": 2}]
    option_sets = [{"seed": n + 10, **HOT_SAMPLING, **one} for n, one in enumerate(option_sets * 2)]
    option_sets = [{**one, "temperature": 0.0} if "num_beams" in one else one for one in option_sets]
    alone = [drain_stream(vlm.submit(asked, **one)) for one in option_sets]
    full = len(asked) // 16
    pages = 2 + full + 2 * (-(-(len(asked) + 40) // 16) - full)  # room for two beams, the widest, and no more
    small_engine = Engine(vlm.engine.model, replace(vlm.engine.config, cache_pages=pages))
    small = idefics.Idefics(LoadedModel(vlm.processor, small_engine, vlm.loaded_model.stop_ids))
    sent_away, preempt = [], small.engine.scheduler._preempt
    small.engine.scheduler._preempt = lambda job: (sent_away.append(job), preempt(job))
    with small.engine.condition:
        streams = [small.submit(asked, **one) for one in option_sets]
    together = [drain_stream(stream) for stream in streams]
    assert sent_away
    assert [(one.text, one.tokens) for one in together] == [(one.text, one.tokens) for one in alone]
    assert all(
        satisfies_constraint(one, answer.text)
        for one, answer in zip(option_sets, together, strict=True)
        if one.keys() & {"regex", "choices", "schema"}
    )
    small.engine.close()


def drain_stream(stream):
    for _ in stream:
        pass
    return stream.answer


def test_cancelling_one_answer_leaves_the_others(vlm, picture):
    asked = vlm.prompt([user(idefics.Picture(picture), "What is this?")])

    async def ask():
        first, second = (vlm.submit(asked, schema=SCHEMA, seed=1, **HOT_SAMPLING) for _ in range(2))
        async for _ in first.deltas():
            first.close()
        return first.answer, "".join([delta.text async for delta in second.deltas()])

    cancelled, text = asyncio.run(ask())
    assert cancelled.finish in ("cancelled", "stop")
    assert satisfies_constraint({"schema": SCHEMA}, text)


def test_stop_strings_still_end_an_answer(vlm, picture):
    answer = vlm.ask(picture, "What is this?", schema=SCHEMA, stop='"what"')
    assert (answer.text, answer.finish) == ("{", "stop")


def test_logprobs_are_those_of_the_unconstrained_model(vlm, picture):
    """A forced token may be unlikely: `top_logprobs` has the tokens that the model prefers."""
    answer = vlm.ask(picture, "What is this?", choices=["zzz"], logprobs=True, top_logprobs=2)
    assert len(answer.logprobs) == len(answer.top_logprobs) == len(answer.tokens)
    assert answer.logprobs[0] < answer.top_logprobs[0][0].logprob
    free = vlm.ask(picture, "What is this?", logprobs=True, top_logprobs=2)
    assert answer.top_logprobs[0] == free.top_logprobs[0]


def test_banned_words_are_not_generated(vlm, picture):
    free = vlm.ask(picture, "What is this?").text
    banned = [word for word in free.replace(".", "").split() if len(word) > 2]
    answer = vlm.ask(picture, "What is this?", banned=banned)
    assert answer.text != free
    assert not [word for word in banned if word in answer.text]
    assert free[1] not in vlm.ask(picture, "What is this?", banned=free[1]).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choices": ["b"]}, "an answer has one constraint, not 2"),
        ({"regex": "[a"}, "regex cannot be used"),
        ({"choices": ["a"], "num_beams": 2}, "beam search does not support regex"),
        ({"banned": ["a"], "num_beams": 2}, "beam search does not support regex"),
        ({"banned": ["a"], "regex": "b"}, "leave one of the two out"),
        ({"banned": [""]}, "a banned string is empty"),
        ({"banned": [5]}, r"banned is \[5\]; give a text or a list of texts"),
        ({"stop": 5}, "stop is 5; give a text or a list of texts"),
        ({"regex": "[a-z]{400}", "max_new_tokens": 20}, "there is room for 20: give a larger max_new_tokens"),
    ],
)
def test_wrong_options_are_refused(vlm, picture, options, message):
    with pytest.raises(BadSetting, match=message):
        vlm.ask(picture, "What?", **options)


def test_a_prompt_that_is_too_long_is_refused_with_a_constraint_too(vlm):
    longest = vlm.engine.model.layout.max_positions  # no room for an answer
    ids = (vlm.prompt(["word"]).ids * longest)[:longest]
    asked = Prompt(ids, (), (), (-1,) * longest)
    with pytest.raises(PromptTooLong):
        vlm.submit(asked, choices=["a"])


def test_without_llguidance_the_error_names_the_extra(vlm, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for kept in ("token_bytes", "compile_grammar"):
        vlm.loaded_model.__dict__.pop(kept, None)
    with pytest.raises(MissingExtra, match=r"pip install 'idefics\[form\]'"):
        vlm.ask(picture, "What?", choices=["a"])
    assert "a" not in vlm.ask(picture, "What?", banned="a").text, "which needs none"
