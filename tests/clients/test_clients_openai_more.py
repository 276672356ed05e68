"""OpenAI's Python package: log-probabilities, structured output, completions and responses."""

import math

import openai
import pydantic
import pytest

from clients.conftest import strict_client
from clients.test_clients_openai import ask_chat, direct_answer, picture
from idefics.messages import Message
from server.request_bodies import QUESTION_MESSAGES, image_part, picture_data_uri, text_part, user_message


@pytest.fixture
def expected(vlm):
    return direct_answer(vlm, picture("shapes"), "What is shown?", logprobs=True, top_logprobs=3)


def test_logprobs(client, expected):
    choice = ask_chat(client, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert [token.logprob for token in content] == pytest.approx(list(expected.logprobs), abs=1e-5)
    assert [len(token.top_logprobs) for token in content] == [3] * len(expected.tokens)
    for token in content:
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-4
    assert b"".join(bytes(token.bytes) for token in content).decode().strip() == choice.message.content


def test_logprobs_of_a_stream(client, expected):
    with ask_chat(client, logprobs=True, top_logprobs=3, stream=True) as stream:
        given = [chunk.choices[0].logprobs for chunk in stream]
    found = [token.logprob for one in given if one is not None for token in one.content]
    assert found == pytest.approx(list(expected.logprobs), abs=1e-5)


class Scene(pydantic.BaseModel):
    """Structured output for a picture."""

    colour: str
    count: int


def test_parsed_structured_output(client):
    answer = client.chat.completions.parse(
        model="demo", messages=QUESTION_MESSAGES, response_format=Scene, max_tokens=200
    )
    scene = answer.choices[0].message.parsed
    assert isinstance(scene, Scene)
    assert Scene.model_validate_json(answer.choices[0].message.content) == scene


def test_parsed_structured_output_of_a_stream(client):
    with client.chat.completions.stream(
        model="demo", messages=QUESTION_MESSAGES, response_format=Scene, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Scene)


def test_a_schema_that_cannot_fit_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="there is room for 2"):
        client.chat.completions.parse(
            model="demo", messages=QUESTION_MESSAGES, response_format=Scene, max_tokens=2
        )


OUTPUT_CONSTRAINTS = {"choices": ["a cat", "a red circle"], "regex": r"[0-9]{3}-[0-9]{2}"}


@pytest.mark.parametrize("name", OUTPUT_CONSTRAINTS)
def test_regex_and_choices(client, vlm, name):
    text = ask_chat(client, extra_body={name: OUTPUT_CONSTRAINTS[name]}).choices[0].message.content
    assert (
        text
        == direct_answer(vlm, picture("shapes"), "What is shown?", **{name: OUTPUT_CONSTRAINTS[name]}).text
    )
    if name == "choices":
        assert text in OUTPUT_CONSTRAINTS[name]


def test_completions(client, url, vlm):
    answer = client.completions.create(model="demo", prompt="The picture shows", max_tokens=5, logprobs=2)
    same = vlm.generate(["The picture shows"], max_new_tokens=5)
    (choice,) = answer.choices
    written = f" {same.text}"  # prompt + text is the text as the model wrote it
    assert choice.text == written
    assert (choice.finish_reason, answer.usage.completion_tokens) == (same.finish, len(same.tokens))
    assert len(choice.logprobs.token_logprobs) == len(same.tokens)
    # Not strict: the package has no null in a chunk's finish_reason, which OpenAI itself sends.
    lenient = strict_client(url, _strict_response_validation=False)
    with (
        lenient,
        lenient.completions.create(
            model="demo", prompt="The picture shows", max_tokens=5, stream=True
        ) as stream,
    ):
        assert "".join(chunk.choices[0].text for chunk in stream) == written


def test_responses(client, vlm):
    content = [
        {"type": "input_image", "image_url": picture_data_uri("shapes"), "detail": "low"},
        {"type": "input_text", "text": "What is shown?"},
    ]
    asked = {"model": "demo", "input": [{"role": "user", "content": content}]}
    same = direct_answer(vlm, picture("shapes", detail="low"), "What is shown?")
    answer = client.responses.create(**asked)
    assert answer.output_text == same.text
    assert (answer.status, answer.usage.output_tokens) == ("completed", len(same.tokens))
    assert answer.usage.input_tokens_details.cached_tokens == answer.usage.input_tokens - 1
    with client.responses.create(**asked, stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == same.text
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.output_text == same.text


def test_responses_of_several_turns(client, vlm):
    first = client.responses.create(model="demo", input="Hello", instructions="Be short.")
    turns = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": "Why?"}]
    second = client.responses.create(
        model="demo", input=[one if isinstance(one, dict) else one.model_dump() for one in turns]
    )
    same = vlm.chat(
        [Message("user", ("Hello",)), Message("assistant", (first.output_text,)), Message("user", ("Why?",))]
    )
    assert second.output_text == same.text


def test_parsed_structured_output_of_responses(client):
    answer = client.responses.parse(
        model="demo", input="How many circles?", text_format=Scene, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Scene)


def test_penalties_and_biases(client, vlm):
    story = [user_message(text_part("Tell me a story."))]
    for wish in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"logit_bias": {"5": 100.0}}):
        same = dict(wish)
        if "logit_bias" in same:
            same["logit_bias"] = {5: 100.0}
        text = ask_chat(client, story, max_tokens=8, **wish).choices[0].message.content
        assert text == direct_answer(vlm, "Tell me a story.", max_new_tokens=8, **same).text


def test_several_pictures_as_the_documentation_shows_them(client):
    answer = ask_chat(
        client,
        [user_message(text_part("Which is alive?"), image_part("door"), image_part("puppy"))],
        max_tokens=8,
    )
    assert answer.choices[0].message.content
