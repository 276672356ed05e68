"""curl, as in the documentation."""

import json
import shutil
import subprocess

import pytest

from server.request_bodies import PICTURES_FOLDER, QUESTION_MESSAGES, chat_request, parse_events

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def run_curl(*arguments, stdin=""):
    """What curl prints, then the status of the response."""
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--write-out",
        "\n%{http_code}",
        *arguments,
    ]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def post_json(url, body, *more):
    head = ("--header", "Content-Type: application/json")
    return run_curl(f"{url}/v1/chat/completions", *head, "--data-binary", "@-", *more, stdin=json.dumps(body))


def test_a_chat_completion(url, client):
    status, body = post_json(url, chat_request())
    assert status == 200
    same = client.chat.completions.create(model="demo", messages=QUESTION_MESSAGES)
    assert json.loads(body)["choices"][0]["message"]["content"] == same.choices[0].message.content


def test_a_stream(url):
    _, whole = post_json(url, chat_request())
    status, body = post_json(url, chat_request(stream=True), "--no-buffer")
    *chunks, done = parse_events(body)
    assert (status, done) == (200, "[DONE]")
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == json.loads(whole)["choices"][0]["message"]["content"]


def test_an_error_has_a_body_and_a_status(url):
    status, body = post_json(url, chat_request(n=0))
    assert status == 400
    assert json.loads(body)["error"]["param"] == "n"
    assert run_curl(f"{url}/none")[0] == 404
    assert run_curl("--request", "PUT", f"{url}/v1/chat/completions")[0] == 405


def test_a_large_body_is_refused_before_it_is_sent(url):
    """curl waits for "100 Continue" before it sends a large body; if it gets 413 instead, it sends none."""
    flood = json.dumps(chat_request()) + " " * (21 << 20)
    status, body = run_curl(f"{url}/v1/chat/completions", "--data-binary", "@-", stdin=flood)
    assert status == 413
    assert "larger than" in json.loads(body)["error"]["message"]


def post_form(url, task, *fields):
    flags = [flag for field in fields for flag in ("--form", field)]
    status, body = run_curl(f"{url}/v1/images/tasks/{task}", *flags)
    return status, json.loads(body)


def test_a_form_with_a_file(url, vlm):
    picture = PICTURES_FOLDER / "puppy.png"
    file = f"image=@{picture}"
    assert post_form(url, "caption", file)[1]["text"] == vlm.caption(picture).text
    answer = post_form(url, "ask", file, "words=What is it?", "max_new_tokens=3")[1]
    assert answer["text"] == vlm.ask(picture, "What is it?", max_new_tokens=3).text
    status, ranked = post_form(url, "classify", file, "labels=a dog", "labels=a door")
    assert status == 200
    same = vlm.classify(picture, ["a dog", "a door"])
    assert [row["label"] for row in ranked["labels"]] == [row.label for row in same]


def test_an_invalid_form(url, tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    for fields in (
        ["words=What?"],
        [f"image=@{tmp_path / 'words.png'}", "words=What?"],
        [f"photo=@{__file__}"],
    ):
        status, body = post_form(url, "ask", *fields)
        assert status == 400
        assert body["error"]["message"]


def test_health(url):
    assert run_curl(f"{url}/health") == (200, '{"status":"ok"}')
