"""The report of a batch that has ended: a page of HTML with thumbnails, or a table."""

import base64
import csv
import io
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import PIL.Image
import pytest

from idefics.batch.openai_batch import BatchFileLimits, answered_line
from idefics.server import batch_report
from server import test_server_batches_running
from server.batch_requests import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    batch_line,
    begin,
    run_client,
    to_jsonl,
    wait_for,
)
from server.request_bodies import chat_request, image_part, picture_data_uri, text_part, user_message
from server.test_server_batches_running import LINES, wait_for_answers

ASK, CLASSIFY = "/v1/images/tasks/ask", "/v1/images/tasks/classify"
slow_engine = test_server_batches_running.slow_engine


@pytest.fixture(scope="module")
def client(vlm, tmp_path_factory):
    with run_client(vlm, tmp_path_factory.mktemp("batches")) as (client, _):
        yield client


def report(client, batch, **query):
    return client.post(f"/batches/{batch.id}/report", cast_to=httpx.Response, options={"params": query})


def run_batch(client, bodies, endpoint):
    lines = [batch_line(name, body, endpoint) for name, body in bodies.items()]
    return wait_for(client, begin(client, lines, endpoint))


def ask_request(words, picture):
    return {"image_url": picture_data_uri(picture), "words": words, "max_new_tokens": 8}


def test_the_page_has_every_row_in_the_order_of_the_input_with_its_thumbnail(client):
    bodies = {
        "b/1.png": ask_request("What is it?", "door"),
        "a/1.png": ask_request("What is it?", "puppy") | {"image_url": "data:image/png;base64,AAAA"},
        "a/2.png": ask_request("And <b>this</b>?", "puppy"),
    }
    answer = report(client, run_batch(client, bodies, ASK))
    assert answer.headers["content-type"].startswith("text/html")
    assert "attachment" in answer.headers["content-disposition"], "it does not run as a page of the server"
    rows = json.loads(
        re.search(r'<script id="rows" type="application/json">(.*?)</script>', answer.text, re.S)[1]
    )
    assert [row[0] for row in rows] == list(bodies)
    live = client.post(ASK.removeprefix("/v1"), cast_to=httpx.Response, body=bodies["b/1.png"]).json()
    assert rows[0][3] == live["text"]
    assert rows[1][8] == "HTTP 400"
    assert rows[2][2] == "And <b>this</b>?"
    assert "<b>this" not in answer.text
    thumbnails = [row[11] for row in rows]
    assert thumbnails[1] == ""
    for thumbnail in (thumbnails[0], thumbnails[2]):
        assert PIL.Image.open(io.BytesIO(base64.b64decode(thumbnail))).format == "JPEG"
    assert thumbnails[0] != thumbnails[2]


def table(client, batch):
    answer = report(client, batch, format="csv")
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def test_labels_have_their_probabilities_in_the_table(client):
    body = {"image_url": picture_data_uri("door"), "labels": ["puppy", "door"]}
    (row,) = table(client, run_batch(client, {"x.png": body}, CLASSIFY))
    live = client.post(CLASSIFY.removeprefix("/v1"), cast_to=httpx.Response, body=body).json()
    assert (row["path"], row["task"], row["text"]) == ("x.png", "classify", live["labels"][0]["label"])
    assert json.loads(row["probabilities"])[row["text"]] == pytest.approx(
        live["labels"][0]["probability"], abs=1e-3
    )


@pytest.mark.parametrize(
    ("endpoint", "body", "prompt"),
    [
        (CHAT, chat_request([user_message(image_part("door"), text_part("What?"))], max_tokens=3), "What?"),
        (CHAT, chat_request([{"role": "user", "content": "Hi"}], max_tokens=3), "Hi"),
        (COMPLETIONS, {"model": "demo", "prompt": "A", "max_tokens": 3}, "A"),
        (RESPONSES, {"model": "demo", "input": "Hi", "max_output_tokens": 16}, "Hi"),
    ],
)
def test_each_endpoint_has_its_text_prompt_and_tokens(client, endpoint, body, prompt):
    batch = run_batch(client, {"one": body}, endpoint)
    (row,) = (json.loads(line) for line in report(client, batch, format="jsonl").text.splitlines())
    live = client.post(endpoint.removeprefix("/v1"), cast_to=httpx.Response, body=body).json()
    texts = {
        CHAT: lambda: live["choices"][0]["message"]["content"],
        COMPLETIONS: lambda: live["choices"][0]["text"],
        RESPONSES: lambda: live["output"][0]["content"][0]["text"],
    }
    assert (row["text"], row["prompt"], row["model"]) == (texts[endpoint](), prompt, "demo")
    assert row["tokens"] == live["usage"].get("completion_tokens", live["usage"].get("output_tokens"))
    assert row["finish"] in ("stop", "length")


def test_a_report_of_several_batches_has_each_request_once_with_its_last_answer(client):
    picture, labels = picture_data_uri("door"), ["puppy", "door"]
    good = {"image_url": picture, "labels": labels}
    first = run_batch(client, {"a": good, "b": good | {"image_url": "data:image/png;base64,AAAA"}}, CLASSIFY)
    second = run_batch(client, {"b": good, "c": good}, CLASSIFY)
    path = f"/batches/{second.id}/report?also={first.id}&also={second.id}"
    answer = client.post(f"{path}&format=csv", cast_to=httpx.Response)
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [(row["path"], row["error_type"]) for row in rows] == [("a", ""), ("b", ""), ("c", "")]
    assert "3 written, 0 failed" in client.post(path, cast_to=httpx.Response).text
    assert [row["error_type"] for row in table(client, first)] == ["", "HTTP 400"]
    with pytest.raises(openai.NotFoundError, match="none"):
        report(client, first, also="none")


