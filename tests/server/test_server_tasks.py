"""`/v1/images/tasks/...` answer as the methods of `Idefics` do, for forms and for JSON."""

import json
from unittest.mock import ANY

import pytest

from idefics.messages import Picture, Shot
from idefics.tasks import TASKS
from server.request_bodies import PICTURES_FOLDER, parse_events, picture_data_uri

WORDS_BY_TASK = {"caption": "", "complete": "This is", "ask": "What is it?", "write": "Write a story."}


def task_path(task):
    return f"/v1/images/tasks/{task}"


def upload_file(name):
    return {"image": (f"{name}.png", (PICTURES_FOLDER / f"{name}.png").read_bytes(), "image/png")}


def form_fields(task):
    return {"words": WORDS_BY_TASK[task]} if WORDS_BY_TASK[task] else {}


def direct_answer(vlm, task, name, **options):
    return vlm.run(TASKS[task], Picture(picture_data_uri(name)), WORDS_BY_TASK[task], **options)


def test_every_task_has_a_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {task_path(task) for task in [*TASKS, "explain"]} == {one for one in paths if "/tasks/" in one}


@pytest.mark.parametrize("task", WORDS_BY_TASK)
def test_a_form_with_a_file(client, vlm, task):
    options = {"max_new_tokens": "9", "repetition_penalty": "1.1"}
    body = client.post(
        task_path(task), files=upload_file("door"), data={**form_fields(task), **options}
    ).json()
    expected = direct_answer(vlm, task, "door", max_new_tokens=9, repetition_penalty=1.1)
    assert body == {
        "object": "image.task",
        "task": task,
        "text": expected.text,
        "finish_reason": expected.finish,
        "usage": {
            "prompt_tokens": expected.usage.prompt_tokens,
            "completion_tokens": len(expected.tokens),
            "total_tokens": expected.usage.prompt_tokens + len(expected.tokens),
            "prompt_tokens_details": {"cached_tokens": ANY},
            "pictures": 1,
        },
    }


def test_line_breaks_of_a_form_are_those_that_were_typed(client, vlm):
    """A browser sends them as CRLF."""
    asked = {"words": "This is\r\nan image of", "max_new_tokens": "5"}
    body = client.post(task_path("complete"), files=upload_file("door"), data=asked).json()
    picture = Picture(picture_data_uri("door"))
    expected = vlm.complete(picture, "This is\nan image of", max_new_tokens=5)
    assert body["text"] == expected.text
    assert body["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


@pytest.mark.parametrize("task", WORDS_BY_TASK)
def test_json_with_a_url(client, vlm, task):
    asked = {"image_url": picture_data_uri("door"), "num_beams": 2, "detail": "low", **form_fields(task)}
    body = client.post(task_path(task), asked).json()
    assert body["text"] == direct_answer(vlm, task, "door", num_beams=2, detail="low").text


@pytest.mark.parametrize("task", WORDS_BY_TASK)
def test_a_stream_has_the_same_answer(client, vlm, task):
    asked = {"image_url": picture_data_uri("door"), "stream": True, **form_fields(task)}
    *pieces, last, done = parse_events(client.post(task_path(task), asked).text)
    assert done == "[DONE]"
    assert "".join(piece["text"] for piece in pieces) == direct_answer(vlm, task, "door").text
    assert last["finish_reason"] == "stop"
    assert last["usage"]["pictures"] == 1


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"stream": True}], ids=["greedy", "beams", "stream"]
)
def test_the_log_probability_of_the_answer(client, vlm, options):
    asked = {"image_url": picture_data_uri("door"), "logprobs": True, **form_fields("ask"), **options}
    response = client.post(task_path("ask"), asked)
    last = parse_events(response.text)[-2] if "stream" in options else response.json()
    beams = {"num_beams": options.get("num_beams", 1)}
    expected = direct_answer(vlm, "ask", "door", logprobs=True, **beams)
    assert last["logprob"] == pytest.approx(sum(expected.logprobs), abs=1e-4)


def test_write_tells_a_story_by_default(client, vlm):
    body = client.post(task_path("write"), files=upload_file("door"), data={"max_new_tokens": "7"}).json()
    assert body["text"] == vlm.write(Picture(picture_data_uri("door")), max_new_tokens=7).text


