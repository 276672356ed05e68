"""DocTags in answers, `skip_special_tokens`, and `continue_final_message`."""

import pytest

import idefics
from idefics.server.app import create_app
from idefics.server.settings import Settings
from models import doctags
from models.doctags import ORDINARY_CHARACTERS, PAGE_TEXT
from server.conftest import SyncClient
from server.request_bodies import (
    PICTURES_FOLDER,
    chat_request,
    image_part,
    parse_events,
    picture_data_uri,
    text_part,
    user_message,
)

CHAT, COMPLETIONS, RESPONSES, CAPTION, ASK, READ = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/images/tasks/caption",
    "/v1/images/tasks/ask",
    "/v1/images/tasks/read",
)
QUESTION = [user_message(image_part("shapes"), text_part("Convert this page to docling."))]
BODIES = {
    CHAT: chat_request(QUESTION),
    COMPLETIONS: {"model": "demo", "prompt": "Convert", "max_tokens": 64},
    RESPONSES: {"model": "demo", "input": "Convert this page to docling."},
    CAPTION: {"image_url": picture_data_uri("shapes")},
    ASK: {"image_url": picture_data_uri("shapes"), "words": "Convert this page to docling."},
    READ: {"image_url": picture_data_uri("shapes")},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    vlm = idefics.load(doctags.write_checkpoint(tmp_path_factory.mktemp("doctags")), remote_images="off")
    return SyncClient(create_app(vlm, Settings(model="demo")))


def answer_text(body):
    if "choices" in body:
        (choice,) = body["choices"]
        return choice["message"]["content"] if "message" in choice else choice["text"]
    return body["output"][0]["content"][0]["text"] if "output" in body else body["text"]


def streamed_text(text):
    pieces = []
    for chunk in parse_events(text):
        if chunk == "[DONE]":
            continue
        if "choices" in chunk:
            pieces += [
                one.get("text") or one.get("delta", {}).get("content") or "" for one in chunk["choices"]
            ]
        elif chunk.get("type", "response.output_text.delta") == "response.output_text.delta":
            pieces.append(chunk.get("delta") or chunk.get("text") or "")
    return "".join(pieces)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, PAGE_TEXT),
        ({"skip_special_tokens": None}, PAGE_TEXT),
        ({"skip_special_tokens": False}, PAGE_TEXT),
        ({"skip_special_tokens": True}, ORDINARY_CHARACTERS),
        ({"stop": ["</doctag>"]}, PAGE_TEXT.removesuffix("</doctag>")),
        ({"stop": "<fcel>b"}, PAGE_TEXT.partition("<fcel>b")[0]),
    ],
)
def test_doctags_are_shown_streamed_or_not(client, path, fields, text):
    answer = client.post(path, BODIES[path] | fields)
    assert answer.status_code == 200, answer.text
    assert answer_text(answer.json()) == text
    assert streamed_text(client.post(path, BODIES[path] | fields | {"stream": True}).text) == text


@pytest.mark.parametrize("path", BODIES)
def test_skip_special_tokens_is_true_false_or_null(client, path):
    answer = client.post(path, BODIES[path] | {"skip_special_tokens": "yes"})
    assert answer.status_code == 400
    assert "skip_special_tokens" in answer.json()["error"]["message"]


def test_a_form_may_have_skip_special_tokens(client):
    files = {
        "image": ("a.png", (PICTURES_FOLDER / "shapes.png").read_bytes()),
        "skip_special_tokens": (None, "true"),
    }
    assert client.post(CAPTION, files=files).json()["text"] == ORDINARY_CHARACTERS


PREFILL = [*QUESTION, {"role": "assistant", "content": "<doctag><text><loc_1>"}]


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_the_last_message_is_continued(client, more):
    body = chat_request(PREFILL, continue_final_message=True, **more)
    rest = PAGE_TEXT.removeprefix("<doctag><text><loc_1>")
    answer = client.post(CHAT, body).json()
    assert answer_text(answer) == rest
    assert streamed_text(client.post(CHAT, body | {"stream": True}).text) == rest
    asked = client.post(CHAT, chat_request(QUESTION)).json()["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] == asked + 3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (chat_request(PREFILL), "the last message is the assistant's: set continue_final_message"),
        (chat_request(PREFILL, continue_final_message=False), "set continue_final_message"),
        (chat_request(QUESTION, continue_final_message=True), "the last message is the user's"),
        (
            chat_request(PREFILL, continue_final_message=True, add_generation_prompt=True),
            "both true: give one",
        ),
        (chat_request(QUESTION, add_generation_prompt=False), "add_generation_prompt is false: leave it out"),
        (chat_request(PREFILL, add_generation_prompt=False), "add_generation_prompt is false: leave it out"),
    ],
)
def test_a_conversation_that_ends_with_the_assistant_is_refused(client, body, says):
    answer = client.post(CHAT, body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": True}, {"continue_final_message": False}])
def test_a_new_turn_is_the_default(client, more):
    assert answer_text(client.post(CHAT, chat_request(QUESTION, **more)).json()) == PAGE_TEXT


def test_a_response_after_a_turn_of_the_assistant_is_refused(client):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}]
    answer = client.post(RESPONSES, {"model": "demo", "input": turns})
    assert (
        answer.status_code == 400
        and "the last message is the assistant's" in answer.json()["error"]["message"]
    )


def test_continued_text_cannot_forge_special_tokens(client):
    def tokens(text):
        return client.post(CHAT, chat_request([user_message(text_part(text))], max_tokens=1)).json()["usage"][
            "prompt_tokens"
        ]

    assert tokens("at <loc_1>") == tokens("at x")  # an instruction of the card is one token
    assert tokens("at <|end_of_text|>") > tokens("at x") + 5


def test_the_space_after_a_continued_message_is_kept(vlm):
    """The demo's answers begin with a space."""
    demo = SyncClient(create_app(vlm, Settings(model="demo")))
    asked = [user_message(image_part("shapes"), text_part("What is shown?"))]
    body = chat_request([*asked, {"role": "assistant", "content": "A"}], continue_final_message=True)
    text = answer_text(demo.post(CHAT, body).json())
    assert text.startswith(" ") and text[1] != " "
    assert streamed_text(demo.post(CHAT, body | {"stream": True}).text) == text