def test_refused_lines_are_rows_whatever_they_are(client):
    bodies = {"a": {"messages": 5}, "b": {"messages": [1]}, "c": {"messages": [{"content": {"x": [1]}}]}}
    rows = table(client, run_batch(client, bodies, CHAT))
    assert [row["error_type"] for row in rows] == ["HTTP 400"] * 3
    assert all(row["error"] and not row["text"] for row in rows)


def test_a_batch_that_runs_has_no_report_and_one_that_was_cancelled_has(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = begin(client, LINES)
        with pytest.raises(openai.BadRequestError, match="once it has ended"):
            report(client, batch)
        wait_for_answers(client, batch, 4)
        client.batches.cancel(batch.id)
        batch = wait_for(client, batch)
        rows = table(client, batch)
        assert [row["path"] for row in rows] == [line["custom_id"] for line in LINES]
        assert {row["error_type"] for row in rows} == {"", "batch_cancelled"}
        assert sum(row["error_type"] == "" for row in rows) == batch.request_counts.completed
        assert not [path for path in tmp_path.iterdir() if path.name not in ("files", "batches", "lock")]


def test_without_its_files_there_is_no_report(client):
    batch = run_batch(client, {"one": chat_request(max_tokens=1)}, CHAT)
    client.files.delete(batch.input_file_id)
    with pytest.raises(openai.NotFoundError, match=batch.input_file_id):
        report(client, batch)
    with pytest.raises(openai.NotFoundError, match="there is no batch"):
        client.post("/batches/none/report", cast_to=httpx.Response)
    with pytest.raises(openai.BadRequestError, match="html"):
        report(client, batch, format="docx")


def test_reports_do_not_wait_for_one_that_takes_long(client, monkeypatch):
    long, short = (run_batch(client, {id: chat_request(max_tokens=1)}, CHAT) for id in ("long", "short"))
    write, go_on = batch_report._write_report, threading.Event()

    def held(folder, batches, *rest):
        if batches[0].id == long.id:
            assert go_on.wait(20)
        return write(folder, batches, *rest)

    monkeypatch.setattr(batch_report, "_write_report", held)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(table, client, long)
        assert [row["path"] for row in table(client, short)] == ["short"]
        assert not waiting.done()
        go_on.set()
        assert [row["path"] for row in waiting.result()] == ["long"]


def test_the_duration_is_the_time_in_which_requests_were_answered(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for_answers(client, begin(client, LINES), 4)
    path = tmp_path / "batches" / f"{batch.id}.json"  # the server was killed 1,000 s ago
    stored = json.loads(path.read_text())
    stored["work_intervals"] = [[begin - 1000] * 2 for begin, _ in stored["work_intervals"]]
    stored["status_times"]["in_progress"] -= 1000
    path.write_text(json.dumps(stored))
    for ledger in tmp_path.rglob("*.ledger*"):
        os.utime(ledger, (time.time() - 998,) * 2)
    with run_client(vlm, tmp_path) as (client, _):
        page = report(client, wait_for(client, batch)).text
    seconds = float(re.search(r"<dt>duration</dt><dd>([\d.]+) s</dd>", page)[1])
    assert 1 < seconds < 30


def test_the_time_of_batches_at_the_same_time_counts_once():
    assert batch_report.union_seconds([(1, 4), (2, 3), (3, 6), (10, 11.5)]) == 6.5
    assert batch_report.union_seconds([]) == 0


def count_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_files_of_one_batch_at_a_time_are_open(tmp_path):
    batches = []
    for number in range(5):
        (requests := tmp_path / f"{number}-in").write_bytes(to_jsonl([batch_line(f'"{number}é')]))
        answers = tmp_path / f"{number}-out"
        body = {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
        answers.write_text(answered_line(f'"{number}é', 200, "r", body) + "\n")
        batches.append(batch_report.BatchFiles(requests, answers, None))
    records = batch_report.BatchRecords(
        batches, BatchFileLimits(line_bytes=1 << 20, line_values=99), "demo", None, {}
    )
    open_before = count_open_files()
    rows = [(record.path, count_open_files() - open_before) for record in records]
    assert rows == [(f'"{number}é', 2) for number in range(5)]
    assert records.count_answers() == (5, 0, 0)


def test_a_report_has_a_largest_number_of_requests(client, monkeypatch):
    monkeypatch.setattr(batch_report, "MAX_REPORT_ROWS", 1)
    batch = run_batch(client, {id: chat_request(max_tokens=1) for id in "ab"}, CHAT)
    with pytest.raises(openai.BadRequestError, match="2 requests, and a report at most 1: name fewer"):
        report(client, batch)


def test_corrected_answers_are_in_the_report(client):
    batch = run_batch(client, {id: ask_request("What is it?", "door") for id in "ab"}, ASK)
    body = {"texts": {"b": "A <b>gate</b>.", "none": "x"}}
    path = f"/batches/{batch.id}/report"
    answer = table(client, batch)[0]["text"]
    lines = client.post(f"{path}?format=jsonl", cast_to=httpx.Response, body=body).text.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == [answer, "A <b>gate</b>."]
    assert rows[1]["notes"] == [f"corrected; the model answered: {answer}"]
    page = client.post(path, cast_to=httpx.Response, body=body).text
    assert "<dt>corrected</dt><dd>1</dd>" in page and "A \\u003cb>gate" in page
    assert "corrected" not in report(client, batch).text
    with pytest.raises(openai.BadRequestError, match="texts"):
        client.post(path, cast_to=httpx.Response, body={"texts": ["x"]})
