"""Malformed requests have clear messages, and never status 500."""

import gzip
import json
import re

import pytest

from server.request_bodies import chat_request, picture_data_uri, text_part, user_message

CHAT, COMPLETIONS, RESPONSES, CAPTION = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/images/tasks/caption",
)
LONE_SURROGATE = "\ud800"
REQUESTS_WITH_LONE_SURROGATE = [
    (CHAT, chat_request([user_message(text_part(LONE_SURROGATE))])),
    (CHAT, chat_request([{"role": "system", "content": LONE_SURROGATE}, user_message(text_part("Hi"))])),
    (CHAT, chat_request(stop=LONE_SURROGATE)),
    (CHAT, chat_request(regex=LONE_SURROGATE)),
    (CHAT, chat_request(choices=["a", LONE_SURROGATE])),
    (CHAT, chat_request(banned=[LONE_SURROGATE])),
    (CHAT, chat_request(stream=True, messages=[user_message(text_part(LONE_SURROGATE))])),
    (CHAT, chat_request(**{LONE_SURROGATE: 1})),
    (
        CHAT,
        chat_request(
            [user_message({"type": "image_url", "image_url": {"url": "https://" + LONE_SURROGATE}})]
        ),
    ),
    (
        CHAT,
        chat_request(
            [
                user_message(
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + LONE_SURROGATE}}
                )
            ]
        ),
    ),
    (COMPLETIONS, {"model": "demo", "prompt": LONE_SURROGATE}),
    (RESPONSES, {"model": "demo", "input": LONE_SURROGATE}),
    (RESPONSES, {"model": "demo", "input": "Hi", "instructions": LONE_SURROGATE}),
    (RESPONSES, {"model": "demo", "input": "Hi", "metadata": {"a": LONE_SURROGATE}}),
    (CAPTION, {"image_url": picture_data_uri("door"), "stop": LONE_SURROGATE}),
]


def send_request(client, path, body, kind="application/json", **headers):
    """The status and the message of the error."""
    answer = client("POST", path, content=body, headers={"Content-Type": kind, **headers})
    return answer.status_code, answer.json().get("error", {}).get("message")


@pytest.mark.parametrize(
    ("path", "asked"),
    REQUESTS_WITH_LONE_SURROGATE,
    ids=lambda value: str(value)[-30:].encode("ascii", "replace"),
)
def test_lone_surrogates_are_refused(client, path, asked):
    status, message = send_request(client, path, json.dumps(asked))
    assert status == 400, message
    assert re.search(r"half of a character|hex escape|ud800", message), message
    assert not client.app.state.service.admission.slots


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_refused(client, kind):
    assert send_request(client, CHAT, json.dumps(chat_request()), kind) == (
        400,
        "the body is not a JSON object: send one, with Content-Type: application/json",
    )


@pytest.mark.parametrize("body", ["null", "[]", "5", '"a"'])
def test_a_body_must_be_an_object(client, body):
    status, message = send_request(client, CHAT, body)
    assert status == 400
    assert re.search("not a JSON object|field required", message)


def test_a_truncated_body_is_refused(client):
    status, message = send_request(client, CHAT, '{"model": "demo"')
    assert status == 400
    assert message.startswith("the body is not JSON: ")
    assert send_request(client, CAPTION, "{")[0] == 400
    assert send_request(client, CHAT, "[" * 100_000)[0] == 400
    assert (
        send_request(client, CAPTION, "{")[1]
        == "the body is not JSON: expecting property name enclosed in double quotes at line 1 column 2"
    )
    for body in (b'{"model": "\xff"}', '{"seed": ' + "9" * 5000 + "}"):
        assert send_request(client, CHAT, body) == (
            400,
            "the body cannot be read as JSON: send UTF-8, and numbers of fewer than 4,300 digits",
        )


def test_messages_about_short_lists(client):
    for path, asked, words in (
        (CHAT, chat_request([]), "messages: list should have at least 1 item, not 0"),
        (
            COMPLETIONS,
            {"model": "demo", "prompt": ["a"] * 200},
            "prompt: list should have at most 128 items, not 200",
        ),
    ):
        assert send_request(client, path, json.dumps(asked)) == (400, words)


def test_keys_of_logit_bias_are_token_ids(client):
    status, message = send_request(client, CHAT, json.dumps(chat_request(logit_bias={"door": 1})))
    assert (status, message) == (
        400,
        "logit_bias.door: not the id of a token: give a whole number, such as 42",
    )


@pytest.mark.parametrize("kind", ["input_image", "image"])
def test_the_message_has_the_unknown_type_of_a_part(client, kind):
    status, message = send_request(client, CHAT, json.dumps(chat_request([user_message({"type": kind})])))
    assert status == 400
    assert (
        message
        == 'messages[0].content[0]: a part has a "type", which is "text", "image_url", "video" or "refusal", '
        f'not "{kind}"'
    )


def test_a_compressed_body_is_refused(client):
    body = gzip.compress(json.dumps(chat_request()).encode())
    assert send_request(client, CHAT, body, **{"Content-Encoding": "gzip"}) == (
        415,
        "Content-Encoding 'gzip' is not supported: send the body uncompressed",
    )
    assert (
        send_request(client, CHAT, json.dumps(chat_request()), **{"Content-Encoding": "identity"})[0] == 200
    )


def test_paths_of_fields(client):
    for asked, path, words in (
        (chat_request(stop=""), CHAT, "stop: string should"),
        (chat_request(stop=["a", ""]), CHAT, "stop[1]: string should"),
        (chat_request(stop=5), CHAT, "stop: input should be a valid list"),
        ({"model": "demo", "prompt": [1, 2]}, COMPLETIONS, "prompt[1]: input should be a valid string"),
        ({"model": "demo", "prompt": [1]}, COMPLETIONS, "prompt[0]: input should be a valid string"),
        (
            chat_request([user_message({"type": "image_url", "image_url": 3})]),
            CHAT,
            "image_url: input should be an object",
        ),
    ):
        status, message = send_request(client, path, json.dumps(asked))
        assert status == 400
        assert words in message
    answer = client.post(CAPTION, files={"image": (None, "hello")})
    assert "image=@photo.jpg" in answer.json()["error"]["message"]


def test_unknown_routes_and_methods(client):
    nothing = client.post("/v1/embeddings", {"model": "demo"})
    assert (nothing.status_code, "/docs" in nothing.json()["error"]["message"]) == (404, True)
    wrong = client.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "method not allowed: use POST"


def test_monitoring_may_use_head(client):
    for path in ("/health", "/ready"):
        assert client("HEAD", path).status_code == 200
    client.app.state.service.admission.is_closing = True
    assert client("HEAD", "/ready").status_code == 503
