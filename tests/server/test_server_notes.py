"""`notes` of answers say that only the first frame of an animation was read."""

import base64
import io

import PIL.Image
import pytest

from server.request_bodies import chat_request, parse_events, picture_data_uri, text_part, user_message


def make_animation():
    file, (first, *rest) = io.BytesIO(), [PIL.Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    first.save(file, "GIF", save_all=True, append_images=rest)
    return file.getvalue()


DATA = make_animation()
URI = "data:image/gif;base64," + base64.b64encode(DATA).decode()
IMAGE_PART = {"type": "image_url", "image_url": {"url": URI}}
TASKS = "/v1/images/tasks"
REQUESTS = [
    (
        "/v1/chat/completions",
        chat_request([user_message(IMAGE_PART, text_part("What is this?"))], max_tokens=2),
    ),
    (f"{TASKS}/ask", {"image_url": URI, "words": "What is this?", "max_new_tokens": 2}),
    (
        "/v1/responses",
        {
            "model": "demo",
            "max_output_tokens": 2,
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": URI, "detail": "auto"}]}
            ],
        },
    ),
]
NOTE_TEXT = "has 2 frames, and only the first was read"


@pytest.mark.parametrize(("path", "asked"), REQUESTS)
def test_answers_have_notes(client, path, asked):
    answer = client("POST", path, json=asked)
    assert answer.status_code == 200, answer.text
    (note,) = answer.json()["notes"]
    assert NOTE_TEXT in note


@pytest.mark.parametrize(("path", "asked"), REQUESTS)
def test_streams_have_notes(client, path, asked):
    answer = client("POST", path, json={**asked, "stream": True})
    found = [one for one in parse_events(answer.text) if one != "[DONE]"]
    notes = [(one.get("response") or one).get("notes") for one in found]
    (note,) = notes[-1]
    assert NOTE_TEXT in note
    assert not any(notes[:-1])


def test_rankings_have_notes(client):
    answer = client("POST", f"{TASKS}/classify", json={"image_url": URI, "labels": ["red", "blue"]})
    (note,) = answer.json()["notes"]
    assert NOTE_TEXT in note


def test_no_notes_if_the_whole_file_was_read(client):
    answer = client(
        "POST", f"{TASKS}/caption", json={"image_url": picture_data_uri("door"), "max_new_tokens": 2}
    )
    assert "notes" not in answer.json()
