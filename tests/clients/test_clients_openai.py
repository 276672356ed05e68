"""OpenAI's Python package against a real server."""

import asyncio

import openai
import pytest

from clients.conftest import run_server, strict_client
from idefics.messages import Message, Picture
from server.request_bodies import QUESTION_MESSAGES, image_part, picture_data_uri, text_part, user_message


def ask_chat(client, messages=QUESTION_MESSAGES, **more):
    return client.chat.completions.create(model="demo", messages=messages, **more)


def direct_answer(vlm, *parts, **options):
    return vlm.chat([Message("user", parts)], **options)


def picture(name, **options):
    return Picture(picture_data_uri(name), **options)


@pytest.fixture
def expected(vlm):
    return direct_answer(vlm, picture("shapes"), "What is shown?")


def test_a_question_about_a_picture(client, expected):
    answer = ask_chat(client)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", "demo")
    usage = answer.usage
    assert usage.prompt_tokens == expected.usage.prompt_tokens
    assert usage.completion_tokens == len(expected.tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1, (
        "`expected` has asked the same"
    )


def test_a_stream_with_its_usage(client, expected):
    with ask_chat(client, stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(texts) > 3
    assert "".join(texts) == expected.text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens == len(expected.tokens)
    assert (last.choices, {chunk.usage for chunk in chunks}) == ([], {None})


def test_the_helper_for_streams(client, expected):
    with client.chat.completions.stream(model="demo", messages=QUESTION_MESSAGES) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(texts) == final.choices[0].message.content == expected.text


def test_asyncio(url, vlm, expected):
    async def scene():
        async with strict_client(url, openai.AsyncOpenAI) as client:
            several = [ask_chat(client) for _ in range(6)]
            stream = await ask_chat(client, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [
                "".join(texts),
                *(one.choices[0].message.content for one in await asyncio.gather(*several)),
            ]

    assert asyncio.run(scene()) == [expected.text] * 7


PART_ORDERS = [
    ("puppy", "First.", "door", "Then?"),
    ("Which of", "puppy", "and", "door", "is alive?"),
    ("Which?", "puppy", "door", "tower"),
]
NAMES = ("puppy", "door", "tower")


@pytest.mark.parametrize("order", PART_ORDERS)
def test_pictures_and_words_in_any_order(client, vlm, order):
    answer = ask_chat(
        client, [user_message(*(image_part(part) if part in NAMES else text_part(part) for part in order))]
    )
    same = direct_answer(vlm, *(picture(part) if part in NAMES else part for part in order))
    assert answer.choices[0].message.content == same.text
    assert answer.usage.prompt_tokens == same.usage.prompt_tokens


def test_low_detail_takes_fewer_tokens(client, vlm):
    costs = {
        detail: ask_chat(
            client, [user_message(image_part("puppy", detail=detail), text_part("?"))]
        ).usage.prompt_tokens
        for detail in ("low", "high", "auto")
    }
    assert costs["low"] == len(vlm.prompt([Message("user", (picture("puppy", detail="low"), "?"))]))
    assert costs["low"] <= costs["auto"] <= costs["high"]


def test_answers_can_be_sent_back(client, vlm):
    first = ask_chat(client).choices[0].message
    turns = [*QUESTION_MESSAGES, first, {"role": "user", "content": "What colour?"}]
    same = vlm.chat(
        [
            Message("user", (picture("shapes"), "What is shown?")),
            Message("assistant", (first.content,)),
            Message("user", ("What colour?",)),
        ]
    )
    assert ask_chat(client, turns).choices[0].message.content == same.text


def test_several_choices_are_reproducible(client):
    wanted = {"n": 3, "temperature": 2, "max_tokens": 12}
    answers = [
        ask_chat(client, [user_message(text_part("Tell me a story."))], seed=seed, **wanted)
        for seed in (7, 7, 8)
    ]
    texts = [[choice.message.content for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3


def test_stop(client, expected):
    word = expected.text.split()[2]
    for stop in (word, [word, "nothing"]):
        choice = ask_chat(client, stop=stop).choices[0]
        assert choice.message.content == expected.text.partition(word)[0]
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_longest_answer(client, name):
    answer = ask_chat(client, **{name: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "idefics"
    with pytest.raises(openai.NotFoundError, match="not found: this server has"):
        client.models.retrieve("gpt-4o")


WRONG_FIELDS = [
    ({"temperature": -1}, "temperature"),
    ({"n": 0}, "n"),
    ({"extra_body": {"foo": 1}}, "foo"),
    ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG_FIELDS, ids=[param for _, param in WRONG_FIELDS])
def test_an_invalid_request_is_a_bad_request_error(client, wrong, param):
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        ask_chat(client, **wrong)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code


def test_an_invalid_picture_is_a_bad_request_error(client):
    broken = picture_data_uri("puppy")[:-2000]
    with pytest.raises(openai.BadRequestError) as caught:
        ask_chat(client, [user_message({"type": "image_url", "image_url": {"url": broken}})], stream=True)
    assert caught.value.code == "invalid_image"


def test_a_long_prompt_is_a_bad_request_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask_chat(client, [user_message(text_part("word " * 20_000))])
    assert caught.value.code == "context_length_exceeded"


def test_another_model_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION_MESSAGES)
    assert caught.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error(vlm):
    with run_server(vlm, api_key="secret") as (url, _):
        with (
            strict_client(url, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            ask_chat(client)
        assert caught.value.code == "invalid_api_key"
        with strict_client(url, api_key="secret") as client:
            assert ask_chat(client, max_tokens=1).choices


def test_a_full_server_is_a_rate_limit_error_and_a_retry_succeeds(vlm):
    with run_server(vlm, requests_at_once=1) as (url, service), strict_client(url) as client:
        place = service.admission.acquire_slot(lambda: None)
        with pytest.raises(openai.RateLimitError) as caught:
            ask_chat(client)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        service.admission.release_slot(place)
        assert ask_chat(client, max_tokens=1).choices


def test_a_client_that_closes_a_stream(client, expected):
    with ask_chat(
        client,
        [user_message(text_part("Tell me a story."))],
        stream=True,
        max_tokens=200,
        seed=1,
        temperature=1.6,
    ) as stream:
        next(stream)
    assert ask_chat(client).choices[0].message.content == expected.text
