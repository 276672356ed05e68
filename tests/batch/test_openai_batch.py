"""`idefics run` with a batch file of OpenAI's API: every line once, in OpenAI's form, whatever ends the run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import idefics
from idefics.batch.ledger import Ledger
from idefics.cli.main import run
from idefics.errors import OutputError
from idefics.server import app as server_app
from server.batch_requests import batch_line, to_jsonl
from server.conftest import SyncClient
from server.request_bodies import chat_request, text_part, user_message


@pytest.fixture(scope="session")
def vlm():
    return idefics.load("demo", remote_images="off")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with lines.jsonl: five lines, of which one is refused."""
    monkeypatch.chdir(tmp_path)
    lines = [
        batch_line("chat", chat_request(max_tokens=4)),
        batch_line("text", {"model": "demo", "prompt": "A"}, "/v1/completions"),
        batch_line("response", {"model": "demo", "input": "Hi", "max_output_tokens": 3}, "/v1/responses"),
        batch_line("refused", chat_request(temprature=1)),
        batch_line("last", chat_request([user_message(text_part("Hi"))], max_tokens=2)),
    ]
    (tmp_path / "lines.jsonl").write_bytes(to_jsonl(lines))
    return tmp_path


@pytest.fixture
def run_lines(vlm, folder, monkeypatch):
    """Runs lines.jsonl with further flags: exit code, the output by custom_id, and how many were submitted."""
    engine = type("Shared", (), {"count": 0})
    submit = vlm.engine.submit

    def counted(*args, **kwargs):
        engine.count += 1
        return submit(*args, **kwargs)

    monkeypatch.setattr(vlm.engine, "submit", counted)
    monkeypatch.setattr(type(vlm), "close", lambda self: None)

    def call(*flags, out="out.jsonl"):
        engine.count = 0
        code = run(["run", "lines.jsonl", "--model", "demo", "--out", out, *flags], lambda *_: vlm)
        lines = read_output(folder / out) if (folder / out).exists() else {}
        return code, lines, engine.count

    return call


def read_output(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines), "a line twice"
    return by_id


def test_the_output_is_that_of_the_server(vlm, run_lines, folder, capsys):
    code, lines, _ = run_lines()
    assert code == 1, "a line was refused"
    requests = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert lines.keys() == {one["custom_id"] for one in requests}
    client = SyncClient(server_app.create_app(vlm, server_app.Settings(model="demo")))
    for one in requests:
        line, live = lines[one["custom_id"]], client.post(one["url"], one["body"])
        assert line.keys() == {"id", "custom_id", "response", "error"}
        assert line["error"] is None
        assert line["response"]["status_code"] == live.status_code
        for name in ("choices", "output", "usage"):
            expected, found = live.json().get(name), line["response"]["body"].get(name)
            assert without_ids_and_caching(found) == without_ids_and_caching(expected)
    refused = lines["refused"]["response"]
    assert refused["status_code"] == 400
    assert "did you mean temperature" in refused["body"]["error"]["message"]
    said = capsys.readouterr().err
    assert "4 written, 1 failed" in said
    assert "first error: refused: " in said


def without_ids_and_caching(value):
    """A part of an answer without what differs between equal requests."""
    if isinstance(value, dict):
        dropped = ("id", "prompt_tokens_details", "input_tokens_details")
        return {name: without_ids_and_caching(one) for name, one in value.items() if name not in dropped}
    return [without_ids_and_caching(one) for one in value] if isinstance(value, list) else value


def test_the_second_run_computes_nothing(run_lines, folder, capsys):
    _, first, computed = run_lines()
    assert computed == 4
    content = (folder / "out.jsonl").read_bytes()
    code, _, computed = run_lines()
    assert (code, computed) == (1, 0)
    assert (folder / "out.jsonl").read_bytes() == content
    assert "4 done before, 1 failed before" in capsys.readouterr().err
    code, retried, computed = run_lines("--retry-failed")
    assert (code, computed, retried.keys()) == (1, 0, first.keys())
    assert retried["refused"]["response"]["request_id"] != first["refused"]["response"]["request_id"]
    _, _, computed = run_lines("--overwrite")
    assert computed == 4


def test_limits_of_a_run(run_lines):
    code, lines, _ = run_lines("--limit", "2")
    assert (code, lines.keys()) == (0, {"chat", "text"})
    code, lines, _ = run_lines("--limit", "3")
    assert (code, lines.keys()) == (0, {"chat", "text", "response"})


def test_a_changed_line_is_computed_again(run_lines, folder):
    _, before, _ = run_lines()
    text = (folder / "lines.jsonl").read_text().replace('"prompt": "A"', '"prompt": "The"')
    (folder / "lines.jsonl").write_text(text)
    _, lines, computed = run_lines()
    assert computed == 1
    assert lines["text"] != before["text"]
    assert {name: line for name, line in lines.items() if name != "text"} == {
        name: line for name, line in before.items() if name != "text"
    }