def test_few_shot_examples(client, vlm):
    shots = [
        {"image_url": picture_data_uri("puppy"), "answer": "A dog."},
        {"image_url": picture_data_uri("tower"), "answer": "A tower.", "question": "What?"},
    ]
    expected = vlm.with_shots(
        [
            Shot(Picture(picture_data_uri("puppy")), "A dog."),
            Shot(Picture(picture_data_uri("tower")), "A tower.", "What?"),
        ]
    ).ask(Picture(picture_data_uri("door")), "What is it?")
    asked = {"image_url": picture_data_uri("door"), "words": "What is it?", "shots": shots}
    _, as_json = (client.post(task_path("ask"), asked).json() for _ in range(2))  # now they are in the cache
    form = {"words": "What is it?", "shots": json.dumps(shots)}
    as_form = client.post(task_path("ask"), files=upload_file("door"), data=form).json()
    assert as_json == as_form
    assert as_json["text"] == expected.text
    assert as_json["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert as_json["usage"]["pictures"] == 3


@pytest.mark.parametrize("how", [{}, {"calibrated": True}, {"length_normalized": True}])
def test_labels_are_ranked(client, vlm, how):
    labels = ["a red door", "a puppy", "a tower"]
    expected = vlm.classify(Picture(picture_data_uri("door")), labels, **how)
    as_json = client.post(
        task_path("classify"), {"image_url": picture_data_uri("door"), "labels": labels, **how}
    ).json()
    form = {"labels": labels, **dict.fromkeys(how, "true")}
    as_form = client.post(task_path("classify"), files=upload_file("door"), data=form).json()
    for body in (as_json, as_form):
        assert [row["label"] for row in body["labels"]] == [row.label for row in expected]
        for found, row in zip(body["labels"], expected, strict=True):
            # The second question reuses the prompt's beginning, which sums in another order.
            assert found["probability"] == pytest.approx(row.probability, abs=1e-5)
            assert found["logprob"] == pytest.approx(row.logprob, abs=1e-5)
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


REFUSED_FIELDS = [
    ("ask", {"words": " "}, "words"),
    ("ask", {}, "words"),
    ("caption", {"words": "Hi"}, "unknown field: words"),
    ("caption", {"image_url": None}, "one of the two"),
    ("caption", {"image_url": "photo.jpg"}, "neither"),
    ("caption", {"num_beams": 17}, "num_beams"),
    ("caption", {"temperature": 1, "num_beams": 2}, "beam search cannot sample"),
    ("caption", {"max_tokens": 1}, "max_tokens (1) is not supported: give max_new_tokens"),
    ("caption", {"shots": [{"image_url": "/etc/passwd", "answer": "a"}]}, "neither"),
    ("caption", {"shots": [{"image_url": "data:,", "answer": "a"}] * 16}, "shots"),
    ("classify", {"labels": ["a"]}, "labels"),
    ("classify", {"labels": ["a", " a "]}, "given twice"),
    ("classify", {"labels": [str(n) for n in range(1001)]}, "labels"),
    ("classify", {"labels": ["a", "b"], "temperature": 1}, "unknown field: temperature"),
]


@pytest.mark.parametrize(("task", "wrong", "words"), REFUSED_FIELDS, ids=lambda value: str(value)[:40])
def test_invalid_fields_are_named(client, task, wrong, words):
    answer = client.post(task_path(task), {"image_url": picture_data_uri("door"), **wrong})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_forms_are_validated_like_json(client):
    door = upload_file("door")["image"]
    for files, data, words in [
        (upload_file("door"), {"max_new_tokens": "many"}, "max_new_tokens"),
        (upload_file("door"), {"foo": "1"}, "unknown field: foo"),
        (upload_file("door"), {"image_url": picture_data_uri("door")}, "one of the two"),
        ({"picture": door}, {}, "send it as 'image'"),
        ([("image", door), ("image", door)], {}, "files"),
        ({"image": ("a.png", b"", "image/png")}, {}, "picture"),
    ]:
        answer = client.post(task_path("caption"), files=files, data=data)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
    text = client("POST", task_path("caption"), content=b"hi", headers={"Content-Type": "text/plain"})
    assert text.status_code == 400
    assert "text/plain" in text.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the picture is empty (0 bytes)"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "is HEIC, which is not read here: give JPEG, PNG, WebP, GIF or BMP",
        ),
        (
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
            "is AVIF, which is not read here: give JPEG, PNG, WebP, GIF or BMP",
        ),
        (b"II*\0" + bytes(100), "is TIFF, which is not read here: give JPEG, PNG, WebP, GIF or BMP"),
        (b"hello", "is not a picture that can be read: give JPEG, PNG, WebP, GIF or BMP"),
    ],
)
def test_the_message_names_the_format_of_an_unreadable_file(client, data, words):
    """As on the command line, whatever the name of the file."""
    answer = client.post(task_path("caption"), files={"image": ("photo.jpg", data)})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_data_uris_as_clients_send_them(client):
    uri = picture_data_uri("door")
    expected = client.post(task_path("caption"), json={"image_url": uri}).json()["text"]
    head, body = uri.split(",")
    lines = "\n".join(body[start : start + 76] for start in range(0, len(body), 76))
    for sent in (lines, body.rstrip("="), body.replace("+", "-").replace("/", "_"), f"{lines}\n"):
        answer = client.post(task_path("caption"), json={"image_url": f"{head},{sent}"})
        assert answer.json().get("text") == expected, answer.text[:200]


def test_invalid_forms_are_refused(client):
    twice = [("image", ("a.png", b"x")), ("image", ("b.png", b"x"))]
    answers = [
        client.post(task_path("caption"), files=twice),
        client("POST", task_path("caption"), content=b"--x", headers={"Content-Type": "multipart/form-data"}),
    ]
    for answer, why in zip(
        answers,
        ("Too many files. Maximum number of files is 1", "Missing boundary in multipart"),
        strict=True,
    ):
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            f"the form cannot be read ({why}): send one file, image=@photo.jpg, and fields of text"
        )


def test_read_is_refused_by_a_model_that_writes_no_doctags(client):
    answer = client.post(task_path("read"), json={"image_url": picture_data_uri("door")})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("read needs a checkpoint that writes DocTags")
