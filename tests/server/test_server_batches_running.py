"""Batches over time: restarts, a killed server, cancelling, expiry, priority of clients, keys, limits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import openai
import pytest

from clients.conftest import strict_client
from idefics.errors import BadSetting, OutputError
from idefics.server import batch_folder, batch_queue, batches, files, middleware
from idefics.server.admission import AdmissionControl
from idefics.server.app import create_app
from idefics.server.errors import APIError
from idefics.server.settings import Settings
from server.batch_requests import CHAT, batch_line, begin, read_lines, run_client, to_jsonl, wait_for
from server.request_bodies import chat_request, text_part, user_message

LINES = [
    batch_line(f"line-{i}", chat_request([user_message(text_part(f"Number {i}"))], max_tokens=3))
    for i in range(40)
]
IDS = {line["custom_id"] for line in LINES}


@pytest.fixture
def slow_engine(vlm, monkeypatch):
    """An engine whose steps take 10 ms; counts the answers that are submitted to it."""
    step, submit, counts = vlm.engine.step, vlm.engine.submit, Counter()

    def slow_step():
        time.sleep(0.01)
        step()

    def counted_submit(*args, **kwargs):
        counts["submitted"] += 1
        return submit(*args, **kwargs)

    monkeypatch.setattr(vlm.engine, "step", slow_step)
    monkeypatch.setattr(vlm.engine, "submit", counted_submit)
    return counts


def wait_for_answers(client, batch, num_answers):
    """Waits until so many lines of a batch are answered, of which not all are."""
    deadline = time.monotonic() + 30
    while batch.request_counts.completed < num_answers:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts.completed < len(LINES)
    return batch


def test_a_batch_goes_on_after_a_restart_and_computes_nothing_twice(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for_answers(client, begin(client, LINES), 8)
    done_before = slow_engine["submitted"]
    assert done_before < len(LINES)
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, client.batches.retrieve(batch.id))
        assert (batch.status, batch.request_counts.completed) == ("completed", len(LINES))
        assert read_lines(client, batch.output_file_id).keys() == IDS
    assert slow_engine["submitted"] == len(LINES)
    assert not list(tmp_path.rglob("*.ledger*"))
    with run_client(vlm, tmp_path) as (client, _):  # what has ended stays as it is
        assert client.batches.retrieve(batch.id) == batch
        assert read_lines(client, batch.output_file_id).keys() == IDS
    assert slow_engine["submitted"] == len(LINES)


def start_process(folder, log_file):
    """`idefics serve` in a process of its own: (process, url)."""
    start = log_file.stat().st_size if log_file.exists() else 0
    command = [sys.executable, "-m", "idefics", "serve", "--model", "demo", "--port", "0"]
    with log_file.open("a") as log:
        process = subprocess.Popen(
            [*command, "--batches", str(folder)],
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "IDEFICS_OFFLINE": "1"},
        )
    deadline = time.monotonic() + 60
    while not (match := re.search(r"is served at (\S+);", log_file.read_text()[start:])):
        assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()
        time.sleep(0.05)
    return process, match[1]


def test_a_killed_server_loses_no_answer(tmp_path):
    lines = [
        batch_line(
            f"line-{i}",
            chat_request([user_message(text_part(f"Tell {i}"))], max_tokens=60, temperature=1.0, seed=i),
        )
        for i in range(120)
    ]
    log_file = tmp_path / "log"
    process, url = start_process(tmp_path / "batches", log_file)
    with strict_client(url) as client:
        batch = begin(client, lines)
        while client.batches.retrieve(batch.id).request_counts.completed < 20:
            time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process, url = start_process(tmp_path / "batches", log_file)
    try:
        with strict_client(url) as client:
            batch = wait_for(client, client.batches.retrieve(batch.id))
            assert batch.request_counts.model_dump() == {"total": 120, "completed": 120, "failed": 0}
            assert len(read_lines(client, batch.output_file_id)) == 120
    finally:
        process.terminate()
        assert process.wait(20) == 0
    num_answered = log_file.read_text().count(f"batch POST {CHAT} 200")
    # At most what a commit of the ledger holds, and what was in hand.
    assert 120 <= num_answered <= 120 + 32 + 4


def test_a_cancelled_batch_keeps_its_answers(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for_answers(client, begin(client, LINES), 4)
        with pytest.raises(openai.BadRequestError, match="cancel it first"):
            client.files.delete(batch.input_file_id)
        cancelling = client.batches.cancel(batch.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at
        batch = wait_for(client, batch)
        assert batch.status == "cancelled"
        answers = read_lines(client, batch.output_file_id)
        errors = read_lines(client, batch.error_file_id)
        assert 4 <= len(answers) < len(LINES)
        assert batch.request_counts.completed == len(answers) == slow_engine["submitted"]
        assert answers.keys() | errors.keys() == IDS
        assert not answers.keys() & errors.keys()
        assert {json.dumps((line["response"], line["error"]["code"])) for line in errors.values()} == {
            '[null, "batch_cancelled"]'
        }
        assert client.batches.cancel(batch.id).status == "cancelled"
        assert client.files.delete(batch.input_file_id).deleted


def test_a_batch_that_waits_for_others_is_cancelled_at_once(vlm, tmp_path, slow_engine, monkeypatch):
    monkeypatch.setattr(batch_queue, "MAX_RUNNING_BATCHES", 1)
    with run_client(vlm, tmp_path) as (client, _):
        running = wait_for_answers(client, begin(client, LINES), 1)
        waiting, last = begin(client, LINES), begin(client, LINES[:2])
        cancelled = client.batches.cancel(waiting.id)
        assert (cancelled.status, cancelled.output_file_id) == ("cancelled", None)
        assert client.batches.retrieve(last.id).status == "validating"
        client.batches.cancel(running.id)
        assert wait_for(client, last).request_counts.completed == 2
    with run_client(vlm, tmp_path) as (client, _):
        assert client.batches.retrieve(waiting.id).status == "cancelled"


def test_a_batch_expires(vlm, tmp_path, slow_engine, monkeypatch):
    monkeypatch.setattr(batches, "COMPLETION_SECONDS", 1)
    lines = [
        batch_line(f"line-{i}", chat_request(max_tokens=100, temperature=5 / 3, seed=i)) for i in range(200)
    ]
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, begin(client, lines))
        assert batch.status == "expired"
        assert batch.expired_at >= batch.expires_at == batch.created_at + 1
        errors = read_lines(client, batch.error_file_id)
        assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
        assert len(read_lines(client, batch.output_file_id)) + len(errors) == 200


def test_clients_are_served_before_batches(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path, requests_at_once=1) as (client, service):
        batch = wait_for_answers(client, begin(client, LINES), 1)
        for _ in range(6):
            assert client.chat.completions.create(**chat_request(max_tokens=1)).choices
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert service.metrics.to_prometheus_text().count(b"idefics_refusals_total{") == 0
        client.batches.cancel(batch.id)
        wait_for(client, batch)


def test_background_requests_use_what_others_leave():
    refused = []
    control = AdmissionControl(Settings(requests_at_once=2, pictures_at_once=4), refused.append)
    background = [control.acquire_slot(lambda: None, is_background=True, pictures=2) for _ in range(2)]
    with pytest.raises(APIError, match="2 requests") as error:
        control.acquire_slot(lambda: None, is_background=True)
    assert error.value.status_code == 429
    live = [control.acquire_slot(lambda: None, pictures=2) for _ in range(2)]
    assert control.usage["pictures"] == control.background_usage["pictures"] == 4
    assert not refused, "background requests are tried again, and are no refusals"
    with pytest.raises(APIError):
        control.acquire_slot(lambda: None)
    assert refused == ["requests"]
    for slot in background + live:
        control.release_slot(slot)
    assert not any(control.usage.values()) and not any(control.background_usage.values())


def test_files_and_batches_belong_to_a_key(vlm, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with run_client(vlm, tmp_path / "batches", api_key_file=keys) as (client, _):
        first, second = client.with_options(api_key="first"), client.with_options(api_key="second")
        with pytest.raises(openai.AuthenticationError):
            client.files.list()
        batch = wait_for(first, begin(first, [batch_line("a")]))
        assert batch.status == "completed"
        assert [one.id for one in first.batches.list()] == [batch.id]
        assert {one.id for one in first.files.list()} == {batch.input_file_id, batch.output_file_id}
        assert not list(second.batches.list()) and not list(second.files.list())
        for call in (
            lambda: second.batches.retrieve(batch.id),
            lambda: second.batches.cancel(batch.id),
            lambda: second.files.retrieve(batch.output_file_id),
            lambda: second.files.content(batch.output_file_id),
            lambda: second.files.delete(batch.output_file_id),
            lambda: second.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError, match="there is no"):
                call()
    assert b"first" not in b"".join(path.read_bytes() for path in (tmp_path / "batches").rglob("*.json"))


def test_sizes_are_limited(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3 << 20)
    monkeypatch.setattr(middleware, "MAX_UPLOAD_BYTES", 4 << 20)
    with run_client(vlm, tmp_path, body_megabytes=1, megabytes_at_once=1) as (client, service):
        service.admission.usage["bytes"] += 1 << 19  # as another request would
        long = batch_line("long", chat_request([user_message(text_part("a" * (3 << 19)))]))
        file = client.files.create(file=("a.jsonl", to_jsonl([batch_line("a"), long])), purpose="batch")
        assert file.bytes > 3 << 19, "files are not held in memory, and may be larger than bodies"
        batch = wait_for(
            client, client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        )
        assert [(error.line, error.code) for error in batch.errors.data] == [(2, "line_too_large")]
        for num_bytes, words in ((7 << 19, "limit is 3,145,728"), (5 << 20, "split the file")):
            with pytest.raises(openai.APIStatusError, match=words) as refused:
                client.files.create(file=("a.jsonl", b"a" * num_bytes), purpose="batch")
            assert refused.value.status_code == 413


def test_numbers_are_limited(vlm, tmp_path, slow_engine, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 3)
    monkeypatch.setattr(batches, "MAX_UNFINISHED_BATCHES", 2)
    monkeypatch.setattr(batch_queue, "MAX_LINES", len(LINES))
    with run_client(vlm, tmp_path) as (client, _):
        too_long = wait_for(client, begin(client, [*LINES, batch_line("more")]))
        assert [error.code for error in too_long.errors.data] == ["too_many_tasks"]
        running = [begin(client, LINES) for _ in range(2)]
        with pytest.raises(openai.BadRequestError, match="2 batches have not ended"):
            client.batches.create(
                input_file_id=too_long.input_file_id, endpoint=CHAT, completion_window="24h"
            )
        with pytest.raises(openai.BadRequestError, match="3 files, which is the limit"):
            begin(client, LINES)
        for batch in running:
            client.batches.cancel(batch.id)
            wait_for(client, batch)


def test_old_batches_are_forgotten(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BATCHES", 2)
    with run_client(vlm, tmp_path) as (client, _):
        made = [wait_for(client, begin(client, ["{"])).id for _ in range(3)]
        assert [one.id for one in client.batches.list()] == [made[2], made[1]]
        assert len(list((tmp_path / "batches").iterdir())) == 2


def test_files_expire(vlm, tmp_path):
    with run_client(vlm, tmp_path) as (client, _):
        file = client.files.create(file=("a", b"{}"), purpose="batch")
        kept = client.files.create(file=("b", b"{}"), purpose="batch")
        assert file.expires_at == file.created_at + 30 * 24 * 3600
    path = tmp_path / "files" / f"{file.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires_at": int(time.time()) - 1}))
    (tmp_path / "files" / "half.jsonl").write_text("{")  # an upload that a killed server has not ended
    with run_client(vlm, tmp_path) as (client, _):
        assert [one.id for one in client.files.list()] == [kept.id]
    assert {path.stem for path in (tmp_path / "files").iterdir()} == {kept.id}


def test_a_disk_without_room_refuses_uploads(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_folder, "MIN_FREE_BYTES", 1 << 60)
    with run_client(vlm, tmp_path) as (client, _):
        with pytest.raises(openai.InternalServerError, match="no room") as refused:
            client.files.create(file=("a", b"{}"), purpose="batch")
        assert refused.value.status_code == 507
    assert not list((tmp_path / "files").iterdir())


def test_a_full_disk_delays_a_batch_and_loses_nothing(vlm, tmp_path, slow_engine, monkeypatch):
    monkeypatch.setattr(batch_queue, "RETRY_SECONDS", 0.05)
    add_row, calls = batch_queue.Ledger.add_row, Counter()

    def sometimes_full(self, row, answer=None):
        calls["add_row"] += 1
        if calls["add_row"] in (5, 17):
            raise OutputError("disk full")
        return add_row(self, row, answer)

    monkeypatch.setattr(batch_queue.Ledger, "add_row", sometimes_full)
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, begin(client, LINES))
        assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
        assert read_lines(client, batch.output_file_id).keys() == IDS
    assert slow_engine["submitted"] <= len(LINES) + 2 * 4


def test_a_batch_goes_on_where_its_output_could_not_be_written(vlm, tmp_path, slow_engine, monkeypatch):
    write = batch_queue._write_answers

    def full(ledger_path, usage, file):
        write(ledger_path, usage, file)
        raise OutputError("disk full")

    monkeypatch.setattr(batch_queue, "_write_answers", full)
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, begin(client, LINES), "finalizing")
        time.sleep(0.1)
    monkeypatch.setattr(batch_queue, "_write_answers", write)
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, batch)
        assert batch.request_counts.completed == len(LINES)
        assert read_lines(client, batch.output_file_id).keys() == IDS
        assert len(client.files.list().data) == 2
    assert slow_engine["submitted"] == len(LINES)


def test_output_files_have_their_own_time(vlm, tmp_path):
    with run_client(vlm, tmp_path) as (client, _):
        expiry = {"anchor": "created_at", "seconds": 7200}
        batch = begin(
            client, [batch_line("a"), batch_line("b", chat_request(n=99))], output_expires_after=expiry
        )
        batch = wait_for(client, batch)
        for id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
            file = client.files.retrieve(id)
            assert file.expires_at == file.created_at + 7200
            assert (file.filename, file.purpose) == (f"{batch.id}_{name}.jsonl", "batch_output")
            assert file.bytes == len(client.files.content(id).read())
        with pytest.raises(openai.BadRequestError, match="has the answers of a batch"):
            client.batches.create(input_file_id=batch.output_file_id, endpoint=CHAT, completion_window="24h")


def test_a_missing_input_fails_the_batch(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for_answers(client, begin(client, LINES), 1)
    (tmp_path / "files" / f"{batch.input_file_id}.jsonl").unlink()
    with run_client(vlm, tmp_path) as (client, _):
        batch = wait_for(client, batch)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "file_not_found")


def test_one_server_at_a_time_uses_a_folder(vlm, tmp_path):
    settings = Settings(model="demo", batches=tmp_path)
    with run_client(vlm, tmp_path), pytest.raises(BadSetting, match="another server uses it"):
        create_app(vlm, settings)
    create_app(vlm, settings).state.batch_folder.close()


def test_the_folder_is_for_the_servers_user_alone(vlm, tmp_path):
    create_app(vlm, Settings(model="demo", batches=tmp_path / "new")).state.batch_folder.close()
    (tmp_path / "old").mkdir(0o755)
    create_app(vlm, Settings(model="demo", batches=tmp_path / "old")).state.batch_folder.close()
    for path in (tmp_path / "new", tmp_path / "old" / "files", tmp_path / "old" / "batches"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_folder, "network_file_system", lambda path: "nfs4")
    with pytest.raises(BadSetting, match="network file system, nfs4"):
        batch_folder.BatchFolder(tmp_path)


def test_an_unusable_folder_is_refused(vlm, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(BadSetting, match="cannot hold batches"):
            create_app(vlm, Settings(model="demo", batches=path))