def test_errors_end_the_run(run_lines, folder):
    lines = [batch_line(str(i), chat_request(foo=1)) for i in range(100)]
    (folder / "lines.jsonl").write_bytes(to_jsonl(lines))
    code, written, _ = run_lines("--max-errors", "3")
    assert code == 1
    assert 3 <= len(written) <= 3 + 16


def test_the_ledger_says_what_failed(run_lines, folder, capsys):
    run_lines("--ledger", "kept.ledger")
    capsys.readouterr()
    assert run(["ledger", "kept.ledger"], None) == 0
    said = capsys.readouterr().out
    assert "4 answered, 1 failed" in said
    assert "failed: refused: HTTP 400: unknown field: temprature" in said
    with Ledger(folder / "kept.ledger", read_only=True) as ledger:
        assert {row.id for row, _ in ledger.rows_after(0)} == {"chat", "text", "response", "refused", "last"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "Hi"], "leave out --prompt"),
        (["--task", "ask"], "leave out --task"),
        (["--sidecar", "txt"], "leave out --sidecar"),
        (["--shard", "1/2"], "leave out --shard"),
        (["--max-new-tokens", "3"], "leave out --max-new-tokens"),
        (["--ray", "local"], "leave out --ray"),
        (["--report", "a.html"], "leave out --report"),
        (["--no-recursive"], "leave out --recursive/--no-recursive"),
        (["--max-errors", "0"], "above 0"),
    ],
)
def test_flags_without_effect_are_refused(run_lines, capsys, flags, words):
    code, lines, computed = run_lines(*flags)
    assert (code, lines, computed) == (2, {}, 0)
    assert words in capsys.readouterr().err


def test_a_batch_file_is_the_only_input(folder, capsys):
    assert run(["run", "photo.png", "lines.jsonl", "--out", "out.jsonl"], None) == 2
    assert "lines.jsonl is a batch file of OpenAI's API: give it as the only input" in capsys.readouterr().err


def test_the_output_needs_a_name_of_its_form(run_lines, capsys):
    assert run_lines(out="out.csv")[0] == 2
    assert "out.csv does not end in .jsonl" in capsys.readouterr().err
    assert run(["run", "lines.jsonl"], None) == 2
    assert "give --out answers.jsonl" in capsys.readouterr().err


def test_invalid_lines_are_said_before_anything_is_computed(run_lines, folder, capsys):
    with (folder / "lines.jsonl").open("ab") as file:
        file.write(to_jsonl(["{", batch_line("chat"), batch_line("b", url="/v1/embeddings")]))
    assert run_lines() == (2, {}, 0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for words in ("line 6: the line is not valid JSON", "line 7: the custom_id 'chat'", "line 8: the url"):
        assert words in said
    assert not (folder / "out.jsonl.ledger").exists()


def test_a_missing_extra_is_named(run_lines, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "idefics.server.batch_lines", None)
    assert run_lines()[0] == 2
    assert "idefics[serve]" in capsys.readouterr().err


COMMAND = [sys.executable, "-m", "idefics", "run", "lines.jsonl", "--model", "demo", "--out", "out.jsonl"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "IDEFICS_OFFLINE": "1"}
NUM_LINES = 200


def start_run(folder):
    """A process that answers many lines: it has answered some, and not all."""
    bodies = [chat_request(max_tokens=30, temperature=1.0, seed=number) for number in range(NUM_LINES)]
    lines = [batch_line(f"line-{number}", body) for number, body in enumerate(bodies)]
    (folder / "lines.jsonl").write_bytes(to_jsonl(lines))
    process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while count_kept(folder) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def count_kept(folder):
    """The number of lines in the ledger; 0 before it is made."""
    try:
        with Ledger(folder / "out.jsonl.ledger", read_only=True) as ledger:
            return sum(answered + failed for _, answered, failed in ledger.count_rows())
    except OutputError:
        return 0


def test_a_killed_run_goes_on(folder):
    process = start_run(folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Ledger(folder / "out.jsonl.ledger", read_only=True) as ledger:
        before = {row.id: json.loads(answer["text"]) for row, answer in ledger.rows_after(0)}
    assert 10 <= len(before) < NUM_LINES
    ended = subprocess.run(COMMAND, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"{NUM_LINES - len(before)} written, {len(before)} done before" in ended.stderr
    after = read_output(folder / "out.jsonl")
    assert after.keys() == {f"line-{number}" for number in range(NUM_LINES)}
    assert {name: after[name] for name in before} == before, "an answer was computed twice"
    assert {line["response"]["status_code"] for line in after.values()} == {200}


def test_ctrl_c_finishes_the_lines_in_hand(folder):
    process = start_run(folder)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert "finishing the rows in hand" in said
    assert "to go on: idefics run lines.jsonl" in said
    assert 10 <= len(read_output(folder / "out.jsonl")) == count_kept(folder) < NUM_LINES
